"""What the epochs and the clip of PPO buy: the learning curves of `docs/ppo.md`.

    python benchmarks/ppo_curves.py
    python benchmarks/ppo_curves.py --seeds 100 101 --steps 20000

CartPole-v1, the mean return of the last 100 episodes while learning. The rung below is actor-critic
with the same advantage: a rollout gives one step. Then minibatches, then epochs, with the clip and
without, at two step sizes. clip_range=1 is as good as none: only a ratio above 2 is still stopped.
Lines are means over seeds, bands their range; what is printed is explained in `value_curves.py`.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from matplotlib.figure import Figure
from value_curves import PICTURES, draw

import upslope as us

POLE: dict[str, Any] = {"n_envs": 8, "n_steps": 128, "gae_lambda": 0.95, "batch_size": 256}
PARTS: dict[str, dict[str, Any]] = {
    "one step to a rollout (actor-critic)": {"n_epochs": 1, "batch_size": 1024},
    "4 minibatches, 1 epoch": {"n_epochs": 1},
    "10 epochs, clip 0.2 (PPO)": {"n_epochs": 10},
    "10 epochs, no clip": {"n_epochs": 10, "clip_range": 1.0},
}


def main() -> None:
    """Train, and draw `docs/images/ppo.png`."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--steps", type=int, default=60_000)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    figure = Figure(figsize=(11, 4.2), dpi=110, layout="constrained")
    for axes, rate in zip(figure.subplots(1, 2, sharey=True), (1e-3, 1e-2), strict=True):
        print(f"learning_rate={rate:g}")
        draw(axes, us.PPO, "CartPole-v1", PARTS, chosen, learning_rate=rate, **POLE)
        axes.set_title(f"CartPole-v1, learning_rate={rate:g}", loc="left", fontsize=11)
    figure.savefig(PICTURES / "ppo.png")


if __name__ == "__main__":
    main()
