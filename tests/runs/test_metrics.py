"""Metrics on disk: what is written, cut back, and cut short."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from upslope.errors import RunError
from upslope.runs.metrics import MetricsWriter, read_metrics


def write(folder: Path, iterations: range, from_iteration: int = 0, offset: float = 0.0) -> None:
    metrics = MetricsWriter(folder, from_iteration=from_iteration)
    for k in iterations:
        row: dict[str, Any] = {"episodes": 2.0 * k, "loss": k / 3 + offset}
        if k % 2 == 0:
            row["eval_return"] = 10.0 * k
        metrics.write(k, 100 * k, row)
    metrics.close()


def test_a_row_for_every_iteration(tmp_path: Path) -> None:
    write(tmp_path, range(1, 5))
    rows = read_metrics(tmp_path / "metrics.csv")
    assert [row["iteration"] for row in rows] == [1, 2, 3, 4]
    assert [row["timesteps"] for row in rows] == [100, 200, 300, 400]
    assert rows[2]["loss"] == 1
    assert rows[0]["loss"] == pytest.approx(1 / 3, rel=1e-5)
    assert math.isnan(rows[0]["eval_return"])
    assert rows[3]["eval_return"] == 40
    assert math.isnan(rows[3]["episode_return"])
    seconds = [row["seconds"] for row in rows]
    assert seconds == sorted(seconds)
    assert seconds[0] > 0


def test_every_row_is_with_the_system_when_write_returns(tmp_path: Path) -> None:
    metrics = MetricsWriter(tmp_path)
    for k in (1, 2):
        metrics.write(k, 100 * k, {"loss": 0.5})
        assert len(read_metrics(tmp_path / "metrics.csv")) == k
        assert len(events(tmp_path)) == 2 + k
    metrics.close()


def test_a_resumed_run_cuts_it_back(tmp_path: Path) -> None:
    write(tmp_path, range(1, 8))
    before = read_metrics(tmp_path / "metrics.csv")
    write(tmp_path, range(6, 8), from_iteration=5, offset=1.0)
    rows = read_metrics(tmp_path / "metrics.csv")
    assert list(map(str, rows[:5])) == list(map(str, before[:5]))
    assert [row["iteration"] for row in rows] == [1, 2, 3, 4, 5, 6, 7]
    assert rows[-1]["loss"] == pytest.approx(7 / 3 + 1, rel=1e-5)
    assert rows[5]["seconds"] > rows[4]["seconds"]


def test_cut_back_to_the_start_it_begins_anew(tmp_path: Path) -> None:
    write(tmp_path, range(1, 4))
    write(tmp_path, range(1, 3), offset=1.0)
    rows = read_metrics(tmp_path / "metrics.csv")
    assert [row["iteration"] for row in rows] == [1, 2]


def test_a_last_line_cut_short_at_any_byte(tmp_path: Path) -> None:
    write(tmp_path, range(1, 5))
    path = tmp_path / "metrics.csv"
    whole = path.read_bytes()
    start = whole.rindex(b"\n", 0, -1) + 1
    for end in range(start, len(whole)):
        path.write_bytes(whole[:end])
        assert [row["iteration"] for row in read_metrics(path)] == [1, 2, 3]
        write(tmp_path, range(4, 6), from_iteration=3)
        assert [row["iteration"] for row in read_metrics(path)] == [1, 2, 3, 4, 5]


def test_a_header_cut_short_at_any_byte(tmp_path: Path) -> None:
    write(tmp_path, range(1, 2))
    path = tmp_path / "metrics.csv"
    whole = path.read_bytes()
    for end in range(whole.index(b"\n") + 2):
        path.write_bytes(whole[:end])
        assert read_metrics(path) == []
        write(tmp_path, range(1, 2))
        assert [row["iteration"] for row in read_metrics(path)] == [1]
        assert path.read_bytes().startswith(b"iteration,")


@pytest.mark.parametrize(
    "content", ["a,b\n1,2\n", "iteration\nmany\n", "iteration,x\n1\n", "\xff\n"]
)
def test_another_table_is_named(content: str, tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_bytes(content.encode("latin-1"))
    if content == "\xff\n":
        with pytest.raises(RunError, match="is not the metrics of a run: "):
            read_metrics(path)
        return
    with pytest.raises(RunError, match=rf"{path} is not the metrics of a run: "):
        MetricsWriter(tmp_path)
    assert path.read_bytes() == content.encode("latin-1")


def test_a_new_number_in_an_old_table_is_left_out(tmp_path: Path) -> None:
    write(tmp_path, range(1, 3))
    metrics = MetricsWriter(tmp_path, from_iteration=2)
    metrics.write(3, 300, {"loss": 1.0, "news": 2.0})
    metrics.close()
    rows = read_metrics(tmp_path / "metrics.csv")
    assert rows[2]["loss"] == 1
    assert "news" not in rows[2]


# -- TensorBoard -----------------------------------------------------------------------------------


def events(folder: Path) -> list[Any]:
    files = sorted((folder / "tensorboard").iterdir())
    return [event for file in files for event in EventFileLoader(str(file)).Load()]


def test_tensorboard_reads_the_events(tmp_path: Path) -> None:
    write(tmp_path, range(1, 4))
    version, start, *rest = events(tmp_path)
    assert version.file_version == "brain.Event:2"
    assert start.session_log.status == start.session_log.START
    assert [event.step for event in rest] == [100, 200, 300]
    told = {value.tag for value in rest[1].summary.value}
    assert told == {
        *("time/seconds", "time/steps_per_second", "update/loss"),
        *("rollout/episodes", "rollout/eval_return"),
    }


def test_tensorboard_forgets_what_is_written_again(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write(tmp_path, range(1, 8))
    write(tmp_path, range(6, 9), from_iteration=5, offset=1.0)
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2
    found = EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    read = {event.step: event.value for event in found.Scalars("update/loss")}
    rows = read_metrics(tmp_path / "metrics.csv")
    assert read == pytest.approx({row["timesteps"]: row["loss"] for row in rows}, rel=1e-5)
    assert len(rows) == len(found.Scalars("update/loss")) == 8
