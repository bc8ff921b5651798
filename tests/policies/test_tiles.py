"""Tile coding: cells by hand, shifts, whole numbers beside a Box, what is refused."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st

from upslope.errors import ArgumentError
from upslope.policies.layout import Layout
from upslope.policies.make import make_policy
from upslope.policies.tiles import TileCoding
from upslope.seeding import generator

SQUARE = spaces.Box(np.float32([0, -1]), np.float32([1, 3]))


def test_cells_by_hand():
    """Two tilings of 4 x 2 over [0, 1] x [-1, 3]; each has 5 x 3 cells, the second half a tile on.

    Of tiling 1 the shifts are 1/2 and 3/2 mod 1 = 1/2 of a tile.
    """
    coding = TileCoding(SQUARE, tilings=2, tiles=[4, 2])
    assert coding.size == 30
    points = torch.tensor([[0.0, -1.0], [0.3, 0.9], [0.3, 1.1], [1.0, 3.0], [0.13, -1.0]])
    expected = [[0, 15], [1, 15 + 1 + 5], [1 + 5, 15 + 1 + 5], [4 + 10, 15 + 4 + 10], [0, 15 + 1]]
    assert coding.index(points).tolist() == expected
    features = coding(points)
    assert features.shape == (5, 30)
    assert (features.sum(1) == 2).all()
    assert all(features[b, k] == 1 for b in range(5) for k in expected[b])


def test_beyond_the_bounds_is_the_nearest_tile():
    coding = TileCoding(SQUARE, tilings=4, tiles=4)
    inside = torch.tensor([[0.0, -1.0], [1.0, 3.0]])
    outside = torch.tensor([[-9.0, -1e6], [7.0, 1e6]])
    assert torch.equal(coding.index(inside), coding.index(outside))


def test_nearer_points_share_more_tiles():
    """On a line of one tile's width with K tilings: |x - y| = j/K of a tile shares K - j."""
    coding = TileCoding(spaces.Box(0, 1, (1,)), tilings=8, tiles=2)
    rows = coding(torch.linspace(0.01, 0.51, 9)[:, None])
    shared = (rows @ rows.T).tolist()
    assert shared[0] == [8, 7, 6, 5, 4, 3, 2, 1, 0]


def test_whole_numbers_are_axes_of_their_own():
    """Discrete(3), counted from 5, and a Box: a cell belongs to one value of the Discrete."""
    space = spaces.Dict(kind=spaces.Discrete(3, start=5), place=spaces.Box(0, 1, (1,)))
    coding, layout = TileCoding(space, tilings=2, tiles=4), Layout(space)
    assert coding.size == 2 * 3 * 5
    seen = {}
    for kind, place in itertools.product((5, 6, 7), np.linspace(0, 1, 11)):
        packed = layout.pack([np.array([kind]), np.array([[place]], np.float32)])
        for k in coding.index(torch.from_numpy(packed))[0].tolist():
            assert seen.setdefault(k, kind) == kind
    assert len(seen) == coding.size


@pytest.mark.parametrize("space", [spaces.Discrete(6), spaces.MultiDiscrete([2, 3])])
def test_one_tiling_of_whole_numbers_is_a_table(space):
    coding = TileCoding(space, tilings=1)
    assert coding.size == 6
    every = [s if space.shape == () else [s // 3, s % 3] for s in range(6)]
    rows = coding(torch.tensor(every))
    assert (rows.sum(1) == 1).all()
    assert rows.sum(0).tolist() == [1] * 6


@given(st.integers(1, 16), st.integers(1, 6), st.lists(st.floats(-2, 4), min_size=2, max_size=2))
def test_each_tiling_has_one_feature(tilings, tiles, point):
    coding = TileCoding(SQUARE, tilings=tilings, tiles=tiles)
    index = coding.index(torch.tensor([point]))[0]
    share = coding.size // tilings
    assert (index // share).tolist() == list(range(tilings))


def test_a_policy_of_tiles_is_linear_in_them():
    policy = make_policy(
        None,
        SQUARE,
        spaces.Discrete(3),
        generator=generator(0, "test"),
        tiles={"tilings": 4, "tiles": 3},
    )
    x = torch.tensor([[0.2, 0.5], [0.9, 2.0]])
    rows = policy.features.index(x)
    weight, bias = policy.critic[0].weight[0], policy.critic[0].bias[0]
    torch.testing.assert_close(policy.value(x), weight[rows].sum(1) + bias)
    assert len(policy.actor) == 1
    assert policy.perceptrons() is None  # not what the native engine takes for a Box


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"tilings": 0}, "tilings takes a whole number of at least 1, got 0"),
        ({"tiles": 0}, "tiles takes whole numbers of at least 1, got 0"),
        ({"tiles": [1, 2, 3]}, "tiles takes one number, or 2: one for each number of a Box"),
        ({"tiles": "many"}, "tiles takes a number or a list of them, got 'many'"),
        ({"tilings": 8, "tiles": 400}, "tiles gives 1,286,408 features .* takes at most 1,000,000"),
        ({"low": 5}, "tiles takes observations with finite bounds, low below high"),
    ],
)
def test_refusals(settings, sentence):
    with pytest.raises(ArgumentError, match=sentence):
        TileCoding(SQUARE, **settings)


def test_bounds_that_are_not_finite_are_refused_and_can_be_given():
    space = spaces.Box(-np.inf, np.inf, (2,))
    with pytest.raises(ArgumentError, match=r"finite bounds.*give low= and high= in policy_kwargs"):
        TileCoding(space)
    assert TileCoding(space, low=[-1, -2], high=3, tiles=2, tilings=1).size == 4
