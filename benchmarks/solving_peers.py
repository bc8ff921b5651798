"""Time to solve with other libraries, by the same clock; started by `time_to_solve.py --peers`.

    PEERS/bin/python benchmarks/solving_peers.py sb3 CartPole-v1 SEED LIMIT

sb3 (Stable-Baselines3) and sbx (the same in JAX), with the settings that rl-baselines3-zoo tuned
for the former. Prints the result as one line of JSON. sbx compiles before the clock runs: an
iteration is trained, then weights and optimiser are put back to what they were. Torch has one
thread, as Upslope's recipes have for these environments; JAX has what it takes.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from typing import Any

from solving import TASKS, ZOO, Trial
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

EVALUATION_ENVIRONMENTS = 50
PACKAGES = {"sb3": "stable-baselines3", "sbx": "sbx-rl"}


def settings(env: str) -> dict[str, Any]:
    """Return the zoo's settings as the constructor takes them."""

    def given(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        start = float(value.removeprefix("linear(").removesuffix(")"))
        return lambda remaining: remaining * start

    return {name: given(value) for name, value in ZOO[env].items()}


class Clocked(BaseCallback):
    """Hands every finished iteration to a trial."""

    def __init__(self, trial: Trial) -> None:
        super().__init__()
        self.trial, self.goes_on = trial, True

    def _on_rollout_start(self) -> None:  # an update has ended, but for the first time
        if self.num_timesteps > 0:
            self.goes_on = self.trial.after(self.num_timesteps)

    def _on_step(self) -> bool:
        return self.goes_on


def compile_updates(agent: Any) -> None:
    """Have JAX compile what a run needs, and leave weights and optimiser untouched."""
    from jax.tree_util import tree_map

    policy = agent.policy
    # new containers: the learning rate is written into the old ones, as a float, not an array
    before = tree_map(lambda leaf: leaf, (policy.actor_state, policy.vf_state))
    agent.learn(agent.n_steps * agent.n_envs)
    agent.predict(agent.env.reset(), deterministic=True)
    policy.actor_state, policy.vf_state = before
    agent._last_obs = None


def solve(library: str, env: str, seed: int, limit: float) -> dict[str, Any]:
    """Train one seed; return the trial's result."""
    chosen, task = settings(env), TASKS[env]
    total, n_envs = chosen.pop("n_timesteps"), chosen.pop("n_envs")
    envs = make_vec_env(env, n_envs, seed=seed)
    if library == "sbx":
        from flax import linen
        from sbx import PPO

        chosen["policy_kwargs"] = {"activation_fn": linen.tanh}
    else:
        import torch
        from stable_baselines3 import PPO

        torch.set_num_threads(1)
    agent = PPO("MlpPolicy", envs, seed=seed, device="cpu", **chosen)
    if library == "sbx":
        compile_updates(agent)
    judges = make_vec_env(env, EVALUATION_ENVIRONMENTS, seed=seed + 10**6)

    def evaluate(_: int) -> float:
        return float(evaluate_policy(agent, judges, task.episodes, deterministic=True)[0])

    trial = Trial(task, evaluate, total=total, limit=limit)
    clocked = Clocked(trial)
    trial.start()
    agent.learn(total, callback=clocked)
    if clocked.goes_on:
        trial.after(agent.num_timesteps)
    return trial.result() | {"version": version(PACKAGES[library])}


if __name__ == "__main__":
    name, env, seed, limit = sys.argv[1:]
    print(json.dumps(solve(name, env, int(seed), float(limit))))
