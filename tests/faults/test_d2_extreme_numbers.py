"""D2: Sure policies, no noise, equal advantages, minibatches of one: defined or a named error."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest
import torch

import upslope as us
from tests.tiny import Walk
from upslope.errors import NotFiniteError
from upslope.losses.policy import clipped_surrogate

pytestmark = pytest.mark.faults

SMALL: dict[str, Any] = {"n_envs": 2, "n_steps": 16, "batch_size": 8, "n_epochs": 2, "seed": 0}
ENGINES = ["torch", "native"]


def finite(agent: Any) -> bool:
    return all(bool(t.isfinite().all()) for t in agent.policy.state_dict().values())


class Same(Walk):
    """A walk that always shows the same and earns the same, so that no action is better."""

    def observation(self):
        return np.full(2, 0.3, np.float32)

    def step(self, action):
        seen, _, *rest = super().step(action)
        return seen, 0.7, *rest


@pytest.mark.parametrize("advantage", [-2.0, 2.0])
@pytest.mark.parametrize("log_ratio", [-1000.0, -100.0, 0.0, 100.0, 1000.0])
def test_a_log_ratio_of_any_size_is_defined(log_ratio, advantage):
    log_prob = torch.full((4,), log_ratio, requires_grad=True)
    loss = clipped_surrogate(log_prob, torch.full((4,), advantage), 0.2, 0.2)
    loss.sum().backward()
    assert loss.isfinite().all()
    assert log_prob.grad.isfinite().all()
    if log_ratio * advantage > 0:  # clipped
        assert (log_prob.grad == 0).all()


@pytest.mark.parametrize("engine", ENGINES)
def test_constant_advantages_leave_the_policy_as_it_is(engine):
    """Normalised, they are 0 and not 0/0, and rounding is not blown up to one deviation."""
    agent = us.PPO(Same, engine=engine, gamma=0.0, **SMALL)
    actor, critic = agent.policy.actor[-1].weight.clone(), agent.policy.critic[-1].weight.clone()
    agent.learn(320)
    assert torch.equal(agent.policy.actor[-1].weight, actor)
    assert not torch.equal(agent.policy.critic[-1].weight, critic)
    assert finite(agent)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
def test_minibatches_of_one(engine, env):
    agent = us.PPO(env, engine=engine, **SMALL | {"batch_size": 1}).learn(64)
    assert finite(agent)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("log_std", [-1000.0, -80.0, -20.0])
def test_noise_that_is_gone(engine, log_std):
    agent = us.PPO("Pendulum-v1", engine=engine, **SMALL, policy_kwargs={"log_std_init": log_std})
    with contextlib.suppress(NotFiniteError):  # stopped before the update
        agent.learn(64)
    assert finite(agent)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_policy_that_is_sure(engine):
    """Action 0 has probability 0 in float32; nothing that is computed of it is NaN."""
    agent = us.PPO("CartPole-v1", engine=engine, **SMALL)
    with torch.no_grad():
        agent.policy.actor[-1].bias += torch.tensor([-1000.0, 1000.0])
    agent.learn(64)
    assert finite(agent)
