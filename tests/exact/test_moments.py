"""Mean and covariance of REINFORCE's estimators against enumeration and sampling."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.exact.cases import (
    close,
    layered_problem,
    linear,
    masked,
    random_problem,
    shared,
    tabular,
)
from upslope import exact
from upslope.errors import ArgumentError, ShapeError
from upslope.exact import enumerate_trajectories, policy_gradient, reinforce_moments, solve


def scores(policy_fn, theta) -> torch.Tensor:
    return torch.autograd.functional.jacobian(lambda x: policy_fn(x).log(), theta).flatten(2)


def estimate(tau, psi, gamma, weight, baseline, discount_state) -> torch.Tensor:
    """REINFORCE's estimate from one trajectory, by its definition."""
    total = torch.zeros(psi.shape[-1], dtype=torch.float64)
    for t, (s, a) in enumerate(zip(tau.states, tau.actions, strict=True)):
        if weight == "return":
            total += (tau.discounted_return(gamma) - baseline[s]) * psi[s, a]
        else:
            discount = gamma**t if discount_state else 1.0
            total += discount * (tau.discounted_return(gamma, since=t) - baseline[s]) * psi[s, a]
    return total


CASES = [
    ("return", None, True),
    ("return", 0.7, True),
    ("reward_to_go", None, True),
    ("reward_to_go", -0.4, True),
    ("reward_to_go", "v", True),
    ("reward_to_go", "v", False),
    ("reward_to_go", None, False),
]


