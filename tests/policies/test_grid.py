"""Rows of a table: every value of a space its own, cells of a Box by hand, and what is refused."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from gymnasium import spaces

from upslope.errors import ArgumentError
from upslope.policies.action_table import ActionTable
from upslope.policies.grid import Grid

PLANE = spaces.Box(np.array([-1, 0], np.float32), np.array([1, 8], np.float32))


def rows(grid: Grid, *observations) -> list[int]:
    return grid(torch.tensor(observations)).tolist()


def test_every_value_of_a_discrete_space_has_its_row():
    grid = Grid(spaces.Discrete(5, start=-2))
    assert grid.size == 5
    assert rows(grid, -2, -1, 0, 1, 2) == [0, 1, 2, 3, 4]
    grid = Grid(spaces.MultiDiscrete([2, 4, 3]))
    values = list(itertools.product(range(2), range(4), range(3)))
    assert grid.size == len(values) == 24
    assert rows(grid, *values) == list(range(24))
    grid = Grid(spaces.MultiBinary(3))
    assert rows(grid, *itertools.product(range(2), repeat=3)) == list(range(8))


def test_a_nested_space_is_its_parts_side_by_side():
    space = spaces.Dict(a=spaces.Discrete(3), b=spaces.Box(0, 1, (1,), np.float32))
    grid = Grid(space, bins=4)
    assert grid.counts == [3, 4]
    assert rows(grid, (0, 0.0), (1, 0.3), (2, 0.9)) == [0, 5, 11]


def test_cells_of_equal_width_and_what_lies_outside():
    grid = Grid(PLANE, bins=[2, 4])
    assert grid.counts == [2, 4]
    found = rows(grid, (-1.0, 0.0), (-0.1, 1.9), (0.0, 2.0), (1.0, 8.0), (9.0, -9.0))
    assert found == [0, 0, 5, 7, 4]
    assert Grid(PLANE, bins=3).counts == [3, 3]
    inner = Grid(PLANE, bins=[1, 2], bounds=[(-math.inf, math.inf), (0, 1)])
    assert rows(inner, (0.0, 0.4), (5.0, 0.6), (0.0, 8.0)) == [0, 1, 1]


def test_edges():
    grid = Grid(PLANE, edges=[[0.0], [1.0, 2.0, 7.0]])
    assert grid.counts == [2, 4]
    assert rows(grid, (-0.5, 0.9), (0.0, 1.0), (0.5, 6.9), (0.5, 7.0)) == [0, 5, 6, 7]


def test_features_are_weighted_sums():
    grid = Grid(PLANE, features=[[1, 1]], bounds=[(0, 4)], bins=4)
    assert rows(grid, (0.5, 0.2), (-1.0, 2.5), (1.0, 2.5)) == [0, 1, 3]


def test_a_million_values_keep_their_rows():
    grid = Grid(spaces.Discrete(20_000_001))
    assert rows(grid, 16_777_217, 20_000_000) == [16_777_217, 20_000_000]


@pytest.mark.parametrize(
    ("space", "chosen", "words"),
    [
        (PLANE, {}, "observations that can be listed.*give bins="),
        (PLANE, {"bins": 0}, "bins=0.*at least 1"),
        (PLANE, {"bins": [2, 2, 2]}, "bins=.*or 2 of them"),
        (PLANE, {"bins": 2.5}, "bins=2.5"),
        (PLANE, {"bins": 2, "edges": [[0], [0]]}, "one or the other"),
        (PLANE, {"edges": [[0.0]]}, "2 lists of ascending"),
        (PLANE, {"edges": [[0.0], [1.0, 1.0]]}, "2 lists of ascending"),
        (PLANE, {"bins": 2, "bounds": [(0, 1)]}, "2 pairs"),
        (PLANE, {"bins": 2, "bounds": [(0, 1), (1, 1)]}, "number 1 .* bounds 1 and 1"),
        (PLANE, {"bins": 2, "features": [[1.0, 1.0]]}, "bounds -inf and inf"),
        (PLANE, {"bins": 2, "features": [[1.0]]}, r"rows of \[1\] numbers, and takes 2"),
        (spaces.Box(-np.inf, np.inf, (1,)), {"bins": 2}, "no bins: give bounds="),
        (spaces.Discrete(3), {"bins": 2}, "are for a Box"),
    ],
)
def test_what_does_not_fit_is_refused(space, chosen, words):
    with pytest.raises(ArgumentError, match=words):
        Grid(space, **chosen)


def test_a_table_that_is_too_large_is_refused():
    grid = Grid(PLANE, bins=20_000)
    with pytest.raises(ArgumentError, match=r"400,000,000 states x 2 actions is too large"):
        ActionTable(grid, 2)
