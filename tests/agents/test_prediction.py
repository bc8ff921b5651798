"""Predicting: one observation or a batch, memory that goes on, masks in every form, refusals."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from upslope import PPO
from upslope.errors import ArgumentError

BOX = spaces.Box(-1, 1, (2,), np.float32)
GEARS = spaces.Dict([("go", BOX), ("gear", spaces.Discrete(3, start=1))])
SPACES = {"two": spaces.Discrete(2), "three": spaces.Discrete(3), "box": BOX, "dict": GEARS}


class Still(gymnasium.Env):
    """Nothing happens."""

    def __init__(self, observation: spaces.Space, action: str) -> None:
        self.observation_space, self.action_space = observation, SPACES[action]

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        return self.observation_space.sample(), 0.0, False, False, {}


@cache
def agent_of(action: str, policy: str | None = None, observation: str = "box") -> PPO:
    space = BOX if observation == "box" else spaces.Discrete(4, start=1)
    kwargs = {"net_arch": [4]} if policy is None else {"net_arch": [4], "memory_size": 3}
    make = partial(Still, space, action)
    return PPO(make, n_envs=2, n_steps=4, batch_size=8, policy=policy, policy_kwargs=kwargs, seed=0)


def seen(n: int) -> np.ndarray:
    return np.linspace(-1, 1, 2 * n, dtype=np.float32).reshape(n, 2)


# ---- masks ---------------------------------------------------------------------------------------
MASKS = {
    "array": np.array([[1, 0], [1, 0]]),
    "list of rows": [[1, 0], [1, 0]],  # read by columns it would leave row 1 nothing
    "tuple of arrays": (np.array([1, 0]), np.array([1, 0])),
}


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("flip", [False, True])
def test_masks_of_a_batch(name, flip):
    masks = MASKS[name]
    if flip:
        masks = type(masks)(1 - np.asarray(one) for one in masks) if name != "array" else 1 - masks
    for _ in range(5):
        found, _ = agent_of("two").predict(seen(2), action_masks=masks, deterministic=False)
        assert found.tolist() == [int(flip)] * 2


@pytest.mark.parametrize("mask", [[0, 0, 1], np.array([0, 0, 1]), np.array([[0, 0, 1]])])
def test_mask_of_one_observation(mask):
    found, state = agent_of("three").predict(seen(1)[0], action_masks=mask)
    assert (found, state) == (2, None)
    assert SPACES["three"].contains(found)


def test_masks_of_a_nested_action():
    agent = agent_of("dict")
    mask = {"gear": np.array([0, 1, 0])}
    one, _ = agent.predict(seen(1)[0], action_masks=mask)
    assert one["gear"] == 2
    assert GEARS.contains(one)
    for masks in ([mask, {"gear": [0, 0, 1]}], {"gear": np.array([[0, 1, 0], [0, 0, 1]])}):
        both, _ = agent.predict(seen(2), action_masks=masks)
        assert both["gear"].tolist() == [2, 3]


@pytest.mark.parametrize(
    ("action", "n", "masks", "message"),
    [
        ("three", 2, [[1, 1, 1], [0, 0, 0]], "action_masks: no action is legal in row 1"),
        ("three", 2, [1, 1, 1], r"action_masks: an action mask of shape \(3, 1\), which takes"),
        ("three", 2, np.ones((3, 2)), r"action mask of shape \(3, 2\), which takes \(2, 3\)"),
        ("three", 2, np.full((2, 3), 0.5), "action_masks: .* other values than 0 and 1"),
        ("dict", 2, {"gaer": np.ones((2, 3))}, r"action_masks: .*\['gaer'\], which takes \['go'"),
        ("box", 2, np.ones((2, 2)), "action_masks: action masks for an action space without"),
    ],
)
def test_masks_that_are_refused(action, n, masks, message):
    with pytest.raises(ArgumentError, match=message):
        agent_of(action).predict(seen(n), action_masks=masks)


# ---- memory --------------------------------------------------------------------------------------
@pytest.mark.parametrize("policy", ["lstm", "gru"])
def test_memory_of_one_observation_is_that_of_a_batch(policy):
    agent, state, batch_state = agent_of("box", policy), None, None
    for _ in range(3):
        one, state = agent.predict(seen(2)[1], state)
        both, batch_state = agent.predict(seen(2), batch_state)
        np.testing.assert_allclose(both[1], one, rtol=1e-5)
        np.testing.assert_allclose(batch_state[1:], state, rtol=1e-5)
    assert state.shape == (1, {"lstm": 6, "gru": 3}[policy])
    _, fresh = agent.predict(seen(2)[1], state, episode_start=True)
    np.testing.assert_array_equal(fresh, agent.predict(seen(2)[1])[1])
    _, same = agent.predict(seen(2)[1], state, episode_start=np.array([False]))
    np.testing.assert_array_equal(same, agent.predict(seen(2)[1], state)[1])


@pytest.mark.parametrize(
    ("policy", "arguments", "message"),
    [
        (None, {"state": np.zeros((2, 3), np.float32)}, "this policy has no memory, leave state"),
        (
            "gru",
            {"state": np.zeros((1, 3), np.float32)},
            r"state has shape \(1, 3\); predict",
        ),
        ("gru", {"state": np.zeros((2, 6), np.float32)}, r"what it returned, \(2, 3\)"),
        ("gru", {"episode_start": [True]}, r"episode_start has shape \(1,\); predict takes \(2,\)"),
        ("gru", {"episode_start": [[True, False]]}, r"episode_start has shape \(1, 2\)"),
    ],
)
def test_memory_that_is_refused(policy, arguments, message):
    with pytest.raises(ArgumentError, match=message):
        agent_of("box", policy).predict(seen(2), **arguments)


# ---- observations --------------------------------------------------------------------------------
@pytest.mark.parametrize("given", [0, 5, 1.5, [1, 5]])
def test_observations_outside_a_discrete_space(given):
    with pytest.raises(ArgumentError, match=r"observation is [\d.]+, outside Discrete\(4, start=1"):
        agent_of("two", observation="discrete").predict(given)


def test_observations_of_a_discrete_space():
    agent = agent_of("two", observation="discrete")
    assert agent.predict(4)[0] in (0, 1)
    assert agent.predict([1, 4, 2])[0].shape == (3,)
