"""The policy gradient by the theorem, by autograd, by enumeration, and by finite differences."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.exact.cases import (
    close,
    finite_difference,
    layered_problem,
    linear,
    masked,
    random_policy,
    random_problem,
    shared,
    tabular,
)
from upslope import exact
from upslope.errors import ArgumentError, NotFiniteError, ShapeError
from upslope.exact import (
    enumerate_trajectories,
    hessian,
    policy_gradient,
    policy_gradient_by_autograd,
    policy_gradient_by_enumeration,
    solve,
)


def corridor(theta: torch.Tensor) -> torch.Tensor:
    """Softmax of (right, left), the same in all states."""
    return torch.softmax(theta, 0).flip(0).expand(3, 2)


def gradient_at(mdp, policy_fn, setting, theta) -> torch.Tensor:
    return policy_gradient(mdp, policy_fn, theta, setting)


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


# ---------------------------------------------------------------- numbers
def test_short_corridor():
    g = policy_gradient(exact.short_corridor(), corridor, torch.zeros(2))
    close(g, [2, -2])
    assert (g.dtype, g.shape) == (torch.float64, (2,))
    best = 2 - math.sqrt(2)
    at = torch.tensor([math.log(best / (1 - best)), 0.0], dtype=torch.float64)
    close(policy_gradient(exact.short_corridor(), corridor, at), [0, 0])
    assert (torch.linalg.eigvalsh(hessian(exact.short_corridor(), corridor, at)) < 1e-9).all()


def test_short_corridor_second_derivative():
    """v = -(4 - 2p) / (p - p²) with p the sigmoid of θ_r - θ_l, differentiated by hand."""
    p = 0.3
    at = torch.tensor([math.log(p / (1 - p)), 0.0])
    n, d, dn, dd = 4 - 2 * p, p - p * p, -2, 1 - 2 * p
    first = -(dn * d - n * dd) / d**2
    second = -(2 * n * d - 2 * dd * (dn * d - n * dd)) / d**3
    slope, curve = p * (1 - p), p * (1 - p) * (1 - 2 * p)
    one = second * slope**2 + first * curve
    close(
        policy_gradient(exact.short_corridor(), corridor, at), [first * slope, -first * slope], 1e-5
    )
    close(hessian(exact.short_corridor(), corridor, at), [[one, -one], [-one, one]], atol=1e-4)


def test_softmax():
    def pi(theta):
        return torch.softmax(theta, 0)[None]

    g = policy_gradient(exact.bandit([1, 2, 5]), pi, torch.tensor([0.0, 1.0, -1.0]))
    close(g, [-0.25093558007050, -0.01687267164465, 0.26780825171515], atol=1e-14)


# ---------------------------------------------------------------- all roads agree
@settings(max_examples=25)
@given(
    st.integers(0, 10**6),
    st.sampled_from([(0.0, None), (0.8, None), (1.0, None), (0.8, "average"), (1.0, "average")]),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["tabular", "linear", "shared", "masked"]),
)
def test_theorem_equals_autograd_equals_differences(seed, case, arrival, as_sparse, kind):
    gamma, setting = case
    ends = setting is None
    mdp = random_problem(seed, gamma=gamma, ends=ends, arrival=arrival, as_sparse=as_sparse)
    mask = torch.ones(4, 3, dtype=torch.bool)
    mask[1, 2] = mask[3, 0] = False
    policy_fn, shape = {
        "tabular": (tabular, (4, 3)),
        "linear": (linear(mdp), (2, 1)),
        "shared": (shared(mdp), (3,)),
        "masked": (masked(mask), (4, 3)),
    }[kind]
    theta = normal(seed, *shape)
    g = policy_gradient(mdp, policy_fn, theta, setting)
    assert g.shape == shape
    size = 1 + g.abs().max().item()
    close(policy_gradient_by_autograd(mdp, policy_fn, theta, setting), g, atol=1e-11 * size)
    by_difference = finite_difference(
        lambda x: solve(mdp, policy_fn(x), setting).objective, theta
    ).reshape(shape)
    close(by_difference, g, atol=1e-6 * size)
    if kind == "masked":
        assert (g[~mask] == 0).all()


@pytest.mark.parametrize("gamma", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("arrival", [False, True])
def test_enumeration_where_every_episode_is_short(gamma, arrival):
    mdp = layered_problem(1, gamma, arrival=arrival)
    for policy_fn, shape in ((tabular, (6, 2)), (linear(mdp, 3), (3,))):
        theta = normal(2, *shape)
        g = policy_gradient(mdp, policy_fn, theta)
        close(policy_gradient_by_enumeration(mdp, policy_fn, theta, 3), g, atol=1e-13)
        assert not torch.allclose(policy_gradient_by_enumeration(mdp, policy_fn, theta, 1), g) or (
            gamma == 0
        )


def test_enumeration_tends_to_the_theorem():
    mdp = random_problem(3, 2, 2, gamma=0.3)
    theta = normal(4, 2, 2)
    g = policy_gradient(mdp, tabular, theta)
    errors = [
        (policy_gradient_by_enumeration(mdp, tabular, theta, h) - g).abs().max() for h in (2, 4, 6)
    ]
    assert errors[2] < errors[1] < errors[0]
    assert errors[2] < 1e-3


@pytest.mark.parametrize("as_sparse", [False, True])
@pytest.mark.parametrize(("gamma", "setting"), [(0.8, None), (1.0, None), (0.8, "average")])
def test_hessian_equals_differences_of_the_gradient(gamma, setting, as_sparse):
    mdp = random_problem(7, gamma=gamma, ends=setting is None, as_sparse=as_sparse)
    for policy_fn, shape in ((tabular, (4, 3)), (linear(mdp), (2,))):
        theta = normal(8, *shape)
        h = hessian(mdp, policy_fn, theta, setting)
        assert h.shape == (theta.numel(), theta.numel())
        close(h, h.T)
        rows = finite_difference(partial(gradient_at, mdp, policy_fn, setting), theta)
        close(rows.reshape(h.shape), h, atol=1e-6 * (1 + h.abs().max().item()))


def test_hessian_by_enumeration():
    """∇²J = Σ P(τ) R(τ) (score scoreᵀ + ∇² ln P)."""
    mdp = layered_problem(5, 0.9)
    policy_fn, theta = linear(mdp, 2), normal(6, 2).requires_grad_()
    total = torch.zeros(2, 2, dtype=torch.float64)
    for probability, tau in enumerate_trajectories(mdp, policy_fn(theta), 3):

        def log_probability(x, tau=tau):
            return policy_fn(x).log()[list(tau.states), list(tau.actions)].sum()

        (score,) = torch.autograd.grad(log_probability(theta), theta)
        curve = torch.autograd.functional.hessian(log_probability, theta.detach())
        total += probability * tau.discounted_return(0.9) * (torch.outer(score, score) + curve)
    close(hessian(mdp, policy_fn, theta), total, atol=1e-13)


# ---------------------------------------------------------------- the proof, step by step
@pytest.mark.parametrize("gamma", [1.0, 0.8])
def test_each_step_of_the_proof(gamma):
    """Sutton and Barto's proof (page 325, there for γ = 1), one line after another."""
    mdp = random_problem(9, gamma=gamma)
    policy_fn = linear(mdp, 2)
    theta = normal(10, 2)
    pi, s = policy_fn(theta), solve(mdp, policy_fn(theta))
    d_v = finite_difference(lambda x: solve(mdp, policy_fn(x)).v, theta)  # [P, S]
    d_q = finite_difference(lambda x: solve(mdp, policy_fn(x)).q, theta)  # [P, S, A]
    d_pi = finite_difference(policy_fn, theta)
    # v = Σ_a π q, by the rule of the product
    close(d_v, (d_pi * s.q + pi * d_q).sum(2), atol=1e-6)
    # ∇q = γ Σ_s' p ∇v(s'): reward and dynamics do not depend on θ
    close(d_q, gamma * torch.einsum("sat,pt->psa", mdp.transition, d_v), atol=1e-6)
    # unrolled for ever: ∇v(s) = Σ_x Σ_k γᵏ Pr(s → x, k) Σ_a ∇π(a|x) q(x,a)
    p = torch.einsum("sa,sat->st", pi, mdp.transition)
    reach = sum(gamma**k * torch.linalg.matrix_power(p, k) for k in range(300))
    local = (d_pi * s.q).sum(2)
    close(d_v, torch.einsum("sx,px->ps", reach, local), atol=1e-6)
    # from the start: η(x) = Σ_k γᵏ Pr(x, k), and ∇J = Σ η(x) ... = c Σ μ(x) ...
    close(s.visitation, mdp.start @ reach)
    g = policy_gradient(mdp, policy_fn, theta)
    close(g, local @ s.visitation, atol=1e-6)
    close(g, s.scale * (local @ s.distribution), atol=1e-6)
    # and any baseline of the state drops out, as Σ_a ∇π = 0
    close(d_pi.sum(2), torch.zeros(2, 4), atol=1e-9)
    close(g, (d_pi * s.advantage).sum(2) @ s.visitation, atol=1e-6)


