"""A packed linear layer and attention of one query are those of torch, to float32 rounding."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine.native_cases import INSTRUCTION_SETS
from upslope import _native

each = pytest.mark.parametrize("name", INSTRUCTION_SETS)
seeds = st.integers(0, 2**32 - 1)


@contextmanager
def using(name: str) -> Iterator[None]:
    before = _native.instruction_set()
    _native.use_instruction_set(name)
    try:
        yield
    finally:
        _native.use_instruction_set(before)


def normal(draws, *shape: int) -> np.ndarray:
    return draws.standard_normal(shape).astype(np.float32)


def applied(layer, x: np.ndarray, threads: int = 1) -> np.ndarray:
    out = np.full((len(x), layer.outputs), np.nan, np.float32)
    layer.apply(x, out, threads)
    return out


@pytest.mark.slow
@each
@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 70),
    inputs=st.integers(1, 90),
    outputs=st.integers(1, 150),
    biased=st.booleans(),
    turned=st.booleans(),
    seed=seeds,
)
def test_a_packed_layer(name, rows, inputs, outputs, biased, turned, seed):
    draws = np.random.default_rng(seed)
    weight = normal(draws, inputs, outputs).T if turned else normal(draws, outputs, inputs)
    bias = normal(draws, outputs) if biased else None
    x = normal(draws, rows, inputs)
    with using(name):
        layer = _native.PackedLinear(weight, bias)
    found = applied(layer, x)
    exact = x.astype(float) @ weight.T.astype(float) + (0 if bias is None else bias)
    np.testing.assert_allclose(found, exact, rtol=1e-5, atol=2e-6 * inputs**0.5)
    for some in (slice(0, 1), slice(rows // 2, None)):  # no row knows of the others
        np.testing.assert_array_equal(applied(layer, x[some].copy()), found[some])
    np.testing.assert_array_equal(applied(layer, x, threads=3), found)


def exact_attention(query, keys, values, seen, scale):
    share = query.shape[1] // keys.shape[1]
    keys, values = (x.astype(float).repeat(share, 1) for x in (keys, values))
    scores = scale * np.einsum("nhd,nhld->nhl", query.astype(float), keys)
    if seen is not None:
        scores = np.where(seen[:, None], scores, -np.inf)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("nhl,nhld->nhd", p / p.sum(-1, keepdims=True), values)


@each
@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 5),
    kept=st.integers(1, 3),
    share=st.integers(1, 3),
    length=st.integers(1, 70),
    size=st.integers(1, 140),
    masked=st.booleans(),
    scale=st.floats(0.05, 2),
    seed=seeds,
)
def test_attention_of_one_query(name, n, kept, share, length, size, masked, scale, seed):
    draws = np.random.default_rng(seed)
    query = normal(draws, n, kept * share, size)
    # a view of what was reserved, as in the sampler's cache; what lies behind must not be read
    memory = np.full((2, n, kept, length + 3, size), np.nan, np.float32)
    memory[:, :, :, :length] = normal(draws, 2, n, kept, length, size)
    keys, values = memory[:, :, :, :length]
    seen = None
    if masked:
        seen = draws.random((n, length)) < 0.5
        seen[:, draws.integers(length)] = True
    found, again = (np.full_like(query, np.nan) for _ in range(2))
    with using(name):
        _native.attend(query, keys, values, seen, found, scale, 1)
        _native.attend(query, keys, values, seen, again, scale, 3)
    expected = exact_attention(query, keys, values, seen, scale)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(again, found)


def test_shapes_that_do_not_fit_are_refused():
    layer = _native.PackedLinear(np.zeros((3, 2), np.float32), None)
    x, out = np.zeros((4, 2), np.float32), np.zeros((4, 3), np.float32)
    for wrong in ((x[:, :1].copy(), out), (x, out[:2]), (x, out[:, :2].copy())):
        with pytest.raises(ValueError, match="of another"):
            layer.apply(*wrong, 1)
    with pytest.raises(ValueError, match="bias"):
        _native.PackedLinear(np.zeros((3, 2), np.float32), np.zeros(2, np.float32))
    query, kept = np.zeros((2, 4, 8), np.float32), np.zeros((2, 2, 5, 8), np.float32)
    seen = np.ones((2, 5), np.bool_)
    right = (query, kept, kept, seen, query.copy())
    _native.attend(*right, 1.0, 1)
    turned = np.zeros((2, 2, 8, 5), np.float32).swapaxes(2, 3)
    for place, wrong in (
        (0, query[:1]),
        (0, query[:, :3].copy()),
        (1, kept[:, :, :4]),
        (1, kept[:, :, :, :7]),
        (2, turned),
        (3, seen[:, :4].copy()),
        (4, query[:, :2].copy()),
    ):
        arguments = [*right[:place], wrong, *right[place + 1 :]]
        with pytest.raises(ValueError, match=r"of another shape|no multiple"):
            _native.attend(*arguments, 1.0, 1)
