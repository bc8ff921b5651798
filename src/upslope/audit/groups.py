"""The estimators made of groups of completions, and those of preferences, each with its claim.

They see the language model of `completions.py`: J is the expected reward, the divergence of whole
completions from a reference, or the expected loss over pairs of which one is preferred.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution

from upslope.audit.completions import (
    COUNT,
    LENGTH,
    MASK,
    REFERENCE,
    REWARD,
    THETA,
    log_prob,
    token_log_prob,
)
from upslope.audit.estimators import SHRINKS, Case, Estimator, N
from upslope.audit.problems import Exact, Problem
from upslope.losses import dpo_loss, grpo_loss
from upslope.losses.group import penalized_reward
from upslope.returns import group_advantage

OLD = THETA + 0.3 * torch.cos(torch.arange(len(THETA), dtype=torch.float64))
BETA = 0.5
FLIPPED = 0.2


# ---------------------------------------------------------------- the problems
def _completions(theta: Tensor) -> Distribution:
    return Categorical(logits=log_prob(theta))


def _pairs(theta: Tensor) -> Distribution:
    """Return which of two completions is preferred, by the reward: it does not depend on θ."""
    preferred = (REWARD[:, None] - REWARD).sigmoid().log().reshape(-1)
    return Categorical(logits=preferred + 0.0 * theta.sum(-1, keepdim=True))


def _divergence(x: Tensor, theta: Tensor) -> Tensor:
    log_ratio = log_prob(theta) - log_prob(REFERENCE)
    return log_ratio.expand(*x.shape, COUNT).gather(-1, x[..., None])[..., 0]


def _preference_loss(pair: Tensor, theta: Tensor, flip: Tensor | None = None, **o: Any) -> Tensor:
    """Return dpo_loss of pairs; where `flip`, with the labels exchanged."""
    first, second = pair // COUNT, pair % COUNT
    chosen = first if flip is None else torch.where(flip, second, first)
    rejected = first + second - chosen
    every = log_prob(theta).expand(*pair.shape, COUNT)
    reference = log_prob(REFERENCE)
    losses = dpo_loss(
        every.gather(-1, chosen[..., None]).reshape(-1),
        every.gather(-1, rejected[..., None]).reshape(-1),
        reference[chosen].reshape(-1),
        reference[rejected].reshape(-1),
        beta=BETA,
        **o,
    )
    return losses.view(pair.shape)


REWARDED = Problem(
    name="completions: 3 tokens, reward if they add up to 3",
    theta=tuple(THETA.tolist()),
    make=_completions,
    f=lambda x, theta: REWARD[x],
    behaviour=tuple(OLD.tolist()),
)
DIVERGENCE = Problem(
    name="completions' divergence: f = ln π/π₀",
    theta=tuple(THETA.tolist()),
    make=_completions,
    f=_divergence,
    behaviour=tuple(OLD.tolist()),
    depends=True,
)
PREFERENCES = Problem(
    name="preferences: pairs of completions, f = DPO's loss",
    theta=tuple(THETA.tolist()),
    make=_pairs,
    f=_preference_loss,
    behaviour=tuple(THETA.tolist()),
    depends=True,
)


# ---------------------------------------------------------------- how an estimate is made
def group_loss(
    loss_type: str,
    *,
    scale: str = "none",
    baseline: str = "leave_one_out",
    off_policy: bool = False,
    kl: str | None = None,
    **options: Any,
) -> Callable[[Case], Tensor]:
    """Return minus grpo_loss of groups of n, summed over groups; with `kl` plus its divergence.

    "kl" is one of grpo_loss, without a reward, or "reward", where it is all of the reward.
    """

    def run(case: Case) -> Tensor:
        source = case.behaviour if off_policy else case.distribution
        y = source.sample(torch.Size([N])).T  # [R, n]
        tokens, old, reference = (
            token_log_prob(theta).expand(len(y), COUNT, LENGTH).gather(1, _rows(y)).flatten(0, 1)
            for theta in (case.theta, OLD if off_policy else case.theta.detach(), REFERENCE)
        )
        mask = MASK[y].flatten(0, 1)
        reward = torch.zeros_like(y, dtype=torch.float64) if kl else REWARD[y]
        flat = reward.flatten()
        if kl == "reward":
            flat = penalized_reward(flat, old, reference, mask, 1.0)
        how: dict[str, Any] = {"loss_type": loss_type, "max_completion_length": 1, **options}
        if kl not in (None, "reward"):
            how |= {"beta": 1.0, "reference_log_prob": reference, "kl": kl}
        advantage = group_advantage(flat, N, scale=scale, baseline=baseline)
        sign = -1 if kl is None else 1
        return sign * len(y) * grpo_loss(tokens, old, advantage, mask, **how)

    return run


def one_by_one(loss_type: str) -> Callable[[Case], Tensor]:
    """Return minus grpo_loss of each group, [R], where it divides by the tokens of the group."""

    def run(case: Case) -> Tensor:
        y = case.distribution.sample(torch.Size([N])).T
        tokens = token_log_prob(case.theta).gather(1, _rows(y))
        advantage = group_advantage(REWARD[y].flatten(), N).view(y.shape)
        losses = [
            grpo_loss(t, t.detach(), a, MASK[i], loss_type=loss_type)
            for t, a, i in zip(tokens, advantage, y, strict=True)
        ]
        return -torch.stack(losses)

    return run


def _rows(y: Tensor) -> Tensor:
    return y[..., None].expand(*y.shape, LENGTH)


def preference(flipped: float = 0.0, **options: Any) -> Callable[[Case], Tensor]:
    """Return the mean of dpo_loss over n pairs, [R], of which a share has the wrong label."""

    def run(case: Case) -> Tensor:
        pair = case.distribution.sample(torch.Size([N]))
        flip = torch.rand(pair.shape) < flipped
        return _preference_loss(pair, case.theta, flip, **options).mean(0)

    return run


# ---------------------------------------------------------------- each of them
def _leave_one_out(problem: Problem) -> float:
    return Exact(problem).leave_one_out(N)


DEVIATION = "another scale for each prompt, and another direction unless rewards are 0 and 1"
TOKENS = "of each token given its prefix: not that it changes later ones"
FEW = 2000  # where each group is a call of its own

OF_REWARD = (
    Estimator(name="rloo", run=group_loss("rloo"), variance=_leave_one_out),
    Estimator(name="dr_grpo, leave-one-out", run=group_loss("dr_grpo"), variance=_leave_one_out),
    Estimator(
        name="dr_grpo",
        run=group_loss("dr_grpo", baseline="mean"),
        bias=SHRINKS,
        scale=(N - 1) / N,
    ),
    Estimator(
        name="dr_grpo, standard deviation",
        run=group_loss("dr_grpo", baseline="mean", scale="group"),
        bias=DEVIATION,
    ),
    *(
        Estimator(
            name=name,
            run=group_loss(name, baseline="mean", scale="group"),
            bias="a token of a short completion weighs more; the deviation",
        )
        for name in ("grpo", "gspo")
    ),
    *(
        Estimator(
            name=name,
            run=one_by_one(name),
            bias="over the tokens of the group; the deviation",
            estimates=FEW,
        )
        for name in ("bnpo", "dapo", "cispo")
    ),
    Estimator(
        name="rloo, off-policy, no clip",
        run=group_loss("rloo", off_policy=True, epsilon=1.0, epsilon_high=math.inf),
    ),
    Estimator(
        name="rloo, off-policy",
        run=group_loss("rloo", off_policy=True),
        bias="past the clip there is no gradient",
    ),
    Estimator(
        name="dr_grpo, off-policy, no clip",
        run=group_loss("dr_grpo", off_policy=True, epsilon=1.0, epsilon_high=math.inf),
        bias="a ratio of tokens leaves the prefix to the old policy",
    ),
)
OF_DIVERGENCE = (
    Estimator(name="grpo_loss, kl sequence", run=group_loss("dr_grpo", kl="sequence")),
    Estimator(name="rloo, divergence in the reward", run=group_loss("rloo", kl="reward")),
    Estimator(name="grpo_loss, kl unbiased", run=group_loss("dr_grpo", kl="unbiased"), bias=TOKENS),
    Estimator(name="grpo_loss, kl k1", run=group_loss("dr_grpo", kl="k1"), bias="none: 0"),
    Estimator(name="grpo_loss, kl k2", run=group_loss("dr_grpo", kl="k2"), bias=TOKENS),
    Estimator(
        name="grpo_loss, kl k3",
        run=group_loss("dr_grpo", kl="k3"),
        bias="that of KL(π₀ || π), of each token given its prefix",
    ),
)
OF_PREFERENCES = (
    Estimator(
        name="dpo_loss",
        run=preference(),
        variance=lambda problem: Exact(problem).constant_baseline(0.0),
    ),
    Estimator(
        name="dpo_loss robust, a fifth flipped",
        run=preference(FLIPPED, loss_type="robust", label_smoothing=FLIPPED),
    ),
    Estimator(name="dpo_loss, a fifth flipped", run=preference(FLIPPED), bias="labels are wrong"),
    Estimator(
        name="dpo_loss smoothed, a fifth flipped",
        run=preference(FLIPPED, label_smoothing=FLIPPED),
        bias="labels are wrong, and it moves less",
    ),
)
