"""E1: the same seed twice, logging, evaluation, saving or video on or off: the same weights."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch

import upslope as us

pytestmark = pytest.mark.faults

ENVIRONMENTS = ("CartPole-v1", "Pendulum-v1", "upslope/FlappyBird-v0")


def trained(env: str = "CartPole-v1", callback: Any = None, seed: int = 0, **learn: Any) -> us.PPO:
    agent = us.PPO(env, seed=seed, n_envs=4, n_steps=32, batch_size=64, normalize_observation=True)
    return agent.learn(512, callback, **learn)


def weights(agent: us.PPO) -> torch.Tensor:
    return torch.cat([agent.engine.flat.value, agent.engine.flat.second_moment])


def seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)


def global_state() -> list[Any]:
    name, keys, *rest = np.random.get_state()  # noqa: NPY002
    return [random.getstate(), name, keys.tolist(), rest, torch.get_rng_state().tolist()]


@pytest.mark.parametrize("env", ENVIRONMENTS)
def test_the_same_seed_gives_the_same_weights(env):
    seed_everything(1)
    first = trained(env)
    seed_everything(2)
    again = trained(env)
    assert torch.equal(weights(first), weights(again))
    assert not torch.equal(weights(first), weights(trained(env, seed=1)))


@pytest.mark.parametrize("env", ENVIRONMENTS)
def test_no_global_generator_is_read_or_written(env):
    plain = weights(trained(env))
    seed_everything(3)
    before = global_state()
    agent = trained(env, eval_freq=256, n_eval_episodes=2)
    agent.predict(agent.collector.stream.observation, deterministic=False)
    assert global_state() == before
    stirred = trained(env, lambda agent, row: seed_everything(agent.iteration))
    assert torch.equal(weights(stirred), plain)


def saves(folder):
    return lambda agent, row: agent.save(folder / "agent") and None


def watches(agent: us.PPO, row: dict[str, float]) -> None:
    """What a video, a log or a curious user does."""
    observation = np.zeros((3, *agent.stream.observation_space.shape), np.float32)
    agent.predict(observation, deterministic=False)
    us.evaluate_policy(agent, agent.env, 2, deterministic=False)
    agent.state()


@pytest.mark.parametrize("env", ENVIRONMENTS)
@pytest.mark.parametrize(
    "learn",
    [
        {"progress_bar": True},
        {"eval_freq": 128, "n_eval_episodes": 3},
        {"callback": watches},
        {"callback": "save"},
    ],
    ids=["progress", "evaluation", "watching", "saving"],
)
def test_what_watches_changes_nothing(env, learn, tmp_path):
    if learn.get("callback") == "save":
        learn = {"callback": saves(tmp_path)}
    assert torch.equal(weights(trained(env, **learn)), weights(trained(env)))
