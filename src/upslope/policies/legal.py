"""Which actions are legal: masks as environments and users give them, as one array [N, columns].

The columns of each part stand side by side, one for each option of each choice:

    Discrete(n) n        MultiDiscrete([n, m]) n + m        MultiBinary(n) 2 n (a 0, a 1)
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from upslope.policies.layout import Layout, Part

Array = np.ndarray


def mask_columns(part: Part) -> int:
    """Return how many columns a part of an action has in its mask: one for each option."""
    return sum(choices(part))


def choices(part: Part) -> list[int]:
    """Return how many options each choice within a part has: the groups of its mask's columns."""
    if isinstance(part.space, spaces.Discrete):
        return [int(part.space.n)]
    if isinstance(part.space, spaces.MultiDiscrete):
        return [int(n) for n in part.space.nvec.ravel()]
    return [2] * part.size if isinstance(part.space, spaces.MultiBinary) else []


class MaskLayout:
    """Turns action masks, as environments give them, into one array [N, columns] of bool.

    A mask is an array of a part's columns, or nested like the action space; MultiDiscrete also
    takes a tuple of one array for each of its numbers. A part that is absent is all legal. An array
    of all columns, which `pack` returns, is taken for any space.
    """

    def __init__(self, action_space: gymnasium.Space[Any]) -> None:
        self.layout = Layout(action_space, "action")
        self.widths = [mask_columns(part) for part in self.layout.parts]
        self.columns = sum(self.widths)

    def pack(self, raw: Any, n: int) -> Array:
        """Return the masks of a batch of n rows, [n, columns].

        A batch is nested like the space, with arrays [n, ...] or lists of n masks for each part;
        what Gymnasium's vector environments make of it is taken too. Raises ValueError saying what
        does not fit.
        """
        listed = isinstance(raw, list | tuple) and isinstance(self.layout.space, spaces.Dict)
        if listed or (isinstance(raw, np.ndarray) and raw.dtype == object):
            if len(raw) != n:
                raise ValueError(f"{len(raw)} action masks, which takes {n}")
            return self.pack_each(list(raw))
        return self._packed(raw, n, lambda part, value: _columns(part, value, n))

    def pack_each(self, masks: Sequence[Any]) -> Array:
        """Return masks given one by one, [n, columns]; raises ValueError for what does not fit."""
        rows = [self._packed(mask, 1, lambda _, value: _row(value)[None]) for mask in masks]
        return np.concatenate(rows)

    def _packed(self, raw: Any, n: int, as_rows: Callable[[Part, Any], Array]) -> Array:
        whole = isinstance(raw, np.ndarray) and raw.size == n * self.columns
        if whole and (n == 1 or raw.shape[0] == n):
            return self._bool(raw.reshape(n, self.columns))
        found = [np.ones((n, 0), bool)]
        masks = _each(self.layout.space, raw, np.ones(n, bool))
        for part, width, (value, given) in zip(self.layout.parts, self.widths, masks, strict=True):
            if value is None or not width:
                found.append(np.ones((n, width), bool))
                continue
            takes = f"which takes {(n, width)}, one column for each option of action{part.named()}"
            try:
                array = as_rows(part, value)
            except (TypeError, ValueError):  # it is no array, or its rows are of different lengths
                kind = type(value).__name__
                raise ValueError(f"an action mask that is no array ({kind}), {takes}") from None
            if array.shape != (n, width):
                raise ValueError(f"an action mask of shape {array.shape}, {takes}")
            legal = self._bool(array)
            legal[~given] = True
            found.append(legal)
        return np.concatenate(found, axis=1)

    @staticmethod
    def _bool(array: Array) -> Array:
        if array.dtype.kind not in "biuf" or not ((array == 0) | (array == 1)).all():
            raise ValueError("an action mask with other values than 0 and 1, which it takes")
        return array.astype(bool)

    def without_option(self, mask: Array) -> int | None:
        """Return the first row of [N, columns] in which some choice has no legal option."""
        groups = [size for part in self.layout.parts for size in choices(part)]
        starts = list(itertools.accumulate(groups, initial=0))[:-1]
        rows = np.flatnonzero(~np.logical_or.reduceat(mask, starts, axis=1).all(axis=1))
        return int(rows[0]) if len(rows) else None


def _each(space: gymnasium.Space[Any], mask: Any, given: Array) -> Iterator[tuple[Any, Array]]:
    """Yield each part's mask, None where it is absent, and which rows were given one, [n].

    Gymnasium's vector environments say the latter beside each key of a dict, with an underscore.
    """
    if isinstance(space, spaces.Dict):
        keys = {key: f"_{key}" for key in space.spaces if f"_{key}" not in space.spaces}
        if not isinstance(mask, dict | None):
            raise ValueError(f"an action mask of type {type(mask).__name__}, which takes a dict")
        named = mask or {}
        if extra := named.keys() - space.spaces.keys() - set(keys.values()):
            known = list(space.spaces)
            raise ValueError(f"an action mask for {sorted(map(str, extra))}, which takes {known}")
        for key, inner in space.spaces.items():
            flags = named.get(keys.get(key))
            rows = given if flags is None else given & np.asarray(flags, bool)
            yield from _each(inner, named.get(key), rows)
    elif isinstance(space, spaces.Tuple):
        n = len(space.spaces)
        if not (mask is None or (isinstance(mask, list | tuple) and len(mask) == n)):
            got = f"of type {type(mask).__name__}"
            raise ValueError(f"an action mask {got}, which takes a tuple of {n} masks")
        for inner, one in zip(space.spaces, mask or [None] * n, strict=True):
            yield from _each(inner, one, given)
    else:
        yield mask, given


def _columns(part: Part, value: Any, n: int) -> Array:
    """Return a batch of one part's masks as columns.

    It is one array, a tuple of one array [n, options] for each choice, or a list of n masks.
    """
    if isinstance(value, tuple | list):
        by_choice = [(n, size) for size in choices(part)]
        if [getattr(one, "shape", None) for one in value] == by_choice:
            return np.concatenate(value, axis=1)
    array = value if isinstance(value, list | tuple) else np.asarray(value)
    if isinstance(array, np.ndarray) and array.dtype != object:
        return array.reshape(len(array), -1) if array.ndim > 1 else array
    return np.stack([np.ones(mask_columns(part)) if m is None else _row(m) for m in array])


def _row(mask: Any) -> Array:
    """Return one environment's mask as a row; a tuple of arrays is put together."""
    parts = mask if isinstance(mask, tuple | list) else [mask]
    return np.concatenate([np.asarray(part).ravel() for part in parts])
