"""CartPole that shows where things are and not how fast they go: a task that takes memory.

    observation = (x, theta),   x metres from the middle, theta radians from upright

All else is Gymnasium's CartPole-v1: reward 1 a step, 500 steps at most. The velocities, which one
observation does not tell, follow from two.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import VectorEnv

SEEN = [0, 2]  # of x, its velocity, theta, its velocity


class CartPoleNoVelocityEnv(gymnasium.ObservationWrapper):
    """One pole; `render_mode` as CartPole-v1 has it."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(gymnasium.make("CartPole-v1", disable_env_checker=True, **kwargs))
        whole = self.env.observation_space
        assert isinstance(whole, gymnasium.spaces.Box)
        self.observation_space = gymnasium.spaces.Box(whole.low[SEEN], whole.high[SEEN])

    def observation(self, observation: np.ndarray) -> np.ndarray:
        """Return the two numbers that are seen of four."""
        return observation[SEEN]


class CartPoleNoVelocityVectorEnv(gymnasium.vector.VectorObservationWrapper):
    """Many poles at once, with Gymnasium's vectorised CartPole behind it."""

    def __init__(self, num_envs: int, **kwargs: Any) -> None:
        poles: VectorEnv = gymnasium.make_vec(
            "CartPole-v1", num_envs, vectorization_mode="vector_entry_point", **kwargs
        )
        super().__init__(poles)
        whole = poles.single_observation_space
        assert isinstance(whole, gymnasium.spaces.Box)
        single = gymnasium.spaces.Box(whole.low[SEEN], whole.high[SEEN])
        self.single_observation_space = single
        self.observation_space = gymnasium.vector.utils.batch_space(single, num_envs)

    def observations(self, observations: np.ndarray) -> np.ndarray:
        """Return the two columns that are seen of four."""
        return observations[:, SEEN]
