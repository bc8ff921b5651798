"""The rollout buffer: minibatches of valid rows, chunks by environment, rows by index."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from upslope.rollout.buffer import Rollout


def rollout_of(n_steps: int, n_envs: int, valid: np.ndarray | None = None) -> Rollout:
    rollout = Rollout(n_steps, n_envs, ((2,), np.dtype(np.float32)), ((), np.dtype(np.int64)))
    rollout.valid[:] = True if valid is None else valid
    return rollout


@given(st.data())
@settings(max_examples=100)
def test_every_valid_row_once_and_no_other(data):
    n_steps, n_envs = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 9))
    flags = st.lists(st.booleans(), min_size=n_steps * n_envs, max_size=n_steps * n_envs)
    valid = np.array(data.draw(flags)).reshape(n_steps, n_envs)
    valid[0, 0] = True
    batch_size = data.draw(st.integers(1, 200))
    rollout = rollout_of(n_steps, n_envs, valid)
    parts = list(rollout.minibatches(batch_size, 0))
    rows = torch.cat(parts)
    assert sorted(rows.tolist()) == np.flatnonzero(valid).tolist()
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= 1
    assert len(parts) == max(1, round(valid.sum() / batch_size))
    assert rollout.n_valid == valid.sum()


def test_sizes_are_those_asked_for_where_they_divide():
    assert [len(x) for x in rollout_of(8, 4).minibatches(8, 0)] == [8] * 4
    assert [len(x) for x in rollout_of(8, 4).minibatches(1, 0)] == [1] * 32
    assert [len(x) for x in rollout_of(1, 1).minibatches(256, 0)] == [1]


def test_no_rows_give_no_minibatch_with_rows():
    rollout = rollout_of(2, 2, np.zeros((2, 2), bool))
    assert sum(len(part) for part in rollout.minibatches(4, 0)) == 0


def test_the_order_is_shuffled_by_the_seed_alone():
    rollout = rollout_of(32, 8)
    torch.manual_seed(0)
    first = torch.cat(list(rollout.minibatches(64, 0)))
    torch.manual_seed(1)
    assert torch.equal(torch.cat(list(rollout.minibatches(64, 0))), first)
    assert not torch.equal(torch.cat(list(rollout.minibatches(64, 1))), first)
    correlation = torch.corrcoef(torch.stack([first.double(), torch.arange(256.0).double()]))[0, 1]
    assert abs(correlation) < 4.5 / 16


@given(st.integers(1, 30), st.integers(1, 12), st.integers(1, 10), st.integers(0, 99))
@settings(max_examples=100)
def test_chunks_are_a_partition_by_environment(n_steps, n_envs, at_most, seed):
    rollout = rollout_of(n_steps, n_envs)
    index = rollout.minibatches(17, seed)[0]
    chunks = rollout.chunks(index, at_most)
    environments = index % n_envs
    if chunks is None:
        groups = environments % min(at_most, n_envs, max(2, len(index) // 128))
        assert len(groups.unique()) == 1
        return
    assert 2 <= len(chunks.sizes) <= at_most
    assert sorted(chunks.index.tolist()) == sorted(index.tolist())
    parts = chunks.index.split(chunks.sizes.tolist())
    found = [set((part % n_envs).tolist()) for part in parts]
    for k, one in enumerate(found):
        assert all(one.isdisjoint(other) for other in found[:k])


def test_one_environment_gives_no_chunks():
    rollout = rollout_of(64, 1)
    assert rollout.chunks(torch.arange(64)) is None
    rollout = rollout_of(64, 4)
    assert rollout.chunks(torch.arange(0, 256, 4)) is None  # all of environment 0
    assert rollout.chunks(torch.arange(256)).sizes.tolist() == [128] * 2


@pytest.mark.parametrize(("rows", "groups"), [(64, 2), (383, 2), (384, 3), (1024, 8), (4096, 8)])
def test_a_small_minibatch_is_cut_into_few_chunks(rows, groups):
    assert len(rollout_of(64, 64).chunks(torch.arange(rows)).sizes) == groups


def test_flat_rows_are_time_major_views():
    rollout = rollout_of(3, 2)
    rollout.observation[:] = np.arange(12).reshape(3, 2, 2)
    rollout.action[:] = np.arange(6).reshape(3, 2)
    rollout.target = torch.arange(6.0).view(3, 2)
    batch = rollout.flat(torch.device("cpu"))
    part = batch[torch.tensor([5, 0, 0])]
    assert part.observation.tolist() == [[10, 11], [0, 1], [0, 1]]
    assert part.action.tolist() == [5, 0, 0]
    assert part.target.tolist() == [5, 0, 0]
    rollout.log_prob[2, 1] = 7
    assert batch.log_prob[5] == 7  # a view: nothing was copied
