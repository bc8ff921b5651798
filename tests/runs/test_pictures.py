"""The learning curve, as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import numpy as np
import pytest

from upslope.errors import RunError
from upslope.runs.configuration import RunConfig
from upslope.runs.metrics import MetricsWriter
from upslope.runs.pictures import learning_curve

ROWS: list[dict[str, Any]] = [{"episode_return": 10.0 * k, "episodes": k} for k in range(1, 9)]


def make(folder: Path, rows: list[dict[str, Any]]) -> Path:
    RunConfig(algorithm="ppo", env="CartPole-v1", total_timesteps=10).write(folder)
    metrics = MetricsWriter(folder)
    for k, row in enumerate(rows, 1):
        metrics.write(k, 100 * k, row)
    metrics.close()
    return folder


def coloured(path: Path, red: int, green: int, blue: int) -> int:
    """Count the pixels near a colour."""
    picture = imageio.imread(path)[..., :3].astype(int)
    return int((np.abs(picture - [red, green, blue]).max(-1) < 30).sum())


def test_returns_and_evaluations(tmp_path: Path) -> None:
    rows = [row | ({"eval_return": 50.0} if k % 3 == 0 else {}) for k, row in enumerate(ROWS)]
    path = learning_curve(make(tmp_path, rows))
    assert path == tmp_path / "learning_curve.png"
    assert imageio.imread(path).shape[:2] == (630, 1120)
    assert coloured(path, 0x2A, 0x78, 0xC2) > 500
    assert coloured(path, 0xE8, 0x74, 0x3B) > 50


def test_scores_stand_before_returns(tmp_path: Path) -> None:
    path = learning_curve(make(tmp_path, [row | {"episode_score": 300.0} for row in ROWS]))
    assert path is not None
    assert coloured(path, 0x2A, 0x78, 0xC2) > 500


@pytest.mark.parametrize("rows", [[], ROWS[:1], [{"loss": 1.0}] * 3])
def test_nothing_to_draw_yet(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    assert learning_curve(make(tmp_path, rows)) is None


def test_a_picture_that_cannot_be_written(tmp_path: Path) -> None:
    make(tmp_path, ROWS)
    (tmp_path / "learning_curve.png").mkdir()
    with pytest.raises(RunError, match=r"learning_curve\.png cannot be written: Is a directory"):
        learning_curve(tmp_path)
