"""Baselines: their definitions by hand, and that each is as unbiased as it declares."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.distributions import Categorical, Normal

from upslope.errors import ArgumentError, ShapeError
from upslope.gradient import (
    Constant,
    Learned,
    LeaveOneOut,
    MovingAverage,
    Optimal,
    check_unbiased,
    expectation,
    score,
    surrogate,
)


def leaf(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64, requires_grad=True)


class Number(nn.Module):
    """A module without context: one number to learn."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.number = nn.Parameter(torch.full(shape, 0.7, dtype=torch.float64))

    def forward(self) -> torch.Tensor:
        return self.number


F = torch.tensor([1.0, 4, 10]).double()
LOG = torch.tensor([-1.0, -2, -3]).double()


# ---------------------------------------------------------------- definitions
def test_constant():
    assert Constant(2)(F, LOG).tolist() == [2, 2, 2]
    two = torch.ones(3, 2)
    assert Constant(torch.tensor([5.0, 6]))(two, two).tolist() == [[5, 6]] * 3


def test_leave_one_out():
    assert LeaveOneOut()(F, LOG).tolist() == [7, 5.5, 2.5]


def test_moving_average_is_lagged():
    baseline = MovingAverage(0.9)
    assert baseline(F, LOG).tolist() == [7, 5.5, 2.5]  # nothing before: leave-one-out
    assert baseline.average.item() == 5
    assert baseline(F + 10, LOG).tolist() == [5, 5, 5]
    assert baseline.average.item() == pytest.approx(0.9 * 5 + 0.1 * 15)
    assert MovingAverage(0.9)(F[:1], LOG[:1]).tolist() == [0]
    batch = MovingAverage(0.5)
    batch(torch.ones(4, 2), torch.ones(4, 2))
    assert batch.average.shape == (2,)


def test_optimal_by_the_definition():
    theta = leaf(0.3, -0.5, 0.9)
    action = torch.tensor([0, 2, 1, 1, 0])
    f = torch.tensor([1.0, 5, -2, 0.5, 3]).double()
    log_prob = Categorical(logits=theta).log_prob(action)
    weight = score(log_prob, [theta]).square().sum(1)
    found = Optimal()(f, log_prob)
    for i in range(5):
        others = [j for j in range(5) if j != i]
        expected = sum(weight[j] * f[j] for j in others) / sum(weight[j] for j in others)
        assert found[i].item() == pytest.approx(expected.item())


def test_optimal_of_a_batch_is_each_elements_own():
    theta = torch.randn(2, 3, generator=torch.Generator().manual_seed(0)).double().requires_grad_()
    action, f = torch.tensor([[0, 1], [2, 0], [1, 1]]), torch.arange(6).double().reshape(3, 2)
    both = Optimal()(f, Categorical(logits=theta).log_prob(action))
    for k in range(2):
        alone = Optimal()(f[:, k], Categorical(logits=theta[k]).log_prob(action[:, k]))
        torch.testing.assert_close(both[:, k], alone)


def test_learned_has_a_loss_of_its_own():
    module = Number()
    baseline = Learned(module)
    theta = leaf(0.0, 1.0)
    estimate = expectation(
        lambda a: 3.0 * a, Categorical(logits=theta), 8, estimator="score", baseline=baseline
    )
    estimate.backward()
    assert module.number.grad is None  # nothing of it in the estimate
    theta.grad = None
    baseline.loss().backward()
    assert module.number.grad is not None
    assert theta.grad is None


def test_learned_with_a_context():
    module = nn.Sequential(nn.Linear(2, 1), nn.Flatten(0)).double()
    context = torch.randn(3, 2).double()
    baseline = Learned(module).at(context)
    found = baseline(torch.ones(4, 3).double(), torch.ones(4, 3).double())
    torch.testing.assert_close(found, module(context).detach().expand(4, 3))
    assert not found.requires_grad
    assert baseline.loss().item() == pytest.approx((module(context) - 1).square().mean().item())
    each = Learned(module, torch.randn(5, 2).double())  # a context for each sample
    assert each(torch.ones(5).double(), torch.ones(5).double()).shape == (5,)


