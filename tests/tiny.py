"""Tiny environments, most with something wrong: the id `tests.tiny:tiny/Walk-v0` registers them."""

from __future__ import annotations

import time
from typing import Any

import gymnasium
import numpy as np


class Walk(gymnasium.Env):
    """A walk on a line for `length` steps; the reward is the action."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space: gymnasium.Space[Any] = gymnasium.spaces.Discrete(2)
    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012

    def __init__(self, length: int = 20, render_mode: str | None = None) -> None:
        self.length, self.render_mode = length, render_mode
        self.total = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.t, self.place = 0, float(self.np_random.normal())
        return self.observation(), {}

    def observation(self) -> np.ndarray:
        return np.array([self.place, self.t / self.length], np.float32)

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.t, self.total = self.t + 1, self.total + 1
        self.place += 2 * int(np.sum(action)) - 1
        return self.observation(), float(np.sum(action)), False, self.t >= self.length, {}


class NaNAtThousand(Walk):
    """Its observation is NaN at its 1,000th step."""

    def observation(self) -> np.ndarray:
        return super().observation() * (np.nan if self.total == 1000 else 1)


class Letters(Walk):
    """Its actions are texts, which no policy takes."""

    action_space = gymnasium.spaces.Text(3)


class Fails(Walk):
    """It raises at its 1,000th step."""

    def observation(self) -> np.ndarray:
        if self.total == 1000:
            raise OSError("the robot has fallen over")
        return super().observation()


class Unseeded(Walk):
    """It begins where the generator that all of the process shares says."""

    def observation(self) -> np.ndarray:
        shift = np.random.uniform() if self.t == 0 else 0.0  # noqa: NPY002
        return (super().observation() + shift).astype(np.float32)


class Slow(Walk):
    """It sleeps for `pause` seconds at each step after the first `quick` ones."""

    def __init__(self, length: int = 20, pause: float = 0.0, quick: int = 0) -> None:
        super().__init__(length)
        self.pause, self.quick = pause, quick

    def observation(self) -> np.ndarray:
        if self.total > self.quick:
            time.sleep(self.pause)
        return super().observation()


class Endless(Walk):
    """It never ends and never rewards, and what it shows is large."""

    def observation(self) -> np.ndarray:
        return 1000 * super().observation()

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        return super().step(action)[0], 0.0, False, False, {}


for env in (Walk, NaNAtThousand, Letters, Fails, Unseeded, Slow, Endless):
    if f"tiny/{env.__name__}-v0" not in gymnasium.registry:
        gymnasium.register(f"tiny/{env.__name__}-v0", env)
