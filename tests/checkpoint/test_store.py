from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import upslope.checkpoint as ck
from upslope.checkpoint import codec, disk
from upslope.errors import ArgumentError, CheckpointError


def state(step: int, size: int = 12) -> tuple[dict[str, Any], dict[str, Any]]:
    tensors = {
        "weight": torch.arange(size, dtype=torch.float32) + step,
        "count": np.array(step, dtype=np.int64),
    }
    return tensors, {"algorithm": "ppo", "step": step}


def save(folder: Path, *steps: int, **options: Any) -> list[Path]:
    return [ck.write(folder, ck.step_name(step), *state(step), **options) for step in steps]


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def flip_a_bit(path: Path, at: int = -1) -> None:
    time.sleep(0.02)  # so that the file's time stamp differs from the one it was written with
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


# ---- what goes in comes out ----------------------------------------------------------------------

DTYPES = [
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
]


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (5,), (2, 3, 4)])
def test_every_dtype_and_shape_comes_back_as_it_was(tmp_path: Path, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        str(dtype): torch.randint(0, 2, shape, generator=generator).to(dtype) for dtype in DTYPES
    }
    found, _ = ck.read(ck.write(tmp_path, "step-1", tensors, {}))
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        assert torch.equal(found[name], tensor)
        found[name].zero_()  # it can be written to


@pytest.mark.parametrize("dtype", ["bool", "u1", "u2", "u4", "u8", "i8", "f4", "f8", ">f8", ">i4"])
@pytest.mark.parametrize("shape", [(), (0, 2), (2, 3)])
def test_numpy_arrays_keep_dtype_and_shape(
    tmp_path: Path, dtype: str, shape: tuple[int, ...]
) -> None:
    array = np.arange(int(np.prod(shape))).reshape(shape).astype(dtype)
    array.flags.writeable = False
    found, _ = ck.read(ck.write(tmp_path, "step-1", {"a": array}, {}))
    assert found["a"].shape == shape
    assert found["a"].numpy().dtype == array.dtype.newbyteorder("=")
    np.testing.assert_array_equal(found["a"].numpy(), array)


def test_bits_of_nan_and_negative_zero_are_kept(tmp_path: Path) -> None:
    bits = torch.tensor([0x7FC00001, 0x7F800001, -0x80000000, 0x7F800000, 1], dtype=torch.int32)
    found, _ = ck.read(ck.write(tmp_path, "step-1", {"a": bits.view(torch.float32)}, {}))
    assert torch.equal(found["a"].view(torch.int32), bits)


def test_strides_views_parameters_and_shared_memory(tmp_path: Path) -> None:
    flat = torch.arange(12.0)
    tensors = {
        "flat": flat,
        "view": flat[3:9].view(2, 3),
        "transposed": flat.view(3, 4).t(),
        "every other": flat[::2],
        "expanded": torch.tensor(1.0).expand(4),
        "parameter": torch.nn.Parameter(flat.view(3, 4)),
        "conjugate": torch.tensor([1 + 2j]).conj(),
        "numpy transposed": np.arange(6.0).reshape(2, 3).T,
        "numpy scalar": np.float64(2.5),
    }
    found, _ = ck.read(ck.write(tmp_path, "step-1", tensors, {}))
    assert found.keys() == tensors.keys()
    for name, value in tensors.items():
        expected = value.detach() if isinstance(value, torch.Tensor) else torch.tensor(value)
        assert torch.equal(found[name], expected), name
        assert found[name].dtype == expected.dtype
        assert found[name].is_contiguous()


def test_no_tensors_at_all(tmp_path: Path) -> None:
    assert ck.read(ck.write(tmp_path, "step-1", {}, {})) == ({}, {})


def test_meta_comes_back_as_it_was(tmp_path: Path) -> None:
    meta = {
        "none": None,
        "flags": [True, False],
        "text": 'Größe "\n\x00 \ud800',
        "small": [0.1, 5e-324, 1.7976931348623157e308, -0.0],
        "large": [2**63, -(2**127), 2**128 - 1],
        "nested": {"a": [{"b": [[]]}, {}], "": ""},
        "numpy float": np.float64(0.1),
    }
    _, found = ck.read(ck.write(tmp_path, "step-1", {}, meta))
    assert found == meta
    assert [type(x) for x in found["flags"]] == [bool, bool]
    assert str(found["small"][-1]) == "-0.0"


