"""A run: train in a folder, so that it can be watched, stopped, killed and gone on with.

    runs/NAME/config.toml          what it was told
    runs/NAME/metrics.csv          a row per iteration;  runs/NAME/tensorboard/, the same as events
    runs/NAME/checkpoints/step-K   the state after iteration K, the last three kept
    runs/NAME/best/                the state at the best evaluation
    runs/NAME/evaluation.json      the last evaluation that was asked for
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from upslope import checkpoint
from upslope.agents.agent import Agent
from upslope.agents.evaluation import Episodes, run_episodes
from upslope.agents.saving import made_with
from upslope.agents.table import algorithm_class
from upslope.errors import CheckpointError, ConfigError, RunError
from upslope.runs.configuration import RunConfig
from upslope.runs.metrics import MetricsWriter
from upslope.runs.signals import StopSignals
from upslope.seeding import derive32

Say = Callable[[str], None]


@dataclasses.dataclass
class Outcome:
    """How a run's training ended."""

    agent: Agent[Any]
    finished: bool
    exit_code: int = 0


def create(folder: Path, config: RunConfig) -> None:
    """Make a run's folder and write its configuration; refuses a folder that exists."""
    if folder.exists():
        raise RunError(
            f"{folder} exists: choose another name (--name), or go on with it: "
            f"upslope train {folder} --resume"
        )
    try:
        folder.mkdir(parents=True)
        config.write(folder)
    except OSError as error:
        raise RunError(f"{folder} cannot be written: {error.strerror}") from error


def free_name(parent: Path, wanted: str) -> Path:
    """Return parent/wanted, or the first of wanted-2, wanted-3, ... that is free."""
    clean = re.sub(r"[^A-Za-z0-9._-]+", "-", wanted).strip("-.")
    names = (clean if k == 1 else f"{clean}-{k}" for k in range(1, 10_000))
    return next(parent / name for name in names if not (parent / name).exists())


def make_agent(config: RunConfig) -> Agent[Any]:
    """Return the untrained agent of a configuration."""
    kind = algorithm_class(config.algorithm)
    return kind(
        config.env, env_kwargs=config.env_kwargs, backend=config.backend, **config.settings
    )


def train(
    folder: Path,
    config: RunConfig,
    *,
    agent: Agent[Any] | None = None,
    max_seconds: float | None = None,
    progress: bool = True,
    say: Say = print,
) -> Outcome:
    """Train in `folder`, from where its newest valid checkpoint is, or from the start.

    Stops at the end, after `max_seconds` of training in this process, or at a signal; saves then,
    and every `config.checkpoint_seconds`. Raises RunError when another process is at it.
    """
    with locked(folder), StopSignals() as signals:
        agent = resumed(folder, config, agent or make_agent(config), say)
        metrics = MetricsWriter(folder, from_iteration=agent.iteration)
        clock = time.monotonic()
        last_save = clock

        def after_iteration(agent: Agent[Any], row: dict[str, float]) -> bool | None:
            nonlocal last_save
            metrics.write(agent.iteration, agent.num_timesteps, row)
            if "eval_return" in row and agent.best.timesteps == agent.num_timesteps:
                agent.save(folder / "best")
            now = time.monotonic()
            over = max_seconds is not None and now - clock >= max_seconds
            if signals.received is not None or over:
                return False
            if now - last_save >= config.checkpoint_seconds:
                save(folder, agent)
                last_save = time.monotonic()
            return None

        evaluation = config.evaluation
        try:
            agent.go_on(
                after_iteration,
                progress_bar=progress,
                eval_freq=evaluation.freq,
                n_eval_episodes=evaluation.episodes,
                eval_env_kwargs=config.env_kwargs | evaluation.env_kwargs,
            )
            save(folder, agent)
        finally:
            metrics.close()
    finished = agent.num_timesteps >= agent.target_timesteps
    return Outcome(agent, finished, signals.exit_code)


def save(folder: Path, agent: Agent[Any]) -> Path:
    """Save a checkpoint of the agent into its run."""
    name = checkpoint.step_name(agent.iteration)
    return checkpoint.write(folder / "checkpoints", name, *agent.state())


