"""What the tests of the native engine share: policies of every shape it knows, written plainly."""

from __future__ import annotations

import os
from dataclasses import dataclass

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

from upslope.engine.native_engine import MISSING
from upslope.policies.actor_critic import ActorCritic, Perceptrons

if MISSING and os.environ.get("CI"):
    raise AssertionError(f"the native engine must be there in CI: {MISSING}")
if MISSING:
    pytest.skip(f"no native engine: {MISSING}", allow_module_level=True)

from upslope import _native

INSTRUCTION_SETS = _native.instruction_sets()
ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU, "silu": nn.SiLU}


@pytest.fixture(params=INSTRUCTION_SETS)
def instruction_set(request):
    """Each path that this machine has, in turn."""
    before = _native.instruction_set()
    _native.use_instruction_set(request.param)
    yield request.param
    _native.use_instruction_set(before)


def perceptron(sizes, activation, end, generator) -> nn.Sequential:
    layers: list[nn.Module] = []
    for k in range(len(sizes) - 1):
        layer = nn.Linear(sizes[k], sizes[k + 1])
        with torch.no_grad():
            layer.weight.normal_(0, sizes[k] ** -0.5, generator=generator)
            layer.bias.normal_(0, 0.3, generator=generator)
        layers.append(layer)
        if end or k < len(sizes) - 2:
            layers.append(ACTIVATIONS[activation]())
    return nn.Sequential(*layers)


class Head(nn.Module):
    """The head's numbers to log-probability and entropy, from the definitions."""

    def __init__(self, space: gymnasium.Space, generator: torch.Generator) -> None:
        super().__init__()
        self.space = space
        if isinstance(space, spaces.Box):
            self.size = int(np.prod(space.shape))
            self.shape: tuple[int, ...] = (self.size,)
            self.log_std = nn.Parameter(torch.randn(self.size, generator=generator) * 0.4)
        else:
            self.choices = [
                int(n) for n in np.atleast_1d(space.nvec if hasattr(space, "nvec") else space.n)
            ]
            self.size = sum(self.choices)
            self.shape = () if isinstance(space, spaces.Discrete) else (len(self.choices),)

    def judge(self, numbers: Tensor, action: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        if isinstance(self.space, spaces.Box):
            normal = torch.distributions.Normal(numbers, self.log_std.exp().expand_as(numbers))
            return normal.log_prob(action).sum(-1), normal.entropy().sum(-1)
        if mask is not None:
            numbers = numbers.masked_fill(~mask, -1e9)
        action = action.reshape(len(numbers), -1)
        parts = [p.log_softmax(-1) for p in numbers.split(self.choices, -1)]
        chosen = [p.gather(-1, action[:, k : k + 1])[:, 0] for k, p in enumerate(parts)]
        entropy = [-(p.exp() * p).sum(-1) for p in parts]
        return sum(chosen, torch.zeros(())), sum(entropy, torch.zeros(()))


class PlainPolicy(ActorCritic):
    """Trunk, actor, critic and head, as general as the native engine takes them."""

    def __init__(self, inputs, trunk, actor, critic, space, activation, seed=0) -> None:
        nn.Module.__init__(self)
        generator = torch.Generator().manual_seed(seed)
        self.head = Head(space, generator)
        self.trunk = perceptron([inputs, *trunk], activation, True, generator)
        seen = [inputs, *trunk][-1]
        self.actor = perceptron([seen, *actor, self.head.size], activation, False, generator)
        self.critic = perceptron([seen, *critic, 1], activation, False, generator)

    def forward(self, batch):
        seen = self.trunk(batch.observation.flatten(1))
        mask = None if batch.action_mask is None else batch.action_mask
        log_prob, entropy = self.head.judge(self.actor(seen), batch.action, mask)
        return log_prob, entropy, self.critic(seen)[:, 0]

    def value(self, observation):
        return self.critic(self.trunk(observation.flatten(1)))[:, 0]

    def perceptrons(self) -> Perceptrons:
        return Perceptrons(self.trunk, self.actor, self.critic)


@dataclass
class Rows:
    """A batch, with masks."""

    observation: Tensor
    action: Tensor
    log_prob: Tensor
    value: Tensor
    advantage: Tensor
    target: Tensor
    action_mask: Tensor | None = None

    def __getitem__(self, index: Tensor) -> Rows:
        found = {name: value for name, value in vars(self).items() if value is not None}
        return Rows(**{name: value[index] for name, value in found.items()})

    def double(self) -> Rows:
        found = vars(self).items()
        return Rows(
            **{n: v.double() if v is not None and v.is_floating_point() else v for n, v in found}
        )


def rows_for(policy: PlainPolicy, inputs: int, count: int, *, masked=False, seed=1) -> Rows:
    """Random rows near the policy: ratios around 1, some past the clip; values around the old."""
    g = torch.Generator().manual_seed(seed)
    head = policy.head

    def normal(*shape):
        return torch.randn(*shape, generator=g)

    rows = Rows(normal(count, inputs), torch.zeros(0), *[normal(count) for _ in range(4)])
    if isinstance(head.space, spaces.Box):
        rows.action = normal(count, head.size)
    else:
        drawn = [torch.randint(0, n, (count,), generator=g) for n in head.choices]
        rows.action = torch.stack(drawn, -1).reshape(count, *head.shape)
        if masked:
            mask = torch.rand(count, head.size, generator=g) < 0.6
            starts = np.cumsum([0, *head.choices[:-1]])
            for start, action in zip(starts, drawn, strict=True):
                mask[torch.arange(count), int(start) + action] = True  # what was done was allowed
            rows.action_mask = mask
    with torch.no_grad():
        log_prob, _, value = policy(rows)
    rows.log_prob = log_prob + 0.3 * normal(count)
    rows.value = value + 0.5 * normal(count)
    return rows
