"""REINFORCE: probes, golden numbers, exact resume, what must not change, and what is refused."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.vector import SyncVectorEnv

import upslope as us
from tests.agents import probes
from tests.agents.sampled import Sampled
from tests.exact.cases import layered_problem
from upslope import checkpoint
from upslope.agents.reinforce import reinforce_loss
from upslope.engine.twins import coefficients
from upslope.errors import ArgumentError, ConfigError
from upslope.returns import vtrace

MINUS, PLUS = torch.tensor([[-1.0]]), torch.tensor([[1.0]])


# ---- probes --------------------------------------------------------------------------------------
def learned(env, total: int = 2_500, **settings) -> us.REINFORCE:
    """On environments that exist, which are reset and not made anew for each update."""
    chosen = {"n_steps": 8, "gamma": 0.5, "learning_rate": "linear(3e-2)"}
    chosen |= {"baseline": "value", "policy_kwargs": {"net_arch": [16]}} | settings
    return us.REINFORCE(SyncVectorEnv([env] * 16), seed=0, **chosen).learn(total)


def value(agent: us.REINFORCE, observation: torch.Tensor) -> float:
    with torch.no_grad():
        return agent.policy.value(observation).item()


def probability(agent: us.REINFORCE, observation: torch.Tensor, action: int) -> float:
    with torch.no_grad():
        return agent.policy.distribution(observation).log_probs.exp()[0, action].item()


def test_constant_reward():
    agent = learned(probes.ConstantReward)
    assert value(agent, PLUS) == pytest.approx(1, abs=0.01)


def test_reward_is_observation():
    agent = learned(probes.RewardIsObservation)
    assert value(agent, PLUS) == pytest.approx(1, abs=0.02)
    assert value(agent, MINUS) == pytest.approx(-1, abs=0.02)


def test_two_steps():
    agent = learned(probes.TwoSteps, 5_000)
    assert value(agent, PLUS) == pytest.approx(1, abs=0.02)
    assert value(agent, MINUS) == pytest.approx(0.5, abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("baseline", [None, "mean", "leave_one_out", "value"])
@pytest.mark.parametrize("weight", ["return", "reward_to_go"])
def test_action_decides(baseline, weight):
    agent = learned(probes.ActionDecides, baseline=baseline, weight=weight)
    assert probability(agent, PLUS, 1) > 0.97
    assert agent.predict(np.ones(1, np.float32))[0] == 1


def test_both():
    agent = learned(probes.Both)
    assert probability(agent, PLUS, 1) > 0.97
    assert probability(agent, MINUS, 0) > 0.97
    assert value(agent, PLUS) == pytest.approx(1, abs=0.1)


def test_a_time_limit_goes_on_with_the_value_where_there_is_one():
    """1 / (1 - .5) = 2; taken for an end, it would be worth 1.75 at most."""
    agent = learned(probes.CutShort, 7_500)
    assert value(agent, PLUS) == pytest.approx(2, abs=0.05)


def test_continuous_action():
    kwargs = {"net_arch": [16], "log_std_init": -1}
    agent = learned(probes.ReachHalf, 5_000, policy_kwargs=kwargs)
    with torch.no_grad():
        assert agent.policy.distribution(PLUS).mode().item() == pytest.approx(0.5, abs=0.05)


# ---- golden numbers ------------------------------------------------------------------------------
GOLDEN = {
    "CartPole-v1": {
        "policy_loss": 120.78786,
        "value_loss": 122.78286,
        "entropy": 0.69306523,
        "moved": 0.19017922,
        "gradient_norm": 22.210876,
    },
    "Pendulum-v1": {
        "policy_loss": -98999.527,
        "value_loss": 150173.42,
        "entropy": 1.4173876,
        "moved": 0.22044017,
        "gradient_norm": 10790.979,
    },
}


@pytest.mark.parametrize("env", GOLDEN)
def test_golden_numbers(env):
    """After three updates; a change here is a change of what everyone's runs give."""
    metrics: list[dict[str, float]] = []
    agent = us.REINFORCE(env, seed=0, n_envs=4, baseline="value", ent_coef=0.01)
    before = agent.engine.flat.value.double()
    agent.learn(10**6, lambda a, row: metrics.append(row) or a.iteration < 3)
    assert agent.iteration == 3
    found = {name: metrics[-1][name] for name in ("policy_loss", "value_loss", "entropy")}
    found["moved"] = (agent.engine.flat.value.double() - before).norm().item()
    found["gradient_norm"] = metrics[-1]["gradient_norm"]
    assert found == {name: pytest.approx(x, rel=1e-5) for name, x in GOLDEN[env].items()}


