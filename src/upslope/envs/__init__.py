"""Environments that come with Upslope, known to Gymnasium once this module is imported.

import upslope.envs
env = gymnasium.make("upslope/FlappyBird-v0", render_mode="rgb_array")
birds = gymnasium.make_vec("upslope/FlappyBird-v0", num_envs=4096)
poles = gymnasium.make_vec("upslope/CartPoleNoVelocity-v0", num_envs=64)
queues = gymnasium.make_vec("upslope/AccessControl-v0", num_envs=64)
chains = upslope.envs.FiniteVectorEnv(upslope.exact.random_walk(19), num_envs=64)
endless = upslope.envs.Continuing(gymnasium.make("CartPole-v1"))
"""

from __future__ import annotations

import importlib

import gymnasium

TYPE_CHECKING = False
if TYPE_CHECKING:
    from upslope.envs.continuing import Continuing
    from upslope.envs.finite import FiniteVectorEnv

__all__ = ["Continuing", "FiniteVectorEnv", "register"]

ENVIRONMENTS = {
    "FlappyBird": "flappy_bird",
    "CartPoleNoVelocity": "cartpole",
    "AccessControl": "access_control",
}
_HOME = {"Continuing": "continuing", "FiniteVectorEnv": "finite"}


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


if not TYPE_CHECKING:  # the finite problems need SciPy's and torch's start, which takes time

    def __getattr__(name: str) -> object:
        if name not in _HOME:
            raise AttributeError(f"module 'upslope.envs' has no attribute {name!r}")
        return getattr(importlib.import_module(f"upslope.envs.{_HOME[name]}"), name)
