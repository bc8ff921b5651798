"""The estimators of the gradient of the average reward, each with what it declares.

    ∇ρ = Σ_s μ(s) Σ_a q(s,a) ∇π(a|s)

Two ways to sample it: windows of T steps from the stationary distribution μ, weighted by an
advantage that is bootstrapped with differential values; and cycles, from one visit of a state s* to
the next, which are episodes with the reward r - ρ, where ∇ρ = μ(s*) ∇E[Σ (r - ρ)].

Sutton and Barto 2018, sections 10.3 and 13.6; Marbach and Tsitsiklis 2001, "Simulation-based
optimization of Markov reward processes", for cycles.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from upslope.audit.episodes import per_decision
from upslope.audit.estimators import Estimator
from upslope.audit.played import EpisodicProblem
from upslope.audit.sampling import Episodes, play, probabilities, scores
from upslope.exact import FiniteMDP, Solution, policy_gradient, solve
from upslope.losses import policy_gradient_loss
from upslope.returns import gae

WINDOW = 8  # steps


@dataclass(frozen=True, kw_only=True, eq=False)
class ContinuingProblem:
    """A finite problem that goes on for ever, with a policy."""

    name: str
    """As it stands in the table."""
    mdp: FiniteMDP
    """The problem."""
    features: Tensor
    """M [P, S, A]."""
    theta: Tensor
    """θ [P]."""

    @property
    def policy(self) -> Tensor:
        """π [S, A]."""
        return probabilities(self.theta, self.features)

    def solution(self) -> Solution:
        """Return μ, ρ and the differential values."""
        return solve(self.mdp, self.policy, "average")

    def exact(self) -> Tensor:
        """Return ∇ρ [P]."""
        return policy_gradient(
            self.mdp,
            lambda theta: probabilities(theta, self.features),
            self.theta,
            setting="average",
        )

    def cycles(self) -> EpisodicProblem:
        """Return the cycles of the state that is visited most, as episodes.

        Of several that are visited as much, up to rounding, it is the first.
        """
        s, p = self.solution(), self.mdp.transition.clone()
        here = int((s.distribution > s.distribution.max() * (1 - 1e-9)).nonzero()[0])
        p[:, :, here] = 0
        start = torch.eye(self.mdp.n_states, dtype=torch.float64)[here]
        return EpisodicProblem(
            name=self.name,
            mdp=FiniteMDP(p, self.mdp.reward - s.objective, start, 1.0),
            features=self.features,
            theta=self.theta,
            factor=float(s.distribution[here]),
        )


class Windows:
    """Windows of T steps that begin in the stationary distribution, [T, R]."""

    def __init__(self, problem: ContinuingProblem, count: int, source: torch.Generator) -> None:
        self.solution = s = problem.solution()
        self.episodes: Episodes = play(
            problem.mdp, s.policy, count, source, start=s.distribution, steps=WINDOW
        )
        self.log_prob = s.policy.log()[self.episodes.state, self.episodes.action].requires_grad_()

    def weighted(self, gae_lambda: float, gamma: float, bootstrap: float) -> Tensor:
        """Return the mean over the steps of A_t ln π, of all windows together."""
        e, s = self.episodes, self.solution
        never = torch.zeros_like(e.mask)
        value = bootstrap * s.v
        advantage = gae(
            e.reward - s.objective,
            value[e.state],
            value[e.next_state],
            never,
            never,
            gamma=gamma,
            gae_lambda=gae_lambda,
        )
        return -policy_gradient_loss(self.log_prob, advantage) * e.state.shape[1]


def gradients(problem: ContinuingProblem, windows: Windows, estimator: Estimator) -> Tensor:
    """Return one gradient for each window, [R, P]."""
    (weight,) = torch.autograd.grad(estimator.run(windows).sum(), windows.log_prob)
    e, mdp = windows.episodes, problem.mdp
    table = torch.zeros(mdp.n_states * mdp.n_actions, weight.shape[1], dtype=torch.float64)
    table.scatter_add_(0, e.state * mdp.n_actions + e.action, weight)
    return table.T @ scores(problem.theta, problem.features).reshape(len(table), -1)


def by_gae(
    gae_lambda: float, gamma: float = 1.0, bootstrap: float = 1.0
) -> Callable[[Windows], Tensor]:
    """Return the estimate from a window with `bootstrap` times the differential values."""
    return lambda windows: windows.weighted(gae_lambda, gamma, bootstrap)


WINDOWS = (
    Estimator(name="GAE, λ = 0, exact values", run=by_gae(0.0), samples=1),
    Estimator(name="GAE, λ = .9, exact values", run=by_gae(0.9), samples=1),
    Estimator(
        name="GAE, λ = .9, γ = .5",
        run=by_gae(0.9, gamma=0.5),
        samples=1,
        bias="what follows is discounted, the values are not",
    ),
    Estimator(
        name="window without values",
        run=by_gae(1.0, bootstrap=0.0),
        samples=1,
        bias="the window is cut, and nothing counts what follows",
    ),
)

CYCLES = (
    Estimator(
        name="cycles",
        run=per_decision(),
        samples=1,
        variance=lambda problem: problem.variance(),
    ),
    Estimator(
        name="cycles, exact values",
        run=per_decision("value"),
        samples=1,
        variance=lambda problem: problem.variance(baseline=problem.value),
    ),
)