def deep(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels - 1):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("meta", "named"),
    [
        ({"a": [1, {"b": float("nan")}]}, r"meta\['a'\]\[1\]\['b'\] is nan"),
        ({"a": float("inf")}, r"meta\['a'\] is inf"),
        ({"a": {3: 4}}, r"meta\['a'\] has the key 3"),
        ({"a": np.int64(3)}, r"meta\['a'\] is a int64; it takes"),
        ({"a": torch.zeros(2)}, r"meta\['a'\] is a Tensor; it takes"),
        ({"a": b"bytes"}, "is a bytes"),
        ({"a": deep(64)}, "deeper than 64"),
        ({"a": 10**5000}, "cannot be written as JSON"),
        ({"a": "x" * 17_000_000}, "at most 16777216"),
    ],
)
def test_meta_that_would_not_come_back_is_refused(
    tmp_path: Path, meta: dict[str, Any], named: str
) -> None:
    with pytest.raises(ArgumentError, match=named):
        ck.write(tmp_path, "step-1", {}, meta)
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "value", "named"),
    [
        ("w", [1.0], r"tensors\['w'\] is a list"),
        ("w", np.array(["a"]), r"tensors\['w'\] has dtype <U1"),
        ("w", np.array([None]), r"tensors\['w'\] has dtype object"),
        ("w", torch.eye(2).to_sparse(), r"tensors\['w'\] is sparse"),
        ("w", torch.empty(2, device="meta"), r"tensors\['w'\] is sparse or has no data"),
        ("w", torch.zeros(2, dtype=torch.complex128), "cannot be stored as safetensors"),
        ("", torch.zeros(2), "name ''"),
        ("__metadata__", torch.zeros(2), "name '__metadata__'"),
    ],
)
def test_tensors_that_cannot_be_stored_are_refused(
    tmp_path: Path, name: str, value: Any, named: str
) -> None:
    with pytest.raises(ArgumentError, match=named):
        ck.write(tmp_path, "step-1", {name: value}, {})
    assert names(tmp_path) == []


def test_a_header_too_long_to_be_read_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(codec, "MAX_HEADER_BYTES", 1000)
    with pytest.raises(ArgumentError, match="50 names, too many"):
        ck.write(tmp_path, "step-1", {f"tensor {i}": torch.zeros(1) for i in range(50)}, {})


# ---- which is the newest, which are kept ---------------------------------------------------------


def test_the_newest_is_the_largest_integer_not_the_latest_file(tmp_path: Path) -> None:
    ck.write(tmp_path, "step-10", *state(10))
    ck.write(tmp_path, "step-9", *state(9))
    ck.write(tmp_path, ck.step_name(2), *state(2))
    assert [p.name for p in ck.list_checkpoints(tmp_path)] == ["step-10", "step-9", ck.step_name(2)]
    newest = ck.newest_valid(tmp_path)
    assert newest.path == tmp_path / "step-10"
    assert newest.meta["step"] == 10
    assert newest.tensors["count"].item() == 10
    assert newest.refused == []


def test_three_are_kept(tmp_path: Path) -> None:
    save(tmp_path, 1, 2, 3, 4, 5)
    assert names(tmp_path) == [ck.step_name(step) for step in (3, 4, 5)]
    save(tmp_path, 6, keep=1)
    assert names(tmp_path) == [ck.step_name(6)]


def test_damaged_ones_do_not_count_among_the_kept(tmp_path: Path) -> None:
    first, second, third = save(tmp_path, 1, 2, 3)
    flip_a_bit(second / "state.safetensors")
    flip_a_bit(third / "state.json")
    save(tmp_path, 4)
    assert ck.read(first).meta["step"] == 1
    save(tmp_path, 5)
    assert first.exists()  # 5, 4 and 1 are the three valid ones
    save(tmp_path, 6)
    assert names(tmp_path) == [ck.step_name(step) for step in (4, 5, 6)]


