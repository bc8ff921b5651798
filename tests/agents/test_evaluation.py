"""Evaluation: fixed shares of whole episodes, undiscounted, equal to a plain loop."""

from __future__ import annotations

import warnings
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import upslope as us
from tests.rollout.chain import Chain
from upslope.agents import evaluation
from upslope.agents.evaluation import run_episodes
from upslope.errors import ArgumentError


class Lengths(gymnasium.Env):
    """Episodes of 1 or 50 steps, equally likely, that pay 1 each step."""

    def __init__(self, long: int = 50) -> None:
        self.observation_space = gymnasium.spaces.Box(0, 1, (1,), np.float32)
        self.action_space = gymnasium.spaces.Discrete(2)
        self.long = long

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.left = int(self.np_random.choice([1, self.long]))
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.left -= 1
        return np.zeros(1, np.float32), 1.0, self.left == 0, False, {}


class Still:
    """Always takes action 0; counts what it was asked."""

    def __init__(self) -> None:
        self.rows = 0
        self.deterministic: set[bool] = set()
        self.starts: list[np.ndarray] = []

    def predict(self, observation, state=None, episode_start=None, deterministic=True, **_):
        self.rows += len(observation)
        self.deterministic.add(deterministic)
        self.starts.append(episode_start)
        return np.zeros(len(observation), np.int64), state


def plain(n_episodes: int, n_envs: int, seed: int) -> list[int]:
    """The lengths of the first episodes of each environment, its share of them."""
    found = []
    for i in range(n_envs):
        env, share = Lengths(), n_episodes // n_envs + (i < n_episodes % n_envs)
        for k in range(share):
            env.reset(seed=seed + i if k == 0 else None)
            found.append(env.left)
    return found


@pytest.mark.parametrize(("episodes", "n_envs"), [(7, 3), (12, 4), (1, 1), (5, 5), (3, 8), (9, 2)])
def test_episodes_are_those_of_a_plain_loop(episodes, n_envs):
    played = run_episodes(Still(), Lengths, episodes, seed=5, n_envs=n_envs)
    expected = plain(episodes, n_envs, 5)
    assert len(expected) == episodes
    assert played.returns.tolist() == played.lengths.tolist() == expected
    assert np.isnan(played.scores).all()
    mean, std = us.evaluate_policy(Still(), Lengths, episodes, seed=5, n_envs=n_envs)
    assert (mean, std) == pytest.approx((np.mean(expected), np.std(expected)))


def test_short_episodes_are_not_favoured():
    """The first 200 to end in 100 environments would be short ones nearly all: a mean of 9."""
    mean, _ = us.evaluate_policy(Still(), Lengths, 200, seed=1, n_envs=100)
    z = (mean - 25.5) / (24.5 / 200**0.5)
    assert abs(z) < 4.5


@pytest.mark.parametrize("mode", list(AutoresetMode), ids=str)
def test_environments_that_were_given_are_used_and_left_open(mode):
    env = SyncVectorEnv([lambda: Chain(limit=5)] * 3, autoreset_mode=mode)
    played = run_episodes(Still(), env, 7)
    assert played.returns.tolist() == [7] * 7
    assert played.lengths.tolist() == [5] * 7
    assert played.scores.tolist() == [5, 105, 205, 5, 105, 5, 105]
    env.reset()
    single = Chain(limit=5)
    assert us.evaluate_policy(Still(), single, 3) == (7, 0)


def test_returns_and_lengths_of_each_episode():
    found = us.evaluate_policy(Still(), Lengths, 4, seed=5, n_envs=2, return_episode_rewards=True)
    expected = plain(4, 2, 5)
    assert found == (expected, expected)
    assert [type(x) for x in (found[0][0], found[1][0])] == [float, int]


def test_arguments_are_passed_on():
    agent = Still()
    us.evaluate_policy(agent, Lengths, 2, deterministic=False, env_kwargs={"long": 1})
    assert agent.rows == 2
    assert agent.deterministic == {False}
    assert agent.starts[0].tolist() == [True, True]
    us.evaluate_policy(agent, "CartPole-v1", 150)  # at most 100 at once
    assert max(len(start) for start in agent.starts) == 100


