"""From observations to the rows of a table: a grid over the numbers of an observation.

    z    = W o                                           z = o unless `features` are given
    k_d  = floor(n_d (z_d - low_d) / (high_d - low_d))   the cell, with n_d `bins`
    k_d  = #{edges of d <= z_d}                          the cell, with `edges`
    s    = the k_d as digits                             a row for every combination of cells

The number of a Discrete, each of a MultiDiscrete, and each bit of a MultiBinary has a cell for each
value it can take. The numbers of a Box have `bins` or `edges`; what is outside the bounds belongs
to the outermost cell. The parts of nested observations stand side by side.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import gymnasium
import torch
from gymnasium import spaces
from torch import Tensor, nn

from upslope.errors import ArgumentError
from upslope.policies.layout import Layout

Rows = Sequence[Sequence[float]]
UNBOUNDED = 1e30


class Axis(NamedTuple):
    """One feature: `cells` cells from low to high, or those between `edges`."""

    low: float
    high: float
    cells: int = 0
    """0 where it is yet to be said."""
    edges: Sequence[float] | None = None


class Grid(nn.Module):
    """Rows [B] int64, 0 to `size` - 1, of packed observations [B, ...].

    `bins` is a number of cells for all features, or one for each; `bounds` are (low, high) of each,
    the space's own by default; `edges`, instead of both, the ascending edges of each. Features are
    the numbers of the Box parts, or what `features` makes of all numbers of an observation: a row
    of weights for each. Raises ArgumentError where these do not fit, and for a Box without them.
    """

    weights: Tensor | None
    low: Tensor
    scale: Tensor
    top: Tensor
    strides: Tensor

    def __init__(
        self,
        space: gymnasium.Space[Any],
        *,
        bins: int | list[int] | tuple[int, ...] | None = None,
        bounds: Rows | None = None,
        edges: Rows | None = None,
        features: Rows | None = None,
    ) -> None:
        super().__init__()
        for name, rows in (("bounds", bounds), ("edges", edges), ("features", features)):
            _check_rows(name, rows)
        axes = _axes(space, features)
        real = [axis for axis in axes if not axis.cells]
        if not real and (bins, bounds, edges) != (None, None, None):
            raise ArgumentError(f"bins, bounds and edges are for a Box, and {space} has none")
        if edges is not None and (bins, bounds) != (None, None):
            raise ArgumentError("edges stand instead of bins and bounds: give one or the other")
        cut = iter(_even(space, real, bins, bounds) if edges is None else _uneven(real, edges))
        axes = [axis if axis.cells else next(cut) for axis in axes]
        self.counts = [axis.cells for axis in axes]
        self.size = math.prod(self.counts)
        """How many rows there are."""
        if self.size >= 2**63:
            raise ArgumentError(
                f"a table of {len(self.counts)} numbers in up to {max(self.counts)} cells each is "
                "too large: it has over 2^63 states; give fewer bins, or take us.DQN"
            )
        split = [axis.cells > 1 and axis.edges is None for axis in axes]
        pairs = list(zip(axes, split, strict=True))
        numbers = {
            "low": [axis.low if even else 0.0 for axis, even in pairs],
            "scale": [a.cells / (a.high - a.low) if even else 0.0 for a, even in pairs],
            "top": [axis.cells - 1.0 for axis in axes],
        }
        for name, values in numbers.items():
            self.register_buffer(name, torch.tensor(values, dtype=torch.float64))
        steps = itertools.accumulate(self.counts[:0:-1], lambda a, b: a * b, initial=1)
        self.register_buffer("strides", torch.tensor(list(steps)[::-1]))
        matrix = None if features is None else torch.tensor(features, dtype=torch.float64).T
        self.register_buffer("weights", matrix)
        self.uneven = [d for d, axis in enumerate(axes) if axis.edges is not None]
        for d in self.uneven:
            self.register_buffer(f"edges_{d}", torch.tensor(axes[d].edges, dtype=torch.float64))

    def forward(self, observation: Tensor) -> Tensor:
        """Return the row of each observation, [B] int64."""
        z = observation.reshape(len(observation), -1)
        if not z.is_floating_point():
            z = z.double()
        if self.weights is not None:
            z = z @ self.weights.to(z.dtype)
        cell = z.sub(self.low.to(z.dtype)).mul_(self.scale.to(z.dtype)).floor_()
        cell = torch.minimum(cell.clamp_(min=0), self.top.to(z.dtype)).long()
        for d in self.uneven:
            edges = self.get_buffer(f"edges_{d}")
            cell[:, d] = torch.bucketize(z[:, d].double().contiguous(), edges, right=True)
        return (cell * self.strides).sum(1)


def _check_rows(name: str, rows: Any) -> None:
    if rows is None:
        return
    try:
        fits = all(isinstance(number, int | float) for row in rows for number in row)
    except TypeError:  # one of them is no list
        fits = False
    if not fits:
        raise ArgumentError(f"{name}={rows!r}: it takes a list of lists of numbers")


def _axes(space: gymnasium.Space[Any], features: Rows | None) -> list[Axis]:
    """Return an axis for each number of an observation, or for each feature of it."""
    layout = Layout(space)
    if features is None:
        return [axis for part in layout.parts for axis in _numbers(part.space)]
    if not len(features) or any(len(row) != layout.size for row in features):
        lengths = [len(row) for row in features]
        raise ArgumentError(f"features has rows of {lengths} numbers, and takes {layout.size}")
    return [Axis(-math.inf, math.inf)] * len(features)


def _numbers(space: gymnasium.Space[Any]) -> list[Axis]:
    if isinstance(space, spaces.Box):
        bounds = zip(space.low.ravel().tolist(), space.high.ravel().tolist(), strict=True)
        return [Axis(*pair) for pair in bounds]
    if isinstance(space, spaces.MultiBinary):
        return [Axis(-0.5, 1.5, 2)] * math.prod(space.shape)
    if isinstance(space, spaces.Discrete):
        counts, starts = [int(space.n)], [int(space.start)]
    else:
        assert isinstance(space, spaces.MultiDiscrete)
        counts, starts = space.nvec.ravel().tolist(), space.start.ravel().tolist()
    pairs = zip(starts, counts, strict=True)
    return [Axis(start - 0.5, start + n - 0.5, n) for start, n in pairs]


def _even(
    space: gymnasium.Space[Any],
    real: list[Axis],
    bins: int | list[int] | tuple[int, ...] | None,
    bounds: Rows | None,
) -> list[Axis]:
    """Return the axes of real numbers with `bins` between their bounds."""
    if not real:
        return []
    if bins is None:
        raise ArgumentError(
            f"a table takes observations that can be listed, and {space} has real numbers: give "
            "bins=, a number of cells for each, or edges="
        )
    counts = list(bins) if isinstance(bins, list | tuple) else [bins] * len(real)
    whole = all(isinstance(n, int) and not isinstance(n, bool) and n >= 1 for n in counts)
    if len(counts) != len(real) or not whole:
        takes = f"a whole number of at least 1, or {len(real)} of them"
        raise ArgumentError(f"bins={bins!r}: it takes {takes}")
    if bounds is None:
        bounds = [(axis.low, axis.high) for axis in real]
    if len(bounds) != len(real) or any(len(pair) != 2 for pair in bounds):
        raise ArgumentError(f"bounds={bounds!r}: it takes {len(real)} pairs (low, high)")
    for d, (n, (low, high)) in enumerate(zip(counts, bounds, strict=True)):
        if n > 1 and not -UNBOUNDED < low < high < UNBOUNDED:
            raise ArgumentError(
                f"number {d} of the observation has bounds {low:g} and {high:g}, between which "
                "there are no bins: give bounds=, or edges="
            )
    return [Axis(low, high, n) for n, (low, high) in zip(counts, bounds, strict=True)]


def _uneven(real: list[Axis], edges: Rows) -> list[Axis]:
    """Return the axes of real numbers with the edges given."""
    fit = len(edges) == len(real) and all(_ascend(one) for one in edges)
    if not fit:
        raise ArgumentError(f"edges={edges!r}: it takes {len(real)} lists of ascending numbers")
    return [Axis(0, 1, len(one) + 1, one) for one in edges]


def _ascend(edges: Sequence[float]) -> bool:
    return all(map(math.isfinite, edges)) and all(a < b for a, b in itertools.pairwise(edges))
