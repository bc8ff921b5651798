"""Actor-critic: its losses and update against the definition, golden numbers, exact resume."""

from __future__ import annotations

from functools import partial

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

import upslope as us
from tests.agents.anything import Anything
from tests.agents.test_ppo import batch_of, gradient_of, policy_of
from upslope.agents.actor_critic import actor_critic_loss, all_actions_loss
from upslope.agents.table import algorithm_name
from upslope.envs.finite import FiniteVectorEnv
from upslope.errors import ArgumentError, ConfigError
from upslope.policies.actor_critic import NetworkActorCritic
from upslope.seeding import generator


# ---- the losses ----------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["Discrete", "Box"])
def test_the_loss_is_the_sum_of_its_parts(kind):
    policy = policy_of(kind)
    batch = batch_of(policy)
    loss, metrics = actor_critic_loss(policy, batch, vf_coef=0.7, ent_coef=0.1)
    surrogate, error, entropy = 0.0, 0.0, 0.0
    for i in range(40):
        one = policy.distribution(batch.observation[i : i + 1])
        surrogate += batch.advantage[i] * one.log_prob(batch.action[i : i + 1])[0] / 40
        error += (policy.value(batch.observation[i : i + 1])[0] - batch.target[i]) ** 2 / 40
        entropy += one.entropy()[0] / 40
    torch.testing.assert_close(metrics["policy_loss"], -surrogate.detach())
    expected = -surrogate + 0.7 * error - 0.1 * entropy
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient_of(policy, loss), gradient_of(policy, expected))


def with_q(actions: int = 3) -> NetworkActorCritic:
    space = spaces.Box(-1, 1, (4,), np.float32)
    return NetworkActorCritic(
        space, spaces.Discrete(actions), generator=generator(0, "test"), action_values=True
    )


@pytest.mark.parametrize("masked", [False, True])
def test_all_actions_is_the_sum_over_them(masked):
    """Sum over a of q(s,a) grad pi(a|s), one at a time; q and v are fitted where they were seen."""
    policy = with_q()
    batch = batch_of(policy)
    if masked:
        batch.action_mask = torch.ones(40, 3, dtype=torch.bool)
        batch.action_mask[torch.arange(40), (batch.action + 1) % 3] = False
    loss, metrics = all_actions_loss(policy, batch, vf_coef=0.5, ent_coef=0.01)
    values = policy.critic(batch.observation)
    assert values.shape == (40, 4)
    total = torch.zeros(())
    for i in range(40):
        mask = None if batch.action_mask is None else batch.action_mask[i : i + 1]
        one = policy.distribution(batch.observation[i : i + 1], mask)
        legal = [a for a in range(3) if mask is None or mask[0, a]]
        pi = {a: one.log_prob(torch.tensor([a]))[0].exp() for a in legal}
        mean = sum(pi[a].item() * values[i, 1 + a] for a in legal)
        q = {a: values[i, 0] + values[i, 1 + a] - mean for a in legal}
        total = total - sum(q[a].item() * pi[a] for a in legal) / 40
        total = total + 0.5 * (values[i, 0] - batch.target[i]) ** 2 / 40
        total = total + 0.5 * (q[int(batch.action[i])] - batch.target[i]) ** 2 / 40
        total = total - 0.01 * one.entropy()[0] / 40
    torch.testing.assert_close(loss, total)
    torch.testing.assert_close(gradient_of(policy, loss), gradient_of(policy, total))
    assert metrics["entropy"] > 0.5


# ---- an update -----------------------------------------------------------------------------------
@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
@pytest.mark.parametrize("settings", [{}, {"normalize_advantage": True}, {"gae_lambda": 0.3}])
def test_native_and_torch_take_the_same_steps(env, settings):
    found = []
    for engine in ("torch", "auto"):
        agent = us.ActorCritic(
            env, n_envs=4, n_steps=20, ent_coef=0.01, engine=engine, learning_rate=1e-2, **settings
        )
        if engine == "auto" and not agent.engine.description.startswith("native"):
            pytest.skip(agent.engine.description)
        agent.target_timesteps = 1000
        before = agent.engine.flat.value.clone()
        for _ in range(3):
            agent.iterate()
        found.append(agent.engine.flat.value)
        assert (found[-1] - before).abs().max() > 1e-2
    torch.testing.assert_close(*found, atol=2e-5, rtol=1e-4)


def test_a_rollout_gives_one_step():
    agent = us.ActorCritic("CartPole-v1", n_envs=4, n_steps=5).learn(100)
    assert agent.engine.steps == agent.iteration == -(-agent.num_timesteps // 20) or (
        agent.engine.steps == agent.iteration  # rows that only reset are no steps
    )


