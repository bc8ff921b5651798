"""From observations to the rows of a table: a grid over the numbers of an observation.

    z    = W o                      its features; z = o unless `features` are given
    k_d  = #{edges of d <= z_d}     the cell of feature d, from 0 to the number of its edges
    s    = the k_d as digits        a row for every combination

The number of a Discrete, each of a MultiDiscrete, and each bit of a MultiBinary has a cell for each
value it can take. A number of a Box has `bins` cells of equal width between its bounds, or those
between the `edges` that are given. The parts of nested observations stand side by side.
"""

from __future__ import annotations

import itertools
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

Rows = Sequence[Sequence[float]]
UNBOUNDED = 1e30


class Grid(nn.Module):
    """Rows [B] int64, 0 to `size` - 1, of packed observations [B, ...].

    `bins` is a number of cells for all features, or one for each; `bounds` are (low, high) of each,
    the space's own by default; `edges`, instead of both, the ascending edges of each. Features are
    the numbers of the Box parts, or what `features` makes of all numbers of an observation: a row
    of weights for each. Raises ArgumentError where these do not fit, and for a Box without them.
    """

    weights: Tensor | None

    def __init__(
        self,
        space: gymnasium.Space[Any],
        *,
        bins: int | Sequence[int] | None = None,
        bounds: Rows | None = None,
        edges: Rows | None = None,
        features: Rows | None = None,
    ) -> None:
        super().__init__()
        layout = Layout(space)
        if features is not None and any(len(row) != layout.size for row in features):
            lengths = [len(row) for row in features]
            raise ArgumentError(f"features has rows of {lengths} numbers, and takes {layout.size}")
        columns = [c for part in layout.parts for c in _columns(part.space)]
        if features is not None:
            columns = [(-math.inf, math.inf)] * len(features)
        real = [column for column in columns if isinstance(column, tuple)]
        if not real and (bins, bounds, edges) != (None, None, None):
            raise ArgumentError(f"bins, bounds and edges are for a Box, and {space} has none")
        own = iter(_edges(space, real, bins, bounds, edges))
        found = [next(own) if isinstance(column, tuple) else column for column in columns]
        self.counts = [len(one) + 1 for one in found]
        self.size = math.prod(self.counts)
        """How many rows there are."""
        matrix = None if features is None else torch.tensor(features, dtype=torch.float64).T
        self.register_buffer("weights", matrix)
        for d, one in enumerate(found):
            self.register_buffer(f"edges_{d}", torch.tensor(one, dtype=torch.float64))

    def forward(self, observation: Tensor) -> Tensor:
        """Return the row of each observation, [B] int64."""
        z = observation.reshape(len(observation), -1).double()
        if self.weights is not None:
            z = z @ self.weights
        row = torch.zeros(len(z), dtype=torch.int64, device=z.device)
        for d, count in enumerate(self.counts):
            if count > 1:
                edges = self.get_buffer(f"edges_{d}")
                row = row * count + torch.bucketize(z[:, d].contiguous(), edges, right=True)
        return row


def _columns(space: gymnasium.Space[Any]) -> list[Any]:
    """Return, for each number of a part, the edges between its values, or (low, high) of a Box."""
    if isinstance(space, spaces.Box):
        return list(zip(space.low.ravel().tolist(), space.high.ravel().tolist(), strict=True))
    if isinstance(space, spaces.MultiBinary):
        return [[0.5]] * math.prod(space.shape)
    sizes, starts = (
        ([space.n], [space.start])
        if isinstance(space, spaces.Discrete)
        else (space.nvec.ravel(), space.start.ravel())  # type: ignore[attr-defined]
    )
    pairs = zip(sizes, starts, strict=True)
    return [(np.arange(1, n) + start - 0.5).tolist() for n, start in pairs]


def _edges(
    space: gymnasium.Space[Any],
    real: list[tuple[float, float]],
    bins: int | Sequence[int] | None,
    bounds: Rows | None,
    edges: Rows | None,
) -> list[list[float]]:
    """Return the edges of each real number, whose own bounds are `real`."""
    if not real:
        return []
    count = len(real)
    if edges is not None:
        if bins is not None or bounds is not None:
            raise ArgumentError("edges stand instead of bins and bounds: give one or the other")
        if len(edges) != count or not all(_ascend(one) for one in edges):
            raise ArgumentError(f"edges takes {count} lists of ascending numbers")
        return [list(one) for one in edges]
    if bins is None:
        raise ArgumentError(
            f"a table takes observations that can be listed, and {space} has real numbers: give "
            "bins=, a number of cells for each, or edges="
        )
    number = [bins] * count if isinstance(bins, int) else list(bins)
    whole = all(isinstance(n, int) and not isinstance(n, bool) and n >= 1 for n in number)
    if len(number) != count or not whole:
        raise ArgumentError(f"bins={bins!r}: it takes {count} whole numbers of at least 1, or one")
    if bounds is not None and (len(bounds) != count or not all(len(b) == 2 for b in bounds)):
        raise ArgumentError(f"bounds={bounds!r}: it takes {count} pairs (low, high)")
    found = []
    for d, (n, pair) in enumerate(zip(number, real if bounds is None else bounds, strict=True)):
        low, high = pair
        if n > 1 and not -UNBOUNDED < low < high < UNBOUNDED:
            raise ArgumentError(
                f"feature {d} of the observation has bounds {low:g} and {high:g}, between which "
                "there are no bins: give bounds=, or edges="
            )
        found.append(np.linspace(low, high, n + 1)[1:-1].tolist() if n > 1 else [])
    return found


def _ascend(edges: Sequence[float]) -> bool:
    return all(map(math.isfinite, edges)) and all(a < b for a, b in itertools.pairwise(edges))
