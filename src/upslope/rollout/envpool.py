"""EnvPool's environments as a vector environment that the stream takes as it takes any other.

EnvPool (Weng et al. 2022, arXiv:2206.10558) steps N environments on threads of its own. What it
does otherwise than Gymnasium is put right here:

    seeds       fixed where a pool is made, and ignored by a reset: `reset(seed)` makes a new pool
    time limit  EnvPool calls every end in the limit's last step truncated, also a death. For the
                ids of EQUAL its own limit is one step later, the limit is counted here, and the
                stream resets what has ended (DISABLED). For the others it stays as EnvPool says
                it, and the step after an end resets (NEXT_STEP): so a lost life of an Atari game
                can end an episode and not the game, which an explicit reset would
    spaces      bounds that it does not know are none, and actions are float32 as in Gymnasium

Environments that the stream never resets, or all at once, can be in halves (halves.py). One gives
the same stream for a seed, bit for bit, in halves or not, and with any number of threads. There are
as many threads as cores that this process may use, at most one per environment;
`env_kwargs={"num_threads": 1}` sets another number.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from upslope.errors import ArgumentError, suggest
from upslope.rollout.halves import Halves
from upslope.rollout.pool import fast

EQUAL = frozenset(
    {
        "Acrobot-v1",
        "CartPole-v1",
        "MountainCar-v0",
        "MountainCarContinuous-v0",
        "BipedalWalker-v3",
        "LunarLander-v3",
        "LunarLanderContinuous-v3",
        "Ant-v5",
        "HalfCheetah-v5",
        "Hopper-v5",
        "Humanoid-v5",
        "InvertedDoublePendulum-v5",
        "InvertedPendulum-v5",
        "Reacher-v5",
        "Swimmer-v5",
        "Walker2d-v5",
    }
)
"""Ids that were compared with Gymnasium's environment of that name, and are the same environment.

Step by step from equal states, except LunarLander, BipedalWalker, Ant and Humanoid (chaotic: by
their distributions under random actions). Not so is Pendulum-v1: at the highest speed EnvPool turns
it by the speed before it is limited. Every other id was not compared.
"""

TIMED = frozenset({"HalfCheetah-v5", "Reacher-v5", "Swimmer-v5"})
"""Ids of EQUAL whose episodes end by the time limit alone: those that began together, together."""

RESERVED = (
    *("num_envs", "batch_size", "max_num_players", "base_path", "seed", "env_seed"),
    *("gym_reset_return_info", "thread_affinity_offset"),
    *("task", "task_name", "xml_file"),  # a name that does not exist ends the process
)
"""Arguments of EnvPool that a user does not set: they are the stream's, or the id says them."""
NO_LIMIT = 2**31 - 1

_LANDER = np.array([2.5, 2.5, 10, 10, 2 * np.pi, 10, 1, 1], np.float32)
_LEG = [np.pi, 5, np.pi, 5, 5]
_WALKER = np.array([np.pi, 5, 5, 5, *_LEG, *_LEG, *[1] * 10], np.float32)
BOX2D = {  # (highest, which are at least 0): Gymnasium's bounds, for EnvPool has none
    "LunarLander-v3": (_LANDER, [6, 7]),
    "LunarLanderContinuous-v3": (_LANDER, [6, 7]),
    "BipedalWalker-v3": (_WALKER, [8, 13]),
}


def installed() -> bool:
    """Say whether EnvPool can be imported, without doing it: that takes two seconds."""
    return importlib.util.find_spec("envpool") is not None


@cache
def ids() -> frozenset[str]:
    """Return the ids that EnvPool knows; none where it is not installed."""
    return frozenset(_envpool().list_all_envs()) if installed() else frozenset()


