"""SIGTERM and Ctrl-C: the run is saved, the exit code says which, it goes on to the same end."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from tests.command import sentences, start, upslope_command
from upslope import checkpoint

pytestmark = pytest.mark.slow

WORDS = (
    *("train", "ppo", "CartPole-v1", "--no-recipe", "--n-envs", 2, "--n-steps", 32),
    *("--final-episodes", 2, "--total-timesteps", 6_000, "--segment-length", 320),
)


def end_of(folder: Path) -> tuple[str, bytes]:
    newest = checkpoint.list_checkpoints(folder / "checkpoints")[0]
    return newest.name, (newest / "state.safetensors").read_bytes()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_saved_and_gone_on_with(number: signal.Signals, tmp_path: Path) -> None:
    whole = upslope_command(*WORDS, "--name", "whole", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    assert not whole.stderr  # nothing but what is printed: no terminal, no progress
    assert "\x1b" not in whole.stdout
    assert "\r" not in whole.stdout
    folder = tmp_path / "runs" / "a"
    with start(*WORDS, "--name", "a", cwd=tmp_path) as process:
        metrics = folder / "metrics.csv"
        while not metrics.exists() or metrics.read_bytes().count(b"\n") < 5:
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert not sentences(err)
    assert sentences(out)[-1] == "stopped; upslope train runs/a --resume goes on"
    stopped, _ = end_of(folder)
    assert stopped < end_of(tmp_path / "runs" / "whole")[0]
    again = upslope_command("train", "runs/a", "--resume", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert f"going on from {stopped}" in again.stdout
    assert end_of(folder) == end_of(tmp_path / "runs" / "whole")
    assert again.stdout.splitlines()[-1] == whole.stdout.splitlines()[-1]  # the same returns


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_video_that_is_stopped_leaves_nothing(number: signal.Signals, tmp_path: Path) -> None:
    pytest.importorskip("pygame")
    words = (*WORDS[:-4], "--total-timesteps", 128, "--name", "a")
    assert upslope_command(*words, cwd=tmp_path).returncode == 0
    with start("video", "runs/a", "--seconds", 600, cwd=tmp_path) as process:
        while not list((tmp_path / "runs" / "a").glob(".video*")):
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "stopped by a signal while filming" in err
    assert not list((tmp_path / "runs" / "a").glob("*video*"))
