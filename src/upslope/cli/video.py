"""`upslope video`: film a run's policy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from upslope.cli.options import parse, split, table
from upslope.errors import ArgumentError
from upslope.runs.video import film


@dataclass(frozen=True, kw_only=True)
class VideoOptions:
    """What a video is told."""

    seconds: float = 20.0
    """Seconds of playing time."""
    last: bool = False
    """Take the last policy, not the best one."""
    output: Path | None = None
    """Where to, .mp4 or .gif; by default video.mp4 in the run's folder."""
    env_kwargs: str | None = None
    """What the environment is made with, as TOML: '{score_limit = 100}'."""
    allow_import: bool = False
    """Import the module that config.toml names in its environment, as in "module:Env-v0"."""


def main(arguments: list[str]) -> int:
    """Run `upslope video`."""
    words, options = split(arguments)
    chosen = parse(VideoOptions(), options, prog="upslope video RUN", description=__doc__ or "")
    if len(words) != 1:
        raise ArgumentError("video takes one run: upslope video runs/NAME")
    path = film(
        Path(words[0]),
        seconds=chosen.seconds,
        which="last" if chosen.last else "best",
        output=chosen.output,
        env_kwargs=table("env-kwargs", chosen.env_kwargs),
        allow_import=chosen.allow_import,
    )
    print(f"filmed {chosen.seconds:g} s: {path}")
    return 0
