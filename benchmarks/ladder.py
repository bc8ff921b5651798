"""The ladder on Flappy Bird: every rung's recipe, on the same budget of frames, in one picture.

    python benchmarks/ladder.py                        # what results/ladder.json does not have yet
    python benchmarks/ladder.py --only ppo --seeds 0 1 2

Each agent learns for `BUDGET` frames on one thread, by its recipe. On the way it plays 20 lives by
its deterministic policy, which no learning sees; a life is stopped at 1,000 pipes. What is drawn is
the median of these lives, as the policy was then: the best policy of a run is not chosen. After
each evaluation the agent is saved in `runs/ladder`, so that an interrupted ladder goes on where it
was. Time is that of the processor while learning: the machine may have other work.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from upslope import recipes
from upslope.agents.agent import Agent
from upslope.agents.evaluation import run_episodes
from upslope.agents.table import ALGORITHMS
from upslope.seeding import derive32

ENV = "upslope/FlappyBird-v0"
RESULTS = Path(__file__).parent / "results" / "ladder.json"
RUNS = Path(__file__).parents[1] / "runs" / "ladder"
PICTURE = Path(__file__).parents[1] / "docs" / "images" / "ladder.png"
LIVES, LIMIT = 20, 1_000
BUDGET = dict.fromkeys(ALGORITHMS, 20_000_000) | {"dqn": 2_000_000}  # frames
EVERY = dict.fromkeys(ALGORITHMS, 2_000_000) | {"dqn": 200_000}  # frames between evaluations
# algorithm: what it is called, colour, dashes and marker, to be told apart without colour too
LINES: dict[str, tuple[str, str, Any, str]] = {
    "q_learning": ("Q-learning", "#7a8790", (0, (1, 1.2)), "s"),
    "dqn": ("DQN", "#9146b8", (0, (4, 1.5)), "^"),
    "reinforce": ("REINFORCE", "#e8743b", (0, (6, 1.5, 1, 1.5)), "D"),
    "actor_critic": ("actor-critic", "#2f9e62", (0, (7, 2)), "v"),
    "ppo": ("PPO", "#1d5fa3", "-", "o"),
}
Run = dict[str, Any]


def learn(algorithm: str, run: Run, keep: Callable[[], None]) -> None:
    """Go on with a run to the end of its budget; `keep` is called after each evaluation."""
    folder, every = RUNS / f"{algorithm}-{run['seed']}", EVERY[algorithm]
    if folder.exists() and run["curve"]:
        agent = ALGORITHMS[algorithm].load(folder)
    else:
        run.update(frames=0, seconds=0.0, processor_seconds=0.0, curve=[])
        agent = ALGORITHMS[algorithm].from_recipe(ENV, seed=run["seed"])
    kwargs = recipes.find(algorithm, ENV).env_kwargs | {"score_limit": LIMIT}
    began = clocks()

    def note(agent: Agent[Any], _: dict[str, float]) -> None:
        nonlocal began
        frames = agent.num_timesteps
        if frames // every <= run["frames"] // every:
            return
        for name, passed in zip(("seconds", "processor_seconds"), clocks() - began, strict=True):
            run[name] = round(run[name] + passed, 1)
        seed = derive32(run["seed"], "ladder", frames)
        lives = run_episodes(agent, ENV, LIVES, seed=seed, env_kwargs=kwargs).scores
        run["curve"].append({"frames": frames, "lives": sorted(int(score) for score in lives)})
        run["frames"] = frames
        agent.save(folder)
        keep()
        print(f"{algorithm} {frames:,}: median {np.median(lives):g}", flush=True)
        began = clocks()

    if agent.num_timesteps:
        agent.go_on(note)
    else:
        agent.learn(BUDGET[algorithm], note)


def clocks() -> np.ndarray:
    """Return the wall's and the processor's time in seconds."""
    return np.array([time.perf_counter(), time.process_time()])


def medians(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """Return millions of frames, and the median pipes of a life then."""
    frames = np.array([point["frames"] for point in run["curve"]])
    return frames / 1e6, np.array([np.median(point["lives"]) for point in run["curve"]])


def duration(runs: list[Run]) -> str:
    """Return the median processor time that learning took, in words."""
    return f"{np.median([run['processor_seconds'] for run in runs]):.0f} s"


def draw(measured: dict[str, list[Run]]) -> None:
    """Draw a line for each run, and write beside each agent's last point what it is."""
    figure = Figure(figsize=(9, 5.2), dpi=120, layout="constrained")
    axes = figure.subplots()
    ends: list[tuple[float, float, str, str]] = []
    for algorithm, (name, colour, dashes, marker) in LINES.items():
        for number, run in enumerate(measured.get(algorithm, [])):
            frames, score = medians(run)
            score = np.maximum(score, 1)
            style = {"color": colour, "linestyle": dashes, "marker": marker, "markersize": 4}
            axes.plot(frames, score, linewidth=1.8, **style)
            if number == 0:
                label = f"{name}, {duration(measured[algorithm])}"
                ends.append((frames[-1], score[-1], label, colour))
    axes.set_yscale("log")
    axes.set_ylim(0.9, 2 * LIMIT)
    axes.set_xlim(0, 25.5)
    axes.set_yticks([1, 10, 100, 1000], ["1", "10", "100", "1,000"])
    axes.set_xticks([0, 5, 10, 15, 20])
    write_labels(axes, ends)
    axes.set_xlabel("million frames of learning")
    axes.set_ylabel(f"pipes of a life, median of {LIVES}")
    axes.set_title(
        f"Flappy Bird, and seconds of one processor; lives stop at {LIMIT:,}, and 0 is drawn at 1",
        loc="left",
        fontsize=10,
    )
    axes.grid(lw=0.5, alpha=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(PICTURE)


def write_labels(axes: Axes, ends: list[tuple[float, float, str, str]]) -> None:
    """Write labels right of the lines' ends, from the lowest up, none over another."""
    lowest: dict[float, float] = {}
    furthest = max(round(end[0]) for end in ends)
    for x, y, label, colour in sorted(ends, key=lambda end: end[1]):
        aside = y if round(x) == furthest else 1.8 * y  # over lines that go on to the right
        place = max(aside, 1.35 * lowest.get(round(x), 0))
        lowest[round(x)] = place
        style = {"color": colour, "va": "center", "fontweight": "bold"}
        box = {"facecolor": "white", "alpha": 0.8, "pad": 1, "linewidth": 0}
        axes.text(x + 0.35, place, label, bbox=box, **style)


def table(measured: dict[str, list[Run]]) -> str:
    """Return the rows of all runs: the last evaluation, and the best median before it."""
    rows = [
        "| agent | seed | frames | processor time | last: median | mean | shortest | longest "
        "| best median of all evaluations |",
        f"|---|{'---:|' * 8}",
    ]
    for algorithm, (name, *_) in LINES.items():
        for run in measured.get(algorithm, []):
            lives, best = np.array(run["curve"][-1]["lives"]), medians(run)[1].max()
            rows.append(
                f"| {name} | {run['seed']} | {run['frames']:,} | {run['processor_seconds']:.0f} s "
                f"| {np.median(lives):g} | {lives.mean():.1f} | {lives.min()} | {lives.max()} "
                f"| {best:g} |"
            )
    return "\n".join(rows)


def report(measured: dict[str, list[Run]]) -> None:
    """Write `results/ladder.md`."""
    text = f"""# The ladder on Flappy Bird

Made by `python benchmarks/ladder.py`, which says how. One seed of each agent unless more are
listed; one seed ranks nothing. Lives: {LIVES}, by the deterministic policy as it was then, stopped
at {LIMIT:,} pipes. The best median is the highest of those that were looked at, so it flatters.
Time is the processor's while learning, one thread, evaluations left out.

{table(measured)}

![Median pipes of a life over frames of learning](../../docs/images/ladder.png)
"""
    RESULTS.with_suffix(".md").write_text(text)
    print(text)


def main() -> None:
    """Train what was not measured yet, draw, and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=LINES, default=list(LINES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--draw", action="store_true", help="train nothing, draw what there is")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    measured = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    RUNS.mkdir(parents=True, exist_ok=True)
    for algorithm in [] if chosen.draw else chosen.only:
        runs = measured.setdefault(algorithm, [])
        for seed in chosen.seeds:
            if seed not in [run["seed"] for run in runs]:
                runs.append({"seed": seed, "frames": 0, "curve": []})
            run = next(run for run in runs if run["seed"] == seed)
            if run["frames"] < BUDGET[algorithm]:
                learn(algorithm, run, lambda: RESULTS.write_text(json.dumps(measured) + "\n"))
    draw(measured)
    report(measured)


if __name__ == "__main__":
    main()
