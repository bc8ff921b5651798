"""Metrics on disk: a row of `metrics.csv` for every iteration, and TensorBoard events.

Both can be cut back to an iteration, which a resumed run does: what was written after the
checkpoint that it goes on from is written again.
"""

from __future__ import annotations

import csv
import math
import time
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from upslope.errors import RunError

FIRST = ("iteration", "timesteps", "seconds", "steps_per_second", "episodes")
SOMETIMES = ("episode_return", "episode_length", "episode_score", "eval_return", "eval_return_std")


class MetricsWriter:
    """Appends the metrics of each iteration; an empty cell is a number there was not (or nan)."""

    def __init__(self, folder: Path, *, from_iteration: int = 0) -> None:
        self.path = folder / "metrics.csv"
        self.columns: list[str] = []
        self.seconds = 0.0
        rows = read_metrics(self.path) if self.path.exists() else []
        kept = [row for row in rows if row["iteration"] <= from_iteration]
        if rows:
            self.columns = list(rows[0])
        if kept:
            self.seconds = kept[-1]["seconds"]
        self._rewrite(kept)
        self.timesteps = int(kept[-1]["timesteps"]) if kept else 0
        self.events = EventFileWriter(str(folder / "tensorboard"))
        restart = SessionLog(status=SessionLog.START)
        self.events.add_event(
            Event(wall_time=time.time(), step=self.timesteps + 1, session_log=restart)
        )
        self.clock = time.perf_counter()

    def _rewrite(self, rows: list[dict[str, float]]) -> None:
        aside = self.path.with_name(".metrics.csv.tmp")
        with aside.open("w", newline="") as file:
            writer = csv.writer(file)
            if self.columns:
                writer.writerow(self.columns)
            writer.writerows([_cell(row[name]) for name in self.columns] for row in rows)
        aside.replace(self.path)
        self.file = self.path.open("a", newline="")

    def write(self, iteration: int, timesteps: int, metrics: dict[str, Any]) -> None:
        """Append one row; raises RunError when it cannot be written."""
        now = time.perf_counter()
        took, self.clock = now - self.clock, now
        self.seconds += took
        speed = (timesteps - self.timesteps) / max(took, 1e-9)
        self.timesteps = timesteps
        counted = {"iteration": iteration, "timesteps": timesteps, "steps_per_second": speed}
        row = metrics | counted | {"seconds": self.seconds}
        try:
            writer = csv.writer(self.file)
            if not self.columns:
                rest = [name for name in metrics if name not in FIRST + SOMETIMES]
                self.columns = [*FIRST, *SOMETIMES, *rest]
                writer.writerow(self.columns)
            writer.writerow([_cell(row.get(name, math.nan)) for name in self.columns])
            self.file.flush()
            self._event(timesteps, row)
        except OSError as error:
            raise RunError(f"{self.path} cannot be written: {error.strerror}") from error

    def _event(self, timesteps: int, row: dict[str, Any]) -> None:
        values = [
            Summary.Value(tag=_tag(name), simple_value=float(number))
            for name, number in row.items()
            if name not in ("iteration", "timesteps") and not math.isnan(number)
        ]
        summary = Summary(value=values)
        self.events.add_event(Event(wall_time=time.time(), step=timesteps, summary=summary))

    def close(self) -> None:
        """Write out what is pending."""
        self.file.close()
        self.events.close()


def _tag(name: str) -> str:
    if name.startswith(("episode", "eval")):
        return f"rollout/{name}"
    return f"time/{name}" if name in FIRST else f"update/{name}"


def _cell(number: float) -> str:
    if math.isnan(number):
        return ""
    whole = float(number).is_integer() and abs(number) < 1e15
    return str(int(number)) if whole else f"{number:.6g}"


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Return the rows of a `metrics.csv`; a last line cut short by a kill is left out."""
    with path.open(newline="") as file:
        lines = list(csv.reader(file))
    if not lines:
        return []
    header, *rest = lines
    return [
        {name: float(cell) if cell else math.nan for name, cell in zip(header, line, strict=True)}
        for line in rest
        if len(line) == len(header)
    ]
