"""Where environments say which actions are legal: `info["action_mask"]`, or `action_masks()`.

Either is told with an observation, and is about the action that follows it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv

from upslope.errors import EnvironmentFault
from upslope.rollout.checks import Checks

Array = np.ndarray
KEY = "action_mask"


class MaskSource:
    """Finds the masks of N environments after each reset and step; `current` [N, columns] or None.

    An environment that gave none with its first observation has none.
    """

    def __init__(self, env: VectorEnv, checks: Checks) -> None:
        self._ask, self._one_by_one = _method(env)
        self._checks, self._layout = checks, checks.masks
        self.current: Array | None = None

    def begin(self, info: Mapping[str, Any]) -> None:
        """Read the masks of the first observations."""
        self.current = None
        if self._layout.columns and (self._ask is not None or KEY in info):
            self.update(info, np.ones(self._checks.n_envs, bool))

    def follow(
        self, info: Mapping[str, Any], acting: Array, again: tuple[Array, Mapping[str, Any]] | None
    ) -> None:
        """Read the masks after a step; `again` is (which [N], their info) of a reset after it."""
        if self.current is not None:
            self.update(info, acting, again)

    def update(
        self,
        info: Mapping[str, Any],
        acting: Array,
        again: tuple[Array, Mapping[str, Any]] | None = None,
    ) -> None:
        """Make `current` what the environments say now, checked."""
        told: Any = None if self._ask is None else self._ask()

        def found() -> Array:
            if self._ask is not None and self._one_by_one:
                return self._layout.pack_each(told)
            if self._ask is not None:
                return self._layout.pack(told, self._checks.n_envs)
            mask, known = self._from_info(info)
            if again is not None:
                fresh, fresh_known = self._from_info(again[1])
                mask[again[0]], known[again[0]] = fresh[again[0]], fresh_known[again[0]]
            missing = np.flatnonzero(acting & ~known)
            if len(missing):
                raise self._fault(int(missing[0]))
            return mask

        self.current = self._checks.action_mask(found, acting)

    def _from_info(self, info: Mapping[str, Any]) -> tuple[Array, Array]:
        n = self._checks.n_envs
        if KEY not in info:
            return np.ones((n, self._layout.columns), bool), np.zeros(n, bool)
        known = np.array(info.get(f"_{KEY}", np.ones(n)), bool)
        return self._layout.pack(info[KEY], n), known

    def _fault(self, row: int) -> EnvironmentFault:
        return self._checks.fault(f"no info[{KEY!r}], which it gave at its reset", row)


def final_mask(told: Array | None, cut: Array, recorded: Array | None) -> Array | None:
    """Return which actions were legal where the episodes `cut` ended; None if that is not known."""
    if recorded is None or told is None or told.shape != recorded[0].shape:
        return None
    legal = told[cut].astype(bool)
    return legal | ~legal.any(axis=1, keepdims=True)


def _method(env: VectorEnv) -> tuple[Callable[[], Any] | None, bool]:
    """Return what asks the environments' own `action_masks`, None where they have none, and whether
    it gives the masks one by one.
    """
    if hasattr(env, "action_masks"):
        return env.action_masks, False
    base: Any = env.unwrapped
    if not (hasattr(base, "call") and (hasattr(base, "envs") or hasattr(base, "processes"))):
        return None, False
    if not all(base.call("has_wrapper_attr", "action_masks")):
        return None, False
    return lambda: base.call("action_masks"), True
