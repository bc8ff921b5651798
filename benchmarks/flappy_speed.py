"""Frames per second of `upslope/FlappyBird-v0`, stepped through its vectorised entry point.

    python benchmarks/flappy_speed.py [--birds 4096] [--repeats 15] [--seconds 0.5]

Three ways to play, measured in turn and over again, so that a busy moment of the machine touches
all of them: a flap with probability 0.1 (birds soon die, and start anew), a flap only when the bird
would else sink below its gap (they live for thousands of frames), and never a flap (all die on the
same frame). The choice of the actions is not counted. The process runs on one thread, so frames per
second of processor time say what the machine would do if nothing else ran on it.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import gymnasium
import numpy as np
from numpy.typing import NDArray

import upslope.envs

Policy = Callable[[NDArray[np.float32]], NDArray[np.int64]]


@dataclass
class Measured:
    """One policy's repeats."""

    wall: list[float] = field(default_factory=list)  # frames per second
    processor: list[float] = field(default_factory=list)  # frames per second of processor time
    frames: int = 0
    ends: int = 0


def policies(birds: int) -> dict[str, Policy]:
    """Name the ways to play."""
    rng = np.random.default_rng(0)
    random_actions = (rng.random((64, birds)) < 0.1).astype(np.int64)

    def careful(seen: NDArray[np.float32]) -> NDArray[np.int64]:
        floor = 512 * np.where(seen[:, 0] < 10 / 288, seen[:, 5], seen[:, 2])
        floor[floor > 500] = 256  # no pipe in view
        fallen = 512 * seen[:, 9] + 24 + np.minimum(10 * seen[:, 10] + 1, 10)
        return (fallen > floor).astype(np.int64)

    return {
        "random, 0.1": lambda seen: random_actions[rng.integers(64)],
        "careful": careful,
        "never": lambda seen: np.zeros(birds, np.int64),
    }


def measure(birds: int, repeats: int, seconds: float) -> dict[str, Measured]:
    """Return what each policy reached."""
    games = {}
    for name, policy in policies(birds).items():
        env = gymnasium.make_vec("upslope/FlappyBird-v0", num_envs=birds)
        seen, _ = env.reset(seed=0)
        for _ in range(200):  # warm up, and let the birds' ages spread
            seen = env.step(policy(seen))[0]
        games[name] = (env, policy, seen)
    results = {name: Measured() for name in games}
    for _ in range(repeats):
        for name, (env, policy, seen) in games.items():
            result, steps, wall, processor = results[name], 0, 0.0, 0.0
            while wall < seconds:
                actions = policy(seen)
                begin, begin_processor = time.perf_counter(), time.process_time()
                seen, _, terminated, _, _ = env.step(actions)
                processor += time.process_time() - begin_processor
                wall += time.perf_counter() - begin
                steps += 1
                result.ends += int(terminated.sum())
            games[name] = (env, policy, seen)
            result.frames += steps * birds
            result.wall.append(steps * birds / wall)
            result.processor.append(steps * birds / processor)
    return results


def main() -> None:
    """Print one line per way to play."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--birds", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=0.5, help="measured time of one repeat")
    args = parser.parse_args()
    upslope.envs.register()
    print(f"{args.birds} birds, numpy {np.__version__}, Python {platform.python_version()}")
    print("million frames per second, median (range)")
    for name, result in measure(args.birds, args.repeats, args.seconds).items():
        told = [
            f"{np.median(rates) / 1e6:6.2f} ({min(rates) / 1e6:.2f} to {max(rates) / 1e6:.2f})"
            for rates in (result.wall, result.processor)
        ]
        every = result.frames // max(result.ends, 1)
        print(f"{name:12} wall {told[0]}, processor {told[1]}; an end every {every} frames")


if __name__ == "__main__":
    main()
