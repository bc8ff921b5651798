"""The native engine's gradients, metrics and steps are the torch engine's, to float32 rounding."""

from __future__ import annotations

import copy
import platform
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.engine.native_cases import (
    INSTRUCTION_SETS,
    PlainPolicy,
    instruction_set,
    rows_for,
)
from upslope import _native
from upslope.agents.ppo import ppo_loss
from upslope.engine.native_engine import NativeEngine
from upslope.engine.torch_engine import TorchEngine
from upslope.engine.twins import twin
from upslope.errors import NotFiniteError
from upslope.losses.policy import policy_gradient_loss
from upslope.losses.value import value_loss
from upslope.rollout.buffer import Chunks

__all__ = ["instruction_set"]


@twin("plain")
def plain_loss(policy, batch, *, vf_coef, ent_coef):
    """The loss of REINFORCE and of the advantage actor-critic."""
    log_prob, entropy, value = policy(batch)
    policy_loss = policy_gradient_loss(log_prob, batch.advantage)
    critic_loss = value_loss(value, batch.target)
    loss = policy_loss + vf_coef * critic_loss - ent_coef * entropy.mean()
    return loss, {
        "policy_loss": policy_loss.detach(),
        "value_loss": critic_loss.detach(),
        "entropy": entropy.mean().detach(),
    }


widths = st.integers(1, 40) | st.sampled_from([64, 80, 131, 270])  # the last are cut into pieces
counts = st.integers(1, 330) | st.sampled_from([512, 700])  # the last are in blocks of 128
hidden = st.lists(widths, max_size=3)
heads = st.one_of(
    st.integers(1, 20).map(lambda n: spaces.Discrete(n)),
    st.lists(st.integers(1, 7), min_size=1, max_size=4).map(lambda n: spaces.MultiDiscrete(n)),
    st.integers(1, 18).map(lambda d: spaces.Box(-1, 1, (d,), np.float32)),
)
shapes = st.fixed_dictionaries(
    {
        "inputs": st.integers(1, 40) | st.just(150),
        "trunk": st.lists(widths, max_size=2),
        "actor": hidden,
        "critic": hidden,
        "space": heads,
        "activation": st.sampled_from(["tanh", "relu", "silu"]),
    }
)
clipped_losses = st.builds(
    lambda clip, clip_vf, vf, ent: partial(
        ppo_loss, clip_range=clip, clip_range_vf=clip_vf, vf_coef=vf, ent_coef=ent
    ),
    st.floats(0.05, 0.9),
    st.none() | st.floats(0.01, 1),
    st.floats(0, 2),
    st.floats(0, 0.3),
)
plain_losses = st.builds(
    lambda vf, ent: partial(plain_loss, vf_coef=vf, ent_coef=ent),
    st.floats(0, 2),
    st.floats(0, 0.3),
)


def exact(policy, rows, loss, index):
    """The gradient and metrics in float64, by autograd."""
    policy = copy.deepcopy(policy).double()
    value, metrics = loss(policy, rows.double()[index])
    value.backward()
    order = [*policy.policy_parameters()]
    return torch.cat([p.grad.flatten() for p in order]), metrics


def case(trunk, actor, critic):
    """A case that is always tried, of many samples."""
    shape = {"inputs": 5, "trunk": trunk, "actor": actor, "critic": critic, "activation": "tanh"}
    shape["space"] = spaces.Discrete(3)
    return example(shape=shape, count=700, masked=False, loss=LOSS, threads=2, seed=0)


