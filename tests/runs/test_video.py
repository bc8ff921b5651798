"""Videos: whole, of the right length, and a sentence where an environment cannot be drawn."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import imageio.v3 as imageio
import imageio_ffmpeg
import numpy as np
import pytest

from upslope.errors import ArgumentError, RunError
from upslope.runs import run
from upslope.runs.configuration import RunConfig
from upslope.runs.video import film


def make(parent: Path, env: str) -> Path:
    config = RunConfig(
        algorithm="ppo", env=env, total_timesteps=32, settings={"n_envs": 2, "n_steps": 16}
    )
    folder = parent / "a"
    run.create(folder, config)
    run.train(folder, config, progress=False, max_seconds=0)
    return folder


def pictures(path: Path) -> np.ndarray:
    """Return the frames of a video, [frames, H, W, 3]."""
    if path.suffix == ".gif":
        return imageio.imread(path)
    program = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", path]
    raw = subprocess.run([*program, "-f", "image2pipe", "-c:v", "ppm", "-"], capture_output=True)
    _, size, depth, _ = raw.stdout.split(b"\n", 3)  # "P6", width and height, 255, numbers
    width, height = map(int, size.split())
    header = len(b"P6\n" + size + b"\n" + depth + b"\n")
    frames = np.frombuffer(raw.stdout, np.uint8).reshape(-1, header + height * width * 3)
    return frames[:, header:].reshape(-1, height, width, 3)


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["mp4", "gif"])
@pytest.mark.parametrize("env", ["upslope/FlappyBird-v0", "CartPole-v1"])
def test_a_video(env: str, ending: str, tmp_path: Path) -> None:
    if env == "CartPole-v1":
        pytest.importorskip("pygame")
    folder = make(tmp_path, env)
    path = film(folder, seconds=1.5, output=tmp_path / f"x.{ending}")
    frames = pictures(path)
    rate = {"CartPole-v1": 50, "upslope/FlappyBird-v0": 30}[env]
    if ending == "mp4":
        assert len(frames) == 1.5 * rate
    assert frames.ndim == 4
    assert min(frames.shape[1:3]) > 200
    assert np.ptp(frames[0]) > 100
    assert not np.array_equal(frames[0], frames[-1])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", f"x.{ending}"]


def test_by_default_in_the_folder_of_the_run(tmp_path: Path) -> None:
    folder = make(tmp_path, "upslope/FlappyBird-v0")
    (folder / "video.mp4").write_text("an older one")
    assert film(folder, seconds=0.001) == folder / "video.mp4"
    assert len(pictures(folder / "video.mp4")) == 1


def test_where_it_cannot_be_written(tmp_path: Path) -> None:
    folder = make(tmp_path, "upslope/FlappyBird-v0")
    with pytest.raises(RunError, match=r"nowhere/x\.mp4 cannot be written"):
        film(folder, seconds=0.1, output=tmp_path / "nowhere" / "x.mp4")


def test_a_video_that_fails_half_way_leaves_the_older_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make(tmp_path, "upslope/FlappyBird-v0")
    film(folder, seconds=0.1)
    before = (folder / "video.mp4").read_bytes(), sorted(folder.iterdir())

    def fails(*_: object) -> Iterator[np.ndarray]:
        yield np.zeros((64, 64, 3), np.uint8)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("upslope.runs.video.play", fails)
    with pytest.raises(RunError, match=r"video\.mp4 cannot be written: No space left on device"):
        film(folder, seconds=0.1)
    assert ((folder / "video.mp4").read_bytes(), sorted(folder.iterdir())) == before


def test_an_environment_that_draws_nothing(tmp_path: Path) -> None:
    folder = make(tmp_path, "tests.tiny:tiny/Walk-v0")
    with pytest.raises(RunError, match="tiny/Walk-v0 cannot be filmed: "):
        film(folder, seconds=0.1)


def test_wrong_arguments(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="seconds=0: a video takes a finite number above 0"):
        film(tmp_path, seconds=0)
    with pytest.raises(ArgumentError, match=r"a video ends in \.mp4 or \.gif"):
        film(tmp_path, output=tmp_path / "x.avi")
