"""Exceptions: what they can be caught as, and sentences that help."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from upslope import errors
from upslope.errors import ArgumentError, UpslopeError, check_range, suggest


@pytest.mark.parametrize(
    ("kind", "built_in"),
    [
        (errors.ArgumentError, ValueError),
        (errors.ShapeError, ArgumentError),
        (errors.ConfigError, ArgumentError),
        (errors.EnvironmentFault, RuntimeError),
        (errors.RewardFault, RuntimeError),
        (errors.CheckpointError, RuntimeError),
        (errors.NotFiniteError, FloatingPointError),
        (errors.RunError, RuntimeError),
    ],
)
def test_an_error_is_caught_as_ours_and_as_the_built_in(kind, built_in):
    for caught in (UpslopeError, built_in):
        with pytest.raises(caught, match="what, where"):
            raise kind("what, where")


def test_a_near_name_is_suggested():
    options = ["learning_rate", "gamma", "gae_lambda"]
    assert suggest("learning_rte", options) == " (did you mean 'learning_rate'?)"
    assert suggest("Gamma", options) == " (did you mean 'gamma'?)"
    assert suggest("cartpole-v1", ["CartPole-v1", "Acrobot-v1"]) == " (did you mean 'CartPole-v1'?)"
    assert suggest("ppo", ["DQN", "PPO"]) == " (did you mean 'PPO'?)"


def test_nothing_is_suggested_where_nothing_is_near():
    assert suggest("zebra", ["learning_rate", "gamma"]) == ""
    assert suggest("gamma", []) == ""


@pytest.mark.parametrize("value", [0, 1, 0.5, np.float32(0.25), np.int64(1), torch.tensor(0.5)])
def test_a_number_in_the_range_passes(value):
    check_range("gamma", value, 0, 1)


@pytest.mark.parametrize("value", [-1e-9, 1.0001, math.nan, math.inf, "0.5", None, True, [0.5], 1j])
def test_anything_else_is_refused_by_name(value):
    with pytest.raises(ArgumentError, match="gamma takes a number from 0 to 1, got "):
        check_range("gamma", value, 0, 1)


def test_a_range_may_be_open():
    check_range("clip_high", math.inf, 0)
    with pytest.raises(ArgumentError, match="clip_high takes a number of at least 0, got -1"):
        check_range("clip_high", -1, 0)
