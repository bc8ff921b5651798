"""Fisher information and the natural gradient."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.exact.cases import close, layered_problem, linear, masked, random_problem, tabular
from upslope import exact
from upslope.errors import ArgumentError
from upslope.exact import enumerate_trajectories, fisher, natural_gradient, policy_gradient, solve


def scores(policy_fn, theta: torch.Tensor) -> torch.Tensor:
    """∇ ln π(a|s), [S, A, P]."""
    return torch.autograd.functional.jacobian(lambda x: policy_fn(x).log(), theta).flatten(2)


@pytest.mark.parametrize(("gamma", "setting"), [(0.8, None), (1.0, None), (0.8, "average")])
def test_fisher_is_the_covariance_of_the_score(gamma, setting):
    mdp = random_problem(1, gamma=gamma, ends=setting is None)
    for policy_fn, theta in (
        (tabular, torch.randn(4, 3).double()),
        (linear(mdp), torch.ones(2).double()),
    ):
        psi, pi = scores(policy_fn, theta), policy_fn(theta)
        mu = solve(mdp, pi, setting).distribution
        total = sum(
            mu[s] * pi[s, a] * torch.outer(psi[s, a], psi[s, a]) for s in range(4) for a in range(3)
        )
        close(fisher(mdp, policy_fn, theta, setting), total)
        mean = torch.einsum("s,sa,sap->p", mu, pi, psi)
        close(mean, torch.zeros_like(mean))


@pytest.mark.parametrize("gamma", [1.0, 0.7])
def test_fisher_of_trajectories_by_enumeration(gamma):
    """With γ < 1, each step goes on with probability γ: the trajectories of the thinned chain."""
    mdp = layered_problem(2, gamma)
    killed = exact.FiniteMDP(gamma * mdp.transition, mdp.reward, mdp.start, 1.0)
    policy_fn, theta = linear(mdp, 3), torch.tensor([0.5, -1.0, 0.2], dtype=torch.float64)
    psi = scores(policy_fn, theta)
    total, mean = torch.zeros(3, 3).double(), torch.zeros(3).double()
    for probability, tau in enumerate_trajectories(killed, policy_fn(theta), 3):
        score = psi[list(tau.states), list(tau.actions)].sum(0)
        total += probability * torch.outer(score, score)
        mean += probability * score
    close(mean, torch.zeros(3), atol=1e-14)
    information = fisher(mdp, policy_fn, theta, of="trajectory")
    close(information, total)
    close(information, solve(mdp, policy_fn(theta)).scale * fisher(mdp, policy_fn, theta))


def test_in_the_average_both_are_the_same():
    mdp = random_problem(4, ends=False)
    both = [
        fisher(mdp, tabular, torch.ones(4, 3), "average", of=k) for k in ("action", "trajectory")
    ]
    close(*both, atol=0)


def test_softmax_natural_gradient():
    """F⁺ ∇ E[f] of a softmax is f minus its mean, whatever the parameters."""

    def pi(theta):
        return torch.softmax(theta, 0)[None]

    at = torch.tensor([0.0, 1.0, -1.0])
    close(natural_gradient(exact.bandit([1, 2, 5]), pi, at), [-5 / 3, -2 / 3, 7 / 3])
    p = torch.softmax(at.double(), 0)
    close(fisher(exact.bandit([1, 2, 5]), pi, at), torch.diag(p) - torch.outer(p, p))


def test_natural_gradient_of_a_tabular_softmax_is_the_advantage():
    """Kakade 2001, theorem 1, with compatible features of a table: c (q - mean_a q)."""
    mdp = random_problem(5)
    theta = torch.from_numpy(np.random.default_rng(0).normal(size=(4, 3)))
    s = solve(mdp, tabular(theta))
    close(natural_gradient(mdp, tabular, theta), s.scale * (s.q - s.q.mean(1, keepdim=True)), 1e-8)


def test_natural_gradient_is_pinv_of_fisher_times_gradient():
    mdp = random_problem(6, gamma=1.0)
    policy_fn, theta = linear(mdp, 3), torch.ones(3, 1)
    product = torch.linalg.pinv(fisher(mdp, policy_fn, theta)) @ policy_gradient(
        mdp, policy_fn, theta
    )
    assert natural_gradient(mdp, policy_fn, theta).shape == (3, 1)
    close(natural_gradient(mdp, policy_fn, theta), product)


def test_natural_gradient_does_not_depend_on_the_parametrisation():
    """θ = B φ gives the step B dφ = dθ."""
    mdp = random_problem(7)
    policy_fn = linear(mdp, 2)
    b = torch.tensor([[2.0, 1.0], [0.5, -3.0]], dtype=torch.float64)
    phi = torch.tensor([0.3, 0.1], dtype=torch.float64)
    step = natural_gradient(mdp, lambda x: policy_fn(b @ x), phi)
    close(b @ step, natural_gradient(mdp, policy_fn, b @ phi))
    plain = policy_gradient(mdp, lambda x: policy_fn(b @ x), phi)
    assert not torch.allclose(b @ plain, policy_gradient(mdp, policy_fn, b @ phi), rtol=0.1)


def test_masked_actions_have_no_information():
    mdp = random_problem(8)
    mask = torch.tensor([[True, True, False]] * 4)
    information = fisher(mdp, masked(mask), torch.ones(4, 3)).reshape(4, 3, 4, 3)
    assert information.isfinite().all()
    assert (information[:, 2] == 0).all()
    assert (natural_gradient(mdp, masked(mask), torch.ones(4, 3))[:, 2] == 0).all()


def test_refusals():
    with pytest.raises(ArgumentError, match="of takes 'action' or 'trajectory', got 'state'"):
        fisher(
            exact.bandit([1, 2]), lambda x: torch.softmax(x, 0)[None], torch.zeros(2), of="state"
        )
    with pytest.raises(ArgumentError, match="without gradient"):
        natural_gradient(exact.bandit([1, 2]), lambda x: torch.full((1, 2), 0.5), torch.zeros(2))


def test_small_information_is_still_information():
    """States that are rarely left to chance: eigenvalues of F from 1e-8 on, none may be dropped."""
    mdp = random_problem(9)
    theta = torch.tensor([[9.0, 0.0, -9.0], [0.0, 9.0, 0.0], [0.0, 0.0, 0.0], [1.0, 2.0, 3.0]])
    s = solve(mdp, tabular(theta.double()))
    truth = s.scale * (s.q - s.q.mean(1, keepdim=True))
    close(natural_gradient(mdp, tabular, theta), truth, atol=1e-5)
