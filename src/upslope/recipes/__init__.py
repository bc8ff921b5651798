"""Recipes: settings that were found good, one TOML file per algorithm and environment.

    recipes/ppo/CartPole-v1.toml    total_timesteps, threads, [env_kwargs], [evaluation], [settings]

A slash in an environment's id is a double underscore in the file's name. Each value in a file has
its source beside it.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any

from upslope.errors import ConfigError, suggest


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a recipe's file says."""

    algorithm: str
    env: str
    total_timesteps: int
    threads: int | None = None
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    evaluation: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)


def folded(algorithm: str) -> str:
    """Return an algorithm's name without capitals and underscores: QLearning is q_learning."""
    return algorithm.lower().replace("_", "").replace("-", "")


def _folder(algorithm: str) -> Traversable | None:
    """Return where an algorithm's recipes are; None if there are none."""
    found = (
        entry for entry in files(__name__).iterdir() if folded(entry.name) == folded(algorithm)
    )
    return next(found, None)


def names(algorithm: str) -> list[str]:
    """Return the ids of the environments that an algorithm has a recipe for."""
    folder = _folder(algorithm)
    found = [] if folder is None else [entry.name for entry in folder.iterdir()]
    return sorted(n.removesuffix(".toml").replace("__", "/") for n in found if n.endswith(".toml"))


def find(algorithm: str, env: str) -> Recipe:
    """Return the recipe for an environment id; raises ConfigError if there is none."""
    known = names(algorithm)
    if env not in known:
        raise ConfigError(
            f"there is no {algorithm} recipe for {env!r}{suggest(env, known)}; there is one for "
            + ", ".join(known)
        )
    folder = _folder(algorithm)
    assert folder is not None
    found = tomllib.loads((folder / f"{env.replace('/', '__')}.toml").read_text())
    return Recipe(algorithm=algorithm, env=env, **found)