def test_states_are_discounted_by_the_age_of_their_episode():
    env = FiniteVectorEnv(us.exact.random_walk(5), 3, max_episode_steps=4)
    agent = us.ActorCritic(env, n_steps=7, gamma=0.5, discount_state=True)
    age = np.zeros(3)
    for _ in range(3):
        rollout = agent.collector.collect(agent.policy, generator(0, "act", agent.iteration))
        weight = agent.state_discount(rollout)
        for t in range(7):
            np.testing.assert_array_equal(weight[t].numpy(), 0.5**age)
            age = np.where(rollout.terminated[t] | rollout.truncated[t], 0, age + 1)


def test_the_average_reward_is_followed():
    """A policy that cannot change anything: Rbar goes to the gain of the problem."""
    mdp = us.exact.kakade_two_states()
    uniform = torch.full((2, 2), 0.5, dtype=torch.float64)
    gain = float(us.exact.solve(mdp, uniform, setting="average").objective)
    agent = us.ActorCritic(
        FiniteVectorEnv(mdp, 64),
        setting="average",
        gae_lambda=0.9,
        average_learning_rate=0.05,
        learning_rate=1e-2,
        policy_kwargs={"net_arch": []},
    )
    for parameter in agent.policy.actor.parameters():
        parameter.requires_grad_(False)
    rows: list[float] = []
    agent.learn(40_000, lambda _, row: rows.append(row["average_reward"]))
    assert np.mean(rows[-50:]) == pytest.approx(gain, abs=0.02)
    value = agent.policy.value(torch.tensor([0, 1]))
    exact = us.exact.solve(mdp, uniform, setting="average").v
    assert (value[1] - value[0]).item() == pytest.approx((exact[1] - exact[0]).item(), abs=0.1)


# ---- golden numbers and resume -------------------------------------------------------------------
FORMS = {
    "one step": {"gae_lambda": 0.0, "n_steps": 1},
    "n-step": {},
    "gae": {"gae_lambda": 0.9, "n_steps": 16, "normalize_advantage": True, "ent_coef": 0.01},
    "all actions": {"update": "all_actions"},
    "traces": {"traces": True, "n_steps": 4, "discount_state": True},
}
GOLDEN = {
    "one step": {"moved": 0.10372751, "value_loss": 1.0235621, "entropy": 0.69312453},
    "n-step": {"moved": 0.084298915, "value_loss": 6.3516631, "entropy": 0.69305909},
    "gae": {"moved": 0.087693547, "value_loss": 15.36283, "entropy": 0.69314599},
    "all actions": {"moved": 0.09170384256, "value_loss": 12.80599308, "entropy": 0.6930697},
    "traces": {"moved": 0.98138719, "td_error": 0.91095492},
}


@pytest.mark.parametrize("form", FORMS)
def test_golden_numbers(form):
    """After three iterations; a change here is a change of what everyone's runs give.

    Adam's first steps have the size of the rate for however small a gradient, so that rounding
    counts in `moved`: 6e-6 of it between the two engines.
    """
    rows: list[dict[str, float]] = []
    engine = "auto" if form == "traces" else "torch"
    agent = us.ActorCritic("CartPole-v1", seed=0, n_envs=4, engine=engine, **FORMS[form])
    before = agent.engine.flat.value.double()
    agent.target_timesteps = 1000
    for _ in range(3):
        rows.append(agent.iterate())
    found = {"moved": (agent.engine.flat.value.double() - before).norm().item()}
    names = ("value_loss", "entropy", "td_error")
    found |= {name: rows[-1][name] for name in names if name in rows[-1]}
    expected = {name: pytest.approx(x, rel=1e-5) for name, x in GOLDEN[form].items()}
    assert found == expected | {"moved": pytest.approx(GOLDEN[form]["moved"], rel=2e-5)}


AVERAGE = {"setting": "average", "n_envs": 3, "n_steps": 4}
RESUMED = {
    **{name: ("CartPole-v1", {"n_envs": 3, "segment_length": 32} | f) for name, f in FORMS.items()},
    "recurrent": ("CartPole-v1", {"policy": "gru", "n_envs": 3}),
    "average": ("upslope/AccessControl-v0", AVERAGE),
    "average, traces": ("upslope/AccessControl-v0", AVERAGE | {"traces": True}),
}