@pytest.mark.slow
@pytest.mark.parametrize(("weight", "baseline", "discount_state"), CASES)
@pytest.mark.parametrize("arrival", [False, True])
@pytest.mark.parametrize("gamma", [1.0, 0.7, 0.0])
def test_against_enumeration(gamma, arrival, weight, baseline, discount_state):
    mdp = layered_problem(3, gamma, arrival=arrival)
    for policy_fn, theta in (
        (linear(mdp, 3), torch.tensor([0.5, -1.0, 0.2], dtype=torch.float64)),
        (tabular, torch.arange(12.0).double().reshape(6, 2).sin()),
    ):
        psi = scores(policy_fn, theta)
        b = solve(mdp, policy_fn(theta)).v if baseline == "v" else baseline
        per_state = torch.as_tensor(0.0 if b is None else b, dtype=torch.float64).expand(6)
        mean = torch.zeros(theta.numel(), dtype=torch.float64)
        second = torch.zeros(theta.numel(), theta.numel(), dtype=torch.float64)
        for probability, tau in enumerate_trajectories(mdp, policy_fn(theta), 3):
            x = estimate(tau, psi, gamma, weight, per_state, discount_state)
            mean += probability * x
            second += probability * torch.outer(x, x)
        m = reinforce_moments(
            mdp, policy_fn, theta, weight=weight, baseline=b, discount_state=discount_state
        )
        close(m.mean, mean.reshape(theta.shape), atol=1e-12)
        close(m.covariance, second - torch.outer(mean, mean), atol=1e-12)
        close(m.variance, m.covariance.diagonal().reshape(theta.shape), atol=0)
        close(m.total_variance, m.variance.sum(), atol=1e-12)
        if discount_state:
            close(m.mean, policy_gradient(mdp, policy_fn, theta), atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("weight", ["return", "reward_to_go"])
@pytest.mark.parametrize("arrival", [False, True])
def test_loops_and_sparse(weight, arrival):
    """With loops no enumeration is complete: the thinned chain is, up to what is left."""
    dense, rows = (random_problem(4, 2, 2, gamma=1.0, arrival=arrival, as_sparse=k) for k in (0, 1))
    thin = exact.FiniteMDP(
        0.3 * dense.transition, dense.arrival_reward if arrival else dense.reward, dense.start, 1.0
    )
    theta = torch.tensor([[0.3, -0.2], [1.0, 0.0]])
    psi = scores(tabular, theta.double())
    second = torch.zeros(4, 4, dtype=torch.float64)
    for probability, tau in enumerate_trajectories(thin, tabular(theta), 7):
        x = estimate(tau, psi, 1.0, weight, torch.zeros(2), True)
        second += probability * torch.outer(x, x)
    m = reinforce_moments(thin, tabular, theta, weight=weight)
    close(m.covariance + torch.outer(m.mean.reshape(-1), m.mean.reshape(-1)), second, atol=2e-2)
    a, b = (reinforce_moments(k, tabular, theta, weight=weight) for k in (dense, rows))
    close(a.covariance, b.covariance)
    close(a.mean, policy_gradient(dense, tabular, theta))


def test_short_corridor_by_sampling():
    """10,000 episodes with a fixed seed: mean and variance within 4.5 standard errors."""
    mdp, n, rng = exact.short_corridor(), 10_000, np.random.default_rng(0)
    theta = torch.tensor([0.0, 0.6])
    p = 1 / (1 + math.exp(-0.6))
    samples = {"return": np.empty(n), "reward_to_go": np.empty(n)}
    for i in range(n):
        state, actions = 0, []
        while state < 3:
            right = rng.random() < p
            actions.append(int(right))
            forward = right != (state == 1)
            state = max(0, state + (1 if forward else -1))
        score = np.array(actions) - p  # ∂ ln π / ∂θ_right
        togo = -np.arange(len(actions), 0, -1)
        samples["return"][i] = togo[0] * score.sum()
        samples["reward_to_go"][i] = (togo * score).sum()
    for weight, x in samples.items():
        m = reinforce_moments(mdp, shared(mdp), theta, weight=weight)
        assert abs(x.mean() - m.mean[1].item()) < 4.5 * x.std() / math.sqrt(n)
        square = (x - m.mean[1].item()) ** 2
        assert abs(square.mean() - m.variance[1].item()) < 4.5 * square.std() / math.sqrt(n)


def test_variances_are_ordered():
    mdp = exact.random_walk(5)
    theta = torch.zeros(5, 2)
    v = solve(mdp, tabular(theta)).v
    whole = reinforce_moments(mdp, tabular, theta, weight="return").total_variance
    togo = reinforce_moments(mdp, tabular, theta).total_variance
    based = reinforce_moments(mdp, tabular, theta, baseline=v + 0).total_variance
    corridor = exact.short_corridor()
    lone = [
        reinforce_moments(corridor, shared(corridor), torch.zeros(2), weight=w).total_variance
        for w in ("return", "reward_to_go")
    ]
    assert lone[1] < lone[0]
    assert min(whole, togo, based) > 0
    b = torch.full((3,), -10.0)
    assert (
        reinforce_moments(corridor, shared(corridor), torch.zeros(2), baseline=b).total_variance
        < (lone[1])
    )


def test_bernoulli_variances():
    """(b - t)² with P(1) = 1/2: the score estimator's variance, and a baseline that leaves none."""
    for t, variance in ((0.45, 0.0159390625), (0.499, 0.0156251250)):
        f = [t**2, (1 - t) ** 2]
        mdp = exact.bandit(f)

        def pi(x):
            return torch.stack([1 - torch.sigmoid(x), torch.sigmoid(x)], -1)

        m = reinforce_moments(mdp, pi, torch.zeros(1))
        close(m.mean, [(1 - 2 * t) / 4], atol=1e-14)
        assert round(m.variance.item(), 10) == variance
        # the optimal baseline p f(0) + (1 - p) f(1)
        none = reinforce_moments(mdp, pi, torch.zeros(1), baseline=sum(f) / 2)
        assert abs(none.variance.item()) < 1e-17


def test_endless_problems():
    mdp = exact.kakade_two_states(gamma=0.9)
    theta = torch.ones(2, 2)
    m = reinforce_moments(mdp, tabular, theta)
    close(m.mean, policy_gradient(mdp, tabular, theta))
    assert m.total_variance > 0
    for options in ({"weight": "return"}, {"discount_state": False}):
        with pytest.raises(
            ArgumentError, match="nothing is discounted; from state 0 it never does"
        ):
            reinforce_moments(mdp, tabular, theta, **options)


def test_masked_actions():
    mdp = random_problem(0, gamma=1.0)
    mask = torch.tensor([[True, True, False]] * 4)
    for weight in ("return", "reward_to_go"):
        m = reinforce_moments(mdp, masked(mask), torch.zeros(4, 3), weight=weight)
        assert m.covariance.isfinite().all()
        assert (m.variance[:, 2] == 0).all()
        assert (m.variance[:, 0] > 0).all()


def test_refusals():
    mdp, theta = exact.short_corridor(), torch.zeros(2)
    with pytest.raises(ArgumentError, match=r"weight takes .* got 'reward-to-go'"):
        reinforce_moments(mdp, shared(mdp), theta, weight="reward-to-go")
    with pytest.raises(ArgumentError, match="one number with weight='return', got one per state"):
        reinforce_moments(mdp, shared(mdp), theta, weight="return", baseline=torch.zeros(3))
    with pytest.raises(ShapeError, match=r"one number or an array \[S\] = \[3\], got \[3, 1\]"):
        reinforce_moments(mdp, shared(mdp), theta, baseline=torch.zeros(3, 1))
    with pytest.raises(ArgumentError, match="baseline takes finite numbers"):
        reinforce_moments(mdp, shared(mdp), theta, baseline=math.nan)
    grid = exact.gridworld(100, 100, sparse=True)
    with pytest.raises(ArgumentError, match="too large for this function"):
        reinforce_moments(grid, shared(grid), torch.zeros(4))
