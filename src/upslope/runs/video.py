"""Film a policy: an episode in one environment, frame by frame, as mp4 or gif."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

import upslope.envs  # noqa: F401  (registers the environments shipped here)
from upslope.errors import ArgumentError, Interrupted, RunError
from upslope.records.files import explained
from upslope.runs.configuration import RunConfig
from upslope.runs.run import load_agent
from upslope.runs.signals import StopSignals
from upslope.seeding import derive32


def film(
    folder: Path,
    *,
    seconds: float = 20.0,
    which: str = "best",
    output: Path | None = None,
    env_kwargs: dict[str, Any] | None = None,
    allow_import: bool = False,
) -> Path:
    """Film the policy of a run, episode after episode, for `seconds` of playing time.

    Writes `video.mp4` into the run's folder, or to `output` (.mp4 or .gif); returns the path.
    Raises RunError when the environment cannot be drawn.
    """
    if not 0 < seconds < math.inf:
        raise ArgumentError(f"seconds={seconds}: a video takes a finite number above 0")
    path = output or folder / "video.mp4"
    if path.suffix not in (".mp4", ".gif"):
        raise ArgumentError(f"output={path}: a video ends in .mp4 or .gif")
    config = RunConfig.read(folder, allow_import=allow_import)
    agent = load_agent(folder, config, which=which)
    env = drawable(config.env, config.env_kwargs | (env_kwargs or {}))
    try:
        rate = int(env.metadata.get("render_fps") or 30)
        n_frames = max(1, round(seconds * rate))
        with StopSignals() as signals:  # which a library that draws would take, and do nothing
            frames = play(agent, env, n_frames, derive32(agent.config.seed, "video"), signals)
            write_video(path, frames, rate)
    finally:
        env.close()
    return path


def drawable(env_id: str, kwargs: dict[str, Any]) -> gymnasium.Env:
    """Return an environment that draws itself as arrays; raises RunError when it cannot."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what it lacks is said below
            env: gymnasium.Env = gymnasium.make(
                env_id, render_mode="rgb_array", disable_env_checker=True, **kwargs
            )
            env.reset(seed=0)
            frame = env.render()
    except (gymnasium.error.Error, ImportError, NotImplementedError, TypeError) as error:
        raise RunError(f"{env_id} cannot be filmed: {error}") from error
    if not (isinstance(frame, np.ndarray) and frame.ndim == 3 and frame.dtype == np.uint8):
        env.close()
        raise RunError(f"{env_id} cannot be filmed: it draws no pictures (rgb_array), but {frame}")
    return env


def play(
    agent: Any, env: gymnasium.Env, n_frames: int, seed: int, signals: StopSignals
) -> Iterator[Any]:
    """Yield `n_frames` frames of episodes played one after the other; a signal ends it."""
    observation, _ = env.reset(seed=seed)
    ended = False
    for _ in range(n_frames):
        if signals.exit_code:
            raise Interrupted(signals.exit_code, "filming")
        yield env.render()
        if ended:
            (observation, _), ended = env.reset(), False
            continue
        action, _ = agent.predict(observation)
        observation, _, terminated, truncated, _ = env.step(action)
        ended = terminated or truncated


def write_video(path: Path, frames: Iterator[Any], rate: int) -> None:
    """Write frames [H, W, 3] uint8 as mp4 or gif, by the ending of the path."""
    import imageio.v2 as imageio

    aside = path.with_name(f".{path.stem}.tmp{path.suffix}")
    options: dict[str, Any] = {"duration": 1000 / rate, "loop": 0}
    if path.suffix == ".mp4":
        options = {"fps": rate, "macro_block_size": 1, "codec": "libx264", "quality": 7}
    with explained(path):
        try:
            opened: Any = imageio.get_writer(aside, **options)
            with contextlib.closing(opened) as writer:  # by itself it is not closed after an error
                for frame in frames:
                    height, width = (size // 2 * 2 for size in frame.shape[:2])  # the codec's
                    writer.append_data(frame[:height, :width])
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)
