"""How far apart two policies are, and the direction of steepest ascent in that measure.

    F = Σ_s μ(s) Σ_a π(a|s) ∇ln π(a|s) ∇ln π(a|s)ᵀ        natural gradient = F⁺ ∇J

F is the covariance of the score, as the score has mean zero. The score of a whole trajectory is the
sum of those of its actions, which are uncorrelated: its covariance is Σ η(s) F_s = c F.

Kakade 2001, "A natural policy gradient"; Bagnell and Schneider 2003, "Covariant policy search";
Amari 1998.
"""

from __future__ import annotations

import torch
from torch import Tensor

from upslope.errors import ArgumentError
from upslope.exact.gradient import (
    PolicyFn,
    differentiable_policy,
    policy_gradient,
    score_covariance,
)
from upslope.exact.mdp import Array, FiniteMDP
from upslope.exact.solve import solve

RANK_TOLERANCE = 1e-12  # eigenvalues of F below this part of the largest are rounding


def fisher(
    mdp: FiniteMDP,
    policy_fn: PolicyFn,
    parameters: Array,
    setting: str | None = None,
    *,
    of: str = "action",
) -> Tensor:
    """Return the Fisher information [P, P] over the flattened parameters.

    of="action": of the policy in the states that it visits, weighted by μ. of="trajectory": of the
    distribution over trajectories, c times as large; with γ < 1, γ counts as the probability that
    the trajectory goes on; in the average-reward setting it is the information per step, and the
    same as the first. Actions of probability 0 count nothing.

    Raises what `policy_gradient` raises, and ArgumentError for another `of`.
    """
    if of not in ("action", "trajectory"):
        raise ArgumentError(f"of takes 'action' or 'trajectory', got {of!r}")
    _, policy = differentiable_policy(mdp, policy_fn, parameters)
    s = solve(mdp, policy.detach(), setting)
    weight = s.distribution if of == "action" else s.visitation
    return score_covariance(mdp, policy_fn, parameters, weight)


def natural_gradient(
    mdp: FiniteMDP, policy_fn: PolicyFn, parameters: Array, setting: str | None = None
) -> Tensor:
    """Return pinv(F) ∇J, undamped, of the shape of `parameters`; F is the actions' Fisher.

    Directions that do not change the policy have no information and get no step. Raises what
    `policy_gradient` raises.
    """
    gradient = policy_gradient(mdp, policy_fn, parameters, setting)
    information = fisher(mdp, policy_fn, parameters, setting)
    inverse = torch.linalg.pinv(information, rtol=RANK_TOLERANCE, hermitian=True)
    return (inverse @ gradient.reshape(-1)).reshape(gradient.shape)
