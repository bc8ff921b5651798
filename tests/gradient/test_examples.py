"""Whole uses of the gradient module: a published learning curve, and what an estimate costs."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch
from torch.distributions import Categorical, Normal

from upslope.gradient import expectation, surrogate


def optimal_action_share(alpha: float, with_baseline: bool) -> float:
    """The gradient bandit of Sutton and Barto, section 2.8: 2000 runs of 1000 steps of 10 arms.

    The baseline is the mean of the rewards before, and at the first step the first reward.
    """
    torch.manual_seed(0)
    runs, steps = 2000, 1000
    truth = 4 + torch.randn(runs, 10)
    best = truth.argmax(1)
    preference = torch.zeros(runs, 10, requires_grad=True)
    mean, share = torch.zeros(runs), 0.0
    for t in range(1, steps + 1):
        policy = Categorical(logits=preference, validate_args=False)
        action = policy.sample()
        reward = truth.gather(1, action[:, None])[:, 0] + torch.randn(runs)
        baseline = reward if t == 1 else mean
        value = surrogate(
            policy.log_prob(action), reward, baseline=baseline if with_baseline else None
        )
        (slope,) = torch.autograd.grad(value.sum(), preference)
        with torch.no_grad():
            preference += alpha * slope
        mean = mean + (reward - mean) / t
        if t > steps - 100:
            share += (action == best).float().mean().item() / 100
    return share


@pytest.mark.slow
@pytest.mark.parametrize(
    ("alpha", "with_baseline", "share"),
    [(0.1, True, 0.842), (0.1, False, 0.497), (0.4, True, 0.722), (0.4, False, 0.272)],
)
def test_gradient_bandit_of_figure_2_5(alpha, with_baseline, share):
    assert optimal_action_share(alpha, with_baseline) == pytest.approx(share, abs=0.03)


def best_time(f: Callable[[], object], repeats: int = 30, calls: int = 20) -> float:
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        for _ in range(calls):
            f()
        best = min(best, time.perf_counter() - start)
    return best


@pytest.mark.slow
@pytest.mark.parametrize("n", [10, 1000, 20_000])
def test_an_estimate_costs_at_most_twice_what_it_costs_by_hand(n):
    mean = torch.tensor(1.0, requires_grad=True)

    def by_hand():
        normal = Normal(mean, 1.0)
        x = normal.sample((n,))
        (normal.log_prob(x) * x).mean().backward()

    def estimate():
        expectation(lambda x: x, Normal(mean, 1.0), n, estimator="score").backward()

    for f in (by_hand, estimate):
        f()
    for _ in range(3):  # a busy machine is no failure; three of them are
        ratio = best_time(estimate) / best_time(by_hand)
        if ratio <= 2:
            break
    assert ratio <= 2