LOSS = partial(ppo_loss, clip_range=0.2, clip_range_vf=0.3, vf_coef=0.5, ent_coef=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("name", INSTRUCTION_SETS)
@case(trunk=[64], actor=[], critic=[])  # both heads give the trunk a gradient
@case(trunk=[], actor=[96, 80], critic=[128, 64])  # several panels of weights
@case(trunk=[], actor=[24, 1040, 40], critic=[8])  # sums too long to be taken in one go
@settings(max_examples=120, deadline=None)
@given(
    shape=shapes,
    count=counts,
    masked=st.booleans(),
    loss=clipped_losses | plain_losses,
    threads=st.integers(1, 4),
    seed=st.integers(0, 2**16),
)
def test_a_step_is_torchs(name, shape, count, masked, loss, threads, seed):
    policy = PlainPolicy(**shape, seed=seed)
    rows = rows_for(policy, shape["inputs"], count + 20, masked=masked, seed=seed + 1)
    index = torch.randperm(count + 20, generator=torch.Generator().manual_seed(seed))[:count]
    gradient, metrics = exact(policy, rows, loss, index)
    before = _native.instruction_set()
    was = torch.get_num_threads()
    try:
        _native.use_instruction_set(name)
        torch.set_num_threads(threads)
        engine = NativeEngine(policy, max_grad_norm=None, demanded=True)
        found = engine.step(loss, rows, index, 1e-3)
    finally:
        _native.use_instruction_set(before)
        torch.set_num_threads(was)
    error = (engine.flat.gradient - gradient).abs().max()
    # a ratio is e to the difference of two log-probabilities, each rounded to 2^-24 of itself
    ratio = 4 * 2**-24 * float(rows.log_prob.abs().max())
    assert error <= (2e-6 + ratio) * gradient.abs().max() + 1e-6
    assert found.keys() == metrics.keys() | {"gradient_norm"}
    for key, value in metrics.items():
        assert float(found[key]) == pytest.approx(float(value), rel=1e-5 + ratio, abs=2e-6), key
    norm = torch.linalg.vector_norm(gradient)
    assert float(found["gradient_norm"]) == pytest.approx(float(norm), rel=1e-5 + ratio, abs=1e-6)


# ---- steps, one after the other ------------------------------------------------------------------
INPUTS, COUNT = 5, 200
SPACES = {
    "discrete": spaces.Discrete(3),
    "multi": spaces.MultiDiscrete([3, 1, 4]),
    "box": spaces.Box(-1, 1, (2,), np.float32),
}


def policy_of(space="discrete", seed=0) -> PlainPolicy:
    return PlainPolicy(INPUTS, [9], [17, 8], [33], SPACES[space], "tanh", seed)


def indices(steps, size=70):
    g = torch.Generator().manual_seed(4)
    return [torch.randperm(COUNT, generator=g)[:size] for _ in range(steps)]


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("max_grad_norm", [None, 0.5])
@pytest.mark.parametrize("mixed", [False, True], ids=["native", "taking turns"])
def test_twenty_steps_are_torchs(space, max_grad_norm, mixed, instruction_set):
    rows = rows_for(policy_of(space), INPUTS, COUNT)
    native = NativeEngine(policy_of(space), max_grad_norm=max_grad_norm, demanded=True)
    torchs = TorchEngine(policy_of(space), max_grad_norm=max_grad_norm)
    start = torchs.flat.value.clone()
    for k, index in enumerate(indices(20)):
        rate = 1e-2 / (k + 1)
        expected = torchs.step(LOSS, rows, index, rate)
        if mixed and k % 3 == 1:
            found = TorchEngine.step(native, LOSS, rows, index, rate)
        else:
            found = native.step(LOSS, rows, index, rate)
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, atol=2e-5, rtol=2e-4, msg=name)
    assert native.steps == 20
    assert (torchs.flat.value - start).abs().max() > 1e-2
    # Adam divides by the gradient's own size, so that a gradient near 0 keeps no leading digits
    for kind in ("value", "first_moment", "second_moment"):
        mine, other = getattr(native.flat, kind), getattr(torchs.flat, kind)
        torch.testing.assert_close(mine, other, atol=1e-4, rtol=1e-3, msg=kind)


@pytest.mark.parametrize("kind", [TorchEngine, NativeEngine])
def test_a_largest_norm_of_zero_moves_nothing(kind):
    engine = kind(policy_of(), max_grad_norm=0.0)
    start = engine.flat.value.clone()
    found = engine.step(LOSS, rows_for(policy_of(), INPUTS, COUNT), torch.arange(COUNT), 1e-2)
    assert float(found["gradient_norm"]) > 0
    assert torch.equal(engine.flat.value, start)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("size", [1, 70, 200])
