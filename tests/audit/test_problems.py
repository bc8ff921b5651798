"""What is exact about the problems: against closed forms, enumeration and other roads."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from upslope.audit.continuing import ContinuingProblem
from upslope.audit.played import EpisodicProblem
from upslope.audit.problems import DISTRIBUTIONS, Exact, Problem
from upslope.audit.run import PROBLEMS
from upslope.audit.sampling import play, probabilities, scores, shared, tabular
from upslope.errors import ArgumentError
from upslope.exact import FiniteMDP, policy_gradient_by_autograd, short_corridor, solve
from upslope.gradient import LeaveOneOut, check_unbiased, surrogate

F64 = torch.float64
BY_NAME = {p.name.split(":")[0]: p for p in PROBLEMS}
FINITE = [p for p in DISTRIBUTIONS if not p.known]


def exact(name: str) -> Exact:
    problem = BY_NAME[name]
    assert isinstance(problem, Problem)
    return Exact(problem)


def test_the_normal():
    """30 and 136 for the score, 18 and 96 with the mean as baseline: both parameters."""
    found = exact("normal")
    assert found.gradient.tolist() == pytest.approx([2, 2], abs=1e-9)
    assert float(found.value) == pytest.approx(2)
    assert found.constant_baseline(0) == pytest.approx(30 + 136)
    assert found.constant_baseline(2) == pytest.approx(18 + 96)
    assert BY_NAME["normal"].known["pathwise"] == 4 + 12


def test_the_bernoulli():
    found = exact("bernoulli")
    assert found.gradient.item() == pytest.approx(0.025)
    assert found.constant_baseline(0) == pytest.approx(0.0159390625)
    assert found.constant_baseline(float(found.value)) == 0


def test_the_bandit():
    expected = [-0.25093558007050, -0.01687267164465, 0.26780825171515]
    assert exact("bandit").gradient.tolist() == pytest.approx(expected, abs=1e-13)


@pytest.mark.parametrize("problem", FINITE, ids=lambda p: p.name)
@pytest.mark.parametrize("kind", ["score", "leave-one-out", "importance"])
def test_variances_by_enumeration(problem: Problem, kind: str):
    theta = torch.tensor(problem.theta, dtype=F64, requires_grad=True)
    distribution, found, n = problem.make(theta), Exact(problem), 2
    behaviour = problem.make(torch.tensor(problem.behaviour, dtype=F64))
    baseline = LeaveOneOut() if kind == "leave-one-out" else None

    def surrogate_fn(log_prob, objective, x):
        reference = behaviour.log_prob(x) if kind == "importance" else None
        return surrogate(log_prob, objective, reference=reference, baseline=baseline)

    report = check_unbiased(
        surrogate_fn,
        distribution,
        lambda x: problem.f(x, theta),
        n,
        behaviour=behaviour if kind == "importance" else None,
        with_sample=True,
    )
    expected = {
        "score": lambda: found.constant_baseline(0.0),
        "leave-one-out": lambda: found.leave_one_out(n),
        "importance": found.importance,
    }[kind]()
    assert report.method == "enumeration"
    assert report.unbiased
    torch.testing.assert_close(report.exact, found.gradient)
    assert n * float(report.variance.sum()) == pytest.approx(expected)


# ---------------------------------------------------------------- finite decision problems
@pytest.mark.parametrize("name", ["corridor", "gridworld", "walk", "two states", "queue"])
def test_the_policy_and_its_gradient(name: str):
    problem = BY_NAME[name]
    assert isinstance(problem, EpisodicProblem | ContinuingProblem)
    theta = problem.theta.clone().requires_grad_()
    policy = probabilities(theta, problem.features)
    rows = [torch.autograd.grad(x, theta, retain_graph=True)[0] for x in policy.log().reshape(-1)]
    torch.testing.assert_close(
        scores(problem.theta, problem.features), torch.stack(rows).reshape(*policy.shape, -1)
    )
    setting = "average" if isinstance(problem, ContinuingProblem) else None
    other = policy_gradient_by_autograd(
        problem.mdp, lambda t: probabilities(t, problem.features), problem.theta, setting
    )
    torch.testing.assert_close(problem.exact(), other)
    assert other.norm() > 0.1


@pytest.mark.parametrize("name", ["two states", "queue"])
def test_a_cycle_has_the_gradient_of_the_average_reward(name: str):
    problem = BY_NAME[name]
    assert isinstance(problem, ContinuingProblem)
    cycles = problem.cycles()
    torch.testing.assert_close(cycles.exact(), problem.exact())
    length = solve(cycles.mdp, cycles.policy).scale
    assert float(length) * cycles.factor == pytest.approx(1)


@pytest.mark.parametrize("rounding", [1e-15, -1e-15])
def test_rounding_does_not_choose_whose_cycles_they_are(rounding: float, monkeypatch):
    """Four states of the queue are visited as much as each other."""
    problem = BY_NAME["queue"]
    assert isinstance(problem, ContinuingProblem)
    found = problem.solution()
    most = found.distribution > found.distribution.max() - 1e-9
    assert most.sum() == 4
    moved = found.distribution + rounding * most.cumsum(0)
    other = dataclasses.replace(found, distribution=moved)
    monkeypatch.setattr(ContinuingProblem, "solution", lambda self: other)
    start = problem.cycles().mdp.start
    assert start.argmax() == most.nonzero()[0]


def test_features():
    assert tabular(3, 2).shape == (6, 3, 2)
    assert shared(3, 2).shape == (2, 3, 2)
    theta = torch.tensor([0.0, 1.0], dtype=F64)
    assert probabilities(theta, shared(3, 2)).tolist() == [theta.softmax(0).tolist()] * 3


# ---------------------------------------------------------------- episodes
def test_episodes_visit_what_they_should():
    """The corridor at p = 1/2: η = (6, 4, 2), a mean return of -12."""
    mdp, count = short_corridor(), 20_000
    policy = torch.full((3, 2), 0.5, dtype=F64)
    e = play(mdp, policy, count, torch.Generator().manual_seed(0))
    for state, expected in enumerate((6, 4, 2)):
        visits = (e.mask & (e.state == state)).sum(0).double()
        assert abs(visits.mean() - expected) < 4.5 * visits.std() / count**0.5
    assert (e.terminated.sum(0) == 1).all()
    assert (e.terminated & ~e.mask).sum() == 0
    last = e.mask.sum(0) - 1
    assert e.terminated.gather(0, last[None]).all()
    assert e.mask[0].all()
    assert (e.state[0] == 0).all()
    inside = e.mask[1:]
    assert (e.state[1:] == e.next_state[:-1])[inside].all()


def test_windows_are_not_cut_short():
    queue = BY_NAME["two states"]
    e = play(queue.mdp, queue.policy, 50, torch.Generator().manual_seed(0), steps=7)
    assert e.state.shape == (7, 50)
    assert e.mask.all()
    assert not e.terminated.any()


def test_what_never_ends_is_refused():
    stays = FiniteMDP(torch.ones(1, 1, 1), [[0.0]], [1.0], 0.9)
    with pytest.raises(ArgumentError, match="ends within 2000 steps"):
        play(stays, torch.ones(1, 1, dtype=F64), 2, torch.Generator())
