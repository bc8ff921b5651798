"""The estimators behind `expectation`: each returns its terms, [n, *batch], to be averaged.

score      ρ_i (f(x_i) - b_i) + b_i        pathwise   f(x(ε_i, θ))        enumerate  p(x) f(x)
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributions import Distribution

from upslope.errors import ArgumentError, ShapeError, UpslopeError
from upslope.gradient.objective import TAKES_ONE, evaluate
from upslope.gradient.score import depends_on, nodes
from upslope.gradient.support import is_discrete, name_of, support_moves
from upslope.gradient.surrogate import surrogate
from upslope.gradient.watch import Watch, watching


def score_terms(
    f: Callable, distribution: Distribution, n: int, baseline: Callable | None, plain: bool = False
) -> Tensor:
    """Return the surrogate of n samples that are held still."""
    if support_moves(distribution):
        raise ArgumentError(
            f"distribution takes a support that does not depend on a parameter, or the gradient "
            f"misses the moving boundary, got {name_of(distribution)}; use estimator='pathwise'"
        )
    x = draw(distribution, n)
    log_prob = log_prob_of(distribution, x)
    value = evaluate(f, x, log_prob)
    if plain and not log_prob.requires_grad:
        return value
    check_gradient("score", log_prob, value)
    return surrogate(log_prob, value, baseline=baseline)


def pathwise_terms(f: Callable, distribution: Distribution, n: int) -> Tensor:
    """Return f of n samples that autograd can follow back to the parameters."""
    if not distribution.has_rsample:
        raise ArgumentError(
            f"estimator='pathwise' takes a distribution with rsample, got {name_of(distribution)}; "
            "use 'score'"
        )
    if is_discrete(distribution):  # a straight-through sample
        raise ArgumentError(
            f"estimator='pathwise' takes a distribution without jumps, got "
            f"{name_of(distribution)}, whose values are separate points; use 'score'"
        )
    x = distribution.rsample(torch.Size([n]))
    value, watch = _through(f, x, distribution)
    if x.requires_grad and watch is None:
        raise ArgumentError(
            "estimator='pathwise' takes an f that autograd sees through, got a black box: what it "
            "returned carries no gradient of the sample; use 'score'"
        )
    if watch is not None and watch.reads and not _has_own_backward(value):
        raise ArgumentError(
            "estimator='pathwise' takes an f that autograd sees through, got one that is partly a "
            f"black box: it takes numbers of the sample by {min(watch.reads)}; use 'score'"
        )
    check_gradient("pathwise", x, value)
    return value


def _through(f: Callable, x: Tensor, distribution: Distribution) -> tuple[Tensor, Watch | None]:
    """Return f(x) of a live sample and what was seen; None if autograd lost sight of the sample."""
    shape = x.shape[: x.dim() - len(distribution.event_shape)]
    like = torch.empty(shape, dtype=x.dtype, device=x.device)
    if not x.requires_grad:
        return evaluate(f, x, like), None
    try:
        with warnings.catch_warnings(), watching(x) as watch:
            warnings.filterwarnings("ignore", "Converting a tensor with requires_grad=True")
            value = f(x)
    except UpslopeError:
        raise
    except TAKES_ONE as error:
        raise ArgumentError(
            f"estimator='pathwise' takes an f that autograd sees through, got one that raises "
            f"{type(error).__name__} for samples that require a gradient ({error}); use 'score'"
        ) from error
    if not isinstance(value, Tensor) or not value.requires_grad or not depends_on(value, x):
        return like, None
    return evaluate(lambda _: value, x, like), watch


def _has_own_backward(value: Tensor) -> bool:
    """Return whether f used a torch.autograd.Function, which may take numbers and has a slope."""
    return any(isinstance(node, torch.autograd.function.FunctionCtx) for node in nodes(value))


def probable_terms(f: Callable, distribution: Distribution, points: Tensor) -> Tensor:
    """Return p(x) f(x) of every x; what has probability 0 counts nothing, whatever f is there."""
    log_prob = log_prob_of(distribution, points)
    possible = log_prob.detach() > -math.inf
    rows = possible.reshape(len(points), -1).any(1)
    points, log_prob, possible = points[rows], log_prob[rows], possible[rows]
    return log_prob.exp() * evaluate(f, points, log_prob, None if possible.all() else possible)


def auto_terms(
    f: Callable, distribution: Distribution, n: int, baseline: Callable | None
) -> tuple[str, Tensor]:
    """Return the name and the terms of the first of pathwise and score that is right."""
    followed = distribution.has_rsample and not is_discrete(distribution)
    if baseline is None and followed and not support_moves(distribution):
        x = distribution.rsample(torch.Size([n]))
        if x.requires_grad:
            try:
                value, watch = _through(f, x, distribution)
            except ShapeError:
                raise
            except ArgumentError:
                watch = None
            if watch is not None and not watch.jumps:
                return "pathwise", value
    terms = score_terms(f, distribution, n, baseline, plain=True)
    return ("score" if terms.requires_grad else "plain"), terms


# ---------------------------------------------------------------- parts
def draw(distribution: Distribution, n: int) -> Tensor:
    """Return n samples; a copy, so that no transform's cache hands back how they were made."""
    return distribution.sample(torch.Size([n])).detach().clone()


def log_prob_of(distribution: Distribution, x: Tensor) -> Tensor:
    """Return ln p(x), [n, *batch], or one sentence where the distribution has none."""
    try:
        return distribution.log_prob(x)
    except NotImplementedError as error:
        raise ArgumentError(
            f"distribution takes one with log_prob, got {name_of(distribution)}"
        ) from error


def check_gradient(estimator: str, source: Tensor, value: Tensor) -> None:
    """Refuse an estimate that no parameter could learn from."""
    if not (source.requires_grad or value.requires_grad):
        raise ArgumentError(
            f"estimator={estimator!r} takes a distribution with a parameter that requires a "
            "gradient, got none; 'auto' returns the mean alone"
        )
