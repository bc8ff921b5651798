"""B4, B5: of another algorithm, shape or version, or parts missing: refused, differences listed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import upslope.checkpoint as ck
from upslope.checkpoint import codec
from upslope.errors import CheckpointError

pytestmark = pytest.mark.faults

META_NAMES = ("counters", "schedule")


def tensors() -> dict[str, Any]:
    return {
        "parameters": torch.zeros(70),
        "optimizer.exp_avg": torch.zeros(70),
        "optimizer.exp_avg_sq": torch.zeros(70),
        "optimizer.step": torch.tensor(0),
        "observation_normalizer.mean": np.zeros(4),
        "reward_normalizer.running": np.zeros(8),
        "replay.action": torch.zeros((17, 8), dtype=torch.int64),
    }


def meta() -> dict[str, Any]:
    return {
        "algorithm": "ppo",
        "state_version": 1,
        "action_space": ["Discrete", [2]],
        "counters": {"steps": 4096},
        "schedule": {"learning_rate": 3e-4},
        "written": "on a Tuesday",
    }


def expected() -> dict[str, Any]:
    """Return what an agent set up anew would save; its replay is of any length."""
    return tensors() | {"replay.action": ck.TensorSpec((None, 8), torch.int64)}


def check(found: ck.State, algorithm: str = "ppo", **changed: Any) -> None:
    ck.check_compatible(
        *found,
        changed.get("expected", expected()),
        algorithm=algorithm,
        expected_meta={"state_version": 1, "action_space": ("Discrete", (2,))},
        required_meta=META_NAMES,
        path="runs/a/step-1",
    )


def saved(folder: Path, tensors: dict[str, Any], meta: dict[str, Any]) -> ck.State:
    return ck.read(ck.save_at(folder / "c", tensors, meta))


def test_its_own_is_accepted(tmp_path: Path) -> None:
    check(saved(tmp_path, tensors(), meta()))


def test_all_differences_are_listed_at_once(tmp_path: Path) -> None:
    other = tensors() | {
        "parameters": torch.zeros(71),
        "optimizer.step": torch.tensor(0, dtype=torch.int32),
        "replay.action": torch.zeros((17, 9), dtype=torch.int64),
        "target.parameters": torch.zeros(3),
        "observation_normaliser.mean": np.zeros(4),
    }
    del other["observation_normalizer.mean"]
    other_meta = meta() | {"algorithm": "dqn", "state_version": 2}
    del other_meta["schedule"]
    with pytest.raises(CheckpointError) as caught:
        check(saved(tmp_path, other, other_meta))
    assert str(caught.value).splitlines() == [
        "the checkpoint runs/a/step-1 does not fit this ppo, 9 differences:",
        "  - algorithm: 'dqn' in the checkpoint, expected 'ppo'",
        "  - state_version: 2 in the checkpoint, expected 1",
        "  - schedule: missing",
        "  - tensor observation_normalizer.mean: missing, expected float64 [4]"
        " (did you mean 'observation_normaliser.mean'?)",
        "  - tensor optimizer.step: int32 [] in the checkpoint, expected int64 []",
        "  - tensor parameters: float32 [71] in the checkpoint, expected float32 [70]",
        "  - tensor replay.action: int64 [17, 9] in the checkpoint, expected int64 [any, 8]",
        "  - tensor observation_normaliser.mean: float64 [4] in the checkpoint, not expected",
        "  - tensor target.parameters: float32 [3] in the checkpoint, not expected",
    ]


def test_another_algorithm_with_the_same_tensors(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"1 difference:\n.*'ppo' in the .* expected 'reinforce"
    ):
        check(saved(tmp_path, tensors(), meta()), algorithm="reinforce")


@pytest.mark.parametrize(
    "shape", [(), (1,), (70, 1), (1, 70), (0,)], ids=lambda shape: "x".join(map(str, shape))
)
def test_no_shape_is_broadcast(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(CheckpointError, match="tensor parameters: float32"):
        check(saved(tmp_path, tensors() | {"parameters": torch.zeros(shape)}, meta()))


def test_a_length_of_one_is_not_any_length(tmp_path: Path) -> None:
    one = expected() | {"replay.action": ck.TensorSpec((1, 8), torch.int64)}
    with pytest.raises(CheckpointError, match=r"int64 \[17, 8\] .* expected int64 \[1, 8\]"):
        check(saved(tmp_path, tensors(), meta()), expected=one)


@pytest.mark.parametrize("name", tensors())
def test_any_tensor_missing(tmp_path: Path, name: str) -> None:
    less = {key: value for key, value in tensors().items() if key != name}
    with pytest.raises(CheckpointError, match=f"1 difference:\n  - tensor {name}: missing"):
        check(saved(tmp_path, less, meta()))


@pytest.mark.parametrize("name", ["algorithm", "state_version", "action_space", *META_NAMES])
def test_anything_else_missing(tmp_path: Path, name: str) -> None:
    less = {key: value for key, value in meta().items() if key != name}
    with pytest.raises(CheckpointError, match=f"1 difference:\n  - {name}: missing"):
        check(saved(tmp_path, tensors(), less))


@pytest.mark.parametrize("name", tensors())
def test_any_tensor_not_expected(tmp_path: Path, name: str) -> None:
    fewer = {key: value for key, value in expected().items() if key != name}
    with pytest.raises(CheckpointError, match=f"tensor {name}: .* not expected"):
        check(saved(tmp_path, tensors(), meta()), expected=fewer)


def test_true_is_not_one(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="state_version: True in the checkpoint, expected 1"):
        check(saved(tmp_path, tensors(), meta() | {"state_version": True}))


@pytest.mark.parametrize("version", [0, 2, 100])
def test_another_format_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int
) -> None:
    ck.write(tmp_path, "step-1", tensors(), meta())
    with monkeypatch.context() as patch:
        patch.setattr(codec, "FORMAT_VERSION", version)
        other = ck.write(tmp_path, "step-2", tensors(), meta())
    sentence = f"step-2 is refused: manifest.json says format version {version}; this version of "
    with pytest.raises(CheckpointError, match=sentence):
        ck.read(other)
    newest = ck.newest_valid(tmp_path)
    assert newest.path.name == "step-1"
    assert sentence in newest.refused[0][1]
    ck.write(tmp_path, "step-2", tensors(), meta())
    assert other.with_name("step-2.refused").is_dir()  # another version's is not thrown away
