"""A time limit is not an end: on a chain whose values are known, advantages equal the closed form.

In every autoreset mode, in this process and in worker processes.
"""

from __future__ import annotations

from contextlib import closing
from functools import cache, partial
from typing import NamedTuple

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from tests.rollout.chain import Chain, chain_value
from upslope.returns import gae
from upslope.rollout.autoreset import final_info
from upslope.rollout.make import make_stream
from upslope.rollout.normalizers import ObservationNormalizer, RewardNormalizer
from upslope.rollout.stream import Step
from upslope.rollout.workers import close_environments

STEPS = 37
# Three environments that end at different times; the last one also terminates.
SETTINGS = [{}, {"head_start": 2}, {"head_start": 3, "terminates": True}]
MODES = [mode.name for mode in AutoresetMode]
WAYS = ["sync made here", *[f"sync {mode}" for mode in MODES]]
WAYS += [pytest.param(f"async {mode}", marks=pytest.mark.slow) for mode in MODES]


class Columns(NamedTuple):
    """Steps of a stream, stacked: each field [T, N, ...]."""

    observation: np.ndarray
    reward: np.ndarray
    next_observation: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    valid: np.ndarray
    score: np.ndarray

    @property
    def ended(self) -> np.ndarray:
        return self.terminated | self.truncated


def columns(steps: list[Step], n: int) -> Columns:
    fields = [np.stack([getattr(step, name) for step in steps]) for name in Columns._fields[:-1]]
    scores = [final_info(step.info, "score") for step in steps]
    return Columns(*fields, np.stack([np.zeros(n) if s is None else s for s in scores]))


@cache
def played(way: str) -> Columns:
    """Step the chains STEPS times, in the way named."""
    if way == "sync made here":
        stream = make_stream(partial(Chain, head_start=2, terminates=True), 3)
        with closing(stream):
            return columns(run(stream), 3)
    kind, mode = way.split()
    makers = [partial(Chain, **settings) for settings in SETTINGS]
    if kind == "sync":
        env = SyncVectorEnv(makers, autoreset_mode=AutoresetMode[mode])
    else:
        env = AsyncVectorEnv(makers, autoreset_mode=AutoresetMode[mode], context="spawn")
    try:
        return columns(run(make_stream(env, 3)), 3)
    finally:
        close_environments(env)


def run(stream) -> list[Step]:
    stream.reset(3)
    return [stream.step(np.zeros(stream.n_envs, np.int64)) for _ in range(STEPS)]


def settings_of(way: str) -> list[dict]:
    return [{"head_start": 2, "terminates": True}] * 3 if way == "sync made here" else SETTINGS


def by_hand(settings: dict, n: int) -> list[tuple]:
    """Play one chain alone; n rows: s, r, the next s, terminated, truncated, score."""
    env, rows = Chain(**settings), []
    observation, _ = env.reset(seed=3)
    for _ in range(n):
        following, reward, terminated, truncated, info = env.step(0)
        row = (observation, reward, following, terminated, truncated and not terminated)
        rows.append((*row, info["score"]))
        observation = env.reset()[0] if terminated or truncated else following
    return rows


@pytest.mark.parametrize("way", WAYS)
def test_every_step_is_the_one_that_happened(way):
    found = played(way)
    for n, settings in enumerate(settings_of(way)):
        rows = np.flatnonzero(found.valid[:, n])
        for t, row in zip(rows, by_hand(settings, len(rows)), strict=True):
            observation, reward, following, terminated, truncated, score = row
            np.testing.assert_array_equal(found.observation[t, n], observation)
            np.testing.assert_array_equal(found.next_observation[t, n], following)
            assert found.reward[t, n] == reward
            assert (found.terminated[t, n], found.truncated[t, n]) == (terminated, truncated)
            if terminated or truncated:
                assert found.score[t, n] == score
    assert found.truncated.sum() >= 12
    assert found.terminated.sum() >= 1


@pytest.mark.parametrize("way", WAYS)
def test_rows_that_only_reset_are_no_steps(way):
    found = played(way)
    resets = np.zeros_like(found.valid)
    if "NEXT_STEP" in way:
        resets[1:] = found.ended[:-1]
    np.testing.assert_array_equal(found.valid, ~resets)
    assert not found.ended[resets].any()
    assert (found.reward[resets] == 0).all()
    assert (found.reward[~resets] >= 1).all()


def advantages(found: Columns, value, gamma: float, gae_lambda: float) -> np.ndarray:
    tensors = [
        found.reward.astype(np.float64),
        value(found.observation[..., 0]),
        value(found.next_observation[..., 0]),
        found.terminated,
        found.truncated,
    ]
    result = gae(*map(torch.from_numpy, tensors), gamma=gamma, gae_lambda=gae_lambda)
    return result.numpy()