def test_repeats_and_any_number_of_threads_give_the_same_bits(space, size, instruction_set):
    rows, was = rows_for(policy_of(space), INPUTS, COUNT), torch.get_num_threads()
    ends = []
    try:
        for threads in (1, 2, 3, 8, 1):
            torch.set_num_threads(threads)
            engine = NativeEngine(policy_of(space), max_grad_norm=0.5, demanded=True)
            found = [engine.step(LOSS, rows, index, 1e-2) for index in indices(5, size)]
            ends.append((engine.flat.value, torch.stack([m["policy_loss"] for m in found])))
    finally:
        torch.set_num_threads(was)
    for value, losses in ends[1:]:
        assert torch.equal(value, ends[0][0])
        assert torch.equal(losses, ends[0][1])


@pytest.mark.parametrize("threads", [2, 3, 8])
def test_threads_that_are_tried_in_turn_change_no_bit(threads):
    """A hundred minibatches in one call are enough to try 1, 2, 4 and 8."""
    rows, was = rows_for(policy_of(), INPUTS, COUNT), torch.get_num_threads()
    ends = []
    try:
        for number in (1, threads):
            torch.set_num_threads(number)
            engine = NativeEngine(policy_of(), max_grad_norm=0.5, demanded=True)
            found = engine.epoch(LOSS, rows, torch.arange(COUNT).split(2), 1e-2)
            ends.append((engine.flat.value, found["policy_loss"]))
    finally:
        torch.set_num_threads(was)
    assert all(map(torch.equal, *ends))


@pytest.mark.parametrize("sizes", [[35, 35], [1, 69], [10, 20, 40]], ids=str)
def test_chunk_gradients_are_torchs(sizes, instruction_set):
    rows, index = rows_for(policy_of(), INPUTS, COUNT), indices(1)[0]
    found = []
    for kind in (TorchEngine, NativeEngine):
        engine = kind(policy_of(), max_grad_norm=0.5)
        metrics = engine.step(LOSS, rows, index, 1e-3, Chunks(index, torch.tensor(sizes)))
        found.append((engine.chunk_gradients, engine.flat.gradient, metrics["approx_kl"]))
    for torchs, native in zip(*found, strict=True):
        torch.testing.assert_close(native, torchs, atol=2e-5, rtol=1e-4)
    whole = NativeEngine(policy_of(), max_grad_norm=0.5)
    whole.step(LOSS, rows, index, 1e-3)
    torch.testing.assert_close(whole.flat.gradient, engine.flat.gradient, atol=1e-6, rtol=1e-4)


# ---- not finite ----------------------------------------------------------------------------------
@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
@pytest.mark.parametrize("field", ["observation", "advantage", "target", "log_prob"])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_gradient_that_is_not_finite_changes_nothing(wrong, field, chunked, instruction_set):
    if (field, wrong) == ("log_prob", float("inf")):
        wrong = float("nan")  # a ratio of 0 is finite
    rows, index = rows_for(policy_of(), INPUTS, COUNT), torch.arange(COUNT)
    chunks = Chunks(index, torch.tensor([50, 50, 50, 50])) if chunked else None
    engine = NativeEngine(policy_of(), max_grad_norm=0.5, demanded=True)
    engine.step(LOSS, rows, index, 1e-2)
    before = {name: tensor.clone() for name, tensor in engine.state().items()}
    spoilt = copy.deepcopy(rows)
    getattr(spoilt, field)[17] = wrong
    if field == "observation" and wrong == float("inf"):
        spoilt.observation[17, 0] = float("nan")
    with pytest.raises(NotFiniteError, match=r"gradient of optimisation step 2 is not finite"):
        engine.step(LOSS, spoilt, index, 1e-2, chunks)
    assert engine.steps == 1
    after = engine.state()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


