"""The expectation of any f under any torch distribution, such that autograd finds its gradient.

    score      1/n Σ ρ_i (f(x_i) - b_i) + b_i            x held still: the score-function estimator
    pathwise   1/n Σ f(x(ε_i, θ))                        x = rsample: the reparameterisation
    enumerate  Σ_x p(x; θ) f(x)                          exact, no variance: a finite support

    auto       enumerate where the support of a batch element is finite and not larger than
               max(n, 256);
               pathwise where the distribution can, and all that f does to the sample is known to
               be continuous, without numbers taken out of autograd's sight; else score

Every one has the value E[f], and the right gradient whether or not f itself depends on θ. One is
used, never two: score and pathwise together would count the gradient twice.

Mohamed et al. 2020, "Monte Carlo gradient estimation in machine learning", sections 4 and 5.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from typing import Any, Literal, overload

import torch
from torch import Tensor
from torch.distributions import Distribution

from upslope.errors import ArgumentError, ShapeError, suggest
from upslope.gradient.baselines import Constant
from upslope.gradient.estimate import Estimate
from upslope.gradient.estimators import (
    auto_terms,
    check_gradient,
    draw,
    log_prob_of,
    pathwise_terms,
    probable_terms,
    score_terms,
)
from upslope.gradient.importance import (
    importance_report,
    self_normalized_error,
    self_normalized_surrogate,
    self_normalized_terms,
)
from upslope.gradient.objective import evaluate
from upslope.gradient.support import finite_support, name_of, support_moves
from upslope.gradient.surrogate import surrogate

ESTIMATORS = ("score", "pathwise", "enumerate", "auto")
AUTO_ENUMERATES = 256


@overload
def expectation(
    f: Callable[[Tensor], Any],
    distribution: Distribution,
    n: int,
    *,
    estimator: str = ...,
    baseline: Callable[..., Tensor] | Tensor | float | None = ...,
    behaviour: Distribution | None = ...,
    self_normalized: bool = ...,
    standard_error: Literal[False] = ...,
) -> Tensor: ...


@overload
def expectation(
    f: Callable[[Tensor], Any],
    distribution: Distribution,
    n: int,
    *,
    estimator: str = ...,
    baseline: Callable[..., Tensor] | Tensor | float | None = ...,
    behaviour: Distribution | None = ...,
    self_normalized: bool = ...,
    standard_error: Literal[True],
) -> Estimate: ...


def expectation(
    f: Callable[[Tensor], Any],
    distribution: Distribution,
    n: int,
    *,
    estimator: str = "auto",
    baseline: Callable[..., Tensor] | Tensor | float | None = None,
    behaviour: Distribution | None = None,
    self_normalized: bool = False,
    standard_error: bool = False,
) -> Tensor | Estimate:
    """Return E[f(x)] over x ~ distribution, [*batch], such that autograd finds its gradient.

    f gets n samples at once, [n, *batch, *event], and returns a number for each, [n, *batch], from
    torch, NumPy or a list; f may depend on the parameters itself. If it returns one number, or
    cannot take them at once, it gets one event after the other. Samples follow torch's global seed;
    `enumerate` draws none and takes any n.

    `baseline` (score only) is a baseline of this module, or a number or tensor [*batch]; with
    `behaviour` (score only) samples come from there and are weighted, `self_normalized` or not.
    With `standard_error` the result is an `Estimate`, else a tensor.

    Raises ArgumentError, in one sentence, where the answer would be wrong or nothing could be
    differentiated: a support that moves with a parameter (score, auto), no parameter that requires
    a gradient (score, pathwise), a pathwise f that autograd does not see through, or only in part;
    for a batch with no element or n < 1. Raises ShapeError for what f returns in another shape,
    NotFiniteError where it returns NaN or infinity.
    """
    if not callable(f):
        raise ArgumentError(f"f takes a function of the samples, got {type(f).__name__}")
    _check(distribution, n, estimator, standard_error)
    if baseline is not None and not callable(baseline):
        baseline = Constant(baseline)
    if behaviour is not None:
        return _weighted(
            f, distribution, n, estimator, baseline, behaviour, self_normalized, standard_error
        )
    if self_normalized:
        raise ArgumentError("self_normalized takes samples of a behaviour, got none")
    if baseline is not None and estimator in ("pathwise", "enumerate"):
        raise ArgumentError(f"baseline takes estimator='score', got {estimator!r}")

    points = None
    if estimator in ("enumerate", "auto") and baseline is None:
        limit = {} if estimator == "enumerate" else {"limit": max(n, AUTO_ENUMERATES)}
        points = finite_support(distribution, **limit)
    if points is not None:
        used, terms = "enumerate", probable_terms(f, distribution, points)
    elif estimator == "enumerate":
        raise ArgumentError(
            f"estimator='enumerate' takes a distribution whose support is finite and at most 2^20 "
            f"points, got {name_of(distribution)}; use 'score'"
        )
    elif estimator == "pathwise":
        used, terms = estimator, pathwise_terms(f, distribution, n)
    elif estimator == "score":
        used, terms = estimator, score_terms(f, distribution, n, baseline)
    else:
        used, terms = auto_terms(f, distribution, n, baseline)
    value = terms.sum(0) if used == "enumerate" else terms.mean(0)
    if not standard_error:
        return value
    spread = terms.detach().std(0) / math.sqrt(n) if used != "enumerate" else value.detach() * 0
    return Estimate(value=value, standard_error=spread, estimator=used, terms=terms)


def _weighted(
    f: Callable,
    distribution: Distribution,
    n: int,
    estimator: str,
    baseline: Callable | None,
    behaviour: Distribution,
    self_normalized: bool,
    standard_error: bool,
) -> Tensor | Estimate:
    """Return the estimate from samples of another distribution."""
    if estimator not in ("score", "auto"):
        raise ArgumentError(f"behaviour takes estimator='score', got {estimator!r}")
    if not isinstance(behaviour, Distribution):
        kind = type(behaviour).__name__
        raise ArgumentError(f"behaviour takes a torch.distributions.Distribution, got {kind}")
    if self_normalized and baseline is not None:
        raise ArgumentError("baseline takes no self_normalized estimate: no constant changes it")
    for name in ("batch_shape", "event_shape"):
        own, other = getattr(distribution, name), getattr(behaviour, name)
        if own != other:
            raise ShapeError(
                f"behaviour takes the {name} of distribution, {list(own)}, got {list(other)}"
            )
    if support_moves(distribution):
        raise ArgumentError(
            f"distribution takes a support that does not depend on a parameter, or the gradient "
            f"misses the moving boundary, got {name_of(distribution)}"
        )
    x = draw(behaviour, n)
    log_prob, reference = log_prob_of(distribution, x), log_prob_of(behaviour, x).detach()
    value = evaluate(f, x, log_prob)
    if estimator == "score":
        check_gradient("score", log_prob, value)
    if self_normalized:
        terms = self_normalized_surrogate(log_prob, value, reference=reference)
        share = (log_prob.detach() - reference).softmax(0)
        error = self_normalized_error(share, value.detach())
    else:
        terms = surrogate(log_prob, value, reference=reference, baseline=baseline)
        error = terms.detach().std(0) / math.sqrt(n) if standard_error else torch.zeros(())
    if not standard_error:
        return terms.mean(0)
    report = importance_report(log_prob, reference)
    average = terms.mean(0)
    if self_normalized:
        terms = self_normalized_terms(log_prob, value, reference)
    return Estimate(
        value=average, standard_error=error, estimator="score", importance=report, terms=terms
    )


def _check(distribution: Distribution, n: int, estimator: str, standard_error: bool) -> None:
    if not isinstance(distribution, Distribution):
        kind = type(distribution).__name__
        raise ArgumentError(f"distribution takes a torch.distributions.Distribution, got {kind}")
    if isinstance(n, bool) or not isinstance(n, numbers.Integral) or n < 1:
        raise ArgumentError(f"n takes a whole number of at least 1, got {n!r}")
    if estimator not in ESTIMATORS:
        raise ArgumentError(
            f"estimator takes one of {', '.join(map(repr, ESTIMATORS))}, got {estimator!r}"
            f"{suggest(estimator, ESTIMATORS)}; two at once would count the gradient twice"
        )
    if 0 in distribution.batch_shape:
        raise ArgumentError(
            f"distribution takes a batch with elements, got batch_shape "
            f"{list(distribution.batch_shape)}"
        )
    if standard_error and n < 2 and estimator != "enumerate":
        raise ArgumentError(f"n takes at least 2 for a standard error, got {n}")
