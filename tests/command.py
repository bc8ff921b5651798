"""The real command line, in processes of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import upslope

ROOT = Path(__file__).parents[1]
COMMAND = (sys.executable, "-m", "upslope.cli")
PATHS = (str(Path(upslope.__file__).parents[1]), str(ROOT))  # the package, and `tests` for `-m`


def environment() -> dict[str, str]:
    """Return the environment variables of a command: one thread, no terminal, these sources."""
    told = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(PATHS), "COLUMNS": "100"}
    return {**os.environ, **told}


def start(*arguments: object, cwd: Path, **options: Any) -> subprocess.Popen[str]:
    """Start `upslope ARGUMENTS`; its output comes to pipes, as text."""
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    words = [*COMMAND, *map(str, arguments)]
    return subprocess.Popen(
        words, cwd=cwd, env=environment(), text=True, encoding="utf-8", **{**pipes, **options}
    )


def upslope_command(
    *arguments: object, cwd: Path, timeout: float = 120, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run `upslope ARGUMENTS` to its end."""
    with start(*arguments, cwd=cwd, **options) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def sentences(text: str) -> list[str]:
    """Return the lines of a message; fails for a traceback or a control character in it."""
    assert "Traceback" not in text, text
    controls = [c for c in text if ord(c) < 32 and c != "\n"]
    assert not controls, (controls, text)
    return text.splitlines()
