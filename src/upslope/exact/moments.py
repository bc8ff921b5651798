"""Mean and covariance of REINFORCE's estimators over trajectories, exactly.

One trajectory gives, with ψ_t = ∇ln π(a_t|s_t) and G_t the discounted return from t,

    total return       X = (G_0 - b) Σ_t ψ_t
    reward-to-go       X = Σ_t κᵗ (G_t - b(s_t)) ψ_t        κ = γ, or 1 where γᵗ is dropped

Both are built backwards along the trajectory, with r, s' and what follows (primed) independent of
the past given s:

    G = r + γ G'       Z = ψ + Z'       X = (G - b(s)) ψ + κ X'

so that every moment E[Gⁱ Zʲ | s], E[G X | s], E[X Xᵀ | s] solves a linear system in (I - δ P_π)
with δ a product of powers of γ and κ, whose right-hand side holds lower moments only. Reward that
depends on s' enters with its true joint distribution.

Williams 1992 and Sutton and Barto 2018, sections 13.3 and 13.4 for the estimators; Sobel 1982, "The
variance of discounted Markov decision processes", for the recursion of E[G²].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from upslope.errors import ArgumentError, ShapeError
from upslope.exact.chain import Chain, chain_under
from upslope.exact.gradient import PolicyFn, differentiable_policy, policy_jacobian
from upslope.exact.mdp import Array, FiniteMDP, finite_dense, to_float64
from upslope.exact.solve import require_finite_episodes

WEIGHTS = ("return", "reward_to_go")


@dataclass(frozen=True, kw_only=True, eq=False)
class Moments:
    """Moments of an estimator from one trajectory; of n independent ones, the covariance is /n."""

    mean: Tensor
    """E[X], of the shape of the parameters."""
    covariance: Tensor
    """Cov[X], [P, P] over the flattened parameters."""

    @property
    def variance(self) -> Tensor:
        """The variance of each component, of the shape of the parameters."""
        return self.covariance.diagonal().reshape(self.mean.shape)

    @property
    def total_variance(self) -> Tensor:
        """The trace of the covariance: E|X - E X|²."""
        return self.covariance.trace()


def reinforce_moments(
    mdp: FiniteMDP,
    policy_fn: PolicyFn,
    parameters: Array,
    *,
    weight: str = "reward_to_go",
    baseline: Array | None = None,
    discount_state: bool = True,
) -> Moments:
    """Return mean and covariance of REINFORCE's estimate from one trajectory.

    `weight` is "reward_to_go" or "return". `baseline` is subtracted from it: one number, or with
    reward_to_go one per state [S], such as `solve(...).v`. The mean is ∇J whatever the baseline;
    with discount_state=False, which drops γᵗ from reward_to_go and leaves "return" as it is, it is
    not. Episodes are followed to their end: no end is needed only where γ < 1 and γᵗ is kept.

    Memory grows as S P², and the problem is held dense. Raises what `policy_gradient` raises;
    ArgumentError for an unknown weight, a baseline [S] with "return", or a policy that does not end
    where it must; ShapeError for a baseline of another shape.
    """
    if weight not in WEIGHTS:
        raise ArgumentError(f"weight takes 'return' or 'reward_to_go', got {weight!r}")
    theta, policy = differentiable_policy(mdp, policy_fn, parameters)
    finite_dense(mdp)  # refuses a large problem before the derivatives of its policy are taken
    model = _Model(mdp, policy.detach(), policy_jacobian(mdp, policy_fn, parameters))
    if weight == "return" or not discount_state:
        require_finite_episodes(mdp, model.pi, model.chain)
    b = _baseline(mdp, weight, baseline)
    if weight == "return":
        mean, second = _total_return(model, b[0])
    else:
        mean, second = _reward_to_go(model, b, model.gamma if discount_state else 1.0)
    covariance = second - torch.outer(mean, mean)
    return Moments(mean=mean.reshape(theta.shape), covariance=(covariance + covariance.T) / 2)


class _Model:
    """The problem under the policy, dense, with what each moment needs of the first step.

    `score` [S, A, P] is ψ; sums over actions are weighted by π. `now`, `now2` [S, A] are E[r] and
    E[r²]. `p`, `pr`, `prr` [S, A, S] are p, p r and p r² of arriving somewhere.
    """

    def __init__(self, mdp: FiniteMDP, pi: Tensor, jacobian: Tensor):
        self.pi, self.gamma, self.start = pi, mdp.gamma, mdp.start
        self.p, arrival = finite_dense(mdp)
        reward = mdp.reward[:, :, None] if arrival is None else arrival
        self.pr = self.p * reward
        self.prr = self.pr * reward
        self.now = mdp.reward
        self.now2 = mdp.reward.square() if arrival is None else self.prr.sum(2)
        self.score = torch.where(pi[:, :, None] > 0, jacobian / pi[:, :, None], 0.0)
        self.chain: Chain = chain_under(mdp, pi)
        self._dense = Chain(torch.einsum("sa,sat->st", pi, self.p), None, None, mdp.n_states)

    def mean(self, by_action: Tensor) -> Tensor:
        """Return Σ_a π(a|s) x(s,a)."""
        return torch.einsum("sa,sa...->s...", self.pi, by_action)

    def scored(self, by_action: Tensor) -> Tensor:
        """Return Σ_a π(a|s) ψ(s,a) x(s,a), [S, P]."""
        return torch.einsum("sa,sap,sa->sp", self.pi, self.score, by_action)

    def twice_scored(self, by_action: Tensor) -> Tensor:
        """Return Σ_a π ψ ψᵀ x(s,a), [S, P, P]."""
        return torch.einsum("sa,sap,saq,sa->spq", self.pi, self.score, self.score, by_action)

    def crossed(self, by_action: Tensor) -> Tensor:
        """Return Σ_a π (ψ xᵀ + x ψᵀ) of a vector x(s,a) [S, A, P]: [S, P, P]."""
        product = torch.einsum("sa,sap,saq->spq", self.pi, self.score, by_action)
        return product + product.mT

    def accumulate(self, source: Tensor, discount: float) -> Tensor:
        """Return x = source + discount P_π x, with any number of dimensions after S."""
        flat = source.reshape(len(source), -1)
        return self._dense.solve(flat, discount).reshape(source.shape)


def _follow(weight: Tensor, value: Tensor) -> Tensor:
    """Return Σ_s' weight(s,a,s') value(s'), [S, A, ...]."""
    return torch.einsum("sat,t...->sa...", weight, value)


def _returns(m: _Model) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return E[G|s], E[G²|s] [S], and E[G|s,a], E[G²|s,a] [S, A]."""
    g = m.gamma
    v = m.accumulate(m.mean(m.now), g)
    q = m.now + g * _follow(m.p, v)
    before = m.now2 + 2 * g * _follow(m.pr, v)
    v2 = m.accumulate(m.mean(before), g**2)
    return v, v2, q, before + g**2 * _follow(m.p, v2)


def _reward_to_go(m: _Model, b: Tensor, kappa: float) -> tuple[Tensor, Tensor]:
    """Return E[X] and E[X Xᵀ] from the start, of X = (G - b(s)) ψ + κ X'."""
    _, _, q, q2 = _returns(m)
    at = b[:, None]
    mean = m.accumulate(m.scored(q - at), kappa)  # E[X|s]
    ahead, paid = _follow(m.p, mean), _follow(m.pr, mean)  # E[X'|s,a], E[r X'|s,a]
    joint = m.accumulate(m.scored(q2 - at * q) + kappa * m.mean(paid), kappa * m.gamma)  # E[G X|s]
    later = paid + m.gamma * _follow(m.p, joint) - at[:, :, None] * ahead  # E[(G - b) X'|s,a]
    source = m.twice_scored(q2 - 2 * at * q + at.square()) + kappa * m.crossed(later)
    second = m.accumulate(source, kappa**2)
    return m.start @ mean, torch.einsum("s,spq->pq", m.start, second)


def _total_return(m: _Model, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return E[X] and E[X Xᵀ] from the start, of X = (G - b) Z, with Z = ψ + Z'; E[Z|s] = 0."""
    g = m.gamma
    _, _, q, q2 = _returns(m)
    gz = m.accumulate(m.scored(q), g)  # E[G Z|s]
    gz_next, paid = _follow(m.p, gz), _follow(m.pr, gz)
    g2z = m.accumulate(m.scored(q2) + 2 * g * m.mean(paid), g**2)  # E[G² Z|s]
    zz = m.accumulate(m.twice_scored(torch.ones_like(q)), 1.0)  # E[Z Zᵀ|s]
    r_zz = _follow(m.pr, zz)
    gzz = m.accumulate(m.twice_scored(q) + g * m.crossed(gz_next) + m.mean(r_zz), g)
    squared = 2 * g * paid + g**2 * _follow(m.p, g2z)  # E[G² Z'|s,a]
    rest = _follow(m.prr, zz) + 2 * g * _follow(m.pr, gzz)
    g2zz = m.accumulate(m.twice_scored(q2) + m.crossed(squared) + m.mean(rest), g**2)
    second = g2zz - 2 * b * gzz + b**2 * zz  # E[(G - b)² Z Zᵀ|s]
    return m.start @ gz, torch.einsum("s,spq->pq", m.start, second)


def _baseline(mdp: FiniteMDP, weight: str, given: Array | None) -> Tensor:
    b = torch.zeros((), dtype=torch.float64) if given is None else to_float64("baseline", given)
    if b.shape == (mdp.n_states,) and weight == "return":
        raise ArgumentError("baseline takes one number with weight='return', got one per state")
    if b.shape not in ((), (mdp.n_states,)):
        raise ShapeError(
            f"baseline takes one number or an array [S] = [{mdp.n_states}], got {list(b.shape)}"
        )
    if not b.isfinite().all():
        raise ArgumentError("baseline takes finite numbers, got NaN or infinity")
    return b.detach().expand(mdp.n_states)