class EnvPoolVectorEnv(VectorEnv):
    """N environments of EnvPool under one id.

    Raises ArgumentError for an id or a keyword argument that EnvPool does not take, and ImportError
    where EnvPool is not installed. The threads start with the first reset.
    """

    def __init__(self, env_id: str, num_envs: int, **kwargs: Any) -> None:
        self._envpool = _envpool()
        if env_id not in ids():
            raise ArgumentError(
                f"env={env_id!r} is not an environment that EnvPool knows{suggest(env_id, ids())}"
            )
        self._id, self.num_envs = env_id, num_envs
        self._ids = np.arange(num_envs, dtype=np.int32)
        self.spec = gymnasium.registry.get(env_id)
        mode = AutoresetMode.DISABLED if env_id in EQUAL else AutoresetMode.NEXT_STEP
        self.metadata = {**self.metadata, "autoreset_mode": mode}
        self._pool: Any = None
        self._halve = False
        self.in_halves: Halves | None = None
        self._limit = NO_LIMIT
        self._kwargs = self._checked(kwargs)
        observation_space, action_space, limit = self._described()
        self.single_observation_space = _observation_space(env_id, observation_space)
        self.single_action_space = _action_space(action_space)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        if env_id in EQUAL:
            self._limit, self._kwargs["max_episode_steps"] = limit, limit + 1

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, Any]:
        """Begin anew, in a new pool if there is a seed; or only where `options["reset_mask"]` says.

        The rows of other environments are then 0.
        """
        mask = (options or {}).get("reset_mask")
        if mask is None and (seed is not None or self._pool is None):
            self._make_pool(seed)
        if self.in_halves is not None:
            if mask is not None and not np.all(mask):
                raise ArgumentError("reset_mask takes all environments where they are in halves")
            return self.in_halves.reset()
        if mask is None:
            observation, info = self._pool.reset(self._ids)
            return observation, info
        rows = np.flatnonzero(mask).astype(np.int32)
        part, info = self._pool.reset(rows)
        return _scattered(part, rows, self.num_envs), info

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, Any]:
        """Step every environment; under DISABLED, one that ended must be reset first."""
        if self.in_halves is None:
            observation, reward, terminated, truncated, info = self._pool.step(
                self._packed(actions, self._ids)
            )
        else:
            observation, reward, terminated, truncated, info = self.in_halves.step(actions)
        return (
            observation,
            reward,
            terminated,
            truncated | (info["elapsed_step"] >= self._limit),
            info,
        )

    def halve(self) -> None:
        """Be in halves from the next pool on, if that can be."""
        alone = self._id in EQUAL - TIMED  # environments that are reset one by one
        self._halve = self.num_envs % 2 == 0 and cores() > 1 and not alone

    def close_extras(self, **kwargs: Any) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.close()
        self._pool = self.in_halves = None

    def _make_pool(self, seed: int | None) -> None:
        self.close_extras()
        if seed is None:
            seed = int(np.random.default_rng().integers(NO_LIMIT))
        seed %= 2**31 - self.num_envs  # environment i gets the seed + i, which takes 31 bits
        sizes = {"num_envs": self.num_envs, "batch_size": self.num_envs // (1 + self._halve)}
        with _quiet():
            pool = self._envpool.make_gymnasium(self._id, seed=seed, **sizes, **self._kwargs)
            _ = pool.observation_space  # made when it is first read
        *_, self._action = pool.spec.action_array_spec.items()
        self._pool = fast(pool)
        if self._halve:
            self.in_halves = Halves(self._pool, self._packed, self.num_envs, self._limit)

    def _packed(self, actions: Any, ids: np.ndarray) -> dict[str, np.ndarray]:
        """Return the actions of some environments with all that EnvPool would look up each time."""
        name, spec = self._action
        return {"env_id": ids, "players.env_id": ids, name: np.asarray(actions, spec.dtype, "C")}

    def _checked(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return the keyword arguments of a pool; raises ArgumentError for a wrong one."""
        config = self._envpool.make_spec(self._id).config
        known = set(config._fields) - set(RESERVED)
        for name, value in kwargs.items():
            if name not in known:
                raise ArgumentError(
                    f"env_kwargs has {name!r}, which EnvPool's {self._id} does not take"
                    f"{suggest(name, known)}; it takes {', '.join(sorted(known))}"
                )
            kind = type(getattr(config, name))
            if type(value) is not kind and not (kind is float and type(value) is int):
                raise ArgumentError(
                    f"env_kwargs has {name}={value!r}, where EnvPool's {self._id} takes "
                    f"{kind.__name__}"
                )
            if name in ("num_threads", "max_episode_steps") and value < 1:
                raise ArgumentError(f"env_kwargs has {name}={value}, which takes at least 1")
        return {"num_threads": min(self.num_envs, cores()), **kwargs}

    def _described(self) -> tuple[spaces.Space[Any], spaces.Space[Any], int]:
        """Return EnvPool's spaces and time limit; raises ArgumentError where it refuses."""
        try:
            with _quiet():
                spec = self._envpool.make_spec(self._id, num_envs=self.num_envs, **self._kwargs)
                found = spec.gymnasium_observation_space, spec.gymnasium_action_space
        except (TypeError, ValueError, RuntimeError, AssertionError) as error:
            raise ArgumentError(
                f"env_kwargs={self._kwargs} is not what EnvPool's {self._id} takes: {error}"
            ) from error
        return *found, spec.config.max_episode_steps


def cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep still Gymnasium's warnings on EnvPool's bounds, which are float64 and cast."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _envpool() -> Any:
    return importlib.import_module("envpool")


def _observation_space(env_id: str, space: spaces.Space[Any]) -> spaces.Space[Any]:
    if env_id in BOX2D:
        high, positive = BOX2D[env_id]
        low = -high
        low[positive] = -0.0
        return spaces.Box(low, high)
    if isinstance(space, spaces.Box) and space.dtype is not None and space.dtype.kind == "f":
        # Where there is no bound, EnvPool writes the smallest and the largest of C++.
        limits = np.finfo(space.dtype)
        low = np.where(space.low == limits.tiny, -np.inf, space.low).astype(space.dtype)
        high = np.where(space.high == limits.max, np.inf, space.high).astype(space.dtype)
        return spaces.Box(low, high, dtype=space.dtype.type)
    return space


def _action_space(space: spaces.Space[Any]) -> spaces.Space[Any]:
    if isinstance(space, spaces.Box):
        return spaces.Box(space.low.astype(np.float32), space.high.astype(np.float32))
    return space


def _scattered(part: Any, rows: np.ndarray, n_envs: int) -> Any:
    """Return arrays [N, ...] with `part` [n, ...] in the given rows and 0 elsewhere."""
    if isinstance(part, dict):
        return {name: _scattered(inner, rows, n_envs) for name, inner in part.items()}
    whole = np.zeros((n_envs, *part.shape[1:]), part.dtype)
    whole[rows] = part
    return whole
