"""The table and the picture of `time_to_solve.py`, from its results alone."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from solving import TASKS

Results = dict[str, dict[str, dict[str, Any]]]  # environment, library: settings, seeds, measured
COLOURS = {
    "Upslope": "#4477aa",
    "Stable-Baselines3": "#ee6677",
    "sbx": "#ccbb44",
    "rejax": "#228833",
}


def seconds_of(seed: dict[str, Any]) -> float:
    """Return the seconds to the solution, infinite where there was none."""
    return seed["seconds"] if seed["solved"] else math.inf


def told(seconds: float) -> str:
    """Return seconds as the table says them."""
    return f"{seconds:.3g}" if math.isfinite(seconds) else "not solved"


def seeds_of(results: Results, env: str, library: str) -> list[dict[str, Any]]:
    """Return what the seeds came to in their order; their names are text in the file."""
    seeds = results.get(env, {}).get(library, {}).get("seeds", {})
    return [seeds[name] for name in sorted(seeds, key=int)]


def row(env: str, library: str, seeds: list[dict[str, Any]], ours: float) -> str:
    """Return a row of the table; `ours` is Upslope's median, infinite where it has none."""
    seconds = np.array([seconds_of(seed) for seed in seeds])
    median = float(np.median(seconds))
    comparable = math.isfinite(median) and math.isfinite(ours)
    each = [
        f"{one['seconds']:.3g}" if one["solved"] else f"not within {one['seconds']:.3g}"
        for one in seeds
    ]
    cells = [
        env,
        library,
        f"{sum(one['solved'] for one in seeds)} of {len(seeds)}",
        told(median),
        told(float(seconds.max())),
        f"{np.median([one['cpu'] for one in seeds]):.3g}",
        f"{np.median([one['steps'] for one in seeds]):,.0f}",
        f"{median / ours:.1f}" if comparable else "",
        f"{TASKS[env].aim:g}",
        ", ".join(each),
    ]
    return f"| {' | '.join(cells)} |"


def rows(results: Results) -> list[str]:
    """Return a row for each environment and library: all seeds count, unsolved ones as infinite."""
    lines = []
    for env in TASKS:
        own = [seconds_of(seed) for seed in seeds_of(results, env, "Upslope")]
        ours = float(np.median(own)) if own else math.inf
        found = {library: seeds_of(results, env, library) for library in COLOURS}
        lines += [row(env, library, seeds, ours) for library, seeds in found.items() if seeds]
    return lines


def section(results: Results) -> str:
    """Return the section of the page: heading, table, picture."""
    columns = ("environment", "library", "solved", "seconds, median", "slowest seed")
    columns += ("processor seconds, median", "steps, median", "times Upslope's", "aim", "each seed")
    entries = [results[env][library] for env in results for library in results[env]]
    lasts = [f"{TASKS[env].says} in {env}" for env in TASKS if env in results]
    lines = [
        "## Time to solve",
        "",
        "![Seconds of training to solve, a dot a seed](images/time_to_solve.png)",
        "",
        f"To reach: {'; '.join(lasts)}.",
        "",
        f"| {' | '.join(columns)} |",
        "|---|---|" + "---:|" * (len(columns) - 3) + "---|",
        *rows(results),
        "",
    ]
    for env in results:
        seeds = seeds_of(results, env, "Upslope")
        if TASKS[env].target is None and seeds:
            figures = [one["evaluations"][-1]["figure"] for one in seeds]
            lines += [
                f"The mean return of {env} after its steps was {np.mean(figures):,.0f} over the "
                f"seeds, {min(figures):,.0f} in the worst.",
                "",
            ]
    versions = {
        f"{library} {seed['version']}"
        for libraries in results.values()
        for library, entry in libraries.items()
        for seed in entry["seeds"].values()
    }
    newest = max((entry["measured"] for entry in entries if "measured" in entry), default="")
    return "\n".join([*lines, f"{', '.join(sorted(versions))}. Last measured {newest}."])


def draw(results: Results, path: Path) -> None:
    """Draw a row for each environment, a dot for each seed, on an axis of log seconds."""
    import matplotlib.pyplot as plt

    envs = [env for env in TASKS if env in results]
    figure, axes = plt.subplots(figsize=(8, 1.1 * len(envs) + 1.3), layout="constrained")
    for y, env in enumerate(reversed(envs)):
        libraries = [name for name in COLOURS if name in results[env]]
        for k, library in enumerate(libraries):
            height = y + 0.5 * ((len(libraries) - 1) / 2 - k) / max(1, len(libraries) - 1)
            for seed in seeds_of(results, env, library):
                filled = COLOURS[library] if seed["solved"] else "none"
                style = {"edgecolors": COLOURS[library], "linewidths": 1.2, "alpha": 0.8}
                axes.scatter(seed["seconds"], height, s=36, facecolors=filled, **style)
        axes.plot([TASKS[env].aim] * 2, [y - 0.4, y + 0.4], color="#888888", linewidth=1)
    axes.set_xscale("log")
    axes.set_yticks(
        range(len(envs)), [f"{env}\n{TASKS[env].says}" for env in reversed(envs)], fontsize=8
    )
    axes.set_ylim(-0.6, len(envs) - 0.4)
    axes.grid(axis="x", color="#dddddd")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("seconds of training, evaluations not counted")
    shown = [name for name in COLOURS if any(name in results[env] for env in envs)]
    handles = [plt.Line2D([], [], color=COLOURS[n], marker="o", linestyle="") for n in shown]
    handles += [plt.Line2D([], [], color="#555555", marker="o", mfc="none", linestyle="")]
    handles += [plt.Line2D([], [], color="#888888")]
    labels = [*shown, "stopped, not solved", "aim"]
    figure.legend(handles, labels, fontsize=8, loc="outside upper right", ncols=len(labels))
    figure.savefig(path, dpi=120)
    plt.close(figure)