def test_other_things_in_the_folder_are_left_alone(tmp_path: Path) -> None:
    tmp_path.joinpath("notes.txt").write_text("mine")
    tmp_path.joinpath("best").mkdir()
    tmp_path.joinpath("step-0").mkdir()
    tmp_path.joinpath("step-0", "diary").write_text("mine")
    elsewhere = tmp_path / "elsewhere"
    ck.save_at(elsewhere, *state(7))
    tmp_path.joinpath("step-00").symlink_to(elsewhere)
    save(tmp_path, 1, 2, keep=1)
    assert tmp_path.joinpath("step-0", "diary").read_text() == "mine"
    assert ck.read(elsewhere).meta["step"] == 7
    assert names(tmp_path) == [
        "best",
        "elsewhere",
        "notes.txt",
        "step-0",
        "step-00",
        ck.step_name(2),
    ]


def test_what_dead_processes_left_aside_is_removed_and_what_live_ones_hold_is_not(
    tmp_path: Path,
) -> None:
    dead = os.fork()
    if dead == 0:
        os._exit(0)
    os.waitpid(dead, 0)
    alive = os.getppid()
    for name in (f".step-1.tmp-{dead}", f".step-2.old-{dead}", f".step-3.tmp-{os.getpid()}"):
        tmp_path.joinpath(name).mkdir()
        tmp_path.joinpath(name, "state.json").write_text("{")
    tmp_path.joinpath(f".step-1.tmp-{alive}").mkdir()
    tmp_path.joinpath(f".step-4.tmp-{dead}").mkdir()
    tmp_path.joinpath(f".step-4.tmp-{dead}", "mine").write_text("")
    tmp_path.joinpath(".hidden").mkdir()
    save(tmp_path, 5)
    left = {f".step-1.tmp-{alive}", f".step-4.tmp-{dead}", ".hidden", ck.step_name(5)}
    assert set(names(tmp_path)) == left


def test_a_valid_checkpoint_is_never_overwritten(tmp_path: Path) -> None:
    (path,) = save(tmp_path, 1)

    def written() -> list[tuple[int, int, int]]:  # reading, which is allowed, moves atime alone
        stats = [path.joinpath(name).stat() for name in codec.FILES]
        return [(stat.st_ino, stat.st_mtime_ns, stat.st_size) for stat in stats]

    before = written()
    save(tmp_path, 1)  # the same state: nothing to do
    assert written() == before
    with pytest.raises(CheckpointError, match=f"{path} exists with another state"):
        ck.write(tmp_path, path.name, *state(2))
    assert written() == before


@pytest.mark.parametrize("damage", ["bit", "missing", "extra", "file"])
def test_a_damaged_one_is_moved_out_of_the_way(tmp_path: Path, damage: str) -> None:
    for copy in ("", "2"):  # a run resumed from step 1 comes to step 2 again
        save(tmp_path, 1, 2)
        path = tmp_path / ck.step_name(2)
        if damage == "bit":
            flip_a_bit(path / "state.safetensors")
        elif damage == "missing":
            path.joinpath("manifest.json").unlink()
        elif damage == "extra":
            path.joinpath("mine").write_text("")
        else:
            for name in codec.FILES:
                path.joinpath(name).unlink()
            path.rmdir()
            path.write_text("mine")
        save(tmp_path, 2)
        assert ck.newest_valid(tmp_path).meta["step"] == 2
        assert tmp_path.joinpath(f"{path.name}.refused{copy}").exists()


@pytest.mark.parametrize("name", ["", "best", "../step-1", "a/step-1", "step-", ".x-1", "step--1"])
def test_names_without_a_step_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ArgumentError, match=r"name is .* takes a word and an integer"):
        ck.write(tmp_path, name, *state(1))


def test_wrong_numbers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="keep is 0"):
        save(tmp_path, 1, keep=0)
    with pytest.raises(ArgumentError, match="step is -1"):
        ck.step_name(-1)


def test_no_checkpoint_yet(tmp_path: Path) -> None:
    assert ck.list_checkpoints(tmp_path / "nowhere") == []
    with pytest.raises(CheckpointError, match=r"holds no valid checkpoint$"):
        ck.newest_valid(tmp_path)
    with pytest.raises(
        CheckpointError, match=r"step-1 is refused: it does not exist; a checkpoint"
    ):
        ck.read(tmp_path / "step-1")
    tmp_path.joinpath("model.pt").write_text("")
    with pytest.raises(CheckpointError, match="is not a folder; a checkpoint is a folder with"):
        ck.read(tmp_path / "model.pt")


# ---- at a path that the user names ---------------------------------------------------------------


