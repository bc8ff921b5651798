"""`upslope demo`: learn Flappy Bird in five minutes, then play it and film it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from upslope.cli.evaluate import score_report
from upslope.cli.options import parse, split
from upslope.cli.train import configure
from upslope.errors import ArgumentError
from upslope.runs import run
from upslope.runs.configuration import check_limit
from upslope.runs.pictures import learning_curve
from upslope.runs.video import film

ENV = "upslope/FlappyBird-v0"
GOAL, LIVES = 10_000, 20


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """What the demonstration is told."""

    max_seconds: float = 300.0
    """Learn for at most this many seconds."""
    seed: int = 0
    """The number that every random draw is derived from."""
    long: bool = False
    """Learn three times as long as the recipe says, without a limit of time."""
    runs: Path = Path("runs")
    """Where the run's folder is made."""
    quiet: bool = False
    """Show no progress."""


def main(arguments: list[str]) -> int:
    """Run `upslope demo`."""
    words, options = split(arguments)
    chosen = parse(DemoOptions(), options, prog="upslope demo", description=__doc__ or "")
    if words:
        raise ArgumentError("demo takes options only: upslope demo --help lists them")
    limit = None if chosen.long else chosen.max_seconds
    config, _ = configure("ppo", ENV, [])
    config = dataclasses.replace(
        config,
        total_timesteps=config.total_timesteps * (3 if chosen.long else 1),
        settings=config.settings | {"seed": chosen.seed},
    )
    check_limit(limit)
    folder = run.free_name(chosen.runs, "flappy-bird")
    agent = run.make_agent(config)  # before the folder: what is wrong is said now
    run.create(folder, config)
    until = "to the end" if limit is None else f"at most {limit:g} s"
    print(f"PPO learns Flappy Bird in {folder}, {until}")
    outcome = run.train(folder, config, agent=agent, max_seconds=limit, progress=not chosen.quiet)
    if outcome.exit_code:
        print(f"stopped; upslope train {folder} --resume goes on")
        return outcome.exit_code
    print(f"learned for {agent.num_timesteps:,} frames; curve: {learning_curve(folder)}")
    evaluation = config.evaluation
    if not outcome.finished:  # the last policy, which no evaluation has seen, may be the best
        agent.evaluate(evaluation.episodes, env_kwargs=config.env_kwargs | evaluation.env_kwargs)
        if agent.best.timesteps == agent.num_timesteps:
            agent.save(folder / "best")
    print(f"playing {LIVES} lives, deterministically, each stopped at {GOAL:,} pipes ...")
    played = run.evaluate(folder, episodes=LIVES, env_kwargs={"score_limit": GOAL})
    print("pipes: " + ", ".join(f"{score:,.0f}" for score in sorted(played.scores)))
    print(score_report(played.scores))
    reached = np.median(played.scores) >= GOAL
    print(f"the median life {'reached' if reached else 'did not reach'} {GOAL:,} pipes")
    print(f"video: {film(folder)}")
    return 0
