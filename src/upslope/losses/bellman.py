"""Bellman targets: what an action-value q(s, a) is moved towards, and the loss that moves it.

    y = R + D max_a q(s', a)                     Q-learning
    y = R + D q_2(s', argmax_a q_1(s', a))       double: one chooses, the other values
    y = R + D sum_a pi(a|s') q(s', a)            expected SARSA

R is what was earned up to s', discounted; D is the discount of what follows: gamma for one step,
gamma^h for h steps, and 0 where the episode terminated. At a truncation s' is the observation the
episode was cut in, and D is not 0. Illegal actions have no part in a maximum.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import huber_loss

from upslope.shapes import shaped


@shaped
def q_target(
    reward: Float[Tensor, " M"],
    discount: Float[Tensor, " M"],
    next_q: Float[Tensor, "M A"],
    legal: Bool[Tensor, "M A"] | None = None,
) -> Float[Tensor, " M"]:
    """Return R + D max_a q(s', a), the maximum over legal actions; in units of reward.

    A row with a discount of 0 is R, whatever follows. Raises ShapeError unless the shapes fit.

    Watkins and Dayan 1992, "Q-learning", equation 1; Sutton and Barto 2018, equation 6.8.
    """
    return reward + _discounted(discount, _illegal(next_q, legal).amax(-1))


@shaped
def double_q_target(
    reward: Float[Tensor, " M"],
    discount: Float[Tensor, " M"],
    chooser: Float[Tensor, "M A"],
    next_q: Float[Tensor, "M A"],
    legal: Bool[Tensor, "M A"] | None = None,
) -> Float[Tensor, " M"]:
    """Return R + D q(s', argmax_a q_chooser(s', a)): the noise of one is not the other's.

    With chooser = next_q it is `q_target`. Raises ShapeError unless the shapes fit.

    Van Hasselt, Guez and Silver 2016, arXiv:1509.06461, equation 4.
    """
    best = _illegal(chooser, legal).argmax(-1, keepdim=True)
    return reward + _discounted(discount, next_q.gather(-1, best).squeeze(-1))


@shaped
def expected_sarsa_target(
    reward: Float[Tensor, " M"],
    discount: Float[Tensor, " M"],
    next_q: Float[Tensor, "M A"],
    next_policy: Float[Tensor, "M A"],
) -> Float[Tensor, " M"]:
    """Return R + D sum_a pi(a|s') q(s', a).

    With pi 1 on the action that was taken next it is SARSA's; with pi greedy it is `q_target`.
    Raises ShapeError unless the shapes fit.

    Sutton and Barto 2018, equation 6.9.
    """
    return reward + _discounted(discount, (next_policy * next_q).sum(-1))


@shaped
def td_loss(
    value: Float[Tensor, " M"], target: Float[Tensor, " M"], *, huber: bool = True
) -> Float[Tensor, ""]:
    """Return the mean of (q - y)^2 / 2 where |q - y| <= 1 and |q - y| - 1/2 beyond; y is detached.

    `huber=False` is the mean of (q - y)^2 / 2 everywhere. The gradient in q is the error, clipped
    to [-1, 1] with Huber. Raises ShapeError unless the shapes are equal.

    Mnih et al. 2015, "Human-level control through deep reinforcement learning", Methods, clip the
    error so; Huber 1964.
    """
    if huber:
        return huber_loss(value, target.detach())
    return 0.5 * (value - target.detach()).square().mean()


def _illegal(q: Tensor, legal: Tensor | None) -> Tensor:
    return q if legal is None else q.masked_fill(~legal, -torch.inf)


def _discounted(discount: Tensor, value: Tensor) -> Tensor:
    """Return D value, and 0 where D is 0, whatever the value."""
    return discount * value.masked_fill(discount == 0, 0.0)