@pytest.mark.parametrize("kind", [TorchEngine, NativeEngine])
@pytest.mark.parametrize("advantage", [-1.0, 0.0, 1.0])
def test_an_action_that_had_no_probability_is_refused(kind, advantage, instruction_set):
    rows, engine = rows_for(policy_of(), INPUTS, COUNT), kind(policy_of(), max_grad_norm=0.5)
    rows.log_prob[17], rows.advantage[17] = -torch.inf, advantage
    with pytest.raises(NotFiniteError):
        engine.step(LOSS, rows, torch.arange(COUNT), 1e-2)


@pytest.mark.parametrize("log_prob", [-25.0, -1e3, -1e9, -3e38])
def test_beyond_its_cap_a_ratio_is_torchs(log_prob, instruction_set):
    rows, found = rows_for(policy_of(), INPUTS, COUNT), []
    rows.log_prob[17], rows.advantage[17] = log_prob, -1.0
    for kind in (TorchEngine, NativeEngine):
        engine = kind(policy_of(), max_grad_norm=None)
        engine.step(LOSS, rows, torch.arange(COUNT), 1e-2)
        found.append(engine.flat.gradient)
    torch.testing.assert_close(*found, atol=10.0, rtol=1e-4)
    assert found[0].abs().max() > 1e5


@pytest.mark.parametrize("count", [16, 17, 70])
def test_what_fills_a_block_up_adds_nothing_however_small_sigma_is(count, instruction_set):
    """Its z is the mean over sigma, and overflows when it is squared."""
    found = []
    for kind in (TorchEngine, NativeEngine):
        policy = policy_of("box")
        with torch.no_grad():
            policy.head.log_std.fill_(-45.0)
            policy.actor[-1].weight.zero_()
            policy.actor[-1].bias.fill_(1.0)
        rows = rows_for(policy, INPUTS, count)
        rows.action.fill_(1.0)
        with torch.no_grad():
            rows.log_prob = policy(rows)[0]
        engine = kind(policy, max_grad_norm=None)
        engine.step(LOSS, rows, torch.arange(count), 1e-3)
        found.append(engine.flat.named(engine.flat.gradient)["head.log_std"])
    torch.testing.assert_close(*found, atol=1e-6, rtol=1e-5)
    assert (found[0] != 0).all()
    rows.action[count - 1] = torch.nan  # what counts is seen
    with pytest.raises(NotFiniteError):
        engine.step(LOSS, rows, torch.arange(count), 1e-3)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="elsewhere such numbers cost nothing")
@pytest.mark.parametrize("threads", [1, 3])
def test_gradients_too_small_for_full_precision_are_zero(threads, instruction_set):
    """Such numbers, of a policy that is nearly sure, would make a step ten times as long."""
    rows, index = rows_for(policy_of(), INPUTS, COUNT), torch.arange(COUNT)
    rows.advantage.fill_(1e-39)
    loss, was = partial(plain_loss, vf_coef=0.0, ent_coef=0.0), torch.get_num_threads()
    engine = NativeEngine(policy_of(), max_grad_norm=None, demanded=True)
    try:
        torch.set_num_threads(threads)
        engine.step(loss, rows, index, 1e-3)
    finally:
        torch.set_num_threads(was)
    assert not engine.flat.gradient.any()
    assert torch.tensor(1e-39) / 2 > 0  # and this thread counts as it did before


# ---- acting --------------------------------------------------------------------------------------
@pytest.mark.parametrize("count", [1, 16, 17, 300])
def test_values_are_torchs(count, instruction_set):
    policy = policy_of()
    observation = torch.randn(count, INPUTS, generator=torch.Generator().manual_seed(0))
    engine = NativeEngine(policy, max_grad_norm=None)
    with torch.inference_mode():
        torch.testing.assert_close(
            engine.value(observation), policy.value(observation), atol=2e-6, rtol=2e-6
        )


