"""Training beside bare simulation: how much of the environments' own speed is left by learning.

    python benchmarks/simulation.py                            # HalfCheetah-v5 and LunarLander-v3
    python benchmarks/simulation.py --peers PEERS/bin/python --write docs   # with Stable-Baselines3

PPO with two 64-64 tanh networks, 256 environments of EnvPool on all cores (or as many as a case
says), rollouts of 16,384 steps. Bare simulation steps the same environments with actions drawn
before. In each round everyone runs once, each in a process of its own; ratios are taken round by
round, and the median is told with the lowest and the highest. Steps per second are those of
training alone, from one update's end to another's; reset, set-up and evaluation are not in it.
Stable-Baselines3 has 8 environments in this process, as its users do, with as many steps in a
rollout and the same epochs and minibatches.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import statistics
import subprocess
import sys
import time
from typing import Any

import numpy as np
from pages import folder, machine, write_section

SECONDS = 6.0
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


def bare(env: str, n_envs: int, _: dict[str, Any]) -> float:
    """Return steps per second with actions that are there already."""
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
    steps, began = 0, 0.0
    while not began or time.perf_counter() - began < SECONDS:
        _, _, terminated, truncated, _ = vector.step(actions[steps % 256])
        ended = terminated | truncated
        if ended.any():
            vector.reset(options={"reset_mask": ended})
        steps += 1
        if steps == 64:
            began = time.perf_counter()
    return (steps - 64) * n_envs / (time.perf_counter() - began)


def upslope(env: str, n_envs: int, case: dict[str, Any]) -> float:
    """Return steps per second of training."""
    import upslope as us

    clock: list[tuple[float, int]] = []

    def note(agent: us.PPO, _: dict[str, float]) -> bool:
        clock.append((time.perf_counter(), agent.num_timesteps))
        return clock[-1][0] - clock[0][0] < SECONDS

    agent = us.PPO(env, n_envs=n_envs, n_steps=STEPS // n_envs, learning_rate=3e-4, **case)
    agent.learn(10**9, callback=note)
    (began, first), (ended, last) = clock[1], clock[-1]
    return (last - first) / (ended - began)


def stable_baselines3(env: str, _: int, case: dict[str, Any]) -> float:
    """Return steps per second of training."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env

    clock: list[tuple[float, int]] = []

    class Note(BaseCallback):  # type: ignore[misc]
        def _on_step(self) -> bool:
            return True

        def _on_rollout_start(self) -> None:
            clock.append((time.perf_counter(), self.num_timesteps))
            if clock[-1][0] - clock[0][0] > 2 * SECONDS and len(clock) > 2:
                raise StopIteration

    model = PPO("MlpPolicy", make_vec_env(env, 8), n_steps=STEPS // 8, device="cpu", **case)
    with contextlib.suppress(StopIteration):
        model.learn(10**9, callback=Note())
    (began, first), (ended, last) = clock[1], clock[-1]
    return (last - first) / (ended - began)


CONTESTANTS = {
    "bare simulation": bare,
    "Upslope": upslope,
    "Stable-Baselines3, 8 environments": stable_baselines3,
}


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
            f"{rounds} rounds. Measured {datetime.date.today()}, {machine()}.",
        ]
    )


def main() -> None:
    """Run all, in turn, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peers", help="a Python that has Stable-Baselines3")
    parser.add_argument("--write", type=folder, help="a folder with speed.md and images/")
    parser.add_argument("--one", choices=CONTESTANTS, help=argparse.SUPPRESS)
    told = parser.parse_args()
    if told.one:
        print(f"sps {CONTESTANTS[told.one](*CASES[told.cases[0]]):.1f}")
        return
    names = [name for name in CONTESTANTS if told.peers or not name.startswith("Stable")]
    lines = [
        "| | | steps per second | of bare simulation | Upslope is faster by |",
        "|---|---|---:|---:|---:|",
    ]
    for case in told.cases:
        found: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(told.rounds):
            for name in names:
                python = told.peers if name.startswith("Stable") else sys.executable
                command = [python, __file__, "--cases", case, "--one", name]
                out = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
                found[name].append(float(out.rpartition("sps ")[2]))
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
