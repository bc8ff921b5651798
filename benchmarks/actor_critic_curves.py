"""Learning curves of actor-critic's forms, for the pages of the documentation.

    python benchmarks/actor_critic_curves.py            # all; each a few minutes on one core
    python benchmarks/actor_critic_curves.py --only traces

    actor_critic   CartPole-v1: one step, n steps, GAE, all actions
    traces         CartPole-v1, linear over tiles: traces and none
    continuing     the access-control queue: the exact gain of the policy, against the best one

Writes docs/images/NAME.png, and what it drew to benchmarks/results/actor_critic_curves.json.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch

import upslope as us

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "actor_critic_curves.json"
SEEDS = (0, 1, 2)
BASE = {"n_envs": 8, "gamma": 0.98, "learning_rate": "linear(2e-3)"}
TILES = {"tilings": 8, "tiles": 4, "low": [-2.4, -3, -0.21, -3], "high": [2.4, 3, 0.21, 3]}
TILED = {"traces": True, "n_steps": 125, "policy_kwargs": {"tiles": TILES}}
TABLE = {"setting": "average", "policy_kwargs": {"net_arch": []}}

# page: (environment, steps, {label: settings})
CURVES: dict[str, tuple[str, int, dict[str, dict[str, Any]]]] = {
    "actor_critic": (
        "CartPole-v1",
        40_000,
        {
            "one step, λ = 0": BASE | {"n_steps": 5, "gae_lambda": 0.0},
            "5 steps, λ = 1": BASE | {"n_steps": 5},
            "GAE, λ = .9, 16 steps": BASE
            | {"n_steps": 16, "gae_lambda": 0.9, "normalize_advantage": True},
            "all actions, λ = .9": BASE
            | {"update": "all_actions", "n_steps": 16, "gae_lambda": 0.9},
        },
    ),
    "traces": (
        "CartPole-v1",
        20_000,
        {
            "λ = .9": TILED | {"n_envs": 8, "learning_rate": 0.02, "critic_learning_rate": 0.06},
            "λ = 0": TILED
            | {"n_envs": 8, "learning_rate": 0.02, "critic_learning_rate": 0.06}
            | {"actor_trace": 0.0, "critic_trace": 0.0},
        },
    ),
    "continuing": (
        "upslope/AccessControl-v0",
        200_000,
        {
            "traces, N = 32": TABLE
            | {"traces": True, "n_envs": 32, "n_steps": 125, "average_learning_rate": 0.05}
            | {"learning_rate": "linear(0.1)", "critic_learning_rate": "linear(0.5)"},
            "GAE, N = 64": TABLE
            | {"n_envs": 64, "n_steps": 16, "gae_lambda": 0.9, "learning_rate": "linear(2e-2)"}
            | {"average_learning_rate": 0.05, "ent_coef": 0.01},
        },
    ),
}


def gain(agent: us.ActorCritic) -> float:
    """Return the exact average reward of the policy as it is, not of its best action."""
    with torch.no_grad():
        log_probs = agent.policy.distribution(torch.arange(44)).log_probs
    policy = log_probs.double().softmax(1)
    solved = us.exact.solve(us.exact.access_control_queue(), policy, setting="average")
    return float(solved.objective)


def learn(page: str, settings: dict[str, Any], seed: int) -> tuple[list[int], list[float], float]:
    """Return steps, the curve and the seconds of one run; of the queue, the policy's exact gain."""
    env, total, _ = CURVES[page]
    agent, steps, curve = us.ActorCritic(env, seed=seed, **settings), [], []

    def note(agent: us.ActorCritic, metrics: dict[str, float]) -> None:
        if agent.num_timesteps >= (len(steps) + 1) * total // 40:
            steps.append(agent.num_timesteps)
            found = gain(agent) if page == "continuing" else metrics.get("episode_return", np.nan)
            curve.append(found)

    began = time.perf_counter()
    agent.learn(total, note)
    return steps, curve, time.perf_counter() - began


def draw(page: str, drawn: dict[str, dict[str, Any]]) -> None:
    """Draw each seed thinly and their mean."""
    figure, axes = plt.subplots(figsize=(6.4, 4), layout="constrained")
    for number, (label, runs) in enumerate(drawn.items()):
        colour = f"C{number}"
        for steps, curve in zip(runs["steps"], runs["curves"], strict=True):
            axes.plot(steps, curve, color=colour, alpha=0.3, linewidth=0.8)
        shortest = min(len(curve) for curve in runs["curves"])
        mean = np.mean([curve[:shortest] for curve in runs["curves"]], axis=0)
        axes.plot(runs["steps"][0][:shortest], mean, color=colour, linewidth=2, label=label)
    queue = page == "continuing"
    if queue:
        best = us.exact.policy_iteration(us.exact.access_control_queue(), setting="average")
        axes.axhline(float(best.objective), color="black", linestyle=":", label="the best policy")
        axes.set_ylim(2.2, 2.8)
    axes.set_xlabel("environment steps")
    axes.set_ylabel("exact gain of the policy" if queue else "return, mean of 100 episodes")
    axes.legend()
    figure.savefig(ROOT / "docs" / "images" / f"{page}.png", dpi=120)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=list(CURVES))
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for page in [chosen.only] if chosen.only else CURVES:
        kept[page] = {}
        for label, settings in CURVES[page][2].items():
            runs = [learn(page, settings, seed) for seed in SEEDS]
            steps, curves, seconds = zip(*runs, strict=True)
            kept[page][label] = {"steps": steps, "curves": curves, "seconds": seconds}
            last = [round(curve[-1], 4) for curve in curves]
            print(f"{page}: {label}: last {last}, {np.median(seconds):.0f} s", flush=True)
        draw(page, kept[page])
        RESULTS.write_text(json.dumps(kept) + "\n")


if __name__ == "__main__":
    main()
