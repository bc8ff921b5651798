"""What environments gave, refused unless it is what they promised, and copied.

An observation has its space's shape, type and bounds, each reward is a number, each end a truth
value, each choice an action that is legal, and all of it is finite. A refusal says which
environment, which value, which step and which seed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector import VectorEnv

from upslope.built import BUILT
from upslope.errors import EnvironmentFault
from upslope.policies.layout import Layout, Part
from upslope.policies.legal import MaskLayout

if BUILT:
    from upslope import _native

Array = np.ndarray
SLACK = 1e-4  # how far beyond a bound rounding may take a number, in shares of the bound
FLOAT32 = np.dtype(np.float32)
OF_SIGNALS = np.float32, bool, bool, bool  # rewards, and three kinds of end
LEFT_BY_DESIGN = frozenset(
    {
        "BipedalWalker-v3",
        "BipedalWalkerHardcore-v3",
        "LunarLander-v3",
        "LunarLanderContinuous-v3",
    }
)
"""Ids of Gymnasium with observations beyond the bounds of their space: a walker that somersaults
turns by more than pi. They are not held to those bounds, or a good run would end in an error."""


class Checks:
    """Turns what N environments gave at one step into checked arrays of our own.

    Observations of several parts become one array, as `layout` says.
    """

    def __init__(
        self, n_envs: int, layout: Layout, masks: MaskLayout, env_id: str | None = None
    ) -> None:
        self.n_envs, self.layout, self.masks = n_envs, layout, masks
        self.shape = (n_envs,)
        held = env_id not in LEFT_BY_DESIGN
        self.bounds = [_bounds(part) if held else None for part in layout.parts]
        self.limits = [
            _limits(part, bound) for part, bound in zip(layout.parts, self.bounds, strict=True)
        ]
        """The same for each number, where the native part can look at them all at once."""
        self.seed: int | None = None
        """What the environments were last reset with."""
        self.steps = 0
        """Steps since the last reset."""
        self.total_steps = 0

    def observation(
        self,
        raw: Any,
        name: str = "observation",
        rows: Array | None = None,
        *,
        owned: bool = False,
    ) -> Array:
        """Return observations of all environments, or of those numbered in `rows`: [n, ...].

        Copied, unless they are `owned`: arrays that nobody writes into later.
        """
        n = self.n_envs if rows is None else len(rows)
        if not self.layout.nested:
            part, bounds, limits = self.layout.parts[0], self.bounds[0], self.limits[0]
            if owned and limits is not None and _native.inside(raw, n, *limits):
                return raw
            return self._part(part, bounds, limits, raw, name, rows, n)
        try:
            values = list(self.layout.values(raw))
        except (KeyError, IndexError, TypeError) as error:
            what = f"an {name} that is not nested like its space ({type(error).__name__} {error})"
            raise self.fault(f"{what}: {self.layout.space}") from None
        found = [
            self._part(part, bounds, limits, value, name, rows, n)
            for (part, value), bounds, limits in zip(values, self.bounds, self.limits, strict=True)
        ]
        return self.layout.pack(found)

    def _part(
        self,
        part: Part,
        bounds: tuple[Array, Array] | None,
        limits: tuple[Array, Array] | None,
        raw: Any,
        name: str,
        rows: Array | None,
        n: int,
    ) -> Array:
        array = np.asarray(raw)
        if limits is not None and array.dtype == limits[0].dtype:
            own = array.copy()
            if _native.inside(own, n, *limits):
                return own  # otherwise what follows says what is wrong
        shape, dtype = (n, *part.shape), np.dtype(part.space.dtype)
        of = f"an {name}{part.named()}"
        if array.shape != shape:
            raise self.fault(f"{of} of shape {array.shape} where the space says {shape}")
        if array.dtype != dtype and not np.can_cast(array.dtype, dtype, "same_kind"):
            raise self.fault(f"{of} of type {array.dtype} where the space says {dtype}")
        own = _copied(array, dtype)
        self._check_finite(own, name + part.named(), rows)
        if own.dtype != array.dtype and own.dtype.kind != "f" and (own != array).any():
            raise self.fault(f"{of} beyond what its type {dtype} can hold: {part.space}")
        if bounds is not None:
            outside = (own < bounds[0]) | (own > bounds[1])
            if outside.any():
                row, *element = (int(i) for i in np.argwhere(outside)[0])
                place = f" at {element}" if element else ""
                what = f"{own[row, *element]} as {name}{part.named()}{place}, outside {part.space}"
                raise self.fault(what, row if rows is None else int(rows[row]))
        return own

    def action_mask(self, pack: Callable[[], Array], acting: Array) -> Array:
        """Return which actions are legal, [N, columns]; all of them where nothing is chosen."""
        try:
            mask = pack()
        except ValueError as error:
            raise self.fault(str(error)) from None
        mask[~acting] = True
        if (row := self.masks.without_option(mask)) is not None:
            raise self.fault("an action mask with no legal action", row)
        return mask

    def signals(
        self, reward: Any, terminated: Any, truncated: Any, counted: Array
    ) -> tuple[Array, Array, Array, Array | None]:
        """Return rewards [N] float32, and which environments terminated, and only were truncated.

        All of these are 0 where `counted` [N] is False. The last is which ended, whether that
        counts or not; None if none did.
        """
        if BUILT:
            own, first, second, ended = (np.empty(self.shape, kind) for kind in OF_SIGNALS)
            given = reward, terminated, truncated, counted
            count = _native.take_signals(*given, own, first, second, ended)
            if count >= 0:
                return own, first, second, ended if count else None
        rewards = self.reward(reward, counted)
        first, second = self.flags("terminated", terminated), self.flags("truncated", truncated)
        ended = first | second
        return rewards, first & counted, second & counted & ~first, ended if ended.any() else None

    def reward(self, raw: Any, counted: Array) -> Array:
        """Return rewards [N] float32, 0 where `counted` [N] is False."""
        array = np.asarray(raw)
        if array.shape != self.shape:
            raise self.fault(f"rewards of shape {array.shape}, which takes {self.shape}")
        if array.dtype.kind not in "fiub":
            raise self.fault(f"rewards of type {array.dtype}, which takes numbers")
        own = _copied(array, FLOAT32)
        own[~counted] = 0
        self._check_finite(own, "reward")
        return own

    def flags(self, name: str, raw: Any) -> Array:
        """Return `terminated` or `truncated`, [N] bool."""
        array = np.asarray(raw)
        if array.shape != self.shape or array.dtype.kind not in "biu":
            got = f"{array.dtype} of shape {array.shape}"
            raise self.fault(f"`{name}` as {got}, which takes bool of shape {self.shape}")
        return array.astype(bool)

    def fault(self, what: str, index: int | None = None) -> EnvironmentFault:
        """Return the exception that says who returned what, and when."""
        who = "the vector environment" if index is None else f"environment {index}"
        return EnvironmentFault(f"{who} returned {what}, {self.when()}")

    def when(self) -> str:
        """Say at which step the stream is."""
        seed = "" if self.seed is None else f", seed {self.seed}"
        if not self.steps:
            return f"at a reset after {self.total_steps} steps in all{seed}"
        return f"at step {self.steps} since the reset, {self.total_steps} in all{seed}"

    def _check_finite(self, array: Array, name: str, rows: Array | None = None) -> None:
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            wrong = np.argwhere(~np.isfinite(array))
            row, *element = (int(i) for i in wrong[0])
            place = f" at {element}" if element else ""
            what = f"{array[row, *element]} as {name}{place}, which takes finite numbers"
            raise self.fault(what, row if rows is None else int(rows[row]))


def id_of(env: VectorEnv) -> str | None:
    """Return the id in Gymnasium's registry of what is stepped; None where it has none."""
    spec = env.spec or getattr(next(iter(getattr(env, "envs", ())), None), "spec", None)
    return None if spec is None else str(spec.id)


