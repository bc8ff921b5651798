"""Masks from environments: found in every place, checked, and told with number, step and seed."""

from __future__ import annotations

import itertools
import sys
from functools import partial
from typing import Any

import cloudpickle
import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from tests.rollout.chain import Scripted
from upslope.errors import EnvironmentFault
from upslope.rollout.make import make_stream
from upslope.rollout.stream import Stream
from upslope.rollout.workers import close_environments

cloudpickle.register_pickle_by_value(sys.modules[__name__])

MODES = [mode.name for mode in AutoresetMode]
SPACES = {
    "discrete": spaces.Discrete(4, start=1),
    "pair": spaces.MultiDiscrete([2, 3]),
    "bits": spaces.MultiBinary(2),
    "dict": spaces.Dict([("go", spaces.Box(-1, 1, (1,))), ("gear", spaces.Discrete(3))]),
    "tuple": spaces.Tuple([spaces.Discrete(2), spaces.Box(-1, 1, (1,)), spaces.Discrete(3)]),
}


def mask_of(kind: str, number: int) -> Any:
    """A mask in the form of its space that tells `number`: other masks for other numbers mod 3."""
    one = np.zeros(3, np.int8)
    one[number % 3] = 1
    return {
        "discrete": np.append(one, np.int8(0)),
        "pair": (np.array([1, 0], np.int8), one),
        "bits": np.array([[1, one[0]], [1, one[1]]], np.int8),
        "dict": {"gear": one},
        "tuple": (np.array([0, 1], np.int8), None, one),
    }[kind]


def columns_of(kind: str, number: int) -> list[int]:
    one = [int(number % 3 == i) for i in range(3)]
    return {
        "discrete": [*one, 0],
        "pair": [1, 0, *one],
        "bits": [1, one[0], 1, one[1]],
        "dict": one,
        "tuple": [0, 1, *one],
    }[kind]


class Counts(gymnasium.Env):
    """Its observation is (episode, step); the mask tells their sum. An episode has `limit` steps.

    `masks` is "info" or "method"; the last observation of an episode has no legal action.
    """

    def __init__(self, kind: str, masks: str, limit: int) -> None:
        self.observation_space = spaces.Box(0, 1e6, (2,), np.float32)
        self.action_space = SPACES[kind]
        self.kind, self.masks, self.limit = kind, masks, limit
        self.episode = -1
        if masks == "method":
            self.action_masks = lambda: self.mask

    def now(self) -> tuple[np.ndarray, dict]:
        self.mask = mask_of(self.kind, self.episode + self.at)
        if self.at == self.limit and self.kind == "discrete":
            self.mask = np.zeros(4, np.int8)
        info = {"action_mask": self.mask} if self.masks == "info" else {}
        return np.array([self.episode, self.at], np.float32), info

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        self.episode, self.at = self.episode + 1, 0
        return self.now()

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.at += 1
        observation, info = self.now()
        return observation, 1.0, False, self.at >= self.limit, info


CASES = [("sync", *rest) for rest in itertools.product(MODES, SPACES, ("info", "method"))]
CASES += [
    pytest.param("async", *rest, marks=pytest.mark.slow)
    for rest in (
        ("NEXT_STEP", "dict", "info"),
        ("SAME_STEP", "tuple", "info"),
        ("DISABLED", "discrete", "info"),
        ("SAME_STEP", "pair", "method"),
    )
]


@pytest.mark.parametrize(("vector", "mode", "kind", "masks"), CASES)
def test_a_mask_is_that_of_its_observation(vector, mode, kind, masks):
    """In every autoreset mode, over several episodes of different lengths."""
    makers = [partial(Counts, kind, masks, limit) for limit in (2, 3, 5)]
    if vector == "sync":
        env = SyncVectorEnv(makers, autoreset_mode=AutoresetMode[mode])
    else:
        env = AsyncVectorEnv(makers, autoreset_mode=AutoresetMode[mode], context="spawn")
    try:
        stream = make_stream(env, 3)
        stream.reset(0)
        for _ in range(12):
            for n in range(3):
                found = stream.action_mask[n].astype(int).tolist()
                wanted = columns_of(kind, int(stream.observation[n].sum()))
                assert found == (wanted if stream.acting[n] else [1] * len(wanted))
            stream.step(env.action_space.sample())
        assert stream.observation[:, 0].max() >= 3
    finally:
        close_environments(env)


def test_environments_without_masks_have_none():
    stream = make_stream(partial(gymnasium.make, "CartPole-v1"), 2)
    stream.reset(0)
    assert stream.action_mask is None


def test_wrappers_hide_no_method():
    def make() -> gymnasium.Env:
        return gymnasium.wrappers.TimeLimit(Counts("discrete", "method", 9), 50)

    stream = make_stream(make, 2)
    stream.reset(0)
    assert stream.action_mask.tolist() == [[True, False, False, False]] * 2


# ---- vectorised environments ---------------------------------------------------------------------
GOOD = np.array([[1, 0], [0, 1]], np.int8)