def test_save_at_makes_parents_and_replaces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert ck.save_at("a/b/cartpole", *state(1)) == tmp_path / "a/b/cartpole"
    ck.save_at(tmp_path / "a/b/cartpole", *state(2))
    assert ck.read("a/b/cartpole").meta["step"] == 2
    assert names(tmp_path / "a/b") == ["cartpole"]


def test_save_at_takes_an_empty_folder_and_a_damaged_checkpoint(tmp_path: Path) -> None:
    ck.save_at(tmp_path, *state(1))
    flip_a_bit(tmp_path / "state.safetensors")
    ck.save_at(tmp_path, *state(2))
    assert ck.read(tmp_path).meta["step"] == 2


def test_save_at_through_a_link_replaces_what_it_points_to(tmp_path: Path) -> None:
    ck.save_at(tmp_path / "real", *state(1))
    tmp_path.joinpath("link").symlink_to(tmp_path / "real")
    ck.save_at(tmp_path / "link", *state(2))
    assert tmp_path.joinpath("link").is_symlink()
    assert ck.read(tmp_path / "real").meta["step"] == 2
    assert names(tmp_path) == ["link", "real"]


@pytest.mark.parametrize("content", ["file", "diary", "manifest.json"])
@pytest.mark.parametrize("suffix", ["", ".replaced"])
def test_save_at_replaces_nothing_but_a_checkpoint(
    tmp_path: Path, content: str, suffix: str
) -> None:
    place = tmp_path / f"mine{suffix}"
    if content == "file":
        place.write_text("mine")
    else:
        place.mkdir()
        place.joinpath(content).write_text("mine")
    with pytest.raises(CheckpointError, match=f"{place} exists and is not a checkpoint; choose"):
        ck.save_at(tmp_path / "mine", *state(1))
    assert names(tmp_path) == [place.name]
    assert (place if content == "file" else place / content).read_text() == "mine"


def test_after_a_kill_between_the_renames_the_old_one_is_read_and_then_replaced(
    tmp_path: Path,
) -> None:
    ck.save_at(tmp_path / "agent", *state(1))
    tmp_path.joinpath("agent").rename(tmp_path / "agent.replaced")
    assert ck.read(tmp_path / "agent").meta["step"] == 1
    ck.save_at(tmp_path / "agent", *state(2))
    assert ck.read(tmp_path / "agent").meta["step"] == 2
    assert names(tmp_path) == ["agent"]


def test_where_the_new_one_cannot_be_renamed_the_old_one_gets_its_name_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ck.save_at(tmp_path / "agent", *state(1))
    real = os.rename

    def rename(old: Path, new: Path) -> None:
        if ".tmp-" in old.name:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(old, new)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(CheckpointError, match=r"agent could not be saved, .*: Input/output error"):
        ck.save_at(tmp_path / "agent", *state(2))
    assert names(tmp_path) == ["agent"]
    assert ck.read(tmp_path / "agent").meta["step"] == 1


def test_a_damaged_one_never_pushes_out_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ck.save_at(tmp_path / "agent", *state(2))
    ck.save_at(tmp_path / "agent.replaced", *state(1))
    flip_a_bit(tmp_path / "agent" / "state.json")

    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(CheckpointError, match="No space left"):
        ck.save_at(tmp_path / "agent", *state(3))
    assert ck.read(tmp_path / "agent").meta["step"] == 1


def test_the_root_is_no_place_to_save() -> None:
    with pytest.raises(ArgumentError, match="path is '/'"):
        ck.save_at("/", *state(1))


# ---- order of the system calls -------------------------------------------------------------------


def test_everything_is_fsynced_before_the_one_rename_and_the_parent_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, str]] = []
    opened: dict[int, str] = {}
    real_open, real_fsync, real_rename = os.open, os.fsync, os.rename

    def record_open(path: Path, *rest: Any) -> int:
        descriptor = real_open(path, *rest)
        opened[descriptor] = Path(path).name
        return descriptor

    def record_fsync(descriptor: int) -> None:
        calls.append(("fsync", opened[descriptor]))
        real_fsync(descriptor)

    def record_rename(old: Path, new: Path) -> None:
        calls.append(("rename", Path(new).name))
        real_rename(old, new)

    monkeypatch.setattr(os, "open", record_open)
    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "rename", record_rename)
    ck.write(tmp_path / "run" / "checkpoints", "step-1", *state(1))
    assert calls == [
        ("fsync", tmp_path.name),
        ("fsync", "run"),
        ("fsync", "state.safetensors"),
        ("fsync", "state.json"),
        ("fsync", "manifest.json"),
        ("fsync", f".step-1.tmp-{os.getpid()}"),
        ("rename", "step-1"),
        ("fsync", "checkpoints"),
    ]


