"""Training speed against a plain PyTorch loop on the same shape, the two in turn.

    python benchmarks/speed.py                       # 1024 environments, 16 steps, minibatch 2048
    python benchmarks/speed.py --engine torch        # or native; auto by default
    python benchmarks/speed.py --against another.py  # that takes the shape and prints "sps NUMBER"

Prints environment steps per second of training alone (collection and updates; no set-up, no
evaluation) of each, and the ratio pair by pair with its median.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

ITERATIONS, WARM_UP = 20, 2
CHILD = "--child"


def upslope_speed(n_envs: int, n_steps: int, minibatch: int, engine: str) -> float:
    """Return Upslope's steps per second on CartPole-v1, counting what was played only."""
    import upslope as us

    clock: list[tuple[float, int]] = []
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
    agent.learn(
        10**9,
        callback=lambda agent, _: (
            clock.append((time.perf_counter(), agent.num_timesteps)) or len(clock) < ITERATIONS
        ),
    )
    (began, first), (ended, last) = clock[WARM_UP - 1], clock[-1]
    return (last - first) / (ended - began)


def measured(command: list[str]) -> float:
    """Run a script and return the number after "sps" in what it prints."""
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(re.search(r"\bsps\s+([0-9.]+)", printed)[1])


def main() -> None:
    """Measure in turn and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shape", nargs="*", type=int, default=[1024, 16, 2048])
    parser.add_argument("--against", default=str(Path(__file__).with_name("plain_loop.py")))
    parser.add_argument("--engine", choices=["auto", "native", "torch"], default="auto")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument(CHILD, action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.child:
        print("sps", upslope_speed(*chosen.shape, chosen.engine))
        return
    shape = [str(number) for number in chosen.shape]
    ratios = []
    for _ in range(chosen.pairs):
        ours = measured([sys.executable, __file__, *shape, CHILD, "--engine", chosen.engine])
        plain = measured([sys.executable, chosen.against, *shape])
        ratios.append(ours / plain)
        print(f"upslope {ours:,.0f}  plain loop {plain:,.0f}  ratio {ratios[-1]:.3f}", flush=True)
    print(f"median ratio {np.median(ratios):.3f} (from {min(ratios):.3f} to {max(ratios):.3f})")


if __name__ == "__main__":
    main()
