"""What a return is compared with: the other episodes, or the other completions of a prompt."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from upslope.errors import ArgumentError, NotFiniteError, ShapeError, suggest
from upslope.shapes import shaped

GROUP_EPSILON = 1e-4  # added to a standard deviation of rewards, in their unit


@shaped
def mean_baseline(
    target: Float[Tensor, "T N"], valid: Bool[Tensor, "T N"], *, leave_one_out: bool
) -> Float[Tensor, "T N"]:
    """Return b_t: the mean of row t over the columns that are `valid` there, which are episodes.

    With `leave_one_out` over the *other* ones, Σ_{j≠n} G_t / (count - 1), so that it does not
    depend on the episode it is subtracted from; where no other has lasted as long it is 0. Without,
    the own return is in the mean, and subtracting it takes 1/count of G_t - b_t away. Where a row
    is not valid it is 0. Raises ShapeError unless the shapes are equal.

    Kool et al. 2019, "Buy 4 REINFORCE samples, get a baseline for free!", for whole returns.
    """
    counted = target.masked_fill(~valid, 0.0)
    own = counted if leave_one_out else torch.zeros_like(counted)
    count = valid.sum(1, keepdim=True) - int(leave_one_out)
    mean = (counted.sum(1, keepdim=True) - own) / count.clamp(min=1)
    return mean.masked_fill(~valid | (count == 0), 0.0)


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
