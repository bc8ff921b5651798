"""Layouts: what is packed comes back, in the space's own order, and wrong elements are refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector.utils import concatenate, create_empty_array
from hypothesis import given, settings
from hypothesis import strategies as st

from upslope.errors import ArgumentError
from upslope.policies.layout import Layout, leaves

BOX = spaces.Box(-1, 1, (2,), np.float32)
NESTED = spaces.Dict(
    image=spaces.Box(0, 255, (4, 3, 1), np.uint8),
    rest=spaces.Tuple([spaces.Discrete(5, start=-2), spaces.Dict(bits=spaces.MultiBinary((2, 2)))]),
    goal=spaces.MultiDiscrete([3, 4]),
)
SHAPES = st.lists(st.integers(1, 3), max_size=3).map(tuple)
LEAVES = st.one_of(
    st.builds(
        lambda shape, dtype: spaces.Box(0, 9, shape, dtype),
        SHAPES,
        st.sampled_from([np.float32, np.float64, np.uint8, np.int64]),
    ),
    st.builds(spaces.Discrete, st.integers(1, 5), start=st.integers(-3, 3)),
    st.builds(spaces.MultiDiscrete, st.lists(st.integers(1, 5), min_size=1, max_size=3)),
    st.builds(spaces.MultiBinary, st.integers(1, 4)),
)
SPACES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, min_size=1, max_size=3).map(spaces.Tuple)
        | st.dictionaries(st.sampled_from("dcba"), inner, min_size=1).map(spaces.Dict)
    ),
    max_leaves=5,
)


def batch_of(space, n: int):
    space.seed(0)
    elements = [space.sample() for _ in range(n)]
    return elements, concatenate(space, elements, create_empty_array(space, n))


def part_of(element, path):
    for key in path:
        element = element[key]
    return element


@given(SPACES, st.integers(1, 4))
@settings(max_examples=60)
def test_what_is_packed_comes_back(space, n):
    layout = Layout(space)
    elements, batch = batch_of(space, n)
    packed = layout.pack([np.asarray(value) for _, value in layout.values(batch)])
    assert packed.shape == (n, *layout.shape)
    assert packed.dtype == np.result_type(*[leaf.dtype for _, leaf in leaves(space)])
    for form in (packed, torch.from_numpy(packed)):
        back = layout.unpack(form)
        for path, leaf in leaves(space):
            found = np.asarray(part_of(back, path))
            assert found.shape == (n, *leaf.shape)
            wanted = np.stack([np.asarray(part_of(one, path)) for one in elements])
            np.testing.assert_array_equal(found, wanted)
    accepted, single = layout.accept(batch)
    assert not single
    np.testing.assert_array_equal(accepted, packed)
    accepted, single = layout.accept(elements[0])
    assert single
    np.testing.assert_array_equal(accepted, packed[:1])


def test_columns_are_those_of_gymnasium_where_it_has_no_one_hots():
    space = spaces.Dict(b=spaces.Box(-1, 1, (2, 3)), a=spaces.Tuple([BOX, spaces.MultiBinary(3)]))
    elements, batch = batch_of(space, 4)
    packed, _ = Layout(space).accept(batch)
    wanted = np.stack([spaces.flatten(space, one) for one in elements])
    np.testing.assert_array_equal(packed, wanted)


def test_parts_follow_the_spaces_own_order():
    """Gymnasium sorts the keys of a plain dict, and keeps the order of pairs."""
    sort = Layout(spaces.Dict({"z": BOX, "a": spaces.Discrete(3)}))
    assert [(p.path, p.start, p.size) for p in sort.parts] == [(("a",), 0, 1), (("z",), 1, 2)]
    kept = Layout(spaces.Dict([("z", BOX), ("a", spaces.Discrete(3))]))
    assert [(p.path, p.start, p.size) for p in kept.parts] == [(("z",), 0, 2), (("a",), 2, 1)]
    element = {"a": 2, "z": np.array([0.5, -1], np.float32)}  # in any order
    assert kept.accept(element)[0].tolist() == [[0.5, -1, 2]]
    assert sort.accept(element)[0].tolist() == [[2, 0.5, -1]]


def test_nested_by_hand():
    layout = Layout(NESTED)
    names = [part.named() for part in layout.parts]
    assert names == [" ['image']", " ['rest'][0]", " ['rest'][1]['bits']", " ['goal']"]
    assert [part.columns for part in layout.parts] == [
        *(slice(0, 12), slice(12, 13), slice(13, 17), slice(17, 19))
    ]
    assert (layout.size, layout.shape, layout.dtype) == (19, (19,), np.int64)
    back = layout.unpack(np.arange(38).reshape(2, 19))
    assert list(back) == ["image", "rest", "goal"]
    assert isinstance(back["rest"], tuple)
    assert back["rest"][0].tolist() == [12, 31]
    assert back["rest"][1]["bits"].tolist()[0] == [[13, 14], [15, 16]]


def test_a_space_of_one_part_is_left_as_it_is():
    image = spaces.Box(0, 255, (4, 3, 1), np.uint8)
    layout, array = Layout(image), np.zeros((2, 4, 3, 1), np.uint8)
    assert (layout.shape, layout.nested, layout.parts[0].named()) == ((4, 3, 1), False, "")
    assert layout.pack([array]) is array
    assert layout.unpack(array) is array
    lone = Layout(spaces.Tuple([spaces.Discrete(3)]))
    assert (lone.nested, lone.shape) == (True, (1,))


@pytest.mark.parametrize(
    ("kinds", "dtype"),
    [
        ([np.uint8, np.uint8], np.uint8),
        ([np.uint8, np.float32], np.float32),
        ([np.float32, np.float64], np.float64),
        ([np.int8, np.int64], np.int64),
    ],
)
def test_columns_have_a_type_that_holds_all_parts(kinds, dtype):
    space = spaces.Tuple([spaces.Box(0, 9, (1,), kind) for kind in kinds])
    layout = Layout(space)
    assert layout.dtype == dtype
    assert layout.accept(batch_of(space, 2)[1])[0].dtype == dtype


# ---- refusals ------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("space", "message"),
    [
        (spaces.Text(3), r"action space Text.* is not supported: Box, Discrete, MultiDiscrete, "),
        (spaces.Dict(a=spaces.Tuple([BOX, spaces.Graph(BOX, None)])), r"space\['a'\]\[1\] Graph"),
        (spaces.Sequence(BOX), "space Sequence.* is not supported"),
        (spaces.Box(0, 1, (0,)), "holds no number"),
        (spaces.Tuple([BOX, spaces.Box(0, 1, (3, 0))]), r"space\[1\] Box.* holds no number"),
        (spaces.Dict(), "it has no parts"),
        (spaces.Tuple([]), "it has no parts"),
    ],
)
def test_spaces_without_a_form(space, message):
    with pytest.raises(ArgumentError, match=message):
        Layout(space, "action")


PAIR = spaces.Dict(go=BOX, gear=spaces.Discrete(3, start=1))
GO = np.zeros(2, np.float32)


@pytest.mark.parametrize(
    ("space", "given", "message"),
    [
        (PAIR, {"go": GO}, "observation is not nested like Dict.*: KeyError 'gear'"),
        (PAIR, GO, "observation is not nested like Dict.*: IndexError"),
        (PAIR, None, "observation is not nested like Dict.*: TypeError"),
        (spaces.Tuple([BOX, BOX]), (GO,), "not nested like Tuple.*: IndexError"),
        (BOX, np.zeros(3), r"shape \(3,\); predict takes \(2,\) or \('N', 2\)"),
        (BOX, np.zeros((1, 1, 2)), r"shape \(1, 1, 2\); predict takes"),
        (BOX, 1.0, r"shape \(\); predict takes"),
        (PAIR, {"go": GO[None], "gear": 1}, r"has shape \(\); predict takes"),
        (PAIR, {"go": np.zeros((2, 2)), "gear": [1, 1, 1]}, r"\['g.*predict takes"),
        (PAIR, {"go": GO, "gear": [1]}, r"\['go'\] has shape \(2,\); predict takes \(2,\) or"),
        (BOX, np.array(["a", "b"]), "type <U1; predict takes numbers"),
        (BOX, np.zeros(2, complex), "type complex128; predict takes numbers"),
        (BOX, np.array([0, np.nan]), "NaN or inf; predict takes finite numbers"),
        (PAIR, {"go": np.array([0, np.inf]), "gear": 1}, r"observation \['go'\] has NaN or inf"),
        (PAIR, {"go": GO, "gear": 0}, r"\['gear'\] is 0, outside Discrete\(3, start=1\)"),
        (spaces.Discrete(3), 3, r"observation is 3, outside Discrete\(3\)"),
        (spaces.Discrete(3), [0, -1], r"observation is -1, outside"),
        (spaces.Discrete(3), 0.5, r"observation is 0.5, outside"),
        (spaces.MultiDiscrete([2, 3]), [1, 3], r"observation is 3, outside MultiDiscrete"),
        (spaces.MultiBinary(2), [[0, 1], [2, 0]], r"observation is 2, outside MultiBinary"),
    ],
)
def test_elements_that_are_refused(space, given, message):
    with pytest.raises(ArgumentError, match=message):
        Layout(space).accept(given)


def test_numbers_outside_a_box_are_taken():
    """Gymnasium's own environments leave their boxes now and then."""
    assert Layout(BOX).accept([3.0, -3.0])[1]
    assert Layout(spaces.Discrete(3)).accept(2.0)[1]
