"""Two small environments: a chain whose values are known, and one that follows a script.

The chain alternates between two states for ever, with reward 1 in state 0 and 2 in state 1:

    V(0) = 1 + gamma V(1),  V(1) = 2 + gamma V(0)   =>   V(0) = (1 + 2 gamma) / (1 - gamma^2)

Worker processes are sent these classes whole, so that they need not find this file.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import cloudpickle
import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

cloudpickle.register_pickle_by_value(sys.modules[__name__])


def chain_value(state: np.ndarray, gamma: float) -> np.ndarray:
    zero, one = (1 + 2 * gamma) / (1 - gamma**2), (2 + gamma) / (1 - gamma**2)
    return np.where(np.asarray(state) == 0, zero, one)


class Chain(gymnasium.Env):
    """Observation: (state, steps in this episode, episode). Episodes start in state 0.

    An episode is truncated after `limit` steps, the first one `head_start` steps earlier, and every
    third one is terminated as well at its last step if `terminates`: then it is no truncation. With
    `reuses` the one array that it returns is overwritten by every step and reset.
    """

    def __init__(
        self,
        limit: int = 5,
        head_start: int = 0,
        terminates: bool = False,
        reuses: bool = False,
        start_from_seed: bool = False,
    ) -> None:
        self.observation_space = gymnasium.spaces.Box(-1e9, 1e9, (3,), np.float32)
        self.action_space = gymnasium.spaces.Discrete(2)
        self.limit, self.head_start, self.terminates = limit, head_start, terminates
        self.reuses, self.start_from_seed = reuses, start_from_seed
        self.episode = -1
        self.array = np.zeros(3, np.float32)

    def _observe(self) -> np.ndarray:
        self.array[:] = self.state, self.steps, self.episode
        return self.array if self.reuses else self.array.copy()

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.episode = 0 if seed is not None else self.episode + 1
        self.state = int(self.np_random.integers(2)) if self.start_from_seed else 0
        self.steps = 0
        return self._observe(), {"score": -1}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        reward = 1.0 + self.state
        self.state = 1 - self.state
        self.steps += 1
        limit = self.limit - (self.head_start if self.episode == 0 else 0)
        ended = self.steps >= limit
        terminated = self.terminates and ended and self.episode % 3 == 2
        return (
            self._observe(),
            reward,
            terminated,
            ended,
            {"score": 100 * self.episode + self.steps},
        )


class Faulty(Chain):
    """A chain that raises, or stops answering, at step `at`."""

    def __init__(self, at: int, fault: str = "raises", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.at, self.fault, self.taken = at, fault, 0

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.taken += 1
        if self.taken == self.at:
            if self.fault == "sleeps":
                time.sleep(600)
            raise LookupError("the cart is gone")
        return super().step(action)


class Scripted(VectorEnv):
    """Returns what a list says, step by step; what it does not say is zero."""

    def __init__(
        self,
        n: int,
        *script: dict[str, Any],
        mode: AutoresetMode | str | None = AutoresetMode.NEXT_STEP,
        first: Any = None,
        dtype: Any = np.float32,
        high: float = 100,
    ) -> None:
        self.num_envs, self.script, self.first = n, list(script), first
        self.metadata = {} if mode is None else {"autoreset_mode": mode}
        self.single_observation_space = gymnasium.spaces.Box(0, high, (2,), dtype)
        self.single_action_space = gymnasium.spaces.Discrete(2)
        self.observation_space = batch_space(self.single_observation_space, n)
        self.action_space = batch_space(self.single_action_space, n)
        self.zeros = np.zeros((n, 2), dtype)
        self.masks: list[np.ndarray] = []
        self.resets = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict]:
        self.resets += 1
        if options:
            self.masks.append(options.pop("reset_mask"))
        return (self.zeros if self.first is None else self.first), {}

    def step(self, action: Any) -> tuple[Any, Any, Any, Any, dict]:
        said = self.script.pop(0) if self.script else {}
        no = np.zeros(self.num_envs, bool)
        return (
            said.get("observation", self.zeros),
            said.get("reward", np.zeros(self.num_envs)),
            said.get("terminated", no),
            said.get("truncated", no),
            said.get("info", {}),
        )
