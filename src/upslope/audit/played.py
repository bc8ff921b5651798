"""A problem whose episodes end, and episodes of it as estimators see them.

    ∇J = Σ_s η(s) Σ_a q(s,a) ∇π(a|s)          ĝ = Σ_t w_t ∇ ln π(a_t|s_t)

Every estimator is a weight w_t for each log-probability; autograd of its surrogate says which.
Sutton and Barto 2018, equation 13.5, for the first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from upslope.audit.estimators import Estimator
from upslope.audit.sampling import Episodes, play, probabilities, scores
from upslope.exact import FiniteMDP, policy_gradient, reinforce_moments, solve
from upslope.losses import policy_gradient_loss
from upslope.returns import discounted_return, gae

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
