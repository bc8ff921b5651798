"""A line of progress on a terminal: steps, steps per second, return, time that remains."""

from __future__ import annotations

import math
import time
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar


class Progress:
    """Shows how learning goes, when `shown` and the output is a terminal; else does nothing."""

    def __init__(self, total: int, *, done: int = 0, shown: bool = True) -> None:
        self.bar: Bar | None = None
        console = Console(stderr=True)
        if shown and console.is_terminal:
            columns = (
                TextColumn("{task.completed:,.0f} steps"),
                BarColumn(),
                TaskProgressColumn(),
                TextColumn("{task.fields[told]}"),
                TimeRemainingColumn(),
            )
            self.bar = Bar(*columns, console=console)
            self.task = self.bar.add_task("learn", total=total, completed=done, told="")
        self.started, self.first = time.perf_counter(), done

    def show(self, steps: int, metrics: dict[str, Any]) -> None:
        """Show where learning is after `steps` environment steps."""
        if self.bar is None:
            return
        speed = (steps - self.first) / max(1e-9, time.perf_counter() - self.started)
        told = [f"{speed:,.0f} steps/s"]
        if "episode_return" in metrics:
            told.append(f"return {metrics['episode_return']:.1f}")
        if "episode_score" in metrics:
            told.append(f"score {metrics['episode_score']:.1f}")
        ratio = metrics.get("signal_to_noise", math.nan)
        told.append(f"signal/noise {'not resolved' if math.isnan(ratio) else f'{ratio:.2g}'}")
        self.bar.update(self.task, completed=steps, told="  ".join(told))

    def __enter__(self) -> Self:
        """Begin to show."""
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """Leave the last line standing."""
        if self.bar is not None:
            self.bar.stop()
