"""Action masks: every form that environments and users have, and every refusal."""

from __future__ import annotations

import numpy as np
import pytest
from gymnasium import spaces

from upslope.policies.legal import MaskLayout

ONE, PAIR, BITS = spaces.Discrete(3), spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(2)
GRID = spaces.MultiDiscrete(np.array([[2, 1], [3, 2]]))
BOX = spaces.Box(-1, 1, (2,), np.float32)
NEST = spaces.Dict([("go", BOX), ("gear", ONE), ("rest", spaces.Tuple([BITS, BOX, PAIR]))])

A, B = [1, 0, 1], [0, 1, 1]
P, Q = [1, 0, 0, 1, 1], [1, 1, 1, 0, 0]
X, Y = [1, 0, 0, 1], [1, 1, 1, 0]


def array(*rows, dtype=np.int8) -> np.ndarray:
    return np.array(rows, dtype)


def objects(*each) -> np.ndarray:
    """An array of objects, as Gymnasium makes it of what it does not know."""
    found = np.full(len(each), None, dtype=object)
    found[:] = each
    return found


def pair(row) -> tuple[np.ndarray, np.ndarray]:
    return array(*row[:2]), array(*row[2:])


def nested(a, x, p):
    return {"gear": array(*a), "rest": (array(x[:2], x[2:]), None, pair(p))}


