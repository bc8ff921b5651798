"""A run: train in a folder, so that it can be watched, stopped, killed and gone on with.

runs/NAME/config.toml          what it was told
runs/NAME/metrics.csv          a row per iteration;  runs/NAME/tensorboard/, the same as events
runs/NAME/checkpoints/step-K   the state after iteration K, the last three kept
runs/NAME/best/                the state at the best evaluation
runs/NAME/not-finite           what an update failed on, where a gradient was not finite
runs/NAME/evaluation.json      the last evaluation that was asked for
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import re
import shutil
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
from upslope.errors import ArgumentError, Interrupted, NotFiniteError, RunError
from upslope.records.files import explained, replace_text
from upslope.runs.configuration import RunConfig, check_limit
from upslope.runs.evidence import keep_evidence
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
    """Make a run's folder, its configuration in it; refuses a folder that exists.

    It is made aside and renamed, so that a kill leaves no folder without a configuration.
    """
    if os.path.lexists(folder):
        raise RunError(
            f"{folder} exists: choose another name (--name), or go on with it: "
            f"upslope train {folder} --resume"
        )
    aside = folder.with_name(f".{folder.name}.tmp-{os.getpid()}")
    try:
        with explained(folder):
            aside.mkdir(parents=True, exist_ok=True)
            config.write(aside)
            aside.rename(folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def named(parent: Path, name: str) -> Path:
    """Return parent/name; raises ArgumentError for a name that leads elsewhere, such as "../x"."""
    if name in ("", ".", "..") or Path(name).name != name:
        raise ArgumentError(f"--name {name!r}: it takes a name without slashes, such as 'first'")
    return parent / name


def free_name(parent: Path, wanted: str) -> Path:
    """Return parent/wanted, or the first of wanted-2, wanted-3, ... that is free."""
    clean = re.sub(r"[^A-Za-z0-9._-]+", "-", wanted).strip("-.") or "run"
    names = (clean if k == 1 else f"{clean}-{k}" for k in range(1, 10_000))
    return next(parent / name for name in names if not (parent / name).exists())


def make_agent(config: RunConfig) -> Agent[Any]:
    """Return the untrained agent of a configuration."""
    kind = algorithm_class(config.algorithm)
    return kind(config.env, env_kwargs=config.env_kwargs, backend=config.backend, **config.settings)


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
    and every `config.checkpoint_seconds`. An evaluation that a signal ends is played again when the
    run goes on. Raises RunError when another process is at it.
    """
    check_limit(max_seconds)
    with locked(folder), StopSignals() as signals:
        with explained(folder / "checkpoints"):  # now, not when the first of them is to be saved
            (folder / "checkpoints").mkdir(exist_ok=True)
        agent = resumed(folder, config, agent or make_agent(config), say)
        say(f"engine: {agent.engine.description}")
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        agent.engine.claim_threads()
        metrics = MetricsWriter(folder, from_iteration=agent.iteration)
        saved = agent.iteration
        clock = last_save = time.monotonic()
        agent.interrupted = lambda: signals.exit_code

        def after_iteration(agent: Agent[Any], row: dict[str, float]) -> bool | None:
            nonlocal saved, last_save
            metrics.write(agent.iteration, agent.num_timesteps, row)
            if "eval_return" in row and agent.best.timesteps == agent.num_timesteps:
                agent.save(folder / "best")
            now = time.monotonic()
            over = max_seconds is not None and now - clock >= max_seconds
            if signals.received is not None or over:
                return False
            if now - last_save >= config.checkpoint_seconds:
                save(folder, agent)
                saved, last_save = agent.iteration, time.monotonic()
            return None

        evaluation, finished = config.evaluation, False
        try:
            agent.go_on(
                after_iteration,
                progress_bar=progress,
                eval_freq=evaluation.freq,
                n_eval_episodes=evaluation.episodes,
                eval_env_kwargs=config.env_kwargs | evaluation.env_kwargs,
            )
            if agent.iteration != saved:
                save(folder, agent)
            finished = agent.num_timesteps >= agent.target_timesteps
        except Interrupted:  # nothing is saved: the evaluation would be missing from what goes on
            pass
        except Exception as error:
            if isinstance(error, NotFiniteError):
                error.add_note(keep_evidence(folder, agent))
            error.add_note(last_checkpoint(folder))
            raise
        finally:
            metrics.close()
            torch.set_num_threads(agent.engine.threads)
    return Outcome(agent, finished, signals.exit_code)


