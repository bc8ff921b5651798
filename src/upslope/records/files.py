"""Small files, written whole or not at all, and an error that says which."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from upslope.errors import RunError


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
