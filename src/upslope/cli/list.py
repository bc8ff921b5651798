"""`upslope list`: the algorithms, and the environments that have a recipe."""

from __future__ import annotations

from upslope import recipes
from upslope.agents.table import ALGORITHMS, described
from upslope.cli.options import split
from upslope.errors import ArgumentError


def main(arguments: list[str]) -> int:
    """Run `upslope list`."""
    words, options = split(arguments)
    if "-h" in options or "--help" in options:
        print(__doc__)
        return 0
    if words or options:
        raise ArgumentError("list takes nothing: upslope list")
    for algorithm in ALGORITHMS:
        print(f"{algorithm}: {described(algorithm)}")
        for env in recipes.names(algorithm):
            steps = recipes.find(algorithm, env).total_timesteps
            print(f"  {env:<26} recipe, {steps:,} steps: upslope train {algorithm} {env}")
    return 0