def test_proportional_with_the_mean_length():
    """Direct proportionality: c is the mean episode length, E[Σ γᵗ], and 1."""
    mdp = layered_problem(0, 1.0)
    policy = random_policy(1, mdp)
    length = sum(p * len(tau.states) for p, tau in enumerate_trajectories(mdp, policy, 3))
    close(solve(mdp, policy).scale, length)
    mdp = layered_problem(0, 0.5)
    weights = sum(
        p * sum(0.5**t for t in range(len(tau.states)))
        for p, tau in enumerate_trajectories(mdp, policy, 3)
    )
    close(solve(mdp, policy).scale, weights)


# ---------------------------------------------------------------- edges
def test_parameters_of_any_kind():
    mdp = exact.bandit([1, 2, 5])

    def pi(theta):
        return torch.softmax(theta.reshape(-1), 0)[None]

    truth = policy_gradient(mdp, pi, torch.zeros(3))
    for given_as in (np.zeros(3), [0, 0, 0], torch.zeros(3, requires_grad=True), np.zeros(3, int)):
        close(policy_gradient(mdp, pi, given_as), truth, atol=0)
    assert policy_gradient(mdp, pi, torch.zeros(1, 3, 1)).shape == (1, 3, 1)


def test_the_policy_itself_as_parameters():
    mdp = random_problem(1)
    policy = random_policy(2, mdp)
    s = solve(mdp, policy)
    for road in (policy_gradient, policy_gradient_by_autograd):
        close(road(mdp, lambda x: x, policy), s.visitation[:, None] * s.q)


