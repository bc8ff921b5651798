"""The order of an epoch: torch's own, natively too; and its parts."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from upslope.rollout import minibatches
from upslope.rollout.minibatches import Minibatches, shuffled

SIZES = [0, 1, 2, 3, 623, 624, 625, 1247, 1249, 16_384, 100_003]
SEEDS = [0, 1, 2**31, 2**32 - 1, 2**40 + 7, 2**63 - 1]


@pytest.mark.parametrize("built", [True, False])
@pytest.mark.parametrize(("count", "seed"), list(itertools.product(SIZES, SEEDS)))
def test_it_is_torchs_order(count, seed, built, monkeypatch):
    monkeypatch.setattr(minibatches, "BUILT", built and minibatches.BUILT)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(shuffled(np.ones((1, count), bool), seed), order)


@given(st.integers(0, 40), st.integers(1, 40), st.integers(0, 2**63 - 1), st.floats(0, 1))
@settings(max_examples=100)
def test_only_valid_rows_are_in_it(n_steps, n_envs, seed, share):
    valid = np.random.default_rng(seed).random((n_steps, n_envs)) < share
    rows = np.flatnonzero(valid)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    assert torch.equal(shuffled(valid, seed), torch.from_numpy(rows)[order])


def test_every_order_of_four_is_as_likely():
    counts = Counter(tuple(shuffled(np.ones((2, 2), bool), k).tolist()) for k in range(24_000))
    assert len(counts) == 24
    chi_square = sum((count - 1000) ** 2 / 1000 for count in counts.values())
    assert chi_square < 56  # 23 degrees of freedom: exceeded once in 7,000


def test_parts_are_views_of_one_index():
    rows = torch.randperm(11)
    found = Minibatches.cut(rows, 4)
    assert [len(part) for part in found] == [3, 3, 3, 2]
    assert torch.equal(torch.cat(list(found)), rows)
    assert found[1].data_ptr() == rows[3:].data_ptr()
    assert len(found) == 4
    assert [part.tolist() for part in found[2:]] == [part.tolist() for part in found.parts[2:]]
    assert Minibatches.of(found) is found


@pytest.mark.parametrize("sizes", [[], [0], [3], [2, 0, 4]])
def test_parts_are_put_together(sizes):
    parts = list(torch.arange(sum(sizes)).split(sizes)) if sizes else []
    found = Minibatches.of(parts)
    assert found.sizes.tolist() == sizes
    assert found.sizes.dtype == np.int64
    assert found.rows.tolist() == list(range(sum(sizes)))
    assert [part.tolist() for part in found] == [part.tolist() for part in parts]
