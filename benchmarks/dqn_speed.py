"""Training speed of DQN beside other libraries, in turn.

    python benchmarks/dqn_speed.py                                        # both engines
    python benchmarks/dqn_speed.py --peers PEERS/bin/python --write docs  # and SB3 and sbx

Environment steps per second of training, everything in it but set-up and evaluation. All have the
same network (relu), minibatch, learning rate, buffer and share of random actions, and take the same
number of gradient steps after the same number of environment steps, on one thread. The environments
are Gymnasium's, in the process. Everyone takes turns (`turns.py`); ratios are taken round by round,
and the median is told with the lowest and the highest. PEERS is an environment with
requirements-peers.txt.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

from pages import folder, write_section
from turns import Count, counting, measured, rates, ratios

SHARED: dict[str, Any] = {
    "learning_rate": 1e-3,
    "buffer_size": 50_000,
    "learning_starts": 1_000,
    "target_update_interval": 1_000,
    "exploration_initial_eps": 0.05,
    "exploration_final_eps": 0.05,
}
CASES: dict[str, tuple[str, int, list[int], dict[str, Any]]] = {
    "CartPole-v1, 1 environment, 64-64, 32 transitions after 4 steps": (
        "CartPole-v1",
        1,
        [64, 64],
        {"train_freq": 4, "gradient_steps": 1, "batch_size": 32},
    ),
    "CartPole-v1, 8 environments, 64-64, twice 32 after 8 steps": (
        "CartPole-v1",
        8,
        [64, 64],
        {"train_freq": 1, "gradient_steps": 2, "batch_size": 32},
    ),
    "CartPole-v1, 8 environments, 256-256, 128 times 64 after 256 steps": (
        "CartPole-v1",
        8,
        [256, 256],
        {"train_freq": 32, "gradient_steps": 128, "batch_size": 64},
    ),
    "LunarLander-v3, 8 environments, 128-128, 4 times 128 after 8 steps": (
        "LunarLander-v3",
        8,
        [128, 128],
        {"train_freq": 1, "gradient_steps": 4, "batch_size": 128},
    ),
}
ENDLESS = 10**9


def upslope(
    env: str, n_envs: int, net_arch: list[int], settings: dict[str, Any], count: Count, engine: str
) -> None:
    """Train."""
    import torch

    import upslope as us

    torch.set_num_threads(1)
    agent = us.DQN(
        env, n_envs=n_envs, policy_kwargs={"net_arch": net_arch}, engine=engine, **settings
    )
    agent.learn(ENDLESS, callback=lambda agent, _: count(agent.num_timesteps))


def peer(
    env: str, n_envs: int, net_arch: list[int], settings: dict[str, Any], count: Count, name: str
) -> None:
    """Train with Stable-Baselines3, or with sbx, its form in JAX."""
    import torch
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env

    if name == "sbx":
        from sbx import DQN
    else:
        from stable_baselines3 import DQN

    class Note(BaseCallback):  # type: ignore[misc]
        def _on_step(self) -> bool:
            return True

        def _on_rollout_start(self) -> None:
            count(self.num_timesteps)

    torch.set_num_threads(1)
    kwargs = {"net_arch": net_arch}
    model = DQN(
        "MlpPolicy", make_vec_env(env, n_envs), device="cpu", policy_kwargs=kwargs, **settings
    )
    model.learn(ENDLESS, callback=Note())


CONTESTANTS: dict[str, tuple[Any, str]] = {
    "Upslope, native": (upslope, "native"),
    "Upslope, torch": (upslope, "torch"),
    "Stable-Baselines3": (peer, "sb3"),
    "sbx": (peer, "sbx"),
}


def section(lines: list[str], rounds: int) -> str:
    """Return the section of the page on speed."""
    return "\n".join(
        [
            "## DQN",
            "",
            "Environment steps per second of training, on one thread; in brackets the lowest and "
            "the highest of the rounds. Targets of one step, not double; a target network that is "
            "renewed every 1,000 steps; 5 % of actions at random.",
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
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--peers", help="the Python of an environment with the other libraries")
    parser.add_argument("--write", type=folder, help="a folder with speed.md")
    parser.add_argument("--one", choices=CONTESTANTS, help=argparse.SUPPRESS)
    parser.add_argument("--count", type=Path, help=argparse.SUPPRESS)
    told = parser.parse_args()
    if told.one:
        train, how = CONTESTANTS[told.one]
        env, n_envs, net_arch, settings = CASES[told.cases[0]]
        train(env, n_envs, net_arch, SHARED | settings, counting(told.count), how)
    names = [name for name, (train, _) in CONTESTANTS.items() if told.peers or train is upslope]
    lines = ["| | | steps per second | Upslope is faster by |", "|---|---|---:|---:|"]
    for case in told.cases:
        commands = {}
        for name in names:
            python = sys.executable if CONTESTANTS[name][0] is upslope else told.peers
            commands[name] = [python, __file__, "--cases", case, "--one", name]
        found = rates(commands, told.rounds)
        ours = found[names[0]]
        for name, own in found.items():
            cells = f"{statistics.median(own):,.0f} | {ratios(ours, own)}"
            lines.append(f"| {case} | {name} | {cells} |")
    print("\n".join(lines))
    if told.write:
        write_section(told.write, "dqn_speed", section(lines, told.rounds))


if __name__ == "__main__":
    main()
