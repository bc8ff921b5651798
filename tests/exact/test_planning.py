"""Policy evaluation, policy iteration and value iteration."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.exact.cases import close, random_policy, random_problem
from upslope import exact
from upslope.errors import ArgumentError
from upslope.exact import FiniteMDP, policy_evaluation, policy_iteration, solve, value_iteration

PLANNERS = [policy_iteration, value_iteration]


@pytest.mark.slow
@given(
    st.integers(0, 10**6),
    st.sampled_from([(0.0, None), (0.9, None), (1.0, None), (0.5, "average")]),
    st.booleans(),
    st.sampled_from(PLANNERS),
)
@settings(max_examples=30)
def test_best_of_all_deterministic_policies(seed, case, as_sparse, plan):
    gamma, setting = case
    mdp = random_problem(seed, 3, 2, gamma=gamma, ends=setting is None, as_sparse=as_sparse)
    found = plan(mdp, setting)
    every = [
        solve(mdp, torch.nn.functional.one_hot(torch.tensor(actions), 2).double(), setting)
        for actions in itertools.product(range(2), repeat=3)
    ]
    if setting == "average":
        close(found.objective, max(s.objective for s in every))
        close(found.q.max(1).values, found.v)
    else:
        close(found.v, torch.stack([s.v for s in every]).max(0).values)
        close(found.q.max(1).values, found.v)
    assert ((found.policy == 0) | (found.policy == 1)).all()
    close(solve(mdp, found.policy, setting).v, found.v)


@pytest.mark.parametrize("plan", PLANNERS)
def test_known_optima(plan):
    v = plan(exact.jumping_gridworld()).v.reshape(5, 5)  # figure 3.5
    assert [round(x, 1) for x in v[0].tolist()] == [22.0, 24.4, 22.0, 19.4, 17.5]
    assert [round(x, 1) for x in v[4].tolist()] == [14.4, 16.0, 14.4, 13.0, 11.7]
    close(v[0, 1], 10 / (1 - 0.9**5))
    grid = plan(exact.gridworld())
    close(
        grid.v.reshape(4, 4), [[0, -1, -2, -3], [-1, -2, -3, -2], [-2, -3, -2, -1], [-3, -2, -1, 0]]
    )
    assert grid.setting == "episodic"
    close(plan(exact.short_corridor()).v, [-3, -2, -1])  # who sees the state needs three steps
    close(plan(exact.random_walk(7)).v, np.ones(7))
    close(plan(exact.bandit([1, 5, 2])).policy, [[0, 1, 0]])
    best = plan(exact.kakade_two_states(), "average")
    close(best.objective, 2)
    close(best.policy, [[0, 1], [1, 0]])


def test_access_control_queue():
    """Both ways agree, and the policy is of thresholds: accept more when more servers are free."""
    mdp = exact.access_control_queue()
    one, two = (plan(mdp, "average") for plan in PLANNERS)
    close(one.objective, two.objective)
    assert one.objective > solve(mdp, np.full((44, 2), 0.5), "average").objective
    accept = one.policy[:, 1].reshape(11, 4)[1:]
    assert (accept.diff(dim=0) >= 0).all()
    assert (accept.diff(dim=1) >= 0).all()
    assert (accept[:, 3] == 1).all()
    assert accept[0, 0] == 0


@pytest.mark.parametrize("plan", PLANNERS)
def test_ties_never_lead_in_circles(plan):
    """Nothing is paid on the way: every path to the goal is as good, walking around is not one."""
    grid = exact.gridworld(4, 4, terminal=((3, 3),), step_reward=0.0)
    close(plan(grid).v, np.zeros(16))
    p = np.zeros((3, 2, 3))
    p[0, 0, 0] = p[0, 1, 1] = p[1, 0, 0] = p[1, 1, 2] = p[2, 0, 1] = 1
    close(plan(FiniteMDP(p, [[0, 0], [0, 0], [0, 1.0]], [1, 0, 0], 1.0)).v, [1, 1, 1])


@pytest.mark.parametrize("plan", PLANNERS)
@pytest.mark.parametrize("scale", [1e-8, 1e8])
def test_rewards_of_any_size(plan, scale):
    mdp = random_problem(1, gamma=0.95)
    scaled = FiniteMDP(mdp.transition, scale * mdp.reward, mdp.start, 0.95)
    close(plan(scaled).policy, plan(mdp).policy)
    close(plan(scaled).v / scale, plan(mdp).v)


def test_large_gridworld():
    grid = exact.gridworld(40, 40)
    for plan in PLANNERS:
        v = plan(grid).v.reshape(40, 40)
        row, column = np.indices((40, 40))
        close(v, -np.minimum(row + column, 78 - row - column))


@pytest.mark.parametrize("gamma", [0.0, 0.9, 0.999, 1.0])
@pytest.mark.parametrize("as_sparse", [False, True])
def test_evaluation_by_sweeps(gamma, as_sparse):
    mdp = random_problem(2, gamma=gamma, as_sparse=as_sparse)
    policy = random_policy(3, mdp)
    close(policy_evaluation(mdp, policy), solve(mdp, policy).v)


def test_evaluation_as_close_as_asked():
    mdp = random_problem(2, gamma=0.99, ends=False)
    policy = random_policy(3, mdp)
    truth = solve(mdp, policy).v
    for tolerance in (1.0, 1e-3, 1e-6):
        error = (policy_evaluation(mdp, policy, tolerance=tolerance) - truth).abs().max()
        assert error <= tolerance
    close(policy_evaluation(exact.gridworld(), np.full((16, 4), 0.25))[:4], [0, -14, -20, -22])


def test_evaluation_refuses():
    with pytest.raises(ArgumentError, match="never does"):
        policy_evaluation(exact.short_corridor(), np.tile([1.0, 0.0], (3, 1)))
    with pytest.raises(ArgumentError, match="got 'average'"):
        policy_evaluation(random_problem(0, ends=False), np.full((4, 3), 1 / 3), "average")
    with pytest.raises(ArgumentError, match="tolerance"):
        policy_evaluation(random_problem(0), np.full((4, 3), 1 / 3), tolerance=-1)


@pytest.mark.parametrize("plan", PLANNERS)
def test_no_optimum(plan):
    with pytest.raises(ArgumentError, match=r"some policy ends the episode .* from state 0 none"):
        plan(FiniteMDP(np.ones((1, 1, 1)), [[1.0]], [1.0], 1.0))
    loop = np.zeros((1, 2, 1))
    loop[0, 1, 0] = 1
    if plan is policy_iteration:  # staying pays for ever; values grow without bound
        with pytest.raises(ArgumentError, match="an optimal policy in the setting 'episodic'"):
            plan(FiniteMDP(loop, [[0.0, 1.0]], [1.0], 1.0))
    apart = np.eye(2)[:, None]
    with pytest.raises(ArgumentError, match="same from every state; from state 0 no policy"):
        plan(FiniteMDP(apart, [[1.0], [2.0]], [1.0, 0.0], 0.9), "average")


def test_values_without_bound_are_refused_in_time(monkeypatch):
    monkeypatch.setattr(exact.planning, "MOST_SWEEPS", 500)
    loop = np.zeros((1, 2, 1))
    loop[0, 1, 0] = 1
    with pytest.raises(ArgumentError, match="value_iteration converges, and it did not"):
        value_iteration(FiniteMDP(loop, [[0.0, 1.0]], [1.0], 1.0))
    with pytest.raises(ArgumentError, match="policy_evaluation converges, and it did not"):
        policy_evaluation(FiniteMDP([[[0.9999]]], [[1.0]], [1.0], 1.0), [[1.0]])


@pytest.mark.parametrize("plan", PLANNERS)
def test_average_reward_of_a_problem_that_is_periodic(plan):
    """Every action swaps the states: values swing for ever, unless the chain is made lazy."""
    p = np.zeros((2, 2, 2))
    p[0, :, 1] = p[1, :, 0] = 1
    best = plan(FiniteMDP(p, [[0.0, 1.0], [5.0, 2.0]], [1, 0], 0.9), "average")
    close(best.objective, 3)
    close(best.v, [-1, 1])
    close(best.policy, [[0, 1], [1, 0]])


@pytest.mark.parametrize("plan", PLANNERS)
def test_a_loop_that_costs_nothing_is_no_way_out(plan):
    """Leaving costs 1 and staying nothing; of the policies that end, the best has -1."""
    loop = np.array([[[1.0], [0.0]]])
    close(plan(FiniteMDP(loop, [[0.0, -1.0]], [1.0], 1.0)).v, [-1])
    p = np.zeros((2, 2, 2))
    p[0, 0, 1] = p[1, 0, 0] = 1  # around for ever, or out at -3 or -2
    best = plan(FiniteMDP(p, [[0.0, -3.0], [0.0, -2.0]], [1, 0], 1.0))
    close(best.v, [-2, -2])
    close(best.policy, [[1, 0], [0, 1]])


@pytest.mark.parametrize("plan", PLANNERS)
def test_classes_that_are_equally_good(plan):
    """Staying pays 1 in either state: one of them is left, which costs its reward once."""
    p = np.zeros((2, 2, 2))
    p[0, 0, 0] = p[1, 0, 1] = p[0, 1, 1] = p[1, 1, 0] = 1
    best = plan(FiniteMDP(p, [[1.0, 0.0], [1.0, 0.0]], [1.0, 0.0], 0.99), "average")
    close(best.objective, 1)
    close(best.q.max(1).values, best.v)
    p = np.zeros((4, 2, 4))  # two cycles of two states, 1 and 3 lead to the other at a cost
    p[[0, 1, 2, 3], 0, [1, 0, 3, 2]] = p[[0, 1, 2, 3], 1, [0, 2, 2, 0]] = 1
    reward = [[2.0, -9.0], [0.0, -4.0], [2.0, -9.0], [0.0, -7.0]]
    best = plan(FiniteMDP(p, reward, [1.0, 0, 0, 0], 0.99), "average")
    close(best.objective, 1)
    close(best.q.max(1).values, best.v)
