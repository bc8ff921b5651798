"""Minibatches of an epoch: rows in one random order, cut into parts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from upslope.built import BUILT

if BUILT:
    from upslope import _native

ONE_WORD = (2**32 - 1) // 20  # rows; for more, torch takes two words of randomness for each


class Minibatches(Sequence[Tensor]):
    """Rows in K parts: the first `sizes[0]` of `rows`, the next `sizes[1]`, and so on."""

    def __init__(self, rows: Tensor, sizes: np.ndarray) -> None:
        self.rows, self.sizes = rows, sizes

    @classmethod
    def of(cls, parts: Sequence[Tensor]) -> Minibatches:
        """Return them as one, which they are already if they came from here."""
        if isinstance(parts, Minibatches):
            return parts
        none = torch.zeros(0, dtype=torch.int64)
        rows = parts[0] if len(parts) == 1 else torch.cat([none, *parts])
        return cls(rows, np.array([len(part) for part in parts], np.int64))

    @classmethod
    def cut(cls, rows: Tensor, count: int) -> Minibatches:
        """Cut rows into `count` parts of nearly equal length."""
        size, larger = divmod(len(rows), count)
        return cls(rows, np.array([size + 1] * larger + [size] * (count - larger), np.int64))

    @cached_property
    def parts(self) -> list[Tensor]:
        """Each of them, a view."""
        return list(self.rows.split(self.sizes.tolist()))

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.sizes)

    def __getitem__(self, which: Any) -> Any:
        """Return one, or a list of some."""
        return self.parts[which]


def shuffled(valid: np.ndarray, seed: int) -> Tensor:
    """Return the numbers of the True entries of `valid` [T, N], in a random order that `seed` says.

    The order is `torch.randperm`'s (Fisher and Yates', of Mersenne Twister's words), natively too.
    """
    if BUILT and valid.size < ONE_WORD:
        rows = np.empty(valid.size, np.int64)
        return torch.from_numpy(rows[: _native.shuffle(valid, seed % 2**32, rows)])
    rows = np.flatnonzero(valid)
    generator = torch.Generator().manual_seed(seed)
    return torch.from_numpy(rows)[torch.randperm(len(rows), generator=generator)]
