"""Metrics on disk: a row of `metrics.csv` for every iteration, and TensorBoard events.

Both can be cut back to an iteration, which a resumed run does: what was written after the
checkpoint that it goes on from is written again. Every row is with the system when `write` returns.
"""

from __future__ import annotations

import contextlib
import csv
import io
import math
import time
from pathlib import Path
from typing import Any

from upslope.errors import RunError
from upslope.records.events import EventFile
from upslope.records.files import explained, replace_text

FIRST = ("iteration", "timesteps", "seconds", "steps_per_second", "episodes")
COUNTS = ("iteration", "timesteps")
SOMETIMES = ("episode_return", "episode_length", "episode_score", "eval_return", "eval_return_std")


class MetricsWriter:
    """Appends the metrics of each iteration; an empty cell is a number there was not (or nan)."""

    def __init__(self, folder: Path, *, from_iteration: int = 0) -> None:
        self.path = folder / "metrics.csv"
        rows = read_metrics(self.path) if self.path.exists() else []
        self.columns = list(rows[0]) if rows else []
        kept = [row for row in rows if row["iteration"] <= from_iteration]
        self.seconds = kept[-1]["seconds"] if kept else 0.0
        self.timesteps = int(kept[-1]["timesteps"]) if kept else 0
        lines = [[_cell(row[name]) for name in self.columns] for row in kept]
        replace_text(self.path, _csv([self.columns, *lines] if self.columns else []))
        with explained(self.path):
            self.file = self.path.open("a", newline="")
        self.events = EventFile(folder / "tensorboard", self.timesteps)
        self.clock = time.perf_counter()

    def write(self, iteration: int, timesteps: int, metrics: dict[str, Any]) -> None:
        """Append one row; raises RunError when it cannot be written."""
        now = time.perf_counter()
        took, self.clock = now - self.clock, now
        self.seconds += took
        speed = (timesteps - self.timesteps) / max(took, 1e-9)
        self.timesteps = timesteps
        counted = {"iteration": iteration, "timesteps": timesteps, "steps_per_second": speed}
        row = metrics | counted | {"seconds": self.seconds}
        lines = []
        if not self.columns:
            rest = [name for name in metrics if name not in FIRST + SOMETIMES]
            self.columns = [*FIRST, *SOMETIMES, *rest]
            lines.append(self.columns)
        lines.append([_cell(row.get(name, math.nan)) for name in self.columns])
        with explained(self.path):
            self.file.write(_csv(lines))
            self.file.flush()
        self.events.write(timesteps, {_tag(name): row[name] for name in row if name not in COUNTS})

    def close(self) -> None:
        """Close the files; every row was written out when it came."""
        for file in (self.file, self.events.file):
            with contextlib.suppress(OSError):  # said already, when a row could not be written
                file.close()


def _tag(name: str) -> str:
    if name.startswith(("episode", "eval")):
        return f"rollout/{name}"
    return f"time/{name}" if name in FIRST else f"update/{name}"


def _cell(number: float) -> str:
    if math.isnan(number):
        return ""
    whole = float(number).is_integer() and abs(number) < 1e15
    return str(int(number)) if whole else f"{number:.6g}"


def _csv(lines: list[list[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Return the rows of a `metrics.csv`; a last line cut short by a kill is left out.

    Raises RunError when it is not a table of numbers.
    """
    try:
        with explained(path), path.open(newline="", encoding="utf-8") as file:
            header, *lines = csv.reader([line for line in file if line.endswith("\n")] or [""])
        if lines and "iteration" not in header:
            raise ValueError("it has no column 'iteration'")
        return [
            {n: float(cell) if cell else math.nan for n, cell in zip(header, line, strict=True)}
            for line in lines
        ]
    except ValueError as error:
        raise RunError(f"{path} is not the metrics of a run: {error}") from error
