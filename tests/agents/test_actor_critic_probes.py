"""Actor-critic in each of its forms on the probe environments, with numbers."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

import upslope as us
from tests.agents import probes
from tests.agents.test_probes import MINUS, PLUS, probability, value

FORMS = {
    "one step": {"gae_lambda": 0.0},
    "gae": {"gae_lambda": 0.95, "normalize_advantage": True},
    "all actions": {"update": "all_actions", "gae_lambda": 0.9},
    "traces": {
        "traces": True,
        "n_envs": 4,
        "learning_rate": "linear(0.3)",
        "critic_learning_rate": "linear(0.3)",
        "policy_kwargs": {"net_arch": []},
    },
}
ALL = pytest.mark.parametrize("form", FORMS)


def learned(env, form: str, total: int = 8_000, **settings) -> us.ActorCritic:
    chosen = {"n_envs": 16, "n_steps": 4, "gamma": 0.5, "learning_rate": "linear(2e-2)"}
    chosen |= {"policy_kwargs": {"net_arch": [16]}} | FORMS[form] | settings
    return us.ActorCritic(env, seed=0, **chosen).learn(total // (2 if form == "traces" else 1))


@pytest.mark.slow
@ALL
def test_constant_reward(form):
    assert value(learned(probes.ConstantReward, form), PLUS) == pytest.approx(1, abs=0.01)


@pytest.mark.slow
@ALL
def test_reward_is_observation(form):
    agent = learned(probes.RewardIsObservation, form)
    assert value(agent, PLUS) == pytest.approx(1, abs=0.02)
    assert value(agent, MINUS) == pytest.approx(-1, abs=0.02)


@pytest.mark.slow
@ALL
def test_two_steps(form):
    agent = learned(probes.TwoSteps, form)
    assert value(agent, PLUS) == pytest.approx(1, abs=0.02)
    assert value(agent, MINUS) == pytest.approx(0.5, abs=0.02)


@pytest.mark.slow
@ALL
def test_action_decides(form):
    agent = learned(probes.ActionDecides, form)
    p = probability(agent, PLUS, 1)
    assert p > 0.97
    assert value(agent, PLUS) == pytest.approx(2 * p - 1, abs=0.1)


@pytest.mark.slow
@ALL
def test_both(form):
    """Linear policies suffice: right is where the observation is above 0."""
    agent = learned(probes.Both, form, 16_000)
    assert probability(agent, PLUS, 1) > 0.95
    assert probability(agent, MINUS, 0) > 0.95
    assert value(agent, PLUS) == pytest.approx(1, abs=0.15)
    assert value(agent, MINUS) == pytest.approx(1, abs=0.15)


@pytest.mark.slow
@ALL
def test_a_time_limit_is_no_end(form):
    """Taken for an end, it would be worth 1.58, the mean of 1, 1.5 and 1.75, or less."""
    agent = learned(probes.CutShort, form)
    assert value(agent, PLUS) == pytest.approx(2, abs=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["gae", "traces"])
def test_continuous_action(form):
    small = {"policy_kwargs": {"net_arch": [], "log_std_init": -1}}
    rate = {"learning_rate": "linear(0.05)"} if form == "traces" else {}
    agent = learned(probes.ReachHalf, form, 16_000, **small, **rate)
    with torch.no_grad():
        assert agent.policy.distribution(PLUS).mode().item() == pytest.approx(0.5, abs=0.06)
    assert agent.policy.head.log_std.item() < -1.2  # less noise pays more


@pytest.mark.slow
def test_q_is_that_of_each_action():
    """ActionDecides pays 1 and -1: where entropy keeps both tried, q says so of both."""
    agent = learned(probes.ActionDecides, "all actions", ent_coef=1.0)
    with torch.no_grad():
        q = agent.policy.all_actions(
            SimpleNamespace(observation=PLUS, action_mask=None, sequences=None)
        )[2]
    assert q[0].tolist() == pytest.approx([-1, 1], abs=0.05)