@pytest.mark.parametrize("gae_lambda", [0.0, 0.95, 1.0])
@pytest.mark.parametrize("way", WAYS)
def test_advantage_is_zero_under_the_true_value(way, gae_lambda):
    """Every action is alike, so A = 0; a truncation taken for a death would give -gamma V."""
    gamma = 0.9
    found = played(way)
    counted = found.valid.copy()
    for n in range(3):  # what precedes a true termination in its episode is not worth V
        for t in np.flatnonzero(found.terminated[:, n]):
            counted[t - found.observation[t, n, 1].astype(int) : t + 1, n] = False
    found_advantage = advantages(found, lambda s: chain_value(s, gamma), gamma, gae_lambda)
    np.testing.assert_allclose(found_advantage[counted], 0, atol=1e-12)
    terminal = found.terminated
    expected = -gamma * chain_value(found.next_observation[..., 0], gamma)[terminal]
    np.testing.assert_allclose(found_advantage[terminal], expected, rtol=1e-12)


@pytest.mark.parametrize("gae_lambda", [0.0, 0.95, 1.0])
@pytest.mark.parametrize("way", WAYS)
def test_advantage_under_a_wrong_value_is_the_double_sum(way, gae_lambda):
    gamma = 0.9

    def wrong(state):
        return 7.0 - 3.0 * np.asarray(state, np.float64)

    found = played(way)
    result = advantages(found, wrong, gamma, gae_lambda)
    for n, settings in enumerate(settings_of(way)):
        rows = np.flatnonzero(found.valid[:, n])
        history = by_hand(settings, len(rows))
        for k in range(len(rows)):
            total, weight = 0.0, 1.0
            for observation, reward, following, terminated, truncated, _ in history[k:]:
                bootstrap = 0.0 if terminated else gamma * wrong(following[0])
                total += weight * (reward + bootstrap - wrong(observation[0]))
                weight *= gamma * gae_lambda
                if terminated or truncated:
                    break
            assert result[rows[k], n] == pytest.approx(total, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("way", WAYS)
def test_normalisers_see_steps_and_nothing_else(way):
    gamma, found = 0.9, played(way)
    rewards, observations = RewardNormalizer(3, gamma), ObservationNormalizer((3,))
    for t in range(STEPS):
        rewards(found.reward[t], found.ended[t], found.valid[t])
        observations.update(found.observation[t], found.valid[t])
    returns = []
    for n in range(3):
        running = 0.0
        for t in np.flatnonzero(found.valid[:, n]):
            running = gamma * running + float(found.reward[t, n])
            returns.append(running)
            running = 0.0 if found.ended[t, n] else running
    assert rewards.moments.count == len(returns) == found.valid.sum()
    np.testing.assert_allclose(rewards.moments.mean, np.mean(returns), rtol=1e-12)
    np.testing.assert_allclose(rewards.moments.var, np.var(returns), rtol=1e-12)
    seen = found.observation[found.valid].astype(np.float64)
    np.testing.assert_allclose(observations.moments.mean, seen.mean(0), rtol=1e-12)
    np.testing.assert_allclose(observations.moments.var, seen.var(0), rtol=1e-12)


def test_cartpole_vector_entry_point_tells_what_single_environments_tell():
    """CartPole's equations take each row's observation to its next one, also at an end."""
    single = gymnasium.make("CartPole-v1").unwrapped
    single.reset(seed=0)
    with closing(make_stream("CartPole-v1", 16, env_kwargs={"max_episode_steps": 30})) as stream:
        assert stream.backend == "vector_entry_point"
        stream.reset(1)
        rng, lengths, terminated, truncated = np.random.default_rng(0), np.zeros(16, int), 0, 0
        for _ in range(120):
            step = stream.step(rng.integers(0, 2, 16))
            lengths += step.valid
            for n in range(16):
                if not step.valid[n]:
                    assert step.reward[n] == 0
                    assert np.abs(step.next_observation[n]).max() <= 0.05  # a reset
                    assert not step.terminated[n]
                    assert not step.truncated[n]
                    continue
                single.state, single.steps_beyond_terminated = tuple(step.observation[n]), None
                following, reward, fallen, *_ = single.step(int(step.action[n]))
                np.testing.assert_allclose(step.next_observation[n], following, atol=1e-5)
                assert (step.reward[n], step.terminated[n]) == (reward, fallen)
                assert step.truncated[n] == (lengths[n] >= 30 and not fallen)
            ended = step.terminated | step.truncated
            lengths[ended] = 0
            terminated += step.terminated.sum()
            truncated += step.truncated.sum()
    assert terminated > 20
    assert truncated > 5
