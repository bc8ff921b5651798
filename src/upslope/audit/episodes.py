"""The estimators of ∇J from episodes of a finite problem, each with what it declares.

They see ln π(a_t|s_t) of N = n R episodes, [T, N], column i of estimate i mod R, and return a
surrogate for each episode, [N], or each estimate, whose sum is differentiated. Everything that is
weighted step by step carries γᵗ, unless it says that it does not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from upslope.audit.estimators import OVER_N, SHRINKS, Estimator
from upslope.audit.sampling import Episodes, play, probabilities, scores
from upslope.exact import FiniteMDP, policy_gradient, reinforce_moments, solve
from upslope.gradient import (
    LeaveOneOut,
    self_normalized_surrogate,
    surrogate,
    trajectory_surrogate,
)
from upslope.losses import clipped_surrogate, policy_gradient_loss
from upslope.returns import discounted_return, gae, n_step, reward_to_go

GROUP = 4
CUT = 5  # steps, where episodes are cut


@dataclass(frozen=True, kw_only=True, eq=False)
class EpisodicProblem:
    """A finite problem whose episodes end, with a policy."""

    name: str
    """As it stands in the table."""
    mdp: FiniteMDP
    """The problem."""
    features: Tensor
    """M [P, S, A]."""
    theta: Tensor
    """θ [P]."""
    factor: float = 1.0
    """What the gradient is multiplied by: 1 / E[L], where an episode is one cycle."""
    shift: Tensor | float = 0.0
    """θ of the behaviour that importance sampling draws from, minus θ."""

    @property
    def policy(self) -> Tensor:
        """π [S, A]."""
        return probabilities(self.theta, self.features)

    @property
    def behaviour(self) -> Tensor:
        """b [S, A]."""
        return probabilities(self.theta + self.shift, self.features)

    @property
    def value(self) -> Tensor:
        """v [S]."""
        return solve(self.mdp, self.policy).v

    @property
    def wrong_value(self) -> Tensor:
        """A v that is far from the right one, [S]."""
        return 0.5 * self.value + torch.arange(self.mdp.n_states) % 3

    def exact(self) -> Tensor:
        """Return ∇J [P]."""
        gradient = policy_gradient(
            self.mdp, lambda theta: probabilities(theta, self.features), self.theta
        )
        return self.factor * gradient

    def variance(self, **options: Any) -> float:
        """Return the trace of the covariance of REINFORCE's estimate from one episode."""
        moments = reinforce_moments(
            self.mdp, lambda theta: probabilities(theta, self.features), self.theta, **options
        )
        return self.factor**2 * float(moments.total_variance)


class Played:
    """Episodes of a problem, and what estimators ask of them."""

    def __init__(self, problem: EpisodicProblem, episodes: Episodes, n: int) -> None:
        self.problem, self.n, self.gamma = problem, n, problem.mdp.gamma
        keep = episodes.state.shape[1] // n * n
        columns = {k: v[:, :keep] for k, v in vars(episodes).items()}
        self.episodes = e = Episodes(**columns)
        self.mask, self.reward, self.ended = e.mask, e.reward, e.terminated
        self.never = torch.zeros_like(e.mask)
        self.log_prob = problem.policy.log()[e.state, e.action].requires_grad_()
        self.reference = problem.behaviour.log()[e.state, e.action]
        steps = torch.arange(len(e.state), dtype=torch.float64)
        self.discount = (self.gamma**steps)[:, None].expand(e.state.shape)

    def together(self, log_prob: Tensor) -> Tensor:
        """Return the log-probability of each whole episode, [N]."""
        return log_prob.masked_fill(~self.mask, 0.0).sum(0)

    def returns(self) -> Tensor:
        """Return G_0 of each episode, [N]."""
        return discounted_return(self.reward.masked_fill(~self.mask, 0.0), self.gamma)

    def grouped(self, x: Tensor) -> Tensor:
        """Return one number for each episode as [n, R], samples first."""
        return x.reshape(self.n, -1)

    def gae(self, value: Tensor, gae_lambda: float, cut: bool = False) -> Tensor:
        """Return the advantage with values [S] of states, also where nobody may read them.

        With `cut`, episodes are truncated every few steps, and another one goes on in the column,
        as in a rollout.
        """
        e = self.episodes
        row = torch.arange(len(e.state))[:, None].expand(e.state.shape)
        truncated = (row % CUT == CUT - 1) if cut else self.never
        column = torch.arange(e.state.shape[1])
        moved = (column + row // CUT * int(cut)) % len(column)
        back = (column - row // CUT * int(cut)) % len(column)
        advantage = gae(
            self.reward.gather(1, moved),
            value[e.state].gather(1, moved),
            value[e.next_state].gather(1, moved),
            self.ended.gather(1, moved),
            truncated,
            gamma=self.gamma,
            gae_lambda=gae_lambda,
        )
        return advantage.gather(1, back)

    def weighted(self, weight: Tensor) -> Tensor:
        """Return Σ γᵗ weight ln π over all episodes, by the loss that agents use."""
        loss = policy_gradient_loss(self.log_prob, self.discount * weight, self.mask)
        return -loss * self.mask.sum()


def gradients(problem: EpisodicProblem, episodes: Episodes, estimator: Estimator) -> Tensor:
    """Return one gradient for each of R = N / n estimates, [R, P], by the chain rule.

    autograd gives the weight of each ln π(a_t|s_t); they are summed by state and action, then
    multiplied by the scores.
    """
    played = Played(problem, episodes, estimator.samples)
    (weight,) = torch.autograd.grad(estimator.run(played).sum(), played.log_prob)
    e, mdp = played.episodes, problem.mdp
    estimates = weight.shape[1] // estimator.samples
    index = (e.state * mdp.n_actions + e.action).reshape(-1, estimates)
    table = torch.zeros(mdp.n_states * mdp.n_actions, estimates, dtype=torch.float64)
    table.scatter_add_(0, index, weight.reshape(-1, estimates))
    score = scores(problem.theta, problem.features).reshape(len(table), -1)
    return problem.factor / estimator.samples * table.T @ score


def draw(
    problem: EpisodicProblem, count: int, source: torch.Generator
) -> tuple[Episodes, Episodes]:
    """Return episodes of the policy, and of the behaviour."""
    mdp = problem.mdp
    return play(mdp, problem.policy, count, source), play(mdp, problem.behaviour, count, source)


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
