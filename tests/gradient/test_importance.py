"""Importance sampling: effective sample size, self-normalisation, the book's example."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Categorical, Normal

from upslope.errors import ArgumentError, NotFiniteError, ShapeError
from upslope.gradient import (
    expectation,
    importance_report,
    self_normalized_surrogate,
    surrogate,
    trajectory_surrogate,
)


def log(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64).log()


def test_report_by_hand():
    report = importance_report(log(0.5, 0.2, 0.1), log(0.25, 0.2, 0.4))  # weights 2, 1, 1/4
    assert report.effective_sample_size == pytest.approx(3.25**2 / (4 + 1 + 1 / 16))
    assert report.largest_weight == pytest.approx(2)
    assert report.largest_share == pytest.approx(2 / 3.25)
    assert report.samples == 3
    assert str(report).startswith("effective sample size 2.086 of 3, largest weight 2 (61.5%")


def test_report_of_equal_and_of_no_weights():
    assert importance_report(log(1, 1), log(0.5, 0.5)).effective_sample_size == pytest.approx(2)
    none = importance_report(log(0, 0), log(0.5, 0.5))
    assert none.effective_sample_size == none.largest_weight == 0
    assert math.isnan(none.largest_share)
    huge = importance_report(log(1, 1) + 2000, log(1, 1))
    assert huge.effective_sample_size == pytest.approx(2)


@pytest.mark.parametrize("m", [0.3, 0.6, 1.0])
def test_effective_sample_size_of_shifted_normals(m):
    """ESS / n tends to exp(-m²), target N(0,1), behaviour N(m,1)."""
    torch.manual_seed(0)
    n = 400_000
    target, behaviour = Normal(torch.tensor(0.0).double(), 1.0), Normal(torch.tensor(m).double(), 1)
    x = behaviour.sample((n,))
    report = importance_report(target.log_prob(x), behaviour.log_prob(x))
    # the weights' fourth moment bounds the error: relative variance of Σw² is exp(4m²) / n
    tolerance = 4.5 * math.sqrt((math.exp(4 * m * m) + 4 * math.exp(m * m)) / n)
    assert report.effective_sample_size / n == pytest.approx(math.exp(-m * m), rel=tolerance)


def test_self_normalised_by_hand():
    log_prob = log(0.5, 0.2, 0.1).requires_grad_()
    f = torch.tensor([1.0, 2, 8]).double()
    terms = self_normalized_surrogate(log_prob, f, reference=log(0.25, 0.2, 0.4))
    mean = (2 * 1 + 1 * 2 + 0.25 * 8) / 3.25
    assert terms.mean().item() == pytest.approx(mean)
    found = torch.autograd.grad(terms.mean(), log_prob)[0]
    share = torch.tensor([2, 1, 0.25]).double() / 3.25
    torch.testing.assert_close(found, share * (f - mean))


def test_self_normalised_is_blind_to_a_constant():
    log_prob = log(0.5, 0.2, 0.1).requires_grad_()
    f, reference = torch.tensor([1.0, 2, 8]).double(), log(0.25, 0.2, 0.4)
    slopes = [
        torch.autograd.grad(
            self_normalized_surrogate(log_prob, f + c, reference=reference).mean(), log_prob
        )[0]
        for c in (0.0, 100.0)
    ]
    torch.testing.assert_close(*slopes)


def test_self_normalised_with_masked_actions():
    log_prob = log(0.5, 0, 0.5)
    f = torch.tensor([1.0, math.inf, 3]).double()  # what the target never does may be anything
    terms = self_normalized_surrogate(log_prob, f, reference=log(0.4, 0.2, 0.4))
    assert terms.mean().item() == pytest.approx(2)


def test_weighted_importance_sampling_of_the_book():
    """Sutton and Barto, example 5.5: left goes back with .9 or ends with reward 1, right ends.

    The target always goes left, the behaviour half the time. Weighted: exactly 1 from the first
    consistent episode on. Ordinary: its expectation is 1, its variance infinite.
    """
    generator = torch.Generator().manual_seed(0)
    rows, returns = [], []
    for _ in range(200):
        steps = []
        while True:
            left = bool(torch.rand((), generator=generator) < 0.5)
            steps.append(left)
            if not left or torch.rand((), generator=generator) < 0.1:
                break
        rows.append(steps)
        returns.append(1.0 if all(steps) else 0.0)
    target = torch.stack([log(*(float(a) for a in s)).sum() for s in rows])
    behaviour = torch.stack([log(*([0.5] * len(s))).sum() for s in rows])
    f = torch.tensor(returns).double()
    first = returns.index(1.0)
    assert 0 < first < 100
    with pytest.raises(ArgumentError, match="0/0"):
        self_normalized_surrogate(target[:first], f[:first], reference=behaviour[:first])
    for n in range(first + 1, 201):
        terms = self_normalized_surrogate(target[:n], f[:n], reference=behaviour[:n])
        assert terms.mean().item() == pytest.approx(1, abs=1e-12)
    ordinary = surrogate(target, f, reference=behaviour)
    assert ordinary.tolist() == pytest.approx(
        [2.0 ** len(s) * r for s, r in zip(rows, returns, strict=True)]
    )


@pytest.mark.slow
def test_expectation_with_a_behaviour():
    torch.manual_seed(1)
    mean = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    target, behaviour = Normal(mean, 1.0), Normal(torch.tensor(0.0).double(), 1.3)
    for self_normalized in (False, True):
        found = expectation(
            lambda x: x**2,
            target,
            20_000,
            behaviour=behaviour,
            self_normalized=self_normalized,
            standard_error=True,
        )
        assert abs(found.value.item() - 1.25) < 4.5 * found.standard_error.item()
        slope = found.gradient(mean)
        assert abs(slope.value.item() - 1.0) < 4.5 * slope.standard_error.item()
        assert 0.02 > found.standard_error.item() > 0.005
        assert 0.5 < found.importance.effective_sample_size / 20_000 < 1
        assert found.importance.largest_weight > 1


def test_the_self_normalised_error_is_its_spread():
    torch.manual_seed(2)
    target, behaviour = Normal(torch.tensor(0.5), 1.0), Normal(torch.tensor(0.0), 1.2)
    found = [
        expectation(
            torch.cos, target, 200, behaviour=behaviour, self_normalized=True, standard_error=True
        )
        for _ in range(400)
    ]
    spread = torch.stack([e.value for e in found]).std()
    claimed = torch.stack([e.standard_error for e in found]).mean()
    assert claimed.item() == pytest.approx(spread.item(), rel=4.5 / math.sqrt(800))


def test_refusals():
    x = torch.zeros(3)
    with pytest.raises(ShapeError, match="reference takes"):
        importance_report(x, x[:, None])
    with pytest.raises(NotFiniteError, match="reference takes finite"):
        self_normalized_surrogate(x, x, reference=x - math.inf)
    one, two = Categorical(torch.ones(2)), Categorical(torch.ones(3, 2))
    with pytest.raises(ShapeError, match="behaviour takes the batch_shape"):
        expectation(lambda a: a, one, 5, behaviour=two)
    with pytest.raises(ArgumentError, match="behaviour takes estimator='score', got 'pathwise'"):
        expectation(lambda a: a, one, 5, behaviour=one, estimator="pathwise")
    with pytest.raises(ArgumentError, match="self_normalized takes samples of a behaviour"):
        expectation(lambda a: a, one, 5, self_normalized=True)
    with pytest.raises(ArgumentError, match="baseline takes no self_normalized"):
        expectation(lambda a: a, one, 5, behaviour=one, self_normalized=True, baseline=1.0)
    with pytest.raises(ArgumentError, match="at least one step"):
        trajectory_surrogate(torch.zeros(0, 2), torch.zeros(0, 2), 0.9)
