"""B2, for a run: one flipped bit in its newest checkpoint: refused aloud, the one before used."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from upslope import checkpoint
from upslope.errors import CheckpointError
from upslope.runs import run
from upslope.runs.configuration import RunConfig

FILES = ["state.safetensors", "state.json", "manifest.json"]
STEPS = 12 * 2 * 16  # of twelve iterations, less what only resets

CONFIG = RunConfig(
    algorithm="ppo",
    env="CartPole-v1",
    total_timesteps=STEPS,
    checkpoint_seconds=0,  # after every iteration
    settings={"n_envs": 2, "n_steps": 16, "batch_size": 16, "segment_length": 64, "seed": 5},
)


@pytest.fixture(scope="module")
def never_damaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    run.create(folder, CONFIG)
    assert run.train(folder, CONFIG, progress=False).finished
    return folder


def stopped_half_way(folder: Path) -> None:
    """Make a run that is stopped after seven iterations."""
    run.create(folder, CONFIG)
    for _ in range(7):
        run.train(folder, CONFIG, max_seconds=0, progress=False, say=lambda _: None)


def weights(folder: Path) -> bytes:
    newest = checkpoint.list_checkpoints(folder / "checkpoints")[0]
    return (newest / "state.safetensors").read_bytes()


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8 % len(data)] ^= 1 << bit % 8
    path.write_bytes(data)


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_the_one_before_is_used_and_the_end_is_the_same(
    name: str, never_damaged: Path, tmp_path: Path
) -> None:
    folder, said = tmp_path / "a", []
    stopped_half_way(folder)
    flip(folder / "checkpoints" / "step-000000000007" / name, 8 * 100 + 3)
    assert run.train(folder, CONFIG, progress=False, say=said.append).finished
    refused, going_on, engine = said
    assert engine.startswith("engine: ")
    assert refused.startswith("step-000000000007 is refused, the checkpoint before it is used: ")
    assert f"{name} is damaged" in refused
    assert going_on.startswith("going on from step-000000000006 (")
    assert weights(folder) == weights(never_damaged)
    assert (folder / "checkpoints" / "step-000000000007.refused").is_dir()  # not thrown away


def test_evaluating_says_it_too(tmp_path: Path) -> None:
    folder, said = tmp_path / "a", []
    stopped_half_way(folder)
    flip(folder / "checkpoints" / "step-000000000007" / "state.safetensors", 4000)
    run.evaluate(folder, episodes=2, say=said.append)
    assert len(said) == 1
    assert said[0].startswith("step-000000000007 is refused, the checkpoint before it is used: ")


def test_all_damaged_stops_the_run_with_every_name(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    stopped_half_way(folder)
    names = [path.name for path in checkpoint.list_checkpoints(folder / "checkpoints")]
    for name in names:
        flip(folder / "checkpoints" / name / "state.json", 11)
    with pytest.raises(CheckpointError, match="holds no valid checkpoint") as caught:
        run.train(folder, CONFIG, progress=False)
    assert len(names) == 3
    assert all(f"{name} is refused: state.json is damaged" in str(caught.value) for name in names)


def test_a_damaged_best_policy_is_refused_and_the_last_can_be_asked_for(
    never_damaged: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "a"
    shutil.copytree(never_damaged, folder)
    newest = checkpoint.list_checkpoints(folder / "checkpoints")[0]
    shutil.copytree(newest, folder / "best")
    flip(folder / "best" / "state.safetensors", 9999)
    with pytest.raises(CheckpointError, match=r"best is refused: state\.safetensors is damaged"):
        run.evaluate(folder, episodes=2)
    assert len(run.evaluate(folder, episodes=2, which="last").returns) == 2
