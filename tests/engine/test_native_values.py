"""Action-values on the native engine: DQN's steps, and its acting, are torch's up to rounding."""

from __future__ import annotations

import copy
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import upslope as us
from tests.agents.anything import Anything
from tests.engine.native_cases import INSTRUCTION_SETS, instruction_set
from upslope import _native
from upslope.agents.dqn import dqn_loss
from upslope.agents.ppo import ppo_loss
from upslope.engine.choose import make_engine
from upslope.engine.flat import FlatParameters
from upslope.engine.native_values import NativeValues
from upslope.engine.torch_engine import TorchEngine
from upslope.errors import ArgumentError, NotFiniteError
from upslope.policies.action_values import ActionValues, EpsilonGreedy, make_action_values
from upslope.rollout.buffer import Rollout
from upslope.rollout.replay import Transitions
from upslope.seeding import generator

__all__ = ["instruction_set"]

INPUTS, ACTIONS = 5, 3


def values_of(inputs=INPUTS, actions=ACTIONS, layers=(17, 8), activation="relu", seed=0):
    box, draws = spaces.Box(-np.inf, np.inf, (inputs,), np.float32), generator(seed, "test")
    kwargs = {"net_arch": list(layers), "activation": activation, "generator": draws}
    policy = make_action_values("DQN", None, box, spaces.Discrete(actions), **kwargs)
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=draws))
    return policy


def transitions_for(policy: ActionValues, inputs: int, count: int, seed: int) -> Transitions:
    """Some that terminate, some with illegal actions next, and errors within 1 and beyond it."""
    draws, actions = torch.Generator().manual_seed(seed), policy.head.size
    legal = torch.rand(count, actions, generator=draws) < 0.7
    legal[torch.arange(count), torch.randint(actions, (count,), generator=draws)] = True
    return Transitions(
        observation=torch.randn(count, inputs, generator=draws),
        action=torch.randint(actions, (count,), generator=draws),
        reward=torch.randn(count, generator=draws),
        discount=0.9 * (torch.rand(count, generator=draws) < 0.8),
        next_observation=torch.randn(count, inputs, generator=draws),
        next_legal=legal,
        next_q=torch.randn(count, actions, generator=draws),
    )


def doubled(batch: Transitions) -> Transitions:
    return batch._each(lambda x: x.double() if x.is_floating_point() else x)


def exact(policy, batch, loss, index):
    """The gradient and metrics in float64, by autograd."""
    layers = copy.deepcopy(policy.network.layers).double()
    value, metrics = loss(SimpleNamespace(q=layers), doubled(batch)[index])
    value.backward()
    return torch.cat([p.grad.flatten() for p in layers.parameters()]), metrics


