"""Derived randomness: the same words the same stream, other words another; no global state."""

from __future__ import annotations

import hashlib
import itertools

import torch

from upslope.seeding import derive, derive32, generator


def test_derive_is_its_definition():
    """Checkpoints rely on it: a change here changes every run that goes on."""
    digest = hashlib.sha256(b"7/act/3/11").digest()
    assert derive(7, "act", 3, 11) == int.from_bytes(digest[:8], "little") // 2
    assert derive(0, "weights") == 4_194_789_700_723_333_633
    assert derive32(7, "act", 3, 11) == derive(7, "act", 3, 11) // 2**32


def test_range():
    values = [derive(seed, "x") for seed in range(1000)]
    assert min(values) >= 0
    assert 2**62 < max(values) < 2**63
    small = [derive32(seed, "x") for seed in range(1000)]
    assert min(small) >= 0
    assert 2**30 < max(small) < 2**31


def test_different_words_give_different_numbers():
    words = itertools.product((0, 1, 10, 2**70), ("a", "b", "act"), ((), (0,), (1,), (0, 1), (10,)))
    found = [derive(seed, purpose, *counters) for seed, purpose, counters in words]
    assert len(set(found)) == len(found)


def test_generators_are_equal_or_unrelated():
    a, b, c = (generator(0, "act", k) for k in (1, 1, 2))
    x, y, z = (torch.rand(10_000, generator=g) for g in (a, b, c))
    assert torch.equal(x, y)
    correlation = torch.corrcoef(torch.stack([x, z]))[0, 1].abs() * 10_000**0.5
    assert correlation < 4.5


def test_global_state_is_untouched():
    before = torch.get_rng_state()
    torch.rand(3, generator=generator(0, "act"))
    assert torch.equal(torch.get_rng_state(), before)
