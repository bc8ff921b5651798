"""How the speed and the memory of training grow: environments, width, threads, steps.

    python benchmarks/scaling.py                     # three rounds, about ten minutes
    python benchmarks/scaling.py --rounds 5 --write docs
    python benchmarks/scaling.py --rounds 1 --seconds 0.5 --envs 8 1024 --widths 16 64

PPO on CartPole-v1, separate tanh networks of two equal layers for policy and value, four epochs,
minibatches of 2,048, rollouts of 16,384 steps whatever the number of environments. Environment
steps per second of training alone, after an iteration to warm up; each point is a process of its
own, all points in turn in each round, and the median of the rounds counts. Then: the seconds that
one run had taken after each quarter of its steps, and the most memory that a process with 1,024
environments and 128 steps a rollout had resident, from its start to its end, imports included.
"""

from __future__ import annotations

import argparse
import datetime
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from pages import folder, machine, write_section

HERE = Path(__file__).parent
ROLLOUT, MINIBATCH, EPOCHS = 16_384, 2_048, 4
ENVS, WIDTHS, THREADS = [8, 64, 512, 1024, 4096], [16, 64, 256, 1024], [1, 2]
MIDDLE_ENVS, MIDDLE_WIDTH = 1024, 64
WARM_UP, FEWEST = 1, 2  # iterations: not counted, and counted at least
MEMORY_ENVS, MEMORY_STEPS = 1024, 128
Point = dict[str, Any]


def clocked(point: Point, goes_on: Any) -> list[tuple[float, float, int]]:
    """Train as a point says; return clock, processor time and steps at the end of iterations.

    `goes_on(clock)` is asked after each of them.
    """
    import torch

    import upslope as us

    torch.set_num_threads(point["threads"])
    clock: list[tuple[float, float, int]] = []

    def note(agent: us.PPO, _: dict[str, float]) -> bool:
        clock.append((time.perf_counter(), time.process_time(), agent.num_timesteps))
        return goes_on(clock)

    agent = us.PPO(
        "CartPole-v1",
        n_envs=point["n_envs"],
        n_steps=point["n_steps"],
        batch_size=MINIBATCH,
        n_epochs=EPOCHS,
        learning_rate=1e-3,
        ent_coef=0.01,
        policy_kwargs={"net_arch": [point["width"]] * 2},
    )
    agent.learn(10**9, callback=note)
    return clock


def measure(point: Point) -> dict[str, Any]:
    """Return what training as a point says is like: sps, per second of processor time, MiB."""

    def goes_on(clock: list[tuple[float, float, int]]) -> bool:
        played = clock[-1][0] - clock[min(WARM_UP, len(clock)) - 1][0]
        return len(clock) < WARM_UP + FEWEST or played < point["seconds"]

    clock = clocked(point, goes_on)
    (began, spent, first), (ended, spent_in_all, last) = clock[WARM_UP - 1], clock[-1]
    mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    steps = last - first
    return {"sps": steps / (ended - began), "cpu": steps / (spent_in_all - spent), "mib": mib}


def quarters(point: Point) -> dict[str, Any]:
    """Return the seconds that a run had taken after each quarter of its steps."""
    clock = np.array(clocked(point, lambda clock: clock[-1][2] < point["total"]))
    steps = clock[:, 2] - clock[0, 2]
    seconds = np.interp(steps[-1] * np.arange(1, 5) / 4, steps, clock[:, 0] - clock[0, 0])
    return {"steps": int(steps[-1]), "quarters": seconds.tolist()}


