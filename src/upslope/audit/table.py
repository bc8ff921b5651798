"""The rows of an audit as tables: for a terminal, and in Markdown."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator

from rich import box
from rich.table import Table
from rich.text import Text

from upslope.audit.measure import LARGEST_Z, Row

COLUMNS = (
    "estimator",
    "n",
    "bias / s.e.",
    "scale",
    "cosine",
    "variance",
    "exact",
    "S/N",
    "noise scale",
)
COLOURS = {"unbiased": "green", "NOT AS DECLARED": "bold red"}


def by_problem(rows: Iterable[Row]) -> Iterator[tuple[str, list[Row]]]:
    """Yield each problem's name and rows, in the order that they come in."""
    for name, group in itertools.groupby(rows, key=lambda row: row.problem):
        yield name, list(group)


def tables(rows: Iterable[Row]) -> Iterator[Table]:
    """Yield a table for each problem."""
    for name, group in by_problem(rows):
        table = Table(title=name, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
        for column in COLUMNS:
            words = column == "estimator"
            table.add_column(column, justify="left" if words else "right", no_wrap=not words)
        table.add_column("verdict")
        for row in group:
            verdict = Text(verdict_of(row), style=COLOURS.get(row.verdict, "yellow"))
            table.add_row(*cells(row), verdict)
        yield table


def markdown(rows: Iterable[Row]) -> str:
    """Return the same in Markdown, with the summary, and a heading for each problem."""
    rows = list(rows)
    lines = ["# upslope audit", "", *[f"{line}." for line in summary(rows)], ""]
    for name, group in by_problem(rows):
        lines += [f"## {name}", "", "| " + " | ".join([*COLUMNS, "verdict"]) + " |"]
        lines += ["|---" + "|---:" * (len(COLUMNS) - 1) + "|---|"]
        for row in group:
            found = [cell.replace("|", "\\|") for cell in (*cells(row), verdict_of(row))]
            lines.append("| " + " | ".join(found) + " |")
        lines.append("")
    return "\n".join(lines)


def cells(row: Row) -> list[str]:
    """Return a row's cells, one for each of COLUMNS."""
    return [
        row.estimator,
        str(row.samples),
        f"{row.z:.1f}" if row.z < 1e4 else "> 9999",
        f"{row.scale:.3f} ± {row.scale_error:.3f}",
        f"{row.cosine:.4f}",
        number(row.variance),
        "" if row.exact_variance is None else number(row.exact_variance),
        number(row.signal_to_noise),
        number(row.noise_scale),
    ]


def verdict_of(row: Row) -> str:
    """Return the verdict, with the multiple of the gradient that is declared, if one is."""
    if row.bias and row.declared_scale is not None:
        return f"{row.verdict}: {row.declared_scale:g} times"
    return row.verdict


def number(x: float) -> str:
    """Return three digits; what is rounding beside 1, as 0."""
    if math.isinf(x) or x > 1e9:
        return "∞"
    return "0" if abs(x) < 1e-12 else f"{x:.3g}"


def summary(rows: Iterable[Row]) -> list[str]:
    """Return what was found in sentences: one, and one more for each declaration that fell."""
    rows = list(rows)
    declared = [row for row in rows if not row.bias]
    biased = [row for row in rows if row.bias]
    right = sum(row.holds for row in declared)
    seen = sum(row.holds and row.z > LARGEST_Z for row in biased)
    lines = [
        f"{right} of {len(declared)} rows that declare no bias show none within {LARGEST_Z} "
        f"standard errors; of {len(biased)} that declare one, {seen} show it"
    ]
    for row in rows:
        if not row.holds:
            said = f"{row.declared_scale:g} times the gradient" if row.bias else "no bias"
            lines.append(
                f"not as declared: {row.estimator} ({row.problem}) declares {said}, and is "
                f"{row.z_declared:.3g} standard errors off: {row.scale:.4g} ± "
                f"{row.scale_error:.2g} times the gradient, cosine {row.cosine:.4g}"
            )
    return lines
