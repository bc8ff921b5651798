"""Training beside bare simulation: how much of the environments' own speed is left by learning.

    python benchmarks/simulation.py                            # HalfCheetah-v5 and LunarLander-v3
    python benchmarks/simulation.py --peers PEERS/bin/python --write docs   # with Stable-Baselines3

PPO with two 64-64 tanh networks, 256 environments of EnvPool on all cores (or as many as a case
says), rollouts of 16,384 steps. Bare simulation steps the same environments with actions drawn
before. Everyone is a process of its own, and they take turns: all others are stopped meanwhile. A
turn is of whole iterations, for two seconds or more, so that what the machine does besides touches
everyone alike. Ratios are taken round by round, and the median is told with the lowest and the
highest. Set-up and evaluation are in no turn. Stable-Baselines3 has 8 environments in its process,
as its users do, with as many steps in a rollout and the same epochs and minibatches.
"""

from __future__ import annotations

import argparse
import datetime
import mmap
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from pages import folder, machine, write_section

SECONDS = 2.0  # of a turn, at least
WARM = 3  # times that steps are counted before the first turn
STEPS = 16_384  # of a rollout
CASES: dict[str, tuple[str, int, dict[str, Any]]] = {  # environment, how many, settings of PPO
    "HalfCheetah-v5, 10 epochs, minibatches of 2,048": (
        "HalfCheetah-v5",
        256,
        {"batch_size": 2048, "n_epochs": 10},
    ),
    "the same, 1,024 environments": (
        "HalfCheetah-v5",
        1024,
        {"batch_size": 2048, "n_epochs": 10},
    ),
    "HalfCheetah-v5, 10 epochs, minibatches of 64": (
        "HalfCheetah-v5",
        256,
        {"batch_size": 64, "n_epochs": 10},
    ),
    "LunarLander-v3, 4 epochs, minibatches of 2,048": (
        "LunarLander-v3",
        256,
        {"batch_size": 2048, "n_epochs": 4},
    ),
}


Count = Callable[[int], None]
"""Told how many steps were taken so far, at the end of each iteration."""


def bare(env: str, n_envs: int, _: dict[str, Any], count: Count) -> None:
    """Step with actions that are there already."""
    from upslope.rollout.envpool import EnvPoolVectorEnv

    vector = EnvPoolVectorEnv(env, n_envs)
    draws = np.random.default_rng(0)
    space = vector.single_action_space
    shape = (256, n_envs, *space.shape)
    actions = (
        draws.uniform(-1, 1, shape).astype(np.float32)
        if space.shape
        else draws.integers(space.n, size=shape)
    )
    vector.reset(seed=0)
    steps = 0
    while True:
        _, _, terminated, truncated, _ = vector.step(actions[steps % 256])
        ended = terminated | truncated
        if ended.any():
            vector.reset(options={"reset_mask": ended})
        steps += 1
        if steps * n_envs % STEPS == 0:
            count(steps * n_envs)


def upslope(env: str, n_envs: int, case: dict[str, Any], count: Count) -> None:
    """Train."""
    import upslope as us

    agent = us.PPO(env, n_envs=n_envs, n_steps=STEPS // n_envs, learning_rate=3e-4, **case)
    agent.learn(10**12, callback=lambda agent, _: count(agent.num_timesteps))


def stable_baselines3(env: str, _: int, case: dict[str, Any], count: Count) -> None:
    """Train."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env

    class Note(BaseCallback):  # type: ignore[misc]
        def _on_step(self) -> bool:
            return True

        def _on_rollout_start(self) -> None:
            count(self.num_timesteps)

    model = PPO("MlpPolicy", make_vec_env(env, 8), n_steps=STEPS // 8, device="cpu", **case)
    model.learn(10**12, callback=Note())


CONTESTANTS = {
    "bare simulation": bare,
    "Upslope": upslope,
    "Stable-Baselines3, 8 environments": stable_baselines3,
}


class Contestant:
    """A process that trains, or only simulates, while it is not stopped."""

    def __init__(self, python: str, case: str, name: str, shared: Path) -> None:
        path = shared / f"{list(CONTESTANTS).index(name)}"
        path.write_bytes(bytes(8))
        self.steps = counter(path)
        command = [python, __file__, "--cases", case, "--one", name, "--count", str(path)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
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


def counter(path: Path) -> memoryview:
    """Return a number that several processes share, as one of 64 bits."""
    with path.open("r+b") as file:
        return memoryview(mmap.mmap(file.fileno(), 8)).cast("q")


def spread(found: list[float]) -> str:
    """Return the median with the lowest and the highest."""
    return f"{statistics.median(found):.2f} ({min(found):.2f} to {max(found):.2f})"


def section(lines: list[str], rounds: int) -> str:
    """Return the section of the page on speed."""
    return "\n".join(
        [
            "## Training beside bare simulation",
            "",
            "256 environments of EnvPool unless the table says otherwise, rollouts of "
            f"{STEPS:,} steps, two 64-64 networks. In brackets the lowest and the highest of the "
            "rounds.",
            "",
            *lines,
            "",
            f"{rounds} rounds of turns of two seconds or more; who has no turn is stopped. "
            f"Measured {datetime.date.today()}, {machine()}.",
        ]
    )


def main() -> None:
    """Run all, in turn, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--peers", help="a Python that has Stable-Baselines3")
    parser.add_argument("--write", type=folder, help="a folder with speed.md and images/")
    parser.add_argument("--one", choices=CONTESTANTS, help=argparse.SUPPRESS)
    parser.add_argument("--count", type=Path, help=argparse.SUPPRESS)
    told = parser.parse_args()
    if told.one:
        steps = counter(told.count)

        def count(number: int) -> None:
            steps[0] = number

        CONTESTANTS[told.one](*CASES[told.cases[0]], count)
    names = [name for name in CONTESTANTS if told.peers or not name.startswith("Stable")]
    lines = [
        "| | | steps per second | of bare simulation | Upslope is faster by |",
        "|---|---|---:|---:|---:|",
    ]
    for case in told.cases:
        found: dict[str, list[float]] = {name: [] for name in names}
        with ExitStack() as stack:
            shared = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            pythons = [
                told.peers if name.startswith("Stable") else sys.executable for name in names
            ]
            contestants = {
                name: stack.enter_context(Contestant(python, case, name, shared))
                for python, name in zip(pythons, names, strict=True)
            }
            for _ in range(told.rounds):
                for name, contestant in contestants.items():
                    found[name].append(contestant.turn())
        for name in names:
            rates, ours, pure = found[name], found["Upslope"], found["bare simulation"]
            share = spread([rate / top for rate, top in zip(rates, pure, strict=True)])
            ratio = spread([own / rate for own, rate in zip(ours, rates, strict=True)])
            line = f"| {case} | {name} | {statistics.median(rates):,.0f} | {share} | {ratio} |"
            lines.append(line)
    print("\n".join(lines))
    if told.write:
        write_section(told.write, "simulation", section(lines, told.rounds))


if __name__ == "__main__":
    main()
