"""What each choice of Q-learning and DQN buys: the learning curves of their pages in `docs/`.

    python benchmarks/value_curves.py                       # both pictures
    python benchmarks/value_curves.py --only cliff --seeds 100 101

The cliff, CliffWalking-v1: the mean return of the last 100 episodes while learning, for each
target. CartPole-v1: the same for DQN, and for DQN with and without its parts. Lines are means over
seeds, bands their range; what the greedy policy of each seed earns in the end is printed.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import upslope as us
from upslope.agents.agent import Agent

PICTURES = Path(__file__).parents[1] / "docs" / "images"
COLORS = ("#2a78c2", "#e8743b", "#2f9e62", "#7a8790")
CLIFF: dict[str, Any] = {"n_envs": 16, "gamma": 1.0, "epsilon": 0.1, "learning_rate": 0.3}
TARGETS: dict[str, dict[str, Any]] = {
    "Q-learning": {},
    "double Q-learning": {"double": True},
    "SARSA": {"target": "sarsa"},
    "expected SARSA": {"target": "expected_sarsa"},
}
LIMIT = {"max_episode_steps": 500}  # a greedy policy may go round for ever on the cliff
POLE: dict[str, Any] = {
    **{"n_envs": 8, "gradient_steps": 2, "batch_size": 64, "learning_rate": 1e-3},
    **{"learning_starts": 500, "exploration_fraction": 0.3, "exploration_final_eps": 0.04},
    **{"target_update_interval": 400, "buffer_size": 20_000},
}
PARTS: dict[str, dict[str, Any]] = {
    "DQN": {},
    "double, n = 3": {"double": True, "n_steps": 3},
    "without a target network": {"target_update_interval": 8},
    "without replay": {"buffer_size": 64},
}


def curve(agent: Agent[Any], steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Return environment steps, and the mean return of the last 100 episodes then."""
    rows: list[tuple[int, float]] = []

    def note(agent: Agent[Any], row: dict[str, float]) -> None:
        if "episode_return" in row:
            rows.append((agent.num_timesteps, row["episode_return"]))

    agent.learn(steps, note)
    found = np.array(rows)
    return found[:, 0], found[:, 1]


def draw(
    axes: Axes,
    kind: type[Agent[Any]],
    env: str,
    variants: dict[str, dict[str, Any]],
    chosen: argparse.Namespace,
    **settings: Any,
) -> None:
    """Train every variant with every seed, and draw a line and a band for each."""
    for (name, change), color in zip(variants.items(), COLORS, strict=True):
        grid = np.linspace(0.02, 1, 100) * chosen.steps
        lines, ends = [], []
        for seed in chosen.seeds:
            agent = kind(env, seed=seed, **(settings | change))
            steps, returns = curve(agent, chosen.steps)
            lines.append(np.interp(grid, steps, returns))
            ends.append(us.evaluate_policy(agent, env, 20, env_kwargs=LIMIT)[0])
        every = np.array(lines)
        axes.plot(grid, every.mean(0), color=color, lw=1.8, label=name)
        axes.fill_between(grid, every.min(0), every.max(0), color=color, alpha=0.15, lw=0)
        online = every[:, -20:].mean()
        print(f"{env} {name}: {online:.1f} while learning; greedy, by seed: {ends}", flush=True)
    axes.legend(frameon=False, loc="best")
    axes.set_xlabel("environment steps")
    axes.set_ylabel("return (mean of the last 100 episodes)")
    axes.set_title(env, loc="left", fontsize=11)
    axes.grid(lw=0.5, alpha=0.5)
    axes.spines[["top", "right"]].set_visible(False)


def main() -> None:
    """Train, draw `docs/images/q_learning.png` and `docs/images/dqn.png`."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", choices=("cliff", "pole"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=20_000)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    for name, picture in (("cliff", "q_learning.png"), ("pole", "dqn.png")):
        if chosen.only not in (None, name):
            continue
        figure = Figure(figsize=(8, 4.5), dpi=110, layout="constrained")
        axes = figure.subplots()
        if name == "cliff":
            draw(axes, us.QLearning, "CliffWalking-v1", TARGETS, chosen, **CLIFF)
            axes.set_ylim(-120, 0)
        else:
            draw(axes, us.DQN, "CartPole-v1", PARTS, chosen, **POLE)
        figure.savefig(PICTURES / picture)


if __name__ == "__main__":
    main()
