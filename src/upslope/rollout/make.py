"""Making a stream from whatever a user has: an id, a factory, or environments that exist.

The backend of an id is the first of this table that the id has and that can be imported here, never
the outcome of a timing:

    1. vector_entry_point   one object that steps all N environments, written for it
    2. envpool              N environments in threads of EnvPool, for the ids under which it has the
                            environment that Gymnasium has (envpool.EQUAL), without env_kwargs other
                            than num_threads; and for ids that only EnvPool knows, such as Pong-v5
    3. sync                 N environments in this process, one after the other
    -  async                N worker processes; only on request, `backend="async"`

`backend="envpool"` takes any id that EnvPool knows. Sync and async environments are made with
autoreset DISABLED: the stream itself resets what has ended, after it has copied the last
observation, so that an environment that returns the same array each time cannot overwrite that
observation in its reset.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

from upslope.errors import ArgumentError, suggest
from upslope.rollout import envpool
from upslope.rollout.resident import ResidentStream, device_of
from upslope.rollout.stream import Stream
from upslope.rollout.worker_env import WorkerVectorEnv

PREFERENCE = ("vector_entry_point", "envpool", "sync")
BACKENDS = (*PREFERENCE, "async")
IN_PROCESS: dict[str, Any] = {"copy": False, "autoreset_mode": AutoresetMode.DISABLED}

MOST_ENVS = 2**20

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

    `env` is an id of Gymnasium's registry or of EnvPool's (`"module:Env-v0"` imports the module
    first, unless `allow_import` is False), a factory of environments, or an environment or vector
    environment that exists. `env_kwargs` go to the id or the factory, of which `n_envs=None` makes
    one.

    Raises ArgumentError for anything it cannot make a stream of.
    """
    if n_envs is not None and (
        isinstance(n_envs, bool) or not isinstance(n_envs, int | np.integer)
    ):
        raise ArgumentError(f"n_envs takes a whole number of at least 1, got {n_envs!r}")
    if n_envs is not None and not 1 <= n_envs <= MOST_ENVS:
        bounds = f"at least 1 and at most {MOST_ENVS:,}"
        raise ArgumentError(f"n_envs takes a whole number of {bounds}, got {n_envs}")
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
        device = device_of(env)
        return Stream(env=env) if device is None else ResidentStream(env, device)
    single = SyncVectorEnv([lambda: env], copy=False, autoreset_mode=AutoresetMode.DISABLED)
    single.closed = True  # Gymnasium 1.1 would close the caller's environment with it
    return Stream(env=single)


def _from_id(env_id: str, n_envs: int, kwargs: dict[str, Any], backend: str) -> Stream:
    name = env_id.rpartition(":")[2]
    reasons: list[str] = []
    cause: Exception | None = None
    for choice in _choices(env_id, name, kwargs) if backend == "auto" else (backend,):
        if choice == "envpool" and not envpool.installed():
            reasons.append("EnvPool is not installed: pip install 'upslope[envpool]'")
            continue
        if choice != "envpool":
            spec = _spec(env_id, name)
            if choice == "vector_entry_point" and spec.vector_entry_point is None:
                reasons.append("it has no vectorised entry point")
                continue
        make = _maker(choice, name, n_envs, kwargs)
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


def _choices(env_id: str, name: str, kwargs: dict[str, Any]) -> tuple[str, ...]:
    """Return the backends to try for an id, in order of preference."""
    if name not in gymnasium.registry:
        if name in envpool.ids():
            return ("envpool",)
        _spec(env_id, name)  # raises
    # With keyword arguments it is not known whether both mean the same environment.
    if name in envpool.EQUAL and kwargs.keys() <= {"num_threads"} and envpool.installed():
        return PREFERENCE
    return tuple(choice for choice in PREFERENCE if choice != "envpool")


def checked_kwargs(env_kwargs: Any) -> dict[str, Any]:
    """Return them as a dictionary; raises ArgumentError where they are none."""
    if not isinstance(env_kwargs, Mapping | None):
        raise ArgumentError(f"env_kwargs={env_kwargs!r}: it takes a dictionary")
    return dict(env_kwargs or {})


def _maker(choice: str, name: str, n_envs: int, kwargs: dict[str, Any]) -> Callable[[], VectorEnv]:
    if choice == "envpool":
        return partial(envpool.EnvPoolVectorEnv, name, n_envs, **kwargs)
    if choice == "async":
        one = partial(gymnasium.make, gymnasium.registry[name], **kwargs)
        return partial(WorkerVectorEnv, [one] * n_envs)
    return partial(
        gymnasium.make_vec,
        gymnasium.registry[name].id,
        num_envs=n_envs,
        vectorization_mode=choice,
        vector_kwargs={} if choice == "vector_entry_point" else IN_PROCESS,
        **kwargs,
    )


def _from_factory(factory: Callable[[], Any], n_envs: int, backend: str) -> Stream:
    if backend in ("vector_entry_point", "envpool"):
        raise ArgumentError(f"backend={backend!r} is for an id, and env is a factory")
    choice = "sync" if backend == "auto" else backend

    def checked() -> gymnasium.Env:
        env = factory()
        if not isinstance(env, gymnasium.Env):
            raise ArgumentError(
                f"env is a factory that takes to return a gymnasium.Env, got {env!r}"
            )
        return env

    def make() -> VectorEnv:
        if choice == "async":
            return WorkerVectorEnv([checked] * n_envs)
        return SyncVectorEnv([checked] * n_envs, **IN_PROCESS)

    return Stream(make, make(), backend=choice)


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


def _spec(env_id: str, name: str) -> Any:
    if name not in gymnasium.registry:
        if name in envpool.ids():
            raise ArgumentError(f"env={env_id!r} is EnvPool's, and takes backend='envpool'")
        here = envpool.installed()
        known = {*gymnasium.registry, *envpool.ids()}
        also = "" if here else ", and EnvPool, which has more, is not installed"
        raise ArgumentError(
            f"env={env_id!r} is not an environment that Gymnasium{' or EnvPool' * here} knows"
            f"{suggest(name, known)}{also}; 'module:Env-v0' imports what registers it first"
        )
    return gymnasium.registry[name]
