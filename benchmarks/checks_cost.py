"""What the checks of every step cost: PPO on CartPole with all of them on and all of them off.

    python benchmarks/checks_cost.py                         # 1, 8 and 64 environments
    python benchmarks/checks_cost.py --envs 8 --pairs 1000

Off means: what the environments give is copied and looked at no more, actions are not looked at,
nor is the norm of a gradient. No setting does that; it is done here, from outside. One agent learns
on, an iteration with them and one without in turn. Prints the median time of both, and how fast
learning with them is in shares of learning without: the median of the pairs, between its quarters.
Time of one thread of the processor, which other programs do not add to.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import torch

import upslope as us
from upslope.engine.torch_engine import TorchEngine
from upslope.rollout.checks import Checks
from upslope.rollout.stream import Stream


def copied(self: Checks, part: Any, bounds: Any, limits: Any, raw: Any, *_: Any) -> np.ndarray:
    """Return an observation of our own."""
    return np.array(raw, part.space.dtype)


def copied_signals(
    self: Checks, reward: Any, terminated: Any, truncated: Any, counted: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return rewards and ends of our own."""
    own = np.array(reward, np.float32)
    own[~counted] = 0
    return own, np.array(terminated, bool), np.array(truncated, bool)


OFF: dict[tuple[type, str], Any] = {
    (Checks, "_part"): copied,
    (Checks, "signals"): copied_signals,
    (Stream, "_checked_action"): lambda self, action: action,
    (TorchEngine, "check_finite"): lambda self, norm: None,
}
ON = {(kind, name): getattr(kind, name) for kind, name in OFF}


def times(n_envs: int, pairs: int) -> np.ndarray:
    """Return seconds of an iteration without them and with them, [pairs, 2]."""
    agent = us.PPO("CartPole-v1", n_envs=n_envs, n_steps=128, seed=0)
    found = np.empty((pairs, 2))
    for k in range(-5, pairs):
        for on in (k % 2, 1 - k % 2):
            for (kind, name), function in (ON if on else OFF).items():
                setattr(kind, name, function)
            began = time.process_time()
            agent.iterate()
            if k >= 0:
                found[k, on] = time.process_time() - began
    return found


def main() -> None:
    """Measure and print one line for each number of environments."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--envs", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--pairs", type=int, default=300, help="pairs of iterations")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'envs':>4} {'with':>9} {'without':>9} {'speed with them':>16}  quarters")
    for n_envs in chosen.envs:
        found = times(n_envs, chosen.pairs)
        without, with_them = 1e3 * np.median(found, axis=0)
        low, middle, high = np.quantile(found[:, 0] / found[:, 1], [0.25, 0.5, 0.75])
        between = f"{low:.1%} to {high:.1%}"
        print(f"{n_envs:4} {with_them:6.2f} ms {without:6.2f} ms {middle:16.1%}  {between}")


if __name__ == "__main__":
    main()
