"""Training speed of other libraries on CartPole-v1, same network, epochs and minibatch as speed.py.

    PEERS/bin/python benchmarks/peers.py sb3 ENVS STEPS MINIBATCH    prints sps, cpu, mib

sb3 (Stable-Baselines3), sbx (the same in JAX) and rejax (JAX, the environment compiled too). Two
64-64 tanh networks, four epochs; collection and updates, after warming up and compiling.
"""

from __future__ import annotations

import resource
import sys
import time
from typing import Any

ITERATIONS, WARM_UP, EPOCHS = 10, 2, 4
Speed = tuple[float, float]  # steps per second, and per second of processor time
SHARED = {"n_epochs": EPOCHS, "learning_rate": 1e-3, "ent_coef": 0.01, "gae_lambda": 0.95}


def loop_speed(algorithm: Any, n_envs: int, n_steps: int, minibatch: int, **kwargs: Any) -> Speed:
    """Return the speed of a library with Stable-Baselines3's interface."""
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env

    clock: list[tuple[float, float, int]] = []

    class Clock(BaseCallback):
        def _on_rollout_start(self) -> None:
            clock.append((time.perf_counter(), time.process_time(), self.num_timesteps))

        def _on_step(self) -> bool:
            return True

    envs = make_vec_env("CartPole-v1", n_envs)
    given = {"n_steps": n_steps, "batch_size": minibatch, "device": "cpu"} | SHARED | kwargs
    agent = algorithm("MlpPolicy", envs, **given)
    agent.learn((ITERATIONS + 1) * n_envs * n_steps, callback=Clock())
    (began, spent, first), (ended, spent_in_all, last) = clock[WARM_UP], clock[-1]
    return (last - first) / (ended - began), (last - first) / (spent_in_all - spent)


def sb3(n_envs: int, n_steps: int, minibatch: int) -> Speed:
    from stable_baselines3 import PPO

    return loop_speed(PPO, n_envs, n_steps, minibatch)


def sbx(n_envs: int, n_steps: int, minibatch: int) -> Speed:
    from flax import linen
    from sbx import PPO

    return loop_speed(PPO, n_envs, n_steps, minibatch, policy_kwargs={"activation_fn": linen.tanh})


def rejax(n_envs: int, n_steps: int, minibatch: int) -> Speed:
    import jax
    from rejax import PPO

    total = ITERATIONS * n_envs * n_steps
    algorithm = PPO.create(
        env="CartPole-v1",
        num_envs=n_envs,
        num_steps=n_steps,
        num_epochs=EPOCHS,
        num_minibatches=n_envs * n_steps // minibatch,
        learning_rate=1e-3,
        ent_coef=0.01,
        total_timesteps=total,
        eval_freq=total,
        skip_initial_evaluation=True,
        agent_kwargs={"activation": "tanh", "hidden_layer_sizes": (64, 64)},
    ).replace(eval_callback=lambda *_: ())  # no evaluation
    train = jax.jit(algorithm.train).lower(jax.random.PRNGKey(0)).compile()
    jax.block_until_ready(train(jax.random.PRNGKey(0)))
    began, spent = time.perf_counter(), time.process_time()
    jax.block_until_ready(train(jax.random.PRNGKey(1)))
    return total / (time.perf_counter() - began), total / (time.process_time() - spent)


if __name__ == "__main__":
    run = {"sb3": sb3, "sbx": sbx, "rejax": rejax}[sys.argv[1]]
    speed, per_cpu = run(*map(int, sys.argv[2:5]))
    print(
        "sps",
        speed,
        "cpu",
        per_cpu,
        "mib",
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    )
