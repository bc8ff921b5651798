"""Environments that come with Upslope, known to Gymnasium once this module is imported.

import upslope.envs
env = gymnasium.make("upslope/FlappyBird-v0", render_mode="rgb_array")
birds = gymnasium.make_vec("upslope/FlappyBird-v0", num_envs=4096)
poles = gymnasium.make_vec("upslope/CartPoleNoVelocity-v0", num_envs=64)
"""

from __future__ import annotations

import gymnasium

__all__ = ["register"]

ENVIRONMENTS = {"FlappyBird": "flappy_bird", "CartPoleNoVelocity": "cartpole"}


def register() -> None:
    """Make the environments known to Gymnasium; calling it again changes nothing."""
    for name, module in ENVIRONMENTS.items():
        if f"upslope/{name}-v0" not in gymnasium.registry:
            gymnasium.register(
                id=f"upslope/{name}-v0",
                entry_point=f"upslope.envs.{module}:{name}Env",
                vector_entry_point=f"upslope.envs.{module}:{name}VectorEnv",
            )


register()
