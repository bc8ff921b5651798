"""Training beside bare simulation: how much of the environments' own speed is left by learning.

    python benchmarks/simulation.py                            # HalfCheetah-v5 and LunarLander-v3
    python benchmarks/simulation.py --peers PEERS/bin/python --write docs   # with Stable-Baselines3

PPO with two 64-64 tanh networks, 256 environments of EnvPool on all cores (or as many as a case
says), rollouts of 16,384 steps. Bare simulation steps the same environments with actions drawn
before. Everyone takes turns (`turns.py`). Ratios are taken round by round, and the median is told
with the lowest and the highest. Stable-Baselines3 has 8 environments in its process, as its users
do, with as many steps in a rollout and the same epochs and minibatches.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np
from pages import folder, write_section
from turns import Count, counting, measured, rates, ratios

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
            measured(rounds),
        ]
    )


def main() -> None:
    """Run all, in turn, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--peers", help="a Python that has Stable-Baselines3")
    parser.add_argument("--engine", default="auto", help="of Upslope, such as bfloat16")
    parser.add_argument("--write", type=folder, help="a folder with speed.md and images/")
    parser.add_argument("--one", choices=CONTESTANTS, help=argparse.SUPPRESS)
    parser.add_argument("--count", type=Path, help=argparse.SUPPRESS)
    told = parser.parse_args()
    if told.one:
        env, n_envs, case = CASES[told.cases[0]]
        own = {"engine": told.engine} if told.one == "Upslope" else {}
        CONTESTANTS[told.one](env, n_envs, case | own, counting(told.count))
    names = [name for name in CONTESTANTS if told.peers or not name.startswith("Stable")]
    lines = [
        "| | | steps per second | of bare simulation | Upslope is faster by |",
        "|---|---|---:|---:|---:|",
    ]
    for case in told.cases:
        commands = {}
        for name in names:
            python = told.peers if name.startswith("Stable") else sys.executable
            one = ["--cases", case, "--one", name, "--engine", told.engine]
            commands[name] = [python, __file__, *one]
        found = rates(commands, told.rounds)
        ours, pure = found["Upslope"], found["bare simulation"]
        for name, own in found.items():
            cells = f"{statistics.median(own):,.0f} | {ratios(own, pure)} | {ratios(ours, own)}"
            lines.append(f"| {case} | {name} | {cells} |")
    print("\n".join(lines))
    if told.write:
        write_section(told.write, "simulation", section(lines, told.rounds))


if __name__ == "__main__":
    main()
