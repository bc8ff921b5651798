"""What is installed, and whether it is used: versions, threads, the native engine, a GPU, disk."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import torch

from upslope.engine import native_engine
from upslope.runs.doctor import GOOD, NOTE, WRONG, Finding

ROOM = 2**30  # bytes that should be free where runs are written


def inspect_installation(folder: Path) -> Iterator[Finding]:
    """Yield what is found about this machine, and about `folder`, below which runs are made."""
    yield from _versions()
    yield _engine()
    yield _threads()
    yield _gpu()
    for package, extra, what in (
        ("envpool", "envpool", "faster environments, and Atari"),
        ("transformers", "language", "DPO and GRPO"),
    ):
        if find_spec(package) is None:
            how = f"pip install 'upslope[{extra}]' adds {what}"
            yield Finding(NOTE, package, "it is not installed", how)
    yield _disk(folder)


def _versions() -> Iterator[Finding]:
    """Hold what is installed to what Upslope declares that it needs."""
    found = [f"Python {platform.python_version()}"]
    for line in importlib.metadata.requires("upslope") or []:
        match = re.match(r"([A-Za-z0-9_.-]+)>=([0-9.]+)", line.replace(" ", ""))
        if match is None or "extra==" in line.replace(" ", ""):
            continue
        name, least = match.groups()
        try:
            have = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding(WRONG, "versions", f"{name} is not installed", f"pip install {name}")
            continue
        if _numbers(have) < _numbers(least):
            how = f"pip install --upgrade '{name}>={least}'"
            yield Finding(WRONG, "versions", f"{name} is {have}; at least {least} is needed", how)
        if name in ("torch", "numpy", "gymnasium"):
            found.append(f"{name} {have}")
    yield Finding(GOOD, "versions", ", ".join(found))


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.split("+")[0])[:3])


def _engine() -> Finding:
    if native_engine.MISSING:
        how = "install a C++ compiler and CMake 3.20, then Upslope again; until then torch is used"
        return Finding(NOTE, "native engine", native_engine.MISSING, how)
    native = native_engine._native
    found = f"it is there, and uses {native.instruction_sets()[0]} on this processor"
    if how := native.bfloat16():
        found += f", which has {how} for engine='bfloat16'"
    return Finding(GOOD, "native engine", found)


def _threads() -> Finding:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads, said = torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")
    found = f"torch uses {threads} of {cores} cores" + (f", OMP_NUM_THREADS={said}" if said else "")
    if threads > (cores or threads):
        how = f"set OMP_NUM_THREADS={cores}: more threads than cores wait for each other"
        return Finding(WRONG, "threads", found, how)
    return Finding(GOOD, "threads", f"{found}; small networks need one: --threads 1")


def _gpu() -> Finding:
    if torch.cuda.is_available():
        name, memory = torch.cuda.get_device_name(), torch.cuda.mem_get_info()[0] / 2**30
        return Finding(GOOD, "GPU", f"{name}, {memory:.0f} GiB free; device='cuda' uses it")
    if shutil.which("nvidia-smi"):
        how = "install torch with CUDA (pytorch.org says how), or a driver that fits it"
        found = f"there seems to be one, but torch {torch.__version__} does not see it"
        return Finding(NOTE, "GPU", found, how)
    return Finding(GOOD, "GPU", "there is none; agents with small networks need none")


def _disk(folder: Path) -> Finding:
    """Try what a run does first: to make a folder and a file in it."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    try:
        with tempfile.TemporaryDirectory(dir=place, prefix=".doctor-") as made:
            (Path(made) / "file").write_bytes(b"1")
        free = shutil.disk_usage(place).free
    except OSError as error:
        how = "choose another place for runs with --runs"
        return Finding(WRONG, "disk", f"{folder} cannot be written: {error.strerror}", how)
    if free < ROOM:
        how = "make room: a run that cannot save its checkpoints stops"
        return Finding(NOTE, "disk", f"{free / 2**20:,.0f} MiB are free for {folder}", how)
    return Finding(GOOD, "disk", f"{folder} can be written, {free / ROOM:,.0f} GiB are free")
