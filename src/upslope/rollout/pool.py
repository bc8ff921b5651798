"""What is asked of an EnvPool at every step, without the Python that it runs each time.

EnvPool's `send` and `recv` walk through trees of names; a step of 256 environments spends as much
time there as in acting. Here the places of all names are looked up once.
"""

from __future__ import annotations

from typing import Any

import numpy as np

NEEDED = ("_state_keys", "_action_keys", "_send", "_recv", "_reset", "_check_action")


class Pool:
    """A pool made by EnvPool whose observations are one array; what it gives is the same."""

    def __init__(self, pool: Any) -> None:
        self.pool = pool
        self._actions = list(pool._action_keys)
        names = list(pool._state_keys)
        told = ("obs", "reward", "done", "trunc", "elapsed_step")
        self._places = [names.index(name) for name in told]
        paths = [(k, name.removeprefix("info:")) for k, name in enumerate(names)]
        infos = [(k, path) for k, path in paths if names[k] != path]
        self._infos = [(k, path) for k, path in infos if "." not in path]
        self._nested = [(k, path.split(".")) for k, path in infos if "." in path]

    def send(self, actions: dict[str, np.ndarray]) -> None:
        """Begin a step of some environments, by the names that EnvPool has for actions."""
        values = [actions[name] for name in self._actions]
        self.pool._check_action(values)  # the first time
        self.pool._send(values)

    def recv(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Wait for results: observation, reward, terminated, truncated, info, in any order."""
        values = self.pool._recv()
        observation, reward, done, truncated, elapsed = (values[k] for k in self._places)
        info: dict[str, Any] = {name: values[k] for k, name in self._infos}
        for k, (*outer, name) in self._nested:
            inner = info
            for part in outer:
                inner = inner.setdefault(part, {})
            inner[name] = values[k]
        info["elapsed_step"] = elapsed
        return observation, reward, done & ~truncated, truncated, info

    def step(
        self, actions: dict[str, np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Take a step and wait for it."""
        self.send(actions)
        return self.recv()

    def reset(self, rows: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin anew in some environments; returns observations and infos."""
        self.pool._reset(rows)
        observation, *_, info = self.recv()
        return observation, info

    def close(self) -> None:
        """End the threads."""
        self.pool.close()


def fast(pool: Any) -> Any:
    """Return a `Pool`, or the pool as it is where its observations are nested or it is another."""
    fits = all(hasattr(pool, name) for name in NEEDED) and "obs" in pool._state_keys
    return Pool(pool) if fits else pool
