"""Environments that come with Upslope, known to Gymnasium once this module is imported.

import upslope.envs
env = gymnasium.make("upslope/FlappyBird-v0", render_mode="rgb_array")
birds = gymnasium.make_vec("upslope/FlappyBird-v0", num_envs=4096)
"""

from __future__ import annotations

import gymnasium

__all__ = ["register"]


def register() -> None:
    """Make `upslope/FlappyBird-v0` known to Gymnasium; calling it again changes nothing."""
    if "upslope/FlappyBird-v0" not in gymnasium.registry:
        gymnasium.register(
            id="upslope/FlappyBird-v0",
            entry_point="upslope.envs.flappy_bird:FlappyBirdEnv",
            vector_entry_point="upslope.envs.flappy_bird:FlappyBirdVectorEnv",
        )


register()
