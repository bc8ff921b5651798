"""A rollout: T steps of N environments, time-major, in memory that is allocated once.

    observation [T, N, ...]   action [T, N, ...]   reward, log_prob, value, next_value [T, N]
    terminated, truncated, valid [T, N]            advantage, target [T, N]
    action_mask [T, N, columns]                    where environments say which actions are legal
    memory [N, S]                                  of a recurrent policy, before the first row

`next_value` is v of the true next observation: the following row's value, except where an episode
was truncated, where it is the value of the observation the episode ended in. It is 0 where the
episode terminated. A row that is not `valid` (a reset that Gymnasium's NEXT_STEP mode shows as a
step) is in the buffer and in nothing that is computed from it.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from upslope.errors import ArgumentError
from upslope.policies.memory import Sequences
from upslope.rollout import native_returns
from upslope.rollout.minibatches import Minibatches, shuffled

ROWS = (
    *("observation", "action", "log_prob", "reward", "value", "next_value", "advantage", "target"),
    *("terminated", "truncated", "valid"),
)
ROWS_IN_CHUNK = 128


@dataclass(frozen=True, slots=True)
class Chunks:
    """Rows of a minibatch in K groups, one after the other."""

    index: Tensor
    sizes: Tensor
    """[K] int64, how many rows each group has."""


@dataclass(slots=True)
class Batch:
    """M rows of experience, flat: what a loss sees. Every field [M] or [M, ...]."""

    observation: Tensor
    action: Tensor
    log_prob: Tensor
    value: Tensor
    advantage: Tensor
    target: Tensor
    action_mask: Tensor | None = None
    sequences: Sequences | None = None

    def __getitem__(self, index: Tensor) -> Batch:
        """Return the rows named by `index` [B] int64."""
        index = index.to(self.action.device)
        return Batch(
            self.observation.index_select(0, index),
            self.action.index_select(0, index),
            self.log_prob.index_select(0, index),
            self.value.index_select(0, index),
            self.advantage.index_select(0, index),
            self.target.index_select(0, index),
            None if self.action_mask is None else self.action_mask.index_select(0, index),
            None if self.sequences is None else self.sequences[index],
        )


MOST_ROWS = 2**28


class Rollout:
    """The buffer of one iteration, filled by the collector and read by the algorithm."""

    def __init__(
        self,
        n_steps: int,
        n_envs: int,
        observation: tuple[tuple[int, ...], np.dtype],
        action: tuple[tuple[int, ...], np.dtype],
        memory_size: int = 0,
    ) -> None:
        shape = (n_steps, n_envs)
        if n_steps * n_envs > MOST_ROWS:
            raise ArgumentError(
                f"n_steps={n_steps} of n_envs={n_envs}: a rollout takes at most {MOST_ROWS:,} steps"
            )
        self.n_steps, self.n_envs = shape
        # these three are tensors where they stay on a device: see `resident`
        self.observation: Any = np.zeros((*shape, *observation[0]), observation[1])
        self.last_observation: Any = np.zeros((n_envs, *observation[0]), observation[1])
        self.action: Any = np.zeros((*shape, *action[0]), action[1])
        self.log_prob = torch.zeros(shape)
        self.reward = np.zeros(shape, np.float32)
        self.terminated = np.zeros(shape, bool)
        self.truncated = np.zeros(shape, bool)
        self.valid = np.zeros(shape, bool)
        self.value = torch.zeros(shape)
        self.last_value = torch.zeros(n_envs)
        """[N] v of `last_observation`."""
        self.valued = False
        """Whether these are already v of the observations, under the policy that collected."""
        self.next_value = torch.zeros(shape)
        self.advantage = torch.zeros(shape)
        self.target = torch.zeros(shape)
        self.cut: list[tuple[int, np.ndarray, Any]] = []
        """(step, environments, the observations they were truncated in)."""
        self.cut_mask: list[np.ndarray | None] = []
        """For each of `cut`, which actions were legal there, [environments, columns], if known."""
        self.action_mask: Any = None  # made when the first mask is seen; where the others are
        self.last_mask: np.ndarray | None = None
        """[N, columns] which actions are legal in `last_observation`."""
        self.memory = torch.zeros(n_envs, memory_size)

    def begin(self, memory: Tensor) -> None:
        """Forget what the last iteration left; `memory` [N, S] is a recurrent policy's by now."""
        self.cut.clear()
        self.cut_mask.clear()
        self.memory.copy_(memory)
        self.valued = False

    def keep_mask(self, t: int, mask: Any) -> Any:
        """Put which actions are legal, [N, columns], None where all are, into row t; returns it."""
        if mask is not None and self.action_mask is None:
            ones = np.ones((self.n_steps, *mask.shape), bool)
            is_array = isinstance(mask, np.ndarray)
            self.action_mask = ones if is_array else torch.from_numpy(ones).to(mask.device)
        if mask is not None:
            self.action_mask[t] = mask
        return mask

    def first(self, n_steps: int) -> Rollout:
        """Return its first rows, as views of the same memory."""
        part = copy.copy(self)
        part.n_steps = n_steps
        for name in ROWS:
            setattr(part, name, getattr(self, name)[:n_steps])
        if self.action_mask is not None:
            part.action_mask = self.action_mask[:n_steps]
        return part

    @property
    def n_valid(self) -> int:
        """The number of environment steps in it."""
        return int(np.count_nonzero(self.valid))

    def next_observation(self) -> np.ndarray:
        """Return s_{t+1} of every row, [T, N, ...]: the true one, also where an episode was cut."""
        after = np.concatenate([self.observation[1:], self.last_observation[None]])
        for t, environments, observation in self.cut:
            after[t, environments] = observation
        return after

    def next_mask(self) -> np.ndarray | None:
        """Return what is legal in s_{t+1}, [T, N, columns]; None where environments do not say.

        All is legal in what an episode was cut in if nothing is known of it.
        """
        if self.action_mask is None or self.last_mask is None:
            return None
        legal = np.concatenate([self.action_mask[1:], self.last_mask[None]])
        for (t, environments, _), mask in zip(self.cut, self.cut_mask, strict=True):
            legal[t, environments] = True if mask is None else mask
        return legal

    def flat(self, device: torch.device) -> Batch:
        """Return all rows as one batch, [T N, ...], views on a CPU."""

        def rows(field: Tensor | np.ndarray) -> Tensor:
            tensor = torch.from_numpy(field) if isinstance(field, np.ndarray) else field
            return tensor.flatten(0, 1).to(device)

        batch = Batch(
            *(rows(self.observation), rows(self.action), rows(self.log_prob)),
            *(rows(self.value), rows(self.advantage), rows(self.target)),
        )
        if self.action_mask is not None:
            batch.action_mask = rows(self.action_mask)
        if self.recurrent:
            segment = torch.from_numpy(self.segments()).flatten()
            batch.sequences = Sequences(segment.to(device), self.memory.to(device))
        return batch

    @property
    def recurrent(self) -> bool:
        """Whether the policy that filled it has a memory."""
        return self.memory.shape[1] > 0

    def segments(self) -> np.ndarray:
        """Return which part of which episode each row belongs to, [T, N] int64.

        Those that go on from before the rollout are numbered by their environment, 0 to N-1.
        """
        begins = np.zeros((self.n_steps, self.n_envs), np.int64)
        begins[1:] = (self.terminated | self.truncated | ~self.valid)[:-1]
        return begins.cumsum(axis=0) * self.n_envs + np.arange(self.n_envs)

    def minibatches(self, batch_size: int, seed: int) -> Minibatches:
        """Return every valid row once, shuffled, in minibatches of nearly equal length.

        There are round(valid rows / batch_size) of them: no small one is left over at the end, over
        which an advantage could not be standardised. With a recurrent policy whole environments are
        shuffled, so that sequences stay whole, and there is at least one in each.
        """
        if not self.recurrent:
            order = shuffled(self.valid, seed)
            return Minibatches.cut(order, max(1, round(len(order) / batch_size)))
        count = max(1, round(self.n_valid / batch_size))
        order = torch.randperm(self.n_envs, generator=torch.Generator().manual_seed(seed))
        parts = []
        for group in order.tensor_split(min(count, self.n_envs)):
            chosen = np.zeros_like(self.valid)
            chosen[:, group.numpy()] = True
            parts.append(torch.from_numpy(np.flatnonzero(chosen & self.valid)))
        return Minibatches.of([part for part in parts if len(part)])

    def chunks(self, index: Tensor, at_most: int = 8) -> Chunks | None:
        """Split rows of `minibatches` by environment into disjoint groups; None if that gives one.

        Environment n belongs to group n modulo K, so that the groups' samples are independent of
        each other, which single steps of one episode are not. K is 2, or as many as have about
        ROWS_IN_CHUNK rows each.
        """
        count = min(at_most, self.n_envs, max(2, len(index) // ROWS_IN_CHUNK))
        together, sizes = native_returns.grouped(index.numpy(), self.n_envs, count)
        if not sizes.all():
            sizes = sizes[sizes > 0]
        if len(sizes) < 2:
            return None
        return Chunks(torch.from_numpy(together), torch.from_numpy(sizes))
