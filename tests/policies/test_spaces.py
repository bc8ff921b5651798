"""Spaces: what a policy takes and gives, and what is refused with a sentence."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces

from upslope.policies.distributions import Categorical, DiagonalGaussian
from upslope.policies.spaces import ActionHead


def test_discrete():
    head = ActionHead(spaces.Discrete(5))
    assert (head.size, head.shape, head.dtype) == (5, (), np.int64)
    assert list(head.parameters()) == []
    distribution = head(torch.zeros(3, 5))
    assert isinstance(distribution, Categorical)
    torch.testing.assert_close(distribution.entropy(), torch.full((3,), 5.0).log())


def test_discrete_start_is_added_on_the_way_to_the_environment():
    space = spaces.Discrete(3, start=-1)
    sent = ActionHead(space).to_environment(np.array([0, 1, 2]))
    assert sent.tolist() == [-1, 0, 1]
    assert all(space.contains(action) for action in sent)
    plain = np.array([0, 2])
    assert ActionHead(spaces.Discrete(3)).to_environment(plain).tolist() == [0, 2]


def test_box_is_clipped_only_on_the_way_to_the_environment():
    space = spaces.Box(np.array([-1, 0], np.float32), np.array([1, 5], np.float32))
    head = ActionHead(space, log_std_init=0.5)
    assert (head.size, head.shape, head.dtype) == (2, (2,), np.float32)
    assert head.log_std.tolist() == [0.5, 0.5]
    distribution = head(torch.tensor([[7.0, -7.0]] * 50))
    assert isinstance(distribution, DiagonalGaussian)
    drawn = distribution.sample(torch.Generator().manual_seed(0)).detach()
    assert drawn[:, 0].min() > 1  # far outside, and not touched
    assert distribution.log_prob(drawn).mean() > -6  # that of what was drawn: -3.84 expected
    sent = head.to_environment(drawn.numpy())
    assert np.array_equal(sent, np.tile(np.array([1, 0], np.float32), (50, 1)))
    assert drawn[:, 0].min() > 1  # `to_environment` left them alone


def test_unbounded_box_is_not_clipped():
    head = ActionHead(spaces.Box(-np.inf, np.inf, (1,), np.float32))
    drawn = np.array([[1e30], [-1e30]], np.float32)
    assert np.array_equal(head.to_environment(drawn), drawn)


@pytest.mark.parametrize("shape", [(), (1,), (2, 3)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_box_of_any_shape_is_flat_inside_and_shaped_outside(shape, dtype):
    space = spaces.Box(-2, 2, shape, dtype)
    head = ActionHead(space)
    assert head.shape == (head.size,)
    sent = head.to_environment(np.linspace(-3, 3, 4 * head.size, dtype=np.float32).reshape(4, -1))
    assert sent.shape == (4, *shape)
    assert sent.dtype == dtype
    assert sent.min() == -2
    assert sent.max() == 2
    if shape == (2, 3):  # row by row, as numpy flattens
        row = np.arange(6, dtype=np.float32)[None] / 5
        assert np.array_equal(head.to_environment(row)[0], row.reshape(2, 3))