# ---- a disk that is full, read-only or gone ------------------------------------------------------

MUTATING = ("mkdir", "open", "write", "fsync", "rename")


@contextlib.contextmanager
def failing(first: int, code: int) -> Iterator[list[str]]:
    """From the `first`-th call that needs a writable disk with room, each raises OSError(code)."""
    seen: list[str] = []

    def wrap(name: str) -> Any:
        real = getattr(os, name)

        def call(*arguments: Any, **options: Any) -> Any:
            seen.append(name)
            if len(seen) > first and (code == errno.EROFS or name != "rename"):
                raise OSError(code, os.strerror(code))
            return real(*arguments, **options)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in MUTATING:
            patch.setattr(os, name, wrap(name))
        yield seen


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS])
@pytest.mark.parametrize("how", ["write", "save_at"])
def test_whichever_call_fails_the_old_one_is_intact(tmp_path: Path, how: str, code: int) -> None:
    def save_step(step: int) -> Path:
        if how == "write":
            return ck.write(tmp_path / "c", ck.step_name(step), *state(step))
        return ck.save_at(tmp_path / "c" / "agent", *state(step))

    def found() -> int:
        if how == "write":
            newest = ck.newest_valid(tmp_path / "c")
            assert newest.refused == []
            return newest.meta["step"]
        return ck.read(tmp_path / "c" / "agent").meta["step"]

    save_step(1)
    first = failures = 0
    while True:
        step = first + 2
        previous = found()
        error: CheckpointError | None = None
        with failing(first, code):
            try:
                save_step(step)
            except CheckpointError as raised:
                error = raised
        if error is None:
            assert found() == step
            break
        failures += 1
        assert isinstance(error.__cause__, OSError)
        assert error.__cause__.errno == code
        assert os.strerror(code) in str(error)
        assert str(tmp_path / "c") in str(error)
        assert "\n" not in str(error)
        assert found() in (previous, step)
        assert not [name for name in names(tmp_path / "c") if ".tmp-" in name]
        first += 1
    assert failures >= 12


def test_a_file_that_may_not_grow_leaves_the_old_one(tmp_path: Path) -> None:
    save(tmp_path, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65_536, hard))  # Python ignores SIGXFSZ: EFBIG
    try:
        with pytest.raises(CheckpointError, match=r"step-2 could not be saved, .*: File too large"):
            ck.write(tmp_path, "step-2", *state(2, size=100_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(tmp_path) == [ck.step_name(1)]
    assert ck.newest_valid(tmp_path).meta["step"] == 1


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    tmp_path.joinpath("file").write_text("")
    with pytest.raises(CheckpointError, match=r"file/c/step-1 could not be saved.*Not a directory"):
        ck.write(tmp_path / "file" / "c", "step-1", *state(1))


def test_an_interrupted_save_leaves_nothing_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 1)
    assert names(tmp_path) == []


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, data[:100]))
    ck.write(tmp_path, "step-1", *state(1, size=1000))
    assert ck.read(tmp_path / "step-1").meta["step"] == 1


def test_a_folder_that_cannot_be_fsynced_is_accepted_where_the_file_system_has_no_such_thing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(_: int) -> None:
        raise OSError(errno.EINVAL, "")

    monkeypatch.setattr(os, "fsync", unsupported)
    disk.sync_folder(tmp_path)


# ---- strict reading: what an attacker can write, with hashes that fit ----------------------------


def forge(folder: Path, **changed: Any) -> Path:
    """Write a checkpoint whose manifest agrees with whatever its files hold."""
    files = codec.encode(*state(2)) | changed.pop("files", {})
    body = {
        "format": codec.FORMAT_NAME,
        "version": codec.FORMAT_VERSION,
        "files": codec._describe(files),
    }
    files[codec.MANIFEST_FILE] = changed.get("raw") or codec._manifest_text(body | changed)
    path = folder / "step-2"
    path.mkdir(parents=True)
    for name, data in files.items():
        path.joinpath(name).write_bytes(data)
    return path


