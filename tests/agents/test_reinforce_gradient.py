"""REINFORCE's sampled gradients against the exact gradient of two finite problems.

What declares itself unbiased lies within 4.5 standard errors; of the rest the bias is measured.
"""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor

import upslope as us
from tests.agents.sampled import Sampled, scale, z_scores
from tests.exact.cases import layered_problem, random_problem

PROBLEMS = {
    "random": (random_problem(3, states=3, actions=2, gamma=0.8, arrival=True), None),
    "layered": (layered_problem(1, 0.9), None),
    "corridor": (us.exact.short_corridor(), [[1.0]] * 3),
}
ON_POLICY = ("random", "corridor")
OFF_POLICY = ("random", "layered")
LIMIT = 4.5


def half_and_half(observation: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A behaviour: action 1 with .35 in even states and .6 in odd ones."""
    p = torch.where(observation.flatten() % 2 == 0, 0.35, 0.6)
    action = (torch.rand(len(p), generator=generator) < p).long()
    return action, torch.where(action == 1, p, 1 - p).log()


@functools.cache
def measured(problem: str, count: int, **settings) -> tuple[Tensor, Tensor]:
    """Gradients [count, P], and the exact one [P]."""
    sampled = Sampled(*PROBLEMS[problem], count=count, n_steps=2000, **settings)
    return sampled.gradients(), sampled.exact()


def worst(problem: str, count: int = 300, **settings) -> float:
    gradients, exact = measured(problem, count, **settings)
    return z_scores(gradients, exact).abs().max().item()


# ---- on-policy -----------------------------------------------------------------------------------
UNBIASED = [
    {"weight": "return"},
    {"weight": "return", "baseline": "leave_one_out"},
    {"weight": "return", "baseline": "value"},
    {"discount_state": True},
    {"discount_state": True, "baseline": "leave_one_out"},
    {"discount_state": True, "baseline": "value"},
]


@pytest.mark.slow
@pytest.mark.parametrize("settings", UNBIASED, ids=lambda s: "-".join(map(str, s.values())))
@pytest.mark.parametrize("problem", ON_POLICY)
def test_the_mean_of_sampled_gradients_is_the_exact_gradient(problem, settings):
    assert worst(problem, **settings) < LIMIT


def test_it_is_on_a_few_episodes_too():
    """The one that runs always."""
    assert worst("random", 100, discount_state=True, baseline="leave_one_out") < LIMIT


@pytest.mark.slow
def test_the_own_return_in_the_mean_takes_its_share_away():
    """Four episodes and the whole return: three quarters of the gradient, exactly."""
    gradients, exact = measured("random", 800, weight="return", baseline="mean")
    assert z_scores(gradients, 0.75 * exact).abs().max() < LIMIT
    found, error = scale(gradients, exact)
    assert found + LIMIT * error < 1.1
    assert z_scores(gradients, exact).abs().max() > LIMIT


@pytest.mark.slow
def test_the_mean_of_what_is_left_at_each_step_takes_more_away():
    gradients, exact = measured("random", 300, discount_state=True, baseline="mean")
    found, error = scale(gradients, exact)
    assert 0.4 < found < 0.8
    assert found + LIMIT * error < 1


@pytest.mark.slow
def test_dropping_the_discount_of_the_state_gives_what_the_exact_moments_say():
    sampled = Sampled(*PROBLEMS["random"], count=300)
    gradients, exact = sampled.gradients(), sampled.exact()
    moments = us.exact.reinforce_moments(
        sampled.mdp, sampled.policy, sampled.theta, discount_state=False
    )
    assert z_scores(gradients, moments.mean).abs().max() < LIMIT
    assert z_scores(gradients, exact).abs().max() > LIMIT  # not the gradient
    along = moments.mean @ exact / (exact @ exact)
    assert along == pytest.approx(1.9, abs=0.1)  # later states count in full


@pytest.mark.slow
def test_a_baseline_of_the_other_episodes_lowers_the_variance():
    plain, _ = measured("corridor", 300)
    with_baseline, _ = measured("corridor", 300, baseline="leave_one_out")
    assert with_baseline.var(0).sum() < 0.8 * plain.var(0).sum()


# ---- off-policy ----------------------------------------------------------------------------------
CORRECTED = [
    {"importance": "ordinary"},
    {"importance": "ordinary", "weight": "return"},
    {"importance": "ordinary", "baseline": "leave_one_out"},
    {"importance": "per_decision"},
    {"importance": "per_decision", "baseline": "value"},
    {"importance": "per_decision", "baseline": "leave_one_out"},
]
off_policy = functools.partial(dict, behaviour=half_and_half, discount_state=True)
quiet = pytest.mark.filterwarnings("ignore:the behaviour's episodes")


@quiet
@pytest.mark.slow
@pytest.mark.parametrize("settings", CORRECTED, ids=lambda s: "-".join(map(str, s.values())))
@pytest.mark.parametrize("problem", OFF_POLICY)
def test_weighted_episodes_of_a_behaviour_give_the_exact_gradient(problem, settings):
    assert worst(problem, **off_policy(**settings)) < LIMIT


@quiet
@pytest.mark.slow
def test_without_weights_the_gradient_is_another_policys():
    """What the weights are for: the same episodes, taken for the policy's own."""
    sampled = Sampled(*PROBLEMS["layered"], count=300, discount_state=True)
    sampled.agent.collector.behaviour = lambda observation, generator, memory, mask: (
        *half_and_half(observation, generator),
        memory,
    )
    assert z_scores(sampled.gradients(), sampled.exact()).abs().max() > LIMIT


@quiet
@pytest.mark.slow
def test_self_normalised_weights_are_biased_and_the_less_the_more_episodes():
    settings = off_policy(importance="self_normalized")
    few, exact = measured("layered", 400, **settings)
    many, _ = measured("layered", 60, group=64, **settings)
    assert z_scores(few, exact).abs().max() > LIMIT
    assert z_scores(many, exact).abs().max() < LIMIT
    assert (many.mean(0) - exact).norm() < 0.4 * (few.mean(0) - exact).norm()


@quiet
@pytest.mark.slow
def test_per_decision_weights_have_less_variance_than_whole_ones():
    variance = {}
    for importance in ("ordinary", "per_decision"):
        gradients, _ = measured("random", 300, **off_policy(importance=importance))
        variance[importance] = gradients.var(0).sum()
    assert variance["per_decision"] < 0.5 * variance["ordinary"]
