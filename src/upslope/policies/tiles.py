"""Tile coding: an observation as a few ones among many zeros, one for each of several grids.

    x in [low, high] of each number, cut into `tiles` intervals of width w = (high - low) / tiles;
    tiling k of K is shifted by -w (k (2 i + 1) mod K) / K in number i:

        cell_i(k) = floor((x_i - low_i) / w_i + (k (2 i + 1) mod K) / K)

Each tiling has tiles + 1 intervals of each number, so that the shifted grid covers its range, and
one feature for each cell of the grid over all numbers. A linear function of the features is
constant in each cell of all the grids laid over each other, and what is learned in one place
spreads over a tile. Exactly K features are 1: a step size of alpha / K moves a value by alpha of
its error.

A Discrete, MultiDiscrete or MultiBinary part is an axis of the grids with a cell for each value,
which is not shifted. The shifts are not along the diagonal (1, 1, ...) but along (1, 3, 5, ...),
which leaves fewer artefacts: Miller and Glanz 1996, as cited there. Best is a K that is a power of
two and at least four times the number of numbers.

Sutton and Barto 2018, section 9.5.4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from upslope.errors import ArgumentError
from upslope.policies.layout import Layout

MOST_FEATURES = 1_000_000


class TileCoding(nn.Module):
    """Features [B, size] of packed observations [B, ...]; has no parameters.

    `tilings` is K; `tiles` the intervals of each number, one for all or one for each number of all
    Boxes in turn; `low` and `high` likewise, where the space's own bounds are infinite or too wide.
    A number outside is taken as the nearest bound. Raises ArgumentError for bounds that are not
    finite, and for a grid of more than a million cells.
    """

    low: Tensor
    width: Tensor
    last: Tensor
    shift: Tensor
    stride: Tensor
    begins: Tensor

    def __init__(
        self,
        space: gymnasium.Space[Any],
        *,
        tilings: int = 8,
        tiles: int | Sequence[int] = 8,
        low: float | Sequence[float] | None = None,
        high: float | Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(tilings, int) or isinstance(tilings, bool) or tilings < 1:
            raise ArgumentError(f"tilings takes a whole number of at least 1, got {tilings!r}")
        self.layout = Layout(space)
        is_box, first, last = _ranges(self.layout)
        boxes = int(is_box.sum())
        given = _each("tiles", tiles, boxes)
        if not (np.equal(given, np.floor(given)) & (given >= 1)).all():
            raise ArgumentError(f"tiles takes whole numbers of at least 1, got {tiles!r}")
        if low is not None:
            first[is_box] = _each("low", low, boxes)
        if high is not None:
            last[is_box] = _each("high", high, boxes)
        if not (np.isfinite(first) & np.isfinite(last) & (first <= last)).all():
            raise ArgumentError(
                f"tiles takes observations with finite bounds, low below high, got {space}: give "
                "low= and high= in policy_kwargs['tiles']"
            )
        width = np.ones(len(first))
        width[is_box] = (last - first)[is_box] / given
        cells = np.rint(last - first) + 1  # of a number that is counted
        cells[is_box] = given + (tilings > 1)
        total = math.prod(int(n) for n in cells)
        if total * tilings > MOST_FEATURES:
            raise ArgumentError(
                f"tiles gives {total * tilings:,} features for {space}, and takes at most "
                f"{MOST_FEATURES:,}: give fewer tiles or tilings"
            )
        self.size = tilings * total
        number = np.cumsum(is_box) - is_box  # of a Box's number among all of them
        odd = np.outer(np.arange(tilings), 2 * number + 1) % tilings / tilings
        for name, array in {
            "low": first,
            "width": np.where(width > 0, width, 1.0),
            "last": cells - 1,
            "shift": np.where(is_box, odd, 0.0),
            "stride": np.concatenate([[1], np.cumprod(cells[:-1])]),
            "begins": np.arange(tilings) * total,
        }.items():
            self.register_buffer(name, torch.as_tensor(array, dtype=torch.float64), False)

    def index(self, observation: Tensor) -> Tensor:
        """Return which feature is 1 in each tiling, [B, K] int64."""
        x = observation.reshape(-1, 1, len(self.low)).double()
        cell = ((x - self.low) / self.width + self.shift).floor()
        cell = torch.minimum(cell.clamp(min=0), self.last)
        return ((cell * self.stride).sum(-1) + self.begins).long()

    def forward(self, observation: Tensor) -> Tensor:
        """Return the features, [B, size]: K ones in each row."""
        index = self.index(observation)
        features = torch.zeros(len(index), self.size, device=index.device)
        return features.scatter_(1, index, 1.0)


def _ranges(layout: Layout) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return of each packed number whether a Box has it, its least and its greatest value."""
    is_box: list[bool] = []
    low: list[float] = []
    high: list[float] = []
    for part in layout.parts:
        limits = part.limits
        if limits is None:
            assert isinstance(part.space, spaces.Box)
            limits = part.space.low, part.space.high
        is_box += [part.limits is None] * part.size
        low += np.broadcast_to(limits[0], part.shape).ravel().astype(float).tolist()
        high += np.broadcast_to(limits[1], part.shape).ravel().astype(float).tolist()
    return np.array(is_box), np.array(low), np.array(high)


def _each(name: str, given: Any, count: int) -> np.ndarray:
    """Return one number for each of `count`, given one for all or as many."""
    try:
        found = np.asarray(given, float)
    except (TypeError, ValueError):
        raise ArgumentError(f"{name} takes a number or a list of them, got {given!r}") from None
    if found.shape not in ((), (count,)):
        raise ArgumentError(
            f"{name} takes one number, or {count}: one for each number of a Box, got {given!r}"
        )
    return np.broadcast_to(found, (count,))
