"""Numbers of a rollout: standardised advantages, explained variance, the step's quality."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from upslope.gradient.quality import quality
from upslope.rollout.buffer import Chunks, Rollout
from upslope.rollout.statistics import explained_variance, means_of, standardized, step_quality


def test_standardized_by_hand():
    advantage = torch.tensor([1.0, 10, 3, 20, 5, 30])
    found = standardized(advantage, [torch.tensor([0, 2, 4]), torch.tensor([5, 3, 1])])
    z = math.sqrt(1.5)
    expected = torch.tensor([-z, -z, 0, 0, z, z])
    torch.testing.assert_close(found, expected)
    assert advantage.tolist() == [1, 10, 3, 20, 5, 30]


def test_standardized_has_mean_0_and_deviation_1_in_each_minibatch():
    advantage = 7 + 1e3 * torch.randn(100, generator=torch.Generator().manual_seed(0))
    minibatches = torch.randperm(100, generator=torch.Generator().manual_seed(1)).split(25)
    found = standardized(advantage, minibatches)
    for index in minibatches:
        assert abs(found[index].mean()) < 1e-6
        assert found[index].std(correction=0).item() == pytest.approx(1)


@given(st.floats(-1e6, 1e6, width=32), st.integers(1, 700))
@settings(max_examples=200)
def test_equal_advantages_say_nothing(constant, n):
    """Exactly 0: rounding would be blown up to the size of a real advantage."""
    found = standardized(torch.full((n,), constant), [torch.arange(n)])
    assert torch.equal(found, torch.zeros(n))


def test_rows_in_no_minibatch_are_0():
    found = standardized(torch.tensor([1.0, 2, math.nan]), [torch.tensor([0, 1])])
    torch.testing.assert_close(found, torch.tensor([-1.0, 1, 0]))


def rollout_of(value: list[float], target: list[float], valid: list[bool]) -> Rollout:
    rollout = Rollout(len(value), 1, ((1,), np.dtype(np.float32)), ((), np.dtype(np.int64)))
    rollout.value[:, 0], rollout.target[:, 0] = torch.tensor(value), torch.tensor(target)
    rollout.valid[:, 0] = valid
    return rollout


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([1, 2, 3, 99], 1),  # perfect, and an invalid row that is not looked at
        ([2, 2, 2, 99], 0),  # a constant
        ([3, 2, 1, 99], -3),  # worse than a constant
        ([11, 12, 13, 99], 1),  # a constant added is no variance
    ],
)
def test_explained_variance_by_hand(value, expected):
    rollout = rollout_of(value, [1, 2, 3, -99], [True, True, True, False])
    assert explained_variance(rollout) == pytest.approx(expected)


def test_explained_variance_of_a_constant_target_is_nan():
    assert math.isnan(explained_variance(rollout_of([1, 2], [3, 3], [True, True])))


def test_means_of_steps():
    history = [{"a": torch.tensor(a), "b": torch.tensor(b)} for a, b in [(1.0, 5.0), (4.0, 8.0)]]
    assert means_of(history) == {"a": 2.5, "b": 6.5}
    several = {"a": torch.tensor([1.0, 3.0]), "b": torch.tensor([4.0, 6.0])}
    assert means_of([several, {"a": torch.tensor([8.0]), "b": torch.tensor([2.0])}]) == {
        "a": 4,
        "b": 4,
    }


def test_step_quality_weighs_by_the_chunks_sizes():
    gradients = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)) + 2
    chunks = Chunks(torch.arange(15), torch.tensor([4, 9, 2]))
    expected = quality(gradients, torch.tensor([4, 9, 2])).signal_to_noise
    assert step_quality(gradients, chunks) == pytest.approx(expected, rel=1e-5)
    assert expected > 0
    opposite = torch.tensor([[1.0, 0], [-1, 0]])
    assert math.isnan(step_quality(opposite, Chunks(torch.arange(6), torch.tensor([3, 3]))))
