"""Surrogates of the policy gradient: losses whose gradient is what a policy should descend.

    -E[A ln π(a|s)]                       the score function, weighted
    -E[min(ρ A, clip(ρ, 1-ε, 1+ε) A)]     the same at ρ = π / π_old = 1; past the clip no incentive

Both see the advantage A as a constant. The value of the first means nothing; its gradient does.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from upslope.errors import check_range
from upslope.losses.mask import counted, masked_mean
from upslope.shapes import shaped

MAX_LOG_RATIO = 20.0
"""Where the ratio stops growing, e²⁰ = 4.9e8: far beyond any step, and finite with its square."""


@shaped
def policy_gradient_loss(
    log_prob: Float[Tensor, "*shape"],
    advantage: Float[Tensor, "*shape"],
    mask: Bool[Tensor, "*shape"] | None = None,
) -> Float[Tensor, ""]:
    """Return -E[A ln π(a|s)], minus the mean over what counts; A is detached.

    `log_prob` is in nats. With A the return, the reward-to-go or an advantage, the gradient is that
    of REINFORCE, with or without a baseline; with A = 1, that of maximum likelihood. Elements that
    do not count may hold anything; where none counts, the loss is 0. Raises ShapeError unless all
    shapes are equal.

    Williams 1992, "Simple statistical gradient-following algorithms", theorem 1; Sutton and Barto
    2018, equation 13.8.
    """
    return -masked_mean(counted(log_prob, mask) * advantage.detach(), mask)


@shaped
def clipped_surrogate(
    log_ratio: Float[Tensor, "*shape"],
    advantage: Float[Tensor, "*shape"],
    clip_low: float,
    clip_high: float,
) -> Float[Tensor, "*shape"]:
    """Return -min(ρ A, clip(ρ, 1 - clip_low, 1 + clip_high) A) of each element; A is detached.

    `log_ratio` is ln ρ = ln π(a|s) - ln π_old(a|s), in nats. At ρ = 1 the gradient is the plain
    policy gradient. It is 0 where ρ has passed the clip in the direction that A asks for, and on
    where it has passed it in the other. clip_high = inf and clip_low = 1 clip nothing.

    Beyond ln ρ = 20 the ratio's value stays at e²⁰, and its gradient at what it is there, so that
    neither overflows; the sign of the gradient is kept. ln ρ = inf, of an action that π_old never
    takes, gives NaN. Raises ShapeError unless the shapes are equal, and ArgumentError for a
    clip_low outside [0, 1] or a negative clip_high.

    Schulman et al. 2017, arXiv:1707.06347, equation 7.
    """
    check_range("clip_low", clip_low, 0, 1)
    check_range("clip_high", clip_high, 0)
    ratio = capped_ratio(log_ratio)
    advantage = advantage.detach()
    return -torch.min(ratio * advantage, ratio.clamp(1 - clip_low, 1 + clip_high) * advantage)


def capped_ratio(log_ratio: Tensor) -> Tensor:
    """Return e^x with x at most 20: there the value stays, and the gradient is what it is there.

    An infinite x gives NaN: what had probability 0 was not drawn.
    """
    x = log_ratio.detach()
    return torch.where(x > MAX_LOG_RATIO, log_ratio - x + MAX_LOG_RATIO, log_ratio).exp()
