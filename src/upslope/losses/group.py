"""Group-relative losses: several completions of the same prompt, compared with each other.

    c_t = π(y_t|x, y_<t) / π_old(y_t|x, y_<t)
    x_t = -min(c_t A, clip(c_t, 1 - ε, 1 + ε_high) A) + β KL_t
    L   = Σ m x / N                   m: which tokens count; how N is counted is the loss type

A is the advantage of the whole completion over its group (`returns.group_advantage`). The clipped
surrogate is PPO's, and the divergences are those of `kl_estimate`.
"""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor

from upslope.errors import ArgumentError, check_range, suggest
from upslope.losses.divergence import kl_estimate
from upslope.losses.mask import counted
from upslope.losses.policy import capped_ratio, clipped_surrogate
from upslope.shapes import shaped

PER_COMPLETION = ("grpo", "gspo", "rloo")
PER_TOKEN = ("bnpo", "dapo", "cispo")
LOSS_TYPES = (*PER_COMPLETION, *PER_TOKEN, "dr_grpo")
KL_TYPES = ("unbiased", "k1", "k2", "k3", "sequence")
LEVELS = ("token", "sequence")
CISPO_CAP = 5.0


@shaped
def grpo_loss(
    log_prob: Float[Tensor, "n L"],
    old_log_prob: Float[Tensor, "n L"],
    advantage: Float[Tensor, " n"],
    mask: Bool[Tensor, "n L"],
    *,
    loss_type: str = "dapo",
    epsilon: float = 0.2,
    epsilon_high: float | None = None,
    beta: float = 0.0,
    reference_log_prob: Float[Tensor, "n L"] | None = None,
    kl: str = "unbiased",
    importance_sampling_level: str = "token",
    max_completion_length: int | None = None,
    num_items: float | None = None,
) -> Float[Tensor, ""]:
    """Return the loss of n completions of up to L tokens, a scalar; its gradient is in log_prob.

    `log_prob` is l = ln π of each token in nats, `old_log_prob` that of the policy that sampled
    (log_prob.detach() for the first step), both at the sampling temperature; `mask` where a token
    counts, the end token included; `advantage` A of each completion, detached.

        loss_type   ratio c                     sum of m x, over
        grpo        exp(l - l_old)              the completion's own tokens, then n
        bnpo dapo   exp(l - l_old)              all tokens, Σ m
        dr_grpo     exp(l - l_old)              n max_completion_length
        cispo       exp(l - l_old), detached    Σ m;  x = -min(c, ε_high) A l
        gspo        exp(mean of l - l_old)      as grpo
        rloo        exp(sum of l - l_old)       as grpo

    importance_sampling_level="sequence" gives the first four gspo's ratio. ε_high is ε if None; in
    cispo it is a cap of its own, 5 if None. `kl` is what β weighs: "unbiased" (c k3), "k1", "k2",
    "k3" of each token, or "sequence" (k2 of the completion); in rloo it belongs into the reward,
    `penalized_reward`.

    num_items is n, or Σ m where all tokens are counted, of the whole update, when this is one
    micro-batch of it: the sum over micro-batches is then the loss of the whole, however it is cut.

    Raises ShapeError unless the shapes are as annotated; ArgumentError for an unknown name, numbers
    out of range, a num_items below what is here, and a reference_log_prob or max_completion_length
    that is missing.

    GRPO: Shao et al. 2024, arXiv:2402.03300, equations 3 and 4. Dr. GRPO: Liu et al. 2025,
    arXiv:2503.20783, section 3.2. DAPO: Yu et al. 2025, arXiv:2503.14476, equation 8. GSPO: Zheng
    et al. 2025, arXiv:2507.18071, equations 5 and 7. CISPO: MiniMax 2025, arXiv:2506.13585,
    equation 4. RLOO: Ahmadian et al. 2024, arXiv:2402.14740.
    """
    _check_names(loss_type, kl, importance_sampling_level)
    _check_numbers(loss_type, epsilon, epsilon_high, beta)
    log_prob = counted(log_prob, mask)
    difference = log_prob - counted(old_log_prob.detach(), mask)
    log_ratio = log_ratio_of(difference, mask, loss_type, importance_sampling_level)
    weight = advantage.detach()[:, None].expand_as(log_prob)
    if loss_type == "cispo":
        cap = CISPO_CAP if epsilon_high is None else epsilon_high
        x = -capped_ratio(log_ratio).detach().clamp(max=cap) * weight * log_prob
    else:
        high = epsilon if epsilon_high is None else epsilon_high
        x = clipped_surrogate(log_ratio, weight, epsilon, high)
    if beta > 0:
        if reference_log_prob is None:
            raise ArgumentError(f"reference_log_prob takes a tensor where beta is {beta}, got None")
        reference = counted(reference_log_prob.detach(), mask)
        x = x + beta * _divergence(log_prob, reference, log_ratio, mask, kl)
    return aggregate(x, mask, loss_type, num_items, max_completion_length)


def log_ratio_of(difference: Tensor, mask: Tensor, loss_type: str, level: str) -> Tensor:
    """Return ln c [n, L] from l - l_old, 0 where no token counts.

    Of each token, or one for all tokens of a completion: their mean (level "sequence", and gspo) or
    their sum (rloo).
    """
    if loss_type == "rloo":
        return difference.sum(1, keepdim=True).expand_as(difference)
    if loss_type == "gspo" or level == "sequence":
        return (difference.sum(1, keepdim=True) / _length(mask)).expand_as(difference)
    return difference