def resumed(folder: Path, config: RunConfig, agent: Agent[Any], say: Say) -> Agent[Any]:
    """Return the agent at the newest valid checkpoint of its run; damaged ones are said aloud.

    Raises RunError when what was saved is of other settings than `config.toml` now says.
    """
    agent.target_timesteps = config.total_timesteps
    found = checkpoint.list_checkpoints(folder / "checkpoints")
    if not found:
        return agent
    newest = checkpoint.newest_valid(folder / "checkpoints")
    for path, reason in newest.refused:
        say(f"{path.name} is refused, the checkpoint before it is used: {reason}")
    own = agent.state()[1]
    for name in ("config", "env", "env_kwargs", "backend"):
        changed = differences(newest.meta.get(name), own[name])
        if changed:
            raise RunError(
                f"{folder}/config.toml is not what {newest.path.name} was trained with: "
                f"{name}: {changed}; a run goes on with its own settings only"
            )
    threads = newest.meta["made_with"]["threads"]
    if threads != torch.get_num_threads():
        torch.set_num_threads(threads)
    for name, now in made_with().items():
        before = newest.meta["made_with"].get(name)
        if before != now:
            say(f"{name} was {before} and is {now}: the run goes on, but not bit for bit the same")
    agent.load_state(newest.tensors, newest.meta)
    agent.target_timesteps = config.total_timesteps
    say(f"going on from {newest.path.name} ({agent.num_timesteps:,} steps)")
    return agent


def differences(saved: Any, now: Any) -> str:
    """Return what differs between two settings, "" when nothing does."""
    saved, now = json.loads(json.dumps(saved)), json.loads(json.dumps(now))
    if not (isinstance(saved, dict) and isinstance(now, dict)):
        return "" if saved == now else f"{saved!r} saved, {now!r} now"
    names = sorted({*saved, *now})
    pairs = ((name, saved.get(name), now.get(name)) for name in names)
    return ", ".join(f"{name} {old!r} saved, {new!r} now" for name, old, new in pairs if old != new)


def load_agent(folder: Path, *, which: str = "best", say: Say = print) -> Agent[Any]:
    """Return a run's agent: its best policy where one was kept, else (or if asked) its last."""
    if which == "best" and (folder / "best").exists():
        tensors, meta = checkpoint.read(folder / "best")
    else:
        newest = checkpoint.newest_valid(folder / "checkpoints")
        tensors, meta = newest.tensors, newest.meta
        for path, reason in newest.refused:
            say(f"{path.name} is refused, the checkpoint before it is used: {reason}")
    if "algorithm" not in meta:
        raise CheckpointError(f"{folder}: its checkpoint names no algorithm")
    return algorithm_class(meta["algorithm"]).from_state(tensors, meta, path=folder)


def evaluate(
    folder: Path,
    *,
    episodes: int | None = None,
    which: str = "best",
    seed: int | None = None,
    env_kwargs: dict[str, Any] | None = None,
    say: Say = print,
) -> Episodes:
    """Play whole episodes with a run's policy, deterministically, and write `evaluation.json`.

    The environments' seeds are derived from the run's for this purpose alone: no episode here was
    seen in training or in choosing the best policy.
    """
    config = RunConfig.read(folder)
    agent = load_agent(folder, which=which, say=say)
    played = run_episodes(
        agent,
        config.env,
        episodes or config.evaluation.final_episodes,
        seed=derive32(agent.config.seed, "final evaluation") if seed is None else seed,
        env_kwargs=config.env_kwargs | (env_kwargs or config.evaluation.final_env_kwargs),
    )
    scored = not np.isnan(played.scores).any()
    told = {
        "policy": which,
        "timesteps": agent.num_timesteps,
        "returns": played.returns.tolist(),
        "lengths": played.lengths.tolist(),
        "scores": played.scores.tolist() if scored else None,
    }
    aside = folder / ".evaluation.json.tmp"
    aside.write_text(json.dumps(told) + "\n")
    aside.replace(folder / "evaluation.json")
    return played


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the run's lock, which the system lets go of however the process ends."""
    path = folder / "lock"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise RunError(f"{folder} cannot be written: {error.strerror}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.read(descriptor, 20).decode(errors="replace").strip()
            raise RunError(f"{folder} is being trained by process {holder or '?'}") from None
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def check(config: RunConfig) -> Agent[Any]:
    """Return the agent of a configuration: what is wrong with it is said before a folder is made."""
    if config.total_timesteps < 1:
        raise ConfigError(
            f"total_timesteps={config.total_timesteps}: it takes a whole number of at least 1"
        )
    return make_agent(config)
