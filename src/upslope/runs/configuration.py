"""What a run is told: the algorithm, the environment, for how long, and every setting.

runs/NAME/config.toml    algorithm, env, total_timesteps, [env_kwargs], [evaluation], [settings]
"""

from __future__ import annotations

import dataclasses
import math
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from upslope import recipes
from upslope.errors import ArgumentError, ConfigError, RunError, suggest
from upslope.records.files import read_toml, replace_text
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

    def __post_init__(self) -> None:
        check(self, freq=1, episodes=1, final_episodes=0)


MOST_THREADS = 1024  # many more take all memory before the first step


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A run's whole configuration."""

    algorithm: str
    env: str
    total_timesteps: int
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    backend: str = "auto"
    threads: int | None = None
    """Threads of torch; None leaves it the choice. Sums differ between one thread and two."""
    checkpoint_seconds: float = 30.0
    evaluation: Evaluation = field(default_factory=Evaluation)
    settings: dict[str, Any] = field(default_factory=dict)
    """The fields of the algorithm's own configuration."""

    def __post_init__(self) -> None:
        check(self, total_timesteps=1, threads=1, checkpoint_seconds=0)
        if self.threads is not None and self.threads > MOST_THREADS:
            raise ConfigError(f"threads={self.threads}: it takes at most {MOST_THREADS:,}")

    def write(self, folder: Path) -> None:
        """Write `config.toml`, atomically."""
        table = asdict(self)
        table["settings"] = {k: NONE if v is None else v for k, v in self.settings.items()}
        replace_text(folder / "config.toml", dumps(table))

    @classmethod
    def read(cls, folder: Path, *, allow_import: bool = False) -> RunConfig:
        """Read `config.toml`; raises RunError when it is not there or not what a run writes.

        An environment `"module:Env-v0"` is refused unless `allow_import` or the module is imported
        already: a file that came from elsewhere does not decide what is run here.
        """
        path = folder / "config.toml"
        try:
            found = read_toml(path)
        except (FileNotFoundError, NotADirectoryError):
            raise RunError(f"{folder} is not a run: it holds no config.toml") from None
        except (OSError, ValueError) as error:  # not UTF-8, not TOML
            raise RunError(f"{path} cannot be read: {error}") from error
        try:
            config: RunConfig = build(cls, found)
            evaluation = build(Evaluation, found.get("evaluation", {}))
        except ConfigError as error:
            raise RunError(f"{path}: {error}") from error
        module = config.env.rpartition(":")[0]
        if module and not allow_import and module not in sys.modules:
            raise RunError(f"{path} has the module {module!r} imported: --allow-import allows it")
        settings = {k: None if v == NONE else v for k, v in config.settings.items()}
        return dataclasses.replace(config, evaluation=evaluation, settings=settings)


TAKES: dict[str, tuple[Any, str]] = {
    "str": (str, "text"),
    "int": (int, "a whole number"),
    "int | None": (int | None, "a whole number"),
    "float": (int | float, "a number"),
    "dict[str, Any]": (dict, "a table"),
    "Evaluation": (dict | Evaluation, "a table"),
}


def check(config: Any, **least: int) -> None:
    """Raise ConfigError for a field that is not of its declared type, or below its least."""
    for item in dataclasses.fields(config):
        value, low = getattr(config, item.name), least.get(item.name)
        kind, takes = TAKES[str(item.type)]
        fits = isinstance(value, kind) and not isinstance(value, bool)
        if low is not None:
            takes += f" of at least {low}"
            fits = fits and (value is None or low <= value < math.inf)
        if not fits:
            part = "evaluation." if isinstance(config, Evaluation) else ""
            raise ConfigError(f"{part}{item.name}={value!r}: it takes {takes}")


def check_limit(max_seconds: float | None) -> None:
    """Raise ArgumentError for what is no length of time."""
    if max_seconds is not None and not max_seconds >= 0:
        raise ArgumentError(f"max_seconds={max_seconds}: it takes seconds, a number of at least 0")


def build(kind: type[Any], table: Any) -> Any:
    """Return the dataclass `kind` of a table; raises ConfigError for a name it does not have."""
    if not isinstance(table, dict):
        raise ConfigError(f"{table!r} stands where a table is taken")
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
        threads=recipe.threads,
        evaluation=build(Evaluation, recipe.evaluation),
        settings=recipe.settings,
    )
