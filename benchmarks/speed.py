"""Training speed against a plain PyTorch loop and, where they are, other libraries, in turn.

    python benchmarks/speed.py                       # 1024 environments, 16 steps, minibatch 2048
    python benchmarks/speed.py 4096 16 8192          # another shape
    python benchmarks/speed.py --engine torch        # or native, bfloat16; auto by default; both
    python benchmarks/speed.py --peers PEERS/bin/python --write docs
    python benchmarks/speed.py --against another.py  # that takes the shape and prints "sps NUMBER"

PPO on CartPole-v1 with two 64-64 tanh networks and four epochs. Prints environment steps per second
of training alone (collection and updates; no set-up, no compilation, no evaluation): the median of
the rounds, in each of which everyone runs once, with the ratio to the first, round by round. The
machine's own rate of float32 matrix products is measured in each round too; 233 kFLOP a step over
it are the arithmetic limit. Steps per second of processor time tell what a step costs where other
programs run. PEERS is an environment with requirements-peers.txt.
"""

from __future__ import annotations

import argparse
import datetime
import re
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from pages import folder, machine, write_section

ITERATIONS, WARM_UP = 20, 2
HERE = Path(__file__).parent
FLOP_PER_STEP = 233e3  # 4 epochs of 53.7 kFLOP forward and backward, and one pass forward
BESIDE: dict[str, Any] = {"textcoords": "offset points", "va": "center"}
FEW_ENVIRONMENTS = 64  # of libraries that step them one by one, with as many steps in a rollout


def upslope_speed(n_envs: int, n_steps: int, minibatch: int, engine: str) -> tuple[float, float]:
    """Return steps per second and per second of processor time, of what was played only."""
    import upslope as us

    clock: list[tuple[float, float, int]] = []

    def note(agent: us.PPO, _: dict[str, float]) -> bool:
        clock.append((time.perf_counter(), time.process_time(), agent.num_timesteps))
        return len(clock) < ITERATIONS

    agent = us.PPO(
        "CartPole-v1",
        n_envs=n_envs,
        n_steps=n_steps,
        batch_size=minibatch,
        n_epochs=4,
        learning_rate=1e-3,
        ent_coef=0.01,
        engine=engine,
    )
    agent.learn(10**9, callback=note)
    (began, spent, first), (ended, spent_in_all, last) = clock[WARM_UP - 1], clock[-1]
    return (last - first) / (ended - began), (last - first) / (spent_in_all - spent)


def matrix_speed() -> tuple[float, float]:
    """Return how many steps of training matrix products allow, per second and processor time."""
    import torch

    a, b = torch.randn(2, 2048, 2048).unbind()
    times = []
    for _ in range(20):
        began, spent = time.perf_counter(), time.process_time()
        torch.mm(a, b)
        times.append((time.perf_counter() - began, time.process_time() - spent))
    seconds, cpu = np.median(times, axis=0).tolist()
    steps = 2 * 2048**3 / FLOP_PER_STEP
    return steps / seconds, steps / cpu


def measured(command: list[str]) -> list[float]:
    """Run a script; return the numbers after "sps", "cpu" and "mib" in what it prints."""
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = [re.search(rf"\b{name}\s+([0-9.]+)", printed) for name in ("sps", "cpu", "mib")]
    return [float(number[1]) if number else float("nan") for number in found]


def contestants(chosen: argparse.Namespace) -> dict[str, list[str]]:
    """Return everyone's command, by what the table calls them."""
    shape = [str(number) for number in chosen.shape]
    engines = ["native", "torch"] if chosen.engine == "both" else [chosen.engine]
    own = [sys.executable, __file__]
    found = {f"Upslope, {each}": [*own, *shape, "--child", each] for each in engines}
    found["plain PyTorch loop"] = [sys.executable, chosen.against, *shape]
    if chosen.peers:
        peers = [chosen.peers, str(HERE / "peers.py")]
        steps = chosen.shape[0] * chosen.shape[1] // FEW_ENVIRONMENTS
        few = [str(FEW_ENVIRONMENTS), str(steps), shape[2]]
        found["rejax"] = [*peers, "rejax", *shape]
        found["sbx, 64 environments"] = [*peers, "sbx", *few]
        found["Stable-Baselines3, 64 environments"] = [*peers, "sb3", *few]
    found["arithmetic limit"] = [*own, "--child", "matrix"]
    return found


