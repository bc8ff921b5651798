"""Everything about a policy on a finite problem, by linear systems instead of sampling.

With P and r under the policy, and h the start:

    v = (I - γ P)⁻¹ r       q = R + γ p v        η = (I - γ Pᵀ)⁻¹ h
    J = h·v                 c = Σ η              μ = η / c

Discounted (γ < 1) and episodic (γ = 1) alike. In the average-reward setting μ is the stationary
distribution and v, q are differential values, with ρ = μ·r:

    μ = μ P, Σ μ = 1        (I - P + 1 μᵀ) v = r - ρ        q = R - ρ + p v        J = ρ

Sutton and Barto 2018, sections 3.5, 9.2, 10.3 and 13.2; Sutton et al. 2000, "Policy gradient
methods for reinforcement learning with function approximation".
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from upslope.errors import ArgumentError, ShapeError, suggest
from upslope.exact.chain import Chain, chain_under, expected_next
from upslope.exact.mdp import Array, FiniteMDP, sum_tolerance, to_float64
from upslope.exact.structure import often_visited, recurrent_classes, steps_to

SETTINGS = ("discounted", "episodic", "average")
LONGEST = 1e12  # steps: beyond, rounding takes the fourth digit, and soon all of them


@dataclass(frozen=True, kw_only=True, eq=False)
class Solution:
    """What `solve` finds: float64 tensors, differentiable in the policy where it asks for it."""

    v: Tensor
    """v(s) [S]; differential, with μ·v = 0, in the average-reward setting."""
    q: Tensor
    """q(s,a) [S, A]; differential in the average-reward setting."""
    visitation: Tensor
    """η(s) [S], the expected (discounted) number of visits; μ in the average-reward setting."""
    distribution: Tensor
    """μ(s) = η / c [S], the on-policy distribution; sums to 1."""
    scale: Tensor
    """c = Σ η: the mean episode length, discounted if γ < 1; 1 in the average-reward setting."""
    objective: Tensor
    """J: the expected return from the start, or the average reward per step."""
    policy: Tensor
    """π(a|s) [S, A], the policy that was solved."""
    setting: str
    """"discounted", "episodic" or "average"."""

    @property
    def advantage(self) -> Tensor:
        """q(s,a) - v(s), [S, A]."""
        return self.q - self.v[:, None]


def solve(mdp: FiniteMDP, policy: Array, setting: str | None = None) -> Solution:
    """Return values, visitation and objective of `policy` [S, A], exactly.

    `setting` is "discounted" (γ < 1), "episodic" (γ = 1) or "average"; by default what γ says.
    Rows of the policy are probabilities; zeros are fine, also of actions that would never end the
    episode. Where the policy requires a gradient, so does the solution, to any order.

    Raises ShapeError for a policy of another shape; ArgumentError for one that is no probability,
    a setting that γ contradicts, an episodic problem that the policy does not end from every state
    (one is named), and an average reward where rows sum below 1 or the chain has several recurrent
    classes. Periodic chains are right: nothing is iterated to a limit.
    """
    setting = resolve_setting(mdp, setting)
    pi = as_policy(mdp, policy)
    chain = chain_under(mdp, pi)
    reward = (pi * mdp.reward).sum(1)
    if setting == "average":
        return _solve_average(mdp, pi, chain, reward)
    if setting == "episodic":
        require_termination(mdp, pi, chain)
    v = chain.solve(reward, mdp.gamma)
    visitation = chain.solve(mdp.start, mdp.gamma, transpose=True)
    if setting == "episodic":
        _require_finite(chain, pi, v, visitation)
    scale = visitation.sum()
    return Solution(
        v=v,
        q=mdp.reward + mdp.gamma * expected_next(mdp, v),
        visitation=visitation,
        distribution=visitation / scale,
        scale=scale,
        objective=mdp.start @ v,
        policy=pi,
        setting=setting,
    )


def _solve_average(mdp: FiniteMDP, pi: Tensor, chain: Chain, reward: Tensor) -> Solution:
    """Solve between two visits of a recurrent state: there the problem is episodic."""
    here = _reference_state(chain)
    cut = chain.without_arrivals(here)
    once = torch.zeros(mdp.n_states, dtype=torch.float64)
    once[here] = 1
    visits = cut.solve(once, 1.0, transpose=True)
    _require_finite(cut, pi, visits)
    mu = visits / visits.sum()
    rho = mu @ reward
    v = cut.solve(reward - rho, 1.0)
    v = v - mu @ v
    return Solution(
        v=v,
        q=mdp.reward - rho + expected_next(mdp, v),
        visitation=mu,
        distribution=mu,
        scale=torch.ones((), dtype=torch.float64),
        objective=rho,
        policy=pi,
        setting="average",
    )


# ---------------------------------------------------------------- what is refused
def resolve_setting(mdp: FiniteMDP, setting: str | None) -> str:
    """Return the setting, by default what γ says; raise ArgumentError where γ contradicts it."""
    if not isinstance(mdp, FiniteMDP):
        raise ArgumentError(f"mdp takes a FiniteMDP, got {type(mdp).__name__}")
    by_gamma = "discounted" if mdp.gamma < 1 else "episodic"
    if setting is None or setting == by_gamma:
        return by_gamma
    if setting not in SETTINGS:
        raise ArgumentError(
            f"setting takes one of {', '.join(map(repr, SETTINGS))}, got {setting!r}"
            f"{suggest(setting, SETTINGS)}"
        )
    if setting != "average":
        needs = "gamma below 1" if setting == "discounted" else "gamma = 1"
        raise ArgumentError(f"setting {setting!r} takes an mdp with {needs}, got {mdp.gamma:g}")
    if (mdp.ending > 0).any():
        s, a = (int(i) for i in (mdp.ending > 0).nonzero()[0])
        raise ArgumentError(
            "setting 'average' takes an mdp whose episodes never end, got a row that sums to "
            f"{1 - mdp.ending[s, a].item():.12g} for state {s}, action {a}"
        )
    return setting


def as_policy(mdp: FiniteMDP, policy: Array) -> Tensor:
    """Return π [S, A] in float64, rows summing to exactly 1; gradients flow through."""
    pi = to_float64("policy", policy)
    shape = (mdp.n_states, mdp.n_actions)
    if pi.shape != shape:
        raise ShapeError(
            f"policy takes an array of shape [S, A] = {list(shape)}, got {list(pi.shape)}"
        )
    value = pi.detach()
    total = value.sum(1, keepdim=True)
    near = (total - 1).abs() <= sum_tolerance(policy)
    wrong = ~((value >= 0).all(1) & near[:, 0])  # NaN fails both
    if wrong.any():
        s = int(wrong.nonzero()[0])
        row = [float(f"{p:.6g}") for p in value[s].tolist()]
        raise ArgumentError(
            f"policy takes probabilities of at least 0 that sum to 1 in each state, got {row} in "
            f"state {s}"
        )
    return pi / total


def require_termination(mdp: FiniteMDP, pi: Tensor, chain: Chain) -> None:
    """Raise ArgumentError, naming a state, unless episodes end surely from every state."""
    ends = ((pi.detach() > 0) & (mdp.ending > 0)).any(1).numpy()
    distance = steps_to(chain.matrix(), ends)
    if (distance < 0).any():
        raise ArgumentError(
            "policy takes one that surely ends the episode from every state, as nothing is "
            f"discounted; from state {int((distance < 0).argmax())} it never does"
        )


def require_finite_episodes(mdp: FiniteMDP, pi: Tensor, chain: Chain) -> None:
    """Raise ArgumentError unless episodes end surely, and soon enough for float64, whatever γ."""
    require_termination(mdp, pi, chain)
    _require_finite(chain, pi)


def _reference_state(chain: Chain) -> int:
    """Return an often visited state of the one recurrent class; refuse several."""
    matrix = chain.matrix()
    classes = recurrent_classes(matrix)
    if len(classes) > 1:
        one, other = (int(states[0]) for states in classes[:2])
        raise ArgumentError(
            "policy takes one whose chain has a single recurrent class, as the average reward "
            f"depends on the start otherwise; got {len(classes)} of them, states {one} and "
            f"{other} in different ones"
        )
    return often_visited(matrix, classes[0])


def _require_finite(chain: Chain, pi: Tensor, *found: Tensor) -> None:
    """Refuse what ends in theory only: leaving has a probability that float64 cannot resolve."""
    ones = torch.ones(chain.states, dtype=torch.float64)
    length = chain.solve(ones, 1.0).detach()
    wrong = ~((length > 0) & (length < LONGEST))
    if wrong.any() or not all(x.detach().isfinite().all() for x in found):
        state = int(wrong.nonzero()[0]) if wrong.any() else 0
        raise ArgumentError(
            f"policy takes one whose episodes last below {LONGEST:g} steps on average, which is "
            f"what float64 can resolve; from state {state} they last longer (smallest probability "
            f"{pi.detach()[pi.detach() > 0].min().item():.3g})"
        )
