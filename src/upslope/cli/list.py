"""`upslope list`: the algorithms, and the environments that have a recipe."""

from __future__ import annotations

from upslope import recipes
from upslope.cli.options import split
from upslope.errors import ArgumentError

ALGORITHMS = {  # as agents/table.py has them; not imported, since torch takes a second
    "actor_critic": "one-step, n-step (A2C), GAE, all actions, traces, average reward",
    "ppo": "clipped surrogate, several epochs of minibatches",
}


def main(arguments: list[str]) -> int:
    """Run `upslope list`."""
    words, options = split(arguments)
    if "-h" in options or "--help" in options:
        print(__doc__)
        return 0
    if words or options:
        raise ArgumentError("list takes nothing: upslope list")
    for algorithm, what in ALGORITHMS.items():
        print(f"{algorithm}: {what}; any environment but those of text, graphs or sequences")
        for env in recipes.names(algorithm):
            steps = recipes.find(algorithm, env).total_timesteps
            print(f"  {env:<26} recipe, {steps:,} steps: upslope train {algorithm} {env}")
    return 0
