"""Gradients that an agent samples on a finite problem, beside the exact one."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor

import upslope as us
from upslope.envs.finite import FiniteVectorEnv
from upslope.exact import FiniteMDP
from upslope.rollout.buffer import ROWS, Rollout
from upslope.seeding import generator


def softmax_of(parameters: Tensor, observed: Tensor, actions: int) -> Tensor:
    """pi(a|s) [S, A] of a linear policy: weights [A, F] and a bias [A], flat as an engine's are."""
    weight, bias = parameters.split([parameters.numel() - actions, actions])
    return (observed @ weight.view(actions, -1).T + bias).softmax(1)


class Sampled:
    """An agent with a linear policy that does not move, and the gradients that it takes.

    All its episodes are collected at once, and it is updated on `group` of them at a time.
    """

    def __init__(
        self, mdp: FiniteMDP, seen: Any = None, *, count: int, group: int = 4, **settings: Any
    ) -> None:
        env = FiniteVectorEnv(mdp, count * group, seen)
        self.count, self.group = count, group
        chosen = {"learning_rate": 0.0, "gamma": mdp.gamma, "engine": "torch"} | settings
        self.agent = us.REINFORCE(env, policy_kwargs={"net_arch": []}, **chosen)
        self.mdp = mdp
        self.observed = torch.eye(mdp.n_states) if seen is None else torch.tensor(seen)
        flat = self.agent.engine.flat
        self.size = flat.leading_size
        draw = generator(5, "test")
        flat.value.copy_(0.7 * torch.randn(flat.value.shape, generator=draw))

    @property
    def theta(self) -> Tensor:
        return self.agent.engine.flat.value[: self.size].double()

    def policy(self, theta: Tensor) -> Tensor:
        return softmax_of(theta, self.observed.double(), self.mdp.n_actions)

    def exact(self) -> Tensor:
        return us.exact.policy_gradient(self.mdp, self.policy, self.theta)

    def gradients(self) -> Tensor:
        """Gradients [count, P] of J, each from a group of episodes."""
        agent, kept = self.agent, []
        rollout = agent.collector.collect(agent.policy, generator(7, "test"), agent.engine.act)
        for k in range(self.count):
            agent.update(columns(rollout, slice(k * self.group, (k + 1) * self.group)))
            kept.append(-agent.engine.flat.gradient[: self.size].double())
        return torch.stack(kept)


def columns(rollout: Rollout, chosen: slice) -> Rollout:
    """The rollout of some of the environments; no episode of it may have been cut."""
    assert not rollout.cut
    part = copy.copy(rollout)
    for name in ROWS:
        rows = getattr(rollout, name)[:, chosen]
        own = np.ascontiguousarray(rows) if isinstance(rows, np.ndarray) else rows.contiguous()
        setattr(part, name, own)
    for name in ("memory", "last_observation", "last_value"):
        setattr(part, name, getattr(rollout, name)[chosen])
    part.n_envs = len(part.memory)
    part.chunks = lambda *_: None  # one pass in place of one for each: the same gradient, sooner
    return part.first(int(part.valid.any(1).sum()))


def z_scores(samples: Tensor, exact: Tensor) -> Tensor:
    """How many standard errors the mean of samples [K, P] lies from the exact gradient, [P]."""
    error = samples.std(0) / len(samples) ** 0.5
    return (samples.mean(0) - exact) / error


def scale(samples: Tensor, exact: Tensor) -> tuple[float, float]:
    """<mean, exact> / <exact, exact>, and its standard error."""
    along = samples @ exact / (exact @ exact)
    return along.mean().item(), (along.std() / len(along) ** 0.5).item()
