"""`upslope audit`: every estimator of the library, held against the exact gradient.

Prints bias in standard errors, scale, cosine, variance beside the exact one, signal-to-noise and
noise scale. Ends with 1 if an estimator that declares itself unbiased is not. Your own estimator is
audited by upslope.gradient.check_unbiased(surrogate_fn, distribution, f).
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from upslope.audit import audit, passed
from upslope.audit.table import markdown, summary, tables
from upslope.cli.options import parse, split
from upslope.errors import ArgumentError
from upslope.records.files import explained, replace_text

WIDE = 180  # columns, where the output is no terminal


@dataclass(frozen=True, kw_only=True)
class AuditOptions:
    """What an audit is told."""

    output: Path | None = None
    """Write the table to DIR/audit.md and the picture to DIR/audit.png."""
    markdown: Path | None = None
    """Write the table to this file instead, in Markdown."""
    picture: Path | None = None
    """Write the picture to this file instead: .png, .svg or .pdf."""
    problem: str | None = None
    """Audit on this problem only: how its name begins, such as corridor."""
    estimates: int = 20_000
    """Estimates of each estimator; four times as many see biases of half the size."""
    seed: int = 0
    """The number that every random draw is derived from."""


def main(arguments: list[str]) -> int:
    """Run `upslope audit`."""
    words, options = split(arguments)
    chosen = parse(AuditOptions(), options, prog="upslope audit", description=__doc__ or "")
    if words:
        raise ArgumentError("audit takes options only: upslope audit --help lists them")
    table, picture = _places(chosen)  # refused before the work, not after it
    with Console(stderr=True).status("drawing") as status:
        rows = audit(
            estimates=chosen.estimates,
            seed=chosen.seed,
            problem=chosen.problem,
            progress=lambda name: status.update(name),
        )
    console = Console(width=None if sys.stdout.isatty() else WIDE)
    for part in tables(rows):
        console.print(part)
    for line in summary(rows):
        print(line)
    if table is not None:
        replace_text(table, markdown(rows))
        print(f"table: {table}")
    if picture is not None:
        from upslope.audit.picture import draw

        with explained(picture):
            draw(rows, picture)
        print(f"picture: {picture}")
    return 0 if passed(rows) else 1


def _places(chosen: AuditOptions) -> tuple[Path | None, Path | None]:
    """Return where table and picture are written, their folders made."""
    table, picture = chosen.markdown, chosen.picture
    if chosen.output is not None:
        table, picture = table or chosen.output / "audit.md", picture or chosen.output / "audit.png"
    if picture is not None and picture.suffix not in (".png", ".svg", ".pdf"):
        raise ArgumentError(f"--picture takes a name that ends in .png, .svg or .pdf: {picture}")
    for path in (table, picture):
        if path is not None:
            with explained(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                if path.is_dir():
                    raise ArgumentError(f"{path} is a folder: a file is written there")
    return table, picture
