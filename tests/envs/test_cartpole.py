"""CartPole without velocities: Gymnasium's, with two numbers of four."""

from __future__ import annotations

import gymnasium
import numpy as np

import upslope.envs  # noqa: F401

ID = "upslope/CartPoleNoVelocity-v0"


def test_one_pole_is_gymnasiums_with_the_velocities_left_out():
    seen, whole = gymnasium.make(ID), gymnasium.make("CartPole-v1")
    assert seen.observation_space.shape == (2,)
    a, b = seen.reset(seed=3)[0], whole.reset(seed=3)[0]
    for t in range(600):
        assert np.array_equal(a, b[[0, 2]])
        action = t % 2
        (a, reward, *ended, _), (b, same, *also, _) = seen.step(action), whole.step(action)
        assert (reward, ended) == (same, also)
        if any(ended):
            a, b = seen.reset()[0], whole.reset()[0]


def test_many_poles_are_gymnasiums_with_the_velocities_left_out():
    seen, whole = (gymnasium.make_vec(name, 5) for name in (ID, "CartPole-v1"))
    assert seen.single_observation_space.shape == (2,)
    assert seen.observation_space.shape == (5, 2)
    a, b = seen.reset(seed=3)[0], whole.reset(seed=3)[0]
    for t in range(60):
        assert np.array_equal(a, b[:, [0, 2]])
        action = np.full(5, t % 2)
        a, b = seen.step(action)[0], whole.step(action)[0]


def test_a_pole_can_be_drawn():
    env = gymnasium.make(ID, render_mode="rgb_array")
    env.reset(seed=0)
    assert env.render().ndim == 3
