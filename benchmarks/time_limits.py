"""What treating a time limit as death does to the value, where no episode ever terminates.

    python benchmarks/time_limits.py                       # Pendulum-v1, five seeds
    python benchmarks/time_limits.py --env HalfCheetah-v5 --seeds 1

Two agents are trained alike, but one is told that an episode which was cut had terminated. Then
many episodes are played past the limit T, and v(s_T) of each critic is held against what its own
policy earned from there,

    G_T = sum_{k >= 0} gamma^k r_{T+k},      to where gamma^k < 0.001,

in one number: the explained variance 1 - Var[G_T - v(s_T)] / Var[G_T], 1 when v is right, and the
mean of v(s_T) - G_T, both in the units the critic was trained in (rewards divided by their scale,
where the recipe does so).
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


def at_the_limit(agent: us.PPO, env: str, seed: int) -> tuple[float, float]:
    """Return the explained variance of v(s_T) and the mean error, over EPISODES episodes."""
    limit = int(gymnasium.spec(env).max_episode_steps or 0)
    gamma = agent.config.gamma
    beyond = math.ceil(math.log(1e-3) / math.log(gamma))
    kwargs = {"max_episode_steps": limit + beyond + 1}
    stream = make_stream(env, EPISODES, env_kwargs=kwargs, backend=agent.stream.backend)
    stream.reset(1000 + seed)
    earned = np.zeros(EPISODES)
    scale = agent.collector.reward_normalizer
    unit = 1.0 if scale is None else float(scale.moments.deviation(scale.epsilon))
    for t in range(limit + beyond):
        if t == limit:
            seen = torch.from_numpy(agent.collector.prepared(stream.observation))
            with torch.inference_mode():
                value = agent.policy.value(seen).numpy()
        action, _ = agent.predict(stream.observation, deterministic=False)
        step = stream.step(action)
        if t >= limit:
            earned += gamma ** (t - limit) * step.reward / unit
    stream.close()
    return float(1 - np.var(earned - value) / np.var(earned)), float(np.mean(value - earned))


def main() -> None:
    """Train both agents on each seed and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--env", default="Pendulum-v1", choices=["Pendulum-v1", "HalfCheetah-v5"])
    parser.add_argument("--seeds", type=int, default=5)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    recipe = recipes.find("ppo", chosen.env)
    steps = recipe.total_timesteps
    lines = ["| agent | seed | explained variance of v(s_T) | mean of v(s_T) - G_T | return |"]
    lines += ["|---|---|---|---|---|"]
    for kind, name in ((us.PPO, "bootstraps at the limit"), (TruncationIsDeath, "limit as death")):
        for seed in range(chosen.seeds):
            agent = kind(chosen.env, **recipe.settings | {"seed": seed}).learn(steps)
            explained, error = at_the_limit(agent, chosen.env, seed)
            mean, _ = us.evaluate_policy(agent, chosen.env, 100, backend=agent.stream.backend)
            lines += [f"| {name} | {seed} | {explained:.3f} | {error:.3f} | {mean:.0f} |"]
            print(lines[-1], flush=True)
    text = f"# The value at the time limit of {chosen.env}, PPO's recipe, {steps:,} steps\n\n"
    text += "Made by `python benchmarks/time_limits.py`, which says what is measured.\n\n"
    path = RESULTS / f"time_limit_{chosen.env}.md"
    path.write_text(text + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
