"""Environments in two halves: while one half is acted on, the other still steps.

Every number is the same as without: an environment gets the same actions in the same order. A
vector environment offers it by `halve()`, which asks for it from the next reset on, and then by
`in_halves`, which is an object like `Halves` below, or None.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np

from upslope.built import BUILT

if BUILT:
    from upslope import _native

Array = np.ndarray
Ahead = Callable[[slice, Array], Array]
"""Returns the next actions of one half, given its observations [N/2, ...]."""


class Halves:
    """Steps N environments of an EnvPool that gives N/2 results at a time.

    They come in any order: one that is early belongs to the step after. Each wait is for as many
    as were sent, so the number of those under way is a multiple of N/2, and no wait is in vain.
    `pack` makes of actions and environments' numbers what the pool is sent.
    """

    def __init__(
        self, pool: Any, pack: Callable[[Array, Array], Any], n_envs: int, limit: int
    ) -> None:
        self.pool, self.pack, self.n_envs, self.limit = pool, pack, n_envs, limit
        half = n_envs // 2
        self.halves = slice(0, half), slice(half, n_envs)
        self.numbers = np.arange(n_envs, dtype=np.int32)
        self.begun = [0, 0]  # steps of each half that are not finished
        self.now, self.after = Results(n_envs), Results(n_envs)

    def reset(self) -> tuple[Any, Infos]:
        """Begin anew in all; returns what a pool's reset does."""
        observation, infos = None, Infos(self.n_envs)
        for half in self.halves:
            part, info = self.pool.reset(self.numbers[half])
            if observation is None:
                observation = room(part, self.n_envs)
            put(observation, part, info["env_id"])
            infos.parts.append((info["env_id"], np.full(len(info["env_id"]), True), info))
        return observation, infos

    def begin(self, actions: Array, half: slice) -> None:
        """Begin the next step of a half."""
        self.pool.send(self.pack(actions, self.numbers[half]))
        self.begun[half.start > 0] += 1

    def wait(self, half: slice) -> Any:
        """Return a half's observations after the step that was begun; None at the time limit."""
        while not self.now.given[half].all():
            self._receive()
        observation, *_, elapsed = self.now.found
        return None if elapsed[half].max() >= self.limit else part_of(observation, half)

    def step_ahead(
        self,
        actions: Array | None,
        checked: Callable[[Any, slice], Array],
        ahead: Ahead,
        call: Callable[..., Any],
    ) -> list[Array]:
        """Wait for each half and begin its next step; returns the observations, checked, of each.

        `actions` [N, ...] are what to begin this step with, None if it was begun. `call` calls what
        only the environments can fail at. Returns nothing where a reset comes first.
        """
        if actions is not None:
            for half in self.halves:
                call(self.begin, actions[half], half)
        seen: list[Array] = []
        for half in self.halves:
            raw = call(partial(self.wait, half))
            if raw is None:
                return []
            seen.append(checked(raw, half))
            call(self.begin, ahead(half, seen[-1]), half)
        return seen

    def step(self, actions: Array) -> tuple[Any, Array, Array, Array, Infos]:
        """Finish the step of all, or take it; returns what a pool's step does."""
        for number, half in enumerate(self.halves):
            if not self.begun[number]:
                self.begin(actions[half], half)
            self.begun[number] -= 1
        while not self.now.given.all():
            self._receive()
        observation, reward, terminated, truncated, elapsed = self.now.found
        infos = self.now.infos
        infos.whole["elapsed_step"] = elapsed
        self.now, self.after = self.after, Results(self.n_envs)
        return observation, reward, terminated, truncated, infos

    def _receive(self) -> None:
        """Put the next N/2 results where they belong."""
        *step, info = self.pool.recv()
        rows, step = info["env_id"], [*step, info["elapsed_step"]]
        now, after, early = self.now, self.after, self.now.given[rows]
        now.found = now.found or [room(part, self.n_envs) for part in step]
        after.found = after.found or [room(part, self.n_envs) for part in step]
        ours = now.given, now.found, after.given, after.found
        if not (BUILT and _native.place(rows, step, *ours)):
            now.put(rows[~early], part_of(step, ~early))
            after.put(rows[early], part_of(step, early))
        now.infos.parts.append((rows, ~early, info))
        after.infos.parts.append((rows, early, info))


class Results:
    """What one step of N environments gave, as far as it is there."""

    def __init__(self, n_envs: int) -> None:
        self.given = np.zeros(n_envs, bool)  # whose result is there
        self.found: list[Any] = []  # observation, reward, terminated, truncated, elapsed steps
        self.infos = Infos(n_envs)

    def put(self, rows: Array, step: list[Any]) -> None:
        """Put results in order."""
        self.given[rows] = True
        for whole, part in zip(self.found, step, strict=True):
            put(whole, part, rows)


class Infos(Mapping[str, Any]):
    """What else N environments gave, by name: put in order when it is read, which is seldom."""

    def __init__(self, n_envs: int) -> None:
        self.n_envs = n_envs
        # Of which environments, which of these are meant, what they gave.
        self.parts: list[tuple[Array, Array, dict[str, Any]]] = []
        self.whole: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        """Return what is told under a name, [N, ...]."""
        if name not in self.whole:
            whole = room(self.parts[0][-1][name], self.n_envs)
            for rows, meant, part in self.parts:
                put(whole, part_of(part[name], meant), rows[meant])
            self.whole[name] = whole
        return self.whole[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.parts[0][-1])

    def __len__(self) -> int:
        return len(self.parts[0][-1])


def room(part: Any, n_envs: int) -> Any:
    """Return arrays [N, ...] for what is given of some as arrays [n, ...]."""
    if isinstance(part, dict):
        return {name: room(inner, n_envs) for name, inner in part.items()}
    return np.empty((n_envs, *part.shape[1:]), part.dtype)


def put(whole: Any, part: Any, rows: Array) -> None:
    """Put arrays [n, ...] into the given rows of arrays [N, ...]."""
    if isinstance(part, dict):
        for name, inner in part.items():
            put(whole[name], inner, rows)
    else:
        whole[rows] = part


def part_of(whole: Any, rows: Array | slice) -> Any:
    """Return the given rows of arrays."""
    if isinstance(whole, dict):
        return {name: part_of(inner, rows) for name, inner in whole.items()}
    if isinstance(whole, list):
        return [part_of(inner, rows) for inner in whole]
    return whole[rows]
