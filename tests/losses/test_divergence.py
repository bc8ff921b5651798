"""Estimates of a divergence: published numbers, exact expectations, gradients, refusals."""

from __future__ import annotations

import math

import pytest
import torch

from upslope.errors import ArgumentError, ShapeError
from upslope.losses import kl_estimate

ESTIMATORS = ("k1", "k2", "k3")


@pytest.mark.parametrize(
    ("estimator", "mean", "spread"), [("k1", 1, 20), ("k2", 1.0025, 1.42), ("k3", 1, 1.42)]
)
def test_published_numbers(estimator, mean, spread):
    """q = N(0, 1), p = N(.1, 1): KL .005, mean and deviation over it; integrals on a fine grid."""
    x = torch.linspace(-12, 12, 20_001, dtype=torch.float64)
    log_q, log_p = (torch.distributions.Normal(m, 1.0).log_prob(x) for m in (0.0, 0.1))
    weight = log_q.exp() * (x[1] - x[0])
    k = kl_estimate(log_q, log_p, estimator)
    found = weight @ k
    deviation = (weight @ (k - found).square()).sqrt()
    assert found.item() / 0.005 == pytest.approx(mean, rel=1e-4)
    assert deviation.item() / 0.005 == pytest.approx(spread, rel=3e-3)


def test_by_hand():
    log_prob, reference = torch.tensor([-1.0, -3.0]).double(), torch.tensor([-2.0, -1.0]).double()
    expected = {
        "k1": [1, -2],
        "k2": [0.5, 2],
        "k3": [math.exp(-1) - 1 + 1, math.exp(2) - 1 - 2],
    }
    for estimator, numbers in expected.items():
        assert kl_estimate(log_prob, reference, estimator).tolist() == pytest.approx(numbers)
    assert torch.equal(kl_estimate(log_prob, reference), kl_estimate(log_prob, reference, "k3"))


@pytest.fixture
def policies():
    logits = torch.tensor([0.0, 1.0, -1.0], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([0.5, 0.2, -0.4], dtype=torch.float64).log_softmax(0)
    return logits, logits.log_softmax(0), reference


def kl(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    return (p.exp() * (p - q)).sum()


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_unbiased_where_it_says_so(policies, estimator):
    _, log_p, reference = policies
    expectation = (log_p.exp() * kl_estimate(log_p, reference, estimator)).sum()
    torch.testing.assert_close(expectation, kl(log_p, reference))


def test_the_gradients_are_those_that_it_names(policies):
    logits, log_p, reference = policies
    truth = {
        "k1": 0 * kl(log_p, reference),
        "k2": kl(log_p, reference),
        "k3": kl(reference, log_p),
    }
    for estimator, divergence in truth.items():
        mean = (log_p.detach().exp() * kl_estimate(log_p, reference, estimator)).sum()
        found, expected = (
            torch.autograd.grad(x, logits, retain_graph=True)[0] for x in (mean, divergence)
        )
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_reference_is_a_constant(policies, estimator):
    _, log_p, reference = policies
    reference.requires_grad_()
    kl_estimate(log_p, reference, estimator).sum().backward()
    assert reference.grad is None


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_zero_where_the_two_agree(estimator):
    x = -torch.rand(20)
    assert (kl_estimate(x, x, estimator) == 0).all()


def test_k3_keeps_its_digits_near_zero():
    """eᵈ - 1 - d of d = 1e-3 in single precision, where the sum as written has lost them."""
    found = kl_estimate(torch.tensor([0.0]), torch.tensor([1e-3]))
    assert found.item() == pytest.approx(5.0017e-7, rel=1e-3)


def test_k3_is_defined_far_away():
    far = kl_estimate(torch.tensor([-1000.0, 0.0]), torch.tensor([0.0, -1000.0]))
    assert far.tolist() == [math.inf, 999]


def test_refusals():
    x = torch.zeros(4)
    with pytest.raises(ShapeError, match="reference_log_prob takes"):
        kl_estimate(x, x[:, None])
    with pytest.raises(ArgumentError, match=r"estimator takes 'k1', 'k2' or 'k3', got 'K2' \(did"):
        kl_estimate(x, x, "K2")