def test_tanh_is_accurate(instruction_set):
    """A trunk of one tanh with weight 1 shows it: within 4e-7 of the value, also near 0."""
    policy = PlainPolicy(1, [1], [], [], spaces.Discrete(1), "tanh")
    for layer in (policy.trunk[0], policy.critic[0]):
        layer.weight.data.fill_(1.0)
        layer.bias.data.zero_()
    x = torch.cat([torch.linspace(-12, 12, 200_001), torch.logspace(-30, 0, 20_001)])
    found = NativeEngine(policy, max_grad_norm=None).value(x[:, None])
    expected = torch.tanh(x.double())
    assert ((found - expected) / expected.where(expected != 0, torch.ones(()))).abs().max() < 4e-7
    far = torch.tensor([[-1e30], [-88.0], [-20.0], [20.0], [88.0], [1e30]])
    far_found = NativeEngine(policy, max_grad_norm=None).value(far)
    assert torch.equal(far_found, torch.tensor([-1.0, -1, -1, 1, 1, 1]))


def test_each_choice_has_its_own_number_of_actions():
    engine = NativeEngine(policy_of("multi"), max_grad_norm=0.5)
    rows = rows_for(engine.policy, INPUTS, 9)
    rows.action[3, 1] = 1  # of [3, 1, 4]
    with pytest.raises(ValueError, match="a choice is out of range"):
        engine.step(LOSS, rows, torch.arange(9), 1e-2)
    assert engine.steps == 0


# ---- epochs --------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", [TorchEngine, NativeEngine])
def test_an_epoch_is_its_steps(kind):
    rows, parts = rows_for(policy_of(), INPUTS, COUNT), torch.randperm(COUNT).split([70, 90, 40])
    chunks = Chunks(parts[0], torch.tensor([30, 40]))
    one, other = (kind(policy_of(), max_grad_norm=0.5) for _ in range(2))
    found = one.epoch(LOSS, rows, parts, 1e-2, chunks)
    first = other.step(LOSS, rows, parts[0], 1e-2, chunks)
    expected = [first, *(other.step(LOSS, rows, part, 1e-2) for part in parts[1:])]
    assert one.steps == 3
    assert torch.equal(one.flat.value, other.flat.value)
    assert torch.equal(one.chunk_gradients, other.chunk_gradients)
    for name, numbers in found.items():
        assert numbers.tolist() == [float(step[name]) for step in expected]


@pytest.mark.parametrize("kind", [TorchEngine, NativeEngine])
def test_an_epoch_ends_where_a_gradient_is_not_finite(kind):
    rows, parts = rows_for(policy_of(), INPUTS, COUNT), torch.arange(COUNT).split([70, 90, 40])
    rows.advantage[100] = float("nan")
    one, other = (kind(policy_of(), max_grad_norm=0.5) for _ in range(2))
    with pytest.raises(NotFiniteError, match=r"gradient of optimisation step 2 is not finite"):
        one.epoch(LOSS, rows, parts, 1e-2)
    other.step(LOSS, rows, parts[0], 1e-2)
    assert one.steps == 1
    assert torch.equal(one.flat.value, other.flat.value)


def test_ctrl_c_leaves_the_count_at_the_steps_that_were_taken():
    """It is seen when the native call returns, at the latest by what follows the call."""
    rows, parts = rows_for(policy_of(), INPUTS, COUNT), torch.arange(COUNT).split([70, 90, 40])
    one, other = (NativeEngine(policy_of(), max_grad_norm=0.5) for _ in range(2))
    network = one.network
    one.network = SimpleNamespace(train=lambda *a, **k: interrupt(network.train(*a, **k)))
    with pytest.raises(KeyboardInterrupt):
        one.epoch(LOSS, rows, parts, 1e-2)
    other.epoch(LOSS, rows, parts, 1e-2)
    assert torch.equal(one.flat.value, other.flat.value)
    assert one.steps == other.steps == 3
    one.network = SimpleNamespace(train=lambda *a, **k: interrupt())  # before any was taken
    with pytest.raises(KeyboardInterrupt):
        one.epoch(LOSS, rows, parts, 1e-2)
    assert one.steps == 3


def interrupt(*_):
    raise KeyboardInterrupt