@pytest.mark.slow
@pytest.mark.parametrize("form", RESUMED)
def test_it_goes_on_exactly_from_every_iteration(form, tmp_path):
    env, settings = RESUMED[form]
    whole = us.ActorCritic(env, seed=3, **settings)
    whole.target_timesteps = 10_000
    states = []
    for k in range(6):
        whole.save(tmp_path / str(k))
        whole.iterate()
        states.append(everything(whole))
    for k in range(6):
        loaded = us.load(tmp_path / str(k))
        loaded.iterate()
        found = everything(loaded)
        assert found.keys() == states[k].keys()
        for name, x in found.items():  # NaN: the score of an episode that has none
            assert torch.equal(x.nan_to_num(-1), states[k][name].nan_to_num(-1)), (k, name)
    if settings.get("traces"):
        assert any(state["own/actor_trace"].abs().sum() > 0 for state in states)


def everything(agent: us.ActorCritic) -> dict[str, torch.Tensor]:
    tensors, _ = agent.state()
    return {name: torch.as_tensor(x).clone() for name, x in tensors.items()}


# ---- what it takes -------------------------------------------------------------------------------
@pytest.mark.parametrize("form", ["n-step", "all actions", "traces"])
@pytest.mark.parametrize(
    "observation", ["box", "discrete", "multi_discrete", "multi_binary", "nested"]
)
def test_every_observation_and_masks(form, observation):
    env = partial(Anything, observation, "discrete", "info")  # raises for what is not legal
    agent = us.ActorCritic(env, n_envs=3, policy_kwargs={"net_arch": [8]}, **FORMS[form])
    before = agent.engine.flat.value.clone()
    agent.learn(60)
    assert torch.isfinite(agent.engine.flat.value).all()
    assert not torch.equal(agent.engine.flat.value, before)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["n-step", "all actions", "traces"])
@pytest.mark.parametrize("action", ["multi_discrete", "multi_binary", "box", "dict", "tuple"])
def test_every_action(form, action):
    make = partial(us.ActorCritic, partial(Anything, "box", action), n_envs=3, **FORMS[form])
    if form == "all actions":
        with pytest.raises(ArgumentError, match="update='all_actions' takes Discrete actions, got"):
            make()
        return
    agent = make()
    before = agent.engine.flat.value.clone()
    agent.learn(60)
    assert torch.isfinite(agent.engine.flat.value).all()
    assert not torch.equal(agent.engine.flat.value, before)


class Own(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.Linear(4, 3)

    def forward(self, observation: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        out = self.body(observation)
        return out[:, :2], out[:, 2]


@pytest.mark.parametrize("form", ["n-step", "traces"])
def test_a_module_of_ones_own(form):
    agent = us.ActorCritic("CartPole-v1", policy=Own(), n_envs=2, **FORMS[form])
    before = agent.engine.flat.value.clone()
    agent.learn(40)
    assert not torch.equal(agent.engine.flat.value, before)


@pytest.mark.parametrize(
    ("settings", "error", "sentence"),
    [
        ({"update": "all"}, ConfigError, "update takes one of 'sampled', 'all_actions'"),
        ({"setting": "episodic"}, ConfigError, "setting takes one of 'discounted', 'average'"),
        (
            {"update": "all_actions", "normalize_advantage": True},
            ConfigError,
            "normalize_advantage=True has no meaning with update='all_actions', where q",
        ),
        ({"update": "all_actions", "policy": Own()}, ArgumentError, "a module of one's own"),
        ({"update": "all_actions", "engine": "native"}, ArgumentError, "engine='native' does not"),
        ({"setting": "average", "gamma": 0.9}, ConfigError, "gamma=0.9 has no meaning with sett"),
        ({"average_learning_rate": 0.5}, ConfigError, "no meaning with setting='discounted'"),
        ({"average_learning_rate": -1}, ConfigError, "takes a finite number that is not negative"),
        ({"n_epochs": 2}, ConfigError, "ActorCritic has no setting 'n_epochs'"),
    ],
)
def test_what_does_not_fit_is_refused(settings, error, sentence):
    with pytest.raises(error, match=sentence):
        us.ActorCritic("CartPole-v1", **settings)


def test_names():
    for name in ("actor_critic", "ActorCritic", "a2c", "A2C"):
        assert algorithm_name(name) == "actor_critic"


def test_any_environment_without_its_time_limit_goes_on():
    env = partial(us.envs.Continuing, gymnasium.make("Pendulum-v1"))
    agent = us.ActorCritic(env, n_envs=1, n_steps=32, setting="average", gae_lambda=0.9)
    agent.learn(300)
    assert agent.collector.episodes.ended == 0
    assert agent.average_reward < -0.1
