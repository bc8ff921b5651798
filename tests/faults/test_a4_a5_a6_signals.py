"""A4, A5, A6: signals while evaluating and to a whole group; Ctrl-C twice; the parent killed."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import gymnasium
import pytest

from tests import tiny
from tests.command import sentences, start
from upslope import checkpoint
from upslope.cli import main as cli
from upslope.errors import Interrupted
from upslope.runs import run
from upslope.runs.configuration import Evaluation, RunConfig

pytestmark = pytest.mark.faults

WITHIN = 5.0
ENV = "tests.tiny:tiny/Slow-v0"
SETTINGS = {"n_envs": 2, "n_steps": 50, "batch_size": 50, "n_epochs": 1, "segment_length": 200}


def create(folder: Path, **more: Any) -> None:
    config = {"algorithm": "ppo", "env": ENV, "total_timesteps": 300, "checkpoint_seconds": 0.0}
    run.create(folder, RunConfig(**config | {"settings": SETTINGS} | more))


def begin(folder: Path, **options: Any) -> subprocess.Popen[str]:
    words = ("train", folder, "--resume", "--allow-import", "--quiet")
    return start(*words, cwd=folder.parent, start_new_session=True, **options)


def wait_for(found: Any, process: subprocess.Popen[str]) -> None:
    """Wait until `found()` is true, or the process has ended."""
    ends = time.monotonic() + 60
    while not found():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < ends
        time.sleep(0.01)


def saved(folder: Path) -> list[Path]:
    return checkpoint.list_checkpoints(folder / "checkpoints")


def end_of(folder: Path) -> tuple[str, bytes, bytes]:
    path = checkpoint.newest_valid(folder / "checkpoints").path
    return (
        path.name,
        path.joinpath("state.safetensors").read_bytes(),
        path.joinpath("state.json").read_bytes(),
    )


def workers_of(process: int) -> list[int]:
    """Return the children of a process that run workers, as the system knows them."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            stat = (place / "stat").read_text().rpartition(")")[2].split()
            command = (place / "cmdline").read_text()
        except OSError:
            continue
        if int(stat[1]) == process and "spawn_main" in command:
            found.append(int(place.name))
    return found


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


LEFT: list[signal.Signals] = []


class Signals(tiny.Walk):
    """It sends signals to its own process at a step of its own, as long as there are any."""

    def __init__(self, at: int = -1, length: int = 20) -> None:
        super().__init__(length)
        self.at = at

    def step(self, action: Any) -> Any:
        if self.t == self.at:
            while LEFT:
                signal.raise_signal(LEFT.pop())  # to this thread: two to a process may be one
        return super().step(action)


gymnasium.register("tiny/Signals-v0", Signals)


def signalled(folder: Path, *numbers: signal.Signals, **more: Any) -> None:
    """Make a run whose evaluations, or else its training, send signals at a step."""
    LEFT[:] = numbers
    create(folder, env="tiny/Signals-v0", **more)


def go_on(folder: Path) -> run.Outcome:
    return run.train(folder, RunConfig.read(folder), progress=False, say=lambda _: None)


@pytest.mark.parametrize("iteration", [2, 3])  # the third is the last
def test_a_stop_inside_an_evaluation_is_at_once_and_changes_nothing(
    iteration: int, tmp_path: Path
) -> None:
    at = Evaluation(freq=100 * iteration, episodes=1, final_episodes=2, env_kwargs={"at": 7})
    signalled(tmp_path / "whole", evaluation=at)
    assert go_on(tmp_path / "whole").finished
    folder = tmp_path / "a"
    signalled(folder, signal.SIGTERM, evaluation=at)
    outcome = go_on(folder)
    assert (outcome.finished, outcome.exit_code) == (False, 143)
    # the next one waits for its evaluation
    assert saved(folder)[0].name == f"step-{iteration - 1:012d}"
    assert not (folder / "best").exists()
    assert go_on(folder).finished
    assert end_of(folder) == end_of(tmp_path / "whole")
    assert (folder / "best" / "state.json").read_bytes() == (
        tmp_path / "whole" / "best" / "state.json"
    ).read_bytes()


def test_a_stop_inside_the_last_evaluation(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    signalled(folder)
    go_on(folder)
    LEFT[:] = [signal.SIGTERM]
    with pytest.raises(Interrupted) as caught:
        run.evaluate(folder, episodes=2, env_kwargs={"at": 7})
    assert caught.value.exit_code == 143
    LEFT[:] = [signal.SIGINT]
    with pytest.raises(SystemExit) as ended:
        cli.main(["evaluate", str(folder), "--env-kwargs", "{at = 7}"])
    assert ended.value.code == 130
    assert not (folder / "evaluation.json").exists()


@pytest.mark.parametrize("numbers", [1, 2])
def test_the_first_ctrl_c_saves_and_the_second_leaves_at_once(numbers: int, tmp_path: Path) -> None:
    folder = tmp_path / "a"
    sent = [signal.SIGINT] * numbers
    # as in a terminal: what a shell starts in the background ignores Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signalled(folder, *sent, env_kwargs={"at": 70, "length": 80}, total_timesteps=2_000)
    with pytest.raises(SystemExit) as ended:
        cli.main(["train", str(folder), "--resume", "--quiet"])
    assert ended.value.code == 130
    assert not LEFT
    # at the 70th step it is in its second iteration: that one is saved, or given up
    newest = checkpoint.newest_valid(folder / "checkpoints").path
    assert newest.name == f"step-{3 - numbers:012d}"
    assert go_on(folder).finished


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are found in /proc")
def test_a_signal_to_the_whole_group_saves_and_leaves_no_worker(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    create(folder, backend="async", total_timesteps=20_000)
    with begin(folder) as process:
        wait_for(lambda: saved(folder), process)
        workers = workers_of(process.pid)
        assert len(workers) == 2
        os.killpg(process.pid, signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, sentences(err)) == (143, [])
    assert not [worker for worker in workers if alive(worker)]
    assert checkpoint.newest_valid(folder / "checkpoints").path == saved(folder)[0]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are found in /proc")
def test_no_worker_outlives_its_parent(tmp_path: Path) -> None:
    """Also not one that is in the middle of a step that takes ten minutes."""
    folder = tmp_path / "a"
    create(folder, backend="async", env_kwargs={"pause": 600, "quick": 120})
    with begin(folder) as process:
        wait_for(lambda: len(saved(folder)) == 2, process)
        workers = workers_of(process.pid)
        assert len(workers) == 2
        time.sleep(1.5)  # until both are in that step, where no pipe is read
        process.kill()
        process.communicate(timeout=60)
    ends = time.monotonic() + WITHIN
    while any(alive(worker) for worker in workers):
        assert time.monotonic() < ends, "a worker lives on"
        time.sleep(0.05)
