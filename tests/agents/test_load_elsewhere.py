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
