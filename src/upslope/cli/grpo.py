"""`upslope grpo`: train a language model by rewards of its own completions."""

from __future__ import annotations

from upslope.cli.language import run
from upslope.language.grpo import GRPO


def main(arguments: list[str]) -> int:
    """Run `upslope grpo`."""
    return run("grpo", GRPO, arguments)
