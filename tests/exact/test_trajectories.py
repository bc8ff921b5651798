"""Enumeration: probabilities, returns, agreement with the solve, streaming."""

from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pytest
import torch

from tests.exact.cases import close, layered_problem, random_policy, random_problem
from upslope import exact
from upslope.errors import ArgumentError
from upslope.exact import enumerate_trajectories, solve


@pytest.mark.parametrize("arrival", [False, True])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
def test_objective_by_enumeration(gamma, arrival):
    mdp = layered_problem(0, gamma, arrival=arrival)
    policy = random_policy(1, mdp)
    pairs = list(enumerate_trajectories(mdp, policy, 10))
    close(sum(p for p, _ in pairs), 1)
    close(sum(p * tau.discounted_return(gamma) for p, tau in pairs), solve(mdp, policy).objective)
    assert all(tau.terminated and len(tau.states) <= 3 for _, tau in pairs)


@pytest.mark.parametrize("as_sparse", [False, True])
@pytest.mark.parametrize("arrival", [False, True])
def test_against_every_sequence(arrival, as_sparse):
    """All sequences of states and actions of length 2, by nested loops."""
    mdp = random_problem(2, 3, 2, arrival=arrival, as_sparse=as_sparse)
    dense = random_problem(2, 3, 2, arrival=arrival)
    policy = random_policy(3, mdp)
    p, ending = dense.transition, dense.ending
    expected = {}

    def paid(s, a, t):
        if not arrival:
            return dense.reward[s, a].item()
        return 0.0 if t is None else dense.arrival_reward[s, a, t].item()

    def chance(s, a, t):
        return (policy[s, a] * (ending[s, a] if t is None else p[s, a, t])).item()

    for s, a, t in itertools.product(range(3), range(2), (None, 0, 1, 2)):
        first = dense.start[s].item() * chance(s, a, t)
        if t is None:
            expected[(s,), (a,), (paid(s, a, t),), None] = first
            continue
        for b, u in itertools.product(range(2), (None, 0, 1, 2)):
            key = ((s, t), (a, b), (paid(s, a, t), paid(t, b, u)), u)
            expected[key] = first * chance(t, b, u)
    expected = {key: value for key, value in expected.items() if value > 0}
    found = {
        (tau.states, tau.actions, tau.rewards, tau.final_state): probability
        for probability, tau in enumerate_trajectories(mdp, policy, 2)
    }
    assert found.keys() == expected.keys()
    for key, probability in found.items():
        assert probability == pytest.approx(expected[key], rel=1e-12)


def test_endless_ones_are_cut():
    mdp = exact.kakade_two_states(gamma=0.5)
    pairs = list(enumerate_trajectories(mdp, np.full((2, 2), 0.5), 3))
    assert len(pairs) == 8
    assert all(tau.final_state is not None and not tau.terminated for _, tau in pairs)
    first = pairs[0][1]
    assert (first.states, first.actions, first.rewards) == ((0, 0, 0), (0, 0, 0), (1.0, 1.0, 1.0))
    assert first.discounted_return(0.5) == 1.75
    assert first.discounted_return(0.5, since=1) == 1.5


def test_no_steps():
    ((probability, tau),) = enumerate_trajectories(exact.short_corridor(), np.full((3, 2), 0.5), 0)
    assert (probability, tau.states, tau.final_state) == (1.0, (), 0)
    assert tau.discounted_return(1.0) == 0


def test_probabilities_of_zero_are_left_out():
    pairs = list(enumerate_trajectories(exact.short_corridor(), [[0, 1], [1, 0], [0, 1]], 50))
    assert len(pairs) == 1
    assert pairs[0][1].states == (0, 1, 2)
    assert pairs[0][0] == 1


def test_memory_does_not_grow_with_their_number():
    mdp = exact.kakade_two_states()
    tracemalloc.start()
    count = sum(1 for _ in enumerate_trajectories(mdp, np.full((2, 2), 0.5), 12))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 4096
    assert peak < 100_000


@pytest.mark.parametrize("horizon", [-1, 1.0, True, None])
def test_horizon_refused_at_once(horizon):
    with pytest.raises(ArgumentError, match="horizon takes a whole number of at least 0"):
        enumerate_trajectories(exact.short_corridor(), np.full((3, 2), 0.5), horizon)
    with pytest.raises(ArgumentError, match="policy takes"):
        enumerate_trajectories(exact.short_corridor(), np.full((3, 2), 0.4), 3)


def test_a_policy_with_gradient_is_fine():
    policy = torch.full((3, 2), 0.5, requires_grad=True)
    assert next(enumerate_trajectories(exact.short_corridor(), policy, 1))[0] == 0.5
