"""Named arrays whose names begin with where they belong, such as "replay/actions"."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def under_any(prefixes: tuple[str, ...], named: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is named `prefix...` for any of the prefixes, by its whole name."""
    return {name: v for name, v in named.items() if name.startswith(prefixes)}


def under(prefix: str, named: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is named `prefix...`, by the rest of its name."""
    return {name.removeprefix(prefix): v for name, v in named.items() if name.startswith(prefix)}
