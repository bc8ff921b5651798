"""Is a surrogate's gradient the gradient of the expectation? An audit of anyone's estimator.

    exact = ∇ E_p[f(x)]        estimate = E_{x_1 ... x_n}[ ∇ mean_i surrogate(ln p(x_i), f(x_i)) ]

Both expectations are computed, not sampled, where the support is finite or p is a one-dimensional
normal. Else the estimate is sampled, and a z-test says whether it differs. `scale` and `cosine`
tell "0.95 times" from "wrong direction".
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from upslope.errors import ArgumentError, ShapeError
from upslope.gradient.both_sides import (
    GROUPS,
    exact_gradient,
    mean_square,
    nodes_of,
    over_all_tuples,
    sampled_gradient,
    sampled_mean,
)
from upslope.gradient.estimators import draw, log_prob_of
from upslope.gradient.objective import evaluate
from upslope.gradient.score import flat_gradient, leaves
from upslope.gradient.support import finite_support, name_of, support_moves
from upslope.gradient.surrogate import surrogate

LARGEST_Z = 4.5
ROUNDING = {torch.float64: 1e-11, torch.float32: 1e-5}  # relative to the terms of the sums
SAME = {torch.float64: 1e-7, torch.float32: 1e-2}  # relative: the nodes see the exact gradient


@dataclass(frozen=True, kw_only=True, eq=False)
class BiasReport:
    """What an estimator's expected gradient is, beside the exact one; `str` is one line."""

    unbiased: bool
    """Whether the two agree: to rounding, or within 4.5 standard errors of a z-test."""
    scale: float
    """<estimate, exact> / <exact, exact>: 1 where right, 0.95 where it shrinks; nan at exact 0."""
    cosine: float
    """Of the angle between the two: 1 where at most the length is wrong; nan where one is 0."""
    z_max: float
    """The largest deviation of a coordinate in standard errors; by sums 0 or, if biased, inf."""
    exact: Tensor
    """∇ E[f], flattened over all parameters, [P]; by a z-test without a formula, estimated too."""
    estimate: Tensor
    """The expected gradient of the surrogate, [P]."""
    variance: Tensor
    """The variance of the surrogate's gradient, one call with n samples, [P]."""
    method: str
    """"enumeration", "quadrature" or "z-test"."""
    parameters: tuple[Tensor, ...]
    """The leaves that `exact` and `estimate` are flattened over, in this order."""

    def __str__(self) -> str:
        """Return the verdict: unbiased, so many times the gradient, or another direction."""
        if self.unbiased:
            return f"unbiased ({self.method}, largest z {self.z_max:.2g})"
        facts = f"scale {self.scale:.4g}, cosine {self.cosine:.4g}, largest z {self.z_max:.3g}"
        if abs(self.cosine) > 0.999:
            return f"biased: {self.scale:.4g} times the exact gradient ({self.method}, {facts})"
        return f"biased: another direction ({self.method}, {facts})"