def test_an_episode_starts_where_one_ended():
    agent = Still()
    us.evaluate_policy(agent, lambda: Chain(limit=2), 3, n_envs=1)
    assert [start.tolist() for start in agent.starts] == [[True], [False]] * 3


def test_the_same_seed_gives_the_same_episodes():
    agent = us.PPO("CartPole-v1")
    found = [
        us.evaluate_policy(agent, "CartPole-v1", 5, seed=seed, return_episode_rewards=True)
        for seed in (1, 1, 2)
    ]
    assert found[0] == found[1]
    assert found[0] != found[2]


@pytest.mark.parametrize("episodes", [0, -3])
def test_no_episodes_are_refused(episodes):
    with pytest.raises(ArgumentError, match=f"n_eval_episodes={episodes}: .* at least 1"):
        us.evaluate_policy(Still(), Lengths, episodes)


def test_an_unknown_environment_is_refused():
    with pytest.raises(ArgumentError, match="mean 'CartPole-v1'"):
        us.evaluate_policy(Still(), "CartPoel-v1", 3)


def test_an_episode_that_may_never_end_is_warned_of(monkeypatch):
    monkeypatch.setattr(evaluation, "LONG", 40)
    monkeypatch.setattr(evaluation, "ENDLESS", "an episode of 40 steps")
    with pytest.warns(UserWarning, match="an episode of 40 steps") as said:
        us.evaluate_policy(Still(), lambda: Chain(limit=41), 2, n_envs=1)
    assert len(said) == 2
    us.evaluate_policy(Still(), lambda: Chain(limit=39), 2, n_envs=1)  # warnings are errors here


@pytest.mark.parametrize("limits", [{"score_limit": 1}, {"max_episode_steps": 60}])
def test_one_that_is_limited_is_not(limits, monkeypatch):
    monkeypatch.setattr(evaluation, "LONG", 10)  # frames, in which a bird that is still has not hit
    for some, warned in ((limits, False), ({}, True)):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            us.evaluate_policy(Still(), "upslope/FlappyBird-v0", 2, env_kwargs=some)
        assert bool(said) == warned


class Telling(Chain):
    """Says something under "score" at the end of its episodes."""

    score: Any = None

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        *found, info = super().step(action)
        return *found, {**info, "score": self.score}


WORDS = {"text": "3:2", "nothing": None, "list": [1, 2], "array": np.zeros(3), "dict": {"home": 3}}


@pytest.mark.parametrize("score", WORDS)
@pytest.mark.parametrize("mode", AutoresetMode)
def test_what_is_no_number_is_no_score(score, mode, monkeypatch):
    monkeypatch.setattr(Telling, "score", WORDS[score])
    env = SyncVectorEnv([Telling] * 2, autoreset_mode=mode)
    agent = us.PPO(env, n_steps=16, batch_size=16).learn(64)
    assert "episode_score" not in agent.collector.episodes.summary()
    assert agent.collector.episodes.ended > 0
    assert np.isnan(run_episodes(agent, env, 3).scores).all()
    monkeypatch.setattr(Telling, "score", 7)
    assert run_episodes(agent, env, 3).scores.tolist() == [7] * 3


class Reminder(gymnasium.Env):
    """Three steps, of which the last observes 5; pays the action."""

    observation_space = gymnasium.spaces.Box(-10, 10, (1,), np.float32)
    action_space = gymnasium.spaces.Box(-5, 5, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        self.t = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.t += 1
        observation = np.full(1, 5 * (self.t == 3), np.float32)
        return observation, float(action[0]), self.t == 3, False, {}


@pytest.mark.parametrize("mode", AutoresetMode)
@pytest.mark.parametrize("policy", ["lstm", "gru"])
def test_memory_begins_anew_with_every_episode(policy, mode):
    agent = us.PPO(Reminder, n_envs=2, n_steps=8, policy=policy, engine="torch")
    agent.policy.actor[-1].weight.data.mul_(300)  # so that what is remembered shows
    env = SyncVectorEnv([Reminder] * 2, autoreset_mode=mode)
    returns, lengths = us.evaluate_policy(agent, env, 6, return_episode_rewards=True)
    assert len(set(returns)) == 1
    assert lengths == [3] * 6