def safetensors_bytes(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def one(dtype: str, shape: list[Any], start: int, end: int) -> dict[str, Any]:
    return {"a": {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}}


def test_the_forger_writes_a_readable_one_if_it_changes_nothing(tmp_path: Path) -> None:
    assert ck.read(forge(tmp_path)).meta["step"] == 2


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00" * 7,
        b"\xff" * 8,
        safetensors_bytes(b"[" * 100_000),
        safetensors_bytes(b"{}" + b" " * 2**24),
        safetensors_bytes({}, length=2**24 + 1),
        safetensors_bytes({}, length=2**63),
        safetensors_bytes({}, data=b"more"),
        safetensors_bytes(one("F32", [2], 0, 4), b"\x00" * 4),
        safetensors_bytes(one("F32", [1], 0, 2**40), b"\x00" * 4),
        safetensors_bytes(one("F32", [1], 4, 0), b"\x00" * 4),
        safetensors_bytes(one("F32", [-1], 0, 4), b"\x00" * 4),
        safetensors_bytes(one("F32", [2**62, 2**62], 0, 4), b"\x00" * 4),
        safetensors_bytes(one("F32", [0, 2**63], 0, 0)),
        safetensors_bytes(one("F32", [0, 2**62, 2**62], 0, 0)),
        safetensors_bytes(one("OBJECT", [1], 0, 4), b"\x00" * 4),
        safetensors_bytes(one("F4", [2], 0, 1), b"\x00"),
        safetensors_bytes(one("F6_E2M3", [4], 0, 3), b"\x00" * 3),
    ],
)
def test_forged_tensors_are_refused(tmp_path: Path, data: bytes) -> None:
    path = forge(tmp_path, files={"state.safetensors": data})
    with pytest.raises(CheckpointError, match=r"step-2 is refused: state\.safetensors"):
        ck.read(path)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"null",
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        b'{"a": 1e999}',
        b'{"a": 1, "a": 2}',
        b'{"a": {"b": 1, "b": 1}}',
        b'{"a": ' + b"1" * 5000 + b"}",
        b"[" * 1_000_000,
        b'{"a": ' + b"[" * 64 + b"]" * 64 + b"}",
        b'{"a":' * 100_000,
        b'{"a": "\xff"}',
        b'\xef\xbb\xbf{"a": 1}',
        b'{"a": 1} {}',
        b'{"a": "' + b"x" * 2**24 + b'"}',
    ],
    ids=lambda data: data[:12],
)
def test_forged_json_is_refused(tmp_path: Path, data: bytes) -> None:
    path = forge(tmp_path, files={"state.json": data})
    with pytest.raises(CheckpointError, match=r"step-2 is refused: state\.json"):
        ck.read(path)


@pytest.mark.parametrize(
    "changed",
    [
        {"format": "another"},
        {"version": None},
        {"version": [1]},
        {"version": "1" * 1000},
        {"files": {}},
        {"more": 1},
        {"raw": b"{}"},
        {"raw": b"3"},
        {"raw": b"[" * 60_000},
        {"raw": b'{"format": "upslope-checkpoint", "x": ' + b"[" * 70 + b"]" * 70 + b"}"},
        {"raw": b" " * (2**16 + 1)},
    ],
    ids=str,
)
def test_forged_manifests_are_refused(tmp_path: Path, changed: dict[str, Any]) -> None:
    described = changed.pop("files", None)
    path = forge(tmp_path, **changed)
    if described is not None:
        body = {"format": codec.FORMAT_NAME, "version": 1, "files": described}
        path.joinpath("manifest.json").write_bytes(codec._manifest_text(body))
    with pytest.raises(CheckpointError, match="step-2 is refused: ") as caught:
        ck.read(path)
    assert len(str(caught.value)) < 600


def test_a_named_pipe_is_refused_without_waiting_for_it(tmp_path: Path) -> None:
    path = forge(tmp_path)
    path.joinpath("state.json").unlink()
    os.mkfifo(path / "state.json")
    with pytest.raises(CheckpointError, match=r"state\.json is not an ordinary file"):
        ck.read(path)


# ---- speed ---------------------------------------------------------------------------------------


def test_a_save_hashes_each_state_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []
    real = disk.read_files
    monkeypatch.setattr(disk, "read_files", lambda path: reads.append(path) or real(path))
    save(tmp_path, 1, 2, 3, 4, 5)
    assert reads == []  # those written by this process and not touched since need no second look
