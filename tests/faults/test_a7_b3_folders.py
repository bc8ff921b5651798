"""A7, B3: a run has one owner; a folder that cannot be written is found before the first step."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.command import sentences, upslope_command
from upslope.errors import RunError
from upslope.runs import run
from upslope.runs.configuration import RunConfig

pytestmark = pytest.mark.faults

SETTINGS = {"n_envs": 2, "n_steps": 16, "batch_size": 16, "n_epochs": 1}
CONFIG = RunConfig(
    algorithm="ppo",
    env="CartPole-v1",
    total_timesteps=400,
    checkpoint_seconds=0.0,
    settings=SETTINGS,
)


def train(folder: Path) -> run.Outcome:
    return run.train(folder, CONFIG, progress=False, say=lambda _: None)


@pytest.mark.parametrize("algorithm", ["q_learning", "dqn", "reinforce", "actor_critic", "ppo"])
def test_the_second_owner_is_refused_and_the_first_named(algorithm: str, tmp_path: Path) -> None:
    env = "Taxi-v4" if algorithm == "q_learning" else "CartPole-v1"
    config = RunConfig(algorithm=algorithm, env=env, total_timesteps=200)
    run.create(tmp_path / "a", config)
    with (
        run.locked(tmp_path / "a"),
        pytest.raises(RunError, match=f"is being trained by process {os.getpid()}"),
    ):
        run.train(tmp_path / "a", config, progress=False, say=lambda _: None)
    assert not (tmp_path / "a" / "metrics.csv").exists()


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """Yield a run on a file system of its own, which nobody may write to, not even root."""
    place = tmp_path / "disk"
    place.mkdir()
    words = ["mount", "-t", "tmpfs", "tmpfs", str(place)]
    try:
        made = subprocess.run(words, capture_output=True)
    except FileNotFoundError:
        pytest.skip("there is no `mount` here")
    if made.returncode:
        pytest.skip("no file system can be mounted here")
    try:
        run.create(place / "a", CONFIG)
        subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_cannot_be_written_is_found_at_the_start(read_only: Path) -> None:
    with pytest.raises(RunError, match="a cannot be written: Read-only file system"):
        train(read_only / "a")
    with pytest.raises(RunError, match="b cannot be written: Read-only file system"):
        run.create(read_only / "b", CONFIG)


def test_a_checkpoints_folder_that_is_a_file_is_found_at_the_start(tmp_path: Path) -> None:
    run.create(tmp_path / "a", CONFIG)
    (tmp_path / "a" / "checkpoints").write_text("")
    steps: list[int] = []
    with pytest.raises(RunError, match="checkpoints"):
        run.train(tmp_path / "a", CONFIG, progress=False, say=lambda said: steps.append(len(said)))
    assert not (tmp_path / "a" / "metrics.csv").exists()


def test_a_folder_that_is_taken_away_while_it_trains_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    run.create(folder, CONFIG)
    agent = run.make_agent(CONFIG)
    iterate = agent.iterate

    def taken_away() -> dict[str, float]:
        if agent.iteration == 3:
            shutil.rmtree(folder)
        return iterate()

    agent.iterate = taken_away  # type: ignore[method-assign]
    with pytest.raises(Exception, match=str(folder)):
        run.train(folder, CONFIG, agent=agent, progress=False, say=lambda _: None)


def test_the_command_says_it_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    done = upslope_command("train", "ppo", "CartPole-v1", "--n-envs", 2, cwd=tmp_path)
    (sentence,) = sentences(done.stderr)
    assert done.returncode == 1
    assert sentence.startswith("upslope: runs/ppo-CartPole-v1 cannot be written")
