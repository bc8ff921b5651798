"""`upslope dpo`: train a language model on preferences."""

from __future__ import annotations

from upslope.cli.language import run
from upslope.language.dpo import DPO


def main(arguments: list[str]) -> int:
    """Run `upslope dpo`."""
    return run("dpo", DPO, arguments)