def past_clip(
    log_ratio: Tensor, advantage: Tensor, loss_type: str, epsilon: float, high: float | None
) -> Tensor:
    """Return where [n, L] the ratio is past the clip in the direction that A asks for.

    There the gradient is 0; in cispo, where c > ε_high, it is capped.
    """
    ratio, advantage = log_ratio.exp(), advantage[:, None]
    if loss_type == "cispo":
        return ratio > (CISPO_CAP if high is None else high)
    above = (advantage > 0) & (ratio > 1 + (epsilon if high is None else high))
    return above | ((advantage < 0) & (ratio < 1 - epsilon))


def _divergence(
    log_prob: Tensor, reference: Tensor, log_ratio: Tensor, mask: Tensor, kl: str
) -> Tensor:
    """Return what β weighs, [n, L], in nats.

    Its mean gradient, for samples of π (shown in docs/group.md):

        unbiased   c k3, c not clipped: that of KL(π || π_ref) given the prefix; also where π_old
                   drew the token
        k2         the same, where π drew it
        k1         0
        k3         that of KL(π_ref || π) given the prefix
        sequence   k2 of Σ (l - l_ref), shared among the tokens: that of KL(π || π_ref) of whole
                   completions

    None but the last sees that a token changes the divergence of later ones. With a ratio for the
    whole completion, c weighs every token with it, and "unbiased" is not.
    """
    if kl == "unbiased":
        return capped_ratio(log_ratio) * kl_estimate(log_prob, reference, "k3")
    if kl == "sequence":
        whole = kl_estimate(log_prob.sum(1, keepdim=True), reference.sum(1, keepdim=True), "k2")
        return (whole / _length(mask)).expand_as(log_prob)
    return kl_estimate(log_prob, reference, kl)


@shaped
def aggregate(
    x: Float[Tensor, "n L"],
    mask: Bool[Tensor, "n L"],
    loss_type: str,
    num_items: float | None = None,
    max_completion_length: int | None = None,
) -> Float[Tensor, ""]:
    """Return Σ m x over what the loss type counts, in the whole update if num_items is given.

    grpo, gspo, rloo: Σ_i (Σ_t m x / Σ_t m) / n. bnpo, dapo, cispo: Σ m x / Σ m. dr_grpo:
    Σ m x / (n max_completion_length). A completion of which no token counts is one of n, with a
    loss of 0.
    """
    total = _total(mask, loss_type, num_items)
    x = counted(x, mask)
    if loss_type == "dr_grpo":
        return x.sum() / total / _checked_length(max_completion_length)
    if loss_type in PER_COMPLETION:
        x = x / _length(mask)
    return x.sum() / total


def _total(mask: Tensor, loss_type: str, num_items: float | None) -> Tensor | float:
    """Return N, the completions or tokens of the whole update, at least 1."""
    per_token = loss_type in PER_TOKEN
    here = mask.sum() if per_token else len(mask)
    if num_items is None:
        return here.clamp(min=1) if isinstance(here, Tensor) else max(here, 1)
    check_range("num_items", num_items, 0)
    if num_items < here:
        what = "tokens that count" if per_token else "completions"
        raise ArgumentError(
            f"num_items takes the {what} of the whole update for loss_type {loss_type!r}, at "
            f"least the {int(here)} of this micro-batch, got {num_items}"
        )
    return max(num_items, 1)


@shaped
def penalized_reward(
    reward: Float[Tensor, " n"],
    old_log_prob: Float[Tensor, "n L"],
    reference_log_prob: Float[Tensor, "n L"],
    mask: Bool[Tensor, "n L"],
    beta: float,
) -> Float[Tensor, " n"]:
    """Return r - β Σ m (l_old - l_ref): the divergence of whole completions, in the reward.

    It is detached; with it the policy gradient is that of E[r] - β KL(π || π_ref), exactly, for
    samples of π = π_old. Raises ShapeError unless the shapes are as annotated, ArgumentError for a
    negative beta. Ahmadian et al. 2024, arXiv:2402.14740, equation 3.
    """
    check_range("beta", beta, 0)
    return reward - beta * counted(old_log_prob - reference_log_prob, mask).detach().sum(1)


# ---------------------------------------------------------------- what each takes
def _length(mask: Tensor) -> Tensor:
    """Return the tokens that count of each completion, at least 1, [n, 1]."""
    return mask.sum(1, keepdim=True).clamp(min=1)


def _checked_length(length: int | None) -> int:
    if isinstance(length, bool) or not isinstance(length, int) or length < 1:
        raise ArgumentError(
            "max_completion_length takes a whole number of at least 1 for loss_type 'dr_grpo', "
            f"got {length!r}"
        )
    return length


def _check_names(loss_type: str, kl: str, level: str) -> None:
    for name, given, options in (
        ("loss_type", loss_type, LOSS_TYPES),
        ("kl", kl, KL_TYPES),
        ("importance_sampling_level", level, LEVELS),
    ):
        if given not in options:
            takes = ", ".join(map(repr, options))
            raise ArgumentError(f"{name} takes {takes}, got {given!r}{suggest(given, options)}")


def _check_numbers(loss_type: str, epsilon: float, high: float | None, beta: float) -> None:
    check_range("epsilon", epsilon, 0, 1)
    if high is not None:
        check_range("epsilon_high", high, 0)
    check_range("beta", beta, 0)
    if loss_type == "rloo" and beta > 0:
        raise ArgumentError(
            "beta takes 0 for loss_type 'rloo', whose divergence belongs into the reward "
            f"(losses.group.penalized_reward), got {beta}"
        )
