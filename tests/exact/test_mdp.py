"""What a finite problem takes and refuses."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import sparse

from tests.exact.cases import close, random_problem
from upslope.errors import ArgumentError, ShapeError
from upslope.exact import FiniteMDP

GOOD = {
    "transition": np.full((2, 1, 2), 0.5),
    "reward": np.ones((2, 1)),
    "start": np.array([0.5, 0.5]),
    "gamma": 0.9,
}


def rows(*entries: tuple[float, float]) -> np.ndarray:
    return np.array(entries)[:, None]


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("transition", rows((0.5, 0.6), (1, 0)), ArgumentError, "sum of 1.1 for state 0, action 0"),
        ("transition", rows((0.5, 0.5), (1.2, -0.2)), ArgumentError, "negative .* state 1, act"),
        ("transition", rows((0.5, 0.5), (math.nan, 0)), ArgumentError, "NaN or inf.* state 1"),
        ("transition", np.full((2, 2), 0.5), ShapeError, r"\[S, A, S\], got \[2, 2\]"),
        ("transition", np.full((2, 1, 3), 0.1), ShapeError, r"got \[2, 1, 3\]"),
        ("transition", np.zeros((0, 1, 0)), ShapeError, r"got \[0, 1, 0\]"),
        ("transition", [[[0.5, 0.5]], [[1.0]]], ArgumentError, "array of real numbers, got list"),
        ("reward", np.ones(2), ShapeError, r"\[S, A, S\].* S = 2 and A = 1, got \[2\]"),
        ("reward", np.ones((1, 2)), ShapeError, r"got \[1, 2\]"),
        ("reward", np.array([[1.0], [math.inf]]), ArgumentError, r"finite .* at \[1, 0\]"),
        ("start", np.ones(2), ArgumentError, "sum to 1, got a minimum of 1 and a sum of 2"),
        ("start", np.array([1.5, -0.5]), ArgumentError, "at least 0 .* minimum of -0.5"),
        ("start", np.array([math.nan, 1]), ArgumentError, "start takes probabilities"),
        ("start", np.ones((2, 1)) / 2, ShapeError, r"S = 2, got \[2, 1\]"),
        ("gamma", 1.5, ArgumentError, "gamma takes a number from 0 to 1, got 1.5"),
        ("gamma", -0.1, ArgumentError, "got -0.1"),
        ("gamma", math.nan, ArgumentError, "got nan"),
        ("gamma", "0.9", ArgumentError, "got '0.9'"),
    ],
)
def test_refusals(name, value, error, message):
    FiniteMDP(**GOOD)
    with pytest.raises(error, match=message):
        FiniteMDP(**{**GOOD, name: value})


@pytest.mark.parametrize(
    ("transition", "error", "message"),
    [
        ([[0.5, 0.6], [1, 0]], ArgumentError, "sum of 1.1 for state 0, action 0"),
        ([[0.5, 0.5], [0, 0], [1, 0], [0, -1]], ArgumentError, "negative .* state 1, action 1"),
        ([[0.5, 0.5], [0, 0], [1, 0], [0, np.nan]], ArgumentError, "NaN .* state 1, action 1"),
        (
            [[0.5, 0.5], [1, 0], [0, 1]],
            ShapeError,
            r"sparse array of shape \[S A, S\], got \[3, 2\]",
        ),
    ],
)
def test_sparse_refusals(transition, error, message):
    actions = max(1, len(transition) // 2)
    with pytest.raises(error, match=message):
        FiniteMDP(sparse.csr_array(np.array(transition)), np.ones((2, actions)), [1, 0], 0.9)


def test_sparse_rewards_refused():
    transition = sparse.csr_array(np.full((2, 2), 0.5))
    with pytest.raises(ShapeError, match=r"sparse, if transition is: \[S A, S\].* got \[4, 2\]"):
        FiniteMDP(transition, sparse.csr_array(np.ones((4, 2))), [1, 0], 0.9)
    with pytest.raises(ShapeError, match="reward takes a sparse array, as transition is one"):
        FiniteMDP(transition, np.ones((2, 1, 2)), [1, 0], 0.9)
    with pytest.raises(ShapeError, match="sparse matrices of one shape"):
        FiniteMDP([sparse.eye_array(2), sparse.eye_array(3)], np.ones((2, 2)), [1, 0], 0.9)


def test_rewards_on_arrival_pay_nothing_at_an_end():
    mdp = FiniteMDP([[[0.25]]], [[[8.0]]], [1.0], 0.9)
    close(mdp.reward, [[2.0]])
    close(mdp.ending, [[0.75]])


def test_what_it_says():
    assert repr(random_problem(0)) == "FiniteMDP(4 states, 3 actions, gamma=0.9, dense)"
    assert "transitions, sparse" in repr(random_problem(0, as_sparse=True))
    mdp = random_problem(0)
    assert (mdp.n_states, mdp.n_actions, mdp.is_sparse) == (4, 3, False)
    for value in (mdp.transition, mdp.reward, mdp.start, mdp.ending):
        assert value.dtype == torch.float64


def test_duplicate_entries_add_up():
    twice = sparse.coo_array((np.array([0.25, 0.25, 0.5]), ([0, 0, 0], [0, 0, 0])), shape=(1, 1))
    assert FiniteMDP(twice, [[1.0]], [1.0], 0.9).ending.item() == 0
