"""B2: truncated, or one bit flipped anywhere: detected, refused aloud, the previous one used."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import upslope.checkpoint as ck
from upslope.errors import CheckpointError

pytestmark = pytest.mark.faults

FILES = ["state.safetensors", "state.json", "manifest.json"]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Yield a folder in memory where there is one: thousands of durable writes would take long."""
    memory = Path("/dev/shm")
    parent = memory if memory.is_dir() and os.access(memory, os.W_OK) else tmp_path
    with tempfile.TemporaryDirectory(dir=parent) as name:
        yield Path(name)


@pytest.fixture
def two(folder: Path) -> tuple[Path, Path]:
    """Return the previous and the newest checkpoint of a folder."""
    paths = []
    for step in (1, 2):
        tensors = {
            "policy.weight": torch.linspace(-1, 1, 600).reshape(30, 20) * step,
            "adam.count": np.array(step),
            "normalizer.mean": np.full(3, step / 3),
            "mask": torch.ones(5, dtype=torch.bool),
        }
        meta = {"algorithm": "ppo", "step": step, "schedule": {"learning_rate": 3e-4 / step}}
        paths.append(ck.write(folder, ck.step_name(step), tensors, meta))
    return paths[0], paths[1]


def assert_refused(two: tuple[Path, Path], named: str) -> None:
    previous, newest = two
    found = ck.newest_valid(newest.parent)
    assert found.path == previous
    assert found.meta["step"] == 1
    ((path, reason),) = found.refused
    assert path == newest
    assert str(newest) in reason
    assert named in reason


def bits_to_flip(size: int, name: str) -> list[int]:
    """Return every bit of the small files, every bit of a header and 600 others of the tensors."""
    if name != "state.safetensors":
        return list(range(8 * size))
    chosen = np.random.default_rng(0).choice(8 * size, 600, replace=False)
    return sorted({*range(8 * 60), *chosen.tolist(), 8 * size - 1})


@pytest.mark.parametrize("name", FILES)
def test_one_flipped_bit(two: tuple[Path, Path], name: str) -> None:
    path = two[1] / name
    whole = path.read_bytes()
    for bit in bits_to_flip(len(whole), name):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match=f"{two[1]} is refused: {name}"):
            ck.read(two[1])
        if bit % 8 == 0:
            assert_refused(two, name)
    path.write_bytes(whole)
    assert ck.newest_valid(two[1].parent).path == two[1]


@pytest.mark.parametrize("name", FILES)
def test_truncated_at_fifty_offsets_or_longer(two: tuple[Path, Path], name: str) -> None:
    path = two[1] / name
    whole = path.read_bytes()
    for size in np.linspace(0, len(whole) - 1, 50).astype(int):
        path.write_bytes(whole[:size])
        assert_refused(two, name)
    for more in (b"\x00", b"\n", b" ", b"}"):
        path.write_bytes(whole + more)
        assert_refused(two, name)


@pytest.mark.parametrize("name", FILES)
def test_a_page_of_zeros(two: tuple[Path, Path], name: str) -> None:
    path = two[1] / name
    path.write_bytes(bytes(path.stat().st_size))
    assert_refused(two, name)


@pytest.mark.parametrize("name", FILES)
def test_missing_or_of_another_kind(two: tuple[Path, Path], name: str) -> None:
    path = two[1] / name
    path.unlink()
    assert_refused(two, f"{name} is missing")
    path.mkdir()
    assert_refused(two, f"{name} is not an ordinary file")
    path.rmdir()
    path.symlink_to(path)
    assert_refused(two, name)


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_another_checkpoint(two: tuple[Path, Path], name: str) -> None:
    shutil.copy(two[0] / name, two[1] / name)
    named = "damaged: it has" if name == "manifest.json" else name
    assert_refused(two, named)


def test_a_file_too_many(two: tuple[Path, Path]) -> None:
    two[1].joinpath("state.pt").write_bytes(b"")
    assert_refused(two, "state.pt")


def test_a_name_with_nothing_behind_it(two: tuple[Path, Path]) -> None:
    shutil.rmtree(two[1])
    two[1].mkdir()
    assert_refused(two, "state.safetensors, state.json, manifest.json is missing")
    two[1].rmdir()
    two[1].write_bytes(b"")
    assert_refused(two, "is not a folder")


def test_none_left(two: tuple[Path, Path]) -> None:
    for path in two:
        path.joinpath("state.json").write_bytes(b"{}")
    with pytest.raises(CheckpointError, match="no valid checkpoint") as caught:
        ck.newest_valid(two[0].parent)
    for path in two:
        assert f"{path} is refused: state.json is damaged" in str(caught.value)
