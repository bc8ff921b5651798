"""Small files, written whole or not at all, and an error that says which; TOML, read with care."""

from __future__ import annotations

import contextlib
import os
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from upslope.errors import RunError

MOST_NESTED = 32  # tables and lists within each other


def read_toml(path: Path) -> dict[str, Any]:
    """Return what a TOML file holds; raises OSError, or ValueError for another kind of file.

    Nesting beyond what any configuration has is refused: who walks through it would run out of
    stack, far from here.
    """
    deep = f"tables or lists are nested more than {MOST_NESTED} deep"
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError(deep) from None
    level: list[Any] = [found]
    for _ in range(MOST_NESTED):
        inside = (each.values() if isinstance(each, dict) else each for each in level)
        level = [value for values in inside for value in values if isinstance(value, dict | list)]
    if level:
        raise ValueError(deep)
    return found


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn what the system refuses into RunError: the path, and why."""
    try:
        yield
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror or error}") from error


def replace_text(path: Path, text: str) -> None:
    """Write a file aside, durably, and rename it; raises RunError when that cannot be done."""
    aside = path.with_name(f".{path.name}.tmp")
    try:
        with explained(path):
            with aside.open("w", encoding="utf-8", newline="") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            aside.unlink()
        raise