def save(folder: Path, agent: Agent[Any]) -> Path:
    """Save a checkpoint of the agent into its run; raises RunError when that was taken away."""
    if not (folder / "config.toml").exists():
        raise RunError(
            f"{folder} is no run any more: somebody moved or removed it while it trained"
        )
    name = checkpoint.step_name(agent.iteration)
    return checkpoint.write(folder / "checkpoints", name, *agent.state())


def last_checkpoint(folder: Path) -> str:
    """Return a sentence that names the newest checkpoint of a run."""
    found = checkpoint.list_checkpoints(folder / "checkpoints")
    if not found:
        return "No checkpoint had been saved yet."
    return f"The last checkpoint, {folder / 'checkpoints' / found[0].name}, is intact."


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
    meta, own = newest.meta, agent.state()[1]
    settings = ("algorithm", "env", "env_kwargs", "backend", "config")
    changed = {name: differences(meta.get(name), own[name]) for name in settings}
    before = meta.get("made_with", {})  # without it, `load_state` refuses below
    threads = before.get("threads", torch.get_num_threads())
    if config.threads is not None:
        changed["threads"] = differences(threads, config.threads)
    if any(changed.values()):
        listed = "; ".join(f"{name}: {how}" for name, how in changed.items() if how)
        raise RunError(
            f"{folder}/config.toml is not what {newest.path.name} was trained with, and a run goes "
            f"on with its own settings only: {listed}"
        )
    agent.load_state(newest.tensors, meta, newest.path)
    agent.target_timesteps = config.total_timesteps
    if meta["target_timesteps"] != config.total_timesteps:
        say(
            f"total_timesteps was {meta['target_timesteps']:,} and is {config.total_timesteps:,}: "
            "the run and its schedules go on to there"
        )
    torch.set_num_threads(threads)
    for name, now in made_with(agent.engine).items():
        was = before.get(name)
        if was != now:
            say(f"{name} was {was} and is {now}: the run goes on, but not bit for bit the same")
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


def has_best(folder: Path) -> bool:
    """Say whether a run has kept a best policy."""
    return any((folder / name).exists() for name in ("best", "best.replaced"))


def load_agent(
    folder: Path, config: RunConfig, *, which: str = "best", say: Say = print
) -> Agent[Any]:
    """Return a run's agent: its best policy where one was kept, else (or if asked) its last."""
    if which == "best" and has_best(folder):
        tensors, meta = checkpoint.read(folder / "best")
    else:
        newest = checkpoint.newest_valid(folder / "checkpoints")
        tensors, meta = newest.tensors, newest.meta
        for path, reason in newest.refused:
            say(f"{path.name} is refused, the checkpoint before it is used: {reason}")
    kind = algorithm_class(config.algorithm)
    return kind.from_state(tensors, meta, config.env, path=folder)


def evaluate(
    folder: Path,
    *,
    episodes: int | None = None,
    which: str = "best",
    seed: int | None = None,
    env_kwargs: dict[str, Any] | None = None,
    allow_import: bool = False,
    say: Say = print,
) -> Episodes:
    """Play whole episodes with a run's policy, deterministically, and write `evaluation.json`.

    The environments' seeds are derived from the run's for this purpose alone: no episode here was
    seen in training or in choosing the best policy.
    """
    config = RunConfig.read(folder, allow_import=allow_import)
    agent = load_agent(folder, config, which=which, say=say)
    with one_thread(), StopSignals() as signals:
        played = run_episodes(
            agent,
            config.env,
            config.evaluation.final_episodes if episodes is None else episodes,
            seed=derive32(agent.config.seed, "final evaluation") if seed is None else seed,
            env_kwargs=config.env_kwargs | (env_kwargs or config.evaluation.final_env_kwargs),
            backend=agent.stream.backend,
            interrupted=lambda: signals.exit_code,
        )
    scored = not np.isnan(played.scores).any()
    told = {
        "policy": which if has_best(folder) else "last",
        "timesteps": agent.num_timesteps,
        "returns": played.returns.tolist(),
        "lengths": played.lengths.tolist(),
        "scores": played.scores.tolist() if scored else None,
    }
    replace_text(folder / "evaluation.json", json.dumps(told) + "\n")
    return played


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Have torch use one thread: for the few rows of an evaluation more cost time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


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
