"""Rewards to weights over the steps of an episode, one equation per function.

Every sum over time is cut where the episode ended, and at the last row, where the rollout stops.
Rewards are never edited. Values are in units of reward.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from upslope.errors import ArgumentError, check_range
from upslope.shapes import shaped


@shaped
def discounted_return(reward: Float[Tensor, "T N"], gamma: float) -> Float[Tensor, " N"]:
    """Return G_0 = Σ_t γᵗ r_t of each column, taken as one trajectory.

    gamma = 1 is the plain sum; gamma = 0 the first reward. Raises ShapeError for a shape other than
    [T, N], and ArgumentError for a gamma outside [0, 1].

    Sutton and Barto 2018, equation 3.8.
    """
    check_range("gamma", gamma, 0, 1)
    discount = gamma ** torch.arange(len(reward), dtype=torch.float64)
    return (discount.to(reward)[:, None] * reward).sum(0)


@shaped
def reward_to_go(
    reward: Float[Tensor, "T N"],
    ended: Bool[Tensor, "T N"],
    gamma: float,
    bootstrap: Float[Tensor, "T N"] | None = None,
) -> Float[Tensor, "T N"]:
    """Return G_t = r_t + γ G_{t+1}, where an episode ended or the rollout stops r_t + γ B_t.

    `ended` is terminated | truncated. `bootstrap` is B_t, the value of what follows row t: 0 where
    it terminated, v(s_{t+1}) where it was truncated or the rollout stops; without it, 0 everywhere.
    It is read in those rows only. gamma = 0 is the reward where nothing is cut. Raises ShapeError
    unless all shapes are equal, and ArgumentError for a gamma outside [0, 1].

    Sutton and Barto 2018, equation 3.9.
    """
    check_range("gamma", gamma, 0, 1)
    if bootstrap is not None:
        reward = reward + gamma * bootstrap.masked_fill(~_cut(ended), 0.0)
    return _backward_sum(reward, gamma * (~ended).to(reward.dtype))


@shaped
def n_step(
    reward: Float[Tensor, "T N"],
    next_value: Float[Tensor, "T N"],
    terminated: Bool[Tensor, "T N"],
    truncated: Bool[Tensor, "T N"],
    *,
    gamma: float,
    n: int,
) -> Float[Tensor, "T N"]:
    """Return G_t⁽ⁿ⁾ = r_t + γ r_{t+1} + ... + γʰ⁻¹ r_{t+h-1} + γʰ v(s_{t+h}).

    h is n, or fewer where the episode ends or the rollout stops before; v is 0 where it terminated.
    `next_value` is v of the true next observation, also at an end. n = 1 is the target of the
    one-step error; n >= T the reward-to-go with bootstrap. Raises ShapeError unless all shapes are
    equal, and ArgumentError for a gamma outside [0, 1] or an n that is not a whole number of at
    least 1.

    Sutton and Barto 2018, equation 7.1; computed by G⁽ⁿ⁾_t = r_t + γ G⁽ⁿ⁻¹⁾_{t+1}.
    """
    check_range("gamma", gamma, 0, 1)
    if not isinstance(n, int) or isinstance(n, bool) or n < 1:
        raise ArgumentError(f"n takes a whole number of at least 1, got {n!r}")
    value = next_value.masked_fill(terminated, 0.0)
    cut = _cut(terminated | truncated)
    target = reward + gamma * value
    for _ in range(min(n, len(reward)) - 1):
        target = reward + gamma * torch.where(cut, value, target.roll(-1, 0))
    return target


@shaped
def gae(
    reward: Float[Tensor, "T N"],
    value: Float[Tensor, "T N"],
    next_value: Float[Tensor, "T N"],
    terminated: Bool[Tensor, "T N"],
    truncated: Bool[Tensor, "T N"],
    *,
    gamma: float,
    gae_lambda: float,
) -> Float[Tensor, "T N"]:
    """Return the generalised advantage estimate A_t = δ_t + γλ A_{t+1}, A_t = δ_t at an end.

        δ_t = r_t + γ v(s_{t+1}) - v(s_t),   with v(s_{t+1}) = 0 where it terminated

    `value` is v(s_t), `next_value` v of the true next observation, also at a truncation; it is not
    read where it terminated. lambda = 0 is the one-step error δ_t; lambda = 1 the reward-to-go with
    bootstrap, minus v(s_t), if next_value is the next row's value inside an episode. Raises
    ShapeError unless all shapes are equal, and ArgumentError for a gamma or gae_lambda that is not
    in [0, 1].

    Schulman et al. 2016, arXiv:1506.02438, equation 16, cut at ends.
    """
    check_range("gamma", gamma, 0, 1)
    check_range("gae_lambda", gae_lambda, 0, 1)
    delta = reward + gamma * next_value.masked_fill(terminated, 0.0) - value
    going_on = ~(terminated | truncated)
    return _backward_sum(delta, gamma * gae_lambda * going_on.to(delta.dtype))


class VTrace(NamedTuple):
    """What V-trace gives of each step, both [T, N]."""

    target: Tensor
    """v_t, what the value of s_t is fitted to."""
    advantage: Tensor
    """ρ_t (r_t + γ v_{t+1} - V(s_t)), what ln π(a_t|s_t) is multiplied by."""


@shaped
def vtrace(
    log_ratio: Float[Tensor, "T N"],
    reward: Float[Tensor, "T N"],
    value: Float[Tensor, "T N"],
    next_value: Float[Tensor, "T N"],
    terminated: Bool[Tensor, "T N"],
    truncated: Bool[Tensor, "T N"],
    *,
    gamma: float,
    gae_lambda: float = 1.0,
    clip_rho: float = 1.0,
    clip_c: float = 1.0,
) -> VTrace:
    """Return the V-trace targets of steps that a behaviour b took, and their advantages.

        v_t = V(s_t) + δ_t + γ c_t (v_{t+1} - V(s_{t+1})),   v_t = V(s_t) + δ_t at an end
        δ_t = ρ_t (r_t + γ V(s_{t+1}) - V(s_t)),  ρ_t = min(clip_rho, π/b), c_t = λ min(clip_c, π/b)

    `log_ratio` is ln π(a_t|s_t) - ln b(a_t|s_t), in nats; the other arguments are those of `gae`.
    clip_rho decides what is estimated: at infinity v of π, towards 0 v of b; clip_c how fast, and
    with how much variance. On-policy (log_ratio = 0) and with lambda = 1 the target is the n-step
    return of as many steps as follow, with any lambda the GAE plus V. clip_rho = clip_c = infinity
    with lambda = 1 is importance sampling per decision. Raises ShapeError unless all shapes are
    equal, and ArgumentError for a gamma or gae_lambda outside [0, 1] or a negative clip.

    Espeholt et al. 2018, arXiv:1802.01561, equation 1; remark 1 for the recursion, remark 2 for
    lambda, section 4.2 for the advantage.
    """
    check_range("gamma", gamma, 0, 1)
    check_range("gae_lambda", gae_lambda, 0, 1)
    check_range("clip_rho", clip_rho, 0)
    check_range("clip_c", clip_c, 0)
    rho, c = _clipped_ratio(log_ratio, clip_rho), gae_lambda * _clipped_ratio(log_ratio, clip_c)
    ended = terminated | truncated
    following = next_value.masked_fill(terminated, 0.0)
    delta = rho * (reward + gamma * following - value)
    target = value + _backward_sum(delta, gamma * c * (~ended).to(c.dtype))
    next_target = torch.where(_cut(ended), following, target.roll(-1, 0))
    return VTrace(target, rho * (reward + gamma * next_target - value))


def _clipped_ratio(log_ratio: Tensor, clip: float) -> Tensor:
    """Return min(clip, exp(log_ratio)), also where exp would overflow."""
    return log_ratio.clamp(max=math.log(clip)).exp() if clip > 0 else torch.zeros_like(log_ratio)


@shaped
def lambda_return(
    reward: Float[Tensor, "T N"],
    next_value: Float[Tensor, "T N"],
    terminated: Bool[Tensor, "T N"],
    truncated: Bool[Tensor, "T N"],
    *,
    gamma: float,
    trace_decay: float,
) -> Float[Tensor, "T N"]:
    """Return G_t^λ = r_t + γ ((1 - λ) v(s_{t+1}) + λ G_{t+1}^λ), at an end r_t + γ v(s_{t+1}).

    λ is `trace_decay`; the other arguments are those of `gae`, and the last row counts as an end.
    It is the mean of the n-step returns, G⁽ⁿ⁾ with weight (1 - λ) λⁿ⁻¹ and the longest with what is
    left: λ = 0 is the one-step target, λ = 1 the reward-to-go with bootstrap. Raises ShapeError
    unless all shapes are equal, and ArgumentError for a gamma or trace_decay outside [0, 1].

    Sutton and Barto 2018, equation 12.3, in the recursive form of exercise 12.1.
    """
    check_range("gamma", gamma, 0, 1)
    check_range("trace_decay", trace_decay, 0, 1)
    cut = _cut(terminated | truncated)
    share = torch.full_like(reward, 1 - trace_decay).masked_fill(cut, 1.0)  # of v in what follows
    term = reward + gamma * share * next_value.masked_fill(terminated, 0.0)
    return _backward_sum(term, gamma * (1 - share))


@shaped
def eligibility(
    gradient: Float[Tensor, "T N P"], ended: Bool[Tensor, "T N"], decay: float
) -> Float[Tensor, "T N P"]:
    """Return z_t = decay z_{t-1} + g_t, beginning with 0 and anew after every end.

    `gradient` is g_t = ∇v(s_t), or ∇ln π(a_t|s_t); decay is γλ (λ where the average reward is what
    counts). With weights that do not change, Σ_t δ_t z_t = Σ_t (G_t^λ - v(s_t)) g_t: the backward
    view of TD(λ) is the forward one. Raises ShapeError unless T and N agree, and ArgumentError for
    a decay outside [0, 1].

    Sutton and Barto 2018, equation 12.5.
    """
    check_range("decay", decay, 0, 1)
    z = torch.zeros_like(gradient)
    for t in range(len(gradient)):
        z[t] = gradient[t]
        if t:
            z[t] += decay * (~ended[t - 1]).to(z).unsqueeze(-1) * z[t - 1]
    return z


def _backward_sum(term: Tensor, decay: Tensor) -> Tensor:
    """Return x_t = term_t + decay_t x_{t+1}, with x_T = 0, from the last row to the first."""
    if len(term) == 0:
        return term
    terms, decays = term.unbind(), decay.unbind()
    x = [terms[-1]]
    for t in reversed(range(len(terms) - 1)):
        x.append(torch.addcmul(terms[t], decays[t], x[-1]))
    return torch.stack(x[::-1])


def _cut(ended: Tensor) -> Tensor:
    """Return where a sum over time stops: where the episode ended, and in the last row."""
    cut = ended.clone()
    cut[-1:] = True
    return cut