class Told(Scripted):
    """A scripted vector environment that tells a mask with its first observation."""

    def __init__(self, first: Any, *script: dict[str, Any], **kwargs: Any) -> None:
        super().__init__(2, *script, **kwargs)
        self.told = first

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict]:
        observation, _ = super().reset(seed=seed, options=options)
        return observation, {"action_mask": self.told}


def told(*masks: Any, seed: int = 7, **kwargs: Any) -> Stream:
    """A stream whose environments told `masks`: the first one at their reset."""
    script = [{"info": {} if mask is None else {"action_mask": mask}} for mask in masks[1:]]
    stream = Stream(env=Told(masks[0], *script, **kwargs))
    stream.reset(seed)
    return stream


def test_masks_of_a_vectorised_environment():
    stream = told(GOOD, GOOD[::-1])
    assert stream.action_mask.tolist() == [[True, False], [False, True]]
    stream.step(np.zeros(2, np.int64))
    assert stream.action_mask.tolist() == [[False, True], [True, False]]


def test_method_of_a_vectorised_environment():
    class Asks(Scripted):
        def action_masks(self) -> np.ndarray:
            return GOOD

    stream = Stream(env=Asks(2))
    stream.reset(0)
    assert np.array_equal(stream.action_mask, GOOD)


BAD = {
    "no legal action": ([[1, 1], [0, 0]], "environment 1 returned an action mask with no legal ac"),
    "missing": (None, r"environment 0 returned no info\['action_mask'\], which it gave at its"),
    "too many columns": (np.ones((2, 3)), r"an action mask of shape \(2, 3\), which takes \(2, 2"),
    "too few rows": (np.ones((1, 2)), r"shape \(1, 2\), which takes \(2, 2\)"),
    "values": ([[1, 2], [1, 1]], "an action mask with other values than 0 and 1"),
    "nan": ([[1, np.nan], [1, 1]], "an action mask with other values than 0 and 1"),
    "text": ("ab", "an action mask"),
    "dict": ({"gear": GOOD}, r"no array \(dict\), which takes \(2, 2\)"),
}


@pytest.mark.parametrize("name", BAD)
def test_faults_say_who_and_when(name):
    mask, message = BAD[name]
    bad = np.array(mask) if isinstance(mask, list) else mask
    stream = told(GOOD, GOOD, GOOD, bad)
    for _ in range(2):
        stream.step(np.zeros(2, np.int64))
    with pytest.raises(EnvironmentFault, match=message) as caught:
        stream.step(np.zeros(2, np.int64))
    assert str(caught.value).endswith("at step 3 since the reset, 3 in all, seed 7")
    assert "\n" not in str(caught.value)


def test_a_fault_at_the_reset():
    with pytest.raises(
        EnvironmentFault, match=r"environment 0 returned .*no legal action, at a reset .*, seed 7"
    ):
        told(np.array([[0, 0], [1, 1]]))


def test_a_mask_that_one_environment_leaves_out():
    later = {"action_mask": GOOD, "_action_mask": np.array([True, False])}
    stream = Stream(env=Told(GOOD, {"info": later}))
    stream.reset(7)
    with pytest.raises(EnvironmentFault, match=r"environment 1 returned no info\['action_mask'\]"):
        stream.step(np.zeros(2, np.int64))


def test_a_part_that_one_environment_leaves_out_is_all_legal():
    """Gymnasium fills in zeros for it, which would be no legal action."""

    class Half(Counts):
        def now(self) -> tuple[np.ndarray, dict]:
            observation, _ = super().now()
            return observation, {"action_mask": mask_of("dict", 0) if self.limit == 2 else {}}

    makers = [partial(Half, "dict", "info", limit) for limit in (2, 3)]
    stream = make_stream(SyncVectorEnv(makers), 2)
    stream.reset(0)
    assert stream.action_mask.tolist() == [[True, False, False], [True, True, True]]


def test_rows_that_only_reset_need_no_mask():
    ended = np.array([True, False])
    last = {"action_mask": np.array([[0, 0], [0, 1]]), "_action_mask": np.array([False, True])}
    stream = Stream(
        env=Told(GOOD, {"terminated": ended, "info": last}, {"info": {"action_mask": GOOD}})
    )
    stream.reset(0)
    stream.step(np.zeros(2, np.int64))
    assert stream.action_mask.tolist() == [[True, True], [False, True]]
    stream.step(np.zeros(2, np.int64))
    assert stream.action_mask.tolist() == GOOD.astype(bool).tolist()


def test_a_reset_that_tells_no_mask_is_a_fault():
    ended = np.array([True, False])
    stream = Stream(
        env=Told(GOOD, {"terminated": ended, "info": {"action_mask": GOOD}}, mode="Disabled")
    )
    stream.reset(0)
    stream._env.told = None
    stream._env.reset = lambda **_: (np.zeros((2, 2), np.float32), {})
    with pytest.raises(EnvironmentFault, match=r"environment 0 returned no info\['action_mask'\]"):
        stream.step(np.zeros(2, np.int64))


def test_what_the_method_raises_comes_through():
    class Broken(Scripted):
        def action_masks(self) -> np.ndarray:
            raise KeyError("the board")

    stream = Stream(env=Broken(2))
    with pytest.raises(KeyError, match="the board"):
        stream.reset(0)
