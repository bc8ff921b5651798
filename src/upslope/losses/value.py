"""The value loss: the mean squared error of v(s_t) against a target, optionally clipped."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from upslope.errors import ArgumentError, check_range
from upslope.losses.mask import counted, masked_mean
from upslope.shapes import shaped


@shaped
def value_loss(
    value: Float[Tensor, "*shape"],
    target: Float[Tensor, "*shape"],
    old_value: Float[Tensor, "*shape"] | None = None,
    clip_range: float | None = None,
    *,
    mask: Bool[Tensor, "*shape"] | None = None,
) -> Float[Tensor, ""]:
    """Return E[(v - G)²], without a 1/2; with clipping E[max((v - G)², (v_c - G)²)].

        v_c = v_old + clip(v - v_old, -clip_range, clip_range)

    in units of reward squared. `target` G and `old_value` are detached. Clipping takes away the
    incentive to move a value by more than clip_range per update; it depends on the scale of
    rewards. Elements that do not count may hold anything; where none counts, the loss is 0. Raises
    ShapeError unless all shapes are equal, and ArgumentError when only one of old_value and
    clip_range is given or clip_range is negative.

    Schulman et al. 2017, arXiv:1707.06347, equation 9, the term L^VF. Clipping is not in the paper:
    it is from the authors' code; Engstrom et al. 2020, arXiv:2005.12729, section 3, describe it.
    """
    if (old_value is None) != (clip_range is None):
        given = "clip_range" if old_value is None else "old_value"
        raise ArgumentError(f"value_loss takes old_value and clip_range together, got only {given}")
    value, target = counted(value, mask), counted(target.detach(), mask)
    error = (value - target).square()
    if old_value is None or clip_range is None:
        return masked_mean(error, mask)
    check_range("clip_range", clip_range, 0)
    old = counted(old_value.detach(), mask)
    clipped_error = (old + (value - old).clamp(-clip_range, clip_range) - target).square()
    return masked_mean(torch.max(error, clipped_error), mask)
