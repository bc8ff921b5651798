"""Distributions: equal to torch's, sampled with the right frequencies from a given generator."""

from __future__ import annotations

import math

import pytest
import torch
from torch import distributions as reference

from upslope.policies.distributions import Categorical, DiagonalGaussian

Z = 4.5


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---- categorical ---------------------------------------------------------------------------------
def test_categorical_is_torchs():
    logits = 3 * torch.randn(50, 7, generator=seeded(0))
    action = torch.randint(7, (50,), generator=seeded(1))
    ours, theirs = Categorical(logits), reference.Categorical(logits=logits)
    torch.testing.assert_close(ours.log_prob(action), theirs.log_prob(action))
    torch.testing.assert_close(ours.entropy(), theirs.entropy())
    assert torch.equal(ours.mode(), theirs.mode)


def test_categorical_gradients_are_torchs():
    logits = torch.randn(20, 4, generator=seeded(2), dtype=torch.float64)
    action = torch.randint(4, (20,), generator=seeded(3))
    found = []
    for kind in (Categorical, lambda x: reference.Categorical(logits=x)):
        leaf = logits.clone().requires_grad_()
        distribution = kind(leaf)
        (distribution.log_prob(action) + 2 * distribution.entropy()).sum().backward()
        found.append(leaf.grad)
    torch.testing.assert_close(*found)


def test_categorical_by_hand():
    distribution = Categorical(torch.tensor([[0.0, math.log(3.0)]]))
    assert distribution.log_prob(torch.tensor([1])).item() == pytest.approx(math.log(0.75))
    expected = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert distribution.entropy().item() == pytest.approx(expected)


def test_categorical_frequencies():
    n, logits = 40_000, torch.tensor([1.0, -2.0, 0.0, 0.5, -6.0])
    p = logits.softmax(-1).double()
    drawn = Categorical(logits.expand(n, -1)).sample(seeded(4))
    assert drawn.shape == (n,)
    assert drawn.dtype == torch.int64
    share = torch.bincount(drawn, minlength=5).double() / n
    z = (share - p) / (p * (1 - p) / n).sqrt()
    assert z.abs().max() < Z


def test_categorical_rows_are_independent():
    """Two rows of one draw: the joint frequencies are the products."""
    n, logits = 20_000, torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    first, second = Categorical(logits.repeat(n, 1)).sample(seeded(5)).view(n, 2).unbind(1)
    p = torch.sigmoid(torch.tensor(1.0)).double()
    both = (first * (1 - second)).double().mean()
    assert abs(both - p * p) < Z * math.sqrt(p * p * (1 - p * p) / n)


def test_categorical_far_logits_are_defined():
    logits = torch.tensor([[0.0, -1000.0], [1000.0, 0.0]], requires_grad=True)
    distribution = Categorical(logits)
    assert torch.equal(distribution.sample(seeded(6)), torch.tensor([0, 0]))
    assert distribution.log_prob(torch.tensor([1, 1])).tolist() == [-1000, -1000]
    distribution.entropy().sum().backward()
    assert torch.equal(distribution.entropy().detach(), torch.zeros(2))
    assert torch.equal(logits.grad, torch.zeros(2, 2))


# ---- diagonal Gaussian ---------------------------------------------------------------------------
@pytest.mark.parametrize("per_row", [False, True])
def test_gaussian_is_torchs(per_row):
    mean = torch.randn(30, 3, generator=seeded(0))
    log_std = torch.randn(*((30, 3) if per_row else (3,)), generator=seeded(1))
    action = torch.randn(30, 3, generator=seeded(2))
    ours = DiagonalGaussian(mean, log_std)
    theirs = reference.Independent(reference.Normal(mean, log_std.exp().expand(30, 3)), 1)
    torch.testing.assert_close(ours.log_prob(action), theirs.log_prob(action))
    torch.testing.assert_close(ours.entropy(), theirs.entropy())
    assert torch.equal(ours.mode(), mean)


def test_gaussian_by_hand():
    """At the mean of a unit normal in two dimensions the density is 1 / (2 pi)."""
    distribution = DiagonalGaussian(torch.zeros(1, 2), torch.zeros(2))
    assert distribution.log_prob(torch.zeros(1, 2)).item() == pytest.approx(-math.log(2 * math.pi))
    assert distribution.entropy().item() == pytest.approx(math.log(2 * math.pi * math.e))


def test_gaussian_frequencies():
    n = 40_000
    mean, log_std = torch.tensor([1.0, -3.0]), torch.tensor([0.0, 1.0])
    drawn = DiagonalGaussian(mean.expand(n, 2), log_std).sample(seeded(3))
    assert drawn.shape == (n, 2)
    z = (drawn.double() - mean) / log_std.exp()
    assert (z.mean(0) * math.sqrt(n)).abs().max() < Z
    assert ((z.square().mean(0) - 1) * math.sqrt(n / 2)).abs().max() < Z
    assert abs(z.prod(1).mean() * math.sqrt(n)) < Z  # the dimensions are independent


def test_gaussian_log_prob_far_away_is_finite():
    distribution = DiagonalGaussian(torch.zeros(2, 1), torch.tensor([-10.0]))
    assert distribution.log_prob(torch.tensor([[1.0], [1e3]])).isfinite().all()


# ---- generators ----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "distribution",
    [Categorical(torch.zeros(100, 9)), DiagonalGaussian(torch.zeros(100, 2), torch.zeros(2))],
)
def test_only_the_given_generator_is_drawn_from(distribution):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = distribution.sample(seeded(7))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(distribution.sample(seeded(7)), first)
    assert not torch.equal(distribution.sample(seeded(8)), first)
