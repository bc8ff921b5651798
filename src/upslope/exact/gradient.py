"""The gradient of the objective in a policy's parameters, exactly, by three roads.

    theorem       ∇J = Σ_s η(s) Σ_a q(s,a) ∇π(a|s)
    autograd      ∇ of J = h·(I - γ P_π)⁻¹ r_π, through the linear solve
    enumeration   ∇J = Σ_τ P(τ) R(τ) Σ_t ∇ ln π(a_t|s_t), over every trajectory

The first needs the derivative of neither η nor q: that is the theorem. With η = c μ it says that
∇J is directly proportional to Σ μ Σ q ∇π, the constant c being the mean episode length (episodic),
E[Σ γᵗ] (discounted) or 1 (average reward).

Sutton and Barto 2018, equations 13.5 and 13.14 to 13.16; Sutton et al. 2000, theorem 1. The last
road is Williams 1992, with the sum over all trajectories, not over sampled ones.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from upslope.errors import ArgumentError, NotFiniteError
from upslope.exact.mdp import Array, FiniteMDP, to_float64
from upslope.exact.solve import as_policy, resolve_setting, solve
from upslope.exact.trajectories import enumerate_trajectories

PolicyFn = Callable[[Tensor], Tensor]
"""parameters -> π(a|s) [S, A], differentiable by torch."""


def policy_gradient(
    mdp: FiniteMDP, policy_fn: PolicyFn, parameters: Array, setting: str | None = None
) -> Tensor:
    """Return ∇J = Σ_s η(s) Σ_a q(s,a) ∇π(a|s), of the shape of `parameters`.

    `policy_fn` is called with the parameters in float64 and returns π [S, A]. It may share
    parameters between states, mask actions with -inf logits, or be any torch code. The gradient is
    that of J, discounted from the start: with γ < 1 the weight of a later state is smaller. What
    samplers leave out when they drop γᵗ is not left out here.

    Raises what `solve` raises, ArgumentError for a policy that does not depend on the parameters,
    and NotFiniteError for a gradient that is not finite.
    """
    theta, policy = differentiable_policy(mdp, policy_fn, parameters)
    s = solve(mdp, policy.detach(), setting)
    return _differentiate((s.visitation[:, None] * s.q * policy).sum(), theta)


def policy_gradient_by_autograd(
    mdp: FiniteMDP, policy_fn: PolicyFn, parameters: Array, setting: str | None = None
) -> Tensor:
    """Return ∇J by differentiating J through the linear solve; equals `policy_gradient`.

    Raises what `policy_gradient` raises.
    """
    theta, policy = differentiable_policy(mdp, policy_fn, parameters)
    return _differentiate(solve(mdp, policy, setting).objective, theta)


def policy_gradient_by_enumeration(
    mdp: FiniteMDP, policy_fn: PolicyFn, parameters: Array, horizon: int
) -> Tensor:
    """Return Σ_τ P(τ) R(τ) Σ_t ∇ ln π(a_t|s_t) over all trajectories of at most `horizon` steps.

    R(τ) = Σ_t γᵗ r_t. Longer episodes are cut: it is the gradient of E[Σ_{t<horizon} γᵗ r_t], and
    equals `policy_gradient` where every episode ends within the horizon, or in the limit. The
    number of trajectories grows exponentially with the horizon; they are not stored.

    Raises what `enumerate_trajectories` and `policy_gradient` raise.
    """
    theta, policy = differentiable_policy(mdp, policy_fn, parameters)
    weight = torch.zeros_like(policy, requires_grad=False)
    for probability, tau in enumerate_trajectories(mdp, policy, horizon):
        at = (torch.tensor(tau.states, dtype=torch.long), torch.tensor(tau.actions).long())
        worth = weight.new_tensor(probability * tau.discounted_return(mdp.gamma))
        weight.index_put_(at, worth.expand(len(tau.states)), accumulate=True)
    taken = policy > 0
    return _differentiate((weight[taken] * policy[taken].log()).sum(), theta)


def hessian(
    mdp: FiniteMDP, policy_fn: PolicyFn, parameters: Array, setting: str | None = None
) -> Tensor:
    """Return ∇²J [P, P] over the flattened parameters, by differentiating the solve twice.

    Symmetric. Raises what `policy_gradient` raises.
    """
    theta, policy = differentiable_policy(mdp, policy_fn, parameters)
    objective = solve(mdp, policy, setting).objective
    (first,) = torch.autograd.grad(objective, theta, create_graph=True)
    rows = [_row(component, theta) for component in first.reshape(-1)]
    return _finite(torch.stack(rows) if rows else torch.zeros(0, 0, dtype=torch.float64))


def score_covariance(
    mdp: FiniteMDP, policy_fn: PolicyFn, parameters: Array, weight: Tensor
) -> Tensor:
    """Return Σ_s weight(s) Σ_a π ∇ln π ∇ln πᵀ = Σ weight Σ ∇π ∇πᵀ / π, [P, P].

    Actions of probability 0 have no score and count nothing.
    """
    jacobian = policy_jacobian(mdp, policy_fn, parameters)
    _, policy = differentiable_policy(mdp, policy_fn, parameters)
    pi = policy.detach()
    by_action = torch.where(pi > 0, weight[:, None] / pi, 0.0).reshape(-1, 1)
    flat = jacobian.reshape(pi.numel(), -1)
    return _finite(flat.T @ (by_action * flat))


def policy_jacobian(mdp: FiniteMDP, policy_fn: PolicyFn, parameters: Array) -> Tensor:
    """Return ∇π(a|s) [S, A, P] over the flattened parameters."""
    theta, policy = differentiable_policy(mdp, policy_fn, parameters)
    rows = [_row(entry, theta) for entry in policy.reshape(-1)]
    return _finite(torch.stack(rows).reshape(*policy.shape, theta.numel()))


def differentiable_policy(
    mdp: FiniteMDP, policy_fn: PolicyFn, parameters: Array
) -> tuple[Tensor, Tensor]:
    """Return the parameters as a float64 leaf, and π [S, A] computed from them."""
    resolve_setting(mdp, None)
    theta = to_float64("parameters", parameters).detach().clone().requires_grad_()
    if not callable(policy_fn):
        raise ArgumentError(
            f"policy_fn takes a function of the parameters, got {type(policy_fn).__name__}"
        )
    policy = policy_fn(theta)
    if not isinstance(policy, Tensor) or not policy.requires_grad:
        got = f"a {type(policy).__name__}" + (" without gradient" * isinstance(policy, Tensor))
        raise ArgumentError(
            "policy_fn takes a function of parameters that returns a tensor [S, A] which can be "
            f"differentiated in them, got one that returns {got}"
        )
    return theta, as_policy(mdp, policy)


def _differentiate(objective: Tensor, theta: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(objective, theta, allow_unused=True, materialize_grads=True)
    return _finite(gradient)


def _row(entry: Tensor, theta: Tensor) -> Tensor:
    """Return the derivative of one number in all parameters, flat; zero where it is constant."""
    if not entry.requires_grad:
        return torch.zeros(theta.numel(), dtype=torch.float64)
    (row,) = torch.autograd.grad(
        entry, theta, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return row.reshape(-1)


def _finite(gradient: Tensor) -> Tensor:
    if not gradient.isfinite().all():
        raise NotFiniteError(
            "policy_fn takes a function with a finite derivative at these parameters, got NaN or "
            "infinity"
        )
    return gradient
