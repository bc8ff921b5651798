from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from upslope.errors import ArgumentError, CheckpointError
from upslope.rollout.normalizers import ObservationNormalizer, RewardNormalizer, RunningMoments


@given(st.lists(st.integers(0, 6), max_size=8), st.integers(0, 2**32 - 1))
def test_moments_are_those_of_all_rows_together(sizes, seed):
    rng = np.random.default_rng(seed)
    batches = [5e3 + rng.normal(size=(n, 3)) * rng.uniform(0.1, 10) for n in sizes]
    moments = RunningMoments((3,))
    for batch in batches:
        moments.update(batch)
    rows = np.concatenate([np.zeros((0, 3)), *batches])
    assert moments.count == len(rows)
    if len(rows):
        np.testing.assert_allclose(moments.mean, rows.mean(0), rtol=1e-13)
        np.testing.assert_allclose(moments.var, rows.var(0), rtol=1e-6, atol=1e-9)


def test_moments_keep_their_digits_far_from_zero():
    moments, rng = RunningMoments(), np.random.default_rng(0)
    rows = 1e8 + rng.normal(size=(1000, 4))
    for batch in rows:
        moments.update(batch)
    np.testing.assert_allclose(moments.var, rows.var(), rtol=1e-6)


@pytest.mark.parametrize("shape", [(), (3,), (2, 4, 4)])
def test_observation_is_centred_and_scaled(shape):
    rng, normalizer = np.random.default_rng(1), ObservationNormalizer(shape)
    batches = (3 + 2 * rng.normal(size=(20, 8, *shape))).astype(np.float32)
    valid = rng.random((20, 8)) < 0.7
    for batch, counted in zip(batches, valid, strict=True):
        normalizer.update(batch, counted)
    rows = batches[valid].astype(np.float64)
    result = normalizer(batches[0])
    assert result.dtype == np.float32
    expected = (batches[0] - rows.mean(0)) / np.sqrt(rows.var(0) + 1e-8)
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(normalizer(batches[0, 0]), result[0])  # one observation


def test_observation_is_clipped_and_left_alone():
    normalizer = ObservationNormalizer((1,), clip=2.0)
    normalizer.update(np.array([[-1.0], [1.0]]))
    observation = np.array([[5.0], [-5.0], [1.0]], np.float32)
    np.testing.assert_allclose(normalizer(observation), [[2], [-2], [1]], rtol=1e-6)
    assert observation.tolist() == [[5], [-5], [1]]


def test_whole_numbers_are_scaled_too():
    normalizer = ObservationNormalizer((1,))
    pixels = np.array([[0], [100], [200]], np.uint8)
    normalizer.update(pixels)
    assert normalizer(pixels)[:, 0] == pytest.approx([-(1.5**0.5), 0, 1.5**0.5])


def test_before_anything_has_varied_nothing_is_scaled():
    normalizer = ObservationNormalizer((2,))
    np.testing.assert_array_equal(normalizer(np.array([[3.0, -4.0]])), [[3, -4]])
    normalizer.update(np.array([[3.0, -4.0]]))
    np.testing.assert_array_equal(normalizer(np.array([[5.0, -4.0]])), [[2, 0]])
    rewards = RewardNormalizer(2, 0.99)
    assert rewards(np.ones(2), np.zeros(2, bool)).tolist() == [1, 1]


def test_calling_changes_no_statistics():
    normalizer = ObservationNormalizer((2,))
    normalizer.update(np.eye(2))
    before = normalizer.state_dict()
    normalizer(np.ones((5, 2)))
    for name, array in normalizer.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