def table(found: dict[str, list[list[float]]]) -> str:
    """Return the table in Markdown: medians, and medians of the ratios in each round."""
    numbers = {name: np.array(rows).T for name, rows in found.items()}
    first, limit = next(iter(numbers.values())), numbers["arithmetic limit"]
    lines = [
        "| | steps per second | the first is faster by | share of the limit "
        "| per second of processor time | the first by | share of the limit | MiB |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, (sps, cpu, mib) in numbers.items():
        cells = [name]
        for speed, of_first, most in ((sps, first[0], limit[0]), (cpu, first[1], limit[1])):
            ratio, share = np.median(of_first / speed), np.median(speed / most)
            cells += [f"{np.median(speed):,.0f}", f"{ratio:.2f}", f"{share:.1%}"]
        cells.append(f"{np.median(mib):.0f}")
        lines.append(f"| {' | '.join(cells)} |".replace("nan%", "").replace("nan", ""))
    wall, cpu = np.median(limit[:2], axis=1) * FLOP_PER_STEP / 1e9
    rates = f"{wall:.0f} GFLOP/s, {cpu:.0f} per second of processor time"
    return "\n".join([*lines, "", f"Matrix products: {rates}. {limit.shape[1]} rounds."])


def section(shape: list[int], text: str) -> str:
    """Return the section of the page on speed: heading, picture, table."""
    shape = "{:,} environments, {} steps a rollout, minibatches of {:,}".format(*shape)
    return f"""## PPO on CartPole-v1

![Steps per second, from the slowest round to the fastest](images/speed.png)

{shape}, unless the table says otherwise.

{text}

Measured {datetime.date.today()}, {machine()}."""


def draw(speeds: dict[str, list[float]], path: Path) -> None:
    """Draw a bar for each contestant, from the slowest round to the fastest."""
    import matplotlib.pyplot as plt

    names = list(speeds)[::-1]
    middle = [float(np.median(speeds[name])) for name in names]
    spread = [[m - min(speeds[n]) for n, m in zip(names, middle, strict=True)]]
    spread.append([max(speeds[n]) - m for n, m in zip(names, middle, strict=True)])
    figure, axes = plt.subplots(figsize=(8, 0.5 * len(names) + 1), layout="constrained")
    colors = ["#4477aa" if name.startswith("Upslope") else "#b0b7bf" for name in names]
    axes.barh(names, middle, xerr=spread, color=colors, ecolor="#555555", capsize=3)
    for row, (median, above) in enumerate(zip(middle, spread[1], strict=True)):
        axes.annotate(f"{median:,.0f}", (median + above, row), (6, 0), **BESIDE)
    axes.margins(x=0.15)
    axes.locator_params(axis="x", nbins=5)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("environment steps per second of training, PPO on CartPole-v1")
    figure.savefig(path, dpi=120)


def main() -> None:
    """Measure in turn and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shape", nargs="*", type=int, default=[1024, 16, 2048])
    parser.add_argument("--against", default=str(HERE / "plain_loop.py"))
    parser.add_argument(
        "--engine", choices=["auto", "native", "bfloat16", "torch", "both"], default="auto"
    )
    parser.add_argument("--peers", help="the Python of an environment with the other libraries")
    parser.add_argument("--pairs", "--rounds", dest="rounds", type=int, default=5)
    parser.add_argument("--write", type=folder, help="a folder with speed.md and images/")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.child:
        matrix = chosen.child == "matrix"
        speed, cpu = matrix_speed() if matrix else upslope_speed(*chosen.shape, chosen.child)
        mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print("sps", speed, "cpu", cpu, "mib", mib)
        return
    commands = contestants(chosen)
    found: dict[str, list[list[float]]] = {name: [] for name in commands}
    for _ in range(chosen.rounds):
        for name, command in commands.items():
            found[name].append(measured(command))
            print("{}: {:,.0f} ({:,.0f})".format(name, *found[name][-1]), end="  ", flush=True)
        print(flush=True)
    text = table(found)
    print(text)
    if chosen.write:
        write_section(chosen.write, "speed", section(chosen.shape, text))
        speeds = {name: [row[0] for row in rows] for name, rows in found.items()}
        draw(speeds, chosen.write / "images" / "speed.png")


if __name__ == "__main__":
    main()
