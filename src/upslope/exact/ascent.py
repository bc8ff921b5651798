"""Gradient ascent with the exact gradient: what an agent does, without the noise.

    θ ← θ + α ∇J(θ)        or, with the natural gradient,        θ ← θ + α F⁺ ∇J(θ)

Where an agent's curve differs from this one, the difference is sampling. Sutton and Barto 2018,
equation 13.1; Kakade 2001.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from upslope.errors import ArgumentError, NotFiniteError
from upslope.exact.gradient import PolicyFn, differentiable_policy, policy_gradient
from upslope.exact.mdp import Array, FiniteMDP
from upslope.exact.solve import Solution, solve


@dataclass(frozen=True, kw_only=True, eq=False)
class Ascent:
    """The path of an ascent of K steps."""

    parameters: Tensor
    """[K + 1, ...]: the parameters before the first step, and after each."""
    objective: Tensor
    """[K + 1]: J of each of them."""
    solution: Solution
    """Everything about the last policy."""


def gradient_ascent(
    mdp: FiniteMDP,
    policy_fn: PolicyFn,
    parameters: Array,
    *,
    step_size: float,
    steps: int,
    direction: Callable[..., Tensor] = policy_gradient,
    setting: str | None = None,
) -> Ascent:
    """Follow `direction` for `steps` steps θ ← θ + step_size · direction(θ), and return the path.

    `direction` is `policy_gradient`, `natural_gradient`, or a function of the same arguments.
    Raises what `policy_gradient` raises, ArgumentError for a step size that is not positive or a
    number of steps that is negative, and NotFiniteError where the parameters overflow.
    """
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 0:
        raise ArgumentError(f"steps takes a whole number of at least 0, got {steps!r}")
    if not isinstance(step_size, int | float) or not 0 < step_size < float("inf"):
        raise ArgumentError(f"step_size takes a finite number above 0, got {step_size!r}")
    theta, policy = differentiable_policy(mdp, policy_fn, parameters)
    solution = solve(mdp, policy.detach(), setting)
    path, objective = [theta.detach()], [solution.objective]
    for step in range(steps):
        after = path[-1] + step_size * direction(mdp, policy_fn, path[-1], setting)
        if not after.isfinite().all():
            raise NotFiniteError(f"the parameters became NaN or infinite in step {step + 1}")
        _, policy = differentiable_policy(mdp, policy_fn, after)
        solution = solve(mdp, policy.detach(), setting)
        path.append(after)
        objective.append(solution.objective)
    return Ascent(parameters=torch.stack(path), objective=torch.stack(objective), solution=solution)
