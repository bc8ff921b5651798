"""The learning curve of a run, as a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from upslope.records.files import explained
from upslope.runs.configuration import RunConfig
from upslope.runs.metrics import read_metrics

INK, BLUE, ORANGE, GREY = "#22303c", "#2a78c2", "#e8743b", "#c9d1d8"


def learning_curve(folder: Path) -> Path | None:
    """Draw `learning_curve.png` from a run's metrics; None when there is nothing to draw yet.

    The line is the mean return of the last 100 episodes while learning; the dots are evaluations
    of the deterministic policy. Where the environment keeps a score, that is drawn instead of the
    return of training.
    """
    rows = read_metrics(folder / "metrics.csv")
    if len(rows) < 2:
        return None
    column = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    what = "episode_score" if np.isfinite(column["episode_score"]).any() else "episode_return"
    if not np.isfinite(column[what]).any():
        return None
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=140, layout="constrained")
    axes = figure.subplots()
    axes.plot(column["timesteps"], column[what], color=BLUE, lw=1.8, label="while learning")
    evaluated = np.isfinite(column["eval_return"])
    if evaluated.any() and what == "episode_return":
        steps, mean = column["timesteps"][evaluated], column["eval_return"][evaluated]
        axes.plot(steps, mean, "o", color=ORANGE, ms=4.5, label="evaluated, deterministic")
        axes.legend(frameon=False, loc="best")
    if what == "episode_score" and np.nanmax(column[what]) > 100:
        axes.set_yscale("symlog", linthresh=1)
        axes.set_ylim(bottom=0)
    minutes = column["seconds"][-1] / 60
    config = RunConfig.read(folder, allow_import=True)  # only its names are read
    kind = "score" if what == "episode_score" else "return"
    axes.set_title(
        f"{config.algorithm.upper()} on {config.env}: {column['timesteps'][-1]:,.0f} steps in "
        f"{minutes:.1f} min",
        color=INK,
        loc="left",
        fontsize=11,
    )
    axes.set_xlabel("environment steps", color=INK)
    axes.set_ylabel(f"{kind} (mean of the last 100 episodes)", color=INK)
    axes.grid(color=GREY, lw=0.5, alpha=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x / 1e6:g}M" if x >= 1e6 else f"{x / 1e3:g}k")
    path = folder / "learning_curve.png"
    with explained(path):
        figure.savefig(path)
    return path