# ---- the update ----------------------------------------------------------------------------------
def test_the_loss_is_one_that_the_native_engine_knows():
    loss = partial(reinforce_loss, vf_coef=0.5, ent_coef=0.1)
    found = coefficients(loss)
    assert (found.surrogate, found.vf_coef, found.ent_coef) == ("plain", 0.5, 0.1)


def test_both_engines_take_the_same_steps():
    ends = []
    for engine in ("torch", "auto"):
        agent = us.REINFORCE("CartPole-v1", engine=engine, baseline="value", ent_coef=0.01)
        agent.learn(400)
        ends.append(agent.engine.flat.value.clone())
    torch.testing.assert_close(*ends, rtol=1e-4, atol=1e-5)


def test_an_update_by_hand():
    """-1/N sum over episodes of the sum over their steps, entropy likewise; values by the step."""
    agent = us.REINFORCE(
        *("CartPole-v1",), baseline="value", gamma=0.9, ent_coef=0.3, engine="torch", n_envs=5
    )
    policy = agent.policy
    flat = agent.collector.collect(policy, torch.Generator().manual_seed(0))
    agent.update(flat)
    found = agent.engine.flat.gradient.clone()
    agent = us.REINFORCE("CartPole-v1", n_envs=5)  # the weights of before
    policy, loss, error = agent.policy, torch.zeros(()), torch.zeros(())
    for n in range(5):
        length = int(flat.valid[:, n].sum())
        seen = torch.from_numpy(flat.observation[:length, n])
        distribution = policy.distribution(seen)
        v = policy.value(seen)
        to_go = torch.tensor([sum(0.9**k for k in range(length - t)) for t in range(length)])
        log_prob = distribution.log_prob(torch.from_numpy(flat.action[:length, n]))
        loss = loss - (log_prob * (to_go - v.detach())).sum() / 5
        loss = loss - 0.3 * distribution.entropy().sum() / 5
        error = error + (v - to_go).square().sum() / flat.n_valid
    (loss + 0.5 * error).backward()
    flat_gradient = torch.cat([p.grad.flatten() for p in agent.engine.flat.parameters])
    torch.testing.assert_close(found, flat_gradient, rtol=1e-4, atol=1e-4)


class Paid(probes.Both):
    """Two steps, with something added to every reward."""

    length = 2
    extra = 0.0

    def reward(self, action: Any) -> float:
        return super().reward(action) + self.extra


class PaidMore(Paid):
    extra = 7.0


@pytest.mark.parametrize("settings", [{"weight": "return"}, {"weight": "reward_to_go"}])
@pytest.mark.parametrize("baseline", ["mean", "leave_one_out"])
def test_a_constant_added_to_all_rewards_changes_nothing_where_lengths_are_fixed(
    baseline, settings
):
    gradients = []
    for env in (Paid, PaidMore):
        agent = us.REINFORCE(env, baseline=baseline, gamma=0.9, **settings)
        agent.iterate()
        size = agent.engine.flat.leading_size
        gradients.append(agent.engine.flat.gradient[:size].clone())
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)
    assert gradients[0].norm() > 0.01


def test_normalised_weights_do_not_depend_on_the_scale_of_rewards():
    gradients = []
    for scale in (1.0, 100.0):
        env = type("Scaled", (Paid,), {"reward": lambda self, a, k=scale: k * Paid.reward(self, a)})
        agent = us.REINFORCE(env, normalize_advantage=True)
        agent.iterate()
        gradients.append(agent.engine.flat.gradient.clone())
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


