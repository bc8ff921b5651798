"""What memory is worth where velocities are hidden: LSTM, GRU and no memory, on the same steps.

    python benchmarks/hidden_velocity.py               # CartPole without velocities, five seeds

The same recipe for all three; without memory the perceptron has the default 64 x 64. Every seed
counts; the figure is the mean return of 100 deterministic episodes.
"""

from __future__ import annotations

import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from learning import RESULTS, interval, run

ENV = "upslope/CartPoleNoVelocity-v0"
SEEDS = range(5)


def main() -> None:
    """Train each policy on each seed, two at once, and write the table."""
    lines = ["| policy | mean | 95 % interval | worst seed | time | each seed |"]
    lines += ["|---|---|---|---|---|---|"]
    for policy in ("lstm", "gru", "mlp"):
        with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
            jobs = [
                pool.submit(run, ("ppo", ENV), seed, Path(folder), "--policy", policy)
                for seed in SEEDS
            ]
            found = [job.result() for job in jobs]
        means = np.array([one["mean"] for one in found])
        seconds = np.median([one["seconds"] for one in found])
        each = ", ".join(f"{mean:.1f}" for mean in means)
        lines += [
            f"| {policy} | {means.mean():.1f} | ±{interval(means):.1f} | {means.min():.1f} "
            f"| {seconds:.0f} s | {each} |"
        ]
    text = "# CartPole without velocities: what memory is worth\n\n"
    text += "Made by `python benchmarks/hidden_velocity.py`, which says how.\n\n"
    text += "\n".join(lines) + "\n"
    (RESULTS / "hidden_velocity.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
