"""What Flappy Bird refuses, with a sentence: settings, masks and actions of a wrong kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from upslope.errors import ArgumentError, suggest


def checked_count(name: str, value: int) -> int:
    """Return a whole number of at least 1."""
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < 1:
        raise ArgumentError(f"{name} takes a whole number of at least 1, got {value!r}")
    return int(value)


def checked_limit(name: str, value: int | None) -> int | None:
    """Return None, for no limit, or a whole number of at least 1."""
    return None if value is None else checked_count(name, value)


def check_modes(render_mode: object, autoreset_mode: object) -> None:
    """Refuse modes that do not exist, and NEXT_STEP."""
    if render_mode not in (None, "rgb_array"):
        got = f"{render_mode!r}{suggest(render_mode, ['rgb_array'])}"
        raise ArgumentError(f"render_mode takes None or 'rgb_array', got {got}")
    if autoreset_mode not in (AutoresetMode.SAME_STEP, AutoresetMode.DISABLED):
        raise ArgumentError(f"autoreset_mode takes SAME_STEP or DISABLED, got {autoreset_mode!r}")


def check_seed(seed: object) -> None:
    """Refuse what is neither None nor a whole number of at least 0."""
    if seed is not None and (not isinstance(seed, (int, np.integer)) or seed < 0):
        raise ArgumentError(f"seed takes a whole number of at least 0 or None, got {seed!r}")


def checked_mask(
    options: Mapping[str, Any] | None, num_envs: int, first: bool
) -> NDArray[np.bool_]:
    """Return which birds to reset: all, unless `options["reset_mask"]` says otherwise."""
    unknown = set(options or ()) - {"reset_mask"}
    if unknown:
        raise ArgumentError(f"options takes the key 'reset_mask', got {sorted(unknown)}")
    mask = (options or {}).get("reset_mask")
    if mask is None:
        return np.ones(num_envs, np.bool_)
    is_array = isinstance(mask, np.ndarray)
    if not is_array or mask.shape != (num_envs,) or mask.dtype != np.bool_:
        got = f"{mask.dtype} {mask.shape}" if is_array else repr(mask)
        raise ArgumentError(
            f"options['reset_mask'] takes a bool array of shape ({num_envs},), got {got}"
        )
    if not mask.any() or (first and not mask.all()):
        raise ArgumentError(
            "options['reset_mask'] marks at least one bird, and in the first reset all of them"
        )
    return mask


def checked_actions(actions: object, num_envs: int) -> NDArray[Any]:
    """Return the actions as an array of whole numbers, all 0 or 1."""
    given = np.asarray(actions)
    if given.shape != (num_envs,):
        raise ArgumentError(f"actions takes shape ({num_envs},), got {given.shape}")
    if given.dtype.kind not in "iu":
        raise ArgumentError(f"actions takes whole numbers, got {given.dtype}")
    if given.astype(np.int64, copy=False).view(np.uint64).max() > 1:  # a negative one is large
        wrong = int(np.flatnonzero((given != 0) & (given != 1))[0])
        raise ArgumentError(f"actions takes 0 or 1, got {given[wrong]} for bird {wrong}")
    return given
