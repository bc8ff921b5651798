"""Every exception that Upslope raises on purpose.

Each message is one sentence: which argument or part, what it got, and what it takes. All of them
derive from `UpslopeError`, and each also from the built-in that a caller would expect to catch.

    UpslopeError
    ├── ArgumentError     (ValueError)          a call with a value it does not take
    │   ├── ShapeError                          a tensor of another shape or kind of number
    │   └── ConfigError                         a setting, from code or from a file
    ├── EnvironmentFault  (RuntimeError)        an environment broke its own contract
    ├── CheckpointError   (RuntimeError)        a saved state is damaged, missing or of another kind
    ├── RewardFault       (RuntimeError)        a reward function raised, or gave what is no reward
    ├── NotFiniteError    (FloatingPointError)  NaN or infinity in a loss, a gradient or a weight
    ├── RunError          (RuntimeError)        a run cannot be started, continued or written
    └── Interrupted                             a signal asked for a stop during an evaluation
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable

__all__ = [
    "ArgumentError",
    "CheckpointError",
    "ConfigError",
    "EnvironmentFault",
    "Interrupted",
    "NotFiniteError",
    "RewardFault",
    "RunError",
    "ShapeError",
    "UpslopeError",
    "check_range",
    "suggest",
]


class UpslopeError(Exception):
    """The base of every exception that Upslope raises on purpose."""


class ArgumentError(UpslopeError, ValueError):
    """An argument has a value that the function does not take."""


class ShapeError(ArgumentError):
    """A tensor has another shape, or another kind of number, than the function takes."""


class ConfigError(ArgumentError):
    """A setting is unknown, has the wrong type, or contradicts another one."""


class EnvironmentFault(UpslopeError, RuntimeError):
    """An environment returned what no environment may return: NaN, a wrong shape, an exception."""


class RewardFault(UpslopeError, RuntimeError):
    """A reward function raised, or returned what no reward is: NaN, the wrong number of values."""


class CheckpointError(UpslopeError, RuntimeError):
    """A saved state is damaged, incomplete, or belongs to something else."""


class NotFiniteError(UpslopeError, FloatingPointError):
    """A loss, a gradient or a weight became NaN or infinite."""


class RunError(UpslopeError, RuntimeError):
    """A run cannot be started, continued or written to disk."""


class Interrupted(UpslopeError):
    """A signal asked for a stop of what goes on; `exit_code` is the shell's for it."""

    def __init__(self, exit_code: int, doing: str = "evaluating") -> None:
        super().__init__(f"stopped by a signal while {doing}")
        self.exit_code = exit_code


def suggest(name: object, options: Iterable[object]) -> str:
    """Return " (did you mean 'x'?)" for the option closest to `name`, or "" when none is close.

    Upper and lower case count as equal; an option that differs from `name` only in that comes
    first.
    """
    by_folded = {str(option).casefold(): str(option) for option in options}
    close = difflib.get_close_matches(str(name).casefold(), by_folded, n=1, cutoff=0.6)
    return f" (did you mean {by_folded[close[0]]!r}?)" if close else ""


def check_range(name: str, value: float, low: float = -math.inf, high: float = math.inf) -> None:
    """Raise ArgumentError unless `value` is a number (not a bool) with low <= value <= high."""
    try:
        if not isinstance(value, bool) and low <= value <= high:
            return
    except (TypeError, ValueError, RuntimeError):  # what cannot be compared is no number
        pass
    takes = f"from {low:g} to {high:g}" if math.isfinite(high) else f"of at least {low:g}"
    raise ArgumentError(f"{name} takes a number {takes}, got {value!r}")
