"""Rewards to weights: what each log-probability is multiplied by, one equation per function.

Tensors are time-major, [T, N]: T steps of N environments. Row t holds what the step from s_t to
s_{t+1} gave. `terminated` is where the episode truly ended, and nothing follows; `truncated` where
it was cut off, and the value of what would have followed still counts. Every sum is cut at both,
and at the last row, where the rollout stops. Rewards are never edited. Values are in units of
reward. One function is about groups of completions, which have no time: `group_advantage`.

All functions keep the dtype of what they are given and can be differentiated.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from upslope.errors import ArgumentError, NotFiniteError, ShapeError, check_range, suggest
from upslope.shapes import shaped

__all__ = ["discounted_return", "gae", "group_advantage", "n_step", "reward_to_go"]

GROUP_EPSILON = 1e-4  # added to a standard deviation of rewards, in their unit


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


@shaped
def group_advantage(
    reward: Float[Tensor, " n"],
    group_size: int,
    *,
    scale: str = "group",
    baseline: str = "mean",
) -> Float[Tensor, " n"]:
    """Return A_i = (r_i - b_i) / (s + 1e-4) of each completion, over the G completions of a prompt.

    `reward` is prompt-major, reward.view(prompts, G). With the mean and the standard deviation (of
    G - 1 degrees of freedom) taken over

        baseline   mean            b_i the mean of the group
                   leave_one_out   b_i the mean of the others in the group: G / (G - 1) times as far
                   none            b_i = 0
        scale      group           s the standard deviation of the group, never without the own one
                   batch           s that of all rewards
                   none            A_i = r_i - b_i

    A group of equal rewards gets exactly 0, unless its rewards are left as they are (no baseline,
    and no scale of the group). Unbiased with scale "none" are "leave_one_out" and "none"; "mean" is
    (G - 1) / G of the gradient; a division by a deviation is biased, in direction too.

    Raises ShapeError unless reward is [n] with n a multiple of G, ArgumentError for a group_size
    that is no whole number of at least 2 (1 with baseline and scale "none") or another name,
    NotFiniteError for a reward that is not finite.

    Mean and group: Shao et al. 2024, arXiv:2402.03300, section 4.1.2. No scale: Liu et al. 2025,
    arXiv:2503.20783, section 3.2. Leave one out: Kool et al. 2019, "Buy 4 REINFORCE samples, get a
    baseline for free", equation 8.
    """
    groups = _groups(reward, group_size, scale, baseline)
    advantage = groups
    if baseline != "none":
        advantage = groups - groups.mean(1, keepdim=True)
    if baseline == "leave_one_out":
        advantage = advantage * (group_size / (group_size - 1))
    if scale != "none":
        spread = groups.std(1, keepdim=True) if scale == "group" else reward.std()
        advantage = advantage / (spread + GROUP_EPSILON)
    if baseline != "none" or scale == "group":
        alike = groups.amax(1, keepdim=True) == groups.amin(1, keepdim=True)
        advantage = advantage.masked_fill(alike, 0.0)
    return advantage.reshape(-1)


def _groups(reward: Tensor, group_size: int, scale: str, baseline: str) -> Tensor:
    """Return reward as [prompts, G], having checked all that `group_advantage` takes."""
    for name, given, options in (
        ("scale", scale, ("group", "batch", "none")),
        ("baseline", baseline, ("mean", "leave_one_out", "none")),
    ):
        if given not in options:
            takes = ", ".join(map(repr, options))
            raise ArgumentError(f"{name} takes {takes}, got {given!r}{suggest(given, options)}")
    least = 1 if baseline == scale == "none" else 2
    if isinstance(group_size, bool) or not isinstance(group_size, int) or group_size < least:
        raise ArgumentError(
            f"group_size takes a whole number of at least {least} with baseline {baseline!r} and "
            f"scale {scale!r}, got {group_size!r}"
        )
    if len(reward) % group_size:
        raise ShapeError(
            f"group_advantage: reward takes a multiple of group_size = {group_size} rewards, "
            f"got {len(reward)}"
        )
    if not reward.isfinite().all():
        index = int((~reward.isfinite()).nonzero()[0])
        raise NotFiniteError(
            f"reward takes finite numbers, got {reward[index].item()} at [{index}]"
        )
    return reward.view(-1, group_size)


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
