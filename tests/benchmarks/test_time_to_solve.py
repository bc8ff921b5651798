"""What `benchmarks/time_to_solve.py` counts, keeps and shows."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.command import ROOT
from upslope import recipes

ENV = "CartPole-v1"


@pytest.fixture(autouse=True)
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that a test turns; the processor's goes twice as fast."""
    import solving

    clock = SimpleNamespace(seconds=0.0)
    times = SimpleNamespace(
        perf_counter=lambda: clock.seconds, process_time=lambda: 2 * clock.seconds
    )
    monkeypatch.setattr(solving, "time", times)
    return clock


def run_trial(now: SimpleNamespace, figures: list[float], **told: Any) -> Any:
    """Train 1 s and 10 steps at a time; an evaluation takes 100 s and gives the next figure."""
    from solving import Task, Trial

    def evaluate(_: int) -> float:
        now.seconds += 100
        return figures.pop(0)

    task = Task(target=told.pop("target", 5.0), aim=1, every=30, says="")
    trial = Trial(task, evaluate, total=told.pop("total", 1000), limit=told.pop("limit", None))
    now.seconds += 1000  # set-up
    trial.start()
    steps = 0
    while True:
        steps += 10
        now.seconds += 1
        if not trial.after(steps):
            return trial


def test_the_clock_stands_while_a_policy_is_evaluated(now: SimpleNamespace) -> None:
    trial = run_trial(now, [1.0, 4.9, 5.0, 9.0])
    assert trial.result() == {
        "solved": True,
        "seconds": 9.0,
        "cpu": 18.0,
        "steps": 90,
        "evaluations": [
            {"steps": 30, "seconds": 3.0, "figure": 1.0},
            {"steps": 60, "seconds": 6.0, "figure": 4.9},
            {"steps": 90, "seconds": 9.0, "figure": 5.0},
        ],
    }


@pytest.mark.parametrize(("told", "seconds"), [({"total": 50}, 5.0), ({"limit": 4.0}, 4.0)])
def test_what_is_not_reached_in_time_is_not_solved(
    now: SimpleNamespace, told: dict[str, Any], seconds: float
) -> None:
    result = run_trial(now, [1.0, 2.0], **told).result()
    assert (result["solved"], result["seconds"]) == (False, seconds)
    assert [one["seconds"] for one in result["evaluations"]] == [3.0, seconds]


def test_without_a_target_all_steps_count(now: SimpleNamespace) -> None:
    result = run_trial(now, [9.0, 1.0], target=None, total=40).result()
    assert (result["solved"], result["seconds"]) == (True, 4.0)
    assert not run_trial(now, [9.0], target=None, limit=2.0).result()["solved"]


def test_the_figure_is_a_mean_of_returns_or_a_median_of_scores() -> None:
    from solving import TASKS

    numbers = np.array([0.0, 1.0, 8.0])
    assert TASKS[ENV].figure(numbers) == 3.0
    assert TASKS["upslope/FlappyBird-v0"].figure(numbers) == 1.0


def test_a_seed_that_does_not_learn_is_not_solved() -> None:
    import time_to_solve

    recipe = recipes.find("ppo", ENV)
    recipe = dataclasses.replace(recipe, total_timesteps=300, threads=torch.get_num_threads())
    result = time_to_solve.solve(ENV, 100, recipe)
    assert not result["solved"]
    assert 0 < result["seconds"] < 60
    assert [one["steps"] for one in result["evaluations"]] == [result["steps"]]
    assert 8 <= result["evaluations"][0]["figure"] < 475  # the greedy policy falls, in 8 at least


def seed(seconds: float, solved: bool = True) -> dict[str, Any]:
    evaluations = [{"steps": 100, "seconds": seconds, "figure": 480.0}]
    told = {"solved": solved, "seconds": seconds, "cpu": seconds, "steps": 100, "version": "1"}
    return told | {"evaluations": evaluations}


def entry(*seeds: dict[str, Any]) -> dict[str, Any]:
    return {"seeds": {str(i): one for i, one in enumerate(seeds)}, "measured": "today"}


def test_every_seed_counts() -> None:
    from solving_report import rows

    ours = entry(seed(2.0), seed(1.0), seed(4.0, solved=False))
    theirs = entry(seed(30.0), seed(600.0, solved=False), seed(601.0, solved=False))
    first, second = rows({ENV: {"Upslope": ours, "sbx": theirs}})
    assert first.split(" | ")[2:5] == ["2 of 3", "2", "not solved"]
    assert first.endswith(" | 2, 1, not within 4 |")
    assert second.split(" | ")[2:5] == ["1 of 3", "not solved", "not solved"]
    assert second.endswith(" | 30, not within 600, not within 601 |")
    _, second = rows({ENV: {"Upslope": ours, "sbx": entry(seed(30.0))}})
    assert second.split(" | ")[7] == "15.0"  # times Upslope's median of 2


def test_what_was_measured_is_kept_until_settings_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import time_to_solve

    asked: list[tuple[str, str, int]] = []

    def measured(library: str, env: str, number: int, _: Any) -> dict[str, Any]:
        asked.append((library, env, number))
        if number == 8:
            raise RuntimeError("killed")
        return seed(1.0 + number)

    monkeypatch.setattr(time_to_solve, "measured", measured)
    results = tmp_path / "results.json"

    def run(*options: str) -> list[tuple[str, str, int]]:
        asked.clear()
        told = ["--envs", ENV, "--results", str(results), *options]
        monkeypatch.setattr(sys, "argv", ["time_to_solve.py", *told])
        time_to_solve.main()
        return list(asked)

    ours = [("Upslope", ENV, number) for number in (6, 7)]
    with pytest.raises(RuntimeError, match="killed"):
        run("--seeds", "3", "--seed-from", "6")
    assert run("--seeds", "2", "--seed-from", "6") == []  # they were kept
    assert run("--seeds", "2", "--seed-from", "6", "--again") == ours
    peers = ("--peers", "python", "--peer-seeds", "1")
    theirs = [(library, ENV, 6) for library in ("Stable-Baselines3", "sbx", "rejax")]
    assert run("--seeds", "2", "--seed-from", "6", *peers) == theirs
    monkeypatch.setitem(time_to_solve.FASTER, ENV, {"settings": {"n_epochs": 3}})
    assert run("--seeds", "1", "--seed-from", "6") == ours[:1]
    assert list(json.loads(results.read_text())[ENV]["Upslope"]["seeds"]) == ["6"]
    (tmp_path / "images").mkdir()
    shutil.copy(ROOT / "docs" / "speed.md", tmp_path)
    assert run("--seeds", "0", "--write", str(tmp_path)) == []
    row = "| CartPole-v1 | Upslope | 1 of 1 | 7 | 7 | 7 | 100 | 1.0 | 3 | 7 |"
    assert row in (tmp_path / "speed.md").read_text()
    assert row in capsys.readouterr().out
    assert (tmp_path / "images" / "time_to_solve.png").stat().st_size > 10_000


def test_changed_settings_are_the_recipes_but_for_what_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import time_to_solve

    recipe = recipes.find("ppo", ENV)
    monkeypatch.setattr(time_to_solve, "FASTER", {})
    assert time_to_solve.recipe_of(ENV) == recipe
    other = {"total_timesteps": 7, "settings": {"n_epochs": 3}}
    monkeypatch.setitem(time_to_solve.FASTER, ENV, other)
    found = time_to_solve.recipe_of(ENV)
    assert found.total_timesteps == 7
    assert found.settings == recipe.settings | {"n_epochs": 3}
    assert math.isclose(found.settings["gamma"], recipe.settings["gamma"])
