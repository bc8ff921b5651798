"""How a vector environment resets what has ended, and where it says what was at the end."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv

from upslope.errors import ArgumentError


def autoreset_mode(env: VectorEnv) -> tuple[AutoresetMode, bool]:
    """Return the mode, and whether the environment declares it."""
    declared = (env.metadata or {}).get("autoreset_mode")
    if declared is None:
        warnings.warn(
            f"{env} declares no metadata['autoreset_mode']: taken for NEXT_STEP, as Gymnasium does",
            stacklevel=3,
        )
        return AutoresetMode.NEXT_STEP, False
    try:
        return AutoresetMode(declared), True
    except ValueError:
        raise ArgumentError(
            f"env declares metadata['autoreset_mode'] = {declared!r}, which takes one of "
            f"{[str(mode) for mode in AutoresetMode]}"
        ) from None


def final_info(info: Mapping[str, Any], key: str) -> np.ndarray | None:
    """Return what `info` says under `key`, [N], to be read where an episode ended; None if nothing.

    Under SAME_STEP it is in `info["final_info"]`, since `info` belongs to the next episode already.
    """
    final = info.get("final_info")
    if isinstance(final, dict):
        info = final
    value = info.get(key)
    return None if value is None else np.asarray(value)


def scores(info: Mapping[str, Any]) -> np.ndarray | None:
    """Return the score of each environment, [N], to be read where an episode ended.

    It is `info["score"]` where that is a number; what an environment means else by it is its own.
    """
    try:
        found = final_info(info, "score")
    except ValueError:  # lists of different lengths
        return None
    return found if found is not None and found.ndim == 1 and found.dtype.kind in "biuf" else None
