"""Time to solve with other libraries, by the same clock; started by `time_to_solve.py --peers`.

    PEERS/bin/python benchmarks/solving_peers.py Stable-Baselines3 CartPole-v1 SEED LIMIT

Stable-Baselines3, sbx (the same in JAX) and rejax (JAX, the environment compiled too), with the
settings in solving.py. Prints the result as one line of JSON. What JAX compiles is compiled before
the clock runs. Torch has one thread, as Upslope's recipes have for these environments; JAX has what
it takes.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from typing import Any

from solving import REJAX, TASKS, ZOO, Trial
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

EVALUATION_ENVIRONMENTS = 50
PACKAGES = {"Stable-Baselines3": "stable-baselines3", "sbx": "sbx-rl", "rejax": "rejax"}


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
    """Have JAX compile what a run needs: train an iteration, and put weights and optimiser back."""
    from jax.tree_util import tree_map

    policy = agent.policy
    # new containers: the learning rate is written into the old ones, as a float, not an array
    before = tree_map(lambda leaf: leaf, (policy.actor_state, policy.vf_state))
    agent.learn(agent.n_steps * agent.n_envs)
    agent.predict(agent.env.reset(), deterministic=True)
    policy.actor_state, policy.vf_state = before
    agent._last_obs = None


def solve_loop(library: str, env: str, seed: int, limit: float) -> Trial:
    """Train one seed of a library with Stable-Baselines3's interface."""
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
    return trial


def solve_compiled(_: str, env: str, seed: int, limit: float) -> Trial:
    """Train one seed of rejax: what lies between two evaluations is one compiled function."""
    import jax
    from rejax import PPO
    from rejax.evaluate import evaluate

    task, told = TASKS[env], REJAX[env]
    algorithm = PPO.create(env=env, **told)
    iterations = task.every // (told["num_envs"] * told["num_steps"])

    @jax.jit
    def learned(state: Any) -> Any:
        return jax.lax.fori_loop(0, iterations, lambda _, s: algorithm.train_iteration(s), state)

    @jax.jit
    def returns(state: Any, key: Any) -> Any:
        def act(seen: Any, _: Any) -> Any:  # deterministic, as rejax's own is not
            parameters = state.actor_ts.params
            return algorithm.actor.apply(parameters, seen[None], method="_action_dist").mode()[0]

        return evaluate(act, key, algorithm.env, algorithm.env_params, task.episodes)[1]

    key = jax.random.PRNGKey(seed)
    state = algorithm.init_state(key)
    compiled = learned.lower(state).compile()

    def judge(steps: int) -> float:
        return float(returns(state, jax.random.fold_in(key, steps)).mean())

    trial = Trial(task, judge, total=told["total_timesteps"], limit=limit)
    steps, goes_on = 0, True
    trial.start()
    while goes_on:
        state = jax.block_until_ready(compiled(state))
        steps += task.every
        goes_on = trial.after(steps)
    return trial


def solve(library: str, env: str, seed: int, limit: float) -> dict[str, Any]:
    """Train one seed; return the trial's result."""
    train = solve_compiled if library == "rejax" else solve_loop
    return train(library, env, seed, limit).result() | {"version": version(PACKAGES[library])}


if __name__ == "__main__":
    name, env, seed, limit = sys.argv[1:]
    print(json.dumps(solve(name, env, int(seed), float(limit))))
