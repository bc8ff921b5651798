"""Train several agents under random faults, for as long as you like: `make soak`, 15 minutes.

    python benchmarks/soak.py --seconds 120

Each life of a run meets one fault: it is killed, asked to stop, its disk is full from some size of
file on, or its environment raises at a random step. The run goes on in the next life. Ends with 1
unless every run that came to its end has, byte for byte, the state of the run that met no fault,
no process and no file written aside is left, and no life takes more memory than the first ones.
"""

from __future__ import annotations

import argparse
import importlib
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from kills import MEMORY, ROOT, TASKS, Fault, end_of, life

from upslope.errors import UpslopeError
from upslope.rollout.stream import Stream

GROWTH = 1.2  # of the largest life in memory, over the largest in the first quarter


def full_disk(live: Callable[[Path], None], rng: random.Random) -> Callable[[Path], None]:
    """Return a life in which no file may be larger than some random size."""
    size = rng.choice((1_000, 4_000, 16_000))

    def limited(folder: Path) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        try:
            live(folder)
        except (UpslopeError, OSError) as error:
            raise Fault from error

    return limited


def failing(live: Callable[[Path], None], rng: random.Random) -> Callable[[Path], None]:
    """Return a life whose environments raise at a random step of their stream."""
    at, step = rng.randrange(1, 400), Stream.step

    def failing_step(stream: Stream, *given: Any) -> Any:
        if stream.total_steps == at:
            raise Fault
        return step(stream, *given)

    def fails(folder: Path) -> None:
        Stream.step = failing_step  # type: ignore[method-assign]
        live(folder)

    return fails


def leftovers(folder: Path) -> list[Path]:
    """Return what a save that was interrupted has left aside in a run that came to its end."""
    return [path for path in folder.rglob("*") if ".tmp-" in path.name or ".old-" in path.name]


def soak(seconds: float, seed: int, place: Path) -> list[str]:
    """Run until the time is over; returns what is wrong."""
    rng, begun, wrong = random.Random(seed), time.monotonic(), []
    expected, whole, faults, ends = {}, {}, Counter[str](), 0
    memory: list[tuple[float, int]] = []
    for name, live in TASKS.items():
        since = time.monotonic()
        life(live, place / name, None)
        expected[name], whole[name] = end_of(place / name), time.monotonic() - since
        shutil.rmtree(place / name)
    runs = dict.fromkeys(TASKS, 0)
    while time.monotonic() - begun < seconds:
        name = rng.choice(list(TASKS))
        folder, live = place / f"{name}-{runs[name]}", TASKS[name]
        fault = rng.choice(("kill", "stop", "full disk", "failing", "none"))
        moment = rng.uniform(0, 0.6 * whole[name]) if fault in ("kill", "stop") else None
        number = signal.SIGTERM if fault == "stop" else signal.SIGKILL
        if fault == "full disk":
            live = full_disk(live, rng)
        if fault == "failing":
            live = failing(live, rng)
        faults[fault] += 1
        if not life(live, folder, moment, number):
            continue
        ends += 1
        if end_of(folder) != expected[name]:
            wrong.append(f"{folder.name} ended differently")
        wrong += [f"{path} was left" for path in leftovers(folder)]
        shutil.rmtree(folder)
        runs[name] += 1
        largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        memory.append((time.monotonic() - begun, largest))
    first = max((m for t, m in memory if t < seconds / 4), default=memory[0][1] if memory else 0)
    if memory and memory[-1][1] > GROWTH * first:
        wrong.append(f"memory grew from {first:,} to {memory[-1][1]:,} KiB")
    print(f"{dict(faults)}; {ends} runs came to their end; {len(wrong)} things wrong")
    return wrong


def main() -> None:
    """Soak, and end with 1 where something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=900)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    sys.path.insert(0, str(ROOT))
    for module in ("upslope.language.grpo", "tests.language.tiny"):
        importlib.import_module(module)
    with tempfile.TemporaryDirectory(dir=MEMORY) as place:
        wrong = soak(chosen.seconds, chosen.seed, Path(place))
    print(*wrong, sep="\n", end="\n" if wrong else "")
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    main()
