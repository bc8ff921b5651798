"""`upslope evaluate`: play whole episodes with a run's policy and print the returns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from upslope.cli.options import parse, split, table
from upslope.cli.train import report
from upslope.errors import ArgumentError
from upslope.runs import run


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """What an evaluation is told."""

    episodes: int = 100
    """Whole episodes to play."""
    last: bool = False
    """Take the last policy, not the best one."""
    seed: int | None = None
    """Seed of the environments; by default derived from the run's for this purpose."""
    env_kwargs: str | None = None
    """What the environment is made with, as TOML: '{score_limit = 100}'."""
    allow_import: bool = False
    """Import the module that config.toml names in its environment, as in "module:Env-v0"."""


def main(arguments: list[str]) -> int:
    """Run `upslope evaluate`."""
    words, options = split(arguments)
    chosen = parse(
        EvaluateOptions(), options, prog="upslope evaluate RUN", description=__doc__ or ""
    )
    if len(words) != 1:
        raise ArgumentError("evaluate takes one run: upslope evaluate runs/NAME")
    played = run.evaluate(
        Path(words[0]),
        episodes=chosen.episodes,
        which="last" if chosen.last else "best",
        seed=chosen.seed,
        env_kwargs=table("env-kwargs", chosen.env_kwargs) or None,
        allow_import=chosen.allow_import,
    )
    print(report(played.returns))
    if not np.isnan(played.scores).any():
        print(score_report(played.scores))
    return 0


def score_report(scores: np.ndarray) -> str:
    """Return a sentence with the scores of episodes."""
    return (
        f"score: median {np.median(scores):,.0f}, lowest {scores.min():,.0f}, "
        f"highest {scores.max():,.0f}"
    )
