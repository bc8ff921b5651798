"""Gymnasium spaces as tensors: what a policy takes in, what it gives out, what is refused.

`ActionHead` turns the numbers of a network into a distribution over an action space, and an action
of that distribution into what the environment takes.
"""

from __future__ import annotations

import math
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from upslope.errors import ArgumentError
from upslope.policies.distributions import Categorical, DiagonalGaussian, Distribution


def observation_size(space: gymnasium.Space) -> int:
    """Return how many numbers one observation of a Box space holds; other spaces are refused."""
    if not isinstance(space, spaces.Box):
        raise ArgumentError(
            f"observation space {space} is not supported: PPO takes Box observations so far"
        )
    return math.prod(space.shape)


class ActionHead(nn.Module):
    """A distribution over a Discrete or Box action space from a network's `size` numbers.

    Box actions have a state-independent log standard deviation, a parameter of its own. They are
    drawn unbounded and clipped only on the way to the environment, so that the log-probability is
    that of what was drawn.

    Raises ArgumentError for a space it cannot take.
    """

    def __init__(self, space: gymnasium.Space, log_std_init: float = 0.0) -> None:
        super().__init__()
        self.space = space
        if isinstance(space, spaces.Discrete):
            self.size = int(space.n)
            self.shape: tuple[int, ...] = ()
            self.dtype: np.dtype[Any] = np.dtype(np.int64)
        elif isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating):
            self.size = math.prod(space.shape)
            self.shape = (self.size,)  # kept flat, whatever the space's shape
            self.dtype = np.dtype(np.float32)
            self.log_std = nn.Parameter(torch.full((self.size,), float(log_std_init)))
        else:
            raise ArgumentError(
                f"action space {space} is not supported: PPO takes Discrete and Box (float) "
                "actions so far"
            )

    def forward(self, parameters: Tensor) -> Distribution:
        """Return the distribution given the network's output [B, size]."""
        if isinstance(self.space, spaces.Discrete):
            return Categorical(parameters)
        return DiagonalGaussian(parameters, self.log_std)

    def to_environment(self, action: np.ndarray) -> np.ndarray:
        """Return drawn actions [N, ...] as the environment takes them: offset, clipped, shaped."""
        if isinstance(self.space, spaces.Discrete):
            return action + self.space.start if self.space.start else action
        assert isinstance(self.space, spaces.Box)
        shaped = action.reshape(len(action), *self.space.shape)
        return np.clip(shaped, self.space.low, self.space.high).astype(self.space.dtype, copy=False)
