"""What each rung of REINFORCE buys: the learning curves of `docs/reinforce.md` and `off_policy.md`.

    python benchmarks/reinforce_curves.py                  # both pictures, about two minutes
    python benchmarks/reinforce_curves.py --only cartpole --seeds 2

On-policy, CartPole-v1: the mean return of the last 100 episodes against environment steps, for each
weight and baseline, mean and range over the seeds. Off-policy, the short corridor: the exact value
of the policy that learns from episodes of a behaviour that goes right with probability 1/2.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import upslope as us
from upslope.agents.behaviour import acting
from upslope.envs.finite import FiniteVectorEnv

PICTURES = Path(__file__).parents[1] / "docs" / "images"
STEPS, UPDATES = 50_000, 100
COLORS = ("#7a8790", "#e8743b", "#2f9e62", "#2a78c2", "#b04a9a")
WEIGHTS: dict[str, dict[str, Any]] = {
    "return": {"weight": "return"},
    "reward-to-go": {},
    "reward-to-go, leave-one-out": {"baseline": "leave_one_out"},
    "reward-to-go, value": {"baseline": "value"},
}
CORRECTIONS: dict[str, dict[str, Any]] = {
    "no correction": {"importance": None, "baseline": "leave_one_out"},
    "ordinary, no baseline": {"importance": "ordinary"},
    "ordinary": {"importance": "ordinary", "baseline": "leave_one_out"},
    "self-normalised": {"importance": "self_normalized", "baseline": "leave_one_out"},
    "per decision": {"importance": "per_decision", "baseline": "leave_one_out"},
}
CORRIDOR = us.exact.short_corridor()


def cartpole(settings: dict[str, Any], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return environment steps, and the mean return of the last 100 episodes then."""
    rows: list[tuple[int, float]] = []
    agent = us.REINFORCE("CartPole-v1", seed=seed, n_steps=500, learning_rate=1e-2, **settings)
    agent.learn(STEPS, lambda a, row: rows.append((a.num_timesteps, row["episode_return"])))
    steps, returns = zip(*rows, strict=True)
    return np.array(steps), np.array(returns)


def either_way(
    observation: torch.Tensor, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Go left or right with probability 1/2 each."""
    action = torch.randint(2, (len(observation),), generator=generator)
    return action, torch.full((len(observation),), -np.log(2.0))


def corridor(settings: dict[str, Any], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the number of the update, and the exact value of the policy after it."""
    env = FiniteVectorEnv(CORRIDOR, 64, seen=[[1.0]] * 3)
    fixed = {"gamma": 1.0, "n_steps": 400, "learning_rate": 0.02, "policy_kwargs": {"net_arch": []}}
    agent = us.REINFORCE(env, seed=seed, **fixed, **settings)
    if settings["importance"] is None:  # the behaviour's episodes, taken for the policy's own
        agent.collector.behaviour = acting(either_way, agent)
    else:
        agent.behaviour = either_way
    one = torch.ones(1, 1)
    with torch.no_grad():
        agent.policy.actor[-1].bias.copy_(torch.tensor([1.0, 0.0]))  # right with .27
    values = []
    for _ in range(UPDATES):
        with torch.no_grad():
            policy = agent.policy.distribution(one).log_probs.double().softmax(1)
        values.append(us.exact.solve(CORRIDOR, policy.repeat(3, 1)).objective.item())
        agent.iterate()
    return np.arange(UPDATES), np.array(values)


def draw(
    axes: Axes,
    run: Callable[[dict[str, Any], int], tuple[np.ndarray, np.ndarray]],
    cases: dict[str, dict[str, Any]],
    seeds: int,
) -> None:
    """Draw the mean over seeds of each case, and the range; print where it ends."""
    for (name, settings), color in zip(cases.items(), COLORS, strict=False):
        curves = [run(settings, seed) for seed in range(seeds)]
        grid = np.linspace(0, max(x[-1] for x, _ in curves), 200)
        on_grid = np.array([np.interp(grid, x, y) for x, y in curves])
        axes.plot(grid, on_grid.mean(0), color=color, lw=1.5, label=name)
        axes.fill_between(grid, on_grid.min(0), on_grid.max(0), color=color, alpha=0.15, lw=0)
        ends = ", ".join(f"{y[-1]:.1f}" for _, y in curves)
        half = on_grid[:, 100].mean()
        print(f"{name:28} half-way {half:7.2f}, end {on_grid[:, -1].mean():7.2f}  ({ends})")
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def main() -> None:
    """Draw both pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=("cartpole", "corridor"))
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0 to SEEDS - 1")
    parser.add_argument("--pictures", type=Path, default=PICTURES)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "the behaviour's episodes")  # it is what is to be seen
    if options.only != "corridor":
        figure = Figure(figsize=(6, 3.6), dpi=110, layout="constrained")
        axes = figure.subplots()
        draw(axes, cartpole, WEIGHTS, options.seeds)
        axes.set(xlabel="environment steps", ylabel="return of the last 100 episodes")
        figure.savefig(options.pictures / "reinforce.png")
    if options.only != "cartpole":
        figure = Figure(figsize=(6, 3.6), dpi=110, layout="constrained")
        axes = figure.subplots()
        draw(axes, corridor, CORRECTIONS, options.seeds)
        axes.axhline(-(6 + 4 * 2**0.5), color="#22303c", ls="--", lw=1)
        axes.set(
            xlabel="update of 64 episodes", ylabel="exact value of the policy", ylim=(-25, -11)
        )
        figure.savefig(options.pictures / "off_policy.png")


if __name__ == "__main__":
    main()
