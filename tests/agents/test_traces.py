"""Actor-critic with traces: the two boxes of the book, by hand, on what the agent saw."""

from __future__ import annotations

from functools import partial

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import upslope as us
from upslope.envs.finite import FiniteVectorEnv
from upslope.errors import ArgumentError, ConfigError, EnvironmentFault, NotFiniteError
from upslope.returns import gae

LINEAR = {"policy_kwargs": {"net_arch": []}}
BOX = {"traces": True, "learning_rate": 0.05, "critic_learning_rate": 0.1} | LINEAR
FORMS = {
    "episodic": {"gamma": 0.9, "actor_trace": 0.7, "critic_trace": 0.6},
    "weighted": {"gamma": 0.9, "actor_trace": 0.7, "critic_trace": 0.6, "discount_state": True},
    "one step": {"gamma": 0.8, "actor_trace": 0.0, "critic_trace": 0.0, "discount_state": True},
    "average": {"setting": "average", "average_learning_rate": 0.03, "actor_trace": 0.5},
}


def recorded(agent: us.ActorCritic, total: int) -> list:
    """Learn, and return the steps that the environments took."""
    steps, inner = [], agent.stream.step
    agent.stream.step = lambda action, ahead: (
        steps.append((action.copy(), inner(action, ahead))) or steps[-1][1]
    )
    agent.learn(total)
    return steps


def by_hand(agent: us.ActorCritic, weights: dict, steps: list) -> tuple[dict, float]:
    """The box, for tables: one environment after the other within a step, float64."""
    c, n_envs = agent.config, agent.stream.n_envs
    average = c.setting == "average"
    gamma = 1.0 if average else c.gamma
    w = np.array([*weights["critic.0.weight"][0], weights["critic.0.bias"][0]], float)
    theta = np.concatenate([weights["actor.0.weight"], weights["actor.0.bias"][:, None]], 1)
    theta = theta.astype(float)
    z_w = [np.zeros_like(w) for _ in range(n_envs)]
    z_theta = [np.zeros_like(theta) for _ in range(n_envs)]
    discount, mean = [1.0] * n_envs, 0.0

    def x(state: int) -> np.ndarray:
        return np.array([*np.eye(len(w) - 1)[state], 1.0])

    for actions, step in steps:
        deltas, before_w, before_theta = [], w.copy(), theta.copy()
        for i in range(n_envs):
            s, after = step.observation[i], step.next_observation[i]
            follows = 0.0 if step.terminated[i] else before_w @ x(after)
            deltas.append(step.reward[i] - mean + gamma * follows - before_w @ x(s))
            pi = np.exp(before_theta @ x(s)) / np.exp(before_theta @ x(s)).sum()
            z_w[i] = gamma * c.critic_trace * z_w[i] + x(s)
            score = np.outer(np.eye(len(pi))[actions[i]] - pi, x(s))
            z_theta[i] = gamma * c.actor_trace * z_theta[i] + discount[i] * score
            discount[i] *= gamma if c.discount_state else 1.0
        for i in range(n_envs):
            w += c.critic_learning_rate * deltas[i] * z_w[i] / n_envs
            theta += c.learning_rate * deltas[i] * z_theta[i] / n_envs
            if step.terminated[i] or step.truncated[i]:
                discount[i], z_w[i], z_theta[i] = 1.0, 0 * z_w[i], 0 * z_theta[i]
        if average:
            mean += c.average_learning_rate * float(np.mean(deltas))
    return {"critic": w, "actor": theta}, mean


def problem(form: str, n_envs: int) -> FiniteVectorEnv:
    if form == "average":
        mdp = us.exact.access_control_queue(servers=3)
        return FiniteVectorEnv(mdp, n_envs, max_episode_steps=11)  # cut, never ended
    return FiniteVectorEnv(us.exact.random_walk(5), n_envs, max_episode_steps=9)


@pytest.mark.slow
@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("form", FORMS)
def test_weights_are_those_of_the_box(form, n_envs):
    agent = us.ActorCritic(problem(form, n_envs), n_steps=16, **BOX, **FORMS[form])
    before = {name: x.clone().numpy() for name, x in agent.policy.state_dict().items()}
    steps = recorded(agent, 48 * n_envs)
    assert any(step.truncated.any() for _, step in steps)
    assert form == "average" or any(step.terminated.any() for _, step in steps)
    expected, mean = by_hand(agent, before, steps)
    now = {name: x.numpy() for name, x in agent.policy.state_dict().items()}
    found = np.concatenate([now["actor.0.weight"], now["actor.0.bias"][:, None]], 1)
    np.testing.assert_allclose(found, expected["actor"], atol=2e-6)
    np.testing.assert_allclose(
        [*now["critic.0.weight"][0], now["critic.0.bias"][0]], expected["critic"], atol=2e-6
    )
    assert float(agent.average_reward) == pytest.approx(mean, abs=1e-6)
    assert np.abs(found - np.c_[before["actor.0.weight"], before["actor.0.bias"]]).max() > 0.02


