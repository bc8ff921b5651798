"""A1: kill -9 at random moments, resumed each time: bit for bit the run never killed.

Half of the moments are in the time that a process takes to set up, from its start, and half while
it learns, from the first row of metrics that it writes. How long both take is measured on the run
never killed, and the moments are so chosen that it cannot finish before the last kill.
"""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.command import sentences, start, upslope_command
from upslope import checkpoint
from upslope.runs.metrics import read_metrics

CARTPOLE = ("ppo", "CartPole-v1", "--n-epochs", 4, "--segment-length", 500, "--eval-episodes", 5)
BIPEDAL = ("ppo", "BipedalWalker-v3", "--n-envs", 4, "--n-steps", 64, "--segment-length", 192)
SAVING = ("--checkpoint-seconds", 0.2, "--final-episodes", 0, "--quiet")
CLOCKS = ("seconds", "steps_per_second")


@dataclass
class Reference:
    """The run never killed: its folder, its iterations, the seconds of set-up and of each."""

    folder: Path
    iterations: int
    set_up: float
    each: float


def never_killed(cwd: Path, *arguments: object) -> Reference:
    begun, first, folder = time.monotonic(), 0.0, cwd / "runs" / "whole"
    with start("train", *arguments, *SAVING, "--name", "whole", cwd=cwd) as process:
        while process.poll() is None:
            if not first and told(folder):
                first = time.monotonic()
            time.sleep(0.01)
        ended = time.monotonic()
        assert process.stderr is not None
        assert process.returncode == 0, process.stderr.read()
    iterations = told(folder)
    return Reference(folder, iterations, first - begun, (ended - first) / iterations)


def kill_and_resume(whole: Reference, cwd: Path, seed: int, kills: int, *arguments: object) -> Path:
    """Kill the same run `kills` times, let it end, and return its folder.

    Every second kill comes at a moment of its set-up; the others within some iteration, which one
    is drawn in iterations, not seconds: a machine's speed changes from one minute to another.
    """
    print(f"{kills} kills at moments from seed {seed}; {whole}")
    rng, folder = random.Random(seed), cwd / "runs" / "killed"
    left, reached = 0.8 * whole.iterations, [0]
    for k in range(kills):
        more, before = 0.0, told(folder)
        moment = rng.uniform(0, whole.set_up)
        if k % 2:
            more = rng.uniform(0, min(left, 3 / kills * whole.iterations))
            left -= more
            moment = rng.uniform(0, whole.each)
        with begin(folder, cwd, *arguments) as process:
            begun = time.monotonic()
            while process.poll() is None and told(folder) <= before + more:
                if not k % 2 and time.monotonic() > begun + moment:
                    break
                time.sleep(0.01)
            if k % 2:
                time.sleep(moment)
            process.send_signal(signal.SIGKILL)
            process.communicate()
        found = checkpoint.list_checkpoints(folder / "checkpoints")
        reached.append(int(found[0].name.removeprefix("step-")) if found else 0)
        assert (folder / "config.toml").exists() == folder.exists()
        assert process.returncode == -signal.SIGKILL, f"it ended before kill {k}"
    print(f"iterations reached at the kills: {reached[1:]}")
    assert len(set(reached)) > max(1, kills / 5), "hardly any kill came after a new checkpoint"
    with begin(folder, cwd, *arguments) as process:
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert f"going on from step-{max(reached):012d}" in out
    assert not err
    return folder


def told(folder: Path) -> int:
    """Return how many iterations the run's metrics tell of."""
    rows = folder / "metrics.csv"
    return max(0, rows.read_bytes().count(b"\n") - 1) if rows.exists() else 0


def begin(folder: Path, cwd: Path, *arguments: object) -> subprocess.Popen[str]:
    """Go on with the run, or begin it where it was killed before it had a folder."""
    if folder.exists():
        return start("train", folder, "--resume", "--quiet", cwd=cwd)
    return start("train", *arguments, *SAVING, "--name", folder.name, cwd=cwd)


def assert_same_run(whole: Path, killed: Path) -> None:
    """The last checkpoint, the best policy and the metrics but for clocks are the same."""
    ends = [checkpoint.list_checkpoints(folder / "checkpoints")[0] for folder in (whole, killed)]
    assert ends[0].name == ends[1].name
    for one, other in (ends, [whole / "best", killed / "best"]):
        assert one.exists() == other.exists()
        for name in ("state.safetensors", "state.json") if one.exists() else ():
            assert (one / name).read_bytes() == (other / name).read_bytes(), (one, name)
    tables = [read_metrics(folder / "metrics.csv") for folder in (whole, killed)]
    rows = [
        [{n: repr(row[n]) for n in row if n not in CLOCKS} for row in table] for table in tables
    ]
    assert rows[0] == rows[1]
    assert len(tables[0]) == int(ends[0].name.removeprefix("step-"))


def segments(folder: Path) -> int:
    newest = checkpoint.newest_valid(folder / "checkpoints")
    return int(newest.meta["experience"]["segment"])


def check(tmp_path: Path, seed: int, kills: int, *arguments: object) -> None:
    whole = never_killed(tmp_path, *arguments)
    killed = kill_and_resume(whole, tmp_path, seed, kills, *arguments)
    assert segments(whole.folder) >= 1, "no boundary of a segment was crossed"
    assert_same_run(whole.folder, killed)


@pytest.mark.slow
def test_cartpole_killed_four_times(tmp_path: Path) -> None:
    check(tmp_path, 0, 4, *CARTPOLE, "--total-timesteps", 15_000, "--eval-freq", 3_000)


@pytest.mark.faults
def test_cartpole_killed_twenty_times(tmp_path: Path) -> None:
    check(tmp_path, 1, 20, *CARTPOLE, "--total-timesteps", 120_000, "--eval-freq", 12_000)


@pytest.mark.faults
def test_bipedal_walker_whose_state_cannot_be_saved_killed_six_times(tmp_path: Path) -> None:
    pytest.importorskip("Box2D")
    check(tmp_path, 2, 6, *BIPEDAL, "--total-timesteps", 8_000)


@pytest.mark.slow
def test_killed_when_it_was_finished_or_never_began(tmp_path: Path) -> None:
    arguments = ("--total-timesteps", 1_000, "--no-recipe", "--n-envs", 2, "--name", "a")
    done = upslope_command("train", "ppo", "CartPole-v1", *arguments, *SAVING, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "a"
    before = {p: p.read_bytes() for p in folder.glob("checkpoints/*/*")}
    again = upslope_command("train", folder, "--resume", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert {p: p.read_bytes() for p in folder.glob("checkpoints/*/*")} == before
    shutil.rmtree(folder / "checkpoints")
    begun_anew = upslope_command("train", folder, "--resume", cwd=tmp_path)
    assert begun_anew.returncode == 0, sentences(begun_anew.stderr)
    newest = checkpoint.list_checkpoints(folder / "checkpoints")[0]
    end = {path: path.read_bytes() for path in newest.iterdir()}
    assert end == {path: data for path, data in before.items() if path.parent == newest}
