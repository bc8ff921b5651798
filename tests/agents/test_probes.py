"""PPO on the probe environments, with numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import upslope as us
from tests.agents import probes

MINUS, PLUS = torch.tensor([[-1.0]]), torch.tensor([[1.0]])


def learned(env, total: int = 5_000, **settings) -> us.PPO:
    chosen = {"n_envs": 16, "n_steps": 8, "batch_size": 128, "n_epochs": 4, "gamma": 0.5}
    chosen |= {"learning_rate": "linear(2e-2)", "policy_kwargs": {"net_arch": [16]}} | settings
    return us.PPO(env, seed=0, **chosen).learn(total)


def value(agent: us.PPO, observation: torch.Tensor) -> float:
    with torch.no_grad():
        return agent.policy.value(observation).item()


def probability(agent: us.PPO, observation: torch.Tensor, action: int) -> float:
    with torch.no_grad():
        return agent.policy.distribution(observation).log_probs.exp()[0, action].item()


def test_constant_reward():
    agent = learned(probes.ConstantReward, 3_000)
    assert value(agent, PLUS) == pytest.approx(1, abs=0.01)


def test_reward_is_observation():
    agent = learned(probes.RewardIsObservation, 3_000)
    assert value(agent, PLUS) == pytest.approx(1, abs=0.02)
    assert value(agent, MINUS) == pytest.approx(-1, abs=0.02)


@pytest.mark.parametrize("gae_lambda", [0.0, 0.95])
def test_two_steps(gae_lambda):
    agent = learned(probes.TwoSteps, gae_lambda=gae_lambda)
    assert value(agent, PLUS) == pytest.approx(1, abs=0.02)
    assert value(agent, MINUS) == pytest.approx(0.5, abs=0.02)


def test_action_decides():
    agent = learned(probes.ActionDecides)
    p = probability(agent, PLUS, 1)
    assert p > 0.97
    assert value(agent, PLUS) == pytest.approx(2 * p - 1, abs=0.1)
    assert agent.predict(np.ones(1, np.float32))[0] == 1


def test_both():
    agent = learned(probes.Both)
    assert probability(agent, PLUS, 1) > 0.97
    assert probability(agent, MINUS, 0) > 0.97
    assert value(agent, PLUS) == pytest.approx(1, abs=0.1)
    assert value(agent, MINUS) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("gae_lambda", [0.0, 1.0])
def test_a_time_limit_is_no_end(gae_lambda):
    """Taken for an end, it would be worth 1.58, the mean of 1, 1.5 and 1.75, or less."""
    agent = learned(probes.CutShort, gae_lambda=gae_lambda)
    assert value(agent, PLUS) == pytest.approx(2, abs=0.03)


def test_continuous_action():
    agent = learned(probes.ReachHalf, 8_000, policy_kwargs={"net_arch": [16], "log_std_init": -1})
    with torch.no_grad():
        assert agent.policy.distribution(PLUS).mode().item() == pytest.approx(0.5, abs=0.05)
    assert agent.policy.head.log_std.item() < -1.5  # less noise pays more


@pytest.mark.slow
@pytest.mark.parametrize("switch", ["normalize_observation", "normalize_reward"])
def test_the_policy_learns_with_normalisers(switch):
    agent = learned(probes.Both, **{switch: True})
    action, _ = agent.predict(np.array([[-1], [1]], np.float32))
    assert action.tolist() == [0, 1]
    assert us.evaluate_policy(agent, probes.Both, 50) == (1, 0)