def points(chosen: argparse.Namespace) -> dict[str, Point]:
    """Return everything to measure by name, none twice."""
    shared = {"seconds": chosen.seconds}
    found = {}
    for threads in chosen.threads:
        shapes = [(n, MIDDLE_WIDTH) for n in chosen.envs]
        shapes += [(MIDDLE_ENVS, width) for width in chosen.widths]
        for n, width in shapes:
            point = {"n_envs": n, "n_steps": ROLLOUT // n, "width": width, "threads": threads}
            found[name(n, width, threads)] = point | shared
    middle = {"n_envs": MIDDLE_ENVS, "width": MIDDLE_WIDTH, "threads": max(chosen.threads)}
    found["memory"] = middle | {"n_steps": MEMORY_STEPS} | shared
    found["steps"] = middle | {"n_steps": ROLLOUT // MIDDLE_ENVS, "total": chosen.steps}
    return found


def name(n_envs: int, width: int, threads: int) -> str:
    """Return by which name a point's rounds are kept."""
    return f"{n_envs} environments, width {width}, {threads} threads"


def median(rounds: list[dict[str, Any]], key: str) -> float:
    """Return the median over the rounds."""
    return float(np.median([one[key] for one in rounds]))


def section(found: dict[str, list[dict[str, Any]]], chosen: argparse.Namespace) -> str:
    """Return the section of the page: heading, picture, tables."""
    threads = chosen.threads
    head = [f"steps per second, threads: {t}" for t in threads]
    lines = ["## Scaling", "", "![Speed over environments and width](images/scaling.png)", ""]
    lines += [f"| environments | {' | '.join(head)} |", "|---:|" + "---:|" * len(threads)]
    for n in chosen.envs:
        speeds = [median(found[name(n, MIDDLE_WIDTH, t)], "sps") for t in threads]
        lines.append(f"| {n:,} | " + " | ".join(f"{speed:,.0f}" for speed in speeds) + " |")
    pairs = [f"{unit}, threads: {t}" for t in threads for unit in ("µs per step", "grew by")]
    columns = ["width", "its square grew by", *pairs]
    lines += ["", f"| {' | '.join(columns)} |", "|---:|" + "---:|" * (len(columns) - 1)]
    for k, width in enumerate(chosen.widths):
        before = chosen.widths[k - 1] if k else None
        cells = [f"{width:,}", f"{(width / before) ** 2:.3g}" if before else ""]
        for t in threads:
            cost, earlier = (
                1e6 / median(found[name(MIDDLE_ENVS, w, t)], "sps") if w else None
                for w in (width, before)
            )
            cells += [f"{cost:.3g}", f"{cost / earlier:.2f}" if earlier else ""]
        lines.append(f"| {' | '.join(cells)} |")
    steps = found["steps"][0]["steps"]
    seconds = np.median([one["quarters"] for one in found["steps"]], axis=0)
    told = ", ".join(f"{each:.2f}" for each in seconds)
    lines += ["", f"{steps:,} steps of one run: {told} seconds after each quarter."]
    lines += [
        f"Most memory resident with {MEMORY_ENVS:,} environments and {MEMORY_STEPS} steps a "
        f"rollout, imports included: {median(found['memory'], 'mib'):.0f} MiB."
    ]
    told = f"Rounds: {len(found['steps'])}. Measured {datetime.date.today()}, {machine()}."
    return "\n".join([*lines, "", told])


def draw(found: dict[str, list[dict[str, Any]]], chosen: argparse.Namespace, path: Path) -> None:
    """Draw speed over environments, and cost over width beside a line of its square."""
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    colours = ["#4477aa", "#ee6677", "#228833", "#ccbb44"]
    for t, colour in zip(chosen.threads, colours, strict=False):
        label = f"{t} thread{'s' if t > 1 else ''}"
        speeds = [median(found[name(n, MIDDLE_WIDTH, t)], "sps") for n in chosen.envs]
        left.plot(chosen.envs, speeds, "o-", color=colour, label=label)
        costs = [1e6 / median(found[name(MIDDLE_ENVS, w, t)], "sps") for w in chosen.widths]
        right.plot(chosen.widths, costs, "o-", color=colour, label=label)
    square = costs[-1] * (np.array(chosen.widths) / chosen.widths[-1]) ** 2
    right.plot(chosen.widths, square, ":", color="#888888", label="width squared")
    left.set(xscale="log", yscale="log", xlabel="environments", xticks=chosen.envs)
    left.set_ylabel("environment steps per second of training")
    right.set(xscale="log", yscale="log", xlabel="width of both layers", xticks=chosen.widths)
    right.set_ylabel("microseconds of training per step")
    for axes, ticks in ((left, chosen.envs), (right, chosen.widths)):
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks], fontsize=8)
        axes.minorticks_off()
        low, high = axes.get_ylim()
        steps = [m * 10.0**k for k in range(-3, 8) for m in (1, 2, 5)]
        shown = [step for step in steps if low <= step <= high]
        axes.set_yticks(shown, [f"{step:,.10g}" for step in shown])
        axes.grid(color="#dddddd")
        axes.legend(fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    """Measure in turn; print, and write results, tables and picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4, help="of a point in a round, at least")
    parser.add_argument("--envs", type=int, nargs="+", default=ENVS)
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS)
    parser.add_argument("--threads", type=int, nargs="+", default=THREADS)
    parser.add_argument("--steps", type=int, default=4_000_000, help="of the run cut in quarters")
    parser.add_argument("--results", type=Path, default=HERE / "results" / "scaling.json")
    parser.add_argument("--write", type=folder, help="a folder with speed.md and images/")
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.child:
        print(json.dumps((quarters if "total" in chosen.child else measure)(chosen.child)))
        return
    found: dict[str, list[dict[str, Any]]] = {}
    for _ in range(chosen.rounds):
        for key, point in points(chosen).items():
            command = [sys.executable, __file__, "--child", json.dumps(point)]
            printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            found.setdefault(key, []).append(json.loads(printed.splitlines()[-1]))
            print(f"{key}: {found[key][-1]}", flush=True)
        chosen.results.write_text(json.dumps(found, indent=1) + "\n")
    text = section(found, chosen)
    print(text)
    if chosen.write:
        write_section(chosen.write, "scaling", text)
        draw(found, chosen, chosen.write / "images" / "scaling.png")


if __name__ == "__main__":
    main()
