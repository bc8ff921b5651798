"""Advantages in C++ are those of the torch forms, to float32 rounding."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from upslope import returns
from upslope.errors import ArgumentError, ShapeError
from upslope.rollout import native_returns
from upslope.rollout.statistics import standardized

native = pytest.mark.skipif(not native_returns.BUILT, reason="no native part")


def rows(steps, n, seed):
    g = torch.Generator().manual_seed(seed)
    numbers = [torch.randn(steps, n, generator=g) for _ in range(3)]
    ends = torch.rand(steps, n, generator=g)
    numbers[2][ends < 0.2] = float("nan")  # not read where it terminated
    return [*numbers, ends < 0.2, (ends > 0.2) & (ends < 0.4)]


@native
@given(st.integers(1, 9), st.integers(1, 20), st.floats(0, 1), st.floats(0, 1), st.integers(0, 99))
@settings(max_examples=60)
def test_gae_is_that_of_returns(steps, n, gamma, gae_lambda, seed):
    given_rows, wanted = rows(steps, n, seed), {"gamma": gamma, "gae_lambda": gae_lambda}
    found = native_returns.gae(*given_rows, **wanted)
    torch.testing.assert_close(found, returns.gae(*given_rows, **wanted), atol=2e-6, rtol=2e-6)


def test_gae_refuses_as_returns_does():
    given_rows = rows(4, 3, 0)
    with pytest.raises(ArgumentError, match="gamma"):
        native_returns.gae(*given_rows, gamma=1.5, gae_lambda=0.9)
    with pytest.raises(ShapeError, match="next_value"):
        native_returns.gae(
            *given_rows[:2], given_rows[2][:1], *given_rows[3:], gamma=1, gae_lambda=1
        )


@native
@given(st.integers(1, 200), st.integers(1, 5), st.floats(-1e4, 1e4), st.integers(0, 99))
@settings(max_examples=60)
def test_standardized_is_that_of_torch(count, parts, centre, seed):
    g = torch.Generator().manual_seed(seed)
    advantage = centre + torch.randn(count + 10, generator=g)
    minibatches = torch.randperm(count + 10, generator=g)[:count].tensor_split(parts)
    found = standardized(advantage, minibatches)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native_returns, "BUILT", False)
        expected = standardized(advantage, minibatches)
    # the mean is rounded to the advantages' own precision
    torch.testing.assert_close(found, expected, atol=1e-5 + 3e-7 * abs(centre), rtol=1e-5)


@native
@given(st.integers(1, 9), st.integers(1, 20), st.floats(-1e4, 1e4), st.integers(0, 99))
@settings(max_examples=60)
def test_variances_are_those_of_torch(steps, n, centre, seed):
    g = torch.Generator().manual_seed(seed)
    x, y = (centre + torch.randn(steps, n, generator=g) for _ in range(2))
    valid = (torch.rand(steps, n, generator=g) < 0.7).numpy()
    valid[-1, -1] = True
    x[-1, -1], y[~torch.from_numpy(valid)] = centre, float("nan")  # what is not valid is not read
    found = native_returns.variances(x, y, valid)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native_returns, "BUILT", False)
        expected = native_returns.variances(x, y, valid)
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)


@native
@given(st.integers(1, 300), st.integers(1, 40), st.integers(1, 9), st.integers(0, 99))
@settings(max_examples=60)
def test_groups_and_squares_are_those_of_numpy(count, n_envs, groups, seed):
    g = torch.Generator().manual_seed(seed)
    rows = torch.randperm(4 * count, generator=g)[:count].numpy()
    vectors = 3 + torch.randn(groups, count, generator=g)

    def both():
        together, sizes = native_returns.grouped(rows, n_envs, groups)
        return together.tolist(), sizes.tolist(), native_returns.squares(vectors, 1 + sizes)

    *found, squares = both()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native_returns, "BUILT", False)
        *expected, expected_squares = both()
    assert found == expected
    assert squares == pytest.approx(expected_squares, rel=1e-5)
