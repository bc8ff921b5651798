"""The progress line: on a terminal only, with what is worth knowing."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
from rich.console import Console

from upslope.agents.progress import Progress


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setattr(Console, "is_terminal", property(lambda self: True))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "xterm")


def test_quiet_where_there_is_no_terminal(capsys):
    with Progress(100) as progress:
        progress.show(50, {"episode_return": 3.0})
    assert capsys.readouterr() == ("", "")


def test_quiet_when_not_asked_for(terminal, capsys):
    with Progress(100, shown=False) as progress:
        progress.show(50, {"episode_return": 3.0})
    assert capsys.readouterr() == ("", "")


def test_what_it_shows(terminal, capsys):
    with Progress(2000) as progress:
        progress.show(500, {"episode_return": 12.34, "episode_score": 5.0, "signal_to_noise": 0.25})
    out, err = capsys.readouterr()
    assert out == ""
    for told in ("500 steps", "25%", "return 12.3", "score 5.0", "signal/noise 0.25", "steps/s"):
        assert told in err, told
    with Progress(2000) as progress:
        progress.show(500, {"signal_to_noise": math.nan})
    err = capsys.readouterr().err
    assert "not resolved" in err
    assert "return" not in err


def test_speed_counts_only_steps_of_this_time(terminal, capsys, monkeypatch):
    clock = iter([100.0, 110.0])
    fake = SimpleNamespace(perf_counter=lambda: next(clock))
    monkeypatch.setattr("upslope.agents.progress.time", fake)
    with Progress(2000, done=1000) as progress:
        progress.show(1500, {})
    assert " 50 steps/s" in capsys.readouterr().err
