"""A2: killed inside the save, at each system call: the previous or the new one, never neither.

The save runs in a forked process that counts those of its system calls that change something. At
the k-th it kills itself with SIGKILL (inside a write: after half of the bytes). This is repeated
for every k until a save comes through.
"""

from __future__ import annotations

import ast
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import upslope.checkpoint as ck

pytestmark = pytest.mark.faults

CALLS = ("mkdir", "open", "write", "fsync", "close", "rename", "unlink", "rmdir")
HARMLESS = {"getpid", "kill", "listdir", "stat"}  # change nothing
HARMLESS |= {"path.isdir", "path.lexists", "path.realpath"}
OLD, NEW = 3, 4


def state(step: int) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    return {"weight": torch.full((100,), float(step))}, {"step": step}


def write_step(folder: Path, step: int) -> None:
    ck.write(folder, ck.step_name(step), *state(step))


def three_and_a_leftover(folder: Path) -> None:
    for step in (1, 2, OLD):
        write_step(folder, step)
    leftover = folder / f".step-9.tmp-{os.getpid()}"
    leftover.mkdir()
    leftover.joinpath("state.json").write_text("{")


def the_new_one_is_damaged(folder: Path) -> None:
    for step in (2, OLD, NEW):
        write_step(folder, step)
    folder.joinpath(ck.step_name(NEW), "manifest.json").write_text("{")


def newest_step(folder: Path) -> int:
    newest = ck.newest_valid(folder)
    assert torch.equal(newest.tensors["weight"], state(newest.meta["step"])[0]["weight"])
    return newest.meta["step"]


def every_visible_one_is_valid(folder: Path) -> None:
    found = ck.list_checkpoints(folder)
    assert [ck.read(path).meta["step"] for path in found[1:]]
    assert len(found) >= 3


def save_agent(folder: Path, step: int) -> None:
    ck.save_at(folder / "agent", *state(step))


def one_agent(folder: Path) -> None:
    save_agent(folder, OLD)


def killed_between_the_renames(folder: Path) -> None:
    save_agent(folder, OLD)
    folder.joinpath("agent").rename(folder / "agent.replaced")


def killed_before_the_removal(folder: Path) -> None:
    save_agent(folder, OLD)
    ck.save_at(folder / "agent.replaced", *state(1))


def agent_step(folder: Path) -> int:
    tensors, meta = ck.read(folder / "agent")
    assert torch.equal(tensors["weight"], state(meta["step"])[0]["weight"])
    return meta["step"]


def nothing_more(folder: Path) -> None:
    pass


Scenario = tuple[
    Callable[[Path], None],
    Callable[[Path, int], None],
    Callable[[Path], int],
    Callable[[Path], None],
]
SCENARIOS: dict[str, Scenario] = {
    "write": (three_and_a_leftover, write_step, newest_step, every_visible_one_is_valid),
    "write over a damaged one": (the_new_one_is_damaged, write_step, newest_step, nothing_more),
    "save_at": (one_agent, save_agent, agent_step, nothing_more),
    "save_at once more": (killed_between_the_renames, save_agent, agent_step, nothing_more),
    "save_at over two": (killed_before_the_removal, save_agent, agent_step, nothing_more),
}


def die_at_call(k: int) -> None:
    """Count the calls of this process from now on, and die at number k."""
    count = itertools.count()
    real_write = os.write

    def wrap(name: str) -> Any:
        real = getattr(os, name)

        def call(*arguments: Any, **options: Any) -> Any:
            if next(count) == k:
                if name == "write":
                    descriptor, data = arguments
                    real_write(descriptor, data[: len(data) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **options)

        return call

    for name in CALLS:
        setattr(os, name, wrap(name))


def kill_everywhere(scenario: str, folder: Path) -> list[int]:
    """Return the step found after a kill at call 0, 1, 2, ... and after one let through."""
    prepare, save, found, check = SCENARIOS[scenario]
    base, work = folder / "base", folder / "work"
    base.mkdir(parents=True)
    prepare(base)
    steps = []
    for k in itertools.count():
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(base, work)
        child = os.fork()
        if child == 0:
            die_at_call(k)
            save(work, NEW)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        steps.append(found(work))
        check(work)
        save(work, NEW + 1)  # the next save works and clears what the killed one left aside
        assert found(work) == NEW + 1
        left = [name for name in os.listdir(work) if ".tmp-" in name or ".old-" in name]
        assert not left, left
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
            return steps
        assert os.WTERMSIG(status) == signal.SIGKILL
    raise AssertionError


@pytest.fixture(scope="module")
def steps_found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[int]]:
    """Run every scenario in one process, in a memory disk if there is one: fsync takes long."""
    memory = Path("/dev/shm")
    fast = memory.is_dir() and os.access(memory, os.W_OK)
    with tempfile.TemporaryDirectory(dir=memory if fast else tmp_path_factory.mktemp("a2")) as name:
        done = subprocess.run(
            [sys.executable, __file__, name],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_previous_or_new_never_neither(scenario: str, steps_found: dict[str, list[int]]) -> None:
    steps = steps_found[scenario]
    assert set(steps) == {OLD, NEW}
    assert steps == sorted(steps)  # once the new one is there, it stays
    assert steps[-1] == NEW
    assert len(steps) > 20


def test_no_other_system_call_is_used() -> None:
    """Otherwise there would be moments at which nothing above is killed."""
    source = Path(ck.__file__).parent
    used = set()
    for path in source.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                function = ast.unparse(node.func)
                if function.startswith("os."):
                    used.add(function.removeprefix("os."))
                assert function not in ("open", "shutil.rmtree", "shutil.move"), path
                assert not function.endswith((".write_bytes", ".write_text", ".mkdir")) or (
                    function == "os.mkdir"
                ), path
    assert used <= {*CALLS, *HARMLESS}
    assert {"mkdir", "open", "write", "fsync", "rename"} <= used


if __name__ == "__main__":
    torch.set_num_threads(1)
    root = Path(sys.argv[1])
    print(json.dumps({name: kill_everywhere(name, root / name) for name in SCENARIOS}))