@pytest.mark.slow
@pytest.mark.parametrize("name", INSTRUCTION_SETS)
@settings(max_examples=100, deadline=None)
@given(
    inputs=st.integers(1, 40) | st.just(150),
    actions=st.integers(1, 20),
    layers=st.lists(st.integers(1, 40) | st.sampled_from([64, 80, 131, 270]), max_size=3),
    activation=st.sampled_from(["tanh", "relu", "silu"]),
    count=st.integers(1, 330) | st.sampled_from([512, 700]),  # the last are in blocks of 128
    double=st.booleans(),
    huber=st.booleans(),
    threads=st.integers(1, 4),
    seed=st.integers(0, 2**16),
)
def test_a_step_is_torchs(
    name, inputs, actions, layers, activation, count, double, huber, threads, seed
):
    policy = values_of(inputs, actions, layers, activation, seed)
    batch = transitions_for(policy, inputs, count + 20, seed + 1)
    if double:  # two values that differ by rounding are the same choice to nobody
        with torch.no_grad():
            seen = policy.q(batch.next_observation)
        best = seen.masked_fill(~batch.next_legal, -torch.inf).topk(min(2, actions))[0]
        assume(actions == 1 or float((best[:, 0] - best[:, 1]).min()) > 1e-5)
    loss = partial(dqn_loss, double=double, huber=huber)
    index = torch.randperm(count + 20, generator=torch.Generator().manual_seed(seed))[:count]
    gradient, metrics = exact(policy, batch, loss, index)
    before, was = _native.instruction_set(), torch.get_num_threads()
    try:
        _native.use_instruction_set(name)
        torch.set_num_threads(threads)
        values = copy.deepcopy(policy)
        engine = NativeValues(policy, max_grad_norm=None, demanded=True)
        found = engine.step(loss, batch, index, 1e-3)
    finally:
        _native.use_instruction_set(before)
        torch.set_num_threads(was)
    error = (engine.flat.gradient - gradient).abs().max()
    # q - y is a difference of numbers that are rounded to 2^-24 of themselves, times what is seen
    with torch.no_grad():
        most = max(float(values.q(batch.observation).abs().max()), float(batch.next_q.abs().max()))
    rounding = 4 * 2**-24 * most * float(batch.observation.abs().max())
    assert error <= 2e-6 * gradient.abs().max() + 1e-6 + rounding
    assert found.keys() == metrics.keys() | {"gradient_norm"}
    for key, value in metrics.items():
        assert float(found[key]) == pytest.approx(float(value), rel=1e-5, abs=2e-6), key
    norm = float(torch.linalg.vector_norm(gradient))
    apart = 1e-6 + rounding * len(gradient) ** 0.5
    assert float(found["gradient_norm"]) == pytest.approx(norm, rel=1e-5, abs=apart)


LOSS = partial(dqn_loss, double=True, huber=True)


@pytest.mark.parametrize("double", [False, True])
def test_steps_in_turn_are_torchs(double, instruction_set):
    """Thirty of them, clipped, the last of each epoch on fewer rows."""
    loss, found = partial(dqn_loss, double=double, huber=True), []
    for kind in (TorchEngine, NativeValues):
        policy = values_of()
        engine = kind(policy, max_grad_norm=0.1)
        batch = transitions_for(policy, INPUTS, 200, 3)
        for _ in range(6):
            told = engine.epoch(loss, batch, torch.arange(200).split(45), 1e-2)
        found.append((engine, told))
    (plain, expected), (native, told) = found
    assert plain.steps == native.steps == 30
    torch.testing.assert_close(native.flat.value, plain.flat.value, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        native.flat.second_moment, plain.flat.second_moment, atol=1e-7, rtol=1e-3
    )
    assert told.keys() == expected.keys()
    for name, numbers in told.items():
        torch.testing.assert_close(numbers, expected[name], atol=1e-5, rtol=1e-3)


def test_threads_change_no_bit():
    ends, was, policy = [], torch.get_num_threads(), values_of(layers=(64, 64))
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            engine = NativeValues(copy.deepcopy(policy), max_grad_norm=1.0)
            batch = transitions_for(engine.policy, INPUTS, 500, 4)
            engine.epoch(LOSS, batch, torch.arange(500).split(170), 1e-2)
            ends.append(engine.flat.value.clone())
    finally:
        torch.set_num_threads(was)
    assert torch.equal(ends[0], ends[1])
    assert torch.equal(ends[0], ends[2])


@pytest.mark.parametrize("double", [False, True])
def test_a_gradient_that_is_not_finite_changes_nothing(double, instruction_set):
    loss = partial(dqn_loss, double=double, huber=True)
    for kind in (TorchEngine, NativeValues):
        engine = kind(values_of(), max_grad_norm=1.0)
        batch = transitions_for(engine.policy, INPUTS, 64, 5)
        batch.next_q[40] = torch.nan
        batch.discount[40] = 0.9
        before = engine.flat.value.clone()
        with pytest.raises(NotFiniteError, match="step 2 is not finite"):
            engine.epoch(loss, batch, torch.arange(64).split(32), 0.0)
        assert torch.equal(engine.flat.value, before)
        assert engine.steps == 1


