"""What breaks off a rollout, or resets the environments behind an agent, breaks off its episodes.

No transition may lead from a state of one episode to one of another, and what is saved afterwards
can be gone on with.
"""

from __future__ import annotations

from functools import partial

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import upslope as us
from upslope.errors import EnvironmentFault


class Count(gymnasium.Env):
    """Observes how many steps an episode has taken, of ten; at a given step of all it fails."""

    steps, fails_at = 0, 0
    observation_space = gymnasium.spaces.Box(0, 10, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.t += 1
        Count.steps += 1
        if Count.steps == Count.fails_at:
            self.fail()
        reward = np.nan if Count.steps == -Count.fails_at else 1.0
        return np.full(1, self.t, np.float32), reward, self.t == 10, False, {}

    def fail(self):
        raise KeyboardInterrupt


AGENTS = {
    "PPO": partial(us.PPO, n_steps=6, batch_size=6),
    "PPO with memory": partial(us.PPO, n_steps=6, batch_size=12, policy="lstm"),
    "exploring PPO": partial(us.PPO, n_steps=6, batch_size=6, normalize_observation=True),
    "ActorCritic": partial(us.ActorCritic, n_steps=6),
    "traces": partial(us.ActorCritic, n_steps=6, traces=True, discount_state=True),
    "DQN": partial(us.DQN, n_steps=1, learning_starts=4, batch_size=4),
    "REINFORCE": partial(us.REINFORCE, n_steps=20),
    "QLearning": partial(us.QLearning, bins=11),
    "SARSA": partial(us.QLearning, bins=11, target="sarsa"),
}
REASONS = {"interrupted": (KeyboardInterrupt, 1), "a fault": (EnvironmentFault, -1)}


def transitions(agent) -> tuple[np.ndarray, np.ndarray]:
    """The last rollout's s_t and s_{t+1}, where no episode ended."""
    rollout = agent.collector.rollout
    before, after = rollout.observation[..., 0], rollout.next_observation()[..., 0]
    goes_on = rollout.valid & ~rollout.terminated
    return before[goes_on], after[goes_on]


@pytest.mark.parametrize("reason", REASONS)
@pytest.mark.parametrize("name", AGENTS)
def test_a_rollout_that_was_broken_off_leaves_an_agent_that_goes_on(
    name, reason, tmp_path, monkeypatch
):
    error, sign = REASONS[reason]
    monkeypatch.setattr(Count, "steps", 0)
    monkeypatch.setattr(Count, "fails_at", 39 * sign)
    agent = AGENTS[name](Count, n_envs=2, seed=3)
    with pytest.raises(error):
        agent.learn(120)
    agent.save(tmp_path / "agent")
    loaded = us.load(tmp_path / "agent", env=Count)
    for each in (agent, loaded):
        each.learn(120, reset_num_timesteps=False)
        assert set(each.collector.episodes.last()[-6:, 1]) == {10}
    weights = loaded.policy.state_dict()
    assert all(torch.equal(part, weights[k]) for k, part in agent.policy.state_dict().items())
    if name == "PPO":  # where the scale is not another
        before, after = transitions(loaded)
        assert set(after - before) == {1}


def test_noise_that_lasts_for_a_rollout_ends_with_it(monkeypatch):
    monkeypatch.setattr(Count, "steps", 0)
    monkeypatch.setattr(Count, "fails_at", 39)
    monkeypatch.setattr(Count, "action_space", gymnasium.spaces.Box(-1, 1, (1,)))
    agent = us.PPO(Count, n_envs=2, n_steps=6, policy_kwargs={"scale": "exploration"})
    with pytest.raises(KeyboardInterrupt):
        agent.learn(120)
    assert agent.predict(np.zeros((5, 1), np.float32), deterministic=False)[0].shape == (5, 1)


@pytest.mark.parametrize(
    "make", [Count, *(partial(SyncVectorEnv, [Count] * 2, autoreset_mode=m) for m in AutoresetMode)]
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_an_evaluation_in_the_agents_own_environment_ends_its_episodes(make, wrapped, tmp_path):
    env = make()
    agent = us.PPO(env, n_steps=6, batch_size=6).learn(6 * agent_envs(env))
    same = env
    if wrapped and isinstance(env, gymnasium.Env):
        same = gymnasium.wrappers.TimeLimit(env, 100)
    us.evaluate_policy(agent, same, 1)
    us.evaluate_policy(agent, Count, 1)  # another: nothing becomes of that
    number = agent.collector.segment
    agent.learn(6, reset_num_timesteps=False)
    before, after = transitions(agent)
    assert set(after - before) == {1}
    assert before[: agent_envs(env)].tolist() == [0] * agent_envs(env)
    agent.learn(60, reset_num_timesteps=False)
    assert set(agent.collector.episodes.last()[:, 1]) == {10}
    assert agent.collector.segment == number + 1


def agent_envs(env) -> int:
    return getattr(env, "num_envs", 1)


class Gone(Count):
    """A simulator that is lost in its twentieth step."""

    lost = False

    def reset(self, *, seed=None, options=None):
        if Gone.lost:
            raise RuntimeError("the simulator is gone")
        return super().reset(seed=seed)

    def fail(self):
        Gone.lost = True
        raise RuntimeError("the simulator is gone")


def test_what_was_learned_is_saved_though_no_environment_answers(tmp_path, monkeypatch):
    monkeypatch.setattr(Count, "steps", 0)
    monkeypatch.setattr(Count, "fails_at", 20)
    monkeypatch.setattr(Gone, "lost", False)
    agent = us.PPO(Gone(), n_steps=6, batch_size=6)
    with pytest.raises(RuntimeError, match="is gone"):
        agent.learn(120)
    agent.save(tmp_path / "agent")
    loaded = us.load(tmp_path / "agent", env=Count)
    assert torch.equal(agent.engine.flat.value, loaded.engine.flat.value)
    env = SyncVectorEnv([Count] * 2)
    agent = us.PPO(env, n_steps=6, batch_size=6)
    us.evaluate_policy(agent, env, 1)
    env.close()
    agent.save(tmp_path / "closed")
    us.load(tmp_path / "closed", env=Count).learn(12)


def test_a_state_that_is_taken_up_is_gone_on_from_exactly(monkeypatch):
    agent = us.PPO(Count, n_envs=2, n_steps=6, batch_size=6).learn(24)
    tensors, meta = agent.state()
    tensors = {name: torch.as_tensor(part).clone() for name, part in tensors.items()}
    expected = agent.learn(24, reset_num_timesteps=False).engine.flat.value.clone()
    monkeypatch.setattr(Count, "steps", 0)
    monkeypatch.setattr(Count, "fails_at", 9)
    with pytest.raises(KeyboardInterrupt):
        agent.learn(24)
    agent.load_state(tensors, meta)
    assert not agent.collector.broken_off
    agent.learn(24, reset_num_timesteps=False)
    assert torch.equal(agent.engine.flat.value, expected)


class Slow(Count):
    """Interrupted in a reset, of those that are counted."""

    resets, fails_in = 0, 0

    def reset(self, *, seed=None, options=None):
        Slow.resets += 1
        if Slow.resets == Slow.fails_in:
            raise KeyboardInterrupt
        return super().reset(seed=seed)


@pytest.mark.parametrize("loaded", [False, True])
@pytest.mark.parametrize("fails_in", range(1, 7))
def test_an_interruption_in_a_reset_is_one_too(fails_in, loaded, tmp_path, monkeypatch):
    monkeypatch.setattr(Slow, "resets", 0)
    monkeypatch.setattr(Slow, "fails_in", 0)
    agent = us.PPO(Slow, n_envs=2, n_steps=10, batch_size=20, segment_length=20)
    if loaded:  # at a segment's end
        agent.learn(40).save(tmp_path / "agent")
        agent = us.load(tmp_path / "agent", env=Slow)
    monkeypatch.setattr(Slow, "fails_in", Slow.resets + fails_in)
    with pytest.raises(KeyboardInterrupt):
        agent.learn(400)
    agent.learn(200)
    assert set(agent.collector.episodes.last()[-6:, 1]) == {10}
    before, after = transitions(agent)
    assert set(after - before) == {1}
