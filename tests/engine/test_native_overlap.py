"""Values that other threads find while environments step: the same bits, whatever comes next."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces

import upslope as us
from tests.engine.native_cases import PlainPolicy, rows_for
from tests.engine.test_native_choice import BOX, LOSS, acted, policy_of
from upslope.engine.native_engine import NativeEngine
from upslope.engine.native_rows import NativeRows
from upslope.rollout.buffer import Rollout


@pytest.fixture(autouse=True)
def three_threads():
    was = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(was)


def observations(count: int) -> torch.Tensor:
    return torch.randn(count, *BOX.shape, generator=torch.Generator().manual_seed(1))


def rollout_of(rows: torch.Tensor) -> Rollout:
    count, inputs = rows.shape
    rollout = Rollout(1, count, ((inputs,), np.dtype(np.float32)), ((), np.dtype(np.int64)))
    rollout.observation[0] = rows.numpy()
    rollout.value.fill_(torch.nan)
    return rollout


def begun(engine: NativeEngine, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What is being found, and what it must become."""
    rollout = rollout_of(observations(count))
    expected = engine.value(observations(count))
    assert engine.rows(rollout, torch.Generator()).begin_value(0)
    return rollout.value[0], expected


@pytest.mark.parametrize("count", [256, 300, 5000])
def test_what_was_begun_is_the_value(count):
    engine = NativeEngine(policy_of(), max_grad_norm=None)
    for _ in range(20):
        found, expected = begun(engine, count)
        engine.finish()
        assert torch.equal(found, expected)
    engine.finish()  # nothing to do


MANY = 100_000  # so many that they are not found before the next call
NEXT = {
    "act": lambda engine, _: acted(engine, observations(700), 2),
    "value": lambda engine, _: engine.value(observations(10)),
    "begin": lambda engine, _: begun(engine, 300),
    "step": lambda engine, batch: engine.step(LOSS, batch, torch.arange(10), 1.0),
}


@pytest.mark.parametrize("name", NEXT)
def test_the_next_call_finishes_it_first(name):
    """A step above all: the values are those of the parameters before it."""
    for _ in range(3):
        policy = PlainPolicy(4, [16], [8], [8], spaces.Discrete(3), "tanh")
        engine = NativeEngine(policy, max_grad_norm=None)
        batch = rows_for(policy, 4, 10)
        found, expected = begun(engine, MANY)
        NEXT[name](engine, batch)
        assert torch.equal(found, expected)


def test_another_networks_call_finishes_it_and_the_end_does():
    engine, other = (NativeEngine(policy_of(), max_grad_norm=None) for _ in range(2))
    found, expected = begun(engine, MANY)
    other.value(observations(1000))
    assert torch.equal(found, expected)
    found, expected = begun(engine, MANY)
    del engine
    assert torch.equal(found, expected)


def test_where_it_is_not_begun():
    native, rollout = NativeEngine(policy_of(), max_grad_norm=None), rollout_of(observations(1000))
    few, draws = rollout_of(observations(255)), torch.Generator()
    assert not native.rows(few, draws).begin_value(0)  # too few to be worth it
    torch.set_num_threads(1)
    assert not native.rows(rollout, draws).begin_value(0)
    assert rollout.value.isnan().all()
    assert few.value.isnan().all()


def test_values_of_another_length_are_refused():
    policy = PlainPolicy(3, [8], [], [], spaces.Discrete(2), "tanh")
    engine = NativeEngine(policy, max_grad_norm=None)
    rows, short = np.zeros((300, 3), np.float32), np.zeros(299, np.float32)
    with pytest.raises(ValueError, match="value has another number of rows"):
        engine.network.begin_values(engine._value, rows, short, 2)


@pytest.mark.slow
@pytest.mark.parametrize("agent", [us.PPO, us.ActorCritic])
@pytest.mark.parametrize("anew", [False, True])
def test_learning_has_the_same_bits_without_it(agent, anew, monkeypatch):
    calls: list[bool] = []
    begin = NativeRows.begin_value

    def counted(self, t):
        calls.append(begin(self, t))
        return calls[-1]

    settings = {"n_envs": 300, "n_steps": 8, "engine": "native", "seed": 3}
    if agent is us.PPO:
        settings |= {"recompute_advantage": anew, "n_epochs": 3}
    elif anew:
        settings |= {"normalize_observation": True}

    def learned() -> torch.Tensor:
        return agent("CartPole-v1", **settings).learn(300 * 8 * 4).engine.flat.value.clone()

    monkeypatch.setattr(NativeRows, "begin_value", counted)
    overlapped = learned()
    assert len(calls) >= 4 * 8
    assert all(calls)
    monkeypatch.setattr(NativeRows, "begin_value", lambda *_: False)
    assert torch.equal(learned(), overlapped)


@pytest.mark.slow
def test_only_where_a_core_is_idle():
    assert us.PPO("CartPole-v1", n_envs=2).collector.valuing
    other = us.PPO("CartPole-v1", n_envs=2, backend="async")
    assert not other.collector.valuing  # its processes take all cores
    other.stream.close()
    agent = us.PPO("CartPole-v1", n_envs=300, n_steps=2, engine="native")
    for valuing in (True, False):
        agent.collector.valuing = valuing
        rollout = agent.collector.collect(agent.policy, torch.Generator(), agent.act)
        assert rollout.valued == valuing
        assert bool(rollout.value.any()) == valuing
        rollout.value.zero_()
    agent = us.ActorCritic("CartPole-v1", n_envs=2, traces=True).learn(10)
    assert not agent.collector.rollout.valued  # its weights change at every step
