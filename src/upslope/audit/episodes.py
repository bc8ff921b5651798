"""The estimators of ∇J from episodes of a finite problem, each with what it declares.

They see ln π(a_t|s_t) of N = n R episodes, [T, N], column i of estimate i mod R, and return a
surrogate for each episode, [N], or each estimate, whose sum is differentiated. Everything that is
weighted step by step carries γᵗ, unless it says that it does not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from upslope.audit.estimators import OVER_N, SHRINKS, Estimator
from upslope.audit.played import EpisodicProblem, Played
from upslope.gradient import (
    LeaveOneOut,
    self_normalized_surrogate,
    surrogate,
    trajectory_surrogate,
)
from upslope.losses import clipped_surrogate
from upslope.returns import n_step, reward_to_go

GROUP = 4


# ---------------------------------------------------------------- each of them
def whole_return(x: Played) -> Tensor:
    """Return ρ G_0."""
    return surrogate(x.together(x.log_prob), x.returns())


def per_decision(values: str = "", **options: Any) -> Callable[[Played], Tensor]:
    """Return trajectory_surrogate with no values, or those of the problem that `values` names."""

    def run(x: Played) -> Tensor:
        v = getattr(x.problem, values)[x.episodes.state] if values else None
        return trajectory_surrogate(x.log_prob, x.reward, x.gamma, v, mask=x.mask, **options)

    return run


def by_gae(
    values: str, gae_lambda: float, *, cut: bool = False, clip: bool = False
) -> Callable[[Played], Tensor]:
    """Return Σ γᵗ A_t ln π, or PPO's clipped surrogate of the same at ratio 1."""

    def run(x: Played) -> Tensor:
        advantage = x.gae(getattr(x.problem, values), gae_lambda, cut)
        if not clip:
            return x.weighted(advantage)
        log_ratio = x.log_prob - x.log_prob.detach()
        return -clipped_surrogate(log_ratio, x.discount * advantage, 0.2, 0.2)[x.mask]

    return run


def rewards_to_go(x: Played) -> Tensor:
    """Return Σ γᵗ G_t ln π, REINFORCE as in the book."""
    return x.weighted(reward_to_go(x.reward, x.ended, x.gamma))


def four_steps(x: Played) -> Tensor:
    """Return Σ γᵗ (G_t⁽⁴⁾ - v(s_t)) ln π."""
    e, value = x.episodes, x.problem.value
    target = n_step(x.reward, value[e.next_state], x.ended, x.never, gamma=x.gamma, n=4)
    return x.weighted(target - value[e.state])


def of_group(kind: str) -> Callable[[Played], Tensor]:
    """Return the whole-return estimate of a group of episodes with what GRPO and kin subtract."""

    def run(x: Played) -> Tensor:
        log_prob, f = x.grouped(x.together(x.log_prob)), x.grouped(x.returns())
        if kind == "leave-one-out":
            return surrogate(log_prob, f, baseline=LeaveOneOut())
        centred = f - f.mean(0)
        if kind == "deviation":
            centred = centred / (f.std(0) + 1e-4)
        return surrogate(log_prob, centred)

    return run


def off_policy_whole(x: Played) -> Tensor:
    """Return ρ_{0:T} G_0 of episodes that the behaviour played."""
    return surrogate(x.together(x.log_prob), x.returns(), reference=x.together(x.reference))


def off_policy_self_normalized(x: Played) -> Tensor:
    """Return Σ ρ G_0 / Σ ρ over the episodes of an estimate."""
    given = (x.together(x.log_prob), x.returns(), x.together(x.reference))
    log_prob, f, reference = (x.grouped(part) for part in given)
    return self_normalized_surrogate(log_prob, f, reference=reference)


def off_policy_per_decision(x: Played) -> Tensor:
    """Return Σ γᵗ ρ_{0:t} r_t, with the values of the problem."""
    v = x.problem.value[x.episodes.state]
    return trajectory_surrogate(
        x.log_prob, x.reward, x.gamma, v, mask=x.mask, reference=x.reference
    )


def undiscounted(problem: EpisodicProblem) -> str:
    """Return the bias of leaving γᵗ out: none where γ = 1."""
    return "" if problem.mdp.gamma == 1 else "γᵗ is dropped: not the gradient of any objective"


def _value(problem: EpisodicProblem) -> float:
    return problem.variance(baseline=problem.value)


def _wrong_value(problem: EpisodicProblem) -> float:
    return problem.variance(baseline=problem.wrong_value)


ON_POLICY = (
    Estimator(
        name="whole return",
        run=whole_return,
        samples=1,
        variance=lambda problem: problem.variance(weight="return"),
    ),
    Estimator(
        name="trajectory_surrogate",
        run=per_decision(),
        samples=1,
        variance=lambda problem: problem.variance(),
    ),
    Estimator(
        name="trajectory_surrogate, exact values",
        run=per_decision("value"),
        samples=1,
        variance=_value,
    ),
    Estimator(
        name="trajectory_surrogate, wrong values",
        run=per_decision("wrong_value"),
        samples=1,
        variance=_wrong_value,
    ),
    Estimator(
        name="trajectory_surrogate, discount_state=False",
        run=per_decision(discount_state=False),
        samples=1,
        bias=undiscounted,
        variance=lambda problem: problem.variance(discount_state=False),
    ),
    Estimator(
        name="REINFORCE, reward-to-go",
        run=rewards_to_go,
        samples=1,
        variance=lambda problem: problem.variance(),
    ),
    Estimator(
        name="GAE, λ = 1, wrong values",
        run=by_gae("wrong_value", 1.0),
        samples=1,
        variance=_wrong_value,
    ),
    Estimator(name="GAE, λ = .9, exact values", run=by_gae("value", 0.9), samples=1),
    Estimator(name="GAE, λ = .9, exact values, cut", run=by_gae("value", 0.9, cut=True), samples=1),
    Estimator(
        name="GAE, λ = .9, wrong values",
        run=by_gae("wrong_value", 0.9),
        samples=1,
        bias="of the values, times 1 - λ",
    ),
    Estimator(name="GAE, λ = 0, exact values", run=by_gae("value", 0.0), samples=1),
    Estimator(name="4-step return, exact values", run=four_steps, samples=1),
    Estimator(
        name="clipped_surrogate, λ = 1, wrong values",
        run=by_gae("wrong_value", 1.0, clip=True),
        samples=1,
        variance=_wrong_value,
    ),
    Estimator(name="group of 4, leave-one-out", run=of_group("leave-one-out"), samples=GROUP),
    Estimator(
        name="group of 4, mean with the own sample",
        run=of_group("own mean"),
        samples=GROUP,
        bias=SHRINKS,
        scale=(GROUP - 1) / GROUP,
    ),
    Estimator(
        name="group of 4, mean and standard deviation",
        run=of_group("deviation"),
        samples=GROUP,
        bias="another scale for each group, and another direction",
    ),
)

OFF_POLICY = (
    Estimator(name="importance sampling, whole", run=off_policy_whole, samples=1),
    Estimator(
        name="importance sampling, per decision, exact values",
        run=off_policy_per_decision,
        samples=1,
    ),
    Estimator(
        name="importance sampling, self-normalised",
        run=off_policy_self_normalized,
        samples=GROUP,
        bias=OVER_N,
    ),
)
