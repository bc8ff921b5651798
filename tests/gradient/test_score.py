"""The score: its mean of 0, its covariance, the natural gradient, and what autograd is asked."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from torch.distributions import Categorical, Gamma, Normal

from upslope.errors import ArgumentError, ShapeError
from upslope.gradient import expectation, fisher_information, score
from upslope.gradient.score import depends_on, leaves


def leaf(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64, requires_grad=True)


def test_by_hand():
    """N(μ, σ): the score is z / σ in μ and (z² - 1) / σ in σ."""
    mean, deviation = leaf(1.0), leaf(2.0)
    x = torch.tensor([1.0, 5.0, -2.0]).double()
    z = (x - 1) / 2
    found = score(Normal(mean, deviation).log_prob(x), [mean, deviation])
    torch.testing.assert_close(found, torch.stack([z / 2, (z * z - 1) / 2], 1))


def test_row_by_row_is_autograd_sample_by_sample():
    weight = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).double()
    weight.requires_grad_()
    bias, unused = leaf(0.1, 0.2, 0.3, -1), leaf(1.0)
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(1)).double()
    log_prob = Categorical(logits=x @ weight + bias).log_prob(torch.tensor([0, 3, 1, 1, 2]))
    found = score(log_prob, [weight, bias, unused])
    assert found.shape == (5, 12 + 4 + 1)
    for row, one in zip(found, log_prob, strict=True):
        parts = torch.autograd.grad(one, [weight, bias], retain_graph=True)
        torch.testing.assert_close(row[:16], torch.cat([g.flatten() for g in parts]))
        assert row[16] == 0


def test_in_several_chunks(monkeypatch):
    monkeypatch.setattr(sys.modules["upslope.gradient.score"], "ELEMENTS_AT_ONCE", 50)
    mean = leaf(1.0)
    x = torch.arange(23).double()
    torch.testing.assert_close(score(Normal(mean, 1.0).log_prob(x), [mean])[:, 0], x - 1)


def test_a_node_that_cannot_be_batched():
    class Odd(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return 2 * x

        @staticmethod
        def backward(ctx, grad):
            return torch.from_numpy(2 * grad.numpy())  # no batching rule for this

    theta = leaf(1.0, 2.0)
    torch.testing.assert_close(score(Odd.apply(theta), [theta]), 2 * torch.eye(2).double())


@pytest.mark.parametrize("make", [lambda t: Normal(t[0], t[1]), lambda t: Gamma(t[0], t[1])])
def test_the_mean_score_is_zero_and_its_covariance_the_fisher_information(make):
    torch.manual_seed(0)
    theta, n = leaf(1.3, 0.8), 40_000
    rows = theta.detach().expand(n, 2).clone().requires_grad_()
    distribution = make(rows.T)
    log_prob = distribution.log_prob(distribution.sample())
    (s,) = torch.autograd.grad(log_prob.sum(), rows)  # each row has its own parameters
    assert (s.mean(0).abs() < 4.5 * s.std(0) / math.sqrt(n)).all()
    if make(theta).__class__ is Normal:
        exact = torch.diag(torch.tensor([1, 2]).double() / 0.64)
    else:
        shape, rate = theta.tolist()
        trigamma = torch.polygamma(1, theta.detach()[0]).item()
        exact = torch.tensor([[trigamma, -1 / rate], [-1 / rate, shape / rate**2]]).double()
    products = s[:, :, None] * s[:, None, :]
    found = fisher_information(s)
    torch.testing.assert_close(found, products.mean(0))
    assert ((found - exact).abs() < 4.5 * products.std(0) / math.sqrt(n) + 1e-12).all()


def test_natural_gradient_of_a_softmax():
    """θ = (0, 1, -1), f = (1, 2, 5): F⁺ ∇J is f less its mean, (-5/3, -2/3, 7/3)."""
    theta, f = leaf(0, 1, -1), torch.tensor([1.0, 2, 5]).double()
    policy = Categorical(logits=theta)
    (gradient,) = torch.autograd.grad(expectation(lambda a: f[a], policy, 1), theta)
    truth = [-0.25093558007050, -0.01687267164465, 0.26780825171515]
    assert gradient.tolist() == pytest.approx(truth, abs=1e-14)
    policy = Categorical(logits=theta)  # anew: the graph of the first is spent
    rows = score(policy.log_prob(torch.arange(3)), [theta])
    fisher = (policy.probs[:, None] * rows).T @ rows
    natural = torch.linalg.pinv(fisher.detach(), hermitian=True) @ gradient
    torch.testing.assert_close(natural, torch.tensor([-5, -2, 7]).double() / 3)


def test_reward_one_is_maximum_likelihood_whose_gradient_is_zero_on_average():
    theta = leaf(0.3, -1.0, 0.7)
    found = expectation(lambda a: torch.ones(len(a)), Categorical(logits=theta), 1)
    (slope,) = torch.autograd.grad(found, theta)
    assert found.item() == pytest.approx(1)
    assert slope.abs().max() < 1e-15


def test_what_autograd_knows():
    a, b = leaf(1.0), leaf(2.0)
    middle = a * 2
    result = middle.exp() + b
    assert {id(x) for x in leaves(result)} == {id(a), id(b)}
    assert leaves(a)[0] is a
    assert leaves(torch.ones(2)) == []
    assert depends_on(result, middle)
    assert depends_on(result, b)
    assert not depends_on(b * 2, middle)
    assert not depends_on(b * 2, a)


def test_parameters_are_tensors_in_a_sequence():
    theta = torch.zeros(3, requires_grad=True)
    log_prob = Categorical(logits=theta).log_prob(torch.tensor([0, 1]))
    for wrong in (theta, [1.0], [theta, None]):
        with pytest.raises(ArgumentError, match="parameters takes a sequence of tensors"):
            score(log_prob, wrong)
    with pytest.raises(ArgumentError, match="that require a gradient, got one without"):
        score(log_prob, [theta, torch.zeros(2)])


def test_refusals():
    theta = leaf(1.0)
    with pytest.raises(ArgumentError, match="log_prob takes at least one sample"):
        score(torch.zeros(0), [theta])
    with pytest.raises(ArgumentError, match="parameters takes at least one tensor"):
        score(theta * 2, [])
    with pytest.raises(ArgumentError, match="log_prob takes a tensor that requires a gradient"):
        score(torch.ones(2), [theta])
    with pytest.raises(ArgumentError, match="score takes at least one row"):
        fisher_information(torch.zeros(0, 2))
    with pytest.raises(ShapeError, match="score takes"):
        fisher_information(torch.zeros(2))