# ---- exact resume --------------------------------------------------------------------------------
SMALL: dict[str, Any] = {"policy_kwargs": {"net_arch": [8]}, "learning_rate": "linear(3e-3)"}
TASKS: dict[str, dict[str, Any]] = {
    "cartpole": {"env": "CartPole-v1", "n_envs": 3, "baseline": "value"},
    "pendulum": {
        **{"env": "Pendulum-v1", "n_envs": 2, "n_steps": 50, "baseline": "leave_one_out"},
        **{"normalize_observation": True, "normalize_reward": True},
    },
    "flappy": {"env": "upslope/FlappyBird-v0", "n_envs": 3, "policy": "gru"},
}


def agent_of(task: str) -> us.REINFORCE:
    chosen = dict(SMALL)
    if "policy" in TASKS[task]:
        chosen["policy_kwargs"] = {"net_arch": [8], "memory_size": 4}
    return us.REINFORCE(**chosen | TASKS[task], seed=3)


def final_state(agent: us.REINFORCE) -> dict[str, Any]:
    tensors, meta = agent.state()
    return {name: np.asarray(x).tobytes() for name, x in tensors.items()} | {"meta": meta}


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_a_stop_after_every_iteration_changes_nothing(task, tmp_path):
    whole = agent_of(task).learn(400)
    assert whole.iteration >= 3
    agent = agent_of(task)
    agent.target_timesteps = 400
    for _ in range(whole.iteration):
        agent.go_on(lambda *_: False)
        agent = us.REINFORCE.load(agent.save(tmp_path / task))
        again = agent_of(task)
        again.load_state(*checkpoint.read(agent.save(tmp_path / "again")))
        assert final_state(again) == final_state(agent)
    assert final_state(agent) == final_state(whole)


# ---- behaviour -----------------------------------------------------------------------------------
def uniform(observation: torch.Tensor, generator: torch.Generator) -> tuple[Any, Any]:
    action = torch.randint(2, (len(observation),), generator=generator)
    return action, torch.full((len(observation),), -np.log(2.0))


IMPORTANCE = ("ordinary", "self_normalized", "per_decision")


@pytest.mark.parametrize("importance", IMPORTANCE)
@pytest.mark.parametrize("baseline", [None, "leave_one_out", "value"])
def test_a_behaviour_that_is_the_policy_itself_gives_the_plain_gradient(importance, baseline):
    mdp = layered_problem(1, 0.9)
    chosen = {"baseline": baseline, "count": 1, "group": 12, "discount_state": True}
    (plain,) = Sampled(mdp, **chosen).gradients()
    twin = Sampled(mdp, **chosen).agent.policy
    sampled = Sampled(mdp, **chosen, behaviour=twin, importance=importance)
    (found,) = sampled.gradients()
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-6)
    assert found.norm() > 0.01


@pytest.mark.slow
def test_it_learns_from_what_another_does():
    agent = learned(probes.Both, 5_000, behaviour=uniform)
    assert probability(agent, PLUS, 1) > 0.95
    assert probability(agent, MINUS, 0) > 0.95
    assert agent.config.importance == "per_decision"
    assert value(agent, PLUS) == pytest.approx(1, abs=0.15)  # the policy's, not the behaviour's 0
    assert us.evaluate_policy(agent, probes.Both, 50) == (1, 0)


def test_an_agent_and_its_policy_are_behaviours_and_the_worth_is_logged():
    other = us.REINFORCE("CartPole-v1", seed=9)
    rows: list[dict[str, float]] = []
    for behaviour in (other, other.policy):
        agent = us.REINFORCE("CartPole-v1", behaviour=behaviour, policy="mlp")
        agent.learn(1, lambda _, row: rows.append(row))
    assert 7 < rows[0]["effective_sample_size"] <= 8  # both are nearly uniform
    assert 0 < rows[0]["largest_share"] < 0.5
    assert rows[0]["mean_ratio"] == pytest.approx(1, abs=0.3)
    del rows[0]["episodes"], rows[1]["episodes"]
    assert rows[0] == rows[1]


