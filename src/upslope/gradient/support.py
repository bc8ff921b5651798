"""What a distribution can draw: whether that moves with its parameters, and all of it if finite.

∇ ∫ p f dx = ∫ ∇p f dx needs a support that does not depend on θ. For x ~ U(0, θ) and f = x the
score-function estimator gives -1/2 where the truth is +1/2: the boundary moves and no sample shows
it. (Leibniz' rule has a boundary term, which is missing.)
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.distributions import (
    Distribution,
    Independent,
    MixtureSameFamily,
    TransformedDistribution,
    constraints,
)

from upslope.gradient.score import flat_gradient, leaves

LARGEST_SUPPORT = 2**20
"""Points that are enumerated at most, over all batch elements."""


# ---------------------------------------------------------------- does it move
def support_moves(distribution: Distribution) -> bool:
    """Return whether a boundary of the support depends on a parameter that requires a gradient."""
    if isinstance(distribution, Independent):
        return support_moves(distribution.base_dist)
    if isinstance(distribution, MixtureSameFamily):
        return support_moves(distribution.component_distribution)
    plain = type(distribution).support is TransformedDistribution.support
    if isinstance(distribution, TransformedDistribution) and plain:
        return support_moves(distribution.base_dist) or _image_moves(distribution)
    return any(_moves(bound) for bound in _bounds(_support(distribution)))


def _support(distribution: Distribution) -> object:
    try:
        return distribution.support
    except NotImplementedError:  # a distribution that does not say
        return None


def _bounds(support: object) -> Iterator[Tensor]:
    """Yield the bounds of a support that are tensors, through `independent` and the like."""
    for part in (support, getattr(support, "base_constraint", None)):
        for name in ("lower_bound", "upper_bound"):
            bound = getattr(part, name, None)
            if isinstance(bound, Tensor):
                yield bound


def _image_moves(distribution: TransformedDistribution) -> bool:
    """Return whether the image of a base boundary, also of one at infinity, depends on parameters.

    exp(x) of a normal x starts at 0 whatever its parameters; loc + x of an exponential x at loc.
    Of transforms of whole events, such as those to a simplex, the image of two corners.
    """
    base = distribution.base_dist
    while isinstance(base, Independent):
        base = base.base_dist
    support, shape = _support(base), base.batch_shape + base.event_shape
    if support is constraints.simplex:  # whose coordinates have bounds of their own
        support = constraints.unit_interval
    for name, infinity in (("lower_bound", -math.inf), ("upper_bound", math.inf)):
        bound = torch.as_tensor(getattr(support, name, infinity), dtype=torch.get_default_dtype())
        image = bound.expand(shape) if bound.numel() == 1 else bound
        for transform in distribution.transforms:
            image = transform(image)
        if _moves(image):
            return True
    return False


def _moves(bound: Tensor) -> bool:
    """Return whether a bound that is finite has a slope in a parameter; NaN is 0 times infinity."""
    finite = bound.isfinite()
    if not bound.requires_grad or not finite.any():
        return False
    slope = flat_gradient(bound[finite].sum(), leaves(bound))
    return bool((slope.nan_to_num() != 0).any())


# ---------------------------------------------------------------- all of it
def finite_support(distribution: Distribution, limit: int = LARGEST_SUPPORT) -> Tensor | None:
    """Return every value of a finite support, [K, *batch, *event]; None where it is not finite.

    None too where there are more than `limit` of them, or than 2^20 over all batch elements.
    Products over the event dimensions of `Independent` are enumerated, the last dimension fastest;
    torch itself does not do that.
    """
    batch = math.prod(distribution.batch_shape)
    points = _points(distribution, limit)
    if points is None or len(points) > limit or len(points) * batch > LARGEST_SUPPORT:
        return None
    count, event = len(points), distribution.event_shape
    points = points.reshape(count, *(1 for _ in distribution.batch_shape), *event)
    return points.expand(count, *distribution.batch_shape, *event)


def _points(distribution: Distribution, limit: int) -> Tensor | None:
    """Return the support as [K, *event], the same for all batch elements, or None."""
    if isinstance(distribution, MixtureSameFamily):
        return _points(distribution.component_distribution, limit)
    if isinstance(distribution, Independent):
        base = _points(distribution.base_dist, limit)
        inner = distribution.base_dist.event_shape
        over = distribution.event_shape[: len(distribution.event_shape) - len(inner)]
        size = math.prod(over)
        if base is None or size * math.log(max(len(base), 1)) > math.log(limit):
            return None
        index = torch.cartesian_prod(*[torch.arange(len(base), device=base.device)] * size)
        return base[index.reshape(len(base) ** size, *over)]
    if not distribution.has_enumerate_support:
        return None
    if any(size == 0 for size in distribution.batch_shape):
        return None
    try:
        points = distribution.enumerate_support(expand=False)
    except NotImplementedError:  # a binomial whose elements have different counts
        return None
    return points.reshape(len(points), *distribution.event_shape)


def is_discrete(distribution: Distribution) -> bool:
    """Return whether the values are separate points, so that no path leads from one to another."""
    support = _support(distribution)
    return isinstance(support, constraints.Constraint) and support.is_discrete


def name_of(distribution: Distribution) -> str:
    """Return the name that a sentence uses: `Uniform`, `Independent(Normal)`."""
    inner = getattr(distribution, "base_dist", None)
    inner = getattr(distribution, "_component_distribution", inner)
    name = type(distribution).__name__
    return f"{name}({name_of(inner)})" if isinstance(inner, Distribution) else name