def test_learned_learns():
    torch.manual_seed(0)
    module = Number()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    baseline = Learned(module)
    for _ in range(60):
        expectation(lambda x: x + 3, Normal(leaf(0.0)[0], 0.1), 50, estimator="score",
                    baseline=baseline)  # fmt: skip
        optimizer.zero_grad()
        baseline.loss().backward()
        optimizer.step()
    assert module.number.item() == pytest.approx(3, abs=0.05)


# ---------------------------------------------------------------- declared and measured
FRESH = [
    lambda: Constant(1.7),
    lambda: LeaveOneOut(),
    lambda: MovingAverage(0.9),
    lambda: Optimal(),
    lambda: Learned(Number()),
]
NAMES = ["Constant", "LeaveOneOut", "MovingAverage", "Optimal", "Learned"]


@pytest.mark.parametrize("fresh", FRESH, ids=NAMES)
@pytest.mark.parametrize("n", [2, 3])
def test_unbiased_as_declared_on_a_finite_support(fresh, n):
    theta, f = leaf(0, 1, -1), torch.tensor([1.0, 2, 5]).double()
    report = check_unbiased(
        lambda log_prob, f: surrogate(log_prob, f, baseline=fresh()),
        Categorical(logits=theta),
        lambda a: f[a],
        n,
    )
    assert fresh().unbiased
    assert report.method == "enumeration"
    assert report.unbiased
    assert report.scale == pytest.approx(1, abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("fresh", FRESH, ids=NAMES)
def test_unbiased_as_declared_for_a_normal(fresh):
    mean, deviation = leaf(0.4), leaf(1.2)
    report = check_unbiased(
        lambda log_prob, f: surrogate(log_prob, f, baseline=fresh()),
        Normal(mean[0], deviation[0]),
        lambda x: x**3 - x,
    )
    assert report.method == "quadrature"
    assert report.unbiased


@pytest.mark.slow
def test_a_moving_average_with_its_memory_is_unbiased_too():
    theta, f = leaf(0, 1, -1), torch.tensor([1.0, 2, 5]).double()
    baseline = MovingAverage(0.8)
    report = check_unbiased(
        lambda log_prob, f: surrogate(log_prob, f, baseline=baseline),
        Categorical(logits=theta),
        lambda a: f[a],
    )
    assert report.method == "z-test"
    assert report.unbiased


# ---------------------------------------------------------------- the variance of one sample
EXACT = {"score": (30, 136), "mean": (18, 96), "optimal": (14, 64), "pathwise": (4, 12)}


def one_sample_gradients(kind: str, parameter: int, n: int) -> torch.Tensor:
    """∇ of n estimates of one sample each, x ~ N(1, 1), f = x²: a row has its own parameters."""
    rows = torch.ones(2, n, dtype=torch.float64, requires_grad=True)
    best = {0: 4.0, 1: 6.0}[parameter]  # E[s² f] / E[s²]
    baseline = {"mean": Constant(2.0), "optimal": Constant(best)}.get(kind)
    value = expectation(
        lambda x: x**2,
        Normal(rows[0], rows[1]),
        1,
        estimator="pathwise" if kind == "pathwise" else "score",
        baseline=baseline,
    )
    return torch.autograd.grad(value.sum(), rows)[0][parameter]


@pytest.mark.slow
@pytest.mark.parametrize("parameter", [0, 1])
@pytest.mark.parametrize("kind", EXACT)
def test_variance_of_one_sample_of_a_normal(kind, parameter):
    torch.manual_seed(1)
    n = 3_000_000
    found = one_sample_gradients(kind, parameter, n)
    variance = EXACT[kind][parameter]
    assert abs(found.mean().item() - 2) < 4.5 * math.sqrt(variance / n)
    assert found.var().item() == pytest.approx(variance, rel=0.05)


@pytest.mark.parametrize("kind", ["score", "mean", "optimal"])
def test_variance_of_one_sample_exactly(kind):
    """The same by quadrature, to rounding."""
    for parameter in (0, 1):
        numbers = [torch.ones((), dtype=torch.float64) for _ in range(2)]
        numbers[parameter].requires_grad_()
        best = {0: 4.0, 1: 6.0}[parameter]
        b = {"score": 0.0, "mean": 2.0, "optimal": best}[kind]
        report = check_unbiased(
            lambda log_prob, f, b=b: surrogate(log_prob, f, baseline=b),
            Normal(*numbers),
            lambda x: x**2,
            n=1,
        )
        assert report.unbiased
        assert report.exact.item() == pytest.approx(2, abs=1e-9)
        assert report.variance.item() == pytest.approx(EXACT[kind][parameter], rel=1e-9)


def test_the_cross_fitted_optimal_baseline_approaches_the_optimal_variance():
    """Of 1000 samples' gradients at once, 14 / n; without a baseline 30 / n."""
    torch.manual_seed(0)
    mean = leaf(1.0)
    for baseline, variance in ((Optimal(), 14), (None, 30), (LeaveOneOut(), 18)):
        found = [
            expectation(lambda x: x**2, Normal(mean[0], 1.0), 1000, estimator="score",
                        baseline=baseline, standard_error=True).gradient(mean)
            for _ in range(4)
        ]  # fmt: skip
        claimed = sum(e.standard_error.item() ** 2 * 1000 for e in found) / 4
        assert claimed == pytest.approx(variance, rel=0.25)


@pytest.mark.parametrize(
    ("t", "slope", "variance"), [(0.45, 0.025, 0.0159390625), (0.499, 0.0005, 0.0156251250)]
)
def test_bernoulli_numbers(t, slope, variance):
    """b ~ Bernoulli(σ(0)), f = (b - t)²; the baseline p f(0) + (1 - p) f(1) leaves no variance."""
    theta = leaf(0.0)[0]
    theta = theta.detach().requires_grad_()
    bernoulli = torch.distributions.Bernoulli(logits=theta)

    def f(b):
        return (b - t) ** 2

    exact = torch.autograd.grad(expectation(f, bernoulli, 1), theta)[0]
    assert exact.item() == pytest.approx(slope, abs=1e-15)
    plain = check_unbiased(surrogate, bernoulli, f, n=1)
    assert plain.variance.item() == pytest.approx(variance, abs=1e-12)
    best = 0.5 * f(0) + 0.5 * f(1)
    still = check_unbiased(lambda lp, f: surrogate(lp, f, baseline=best), bernoulli, f, n=1)
    assert still.unbiased
    assert still.variance.item() == pytest.approx(0, abs=1e-16)


# ---------------------------------------------------------------- refusals
def test_refusals():
    one = torch.ones(1)
    for baseline in (LeaveOneOut(), Optimal()):
        with pytest.raises(ArgumentError, match=r"takes at least 2 samples .* got \[1\]"):
            baseline(one, one)
    for decay in (-0.1, 1.1, math.nan, None):
        with pytest.raises(ArgumentError, match="decay takes a number from 0 to 1"):
            MovingAverage(decay)
    with pytest.raises(ArgumentError, match="b takes a number"):
        Constant("mean")
    average = MovingAverage(0.5)
    average(torch.ones(3, 2), torch.ones(3, 2))
    with pytest.raises(ShapeError, match=r"MovingAverage: .* \[2\], got \[4\]"):
        average(torch.ones(3, 4), torch.ones(3, 4))
    with pytest.raises(ArgumentError, match="module takes a torch module, got int"):
        Learned(3)
    with pytest.raises(ArgumentError, match="loss takes a baseline that an estimate has used"):
        Learned(Number()).loss()
    with pytest.raises(
        ShapeError, match=r"Learned: module returns .* \[\], or .* \[3\], got \[1\]"
    ):
        Learned(Number(1))(F, LOG)
