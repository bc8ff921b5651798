"""Means over the elements that count, which are those where a mask is True."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor

from upslope.shapes import shaped


@shaped
def masked_mean(
    x: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"] | None = None
) -> Float[Tensor, ""]:
    """Return Σ m x / Σ m, the mean over the elements that count; without a mask, over all.

    Elements that do not count may hold anything, also NaN. The mean over nothing is 0, with a
    gradient of 0. Raises ShapeError unless the shapes are equal.
    """
    if mask is None:
        return x.sum() / max(x.numel(), 1)
    return counted(x, mask).sum() / mask.sum().clamp(min=1)


def counted(x: Tensor, mask: Tensor | None) -> Tensor:
    """Return x with 0 where it does not count, so that NaN there reaches no gradient."""
    return x if mask is None else x.masked_fill(~mask, 0.0)