def test_the_critic_of_another_behaviour_learns_by_vtrace():
    agent = us.REINFORCE("CartPole-v1", behaviour=uniform, baseline="value", gamma=0.9)
    with torch.no_grad():
        agent.policy.actor[-1].bias += torch.tensor([0.5, 0.0])
    rollout = agent.collector.collect(agent.policy, torch.Generator().manual_seed(0))
    before = agent.policy.state_dict()
    before = {name: tensor.clone() for name, tensor in before.items()}
    agent.update(rollout)
    agent.policy.load_state_dict(before)
    with torch.no_grad():
        log_prob = agent.policy(rollout.flat(agent.device))[0].view_as(rollout.log_prob)
    valid = torch.from_numpy(rollout.valid)
    expected = vtrace(
        (log_prob - rollout.log_prob).masked_fill(~valid, 0.0),
        *map(torch.as_tensor, (rollout.reward, rollout.value, rollout.next_value)),
        *map(torch.as_tensor, (rollout.terminated, rollout.truncated)),
        gamma=0.9,
    ).target
    torch.testing.assert_close(rollout.target[valid], expected[valid], rtol=1e-4, atol=1e-5)


def mostly_left(chance: float, observation, generator):
    """Action 1 with that chance, which may be 0."""
    action = (torch.rand(len(observation), generator=generator) < chance).long()
    return action, torch.where(action == 1, chance, 1 - chance).log()


class TwelveSteps(probes.TwoSteps):
    length = 12


@pytest.mark.parametrize(
    ("env", "chance"),
    [(TwelveSteps, 0.05), (probes.TwoSteps, 0.0)],  # few decide; what the policy does is missing
)
def test_a_collapse_is_warned_of(env, chance):
    envs = SyncVectorEnv([env] * 100)
    agent = us.REINFORCE(envs, behaviour=partial(mostly_left, chance))
    with pytest.warns(UserWarning, match=r"the behaviour must be positive wherever the policy is"):
        agent.iterate()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        us.REINFORCE(envs, behaviour=uniform).iterate()


def test_a_behaviour_is_asked_for_after_loading(tmp_path):
    agent = us.REINFORCE("CartPole-v1", behaviour=uniform, seed=2)
    agent.learn(1)
    path = agent.save(tmp_path / "a")
    loaded = us.load(path)
    with pytest.raises(ArgumentError, match=r"set agent\.behaviour after loading"):
        loaded.iterate()
    loaded.behaviour = uniform
    assert loaded.iterate() == agent.iterate()
    assert torch.equal(loaded.engine.flat.value, agent.engine.flat.value)


# ---- what is refused -----------------------------------------------------------------------------
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"weight": "q"}, "weight='q': weight takes one of 'reward_to_go', 'return'"),
    ({"baseline": "optimal"}, "baseline takes one of None, 'mean', 'leave_one_out', 'value'"),
    ({"discount_state": 1}, "discount_state takes True or False"),
    ({"baseline": "mean", "n_envs": 1}, "n_envs=1: baseline='mean' takes at least 2 environments"),
    ({"segment_length": 50}, "segment_length=50: REINFORCE makes its environments anew"),
    ({"behaviour": uniform, "normalize_advantage": True}, "normalize_advantage=True takes actions"),
    (
        {"importance": "per_decision", "weight": "return"},
        "importance='per_decision' takes weight='reward_to_go'",
    ),
    ({"behaviour": uniform, "importance": None}, "importance=None: behaviour= takes an agent with"),
    ({"behaviour": 3}, "behaviour=3: it takes an agent, a policy, or a function"),
    ({"n_epochs": 2}, "REINFORCE has no setting 'n_epochs'"),
]


@pytest.mark.parametrize(("settings", "message"), REFUSED)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises((ArgumentError, ConfigError), match=message):
        us.REINFORCE("CartPole-v1", **settings)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: us.REINFORCE("Pendulum-v1"), "it takes an agent on Box"),
        (lambda: us.REINFORCE("Pendulum-v1").policy, r"a policy for Discrete\(2\), got Box"),
        (lambda: us.PPO("CartPole-v1", policy="gru"), "a policy without memory"),
        (lambda: us.PPO("CartPole-v1", normalize_observation=True), "normalize_observation=False"),
        (lambda: lambda o, g: o, "returned Tensor, and must return a pair"),
        (lambda: lambda o, g: (o, o), r"must return \[8\] and \[8\]"),
        (lambda: lambda o, g: (o[:, 0].long(), -np.inf * o[:, 0].abs()), "is not finite"),
    ],
)
def test_behaviours_that_do_not_fit_are_refused(other, message):
    with pytest.raises(ArgumentError, match=message):
        us.REINFORCE("CartPole-v1", behaviour=other()).iterate()
