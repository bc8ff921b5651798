"""What environments gave, refused unless it is what they promised, and copied.

An observation has its space's shape and type, each reward is a number, each end a truth value, and
all of it is finite. A refusal says which environment, which value and which step.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

from upslope.errors import EnvironmentFault

Array = np.ndarray


class Checks:
    """Turns what N environments gave at one step into checked arrays of our own.

    It works on one array of an observation; an observation of several parts has one for each.
    """

    def __init__(self, n_envs: int, space: gymnasium.Space[Any]) -> None:
        self.n_envs = n_envs
        self.shape, self.dtype = space.shape or (), np.dtype(space.dtype)
        self.steps = 0
        """Steps since the last reset."""
        self.total_steps = 0

    def observation(self, raw: Any, name: str = "observation", rows: Array | None = None) -> Array:
        """Return observations of all environments, or of those numbered in `rows`: [n, ...]."""
        array = np.asarray(raw)
        shape = (self.n_envs if rows is None else len(rows), *self.shape)
        if array.shape != shape:
            raise self.fault(f"an {name} of shape {array.shape} where the space says {shape}")
        if array.dtype != self.dtype and not np.can_cast(array.dtype, self.dtype, "same_kind"):
            raise self.fault(f"an {name} of type {array.dtype} where the space says {self.dtype}")
        own = _copied(array, self.dtype)
        self._check_finite(own, name, rows)
        return own

    def reward(self, raw: Any, skipped: Array | None) -> Array:
        """Return rewards [N] float32, 0 where `skipped` is True."""
        array = np.asarray(raw)
        if array.shape != (self.n_envs,):
            raise self.fault(f"rewards of shape {array.shape}, which takes {(self.n_envs,)}")
        if array.dtype.kind not in "fiub":
            raise self.fault(f"rewards of type {array.dtype}, which takes numbers")
        own = _copied(array, np.dtype(np.float32))
        if skipped is not None:
            own[skipped] = 0
        self._check_finite(own, "reward")
        return own

    def flags(self, name: str, raw: Any) -> Array:
        """Return `terminated` or `truncated`, [N] bool."""
        array = np.asarray(raw)
        if array.shape != (self.n_envs,) or array.dtype.kind not in "biu":
            got = f"{array.dtype} of shape {array.shape}"
            raise self.fault(f"`{name}` as {got}, which takes bool of shape {(self.n_envs,)}")
        return array.astype(bool)

    def fault(self, what: str, index: int | None = None) -> EnvironmentFault:
        """Return the exception that says who returned what, and when."""
        who = "the vector environment" if index is None else f"environment {index}"
        return EnvironmentFault(f"{who} returned {what}, {self.when()}")

    def when(self) -> str:
        """Say at which step the stream is."""
        if not self.steps:
            return f"at a reset after {self.total_steps} steps in all"
        return f"at step {self.steps} since the reset, {self.total_steps} in all"

    def _check_finite(self, array: Array, name: str, rows: Array | None = None) -> None:
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            wrong = np.argwhere(~np.isfinite(array))
            row, *element = (int(i) for i in wrong[0])
            place = f" at {element}" if element else ""
            what = f"{array[row, *element]} as {name}{place}, which takes finite numbers"
            raise self.fault(what, row if rows is None else int(rows[row]))


def _copied(array: Array, dtype: np.dtype[Any]) -> Array:
    if array.dtype == dtype:
        return array.copy()
    with np.errstate(over="ignore", invalid="ignore"):  # what does not fit becomes infinite
        return array.astype(dtype, order="C")
