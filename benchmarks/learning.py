"""Train the recipes on several seeds and write the table of what they learn.

    python benchmarks/learning.py                      # every row of the table; five seeds
    python benchmarks/learning.py --algorithms ppo --envs CartPole-v1 --seeds 5 6 7

Every seed counts. The figure of a seed is the mean return of 100 whole episodes, played by the
deterministic policy on environments that were seen neither in training nor in choosing the best
policy. For Q-learning, whose environments are finite, it is the exact mean return of that policy.
The interval is Student's t over seeds, 95 %. Each run has one thread, and as many runs go on at
once as there are processors. What was measured before stays in the table until its row is
measured again, seed by seed (`results/learning.json`).
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
from typing import Any

import gymnasium
import numpy as np
import torch
from scipy import stats

from upslope import __version__, exact, recipes
from upslope.runs.configuration import RunConfig
from upslope.runs.run import load_agent

# (algorithm, environment), or in other than the recipe's steps (algorithm, environment, steps):
# the mean return that it is to reach
GOALS: dict[tuple[Any, ...], float] = {
    ("q_learning", "CliffWalking-v1"): -13.0,
    ("q_learning", "Taxi-v4"): 7.93,
    ("dqn", "CartPole-v1"): 480.0,
    ("dqn", "Acrobot-v1"): -92.0,
    ("dqn", "LunarLander-v3"): 195.0,
    ("reinforce", "CartPole-v1"): 480.0,
    ("actor_critic", "CartPole-v1"): 490.0,
    ("actor_critic", "Acrobot-v1"): -90.0,
    ("actor_critic", "Pendulum-v1"): -200.0,
    ("actor_critic", "HalfCheetah-v5"): 1800.0,
    ("ppo", "CartPole-v1"): 490.0,
    ("ppo", "Acrobot-v1"): -85.0,
    ("ppo", "Pendulum-v1"): -180.0,
    ("ppo", "upslope/CartPoleNoVelocity-v0"): 475.0,
    ("ppo", "LunarLander-v3"): 240.0,
    ("ppo", "LunarLander-v3", 300_000): 183.0,
    ("ppo", "BipedalWalker-v3"): 250.0,
    ("ppo", "InvertedPendulum-v5"): 995.0,
    ("ppo", "HalfCheetah-v5"): 2500.0,
    ("ppo", "Hopper-v5"): 2400.0,
    ("ppo", "Walker2d-v5"): 2300.0,
    ("ppo", "Ant-v5"): 1000.0,
}
# the same: mean returns published, after as many steps unless it is said; MuJoCo's of v3 and v4,
# which differ from v5 but for HalfCheetah
PUBLISHED: dict[tuple[Any, ...], str] = {
    ("q_learning", "CliffWalking-v1"): "-13, the optimum",
    ("q_learning", "Taxi-v4"): "7.93, the optimum",
    ("dqn", "CartPole-v1"): "488.7 (500k)",
    ("dqn", "Acrobot-v1"): "-91.5 (500k)",
    ("dqn", "LunarLander-v3"): "195",
    ("ppo", "CartPole-v1"): "490 (CleanRL, 500k), 498.9 (SLM-Lab)",
    ("ppo", "Acrobot-v1"): "-81",
    ("ppo", "Pendulum-v1"): "-172 (100k)",
    ("ppo", "LunarLander-v3"): "242 (v2)",
    ("ppo", "HalfCheetah-v5"): "1,443 (CleanRL) to 5,784 (Tianshou)",
    ("ppo", "Hopper-v5"): "2,383 (CleanRL), 2,609 (Tianshou)",
    ("ppo", "Walker2d-v5"): "2,288 (CleanRL), 3,589 (Tianshou)",
    ("ppo", "Ant-v5"): "1,007 to 3,258",
}
RESULTS = Path(__file__).parent / "results"


def run(goal: tuple[Any, ...], seed: int, runs: Path, *options: str) -> dict[str, float]:
    """Train one seed by the command line; returns its evaluation and how long it took."""
    algorithm, env, *_ = goal
    name = key(*goal, seed).replace("/", "-").replace(" ", "-")
    command = [sys.executable, "-m", "upslope.cli", "train", algorithm, env, "--seed", str(seed)]
    command += ["--runs", str(runs), "--name", name, "--final-episodes", "100", "--quiet"]
    command += ["--total-timesteps", str(steps_of(*goal)), *options]
    began = time.perf_counter()
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - began
    found = json.loads((runs / name / "evaluation.json").read_text())
    returns = np.array(found["returns"])
    print(f"{key(*goal)} seed {seed}: {returns.mean():.1f} in {seconds:.0f} s", flush=True)
    lowest = float(returns.min())
    mean = exact_return(runs / name) if algorithm == "q_learning" else float(returns.mean())
    return {"seed": seed, "mean": mean, "lowest": lowest, "seconds": seconds}


def exact_return(folder: Path) -> float:
    """Return J of the greedy policy of a run's table, to six digits behind the point."""
    config = RunConfig.read(folder)
    agent = load_agent(folder, config)
    q = agent.policy.network.values.mean(0)
    policy = torch.nn.functional.one_hot(q.argmax(1), q.shape[1])
    # the least of discounts, since there are states of Taxi that no policy ends from
    mdp = exact.from_gymnasium(config.env, gamma=1 - 1e-9)
    return round(float(exact.solve(mdp, policy.double()).objective), 6)