def test_nothing_follows_what_has_terminated(instruction_set):
    engine = NativeValues(values_of(), max_grad_norm=None)
    batch = transitions_for(engine.policy, INPUTS, 30, 6)
    batch.discount.zero_()
    batch.next_q.fill_(torch.nan)
    batch.next_legal.zero_()
    found = engine.step(LOSS, batch, torch.arange(30), 0.0)
    q = engine.policy.q(batch.observation).gather(1, batch.action.unsqueeze(1)).squeeze(1)
    assert float(found["td_error"]) == pytest.approx(
        float((q - batch.reward).abs().mean().detach())
    )


@given(
    rows=st.integers(1, 150),
    actions=st.integers(1, 9),
    epsilon=st.sampled_from([0.0, 0.3, 1.0]),
    masked=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_it_acts_as_epsilon_greedy_would(rows, actions, epsilon, masked, seed):
    policy = values_of(INPUTS, actions, seed=seed)
    policy.epsilon.fill_(epsilon)
    batch = transitions_for(policy, INPUTS, rows, seed)
    mask = batch.next_legal if masked else None
    engine = NativeValues(policy, max_grad_norm=None)
    with torch.no_grad():
        q = policy.q(batch.observation)
    torch.testing.assert_close(engine.q(batch.observation), q, atol=1e-5, rtol=1e-5)
    expected = EpsilonGreedy(q, policy.epsilon.item(), mask)
    wanted = expected.sample(generator(seed, "act"))
    memory = torch.zeros(rows, 0)
    action, log_prob, after = engine.act(batch.observation, generator(seed, "act"), memory, mask)
    assert torch.equal(action, wanted)
    torch.testing.assert_close(log_prob, expected.log_prob(wanted))
    assert after is memory


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("parts", [[None], [slice(0, 3), slice(3, 6)]], ids=["whole", "halves"])
def test_rows_are_filled_with_what_acting_gives(masked, parts):
    steps, n_envs, engine = 20, 6, NativeValues(values_of(), max_grad_norm=None)
    float32, int64 = np.dtype(np.float32), np.dtype(np.int64)
    rollout = Rollout(steps, n_envs, ((INPUTS,), float32), ((), int64))
    rollout.observation[:] = np.random.default_rng(0).normal(size=rollout.observation.shape)
    mask = transitions_for(engine.policy, INPUTS, n_envs, 3).next_legal if masked else None
    for _ in range(2):
        engine.flat.value.neg_()  # what was learned since the last rollout counts
        rows, draws = engine.rows(rollout, generator(5, "act")), generator(5, "act")
        assert rows is not None
        for t in range(steps):
            engine.policy.epsilon.fill_(0.1 * (t % 7))
            for part in parts:
                rows.act(t, None if mask is None else mask.numpy(), part)
        for t in range(steps):
            engine.policy.epsilon.fill_(0.1 * (t % 7))
            seen = torch.from_numpy(rollout.observation[t])
            action, log_prob, _ = engine.act(seen, draws, torch.zeros(n_envs, 0), mask)
            np.testing.assert_array_equal(rollout.action[t], action)
            assert torch.equal(rollout.log_prob[t], log_prob)
        assert not rows.begin_value(0)


def test_values_of_other_parameters():
    policy, other = values_of(seed=1), values_of(seed=2)
    engine, flat = NativeValues(policy, max_grad_norm=None), FlatParameters(other)
    seen = torch.randn(70, INPUTS, generator=generator(0, "test"))
    with torch.no_grad():
        torch.testing.assert_close(engine.q(seen, flat), other.q(seen), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(engine.value(seen), policy.value(seen), atol=1e-5, rtol=1e-5)


# ---- which engine --------------------------------------------------------------------------------
def test_dqn_learns_on_it():
    assert us.DQN("CartPole-v1").engine.description.startswith("native")
    assert us.DQN("CartPole-v1", engine="torch").engine.description == "torch"
    assert (
        us.DQN("CartPole-v1", device="cpu", policy_kwargs={"net_arch": []}).engine.rounding
        != "torch"
    )


@pytest.mark.parametrize(
    ("env", "settings", "why"),
    [
        (partial(Anything, "nested", "discrete"), {}, "not made of perceptrons over a Box"),
        (partial(Anything, "discrete", "discrete"), {}, "not made of perceptrons over a Box"),
        (partial(Anything, "image", "discrete"), {"policy": "cnn"}, "not made of perceptrons"),
        ("CartPole-v1", {"policy": torch.nn.Linear(4, 2)}, "not made of perceptrons"),
        ("CartPole-v1", {"policy_kwargs": {"activation": "gelu"}}, "it has no GELU"),
        ("CartPole-v1", {"policy_kwargs": {"net_arch": [2] * 64}}, "it has 65 layers in a row"),
    ],
)
def test_what_it_does_not_know_is_torchs(env, settings, why):
    assert why in us.DQN(env, **settings).engine.description
    with pytest.raises(ArgumentError, match=f"engine='native' does not apply: .*{why}"):
        us.DQN(env, engine="native", **settings)


def test_products_in_bfloat16_are_not_for_it():
    with pytest.raises(ArgumentError, match=r"'bfloat16' is for actors and critics.*'native'"):
        us.DQN("CartPole-v1", engine="bfloat16")


def test_another_loss_or_batch_is_torchs_or_refused():
    policy = values_of()
    batch = transitions_for(policy, INPUTS, 40, 1)

    def own(policy, batch):
        return policy.q(batch.observation).square().mean(), {"own": torch.zeros(())}

    assert "own" in make_engine("auto", policy, max_grad_norm=None).step(
        own, batch, torch.arange(40), 1e-3
    )
    demanded = make_engine("native", policy, max_grad_norm=None)
    with pytest.raises(ArgumentError, match="no twin of the loss"):
        demanded.step(own, batch, torch.arange(40), 1e-3)
    with pytest.raises(ArgumentError, match="not one of ActionValues"):
        demanded.step(
            partial(ppo_loss, clip_range=0.2, vf_coef=1.0, ent_coef=0.0),
            batch,
            torch.arange(40),
            1e-3,
        )
    batch.reward = batch.reward.double()
    with pytest.raises(ArgumentError, match=r"reward is not of torch\.float32"):
        demanded.step(LOSS, batch, torch.arange(40), 1e-3)


def test_ctrl_c_leaves_the_count_at_the_steps_that_were_taken():
    engine = NativeValues(values_of(), max_grad_norm=None)
    batch, network = transitions_for(engine.policy, INPUTS, 8, 1), engine.network

    def interrupted(*buffers, **given):
        network.train_action_values(*buffers, **given)
        raise KeyboardInterrupt

    engine.network = SimpleNamespace(train_action_values=interrupted)
    with pytest.raises(KeyboardInterrupt):
        engine.epoch(LOSS, batch, torch.arange(8).split(4), 1e-3)
    assert engine.steps == 2


def test_arrays_that_do_not_fit_are_refused():
    engine = NativeValues(values_of(), max_grad_norm=None)
    seen = np.zeros((4, INPUTS), np.float32)
    for out in (np.zeros((3, ACTIONS), np.float32), np.zeros((4, 2), np.float32)):
        with pytest.raises(ValueError, match="out has another shape"):
            engine.network.action_values(engine.flat.value.numpy(), seen, out, 1)
    batch = transitions_for(engine.policy, INPUTS, 8, 1)
    for name, wrong, words in [
        ("reward", torch.zeros(7), "another number of rows"),
        ("next_q", torch.zeros(8, 2), "another number of actions"),
        ("next_legal", torch.ones(8, 4, dtype=torch.bool), "another number of actions"),
    ]:
        other = copy.copy(batch)
        setattr(other, name, wrong)
        with pytest.raises(ValueError, match=words):
            engine.step(LOSS, other, torch.arange(8), 1e-3)
    for wrong in (ACTIONS, -1):
        batch.action[5] = wrong
        with pytest.raises(ValueError, match="a choice is out of range"):
            engine.step(LOSS, batch, torch.arange(8), 1e-3)
    assert engine.steps == 0
    with pytest.raises(ValueError, match="there is no critic"):
        engine.network.values(engine.flat.value.numpy(), seen, np.zeros(4, np.float32), 1)
