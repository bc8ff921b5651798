"""The rows of an audit as a picture: how far off on average, and how noisy."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from upslope.audit.measure import LARGEST_Z, Row
from upslope.audit.table import by_problem

INK, BLUE, ORANGE, RED, GREY = "#22303c", "#2a78c2", "#e8743b", "#c0202c", "#c9d1d8"
INCHES = 0.215  # of a row
LIMITS = (0.0, 2.0)  # of the scale; what is beyond stands at the edge


def draw(rows: Iterable[Row], path: Path) -> None:
    """Write the picture: for each problem the scale with its error, and the noise scale.

    Blue declares no bias, orange does, red is not as declared. A ring is the exact noise scale.
    """
    from matplotlib.figure import Figure

    columns = split(list(by_problem(rows)))
    height = max(sum(len(group) + 4 for _, group in column) for column in columns)
    figure = Figure(figsize=(9 * len(columns), INCHES * height + 1), dpi=100, layout="constrained")
    parts = figure.subfigures(1, len(columns), squeeze=False)[0]
    for part, column in zip(parts, columns, strict=True):
        sizes = [len(group) + 1.5 for _, group in column]
        axes = part.subplots(
            len(column),
            2,
            squeeze=False,
            gridspec_kw={"height_ratios": sizes, "width_ratios": (1.3, 1)},
        )
        for (name, group), pair in zip(column, axes, strict=True):
            _scale(pair[0], name, group)
            _noise(pair[1], group)
        axes[-1][0].set_xlabel("scale: multiple of the exact gradient", color=INK)
        axes[-1][1].set_xlabel("noise scale, in samples", color=INK)
    figure.legend(handles=_legend(), loc="outside upper left", ncols=4, frameon=False, fontsize=9)
    figure.savefig(path)


def split(problems: list[tuple[str, list[Row]]]) -> list[list[tuple[str, list[Row]]]]:
    """Return the problems in two columns of about the same height, or one where there is one."""
    heights = [len(group) + 4 for _, group in problems]
    at = min(range(1, len(problems) + 1), key=lambda k: abs(sum(heights[:k]) - sum(heights[k:])))
    return [part for part in (problems[:at], problems[at:]) if part]


def colour(row: Row) -> str:
    """Return red for what is not as declared, orange for a declared bias, blue for none."""
    if not row.holds:
        return RED
    return ORANGE if row.bias else BLUE


def _legend() -> list[Any]:
    from matplotlib.lines import Line2D

    def mark(what: str, shade: str, **style: Any) -> Line2D:
        return Line2D([], [], marker="o", ls="", color=shade, label=what, **style)

    return [
        mark("declares no bias (bars: 4.5 standard errors)", BLUE, ms=5),
        mark("declares a bias", ORANGE, ms=5),
        mark("not as declared", RED, ms=5),
        mark("exact noise scale", INK, ms=8, mfc="none", mew=0.8),
    ]


def _scale(axes: Any, name: str, group: list[Row]) -> None:
    low, high = LIMITS
    for y, row in enumerate(group):
        inside = min(max(row.scale, low), high)
        shape = "o" if inside == row.scale else (">" if row.scale > high else "<")
        axes.errorbar(
            inside,
            y,
            xerr=LARGEST_Z * row.scale_error if shape == "o" else None,
            fmt=shape,
            color=colour(row),
            ms=4.5,
            lw=1.2,
            clip_on=shape == "o",  # a bar ends at the frame, not in the labels
            zorder=3,
        )
    axes.axvline(1, color=INK, lw=0.9)
    axes.set_xlim(low, high)
    axes.set_xticks([0, 0.5, 1, 1.5, 2])
    axes.set_title(name, loc="left", fontsize=10, color=INK, fontweight="bold")
    axes.set_yticks(range(len(group)), [row.estimator for row in group])
    _style(axes, group)


def _noise(axes: Any, group: list[Row]) -> None:
    noisy = [row.noise_scale for row in group if row.noise_scale > 1e-4]
    axes.set_xscale("log")
    if noisy:
        decades = math.floor(math.log10(min(noisy) / 1.3)), math.ceil(math.log10(max(noisy) * 1.3))
        axes.set_xlim(10.0 ** decades[0], 10.0 ** decades[1])
    for y, row in enumerate(group):
        if row.noise_scale <= 1e-4:
            axes.text(
                0.02, y, "none", va="center", fontsize=7, transform=axes.get_yaxis_transform()
            )
            continue
        axes.plot(row.noise_scale, y, "o", color=colour(row), ms=4.5, zorder=3)
        if row.exact_variance is not None:
            exact = row.noise_scale * row.exact_variance / row.variance
            axes.plot(exact, y, "o", mfc="none", mec=INK, ms=8, mew=0.8, zorder=2)
    axes.set_yticks(range(len(group)), [""] * len(group))
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    axes.xaxis.set_minor_formatter("")
    _style(axes, group)


def _style(axes: Any, group: list[Row]) -> None:
    axes.set_ylim(len(group) - 0.4, -0.6)
    axes.tick_params(labelsize=8, colors=INK)
    axes.grid(color=GREY, lw=0.5, alpha=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
