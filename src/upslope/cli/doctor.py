"""`upslope doctor`: is all well here, before a long run?

    upslope doctor                  the installation: versions, threads, native engine, GPU, disk
    upslope doctor ENVIRONMENT      that, and the environment: seeding, spaces, rewards, ends, speed

Each line says what was found, and below it what to do. Ends with 1 where something is wrong.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from pathlib import Path

from upslope.cli.options import parse, split, table
from upslope.errors import ArgumentError, check_range
from upslope.runs.doctor import WRONG, Finding, examine
from upslope.runs.installation import inspect_installation

WIDTH = 100


@dataclass(frozen=True, kw_only=True)
class DoctorOptions:
    """What the doctor is told."""

    env_kwargs: str | None = None
    """What the environment is made with, as TOML: '{score_limit = 100}'."""
    n_envs: int = 4
    """Environments that are stepped together."""
    backend: str = "auto"
    """How they are stepped: auto, vector_entry_point, envpool, sync or async."""
    steps: int = 10_000
    """Steps to look at, of all environments together."""
    seed: int = 0
    """The number that every random draw is derived from."""
    runs: Path = Path("runs")
    """Where runs are going to be written."""


def main(arguments: list[str]) -> int:
    """Run `upslope doctor`."""
    words, options = split(arguments)
    chosen = parse(DoctorOptions(), options, prog="upslope doctor [ENV]", description=__doc__ or "")
    if len(words) > 1:
        raise ArgumentError("doctor takes one environment at most: upslope doctor CartPole-v1")
    check_range("--steps", chosen.steps, 1)
    check_range("--n-envs", chosen.n_envs, 1)
    wrong = 0
    print("installation")
    for finding in inspect_installation(chosen.runs):
        wrong += show(finding)
    if words:
        print(words[0])
        kwargs = table("env-kwargs", chosen.env_kwargs)
        for finding in examine(
            words[0],
            env_kwargs=kwargs,
            n_envs=chosen.n_envs,
            backend=chosen.backend,
            steps=chosen.steps,
            seed=chosen.seed,
        ):
            wrong += show(finding)
    print(f"{wrong} wrong" if wrong else "nothing is wrong")
    return 1 if wrong else 0


def show(finding: Finding) -> bool:
    """Print a finding; returns whether something is wrong."""
    begin = f"  {finding.level:<5}  {finding.about}: "
    print(textwrap.fill(finding.found, WIDTH, initial_indent=begin, subsequent_indent=" " * 9))
    if finding.advice:
        inset = " " * 9
        print(textwrap.fill(f"-> {finding.advice}", WIDTH, initial_indent=inset,
                            subsequent_indent=inset + "   "))  # fmt: skip
    return finding.level == WRONG
