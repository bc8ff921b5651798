"""What a run is told: the algorithm, the environment, for how long, and every setting.

    runs/NAME/config.toml    algorithm, env, total_timesteps, [env_kwargs], [evaluation], [settings]
"""

from __future__ import annotations

import dataclasses
import os
import tomllib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from upslope import recipes
from upslope.errors import ConfigError, RunError, suggest
from upslope.runs.toml import dumps

NONE = "none"  # TOML has no word for it


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """How a run is evaluated, apart from learning."""

    freq: int | None = None
    """Environment steps between evaluations; the best policy is kept. None: only at the end."""
    episodes: int = 20
    """Episodes of each evaluation while learning."""
    final_episodes: int = 100
    """Episodes of the evaluation at the end, of the best policy (the last where none was kept)."""
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    """What the environment is made with while learning, when it is to differ from training."""
    final_env_kwargs: dict[str, Any] = field(default_factory=dict)
    """The same for the evaluation at the end."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A run's whole configuration."""

    algorithm: str
    env: str
    total_timesteps: int
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    backend: str = "auto"
    checkpoint_seconds: float = 30.0
    evaluation: Evaluation = field(default_factory=Evaluation)
    settings: dict[str, Any] = field(default_factory=dict)
    """The fields of the algorithm's own configuration."""

    def write(self, folder: Path) -> None:
        """Write `config.toml`, atomically."""
        aside = folder / ".config.toml.tmp"
        with aside.open("w") as file:
            table = asdict(self)
            table["settings"] = {k: NONE if v is None else v for k, v in self.settings.items()}
            file.write(dumps(table))
            file.flush()
            os.fsync(file.fileno())
        aside.replace(folder / "config.toml")

    @classmethod
    def read(cls, folder: Path) -> RunConfig:
        """Read `config.toml`; raises RunError when it is not there or not what a run writes."""
        path = folder / "config.toml"
        try:
            found = tomllib.loads(path.read_text())
        except FileNotFoundError:
            raise RunError(f"{folder} is not a run: it holds no config.toml") from None
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise RunError(f"{path} cannot be read: {error}") from error
        try:
            settings = found.get("settings", {})
            found["settings"] = {k: None if v == NONE else v for k, v in settings.items()}
            found["evaluation"] = build(Evaluation, found.get("evaluation", {}))
            return build(cls, found)
        except ConfigError as error:
            raise RunError(f"{path}: {error}") from error


def build(kind: type[Any], table: dict[str, Any]) -> Any:
    """Return the dataclass `kind` of a table; raises ConfigError for a name it does not have."""
    fields = {item.name: item for item in dataclasses.fields(kind)}
    for name in table:
        if name not in fields:
            raise ConfigError(f"there is no {name!r} here{suggest(name, fields)}")
    missing = dataclasses.MISSING
    for name, item in fields.items():
        if name not in table and item.default is missing and item.default_factory is missing:
            raise ConfigError(f"{name} is missing")
    return kind(**table)


def from_recipe(algorithm: str, env: str) -> RunConfig | None:
    """Return the recipe for an environment as a run's configuration, or None if there is none."""
    if env not in recipes.names(algorithm):
        return None
    recipe = recipes.find(algorithm, env)
    return RunConfig(
        algorithm=algorithm,
        env=env,
        total_timesteps=recipe.total_timesteps,
        env_kwargs=recipe.env_kwargs,
        evaluation=build(Evaluation, recipe.evaluation),
        settings=recipe.settings,
    )
