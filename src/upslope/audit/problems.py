"""The problems with one distribution: how to draw, and what is exact about them.

    ∇J = Σ_x p(x) [s f + ∇f]          tr Cov = Σ_x p(x) |s (f - b) + ∇f|² - |∇J|²

as sums over a finite support, for a normal as integrals on a line, by the trapezoid rule.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Distribution, Independent, Normal

from upslope.gradient.score import score
from upslope.gradient.support import finite_support

NODES = 4097  # on 12 standard deviations to either side
ROUNDING = 1e-12


@dataclass(frozen=True, kw_only=True, eq=False)
class Problem:
    """E[f(x)] under one distribution with parameters θ."""

    name: str
    """As it stands in the table."""
    theta: tuple[float, ...]
    """The parameters, P of them."""
    make: Callable[[Tensor], Distribution]
    """θ [*batch, P] -> the distribution, with that batch shape."""
    f: Callable[[Tensor, Tensor], Tensor]
    """(x [n, *batch, *event], θ) -> f(x) [n, *batch]; may depend on θ itself."""
    behaviour: tuple[float, ...]
    """The parameters of the distribution that importance sampling draws from."""
    depends: bool = False
    """Whether f depends on θ, so that weighting log-probabilities is not enough."""
    known: dict[str, float] = field(default_factory=dict)
    """Variances of one sample that are known otherwise, by the name of the estimator."""

    def points(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return p(x) [K], p(x) / q(x) [K], f(x) [K] and the scores with ∇f [K, 2, P]."""
        theta = torch.tensor(self.theta, dtype=torch.float64, requires_grad=True)
        p, q = self.make(theta), self.make(torch.tensor(self.behaviour, dtype=torch.float64))
        x, width = finite_support(p), 1.0
        if x is None:
            line = torch.linspace(-12, 12, NODES, dtype=torch.float64)
            x = p.mean.detach() + p.stddev.detach() * line
            width = float(x[1] - x[0])
        log_prob, value = p.log_prob(x), self.f(x, theta)
        slope = torch.zeros(len(x), len(theta), dtype=torch.float64)
        if value.requires_grad:
            slope = score(value, [theta])
        rows = torch.stack([score(log_prob, [theta]), slope], 1)
        log_prob = log_prob.detach()
        return width * log_prob.exp(), (log_prob - q.log_prob(x)).exp(), value.detach(), rows


class Exact:
    """What is exact about a problem with one distribution."""

    def __init__(self, problem: Problem) -> None:
        self.p, self.ratio, self.f, rows = problem.points()
        self.score, self.slope = rows[:, 0], rows[:, 1]
        self.value = self.p @ self.f
        self.gradient = self._mean(self._terms(0.0))

    def constant_baseline(self, b: float) -> float:
        """Return the variance of one sample of s (f - b) + ∇f."""
        return self._trace(self._terms(b), torch.ones_like(self.p))

    def leave_one_out(self, n: int) -> float:
        """Return n times the variance of the estimate from n samples.

        With h = f - E[f] it is tr Var(s h + ∇f) + (tr E[s sᵀ] Var(f) + |E[s h]|²) / (n - 1): the
        error of the mean over the others is independent of the own sample.
        """
        h = self.f - self.value
        fisher = self.p @ self.score.square().sum(1)
        cross = self._mean(self.score * h[:, None]).square().sum()
        extra = fisher * (self.p @ h.square()) + cross
        return self.constant_baseline(float(self.value)) + float(extra) / (n - 1)

    def importance(self) -> float:
        """Return the variance of one sample of p/q (s f + ∇f) under q."""
        return self._trace(self._terms(0.0), self.ratio)

    def _terms(self, b: float) -> Tensor:
        return self.score * (self.f - b)[:, None] + self.slope

    def _mean(self, rows: Tensor) -> Tensor:
        return (self.p[:, None] * rows).sum(0)

    def _trace(self, rows: Tensor, ratio: Tensor) -> float:
        square = float((self.p * ratio) @ rows.square().sum(1))
        variance = square - float(self.gradient.square().sum())
        return variance if variance > ROUNDING * square else 0.0


# ---------------------------------------------------------------- the problems
def _bits(theta: Tensor) -> Distribution:
    return Independent(Bernoulli(logits=theta), 1)


def _square_of_sum(x: Tensor, theta: Tensor) -> Tensor:
    weight = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    return (x @ weight).square() - theta.square().sum(-1) / 2


REWARDS = (1.0, 2.0, 5.0)
REFERENCE = (0.2, 0.5, 0.3)  # probabilities that a divergence is taken to


def log_ratio(x: Tensor, theta: Tensor) -> Tensor:
    """Return ln π(x) - ln π₀(x), what the divergence from the reference is the mean of."""
    log_prob = theta.log_softmax(-1).expand(*x.shape, -1).gather(-1, x[..., None]).squeeze(-1)
    return log_prob - torch.tensor(REFERENCE, dtype=torch.float64).log()[x]


DISTRIBUTIONS = (
    Problem(
        name="normal: N(1, 1), f = x²",
        theta=(1.0, 1.0),
        make=lambda theta: Normal(theta[..., 0], theta[..., 1]),
        f=lambda x, theta: x**2,
        behaviour=(1.3, 1.2),
        known={"pathwise": 16.0},  # 4 σ² in the mean, 4 μ² + 8 σ² in the deviation
    ),
    Problem(
        name="bernoulli: σ(0), f = (b - .45)²",
        theta=(0.0,),
        make=lambda theta: Bernoulli(logits=theta[..., 0]),
        f=lambda x, theta: (x - 0.45) ** 2,
        behaviour=(0.4,),
    ),
    Problem(
        name="bandit: softmax, rewards 1 2 5",
        theta=(0.0, 1.0, -1.0),
        make=lambda theta: Categorical(logits=theta),
        f=lambda x, theta: torch.tensor(REWARDS, dtype=torch.float64)[x],
        behaviour=(0.0, 0.5, -0.3),
    ),
    Problem(
        name="bits: 3 bits, f = (w·x)² - |θ|²/2",
        theta=(0.5, -0.2, 1.0),
        make=_bits,
        f=_square_of_sum,
        behaviour=(0.3, 0.1, 0.7),
        depends=True,
    ),
    Problem(
        name="divergence: softmax, f = ln π/π₀",
        theta=(0.5, -0.5, 0.2),
        make=lambda theta: Categorical(logits=theta),
        f=log_ratio,
        behaviour=(0.2, 0.0, 0.1),
        depends=True,
    ),
)
