"""Film a policy: an episode in one environment, frame by frame, as mp4 or gif."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

import upslope.envs  # noqa: F401  (registers the environments shipped here)
from upslope.errors import ArgumentError, RunError
from upslope.runs.configuration import RunConfig
from upslope.runs.run import load_agent
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
    if seconds <= 0:
        raise ArgumentError(f"seconds={seconds}: a video takes more than 0")
    path = output or folder / "video.mp4"
    if path.suffix not in (".mp4", ".gif"):
        raise ArgumentError(f"output={path}: a video ends in .mp4 or .gif")
    config = RunConfig.read(folder, allow_import=allow_import)
    agent = load_agent(folder, config, which=which)
    kwargs = config.env_kwargs | (env_kwargs or {})
    try:
        env = gymnasium.make(config.env, render_mode="rgb_array", **kwargs)
        rate = int(env.metadata.get("render_fps", 30))
        frames = play(agent, env, round(seconds * rate), derive32(agent.config.seed, "video"))
    except (gymnasium.error.Error, TypeError, ImportError) as error:
        raise RunError(f"{config.env} cannot be filmed: {error}") from error
    write_video(path, frames, rate)
    return path


def play(agent: Any, env: gymnasium.Env, n_frames: int, seed: int) -> list[Any]:
    """Return `n_frames` frames of episodes played one after the other."""
    frames: list[Any] = []
    observation, _ = env.reset(seed=seed)
    try:
        while len(frames) < n_frames:
            frames.append(np.asarray(env.render()))
            action, _ = agent.predict(observation)
            observation, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                frames += [np.asarray(env.render())]
                observation, _ = env.reset()
    finally:
        env.close()
    return frames[:n_frames]


def write_video(path: Path, frames: list[Any], rate: int) -> None:
    """Write frames [H, W, 3] uint8 as mp4 or gif, by the ending of the path."""
    import imageio.v2 as imageio

    if path.suffix == ".gif":
        imageio.mimsave(path, frames, duration=1000 / rate, loop=0)
        return
    even = [frame[: len(frame) // 2 * 2, : frame.shape[1] // 2 * 2] for frame in frames]
    imageio.mimsave(path, even, fps=rate, macro_block_size=1, codec="libx264", quality=7)