BATCHES = {
    "array": (ONE, array(A, B), [A, B]),
    "bool": (ONE, array(A, B, dtype=bool), [A, B]),
    "float": (ONE, array(A, B, dtype=np.float64), [A, B]),
    "list of rows": (ONE, [A, B, A], [A, B, A]),
    "list of as many rows as options": (spaces.Discrete(2), [[1, 0], [1, 0]], [[1, 0], [1, 0]]),
    "tuple of arrays, as of env.call": (ONE, (array(*A), array(*B)), [A, B]),
    "objects": (ONE, objects(array(*A), array(*B)), [A, B]),
    "objects, one missing": (ONE, objects(array(*A), None), [A, [1, 1, 1]]),
    "nothing": (ONE, None, [[1, 1, 1]] * 2),
    "columns of MultiDiscrete": (PAIR, array(P, Q), [P, Q]),
    "one array for each number": (PAIR, (array(P[:2], Q[:2]), array(P[2:], Q[2:])), [P, Q]),
    "one tuple for each row": (PAIR, objects(pair(P), pair(Q)), [P, Q]),
    "list of tuples": (PAIR, [pair(P), pair(Q), pair(Q)], [P, Q, Q]),
    "columns of a grid": (GRID, array([1, 0, 1, 0, 1, 1, 1, 0]), [[1, 0, 1, 0, 1, 1, 1, 0]]),
    "bits": (BITS, array([X[:2], X[2:]], [Y[:2], Y[2:]]), [X, Y]),
    "columns of bits": (BITS, array(X, Y), [X, Y]),
    "nested": (
        NEST,
        {
            "gear": array(A, B),
            "rest": (array(X, Y), None, (array(P[:2], Q[:2]), array(P[2:], Q[2:]))),
        },
        [A + X + P, B + Y + Q],
    ),
    "nested objects": (NEST, objects(nested(A, X, P), nested(B, Y, Q)), [A + X + P, B + Y + Q]),
    "list of dicts": (NEST, [nested(A, X, P), nested(B, Y, Q)], [A + X + P, B + Y + Q]),
    "packed": (NEST, array(A + X + P, B + Y + Q), [A + X + P, B + Y + Q]),
    "a missing part": (NEST, {"gear": array(A, B)}, [A + [1] * 9, B + [1] * 9]),
    "missing parts": (NEST, {"rest": (array(X, Y), None, None)}, [[1] * 3 + X + [1] * 5] * 0 + [
        [1] * 3 + X + [1] * 5, [1] * 3 + Y + [1] * 5]),
    "no part": (NEST, {}, [[1] * 12] * 2),
    "a part that one row lacks": (
        NEST,
        {
            "gear": array(A, [0, 0, 0]),
            "_gear": np.array([True, False]),
            "rest": (None, None, None),
        },
        [A + [1] * 9, [1] * 12],
    ),
    "a nested part that one row lacks": (
        spaces.Dict(a=spaces.Dict(b=ONE)),
        {"a": {"b": array(A, B), "_b": array(1, 0)}, "_a": array(1, 1)},
        [A, [1, 1, 1]],
    ),
    "objects within a dict, one missing": (
        spaces.Dict(a=PAIR),
        {"a": objects(pair(P), None), "_a": array(1, 0)},
        [P, [1] * 5],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BATCHES)
def test_masks_of_a_batch(name):
    space, raw, wanted = BATCHES[name]
    found = MaskLayout(space).pack(raw, len(wanted))
    assert found.dtype == bool
    assert found.astype(int).tolist() == wanted
    again = MaskLayout(space).pack(found, len(wanted))  # what was packed is taken too
    assert np.array_equal(again, found)


@pytest.mark.parametrize(
    ("space", "masks", "wanted"),
    [
        (ONE, [array(*A), B], [A, B]),
        (ONE, [array(A)], [A]),
        (ONE, [None, A], [[1, 1, 1], A]),
        (PAIR, [pair(P), array(*Q)], [P, Q]),
        (BITS, [array(X[:2], X[2:]), Y], [X, Y]),
        (NEST, [nested(A, X, P), {}], [A + X + P, [1] * 12]),
        (spaces.Tuple([ONE, BOX]), [(A, None), (B, None)], [A, B]),
    ],
)
def test_masks_one_by_one(space, masks, wanted):
    assert MaskLayout(space).pack_each(masks).astype(int).tolist() == wanted


def test_what_was_given_is_not_written_to():
    raw = np.array([A, B], bool)
    MaskLayout(ONE).pack(raw, 2)[:] = True
    given = {"gear": np.array([A, B], bool), "_gear": np.array([True, False])}
    MaskLayout(NEST).pack(given, 2)
    assert raw.astype(int).tolist() == given["gear"].astype(int).tolist() == [A, B]


def test_a_space_without_choices_has_no_columns():
    assert MaskLayout(BOX).columns == 0
    assert MaskLayout(NEST).columns == 12


@pytest.mark.parametrize(
    ("space", "raw", "message"),
    [
        (ONE, array(A), r"shape \(1, 3\), which takes \(2, 3\), one column for each option of act"),
        (ONE, array(*A), r"shape \(3,\), which takes \(2, 3\)"),
        (ONE, array(A, B).T, r"shape \(3, 2\), which takes \(2, 3\)"),
        (ONE, array([1, 0], [0, 1]), r"shape \(2, 2\), which takes \(2, 3\)"),
        (ONE, [A, B[:2]], r"action mask that is no array \(list\), which takes \(2, 3\)"),
        (ONE, [A, B, A], r"shape \(3, 3\), which takes \(2, 3\)"),
        (ONE, objects(array(*A)), "1 action masks, which takes 2"),
        (ONE, 1, r"shape \(\), which takes \(2, 3\)"),
        (ONE, array([1, 2, 0], A), "other values than 0 and 1"),
        (ONE, array([1, np.nan, 0], A, dtype=float), "other values than 0 and 1"),
        (ONE, array([1, -1, 0], A), "other values than 0 and 1"),
        (ONE, np.array([["a", "b", "c"]] * 2), "other values than 0 and 1"),
        (ONE, {"gear": array(A, B)}, r"no array \(dict\), which takes \(2, 3\)"),
        (PAIR, (array(P[:2], Q[:2]),), r"which takes \(2, 5\)"),
        (PAIR, (array(P[2:], Q[2:]), array(P[:2], Q[:2])), r"which takes \(2, 5\)"),
        (BITS, array([1, 0], [0, 1]), r"shape \(2, 2\), which takes \(2, 4\)"),
        (NEST, {"gaer": array(A, B)}, r"action mask for \['gaer'\], which takes \['go', 'gear'"),
        (NEST, array(A, B), "action mask of type ndarray, which takes a dict"),
        (NEST, {"rest": (None,)}, "of type tuple, which takes a tuple of 3 masks"),
        (NEST, {"rest": array(X, Y)}, "of type ndarray, which takes a tuple of 3 masks"),
        (NEST, {"gear": array(X, Y)}, r"which takes \(2, 3\).*of action \['gear'\]"),
        (NEST, {"rest": (None, None, array(X, Y))}, r"of action \['rest'\]\[2\]"),
        (NEST, [{}], "1 action masks, which takes 2"),
    ],
)
def test_masks_that_are_refused(space, raw, message):
    with pytest.raises(ValueError, match=message):
        MaskLayout(space).pack(raw, 2)


def test_the_first_row_without_a_legal_option():
    layout = MaskLayout(NEST)
    mask = np.ones((3, 12), bool)
    assert layout.without_option(mask) is None
    for columns in ([0, 1, 2], [3, 4], [5, 6], [7, 8], [9, 10, 11]):
        dead = mask.copy()
        dead[1:, columns] = False
        assert layout.without_option(dead) == 1
        dead[1:, columns[0]] = True
        assert layout.without_option(dead) is None
    across = mask.copy()
    across[2, 1:6] = False  # the last options of one choice, the only ones of the next
    assert layout.without_option(across) == 2
