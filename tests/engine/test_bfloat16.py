"""Products in bfloat16: what is rounded is what the engine says, and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

import upslope as us
from tests.engine.native_cases import PlainPolicy, rows_for
from tests.engine.test_native_steps import LOSS, policy_of
from upslope import _native
from upslope.engine.choose import make_engine
from upslope.engine.native_engine import NativeEngine
from upslope.errors import ArgumentError, NotFiniteError

needs_bfloat16 = pytest.mark.skipif(not _native.bfloat16(), reason="not on this processor")
INPUTS = 32
SHAPES: dict[str, Any] = {
    "separate": ([], [64, 96], [128, 64]),
    "shared": ([64, 32], [64], [32]),  # the trunk's output gets gradients from two tiled layers
    "some": ([], [64, 40, 64], [33]),
}
SPACES = {"discrete": spaces.Discrete(3), "box": spaces.Box(-1, 1, (2,), np.float32)}


def policy(shape: str, space: str = "discrete", activation: str = "tanh") -> PlainPolicy:
    return PlainPolicy(INPUTS, *SHAPES[shape], SPACES[space], activation)


def rounded(x: Tensor) -> Tensor:
    return x.bfloat16().to(x.dtype)


class Rounding(torch.autograd.Function):
    """A linear layer each of whose three products is of rounded factors."""

    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        return rounded(x) @ rounded(weight).T + bias

    @staticmethod
    def backward(ctx, delta):
        x, weight = ctx.saved_tensors
        return rounded(delta) @ rounded(weight), rounded(delta).T @ rounded(x), delta.sum(0)


def gradient_of(policy: PlainPolicy, rows, index: Tensor) -> Tensor:
    LOSS(policy, rows[index])[0].backward()
    return torch.cat([p.grad.flatten() for p in policy.policy_parameters()])


def rounding_in(policy: PlainPolicy) -> PlainPolicy:
    for layer in policy.modules():
        if isinstance(layer, nn.Linear) and not (layer.in_features | layer.out_features) % 32:
            layer.forward = lambda x, own=layer: Rounding.apply(x, own.weight, own.bias)
    return policy


def distance(found: Tensor, expected: Tensor) -> float:
    return float(torch.linalg.vector_norm(found - expected) / torch.linalg.vector_norm(expected))


@needs_bfloat16
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("activation", ["tanh", "relu", "silu"])
@pytest.mark.parametrize("count", [7, 48, 256, 300, 600])
def test_what_is_rounded_is_what_it_says(shape, space, activation, count):
    """Next to torch's gradient with the same roundings: float32's own put a few numbers, midway
    between two, to the other side.
    """
    rows = rows_for(policy(shape, space, activation), INPUTS, 700)
    index = torch.randperm(700, generator=torch.Generator().manual_seed(count))[:count]
    expected = gradient_of(rounding_in(policy(shape, space, activation)), rows, index)
    exact = gradient_of(policy(shape, space, activation), rows, index)
    engine = make_engine("bfloat16", policy(shape, space, activation), max_grad_norm=None)
    engine.step(LOSS, rows, index, 1e-3)
    found = engine.flat.gradient
    assert distance(found, expected) < distance(found, exact) / 4
    assert distance(found, exact) > 3e-4


@needs_bfloat16
def test_repeats_and_any_number_of_threads_give_the_same_bits():
    rows, was = rows_for(policy("shared"), INPUTS, 400), torch.get_num_threads()
    ends = []
    try:
        for threads in (1, 1, 2, 3):
            torch.set_num_threads(threads)
            engine = make_engine("bfloat16", policy("shared"), max_grad_norm=0.5)
            for k in range(5):
                index = torch.randperm(400, generator=torch.Generator().manual_seed(k))[:320]
                engine.step(LOSS, rows, index, 1e-2)
            ends.append(engine.flat.value.clone())
    finally:
        torch.set_num_threads(was)
    assert all(torch.equal(end, ends[0]) for end in ends)


@needs_bfloat16
def test_an_epoch_is_its_steps():
    rows = rows_for(policy("shared"), INPUTS, 400)
    parts = list(torch.randperm(400, generator=torch.Generator().manual_seed(0)).split(128))
    ends = []
    for whole in (True, False):
        engine = make_engine("bfloat16", policy("shared"), max_grad_norm=0.5)
        for minibatches in [parts] if whole else [[part] for part in parts]:
            engine.epoch(LOSS, rows, minibatches, 1e-2)
        ends.append(engine.flat.value)
    assert torch.equal(*ends)


@needs_bfloat16
@pytest.mark.parametrize("bits", [0x7FC00000, 0x7FFFFFFF, 0x7F800000], ids=["nan", "full", "inf"])
def test_what_is_not_finite_changes_nothing(bits):
    rows = rows_for(policy("separate"), INPUTS, 400)
    rows.observation.view(torch.int32)[70, 3] = bits
    engine = make_engine("bfloat16", policy("separate"), max_grad_norm=0.5)
    before = engine.flat.value.clone()
    with pytest.raises(NotFiniteError):
        engine.step(LOSS, rows, torch.arange(320), 1e-2)
    assert torch.equal(engine.flat.value, before)


@needs_bfloat16
def test_it_says_so_and_goes_on_exactly(tmp_path):
    settings: dict[str, Any] = {"n_envs": 8, "n_steps": 64, "batch_size": 128, "seed": 1}
    agent = us.PPO("CartPole-v1", engine="bfloat16", **settings)
    name = f"native ({_native.instruction_set()}), products in bfloat16 by {_native.bfloat16()}"
    assert agent.engine.description == name
    assert agent.state()[1]["made_with"]["engine"] == name.replace("(", "").replace(")", "")
    agent.learn(1024).save(tmp_path / "agent")
    other = us.PPO("CartPole-v1", engine="native", **settings).learn(1024)
    assert not torch.equal(agent.engine.flat.value, other.engine.flat.value)
    back = us.load(tmp_path / "agent")
    assert isinstance(back.engine, NativeEngine)
    assert back.engine.bfloat16
    for each in (agent, back):
        each.learn(1024, reset_num_timesteps=False)
    assert torch.equal(agent.engine.flat.value, back.engine.flat.value)


@pytest.mark.slow
@needs_bfloat16
def test_it_learns():
    agent = us.PPO.from_recipe("CartPole-v1", engine="bfloat16", seed=3)
    agent.learn(200_000)  # with 60,000, one of some twenty seeds and roundings ended at 317
    assert us.evaluate_policy(agent, "CartPole-v1", n_eval_episodes=20)[0] > 450


@needs_bfloat16
def test_it_is_refused_where_no_layer_fits():
    with pytest.raises(ArgumentError, match="engine='bfloat16' does not apply: no layer has as"):
        make_engine("bfloat16", policy_of(), max_grad_norm=0.5)


def test_it_is_refused_where_the_processor_has_none(monkeypatch):
    monkeypatch.setattr(_native, "bfloat16", lambda: "")
    with pytest.raises(
        ArgumentError, match="engine='bfloat16' does not apply: it takes a processor"
    ):
        us.PPO("CartPole-v1", engine="bfloat16")


def test_other_instruction_sets_have_none():
    before = _native.instruction_set()
    try:
        _native.use_instruction_set("portable")
        assert _native.bfloat16() == ""
    finally:
        _native.use_instruction_set(before)
