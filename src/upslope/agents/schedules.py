"""Settings that change while an agent learns.

    constant   x(p) = x
    linear     x(p) = end + p (start - end),   p the share of steps that remain, from 1 to 0

Written as a number, or as "linear(start)" (end = 0) or "linear(start, end)"; text, so that a
configuration file holds it as it is.
"""

from __future__ import annotations

import math
import re

from upslope.errors import ConfigError

Schedule = float | str

_NUMBER = r"\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*"
_LINEAR = re.compile(rf"linear\({_NUMBER}(?:,{_NUMBER})?\)")


def value_at(setting: Schedule, remaining: float) -> float:
    """Return the setting's value when a share `remaining` in [0, 1] of the steps is to come.

    Raises ConfigError when the text is no schedule.
    """
    if not isinstance(setting, str):
        return float(setting)
    match = _LINEAR.fullmatch(setting.strip())
    if match is None:
        try:
            return float(setting)
        except ValueError:
            raise ConfigError(
                f"{setting!r} is not a schedule: give a number, 'linear(3e-4)' or "
                "'linear(3e-4, 1e-5)'"
            ) from None
    start, end = float(match[1]), float(match[2] or 0)
    return end + remaining * (start - end)


def check_schedule(name: str, setting: Schedule, most: float = math.inf) -> None:
    """Raise ConfigError unless the setting is a schedule of finite numbers from 0 to `most`."""
    try:
        ends = [value_at(setting, 1.0), value_at(setting, 0.0)]
    except ConfigError as error:
        raise ConfigError(f"{name}={error}") from None
    if not all(math.isfinite(value) and 0 <= value <= most for value in ends):
        takes = "that are not negative" if most == math.inf else f"from 0 to {most:g}"
        raise ConfigError(f"{name}={setting!r}: {name} takes finite numbers {takes}")
