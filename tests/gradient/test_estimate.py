"""The standard error of a gradient: by hand, in groups, over a batch, and as it comes out."""

from __future__ import annotations

import math

import pytest
import torch
import torch.distributions as D

from upslope.gradient import Constant, estimate, expectation

F64 = torch.float64


def found(theta: torch.Tensor, n: int, **options):
    """E[x²] under N(μ, σ), with θ = (μ, σ) [*batch, 2]."""
    normal = D.Normal(theta[..., 0], theta[..., 1])
    return expectation(lambda x: x**2, normal, n, standard_error=True, **options)


def each(terms: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
    """Return the gradient of each sample's term, one pass for each, [n, *θ]."""
    return torch.stack([torch.autograd.grad(t.sum(), theta, retain_graph=True)[0] for t in terms])


@pytest.mark.parametrize("estimator", ["score", "pathwise"])
@pytest.mark.parametrize("n", [2, 5, 64])
def test_by_hand(estimator: str, n: int):
    """The standard deviation of the samples' own gradients, over sqrt(n)."""
    torch.manual_seed(n)
    theta = torch.tensor([1.0, 2.0], dtype=F64, requires_grad=True)
    whole = found(theta, n, estimator=estimator)
    rows = each(whole.terms, theta)
    slope = whole.gradient(theta)
    torch.testing.assert_close(slope.value, rows.mean(0))
    squares = sum((row - rows.mean(0)) ** 2 for row in rows)
    torch.testing.assert_close(slope.standard_error, (squares / (n - 1) / n).sqrt())
    value = whole.terms.detach()
    squares = sum((v - value.mean()) ** 2 for v in value)
    torch.testing.assert_close(whole.standard_error, (squares / (n - 1) / n).sqrt())


def test_a_batch_is_summed_before_its_spread_is_taken():
    torch.manual_seed(0)
    shared = torch.tensor([1.0, 2.0], dtype=F64, requires_grad=True)
    whole = found(shared.expand(3, 2), 7, estimator="score")
    rows = each(whole.terms, shared)
    slope = whole.gradient(shared)
    torch.testing.assert_close(slope.value, rows.mean(0))
    torch.testing.assert_close(slope.standard_error, rows.std(0) / math.sqrt(7))


def test_groups_of_unequal_size_by_a_double_loop(monkeypatch):
    """128 groups of 300 samples: sample i in group i mod 128, 44 of three and 84 of two."""
    monkeypatch.setattr(estimate, "MOST_GROUPS", 128)
    torch.manual_seed(1)
    theta = torch.tensor([1.0, 2.0], dtype=F64, requires_grad=True)
    whole = found(theta, 300, estimator="score")
    rows, groups = each(whole.terms, theta), 128
    total = torch.zeros(2, dtype=F64)
    for k in range(groups):
        mine = [rows[i] for i in range(300) if i % groups == k]
        total += len(mine) * (sum(mine) / len(mine) - rows.mean(0)) ** 2
    expected = (total / (groups - 1) / 300).sqrt()
    torch.testing.assert_close(whole.gradient(theta).standard_error, expected)


def test_it_is_the_spread_of_repeated_estimates():
    """Of 18 / n in the mean with the mean as baseline: what the estimates of 100 runs scatter."""
    torch.manual_seed(2)
    theta = torch.tensor([1.0, 1.0], dtype=F64, requires_grad=True)
    slopes = [found(theta, 64, estimator="score", baseline=Constant(2.0)).gradient(theta)
              for _ in range(100)]  # fmt: skip
    scatter = torch.stack([s.value for s in slopes]).std(0)
    claimed = torch.stack([s.standard_error for s in slopes]).square().mean(0).sqrt()
    assert claimed.tolist() == pytest.approx([(18 / 64) ** 0.5, (96 / 64) ** 0.5], rel=0.15)
    assert scatter.tolist() == pytest.approx(claimed.tolist(), rel=4.5 / math.sqrt(2 * 99))


def weighted(mu: torch.Tensor, n: int, shift: float = 0.0):
    """E[x² + μ x + shift] under N(μ, 1) by weights, from samples of N(0, 1.3)."""
    behaviour = D.Normal(torch.zeros((), dtype=F64), 1.3)
    return expectation(lambda x: x**2 + mu * x + shift, D.Normal(mu, 1.0), n, standard_error=True,
                       behaviour=behaviour, self_normalized=True)  # fmt: skip


def test_self_normalised_by_hand():
    """Σ v [(f - F)(s - Σ v s) + ∇f] and the spread of its terms less v ∇F, the delta method."""
    torch.manual_seed(3)
    mu = torch.tensor(0.4, dtype=F64, requires_grad=True)
    behaviour = D.Normal(torch.zeros((), dtype=F64), 1.3)
    x = behaviour.sample((50,))
    torch.manual_seed(3)
    slope = weighted(mu, 50).gradient(mu)
    m = mu.item()
    share = (D.Normal(m, 1.0).log_prob(x) - behaviour.log_prob(x)).softmax(0)
    f, score = x**2 + m * x, x - m
    centred = (f - share @ f) * (score - share @ score) + x
    torch.testing.assert_close(slope.value.item(), (share @ centred).item())
    rows = 50 * share * (centred - share @ centred)
    expected = (rows.square().sum() / 49 / 50).sqrt()
    torch.testing.assert_close(slope.standard_error.item(), expected.item())


def test_a_constant_is_not_seen_by_a_self_normalised_error():
    mu = torch.tensor(0.4, dtype=F64, requires_grad=True)
    found = []
    for shift in (0.0, 1000.0):
        torch.manual_seed(4)
        found.append(weighted(mu, 200, shift).gradient(mu))
    torch.testing.assert_close(found[0].value, found[1].value)
    torch.testing.assert_close(found[0].standard_error, found[1].standard_error)
