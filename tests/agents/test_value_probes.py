"""Q-learning and DQN on the probe environments, with numbers."""

from __future__ import annotations

import pytest
import torch

import upslope as us
from tests.agents import probes

MINUS, PLUS = torch.tensor([[-1.0]]), torch.tensor([[1.0]])
TABLE = {"n_envs": 16, "bins": 2, "learning_rate": "linear(0.5, 0.01)", "epsilon": 0.5}
NETWORK = {
    **{"n_envs": 16, "batch_size": 64, "gradient_steps": 4, "learning_rate": "linear(1e-2)"},
    **{"learning_starts": 100, "target_update_interval": 200, "exploration_final_eps": 0.5},
    "policy_kwargs": {"net_arch": [16]},
}
AGENTS = {
    "q_learning": (us.QLearning, TABLE, 1e-3),
    "double q_learning": (us.QLearning, TABLE | {"double": True}, 1e-2),
    "expected sarsa": (us.QLearning, TABLE | {"target": "expected_sarsa"}, 1e-3),
    "sarsa": (us.QLearning, TABLE | {"target": "sarsa"}, 1e-3),
    "dqn": (us.DQN, NETWORK, 0.03),
    "double dqn of 2 steps": (us.DQN, NETWORK | {"double": True, "n_steps": 2}, 0.03),
}
every = pytest.mark.parametrize("kind", AGENTS)


def learned(kind: str, env, total: int = 4_000, **settings):
    agent, chosen, tolerance = AGENTS[kind]
    made = agent(env, seed=0, gamma=0.5, **(chosen | settings)).learn(total)

    def values(observation: torch.Tensor) -> list[float]:
        with torch.no_grad():
            return made.policy.q(observation)[0].tolist()

    return values, tolerance


@pytest.mark.slow
@every
def test_constant_reward(kind):
    q, tolerance = learned(kind, probes.ConstantReward)
    assert q(PLUS) == pytest.approx([1, 1], abs=tolerance)


@pytest.mark.slow
@every
def test_reward_is_observation(kind):
    q, tolerance = learned(kind, probes.RewardIsObservation)
    assert q(PLUS) == pytest.approx([1, 1], abs=tolerance)
    assert q(MINUS) == pytest.approx([-1, -1], abs=tolerance)


@pytest.mark.slow
@every
def test_two_steps(kind):
    q, tolerance = learned(kind, probes.TwoSteps)
    assert q(PLUS) == pytest.approx([1, 1], abs=tolerance)
    assert q(MINUS) == pytest.approx([0.5, 0.5], abs=tolerance)


@pytest.mark.slow
@every
def test_action_decides(kind):
    q, tolerance = learned(kind, probes.ActionDecides)
    assert q(PLUS) == pytest.approx([-1, 1], abs=tolerance)


@pytest.mark.slow
@every
def test_both(kind):
    q, tolerance = learned(kind, probes.Both)
    assert q(PLUS) == pytest.approx([-1, 1], abs=tolerance)
    assert q(MINUS) == pytest.approx([1, -1], abs=tolerance)


@pytest.mark.slow
@every
def test_a_time_limit_is_no_end(kind):
    """Taken for an end, it would be worth 1.75 or less."""
    q, tolerance = learned(kind, probes.CutShort)
    assert q(PLUS) == pytest.approx([2, 2], abs=2 * tolerance)
