"""An environment over any spaces, with or without masks, that is over after seven steps or less."""

from __future__ import annotations

import copy
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

OBSERVATIONS: dict[str, gymnasium.Space] = {
    "box": spaces.Box(-2, 2, (3,), np.float32),
    "double": spaces.Box(-2, 2, (2, 2), np.float64),
    "discrete": spaces.Discrete(5, start=-2),
    "multi_discrete": spaces.MultiDiscrete([2, 4]),
    "multi_binary": spaces.MultiBinary(4),
    "image": spaces.Box(0, 255, (36, 36, 1), np.uint8),
    "nested": spaces.Dict(
        place=spaces.Box(-1, 1, (2,), np.float32),
        rest=spaces.Tuple(
            [spaces.Discrete(3), spaces.Dict(bits=spaces.MultiBinary((2, 2)), far=spaces.Box(0, 9))]
        ),
    ),
    "dict with image": spaces.Dict(
        picture=spaces.Box(0, 255, (1, 36, 36), np.uint8), goal=spaces.Discrete(4)
    ),
}
ACTIONS: dict[str, gymnasium.Space] = {
    "discrete": spaces.Discrete(4, start=1),
    "multi_discrete": spaces.MultiDiscrete([3, 2]),
    "multi_binary": spaces.MultiBinary(3),
    "box": spaces.Box(-1, 1, (2,), np.float32),
    "dict": spaces.Dict(
        turn=spaces.Box(-1, 1, (2,), np.float32),
        gear=spaces.Discrete(3),
        lamp=spaces.MultiBinary(2),
    ),
    "tuple": spaces.Tuple(
        [
            spaces.MultiDiscrete([2, 3]),
            spaces.Dict(push=spaces.Box(0, 1, (1,), np.float64), key=spaces.Discrete(2)),
            spaces.Discrete(3),
        ]
    ),
    "dict of one": spaces.Dict(key=spaces.Discrete(3, start=1)),
    "tuple of one": spaces.Tuple([spaces.MultiDiscrete([2, 3])]),
    "dict of a box": spaces.Dict(push=spaces.Box(-1, 1, (2,), np.float32)),
}


def mask_for(space: gymnasium.Space, random: np.random.Generator) -> Any:
    """A random mask in Gymnasium's form with at least one legal option for each choice."""

    def options(n: int) -> np.ndarray:
        legal = random.random(n) < 0.5
        legal[random.integers(n)] = True
        return legal.astype(np.int8)

    if isinstance(space, spaces.Discrete):
        return options(int(space.n))
    if isinstance(space, spaces.MultiDiscrete):
        return tuple(options(int(n)) for n in space.nvec)
    if isinstance(space, spaces.MultiBinary):
        return np.stack([options(2) for _ in range(space.n)])
    if isinstance(space, spaces.Dict):
        found = {key: mask_for(inner, random) for key, inner in space.spaces.items()}
        return {key: mask for key, mask in found.items() if mask is not None}
    if isinstance(space, spaces.Tuple):
        return tuple(mask_for(inner, random) for inner in space.spaces)
    return None


def is_legal(space: gymnasium.Space, mask: Any, action: Any) -> bool:
    """Whether every choice of an action is one that the mask allows."""
    if mask is None or isinstance(space, spaces.Box):
        return True
    if isinstance(space, spaces.Discrete):
        return bool(mask[action - space.start])
    if isinstance(space, spaces.MultiDiscrete):
        return all(one[a] for one, a in zip(mask, action, strict=True))
    if isinstance(space, spaces.MultiBinary):
        return all(mask[i][bit] for i, bit in enumerate(action))
    if isinstance(space, spaces.Dict):
        return all(is_legal(i, mask.get(k), action[k]) for k, i in space.spaces.items())
    return all(is_legal(*one) for one in zip(space.spaces, mask, action, strict=True))


class Anything(gymnasium.Env):
    """Random observations; reward 1 for an action within its space; ends at random.

    `masks` is "info" or "method" for where the mask is given, None for no masks. An action that is
    not legal, or not in the space, raises.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012

    def __init__(self, observation: str, action: str, masks: str | None = None) -> None:
        self.observation_space = copy.deepcopy(OBSERVATIONS[observation])
        self.action_space = ACTIONS[action]
        self.masks = masks
        if masks == "method":
            self.action_masks = lambda: self.mask

    def _now(self) -> tuple[Any, dict[str, Any]]:
        if self.masks:
            self.mask = mask_for(self.action_space, self.random)
        info = {"action_mask": self.mask} if self.masks == "info" else {}
        return self.observation_space.sample(), info

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict]:
        if seed is not None:
            self.random = np.random.default_rng(seed)
            self.observation_space.seed(seed)
        self.steps = 0
        return self._now()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        if not self.action_space.contains(action):
            raise AssertionError(f"{action} is not in {self.action_space}")
        if self.masks and not is_legal(self.action_space, self.mask, action):
            raise AssertionError(f"{action} is not legal: {self.mask}")
        self.steps += 1
        draw = self.random.random()
        observation, info = self._now()
        return observation, 1.0, draw < 0.2, draw > 0.9 or self.steps >= 7, info
