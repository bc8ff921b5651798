"""What a training run shows and writes.

OUTPUT/metrics.jsonl        a line for each logged step, what matters first, `loss` last
OUTPUT/tensorboard/         the same as events
OUTPUT/completions.jsonl    a few prompts with completion, rewards and advantage of each logged step
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

from upslope.errors import RunError
from upslope.records.events import EventFile
from upslope.records.files import explained, replace_text


class Records:
    """Writes to `folder`, if there is one, and shows progress on a terminal."""

    def __init__(
        self, folder: Path | None, *, step: int, total: int, headline: Sequence[str], shown: bool
    ) -> None:
        self.folder, self.headline = folder, headline
        self.console = Console(stderr=True)
        self.bar: Bar | None = None
        self.started, self.first = time.perf_counter(), step
        if folder is not None:
            cut(folder / "metrics.jsonl", step)
            cut(folder / "completions.jsonl", step)
            self.events = EventFile(folder / "tensorboard", step)
        if shown and self.console.is_terminal:
            self.bar = Bar(
                TextColumn("step"),
                MofNCompleteColumn(),
                BarColumn(),
                TextColumn("{task.fields[told]}"),
                TimeRemainingColumn(),
                console=self.console,
            )
            self.task = self.bar.add_task("train", total=total, completed=step, told="")

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write a row of metrics and show its headline."""
        if self.bar is not None:
            told = [f"{n} {metrics[n]:.3g}" for n in self.headline if n in metrics]
            self.bar.update(self.task, completed=step, told="  ".join(told))
        if self.folder is not None:
            row = {n: None if math.isnan(x) else x for n, x in metrics.items()}
            append(self.folder / "metrics.jsonl", [{"step": step, **row}])
            self.events.write(step, {f"train/{n}": x for n, x in metrics.items()})

    def sample(self, step: int, rows: Sequence[Mapping[str, Any]], *, shown: bool) -> None:
        """Write a few completions, and show them if asked."""
        if self.folder is not None:
            append(self.folder / "completions.jsonl", [{"step": step, **row} for row in rows])
        if shown and rows:
            table = Table(title=f"step {step}", show_lines=True)
            for name in rows[0]:
                table.add_column(name)
            for row in rows:
                table.add_row(*(told(value) for value in row.values()))
            self.console.print(table)

    def __enter__(self) -> Self:
        """Begin to show."""
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """Leave the last line standing, and close the files."""
        if self.bar is not None:
            self.bar.stop()
        if self.folder is not None:
            self.events.file.close()


def told(value: Any) -> str:
    """Return a value as a cell of a table for people."""
    return f"{value:.3g}" if isinstance(value, float) else str(value).replace("[", r"\[")


def append(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append rows to a file of JSON lines; raises RunError when they cannot be written."""
    with explained(path), path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def cut(path: Path, step: int) -> None:
    """Cut a file of JSON lines back to what was written up to a step."""
    if path.exists():
        kept = [row for row in read(path) if row["step"] <= step]
        replace_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept))


def read(path: Path) -> list[dict[str, Any]]:
    """Return the rows of such a file; a last line cut short by a kill is left out."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]
        return [json.loads(line) for line in lines]
    except ValueError as error:
        raise RunError(f"{path} is not what a training run wrote: {error}") from error
