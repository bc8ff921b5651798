"""What is written is what `tomllib` reads."""

from __future__ import annotations

import math
import tomllib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from upslope.errors import ConfigError
from upslope.runs.toml import dumps

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
scalars = st.booleans() | st.integers() | st.floats() | text
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3), max_leaves=6)
tables = st.recursive(
    st.dictionaries(text, values, max_size=4),
    lambda inner: st.dictionaries(text, values | inner, max_size=3),
    max_leaves=6,
)


def same(one: Any, other: Any) -> bool:
    """Say whether two values are equal and of one kind; NaN is NaN, and True is not 1."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float) and math.isnan(one):
        return isinstance(other, float) and math.isnan(other)
    return type(one) is type(other) and one == other


@given(tables)
def test_round_trip(table: dict[str, Any]) -> None:
    written = dumps(table)
    assert same(tomllib.loads(written), table), written


def test_a_plain_table_reads_well() -> None:
    table = {
        "name": 'a "quoted" \\ word\n',
        "empty": {},
        "settings": {"rate": 3e-4, "sizes": (64, 64), "on": True, "deep": {"x": 1}},
        "steps": 100_000,
        "nothing": None,
    }
    assert dumps(table) == (
        'name = "a \\"quoted\\" \\\\ word\\n"\n'
        "steps = 100000\n\n"
        "[empty]\n\n"
        "[settings]\nrate = 0.0003\nsizes = [64, 64]\non = true\n\n"
        "[settings.deep]\nx = 1\n"
    )


@pytest.mark.parametrize("number", [math.inf, -math.inf, math.nan, 1e300, 5e-324, -0.0, 10**30])
def test_odd_numbers(number: float) -> None:
    assert same(tomllib.loads(dumps({"x": number})), {"x": number})


def test_numpy_floats_are_numbers() -> None:
    assert dumps({"x": np.float64(0.5)}) == "x = 0.5\n"


@pytest.mark.parametrize("value", [object(), {1, 2}, b"x", 1j, np.ones(2), [None], [{"a": None}]])
def test_what_is_no_toml_is_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"cannot be written to a configuration file$"):
        dumps({"x": value})


def test_half_a_surrogate_pair_is_refused() -> None:
    with pytest.raises(ConfigError, match="no character of Unicode"):
        dumps({"x": "\ud800"})
    with pytest.raises(ConfigError, match="no character of Unicode"):
        dumps({"\ud800": 1})