def check_unbiased(
    surrogate_fn: Callable[..., Tensor],
    distribution: Distribution,
    f: Callable[[Tensor], Any],
    n: int = 2,
    *,
    behaviour: Distribution | None = None,
    with_sample: bool = False,
    repetitions: int = 10_000,
    seed: int = 0,
) -> BiasReport:
    """Return whether the gradient of surrogate_fn is that of E[f(x)], x ~ distribution, and by how
    much not.

    `surrogate_fn(log_prob [n], objective [n])` returns [n] or a scalar; its mean is differentiated
    in every leaf that `log_prob` depends on. With `with_sample` it gets the sample [n, *event] as
    third argument, for estimators that need more of it (the steps of a trajectory). `behaviour` is
    what draws the samples, if not `distribution` itself. n is the size of one estimate, for
    baselines made of the other samples.

    A surrogate that keeps state between calls, or draws numbers itself, is not a function of the
    sample: it is sampled and tested in the order of the calls. A z-test makes `repetitions`
    estimates of n samples from `seed`, and leaves torch's global generator as it was.

    Raises ShapeError for a distribution with a batch shape or a result of another shape,
    ArgumentError where no parameter requires a gradient, the support moves with one, or a number is
    out of range; NotFiniteError where the surrogate's gradient is NaN or infinite.
    """
    for name, given in (("surrogate_fn", surrogate_fn), ("f", f)):
        if not callable(given):
            raise ArgumentError(f"{name} takes a function, got {type(given).__name__}")
    source = distribution if behaviour is None else behaviour
    _check(distribution, source, n, repetitions)
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise ArgumentError(f"seed takes a whole number, got {seed!r}")

    def one(log_prob: Tensor, objective: Tensor, sample: Tensor) -> Tensor:
        """Return the mean of the surrogate of one n-tuple."""
        given = (log_prob, objective, sample) if with_sample else (log_prob, objective)
        result = surrogate_fn(*given)
        if not isinstance(result, Tensor) or result.shape not in ((), (n,)):
            got = list(result.shape) if isinstance(result, Tensor) else type(result).__name__
            raise ShapeError(f"surrogate_fn takes {n} samples and returns [{n}] or [], got {got}")
        return result.mean()

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        truth = exact_gradient(distribution, f)
        nodes = nodes_of(source, n)
        if nodes is not None and truth is not None:
            points, weight = nodes
            log_prob = log_prob_of(distribution, points)
            objective = evaluate(f, points, log_prob)
            parameters = leaves(log_prob)
            ratio = (log_prob - log_prob_of(source, points)).detach().exp()
            plain = (weight * ratio * surrogate(log_prob, objective)).sum()
            reference = flat_gradient(plain, parameters)  # the exact one, as these nodes see it
            same = SAME.get(log_prob.dtype, 1.0)
            if (reference - truth).norm() <= same * (truth.norm() + reference.norm()):
                found = over_all_tuples(one, log_prob, objective, points, weight, n, parameters)
                if found is not None:
                    mean, square = found
                    # a surrogate whose baseline takes most of f away still rounds like f itself
                    bare = mean_square(log_prob, objective, weight * ratio, parameters)
                    bound = ROUNDING.get(log_prob.dtype, 1e-2) * (square.sqrt() + bare.sqrt())
                    method = "enumeration" if finite_support(source) is not None else "quadrature"
                    return _report(
                        truth,
                        mean,
                        square - mean**2,
                        (mean - reference).abs(),
                        bound,
                        method,
                        parameters,
                    )
        parameters = leaves(log_prob_of(distribution, draw(distribution, 1)))
        error = torch.zeros(())
        if truth is None:
            truth, error = sampled_gradient(distribution, f, parameters, 10 * n * repetitions)
        estimate, spread, variance = sampled_mean(
            one, distribution, source, f, n, repetitions, parameters
        )
        bound = LARGEST_Z * (spread.square() + error.square()).sqrt()
        deviation = (estimate - truth).abs()
        return _report(truth, estimate, variance, deviation, bound, "z-test", parameters)


# ---------------------------------------------------------------- the verdict
def _report(
    exact: Tensor,
    estimate: Tensor,
    variance: Tensor,
    deviation: Tensor,
    bound: Tensor,
    method: str,
    parameters: list[Tensor],
) -> BiasReport:
    within = deviation <= bound
    if method == "z-test":
        z = torch.where(deviation == 0, torch.zeros_like(bound), LARGEST_Z * deviation / bound)
        z_max = float(z.max())
    else:
        z_max = 0.0 if within.all() else math.inf
    size, norms = exact.square().sum(), exact.norm() * estimate.norm()
    return BiasReport(
        unbiased=bool(within.all()),
        scale=float(exact @ estimate / size) if size > 0 else math.nan,
        cosine=float((exact @ estimate / norms).clamp(-1, 1)) if norms > 0 else math.nan,
        z_max=z_max,
        exact=exact,
        estimate=estimate,
        variance=variance.clamp(min=0),
        method=method,
        parameters=tuple(parameters),
    )


def _check(distribution: Distribution, source: Distribution, n: int, repetitions: int) -> None:
    for name, d in (("distribution", distribution), ("behaviour", source)):
        if not isinstance(d, Distribution):
            kind = type(d).__name__
            raise ArgumentError(f"{name} takes a torch.distributions.Distribution, got {kind}")
        if d.batch_shape != ():
            raise ShapeError(
                f"{name} takes one without batch shape, got {list(d.batch_shape)}; make the batch "
                "an event with torch.distributions.Independent"
            )
    if isinstance(n, bool) or not isinstance(n, numbers.Integral) or n < 1:
        raise ArgumentError(f"n takes a whole number of at least 1, got {n!r}")
    if not isinstance(repetitions, int) or repetitions < GROUPS:
        raise ArgumentError(f"repetitions takes a whole number from {GROUPS}, got {repetitions!r}")
    if support_moves(distribution):
        raise ArgumentError(
            "distribution takes a support that does not depend on a parameter, "
            f"got {name_of(distribution)}"
        )
    with torch.random.fork_rng(devices=[]):
        if not log_prob_of(distribution, draw(distribution, 1)).requires_grad:
            raise ArgumentError("distribution takes a parameter that requires a gradient, got none")