def test_parameters_that_are_not_used_have_no_gradient():
    g = policy_gradient(
        exact.bandit([1, 2]), lambda x: torch.softmax(x[:2], 0)[None], torch.zeros(5)
    )
    assert (g[2:] == 0).all()
    assert (g[:2] != 0).all()


def test_masked_logits_have_finite_derivatives():
    mdp = random_problem(2)
    mask = torch.tensor([[True, True, False]] * 4)
    theta = normal(3, 4, 3)
    assert (hessian(mdp, masked(mask), theta).reshape(4, 3, 4, 3)[:, 2] == 0).all()
    g = policy_gradient_by_enumeration(
        layered_problem(1, 1.0), masked(mask[:, 1:].repeat(2, 1)[:6]), normal(0, 6, 2), 3
    )
    assert g.isfinite().all()


def test_parameters_are_not_touched():
    theta = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    policy_gradient(exact.short_corridor(), corridor, theta)
    assert theta.grad is None
    assert (theta == 0).all()


@pytest.mark.parametrize("road", [policy_gradient, policy_gradient_by_autograd, hessian])
def test_refusals(road):
    mdp = exact.short_corridor()
    with pytest.raises(ArgumentError, match=r"differentiated in them, got .* Tensor without grad"):
        road(mdp, lambda x: torch.full((3, 2), 0.5), torch.zeros(2))
    with pytest.raises(ArgumentError, match=r"policy_fn takes a function of .*, got int"):
        road(mdp, 3, torch.zeros(2))
    with pytest.raises(ArgumentError, match="returns a ndarray"):
        road(mdp, lambda x: np.full((3, 2), 0.5), torch.zeros(2))
    with pytest.raises(ShapeError, match=r"policy takes .* \[3, 2\], got \[2\]"):
        road(mdp, lambda x: torch.softmax(x, 0), torch.zeros(2))
    with pytest.raises(ArgumentError, match="sum to 1"):
        road(mdp, lambda x: x.exp().expand(3, 2), torch.zeros(2))
    with pytest.raises(ArgumentError, match="parameters takes an array of real numbers, got dict"):
        road(mdp, corridor, {"theta": torch.zeros(2)})
    with pytest.raises(ArgumentError, match="never does"):
        road(mdp, lambda x: torch.softmax(x, 0).expand(3, 2), torch.tensor([800.0, 0.0]))
    with pytest.raises(ArgumentError, match="setting 'average'"):
        road(mdp, corridor, torch.zeros(2), "average")


def test_a_derivative_that_is_not_finite():
    def pi(theta):
        p = theta.sqrt()
        return torch.stack([p, 1 - p], -1)

    with pytest.raises(NotFiniteError, match="finite derivative"):
        policy_gradient(exact.bandit([0, 1]), pi, torch.zeros(1))
