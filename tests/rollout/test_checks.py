"""What an environment gives is what its space says: bounds, types and nesting, part by part."""

from __future__ import annotations

import itertools
from contextlib import closing
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from tests.rollout.chain import Scripted
from upslope.errors import EnvironmentFault
from upslope.policies.layout import Layout
from upslope.policies.legal import MaskLayout
from upslope.rollout import checks
from upslope.rollout.make import make_stream
from upslope.rollout.stream import Stream

IDLE = np.zeros(2, np.int64)
FIRST = np.array([True, False])


class Over(Scripted):
    """A scripted vector environment over any observation space."""

    def __init__(self, space: spaces.Space, first: Any, *script: Any, **kwargs: Any) -> None:
        super().__init__(2, *script, first=first, **kwargs)
        self.single_observation_space = space
        self.observation_space = batch_space(space, 2)


def after_two_steps(space: spaces.Space, good: Any, seen: Any) -> np.ndarray:
    """What the stream makes of `seen` at its third step, under seed 11."""
    script = [{"observation": one} for one in (good, good, seen)]
    stream = Stream(env=Over(space, good, *script))
    stream.reset(11)
    for _ in range(3):
        stream.step(IDLE)
    return stream.observation


def refused(space: spaces.Space, good: Any, seen: Any, message: str) -> None:
    with pytest.raises(EnvironmentFault, match=message) as caught:
        after_two_steps(space, good, seen)
    assert str(caught.value).endswith("at step 3 since the reset, 3 in all, seed 11")
    assert "\n" not in str(caught.value)


def bits(*rows: list[int]) -> np.ndarray:
    return np.array(rows, np.int8)


DISCRETE = spaces.Discrete(3, start=-1)
MANY = spaces.MultiDiscrete([2, 3], start=[0, 5])
BOX = spaces.Box(np.array([-1, 0, -np.inf], np.float32), np.array([1, 1000, 5], np.float32))
BYTES = spaces.Box(0, 200, (2,), np.uint8)
SMALL = spaces.Box(-100, 100, (1,), np.int8)
TIGHT = spaces.Box(-128, 127, (1,), np.int8)  # all that its type can hold
UNBOUND = spaces.Box(-np.inf, np.inf, (2,), np.float32)


def box(row: list[float], other: tuple[float, ...] = (0, 0, 0)) -> np.ndarray:
    return np.array([other, row], np.float32)


