"""An agent loaded onto other environments keeps what it learned, and begins new experience."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch

import upslope as us

SETTINGS = {"n_envs": 4, "n_steps": 8, "batch_size": 16, "normalize_observation": True}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "agent"
    agent = us.PPO("CartPole-v1", **SETTINGS, normalize_reward=True).learn(200)
    agent.save(path)
    return agent, path


def make_cartpole():
    return gymnasium.make("CartPole-v1")


@pytest.mark.parametrize(
    "make",
    [
        lambda: gymnasium.make_vec("CartPole-v1", num_envs=3, vectorization_mode="sync"),
        make_cartpole,
        lambda: make_cartpole,
    ],
    ids=["vector", "single", "factory"],
)
def test_other_environments_are_taken_and_learning_goes_on(saved, make):
    agent, path = saved
    other = us.load(path, env=make())
    observation = np.array([0.1, -0.2, 0.03, 0.4], np.float32)
    assert other.predict(observation)[0] == agent.predict(observation)[0]
    moments = agent.collector.observation_normalizer.state_dict()
    found = other.collector.observation_normalizer.state_dict()
    assert all(np.array_equal(moments[name], found[name]) for name in moments)
    before = other.engine.flat.value.clone()
    assert torch.equal(before, agent.engine.flat.value)
    other.learn(100, reset_num_timesteps=False)
    assert other.num_timesteps >= 300
    assert not torch.equal(before, other.engine.flat.value)


def test_environments_with_other_spaces_are_refused(saved):
    with pytest.raises(us.errors.CheckpointError, match="observation_space"):
        us.load(saved[1], env="Acrobot-v1")


class Loop(gymnasium.Env):
    """Stays in one state and pays 1 a step."""

    observation_space = gymnasium.spaces.Discrete(4)
    action_space = gymnasium.spaces.Discrete(1)

    def __init__(self, state: int = 0) -> None:
        self.state = state

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.state, {}

    def step(self, action):
        return self.state, 1.0, False, False, {}


@pytest.mark.parametrize("traces", [False, True])
def test_what_an_actor_critic_keeps_of_each_environment_begins_anew(traces, tmp_path):
    settings = {"setting": "average", "traces": traces, "n_envs": 4, "n_steps": 5}
    agent = us.ActorCritic(Loop, **settings).learn(40)
    agent.save(tmp_path / "agent")
    other = us.load(tmp_path / "agent", env=Loop())
    assert other.average_reward == agent.average_reward != 0  # that is of the task
    assert all(not trace.any() for trace in ([other.traces.critic] if traces else []))
    other.learn(10, reset_num_timesteps=False)
    assert other.num_timesteps == 50


def test_what_sarsa_waited_for_is_not_told_to_other_environments(tmp_path):
    settings = {"target": "sarsa", "learning_rate": 0.5, "gamma": 0.5, "n_envs": 1}
    us.QLearning(Loop, **settings).learn(4).save(tmp_path / "agent")
    before = us.load(tmp_path / "agent", env=Loop(3)).table.values.clone().view(-1)
    other = us.load(tmp_path / "agent", env=Loop(3)).learn(2, reset_num_timesteps=False)
    after = other.table.values.view(-1)
    assert before[0] > 0
    assert torch.equal(after[:3], before[:3])
    assert after[3] > 0
    us.load(tmp_path / "agent", env=gymnasium.vector.SyncVectorEnv([Loop] * 3)).learn(6)