def _bounds(part: Part) -> tuple[Array, Array] | None:
    """Return the least and greatest value a part may have, [...]; None where all are allowed."""
    space = part.space
    if not isinstance(space, spaces.Box):
        return part.limits
    low, high, kind = space.low, space.high, space.dtype
    if kind.kind == "f":
        size = [np.where(np.isfinite(bound), np.abs(bound), 0) for bound in (low, high)]
        slack = SLACK * np.maximum(*size)
        with np.errstate(over="ignore"):
            low, high = (low - slack).astype(kind), (high + slack).astype(kind)
        limits = -np.inf, np.inf
    else:
        limits = (0, 1) if kind.kind == "b" else (np.iinfo(kind).min, np.iinfo(kind).max)
    return None if (low == limits[0]).all() and (high == limits[1]).all() else (low, high)


def _limits(part: Part, bounds: tuple[Array, Array] | None) -> tuple[Array, Array] | None:
    kind = part.space.dtype
    if not BUILT or kind not in (np.float32, np.float64) or part.size == 0:
        return None
    low, high = (-np.inf, np.inf) if bounds is None else bounds
    each = [np.broadcast_to(np.asarray(bound, kind), part.shape).copy() for bound in (low, high)]
    return each[0], each[1]


def _copied(array: Array, dtype: np.dtype[Any]) -> Array:
    if array.dtype == dtype:
        return array.copy()
    with np.errstate(over="ignore", invalid="ignore"):  # what does not fit becomes infinite
        return array.astype(dtype, order="C")