# ---------------------------------------------------------------- rewards
def rollout(steps: int, n: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    valid = rng.random((steps, n)) < 0.8
    ended = (rng.random((steps, n)) < 0.2) & valid
    reward = np.where(valid, rng.normal(2, 3, (steps, n)), 0).astype(np.float32)
    return reward, ended, valid


def test_reward_is_divided_by_the_deviation_of_the_discounted_return():
    gamma, n = 0.9, 4
    normalizer, returns, running = RewardNormalizer(n, gamma), [], np.zeros(n)
    for reward, ended, valid in zip(*rollout(50, n), strict=True):
        scaled = normalizer(reward, ended, valid)
        for i in range(n):
            if valid[i]:
                running[i] = gamma * running[i] + reward[i]
                returns.append(running[i])
            if ended[i]:
                running[i] = 0
        expected = np.clip(reward / np.sqrt(np.var(returns) + 1e-8), -10, 10)
        np.testing.assert_allclose(scaled, expected, rtol=1e-5)
        assert scaled.dtype == np.float32
    assert normalizer.moments.count == len(returns)


def test_reward_rows_that_only_reset_change_nothing():
    """Two environments that step together, one row skipped: the statistics are those without it."""
    plain, skipping = RewardNormalizer(1, 0.9), RewardNormalizer(1, 0.9)
    no, yes = np.array([False]), np.array([True])
    for t, reward in enumerate([1.0, -2.0, 3.0, 0.5]):
        end = np.array([t == 1])
        plain(np.array([reward]), end, yes)
        skipping(np.array([reward]), end, yes)
        if t in (1, 2):
            skipping(np.array([0.0]), no, no)
    for name, array in plain.state_dict().items():
        np.testing.assert_array_equal(skipping.state_dict()[name], array)


def test_reward_is_clipped():
    normalizer = RewardNormalizer(4, 0.9, clip=1.5)
    result = normalizer(np.array([100.0, 0, 0, 0]), np.zeros(4, bool))
    assert result.tolist() == [1.5, 0, 0, 0]


def test_new_environments_have_no_return_yet():
    normalizer = RewardNormalizer(2, 0.9)
    normalizer(np.array([1.0, 3.0]), np.zeros(2, bool))
    before = normalizer.moments.state_dict()
    normalizer.start()
    assert normalizer.state_dict()["running_return"].tolist() == [0, 0]
    assert normalizer.moments.state_dict() == before


# ---------------------------------------------------------------- state
def test_reward_normaliser_continues_bit_for_bit():
    rows = list(zip(*rollout(40, 3), strict=True))
    one, other = RewardNormalizer(3, 0.99), RewardNormalizer(3, 0.99)
    for row in rows[:20]:
        one(*row)
    other.load_state_dict(one.state_dict())
    for row in rows[20:]:
        np.testing.assert_array_equal(one(*row), other(*row))
    for name, array in one.state_dict().items():
        np.testing.assert_array_equal(other.state_dict()[name], array)


def test_observation_normaliser_continues_bit_for_bit():
    rng = np.random.default_rng(0)
    one, other = ObservationNormalizer((3,)), ObservationNormalizer((3,))
    one.update(rng.normal(size=(7, 3)))
    other.load_state_dict(one.state_dict())
    for batch in rng.normal(size=(5, 7, 3)):
        np.testing.assert_array_equal(one(batch), other(batch))
        one.update(batch)
        other.update(batch)
        np.testing.assert_array_equal(one(batch), other(batch))


def test_state_is_a_copy():
    normalizer = RewardNormalizer(2, 0.9)
    state = normalizer.state_dict()
    normalizer(np.array([1.0, 2.0]), np.zeros(2, bool))
    assert state["count"] == 0
    assert state["running_return"].tolist() == [0, 0]
    normalizer.load_state_dict(state)
    normalizer(np.array([1.0, 2.0]), np.zeros(2, bool))
    assert state["running_return"].tolist() == [0, 0]
    state = normalizer.state_dict()
    normalizer.start()
    assert state["running_return"].tolist() == [1, 2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"mean": np.zeros(4)},
            r"'mean' .* takes float64 of shape \(3,\), got float64 of shape \(4,\)",
        ),
        ({"var": np.zeros(3, np.float32)}, "'var' .* got float32"),
        ({"extra": np.zeros(3)}, "takes .* got"),
        ({"count": None}, "takes .* got"),
    ],
)
def test_state_of_another_kind_is_refused_and_changes_nothing(change, message):
    normalizer = ObservationNormalizer((3,))
    normalizer.update(np.eye(3))
    before = normalizer.state_dict()
    state = {k: v for k, v in (before | change).items() if v is not None}
    with pytest.raises(CheckpointError, match=message):
        normalizer.load_state_dict(state)
    for name, array in normalizer.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


@pytest.mark.parametrize("name", ["clip", "epsilon"])
def test_settings(name):
    with pytest.raises(ArgumentError, match=f"{name} takes a number above 0, got 0"):
        ObservationNormalizer((3,), **{name: 0})
    with pytest.raises(ArgumentError, match=f"{name} takes a number above 0"):
        RewardNormalizer(3, 0.9, **{name: float("nan")})


def test_doubles_are_centred_before_they_are_rounded():
    rng, normalizer = np.random.default_rng(2), ObservationNormalizer((2,))
    rows = 1.7e9 + rng.normal(size=(500, 2))
    normalizer.update(rows)
    expected = (rows - rows.mean(0)) / rows.std(0)
    np.testing.assert_allclose(normalizer(rows), expected, rtol=1e-5, atol=1e-6)
    assert normalizer(rows).dtype == np.float32
