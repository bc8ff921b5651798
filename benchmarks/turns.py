"""Contestants in processes of their own, which take turns: who has no turn is stopped.

A turn is of whole iterations, for two seconds or more, so that what the machine does besides
touches everyone alike, and set-up is in no turn. A contestant is told a file, `--count`, and counts
its steps in it at the end of each iteration.
"""

from __future__ import annotations

import datetime
import mmap
import os
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

from pages import machine

SECONDS = 2.0  # of a turn, at least
WARM = 3  # times that steps are counted before the first turn

Count = Callable[[int], None]
"""Told how many steps were taken so far, at the end of each iteration."""


class Contestant:
    """A process that counts steps while it is not stopped."""

    def __init__(self, command: list[str], path: Path) -> None:
        path.write_bytes(bytes(8))
        self.steps = counter(path)
        told = [*command, "--count", str(path)]
        self.process = subprocess.Popen(told, stdout=subprocess.DEVNULL)
        for _ in range(WARM):
            self.until_counted()
        self.signal(signal.SIGSTOP)

    def signal(self, number: signal.Signals) -> None:
        """Stop it or let it go on."""
        os.kill(self.process.pid, number)

    def until_counted(self) -> None:
        """Wait until it has counted steps once more."""
        before = self.steps[0]
        while self.steps[0] == before:
            time.sleep(0.002)
            if self.process.poll() is not None:
                raise SystemExit("a contestant has ended, which none should")

    def turn(self) -> float:
        """Let it go on for a turn; returns its steps per second."""
        before, began = self.steps[0], time.perf_counter()
        self.signal(signal.SIGCONT)
        while time.perf_counter() - began < SECONDS:
            self.until_counted()
        took = time.perf_counter() - began
        self.signal(signal.SIGSTOP)
        return (self.steps[0] - before) / took

    def __enter__(self) -> Contestant:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()


def rates(commands: Mapping[str, list[str]], rounds: int) -> dict[str, list[float]]:
    """Give everyone a turn in each round; return the steps per second of each."""
    found: dict[str, list[float]] = {name: [] for name in commands}
    with ExitStack() as stack:
        shared = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        contestants = {
            name: stack.enter_context(Contestant(command, shared / str(k)))
            for k, (name, command) in enumerate(commands.items())
        }
        for _ in range(rounds):
            for name, contestant in contestants.items():
                found[name].append(contestant.turn())
    return found


def counter(path: Path) -> memoryview:
    """Return a number that several processes share, as one of 64 bits."""
    with path.open("r+b") as file:
        return memoryview(mmap.mmap(file.fileno(), 8)).cast("q")


def counting(path: Path) -> Count:
    """Return what counts steps in the file that a contestant was told."""
    steps = counter(path)

    def count(number: int) -> None:
        steps[0] = number

    return count


def measured(rounds: int) -> str:
    """Return the sentence below a table: how, when, and on what."""
    how = f"{rounds} rounds of turns of two seconds or more; who has no turn is stopped."
    return f"{how} Measured {datetime.date.today()}, {machine()}."


def spread(found: list[float]) -> str:
    """Return the median with the lowest and the highest."""
    return f"{statistics.median(found):.2f} ({min(found):.2f} to {max(found):.2f})"


def ratios(ours: list[float], others: list[float]) -> str:
    """Return the spread of the ratio of each round."""
    return spread([own / other for own, other in zip(ours, others, strict=True)])
