"""A replay buffer: the last steps of N environments, time-major, in memory that is allocated once.

    s_t, a_t -> R_t = r_t + gamma r_{t+1} + ... + gamma^{h-1} r_{t+h-1},   s_{t+h},   gamma^h

h is n, or fewer where the episode ends, a segment of experience does, or nothing newer is there
yet. The discount is 0 where it terminated; at a truncation s_{t+h} is the observation the episode
was cut in. A ring: where it is full, the oldest step of every environment makes way for the newest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from upslope.rollout.buffer import Rollout

FIELDS = ("observation", "next_observation", "action", "reward", "terminated", "ended", "valid")


@dataclass(slots=True)
class Transitions:
    """M transitions, drawn: what a loss sees. Every field [M] or [M, ...]."""

    observation: Tensor
    action: Tensor
    reward: Tensor
    discount: Tensor
    next_observation: Tensor
    next_legal: Tensor
    next_q: Tensor | None = None
    """[M, A] what a target network says of the next observation."""

    def __getitem__(self, index: Tensor) -> Transitions:
        """Return the rows named by `index` [B] int64."""
        return self._each(lambda field: field[index])

    def to(self, device: torch.device) -> Transitions:
        """Return the same on a device."""
        return self._each(lambda field: field.to(device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> Transitions:
        return Transitions(
            *(change(self.observation), change(self.action), change(self.reward)),
            *(change(self.discount), change(self.next_observation), change(self.next_legal)),
            None if self.next_q is None else change(self.next_q),
        )


class Replay:
    """The last `size` transitions, a whole number of steps of each environment.

    `ended` marks the last step of an episode or of a segment of experience.
    """

    def __init__(self, size: int, like: Rollout, options: int) -> None:
        self.n_envs = like.n_envs
        self.rows = max(1, size // like.n_envs, like.n_steps)
        shape = (self.rows, self.n_envs)
        observation = (*shape, *like.observation.shape[2:])
        self.observation = np.zeros(observation, like.observation.dtype)
        self.next_observation = np.zeros(observation, like.observation.dtype)
        self.action = np.zeros((*shape, *like.action.shape[2:]), like.action.dtype)
        self.reward = np.zeros(shape, np.float32)
        self.terminated, self.ended, self.valid = (np.zeros(shape, bool) for _ in range(3))
        self.next_legal = np.ones((*shape, options), bool)
        self.added = 0
        """Steps of each environment that were ever added."""
        self.segment = -1
        """The segment of experience that the newest step is of."""

    @property
    def filled(self) -> int:
        """Steps of each environment that are there."""
        return min(self.added, self.rows)

    def __len__(self) -> int:
        """Return how many transitions can be drawn."""
        return int(np.count_nonzero(self.valid[: self.filled]))

    def add(self, rollout: Rollout, segment: int) -> None:
        """Append the steps of a rollout, which belong to segment `segment`."""
        if self.added and segment != self.segment:  # other environments: nothing follows
            self.ended[(self.added - 1) % self.rows] = True
        self.segment = segment
        where = (self.added + np.arange(rollout.n_steps)) % self.rows
        legal = rollout.next_mask()
        self.observation[where] = rollout.observation
        self.next_observation[where] = rollout.next_observation()
        self.next_legal[where] = True if legal is None else legal
        self.action[where], self.reward[where] = rollout.action, rollout.reward
        self.terminated[where], self.valid[where] = rollout.terminated, rollout.valid
        self.ended[where] = rollout.terminated | rollout.truncated
        self.added += rollout.n_steps

    def sample(
        self, count: int, generator: torch.Generator, *, gamma: float, n: int = 1
    ) -> Transitions:
        """Draw `count` transitions of n steps, uniformly and with replacement, on the CPU.

        The generator is one of the CPU. There must be something to draw (`len`).
        """
        chosen = self._valid_rows(count, generator)
        last, alive = chosen.copy(), np.ones(count, bool)
        reward = self._flat("reward")[chosen].copy()
        discount = np.full(count, gamma, np.float32)
        newest = (self.added - 1) % self.rows
        for _ in range(n - 1):
            alive &= ~self._flat("ended")[last] & (last // self.n_envs != newest)
            last = np.where(alive, (last + self.n_envs) % self.valid.size, last)
            reward += np.where(alive, discount * self._flat("reward")[last], 0)
            discount = np.where(alive, discount * np.float32(gamma), discount)
        discount[self._flat("terminated")[last]] = 0
        return Transitions(
            torch.from_numpy(self._flat("observation")[chosen]),
            torch.from_numpy(self._flat("action")[chosen]),
            torch.from_numpy(reward),
            torch.from_numpy(discount),
            torch.from_numpy(self._flat("next_observation")[last]),
            torch.from_numpy(self._flat("next_legal")[last]),
        )

    def _flat(self, name: str) -> np.ndarray:
        """Return a field as [rows * N, ...], a view."""
        field: np.ndarray = getattr(self, name)
        return field.reshape(-1, *field.shape[2:])

    def _valid_rows(self, count: int, generator: torch.Generator) -> np.ndarray:
        """Draw places of the flat fields; those of steps that only reset are drawn again."""
        most, valid = self.filled * self.n_envs, self._flat("valid")
        chosen = torch.randint(most, (count,), generator=generator).numpy()
        while len(wrong := np.flatnonzero(~valid[chosen])):
            chosen[wrong] = torch.randint(most, (len(wrong),), generator=generator).numpy()
        return chosen

    # -- saving --------------------------------------------------------------------------------

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, int]]:
        """Return all that evolves, as named arrays of what is filled and as numbers for JSON."""
        arrays = {name: getattr(self, name)[: self.filled] for name in (*FIELDS, "next_legal")}
        return arrays, {"added": self.added, "segment": self.segment}

    def expected(self, numbers: Mapping[str, int]) -> dict[str, np.ndarray]:
        """Return arrays of the shapes and dtypes that `state` must hold with these numbers."""
        filled = min(max(numbers.get("added", 0), 0), self.rows)
        return {name: getattr(self, name)[:filled] for name in (*FIELDS, "next_legal")}

    def load_state(self, arrays: Mapping[str, np.ndarray], numbers: Mapping[str, int]) -> None:
        """Take up a saved state."""
        self.added, self.segment = numbers["added"], numbers["segment"]
        for name in (*FIELDS, "next_legal"):
            getattr(self, name)[: self.filled] = arrays[name]