def interval(means: np.ndarray) -> float:
    """Return half of Student's 95 % interval of a mean; nan for one number."""
    if len(means) < 2:
        return float("nan")
    return float(stats.t.ppf(0.975, len(means) - 1) * means.std(ddof=1) / np.sqrt(len(means)))


def key(*goal: str | int) -> str:
    """Return by which name a row's results are kept."""
    return " ".join(map(str, goal))


def steps_of(algorithm: str, env: str, steps: int | None = None) -> int:
    """Return how many environment steps a row is trained for."""
    return steps or recipes.find(algorithm, env).total_timesteps


def row(goal: tuple[Any, ...], results: list[dict[str, float]]) -> str:
    """Return a row of the table: the mean over seeds, its interval, the worst seed."""
    means = np.array([result["mean"] for result in results])
    half = interval(means)
    seconds = np.median([result["seconds"] for result in results])
    algorithm, env, *_ = goal
    each = ", ".join(f"{mean:.1f}" for mean in means)
    verdict = "yes" if means.mean() >= GOALS[goal] else "no"
    return (
        f"| {algorithm} | {env} | {steps_of(*goal):,} | {means.mean():.1f} | ±{half:.1f} "
        f"| {means.min():.1f} | {GOALS[goal]:g} | {verdict} | {PUBLISHED.get(goal, '')} "
        f"| {seconds:.0f} s | {each} |"
    )


def main() -> None:
    """Train, evaluate, write `benchmarks/results/learning.md`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    algorithms, envs = ({goal[k]: None for goal in GOALS} for k in (0, 1))
    parser.add_argument("--algorithms", nargs="+", default=list(algorithms), choices=algorithms)
    parser.add_argument("--envs", nargs="+", default=list(envs), choices=envs)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--at-once", type=int, default=os.cpu_count())
    parser.add_argument("--output", type=Path, default=RESULTS / "learning.md")
    chosen = parser.parse_args()
    kept = chosen.output.with_suffix(".json")
    measured = json.loads(kept.read_text()) if kept.exists() else {}
    chosen.output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(chosen.at_once) as pool:
        jobs = {
            goal: [pool.submit(run, goal, seed, Path(folder)) for seed in chosen.seeds]
            for goal in GOALS
            if goal[0] in chosen.algorithms and goal[1] in chosen.envs
        }
        for goal, submitted in jobs.items():
            results = [job.result() for job in submitted]
            others = [
                one for one in measured.get(key(*goal), []) if one["seed"] not in chosen.seeds
            ]
            measured[key(*goal)] = sorted(others + results, key=lambda one: one["seed"])
            kept.write_text(json.dumps(measured, indent=1) + "\n")
    rows = [row(goal, measured[key(*goal)]) for goal in GOALS if key(*goal) in measured]
    versions = (
        f"upslope {__version__}, torch {torch.__version__}, numpy {np.__version__}, "
        f"gymnasium {gymnasium.__version__}, Python {platform.python_version()}, "
        f"{os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}"
    )
    header = (
        "| algorithm | environment | steps | mean | 95 % interval | worst seed | goal | reached "
        "| published | time | each seed |"
    )
    table = f"""# What the recipes learn

All seeds counted, none left out. Each seed: the mean return of 100 episodes, deterministic, by
the best policy of the run's own evaluations, on episodes not seen before; for Q-learning the exact
mean return of its policy. Made by `python benchmarks/learning.py`, last on {datetime.date.today()};
{versions}.
"Time" is the median wall-clock time of a whole run on one thread, evaluations included; the machine
may have had other work, so it is no comparison. Rows are of the version and day they were last
measured on, the line above of the last row.

{header}
|{"---|" * 11}
""" + "\n".join(rows)
    chosen.output.write_text(table + "\n")
    print(table)


if __name__ == "__main__":
    main()