REFUSED = {
    "discrete above": (DISCRETE, IDLE, np.array([1, 2]), "environment 1 returned 2 as observation"),
    "discrete below": (DISCRETE, IDLE, np.array([-2, 2]), "environment 0 returned -2 as observ"),
    "discrete float": (DISCRETE, IDLE, np.array([0.0, 1.0]), "type float64 where .* says int64"),
    "discrete shape": (DISCRETE, IDLE, np.array([[0], [1]]), r"shape \(2, 1\) where .* \(2,\)"),
    "many above": (
        *(MANY, np.array([[0, 5], [1, 7]]), np.array([[0, 5], [1, 8]])),
        r"environment 1 returned 8 as observation at \[1\], outside MultiDiscrete",
    ),
    "many below": (
        *(MANY, np.array([[0, 5], [1, 7]]), np.array([[0, 4], [1, 7]])),
        r"environment 0 returned 4 as observation at \[1\], outside",
    ),
    "bit": (
        *(spaces.MultiBinary(2), bits([0, 1], [1, 1]), bits([0, 1], [2, 0])),
        r"environment 1 returned 2 as observation at \[0\], outside MultiBinary\(2\)",
    ),
    "bit that wraps around": (
        *(spaces.MultiBinary(2), bits([0, 1], [1, 1]), np.array([[0, 1], [256, 0]])),
        "observation beyond what its type int8 can hold: MultiBinary",
    ),
    "box above": (BOX, box([0, 0, 0]), box([1.01, 0, 0]), r"environment 1 .* 1.0\d* as obs.*\[0\]"),
    "box below": (BOX, box([0, 0, 0]), box([0, -0.2, 0]), r"1 returned -0.2\d* as obs.*at \[1\]"),
    "half a box": (BOX, box([0, 0, 0]), box([0, 0, 5.1]), r"1 returned 5.0999\d* as .*at \[2\]"),
    "bytes": (
        *(BYTES, np.zeros((2, 2), np.uint8), np.array([[0, 201], [0, 0]], np.uint8)),
        r"environment 0 returned 201 as observation at \[1\], outside Box",
    ),
    "signed bytes": (
        *(BYTES, np.zeros((2, 2), np.uint8), np.zeros((2, 2), np.int64)),
        "observation of type int64 where the space says uint8",
    ),
    "small above": (SMALL, np.zeros((2, 1), np.int8), np.array([[0], [101]]), "1 returned 101 as"),
    "small that wraps around": (
        *(SMALL, np.zeros((2, 1), np.int8), np.array([[0], [300]])),
        "observation beyond what its type int8 can hold",
    ),
    "wraps around within all there is": (
        *(TIGHT, np.zeros((2, 1), np.int8), np.array([[0], [300]])),
        "observation beyond what its type int8 can hold",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_space_does_not_have(name):
    space, good, seen, message = REFUSED[name]
    refused(space, good, seen, message)
    assert np.array_equal(after_two_steps(space, good, good), good)


@pytest.mark.parametrize("row", [[1 + 5e-5, 0, 0], [-1 - 5e-5, 1000.05, 5], [0, -0.05, 5.0004]])
def test_rounding_is_no_fault(row):
    """A bound may be passed by a ten-thousandth of it."""
    seen = box(row)
    assert np.array_equal(after_two_steps(BOX, box([0, 0, 0]), seen), seen)


@pytest.mark.parametrize("row", [[1 + 2e-4, 0, 0], [0, 1000.2, 0], [0, 0, 5.001], [0, -0.2, 0]])
def test_more_than_rounding_is(row):
    refused(BOX, box([0, 0, 0]), box(row), "environment 1 .*, outside Box")


@pytest.mark.parametrize("backend", ["sync", "envpool"])
def test_gymnasiums_own_walker_may_somersault(backend):
    """Its hull turns by more than the pi of its space; what is not finite is refused still."""
    with closing(make_stream("BipedalWalker-v3", 2, backend=backend)) as stream:
        beyond = np.zeros((2, 24), np.float32)
        beyond[1, 0] = 3.2
        assert np.array_equal(stream._checks.observation(beyond), beyond)
        beyond[1, 0] = np.inf
        with pytest.raises(EnvironmentFault, match="environment 1 returned inf"):
            stream._checks.observation(beyond)


@pytest.mark.parametrize(
    ("space", "seen"),
    [
        (DISCRETE, np.array([-1, 1])),
        (DISCRETE, np.array([-1, 1], np.int32)),
        (MANY, np.array([[0, 5], [1, 7]], np.int16)),
        (spaces.MultiBinary(2), np.array([[True, False], [True, True]])),
        (BYTES, np.array([[0, 200], [5, 6]], np.uint8)),
        (SMALL, np.array([[-100], [100]])),
        (UNBOUND, np.array([[3e38, -3e38], [1, 2]])),
        (UNBOUND, np.array([[3, -3], [1, 2]])),
        (BOX, box([1, 1000, -3e38])),
    ],
)
def test_what_the_space_has(space, seen):
    found = after_two_steps(space, seen, seen)
    assert found.dtype == space.dtype
    np.testing.assert_allclose(found, seen)


# ---- nested --------------------------------------------------------------------------------------
NESTED = spaces.Dict(
    [("at", DISCRETE), ("rest", spaces.Tuple([BYTES, spaces.Dict(far=BOX, bits=SMALL)]))]
)


def nested(at=IDLE, pixels=(0, 0), far=(0, 0, 0), one=0) -> dict:
    return {
        "at": np.asarray(at),
        "rest": (
            np.array([[1, 2], pixels], np.uint8),
            {"far": box(far), "bits": np.array([[0], [one]], np.int8)},
        ),
    }


FAULTS = {
    "at": (nested(at=[0, 5]), r"environment 1 returned 5 as observation \['at'\], outside Discr"),
    "pixels": (nested(pixels=(0, 255)), r"1 returned 255 as observation \['rest'\]\[0\] at \[1\]"),
    "far": (
        nested(far=(2, 0, 0)),
        r"returned 2.0 as observation \['rest'\]\[1\]\['far'\] at \[0\]",
    ),
    "nan": (nested(far=(0, np.nan, 0)), r"nan as observation \['rest'\]\[1\]\['far'\] at \[1\]"),
    "bits": (nested(one=101), r"returned 101 as observation \['rest'\]\[1\]\['bits'\] at \[0\]"),
    "type": (nested(at=[0.5, 0]), r"observation \['at'\] of type float64 where the space says int"),
    "shape": (nested(at=[0]), r"observation \['at'\] of shape \(1,\) where the space says \(2,\)"),
    "key": ({"at": IDLE}, r"observation that is not nested like its space \(KeyError 'rest'\)"),
    "tuple": ({"at": IDLE, "rest": ()}, r"not nested like its space \(IndexError tuple index"),
    "array": (np.zeros((2, 7)), r"not nested like its space \(IndexError"),
    "none": (None, r"not nested like its space \(TypeError"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_nested_faults_name_the_part(name):
    seen, message = FAULTS[name]
    refused(NESTED, nested(), seen, message)


def test_nested_observations_are_packed():
    good = nested(at=[-1, 1], pixels=(9, 8), far=(0.5, 1, -2), one=7)
    found = after_two_steps(NESTED, good, good)
    assert found.tolist()[1] == [1, 9, 8, 0.5, 1, -2, 7]


def test_a_fault_at_the_reset_says_so():
    stream = Stream(env=Over(DISCRETE, np.array([0, 7])))
    with pytest.raises(
        EnvironmentFault, match=r"environment 1 returned 7 .*, at a reset after 0 steps.*, seed 5"
    ):
        stream.reset(5)


@pytest.mark.parametrize("dense", [False, True])
def test_final_observations_have_bounds_too(dense):
    """The one row that ended is environment 1: it is named, not row 0 of what was looked at."""
    final = np.array([0, 9]) if dense else np.array([None, np.int64(9)], dtype=object)
    said = {
        "observation": IDLE,
        "truncated": ~FIRST,
        "info": {"final_obs": final, "_final_obs": ~FIRST},
    }
    stream = Stream(env=Over(DISCRETE, IDLE, said, mode=AutoresetMode.SAME_STEP))
    stream.reset(11)
    with pytest.raises(EnvironmentFault, match="environment 1 returned 9 as final observation, "):
        stream.step(IDLE)


def test_nested_final_observations():
    """As Gymnasium gives them: one object for each environment that ended."""
    last = {
        "at": np.int64(1),
        "rest": (
            np.array([3, 4], np.uint8),
            {"far": np.array([1, 2, 3], np.float32), "bits": np.array([5], np.int8)},
        ),
    }
    final = np.full(2, None, dtype=object)
    final[1] = last
    info = {"final_obs": final, "_final_obs": ~FIRST}
    said = {"observation": nested(), "truncated": ~FIRST, "info": info}
    stream = Stream(env=Over(NESTED, nested(), said, mode=AutoresetMode.SAME_STEP))
    stream.reset(11)
    step = stream.step(IDLE)
    assert step.next_observation[1].tolist() == [1, 3, 4, 1, 2, 3, 5]
    assert step.next_observation[0].tolist() == stream.observation[0].tolist()
    assert stream.observation[1].tolist() == [0, 0, 0, 0, 0, 0, 0]


# ---- all numbers at once, natively ---------------------------------------------------------------
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1.01, -2.01])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("built", [True, False])
def test_each_number_is_looked_at(bad, dtype, built, monkeypatch):
    monkeypatch.setattr("upslope.rollout.checks.BUILT", built and checks.BUILT)
    space = spaces.Box(np.array([-2, -np.inf], dtype), np.array([1, np.inf], dtype), dtype=dtype)
    held = checks.Checks(3, Layout(space), MaskLayout(spaces.Discrete(2)))
    good = np.array([[-2, 5], [1, -7], [0, 0]], dtype)
    assert held.observation(good).tolist() == good.tolist()
    for row in range(3):
        for column in range(2):
            wrong = good.copy()
            wrong[row, column] = bad
            if column == 1 and np.isfinite(bad):
                assert held.observation(wrong)[row, column] == dtype(bad)
                continue
            with pytest.raises(EnvironmentFault, match=f"environment {row} returned"):
                held.observation(wrong)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("count", "size"), [(300, 17), (1000, 1), (3, 1000)])
def test_many_numbers_are_looked_at(count, size, dtype):
    """They are compared many at a time, and each with its own bounds."""
    low = -np.arange(1, size + 1, dtype=dtype)
    space = spaces.Box(low, -low, dtype=dtype)
    held = checks.Checks(count, Layout(space), MaskLayout(spaces.Discrete(2)))
    good = np.random.default_rng(0).uniform(-1, 1, (count, size)).astype(dtype) * -low
    assert np.array_equal(held.observation(good), good)
    for row in (0, count // 2, count - 1):
        for column in (0, size // 2, size - 1):
            wrong = good.copy()
            wrong[row, column] = 1.01 * low[column]
            with pytest.raises(EnvironmentFault, match=f"environment {row} returned .* outside"):
                held.observation(wrong)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e39])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("built", [True, False])
def test_each_reward_is_looked_at_where_it_counts(bad, dtype, built, monkeypatch):
    monkeypatch.setattr("upslope.rollout.checks.BUILT", built and checks.BUILT)
    held = checks.Checks(3, Layout(BOX), MaskLayout(spaces.Discrete(2)))
    ends = np.array([True, False, False]), np.array([False, False, True])
    for row in range(3):
        reward, others = np.array([1, -2, 3], dtype), np.arange(3) != row
        with np.errstate(over="ignore"):
            reward[row] = bad
        own = held.signals(reward, *ends, others)
        assert own[0].tolist() == np.where(others, [1, -2, 3], 0).tolist()
        assert own[1].tolist() == (ends[0] & others).tolist()
        assert own[2].tolist() == (ends[1] & others).tolist()
        assert own[3].tolist() == [True, False, True]
        assert [one.dtype for one in own] == [np.float32, bool, bool, bool]
        with pytest.raises(EnvironmentFault, match=rf"environment {row} returned -?(nan|inf) as r"):
            held.signals(reward, *ends, np.ones(3, bool))


@pytest.mark.parametrize("built", [True, False])
def test_ends_are_told_apart(built, monkeypatch):
    """What terminated is not truncated as well, and nothing ends in a step that does not count."""
    monkeypatch.setattr("upslope.rollout.checks.BUILT", built and checks.BUILT)
    flags = np.array(list(itertools.product([False, True], repeat=3))).T.copy()
    held = checks.Checks(8, Layout(BOX), MaskLayout(spaces.Discrete(2)))
    terminated, truncated, counted = flags
    given = flags.copy()
    found = held.signals(np.ones(8), terminated, truncated, counted)
    for n, (over, cut, counts) in enumerate(given.T.tolist()):
        assert found[1][n] == (over and counts)
        assert found[2][n] == (cut and counts and not over)
        assert found[3][n] == (over or cut)
    assert np.array_equal(flags, given)
    none = np.zeros(8, bool)
    assert held.signals(np.ones(8), none, none, counted)[3] is None
