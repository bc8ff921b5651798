"""Checkpoints on disk: written aside, fsynced, renamed once; read whole or refused.

    folder/step-000000012288/         a complete checkpoint: three files, see `codec`
    folder/.step-000000012288.tmp-71  one being written by process 71
    folder/.step-000000004096.old-71  one being removed by process 71
    folder/step-000000008192.refused  a damaged one, moved out of the way of a new one

Each file is fsynced, then the folder that holds them, then the folder is renamed and its parent
fsynced. A process killed between any two system calls leaves the checkpoints that were there, or
those and the new one; what it left aside is removed by the next save. "Newest" is the largest
integer at the end of a name, never a time stamp.

A path that the user names is replaced in three steps: the old checkpoint is renamed to
`NAME.replaced`, the new one to NAME, the old one removed. `read(NAME)` takes `NAME.replaced` where
a kill between the first two left only that.

One process at a time saves into a folder; the run that owns it sees to that.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from upslope.checkpoint import codec, disk
from upslope.checkpoint.codec import FILES, State
from upslope.errors import ArgumentError, CheckpointError, UpslopeError

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*-([0-9]{1,18})", re.ASCII)


class Newest(NamedTuple):
    """The newest valid checkpoint of a folder, and the newer ones that were refused, with why."""

    path: Path
    tensors: dict[str, torch.Tensor]
    meta: dict[str, Any]
    refused: list[tuple[Path, str]]


def step_name(step: int) -> str:
    """Return the name of the checkpoint of a step: step_name(4096) is "step-000000004096"."""
    if step < 0:
        raise ArgumentError(f"step is {step}; it takes an integer of at least 0")
    return f"step-{step:012d}"


def write(
    folder: str | Path,
    name: str,
    tensors: Mapping[str, torch.Tensor | np.ndarray],
    meta: Mapping[str, Any],
    keep: int = 3,
) -> Path:
    """Save a state as `folder/name`, remove all but the newest `keep` valid ones, return the path.

    A valid checkpoint is never overwritten: saving the same state again changes nothing, another
    state under its name is refused. A damaged one of that name is moved to `name.refused`.
    """
    if not _NAME.fullmatch(name):
        raise ArgumentError(f"name is {name!r}; it takes a word and an integer, as in 'step-4096'")
    if keep < 1:
        raise ArgumentError(f"keep is {keep}; it takes an integer of at least 1")
    files = codec.encode(tensors, meta)
    target = _absolute(folder) / name
    with _explained(f"checkpoint {target} could not be saved, earlier ones are untouched"):
        disk.make_folder(target.parent)
        disk.remove_leftovers(target.parent)
        if os.path.lexists(target) and not _make_way(target, files):
            return target
        with disk.written_aside(target, files) as aside:
            os.rename(aside, target)
        disk.sync_folder(target.parent)
        _verified[target] = disk.stamp(target)
    with _explained(f"checkpoint {target} is saved, but older ones could not be removed"):
        _prune(target.parent, keep)
    return target


def save_at(
    path: str | Path, tensors: Mapping[str, torch.Tensor | np.ndarray], meta: Mapping[str, Any]
) -> Path:
    """Save a state at a path that the user names, replacing the checkpoint that is there, if any.

    Until the new one is complete, the old one is there to be read. Anything at the path that is
    not a checkpoint (or an empty folder) is refused. Missing parent folders are made.
    """
    files = codec.encode(tensors, meta)
    target = _absolute(path)
    old = _replaced(target)
    with _explained(f"checkpoint {target} could not be saved, an earlier one is untouched"):
        for place in (target, old):
            if os.path.lexists(place) and not _may_be_replaced(place):
                raise CheckpointError(
                    f"{place} exists and is not a checkpoint; choose a path that is free"
                )
        disk.make_folder(target.parent)
        disk.remove_leftovers(target.parent, target.name)
        disk.remove_leftovers(target.parent, old.name)
        if target.exists() and old.exists():  # a save was killed before its last step
            disk.discard(old if _is_valid(target) else target)
        with disk.written_aside(target, files) as aside:
            try:
                if target.exists():
                    os.rename(target, old)
                os.rename(aside, target)
            except BaseException:
                if old.exists() and not target.exists():
                    os.rename(old, target)
                raise
        disk.sync_folder(target.parent)
        if old.exists():
            disk.discard(old)
    return target


def put_aside(
    path: str | Path, tensors: Mapping[str, torch.Tensor | np.ndarray], meta: Mapping[str, Any]
) -> str:
    """Save at `path` what an update that failed was computed from; returns a sentence that says so.

    Raises nothing of its own, such as for a full disk: what went wrong first is what is told.
    """
    try:
        save_at(path, tensors, meta)
    except UpslopeError as error:
        return f"What it was computed from could not be kept: {error}"
    return f"What it was computed from is in {path}."


def read(path: str | Path) -> State:
    """Return the state of one checkpoint, or raise CheckpointError saying what is wrong with it."""
    target = _absolute(path)
    if not os.path.lexists(target) and os.path.isdir(_replaced(target)):
        target = _replaced(target)
    try:
        return codec.decode(disk.read_files(target))
    except CheckpointError as error:
        raise CheckpointError(f"checkpoint {target} is refused: {error}") from error


def newest_valid(folder: str | Path) -> Newest:
    """Return the newest checkpoint that can be read, and the newer ones that could not.

    Whoever calls this says the refused ones aloud: each is a path and a sentence. With none left,
    CheckpointError repeats them.
    """
    refused: list[tuple[Path, str]] = []
    for path in list_checkpoints(folder):
        try:
            return Newest(path, *read(path), refused)
        except CheckpointError as error:
            refused.append((path, str(error)))
    listed = "".join(f"\n  - {reason}" for _, reason in refused)
    raise CheckpointError(f"{folder} holds no valid checkpoint{':' if listed else ''}{listed}")


def list_checkpoints(folder: str | Path) -> list[Path]:
    """Return the checkpoints of a folder, newest first, valid or not; none if it does not exist."""
    place = _absolute(folder)
    with _explained(f"the checkpoints in {place} could not be listed"):
        names = os.listdir(place) if place.is_dir() else []
    found = [(int(match[1]), match[0]) for name in names if (match := _NAME.fullmatch(name))]
    return [place / name for _, name in sorted(found, reverse=True)]


_verified: dict[Path, tuple[object, ...]] = {}  # checkpoints that this process wrote or checked


def _is_valid(path: Path) -> bool:
    """Say whether a checkpoint is whole, reading it only if its files changed since last time."""
    try:
        stamp = disk.stamp(path)
        if _verified.get(path) != stamp:
            codec.decode(disk.read_files(path))
            _verified[path] = stamp
    except (CheckpointError, OSError):
        return False
    return True


def _prune(folder: Path, keep: int) -> None:
    """Remove what is older than the newest `keep` valid checkpoints; damaged ones do not count."""
    valid = 0
    for path in list_checkpoints(folder):
        if valid < keep:
            valid += _is_valid(path)
        elif disk.holds_only_state(path):
            disk.discard(path)
            _verified.pop(path, None)


def _make_way(target: Path, files: Mapping[str, bytes]) -> bool:
    """Decide over what already has the name of a new checkpoint; False if it is the same state."""
    try:
        found = disk.read_files(target)
        codec.decode(found)
    except CheckpointError:
        refused, copy = target.with_name(f"{target.name}.refused"), 2
        while os.path.lexists(refused):
            refused, copy = target.with_name(f"{target.name}.refused{copy}"), copy + 1
        os.rename(target, refused)
        return True
    if found != files:
        raise CheckpointError(f"{target} exists with another state; it is not overwritten")
    return False


def _may_be_replaced(path: Path) -> bool:
    return disk.holds_only_state(path) and len(os.listdir(path)) in (0, len(FILES))


def _replaced(path: Path) -> Path:
    return path.with_name(f"{path.name}.replaced")


def _absolute(path: str | Path) -> Path:
    try:
        target = Path(os.path.realpath(path))
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"path is {path!r}; it takes a path: {error}") from None
    if not target.name:
        raise ArgumentError(f"path is {str(path)!r}; it takes a path below the root")
    return target


@contextlib.contextmanager
def _explained(sentence: str) -> Iterator[None]:
    """Turn an OSError into CheckpointError: the sentence and the reason; its cause keeps errno."""
    try:
        yield
    except OSError as error:
        at = f" (at {error.filename})" if error.filename else ""
        raise CheckpointError(f"{sentence}: {error.strerror or error}{at}") from error
