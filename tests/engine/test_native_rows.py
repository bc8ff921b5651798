"""Acting in the rollout's own memory: what `act` gives, on every row, for every kind of action."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces

import upslope as us
from tests.engine.native_cases import instruction_set
from upslope.engine.native_engine import NativeEngine
from upslope.engine.native_rows import AHEAD
from upslope.engine.torch_engine import TorchEngine
from upslope.policies.make import make_policy
from upslope.rollout.buffer import Rollout

__all__ = ["instruction_set"]

ACTIONS = {
    "discrete": spaces.Discrete(5),
    "choices": spaces.MultiDiscrete([3, 2, 4]),
    "box": spaces.Box(-1, 1, (3,), np.float32),
}


def made(action: spaces.Space, n_envs: int, n_steps: int, shape=(2, 2)):
    observation = spaces.Box(-1, 1, shape, np.float32)
    draws = torch.Generator().manual_seed(0)
    policy = make_policy(None, observation, action, generator=draws, net_arch=(16, 8))
    for parameter in policy.actor.parameters():
        parameter.data.mul_(3)
    kinds = (shape, np.dtype(np.float32)), (policy.head.shape, policy.head.dtype)
    rollout = Rollout(n_steps, n_envs, *kinds)
    rollout.observation[:] = np.random.default_rng(1).normal(size=rollout.observation.shape)
    return policy, rollout


@pytest.mark.slow
@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("n_envs", [1, 7, 300])
@pytest.mark.parametrize("masked", [False, True])
def test_rows_are_what_act_gives(action, n_envs, masked, instruction_set):
    policy, rollout = made(ACTIONS[action], n_envs, 2 * AHEAD + 3)
    engine, torchs = (kind(policy, max_grad_norm=None) for kind in (NativeEngine, TorchEngine))
    memory, mask = torch.zeros(n_envs, 0), None
    if masked and action != "box":
        columns = sum(engine.structure.choices)
        mask = np.random.default_rng(2).random((n_envs, columns)) < 0.7
        mask[:, [0, 3, 5][: len(engine.structure.choices)]] = True
    for _ in range(2):  # the second rollout begins anew
        rows = engine.rows(rollout, torch.Generator().manual_seed(3))
        draws = [torch.Generator().manual_seed(3) for _ in range(2)]
        for t in range(rollout.n_steps):
            rows.act(t, mask)
            legal = None if mask is None else torch.from_numpy(mask)
            for other, source, same in zip((engine, torchs), draws, (True, False), strict=True):
                seen = torch.from_numpy(rollout.observation[t])
                expected, log_prob, _ = other.act(seen, source, memory, legal)
                found = torch.from_numpy(rollout.action[t])
                tolerance = {"rtol": 0, "atol": 0} if same else {"rtol": 1e-5, "atol": 2e-6}
                torch.testing.assert_close(found, expected, **tolerance)
                torch.testing.assert_close(rollout.log_prob[t], log_prob, **tolerance)


def test_another_rollout_gets_rows_of_its_own():
    policy, rollout = made(ACTIONS["discrete"], 6, 4)
    other = made(ACTIONS["discrete"], 6, 4)[1]
    engine = NativeEngine(policy, max_grad_norm=None)
    for each in (rollout, other, rollout):
        before = [kept.action.copy() for kept in (rollout, other)]
        engine.rows(each, torch.Generator().manual_seed(int(each is other))).act(0, None)
        for kept, was in zip((rollout, other), before, strict=True):
            assert kept is each or np.array_equal(kept.action, was)
    assert not np.array_equal(rollout.action[0], other.action[0])


def test_where_there_are_none():
    """Observations that are not float32 (a rollout of whole numbers), or a policy torch runs."""
    policy, rollout = made(ACTIONS["discrete"], 6, 4)
    draws = torch.Generator()
    assert TorchEngine(policy, max_grad_norm=None).rows(rollout, draws) is None
    engine = NativeEngine(policy, max_grad_norm=None)
    kinds = ((2, 2), np.dtype(np.uint8)), ((), np.dtype(np.int64))
    assert engine.rows(Rollout(4, 6, *kinds), draws) is None
    assert engine.rows(made(ACTIONS["discrete"], 6, 4, (3,))[1], draws) is None
    assert engine.rows(made(ACTIONS["box"], 6, 4)[1], draws) is None
    assert engine.rows(rollout, draws) is not None


@pytest.mark.slow
@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
@pytest.mark.parametrize("agent", [us.PPO, us.REINFORCE])
def test_agents_learn_the_same_with_copies(agent, env, monkeypatch):
    settings = {"n_envs": 5, "seed": 2, "engine": "native"}
    settings |= {"n_steps": 40 if agent is us.PPO else 200}

    def learned():
        return agent(env, **settings).learn(600 if env == "CartPole-v1" else 2000)

    in_place = learned()
    assert in_place.engine._filling.rollout is in_place.collector.rollout
    monkeypatch.setattr(NativeEngine, "rows", lambda *_: None)
    copied = learned()
    assert copied.engine._filling is None
    assert torch.equal(in_place.engine.flat.value, copied.engine.flat.value)
    assert in_place.iteration == copied.iteration > 1


def test_what_acts_instead_of_the_engine_is_asked():
    agent = us.PPO("CartPole-v1", n_envs=3, n_steps=5, engine="native")
    agent.collector.behaviour = lambda observation, draws, memory, mask: (
        torch.ones(3, dtype=torch.int64),
        torch.full((3,), -2.0),
        memory,
    )
    rollout = agent.collector.collect(agent.policy, torch.Generator(), agent.act)
    assert (rollout.action == 1).all()
    assert (rollout.log_prob == -2).all()
    assert not rollout.valued
