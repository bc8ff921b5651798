"""The few things a checkpoint does to a disk: durable writes, strict reads, safe removals.

System calls go through `os.` one by one, so that the tests can stop or fail each of them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from upslope.checkpoint.codec import FILES, MAX_BYTES
from upslope.errors import CheckpointError

_ASIDE = re.compile(r"(\..+)\.(?:tmp|old)-([0-9]{1,18})", re.ASCII)


@contextlib.contextmanager
def written_aside(target: Path, files: Mapping[str, bytes]) -> Iterator[Path]:
    """Write the files, durably, to a folder beside `target`; the caller renames it.

    It is removed when anything fails, here or in the caller's block.
    """
    aside = target.with_name(f".{target.name}.tmp-{os.getpid()}")
    try:
        os.mkdir(aside)
        for name, data in files.items():
            _write_file(aside / name, data)
        sync_folder(aside)
        yield aside
    except BaseException:
        with contextlib.suppress(OSError):
            _delete(aside)
        raise


def _write_file(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable, where its file system can."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems
            raise
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Make a folder and its missing parents, durably."""
    if not folder.exists():
        make_folder(folder.parent)
        os.mkdir(folder)
        sync_folder(folder.parent)


def read_files(folder: Path) -> dict[str, bytes]:
    """Return the bytes of a checkpoint's files, which must be exactly those and ordinary files."""
    try:
        if not folder.is_dir():
            what = "is not a folder" if os.path.lexists(folder) else "does not exist"
            raise CheckpointError(f"it {what}; a checkpoint is a folder with {', '.join(FILES)}")
        names = set(os.listdir(folder))
        if missing := [name for name in FILES if name not in names]:
            raise CheckpointError(f"{', '.join(missing)} is missing")
        if foreign := sorted(names.difference(FILES)):
            raise CheckpointError(f"it holds {foreign[0]!r}, which its manifest does not list")
        return {name: _read_file(folder / name) for name in FILES}
    except OSError as error:
        raise CheckpointError(f"it cannot be read: {error}") from error


def _read_file(path: Path) -> bytes:
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):  # reading a named pipe would wait for ever
        raise CheckpointError(f"{path.name} is not an ordinary file")
    limit = MAX_BYTES.get(path.name, found.st_size)
    if found.st_size > limit:
        raise CheckpointError(f"{path.name} has {found.st_size} bytes; at most {limit} are read")
    return path.read_bytes()


def stamp(folder: Path) -> tuple[object, ...]:
    """Return what changes whenever the files of a checkpoint do, without reading them."""
    found = [os.stat(folder / name) for name in FILES]
    times = [(s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for s in found]
    return (*times, *sorted(os.listdir(folder)))


def holds_only_state(path: Path) -> bool:
    """Say whether a path is a folder with nothing but files of a checkpoint, complete or not."""
    return (
        path.is_dir() and not path.is_symlink() and all(name in FILES for name in os.listdir(path))
    )


def discard(folder: Path) -> None:
    """Remove a checkpoint so that, at any moment, it is there whole or gone."""
    aside = folder.with_name(f".{folder.name}.old-{os.getpid()}")
    _delete(aside)
    os.rename(folder, aside)
    _delete(aside)


def _delete(folder: Path) -> None:
    """Delete the files of a checkpoint and their folder; a folder with anything else stays."""
    for name in FILES:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(folder / name)
    with contextlib.suppress(FileNotFoundError):
        os.rmdir(folder)


def remove_leftovers(folder: Path, name: str | None = None) -> None:
    """Delete what processes that are no more, or this one, left aside: of one name or of all."""
    for entry in os.listdir(folder):
        match = _ASIDE.fullmatch(entry)
        if match and name in (None, match[1].removeprefix(".")):
            pid = int(match[2])
            if (pid == os.getpid() or not _is_alive(pid)) and holds_only_state(folder / entry):
                _delete(folder / entry)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
