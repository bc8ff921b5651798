"""What `benchmarks/scaling.py` measures and shows, and how the page on speed is written."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.command import ROOT

CHOSEN = argparse.Namespace(envs=[8, 1024], widths=[16, 64], threads=[1, 2], seconds=1.0, steps=9)


@pytest.fixture(autouse=True)
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")


def test_each_point_is_measured_once_with_the_same_steps_a_rollout() -> None:
    import scaling

    found = scaling.points(CHOSEN)
    assert len(found) == 2 * 3 + 2  # 8 and 1,024 environments, width 16; memory and steps
    shapes = [point for key, point in found.items() if key != "memory"]
    assert {point["n_envs"] * point["n_steps"] for point in shapes} == {16_384}
    assert {found["memory"][key] for key in ("n_envs", "n_steps")} == {1024, 128}


def test_a_point_is_measured() -> None:
    import scaling

    shape = {"n_envs": 1024, "n_steps": 2, "width": 4, "threads": torch.get_num_threads()}
    found = scaling.measure(shape | {"seconds": 0.0})
    assert found["sps"] > 100
    assert found["mib"] > 50
    found = scaling.quarters(shape | {"total": 10_000})
    assert 0 < found["quarters"][0] < found["quarters"][1] < found["quarters"][3]
    assert found["steps"] < 10_000  # without the iteration to warm up


def test_cost_and_memory_are_medians_of_the_rounds(tmp_path: Path) -> None:
    import scaling

    speeds = {8: 1_000, 16: 4_000, 1024: 2_000}

    def rounds(point: dict[str, Any]) -> list[dict[str, Any]]:
        key = point["n_envs"] if point["width"] == 64 else point["width"]
        sps = speeds[key] * point["threads"]
        return [{"sps": k * sps, "cpu": sps, "mib": 300.0 * k} for k in (0.5, 1, 7)]

    found = {
        key: [{"steps": 8, "quarters": [1.0, 2.0, 3.0, 4.0]}] if key == "steps" else rounds(point)
        for key, point in scaling.points(CHOSEN).items()
    }
    text = scaling.section(found, CHOSEN)
    assert "| 8 | 1,000 | 2,000 |" in text
    assert "| 16 |  | 250 |  | 125 |  |" in text
    assert "| 64 | 16 | 500 | 2.00 | 250 | 2.00 |" in text
    assert "1.00, 2.00, 3.00, 4.00 seconds" in text
    assert "imports included: 300 MiB" in text
    scaling.draw(found, CHOSEN, tmp_path / "scaling.png")
    assert (tmp_path / "scaling.png").stat().st_size > 10_000


def test_a_command_writes_its_own_section_only() -> None:
    from pages import with_section

    page = (ROOT / "docs" / "speed.md").read_text()
    names = ("speed", "scaling", "time_to_solve")
    for name in names:
        page = with_section(page, name, f"\nnumbers of {name}\n")
    again = with_section(page, "scaling", "others")
    assert [again.count(f"numbers of {name}") for name in names] == [1, 0, 1]
    assert with_section(again, "scaling", "numbers of scaling") == page


def test_a_folder_without_the_page_is_refused_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import scaling

    monkeypatch.setattr(sys, "argv", ["scaling.py", "--write", str(tmp_path)])
    with pytest.raises(SystemExit):
        scaling.main()
    assert "has no speed.md and images/: give docs" in capsys.readouterr().err