def test_with_weights_that_hardly_move_it_is_the_forward_view():
    """The sum of delta z over an episode is that of GAE times the score, whatever the network."""
    step = 1e-6
    settings = {"gamma": 0.9, "actor_trace": 0.8, "learning_rate": step, "critic_learning_rate": 0}
    env = FiniteVectorEnv(us.exact.random_walk(7), 4, max_episode_steps=12)
    agent = us.ActorCritic(env, n_steps=12, traces=True, **settings)
    before = agent.engine.flat.value.double().clone()
    steps = recorded(agent, 48)
    moved = (agent.engine.flat.value.double() - before) / step
    policy, total = agent.policy, torch.zeros_like(before)
    with torch.no_grad():
        seen = torch.stack([torch.as_tensor(s.observation) for _, s in steps])
        after = torch.stack([torch.as_tensor(s.next_observation) for _, s in steps])
        value, next_value = (policy.value(rows.flatten()).view(12, 4) for rows in (seen, after))
    columns = [torch.as_tensor(np.stack([getattr(s, n) for _, s in steps])) for n in ENDS]
    advantage = gae(columns[0].float(), value, next_value, *columns[1:], gamma=0.9, gae_lambda=0.8)
    for t in range(12):
        for n in range(4):
            chosen = torch.as_tensor(steps[t][0][n : n + 1])
            log_prob = policy.distribution(seen[t, n : n + 1]).log_prob(chosen)
            slope = torch.autograd.grad(log_prob, agent.engine.flat.parameters, allow_unused=True)
            pieces = zip(slope, agent.engine.flat.parameters, strict=True)
            flat = [(torch.zeros_like(p) if g is None else g).flatten() for g, p in pieces]
            total += advantage[t, n].item() * torch.cat(flat).double() / 4
    torch.testing.assert_close(moved, total, atol=2e-2, rtol=2e-2)
    assert total.norm() > 0.5


ENDS = ("reward", "terminated", "truncated")


def cartpoles(mode: AutoresetMode, count: int = 3) -> SyncVectorEnv:
    return SyncVectorEnv([partial(gymnasium.make, "CartPole-v1")] * count, autoreset_mode=mode)


def test_the_autoreset_mode_makes_no_difference_to_what_is_learned_of_an_episode():
    """Until the first end the same; then the mode that skips a row learns nothing from it."""
    agents = []
    for mode in (AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP):
        agent = us.ActorCritic(cartpoles(mode, 1), n_steps=1, traces=True)
        agent.target_timesteps = 1000
        agents.append((agent, []))
    for agent, seen in agents:
        while not agent.collector.rollout.terminated.any():
            agent.iterate()
        seen.append(agent.engine.flat.value.clone())
        assert (agent.traces.actor == 0).all()
        agent.iterate()
        seen.append(agent.engine.flat.value.clone())
    (_, next_step), (_, same_step) = agents
    assert torch.equal(next_step[0], same_step[0])
    assert torch.equal(next_step[1], next_step[0])  # the row only resets
    assert not torch.equal(same_step[1], same_step[0])


def test_traces_do_not_reach_over_a_segment():
    """CartPole is made anew after 16 steps: what went before is another episode."""
    settings = {"n_envs": 2, "n_steps": 8, "segment_length": 16, "discount_state": True}
    for traces in (True, False):
        agent = us.ActorCritic("CartPole-v1", traces=traces, gamma=0.9, **settings)
        agent.target_timesteps = 1000
        assert agent.collector.replays
        for _ in range(2):
            agent.iterate()
        if traces:
            agent.traces.actor.fill_(torch.nan)  # would be seen
        assert agent.collector.segment == 0
        agent.iterate()
        assert agent.collector.segment == 1
        torch.testing.assert_close(agent.discount, torch.full((2,), 0.9**8))  # nobody falls so soon
        assert torch.isfinite(agent.engine.flat.value).all()


def test_an_end_is_refused_where_the_average_reward_counts():
    for settings in ({}, {"traces": True}):
        agent = us.ActorCritic("CartPole-v1", setting="average", **settings)
        with pytest.raises(EnvironmentFault, match=r"ended an episode.*upslope.envs.Continuing"):
            agent.learn(5_000)


def test_a_step_too_large_is_told_before_the_weights_are_lost():
    env = FiniteVectorEnv(us.exact.random_walk(5), 1)
    agent = us.ActorCritic(env, **(BOX | {"critic_learning_rate": 1e30}))
    with pytest.raises(NotFiniteError, match="step sizes are too large"):
        agent.learn(500)
    assert torch.isfinite(agent.engine.flat.value).all()


@pytest.mark.parametrize(
    ("settings", "error", "sentence"),
    [
        ({"ent_coef": 0.1}, ConfigError, "ent_coef=0.1 has no meaning with traces=True"),
        ({"gae_lambda": 0.5}, ConfigError, "gae_lambda=0.5 has no meaning with traces=True"),
        ({"engine": "native"}, ArgumentError, "engine='native' does not apply"),
        ({"policy": "lstm"}, ArgumentError, "traces=True takes a policy without memory"),
        ({"policy": "gru"}, ArgumentError, "traces=True takes a policy without memory"),
        ({"actor_trace": 1.5}, ConfigError, "actor_trace takes a number from 0 to 1"),
        ({"critic_learning_rate": -1}, ConfigError, "critic_learning_rate takes finite numbers"),
        ({"traces": 1}, ConfigError, "traces takes True or False"),
        ({"traces": False, "critic_trace": 0.5}, ConfigError, "no meaning with traces=False"),
    ],
)
def test_what_does_not_fit_is_refused(settings, error, sentence):
    with pytest.raises(error, match=sentence):
        us.ActorCritic("CartPole-v1", **({"traces": True} | settings))
