"""Sections of `docs/speed.md` that commands write, each between two marks of its own.

A section is empty until its command has run with `--write docs`.
"""

from __future__ import annotations

import argparse
import os
import platform
from pathlib import Path

PAGE = "speed.md"


def folder(given: str) -> Path:
    """Return a folder that holds the page; to be asked before anything is measured."""
    if not (Path(given) / PAGE).is_file() or not (Path(given) / "images").is_dir():
        raise argparse.ArgumentTypeError(f"{given!r} has no {PAGE} and images/: give docs")
    return Path(given)


def with_section(page: str, name: str, text: str) -> str:
    """Return the page with what stands between the marks of a section replaced."""
    begin, end = f"<!-- {name}: made by benchmarks/{name}.py -->", f"<!-- end of {name} -->"
    before, rest = page.split(begin)
    return f"{before}{begin}\n{text.strip()}\n{end}{rest.split(end)[1]}"


def write_section(docs: Path, name: str, text: str) -> None:
    """Write a section into the page on speed in a folder of documentation."""
    path = docs / PAGE
    path.write_text(with_section(path.read_text("utf-8"), name, text), "utf-8")


def machine() -> str:
    """Return what a speed depends on: versions, cores, instructions."""
    import torch

    import upslope

    return (
        f"upslope {upslope.__version__}, torch {torch.__version__}, Python "
        f"{platform.python_version()}, {os.cpu_count()} cores, "
        f"{torch.backends.cpu.get_cpu_capability()}"
    )
