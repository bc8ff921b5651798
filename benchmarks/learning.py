"""Train the recipes on several seeds and write the table of what they learn.

    python benchmarks/learning.py                      # CartPole, Acrobot, Pendulum; five seeds
    python benchmarks/learning.py --envs CartPole-v1 --seeds 10

Every seed counts. The figure of a seed is the mean return of 100 whole episodes, played by the
deterministic policy on environments that were seen neither in training nor in choosing the best
policy. The interval is Student's t over seeds, 95 %. Each run has one thread, and as many runs go
on at once as there are processors.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gymnasium
import numpy as np
import torch
from scipy import stats

from upslope import __version__, recipes

# environment: the mean return that the recipe is to reach
GOALS = {"CartPole-v1": 490.0, "Acrobot-v1": -85.0, "Pendulum-v1": -180.0}
RESULTS = Path(__file__).parent / "results"


def run(env: str, seed: int, runs: Path) -> dict[str, float]:
    """Train one seed by the command line; returns its evaluation and how long it took."""
    name = f"{env}-{seed}"
    command = [sys.executable, "-m", "upslope.cli", "train", "ppo", env, "--seed", str(seed)]
    command += ["--runs", str(runs), "--name", name, "--final-episodes", "100", "--quiet"]
    began = time.perf_counter()
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - began
    found = json.loads((runs / name / "evaluation.json").read_text())
    returns = np.array(found["returns"])
    print(f"{env} seed {seed}: {returns.mean():.1f} in {seconds:.0f} s", flush=True)
    return {"seed": seed, "mean": returns.mean(), "lowest": returns.min(), "seconds": seconds}


def row(env: str, results: list[dict[str, float]]) -> str:
    """Return a row of the table: the mean over seeds, its interval, the worst seed."""
    means = np.array([result["mean"] for result in results])
    half = stats.t.ppf(0.975, len(means) - 1) * means.std(ddof=1) / np.sqrt(len(means))
    seconds = np.median([result["seconds"] for result in results])
    steps = recipes.find("ppo", env).total_timesteps
    each = ", ".join(f"{mean:.1f}" for mean in means)
    goal = GOALS[env]
    verdict = "yes" if means.mean() >= goal else "no"
    return (
        f"| {env} | {steps:,} | {means.mean():.1f} | ±{half:.1f} | {means.min():.1f} | {goal:g} "
        f"| {verdict} | {seconds:.0f} s | {each} |"
    )


def main() -> None:
    """Train, evaluate, write `benchmarks/results/learning.md`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--envs", nargs="+", default=list(GOALS), choices=list(GOALS))
    parser.add_argument("--seeds", type=int, default=5, help="seeds 0 to SEEDS - 1")
    parser.add_argument("--at-once", type=int, default=os.cpu_count())
    parser.add_argument("--output", type=Path, default=RESULTS / "learning.md")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(chosen.at_once) as pool:
        jobs = {
            env: [pool.submit(run, env, seed, Path(folder)) for seed in range(chosen.seeds)]
            for env in chosen.envs
        }
        rows = [row(env, [job.result() for job in submitted]) for env, submitted in jobs.items()]
    versions = (
        f"upslope {__version__}, torch {torch.__version__}, numpy {np.__version__}, "
        f"gymnasium {gymnasium.__version__}, Python {platform.python_version()}, "
        f"{os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}"
    )
    table = f"""# What the recipes learn

PPO, {chosen.seeds} seeds (0 to {chosen.seeds - 1}), all counted. Each seed: the mean return of 100
episodes, deterministic, by the best policy of the run's own evaluations, on episodes not seen
before. Made by `python benchmarks/learning.py` on {datetime.date.today()};
{versions}.
"Time" is the median wall-clock time of a whole run on one thread, evaluations included,
{chosen.at_once} at once.

| environment | steps | mean | 95 % interval | worst seed | goal | reached | time | each seed |
|---|---|---|---|---|---|---|---|---|
""" + "\n".join(rows)
    chosen.output.parent.mkdir(parents=True, exist_ok=True)
    chosen.output.write_text(table + "\n")
    print(table)


if __name__ == "__main__":
    main()
