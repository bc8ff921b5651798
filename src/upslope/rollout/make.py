"""Making a stream from whatever a user has: an id, a factory, or environments that exist.

The backend of an id is the first of this table that the id has and that can be imported here, never
the outcome of a timing:

    1. vector_entry_point   one object that steps all N environments, written for it
    2. sync                 N environments in this process, one after the other
    -  async                N worker processes; only on request, `backend="async"`

Sync and async environments are made with autoreset DISABLED: the stream itself resets what has
ended, after it has copied the last observation, so that an environment that returns the same array
each time cannot overwrite that observation in its reset.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv

from upslope.errors import ArgumentError, suggest
from upslope.rollout.stream import Stream

PREFERENCE = ("vector_entry_point", "sync")
BACKENDS = ("vector_entry_point", "sync", "async")

Environment = str | Callable[[], gymnasium.Env] | gymnasium.Env | VectorEnv


def make_stream(
    env: Environment,
    n_envs: int | None = None,
    *,
    env_kwargs: Mapping[str, Any] | None = None,
    backend: str = "auto",
    allow_import: bool = True,
) -> Stream:
    """Return a stream of `n_envs` environments.

    `env` is an id of Gymnasium's registry (`"module:Env-v0"` imports the module first, unless
    `allow_import` is False), a factory of environments, or an environment or vector environment
    that exists. `env_kwargs` go to the id or the factory, of which `n_envs=None` makes one.

    Raises ArgumentError for anything it cannot make a stream of.
    """
    if n_envs is not None and (
        isinstance(n_envs, bool) or not isinstance(n_envs, int | np.integer)
    ):
        raise ArgumentError(f"n_envs takes a whole number of at least 1, got {n_envs!r}")
    if n_envs is not None and n_envs < 1:
        raise ArgumentError(f"n_envs takes a whole number of at least 1, got {n_envs}")
    if backend not in ("auto", *BACKENDS):
        options = ", ".join(map(repr, ("auto", *BACKENDS)))
        raise ArgumentError(
            f"backend takes one of {options}, got {backend!r}{suggest(backend, BACKENDS)}"
        )
    kwargs = dict(env_kwargs or {})
    if isinstance(env, gymnasium.Env | VectorEnv):
        return _from_instance(env, n_envs, kwargs, backend)
    if isinstance(env, str):
        _import_environments(env, allow_import)
        return _from_id(env, int(n_envs or 1), kwargs, backend)
    if callable(env):
        return _from_factory(partial(env, **kwargs), int(n_envs or 1), backend)
    raise ArgumentError(
        "env takes an environment id, a factory of environments, a gymnasium.Env or a "
        f"gymnasium.vector.VectorEnv, got {type(env).__name__}"
    )


def _from_instance(
    env: gymnasium.Env | VectorEnv, n_envs: int | None, kwargs: dict[str, Any], backend: str
) -> Stream:
    if kwargs or backend != "auto":
        given = f"env_kwargs={kwargs}" if kwargs else f"backend={backend!r}"
        raise ArgumentError(
            f"{given} is for an id or a factory, and env is an environment that exists"
        )
    found = env.num_envs if isinstance(env, VectorEnv) else 1
    if n_envs not in (None, found):
        raise ArgumentError(
            f"n_envs={n_envs}, but the environment given counts {found}: an id or a factory can be "
            "copied, an environment that exists cannot"
        )
    if isinstance(env, VectorEnv):
        return Stream(env=env)
    single = SyncVectorEnv([lambda: env], copy=False, autoreset_mode=AutoresetMode.DISABLED)
    single.closed = True  # Gymnasium 1.1 would close the caller's environment with it
    return Stream(env=single)


def _from_id(env_id: str, n_envs: int, kwargs: dict[str, Any], backend: str) -> Stream:
    spec = _spec(env_id)
    reasons: list[str] = []
    cause: Exception | None = None
    for choice in PREFERENCE if backend == "auto" else (backend,):
        if choice == "vector_entry_point" and spec.vector_entry_point is None:
            reasons.append("it has no vectorised entry point")
            continue
        make: Callable[[], VectorEnv] = partial(
            gymnasium.make_vec,
            spec.id,
            num_envs=n_envs,
            vectorization_mode=choice,
            vector_kwargs=_vector_kwargs(choice),
            **kwargs,
        )
        try:
            return Stream(make, make(), backend=choice)
        except (ImportError, gymnasium.error.DependencyNotInstalled) as error:
            reasons.append(f"{choice} fails with {error}")
            cause = error
        except (TypeError, gymnasium.error.Error) as error:
            with_kwargs = f" with env_kwargs={kwargs}" if kwargs else ""
            raise ArgumentError(
                f"env={env_id!r} cannot be made as {choice}{with_kwargs}: {error}"
            ) from error
    raise ArgumentError(f"env={env_id!r} cannot be made here: {'; '.join(reasons)}") from cause


def _from_factory(factory: Callable[[], Any], n_envs: int, backend: str) -> Stream:
    if backend == "vector_entry_point":
        raise ArgumentError("backend='vector_entry_point' is for an id, and env is a factory")
    choice = "sync" if backend == "auto" else backend
    kind = AsyncVectorEnv if choice == "async" else SyncVectorEnv

    def checked() -> gymnasium.Env:
        env = factory()
        if not isinstance(env, gymnasium.Env):
            raise ArgumentError(
                f"env is a factory that takes to return a gymnasium.Env, got {env!r}"
            )
        return env

    def make() -> VectorEnv:
        return kind([checked] * n_envs, **_vector_kwargs(choice))

    return Stream(make, make(), backend=choice)


def _vector_kwargs(choice: str) -> dict[str, Any]:
    if choice == "vector_entry_point":
        return {}
    ours: dict[str, Any] = {"copy": False, "autoreset_mode": AutoresetMode.DISABLED}
    # A worker that is forked shares locks and open files with this process, and outlives it.
    return ours | {"context": "spawn"} if choice == "async" else ours


def _import_environments(env_id: str, allow_import: bool) -> None:
    importlib.import_module("upslope.envs")
    module, _, _ = env_id.rpartition(":")
    if not module:
        return
    if not allow_import:
        raise ArgumentError(
            f"env={env_id!r} imports the module {module!r}, which is not allowed here: import it "
            "first and give the id alone"
        )
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise ArgumentError(f"env={env_id!r}: {module!r} cannot be imported: {error}") from error


def _spec(env_id: str) -> Any:
    name = env_id.rpartition(":")[2]
    if name not in gymnasium.registry:
        raise ArgumentError(
            f"env={env_id!r} is not an environment that Gymnasium knows"
            f"{suggest(name, gymnasium.registry)}; 'module:Env-v0' imports what registers it first"
        )
    return gymnasium.registry[name]
