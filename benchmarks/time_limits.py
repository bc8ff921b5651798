"""What treating a time limit as death does to the value, where no episode ever terminates.

    python benchmarks/time_limits.py                       # Pendulum-v1, five seeds
    python benchmarks/time_limits.py --env HalfCheetah-v5 --steps 3000000

Two agents are trained alike, but one is told that an episode which was cut had terminated. Then
many episodes are played past the limit T, and v(s_t) of each critic, t = 0 ... T, is held against
what its own policy earned from there with no limit in its way,

    G_t = sum_{k >= 0} gamma^k r_{t+k},      to where gamma^k < 0.001 at least,

in two numbers: the explained variance 1 - Var[G_t - v(s_t)] / Var[G_t] over all of them, and the
mean of v(s_T) - G_T at the limit itself, in the units the critic was trained in (rewards divided by
their scale, where the recipe does so), beside the mean of G_T. The first is below 1 even where v is
right, since G_t is one draw of what follows s_t. Beside them stands the explained variance that the
run itself logs, of the critic's targets, in the mean over the last tenth of training.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import gymnasium
import numpy as np
import torch

import upslope as us
from upslope import recipes
from upslope.rollout.buffer import Rollout
from upslope.rollout.make import make_stream

RESULTS = Path(__file__).parent / "results"
EPISODES = 200


class TruncationIsDeath(us.PPO):
    """PPO that takes a time limit for a termination, as many libraries do."""

    def update(self, rollout: Rollout) -> dict[str, float]:
        """Call every end a termination, and go on as PPO does."""
        rollout.terminated |= rollout.truncated
        rollout.truncated[:] = False
        return super().update(rollout)


def values_and_returns(agent: us.PPO, env: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return v(s_t) and G_t, each [T + 1, EPISODES], of the stochastic policy past its limit T."""
    limit = int(gymnasium.spec(env).max_episode_steps or 0)
    gamma = agent.config.gamma
    steps = limit + math.ceil(math.log(1e-3) / math.log(gamma)) + 1
    kwargs = {"max_episode_steps": steps + 1}
    stream = make_stream(env, EPISODES, env_kwargs=kwargs, backend=agent.stream.backend)
    stream.reset(1000 + seed)
    reward = np.zeros((steps, EPISODES))
    value = np.zeros((limit + 1, EPISODES))
    for t in range(steps):
        if t <= limit:
            seen = torch.from_numpy(agent.collector.prepared(stream.observation))
            with torch.inference_mode():
                value[t] = agent.policy.value(seen).numpy()
        action, _ = agent.predict(stream.observation, deterministic=False)
        reward[t] = stream.step(action).reward
    stream.close()
    scale = agent.collector.reward_normalizer
    earned = reward / (1.0 if scale is None else float(scale.moments.deviation(scale.epsilon)))
    for t in reversed(range(steps - 1)):
        earned[t] += gamma * earned[t + 1]
    return value, earned[: limit + 1]


def main() -> None:
    """Train both agents on each seed and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--env", default="Pendulum-v1", choices=["Pendulum-v1", "HalfCheetah-v5"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=None, help="default: as the recipe says")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    recipe = recipes.find("ppo", chosen.env)
    steps = chosen.steps or recipe.total_timesteps
    columns = ("agent", "seed", "explained variance, logged", "of G_t", "mean of v(s_T) - G_T")
    columns += ("of G_T", "return")
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for kind, name in ((us.PPO, "bootstraps at the limit"), (TruncationIsDeath, "limit as death")):
        for seed in range(chosen.seeds):
            agent, logged = kind(chosen.env, **recipe.settings | {"seed": seed}), []
            agent.learn(steps, lambda _, row, all=logged: all.append(row["explained_variance"]))
            value, earned = values_and_returns(agent, chosen.env, seed)
            explained = 1 - np.var(earned - value) / np.var(earned)
            error, truth = np.mean(value[-1] - earned[-1]), np.mean(earned[-1])
            mean, _ = us.evaluate_policy(agent, chosen.env, 100, backend=agent.stream.backend)
            late = np.mean(logged[-(len(logged) // 10) :])
            numbers = f"{late:.3f} | {explained:.3f} | {error:+.3f} | {truth:.3f} | {mean:.0f}"
            lines += [f"| {name} | {seed} | {numbers} |"]
            print(lines[-1], flush=True)
    text = f"# The value at the time limit of {chosen.env}, PPO's recipe, {steps:,} steps\n\n"
    text += "Made by `python benchmarks/time_limits.py`, which says what is measured.\n\n"
    path = RESULTS / f"time_limit_{chosen.env}.md"
    path.write_text(text + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
