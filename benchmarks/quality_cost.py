"""What the signal-to-noise of a step costs: PPO's update with it and without it, in turn.

    python benchmarks/quality_cost.py                        # the three shapes, both engines
    python benchmarks/quality_cost.py --rounds 200 --engine native

Every update measures it in the first minibatch's own backward pass. Prints the median time of an
update with it and without it, and by how much of an update the median of the pairs differs: time of
one thread of the processor, which other programs do not add to.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

import upslope as us

SHAPES = [(1024, 16, 2048), (8, 128, 256), (8, 128, 64)]  # environments, steps, minibatch


def costs(shape: tuple[int, int, int], engine: str, rounds: int) -> tuple[float, float, float]:
    """Return milliseconds of an update with it and without it, and the share it costs."""
    n_envs, n_steps, minibatch = shape
    agent = us.PPO(
        "CartPole-v1",
        n_envs=n_envs,
        n_steps=n_steps,
        batch_size=minibatch,
        n_epochs=4,
        engine=engine,
    )
    rollout = agent.collector.collect(agent.policy, agent.prediction_generator)
    measured = agent.engine.most_chunks
    times = np.empty((rounds, 2))
    for k in range(-3, rounds):
        for on in (k % 2, 1 - k % 2):
            agent.engine.most_chunks = measured if on else 1
            began = time.process_time()
            agent.update(rollout)
            if k >= 0:
                times[k, on] = time.process_time() - began
    without, with_it = np.median(times, axis=0)
    share = np.median(times[:, 1] - times[:, 0]) / without
    return 1e3 * with_it, 1e3 * without, share


def main() -> None:
    """Measure and print one line for each shape and engine."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine", choices=["native", "torch"], help="one engine only")
    parser.add_argument("--rounds", type=int, default=100, help="pairs of updates")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'engine':8} {'envs x steps / minibatch':26} {'with':>10} {'without':>10} {'cost':>7}")
    for engine in [chosen.engine] if chosen.engine else ["native", "torch"]:
        for shape in SHAPES:
            with_it, without, share = costs(shape, engine, chosen.rounds)
            name = "{} x {} / {}".format(*shape)
            print(f"{engine:8} {name:26} {with_it:7.2f} ms {without:7.2f} ms {share:6.1%}")


if __name__ == "__main__":
    main()
