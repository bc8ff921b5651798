"""The two sides of an audit: the exact gradient of an expectation, and what an estimator expects.

    ∇ E_p[f] = ∇ Σ_x p(x; θ) f(x)             E[g] = Σ_{x_1 ... x_n} Π_i p(x_i) g(x_1 ... x_n)

as sums over a finite support, and for a normal p on a line as integrals: the first by a trapezoid
rule on 12 standard deviations to either side, which for smooth f is exact to rounding, the second
with Gauss-Hermite nodes in the place of the support. On the nodes E[s] = 0 holds exactly, so that a
baseline made of other samples is judged without error. What is neither is sampled.

Trefethen and Weideman 2014, "The exponentially convergent trapezoidal rule", section 5; Abramowitz
and Stegun 1964, equation 25.4.46 (Gauss-Hermite).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution, Normal

from upslope.errors import NotFiniteError
from upslope.gradient.estimators import draw, log_prob_of
from upslope.gradient.objective import evaluate
from upslope.gradient.score import flat_gradient, leaves
from upslope.gradient.support import finite_support
from upslope.gradient.surrogate import surrogate

MOST_TUPLES = 2048  # of which all are visited
MOST_NODES = 32  # of the quadrature; fewer where n-tuples of them are too many
LEAST_NODES = 8
GROUPS = 100  # of sampled gradients, whose means are compared


def exact_gradient(distribution: Distribution, f: Callable) -> Tensor | None:
    """Return ∇ E[f], [P], where the support is finite or a normal's line, else None."""
    points = finite_support(distribution)
    if points is not None:
        log_prob = log_prob_of(distribution, points)
        possible = log_prob > -math.inf
        points, log_prob = points[possible], log_prob[possible]
        total = (log_prob.exp() * evaluate(f, points, log_prob)).sum()
    elif type(distribution) is Normal:
        mean, deviation = distribution.loc.detach(), distribution.scale.detach()
        line = torch.linspace(-12, 12, 2**15 + 1, dtype=torch.float64).to(mean)
        points, step = mean + deviation * line, deviation * (24 / 2**15)
        log_prob = log_prob_of(distribution, points)
        total = step * (log_prob.exp() * evaluate(f, points, log_prob)).sum()
    else:
        return None
    return flat_gradient(total, leaves(log_prob))


def nodes_of(source: Distribution, n: int) -> tuple[Tensor, Tensor] | None:
    """Return points and weights whose n-tuples stand for n draws, where they are few enough."""
    points = finite_support(source, MOST_TUPLES)
    if points is not None:
        weight = log_prob_of(source, points).detach().exp()
        points, weight = points[weight > 0], weight[weight > 0]
        return (points, weight) if len(points) ** n <= MOST_TUPLES else None
    count = min(MOST_NODES, int(MOST_TUPLES ** (1 / n) + 1e-9))
    if type(source) is not Normal or count < LEAST_NODES:
        return None
    node, weights = np.polynomial.hermite.hermgauss(count)
    mean, deviation = source.loc.detach(), source.scale.detach()
    points = mean + deviation * math.sqrt(2) * torch.as_tensor(node).to(mean)
    return points, torch.as_tensor(weights / math.sqrt(math.pi)).to(mean)


def over_all_tuples(
    one: Callable[[Tensor, Tensor, Tensor], Tensor],
    log_prob: Tensor,
    objective: Tensor,
    points: Tensor,
    weight: Tensor,
    n: int,
    parameters: list[Tensor],
) -> tuple[Tensor, Tensor] | None:
    """Return mean and mean square of the gradient over all n-tuples of points, [P] each.

    None where `one` gives two answers to one tuple: it remembers other calls, or draws numbers.
    """

    def gradient(index: Tensor) -> Tensor:
        found = flat_gradient(one(log_prob[index], objective[index], points[index]), parameters)
        return _finite(found, points[index])

    some, other = torch.arange(n) % len(points), -torch.arange(1, n + 1) % len(points)
    first, _, again = gradient(some), gradient(other), gradient(some)
    if not torch.equal(first, again):
        return None
    mean, square = torch.zeros_like(first).double(), torch.zeros_like(first).double()
    for choice in itertools.product(range(len(points)), repeat=n):
        index = torch.tensor(choice)
        found, p = gradient(index), weight[index].prod()
        mean, square = mean + p * found.double(), square + p * found.double().square()
    return mean.to(first), square.to(first)


def mean_square(
    log_prob: Tensor, objective: Tensor, weight: Tensor, parameters: list[Tensor]
) -> Tensor:
    """Return Σ w g² of the gradients g of single points without a baseline, [P]."""
    square = weight.new_zeros(sum(p.numel() for p in parameters))
    for term, w in zip(surrogate(log_prob, objective), weight, strict=True):
        square = square + w * flat_gradient(term, parameters).square()
    return square


def sampled_mean(
    one: Callable[[Tensor, Tensor, Tensor], Tensor],
    distribution: Distribution,
    source: Distribution,
    f: Callable,
    n: int,
    repetitions: int,
    parameters: list[Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradient's mean over many estimates of n samples, its error, and the variance."""
    each, rows = repetitions // GROUPS, []
    for _ in range(GROUPS):
        x = draw(source, each * n)
        log_prob = log_prob_of(distribution, x)
        parts = zip(*(t.split(n) for t in (log_prob, evaluate(f, x, log_prob), x)), strict=True)
        mean = torch.stack([one(*part) for part in parts]).mean()
        rows.append(_finite(flat_gradient(mean, parameters), x))
    spread, estimate = torch.std_mean(torch.stack(rows), 0)
    return estimate, spread / math.sqrt(GROUPS), spread.square() * each


def sampled_gradient(
    distribution: Distribution, f: Callable, parameters: list[Tensor], samples: int
) -> tuple[Tensor, Tensor]:
    """Return ∇ E[f] by the score form with leave-one-out baseline, and its standard error."""
    rows = []
    for _ in range(GROUPS):
        x = draw(distribution, samples // GROUPS)
        log_prob = log_prob_of(distribution, x)
        objective = evaluate(f, x, log_prob)
        held = objective.detach()
        others = (held.sum() - held) / (len(x) - 1)
        terms = surrogate(log_prob, objective, baseline=others)
        rows.append(flat_gradient(terms.mean(), parameters))
    spread, mean = torch.std_mean(torch.stack(rows), 0)
    return mean, spread / math.sqrt(GROUPS)


def _finite(gradient: Tensor, sample: Tensor) -> Tensor:
    if not gradient.isfinite().all():
        raise NotFiniteError(
            f"surrogate_fn takes samples and returns what has a finite gradient, got NaN or inf "
            f"for samples such as {sample[0].tolist()}"
        )
    return gradient
