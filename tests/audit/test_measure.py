"""What is measured: by hand, against `quality`, and where there is no variance."""

from __future__ import annotations

import math

import pytest
import torch

from upslope.audit.measure import measure
from upslope.errors import ShapeError
from upslope.gradient import quality

F64 = torch.float64


def row(gradients, exact, **options):
    given = torch.tensor(gradients, dtype=F64), torch.tensor(exact, dtype=F64)
    return measure(*given, problem="p", estimator="e", **options)


def test_by_hand():
    """Mean 2, standard deviation √2, so a standard error of 1 beside an exact 1."""
    found = row([[1.0], [3.0]], [1.0], samples=3)
    assert found.z == pytest.approx(1)
    assert (found.scale, found.scale_error) == pytest.approx((2, 1))
    assert found.cosine == 1
    assert found.variance == pytest.approx(3 * 2)
    assert found.noise_scale == pytest.approx(6)
    assert found.signal_to_noise == pytest.approx(0.5)
    assert (found.samples, found.estimates) == (3, 2)


def test_two_coordinates():
    found = row([[1.0, 0.0], [3.0, 0.0], [2.0, 6.0]], [2.0, 0.0])
    assert found.scale == pytest.approx(1)
    assert found.z == pytest.approx(2 / math.sqrt(12 / 3))  # the second: mean 2, variance 12
    assert found.cosine == pytest.approx(1 / math.sqrt(2))
    assert found.variance == pytest.approx(1 + 12)
    assert found.noise_scale == pytest.approx(13 / 4)


def test_the_direction_of_the_gradient_is_tested_too():
    """Four coordinates that are each a little too large are too large together."""
    noise = torch.randn(400, 4, generator=torch.Generator().manual_seed(0), dtype=F64)
    noise = noise - noise.mean(0)
    error = noise.std(0) / 20
    found = row((1 + noise + 3 * error).tolist(), [1.0] * 4)
    assert found.z > 5


def test_the_trace_is_that_of_quality():
    gradients = torch.randn(50, 3, generator=torch.Generator().manual_seed(1), dtype=F64) + 2
    found = row(gradients.tolist(), [2.0] * 3, samples=8)
    assert found.variance == pytest.approx(quality(gradients, 8).trace)


def test_without_variance_only_rounding_is_forgiven():
    exact = [[1.0, 0.0]] * 2
    assert row(exact, [1.0, 0.0]).z == 0
    assert row(exact, [1.0, 1e-13]).z == 0
    assert row(exact, [1.0, 1e-6]).z == math.inf
    assert row(exact, [1.0, 0.0]).signal_to_noise == math.inf
    assert row([[0.0], [0.0]], [1.0]).verdict == "NOT AS DECLARED"


def test_nothing_finite_is_no_pass():
    assert not row([[math.nan], [1.0]], [1.0]).holds


@pytest.mark.parametrize(
    ("mean", "bias", "scale", "verdict"),
    [
        (1.0, "", 1.0, "unbiased"),
        (1.1, "", 1.0, "NOT AS DECLARED"),
        (1.1, "some", None, "biased as declared"),
        (1.0, "some", None, "no bias seen"),
        (0.75, "shrinks", 0.75, "biased as declared"),
        (0.85, "shrinks", 0.75, "NOT AS DECLARED"),
    ],
)
def test_verdicts(mean, bias, scale, verdict):
    found = row([[mean - 0.1], [mean + 0.1]] * 50, [1.0], bias=bias, declared_scale=scale)
    assert found.verdict == verdict
    assert found.holds is (verdict != "NOT AS DECLARED")


def test_shapes_are_refused():
    with pytest.raises(ShapeError, match="exact"):
        measure(torch.ones(5, 2), torch.ones(3), problem="p", estimator="e")
