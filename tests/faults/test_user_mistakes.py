"""B1, C1, C3, F2: a new user's mistakes end in one clear sentence each, and nothing is lost.

An environment whose observation is NaN at step 1,000, actions that no policy takes, a run that
exists, a full disk (a limit on the size of files, and a small file system where one can be made).
"""

from __future__ import annotations

import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.command import sentences, upslope_command
from upslope import checkpoint
from upslope.seeding import derive32

SEED = derive32(0, "environment", 0)  # of the environments, in a run of seed 0

TINY = ("--policy-kwargs", "{net_arch = [4]}", "--no-recipe", "--final-episodes", 0)
SMALL = (
    *TINY,
    "--n-envs",
    2,
    "--n-steps",
    50,
    "--batch-size",
    50,
    "--n-epochs",
    1,
    "--segment-length",
    500,
)


def train(env: str, *arguments: object, cwd: Path, **options: object) -> tuple[int, list[str]]:
    """Train in runs/a; returns the exit code and the sentences on stderr."""
    words = ("train", "ppo", env, *SMALL, "--name", "a", *arguments)
    done = upslope_command(*words, cwd=cwd, **options)
    return done.returncode, sentences(done.stderr)


def newest(folder: Path) -> tuple[str, bytes]:
    """Return the name and the weights of a run's newest checkpoint, which must be valid."""
    found = checkpoint.newest_valid(folder / "checkpoints")
    assert not found.refused
    return found.path.name, (found.path / "state.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0, 30])
def test_an_observation_that_is_nan_at_step_1000(seconds: int, tmp_path: Path) -> None:
    env = "tests.tiny:tiny/NaNAtThousand-v0"
    words = ("--total-timesteps", 4000, "--checkpoint-seconds", seconds, "--segment-length", 2000)
    code, (sentence, note) = train(env, *words, cwd=tmp_path)
    assert code == 1
    assert sentence == (
        "upslope: environment 0 returned nan as observation at [0], which takes finite numbers, at "
        f"step 1000 since the reset, 1000 in all, seed {SEED}"
    )
    if seconds:
        assert note == "No checkpoint had been saved yet."
        return
    assert note == "The last checkpoint, runs/a/checkpoints/step-000000000019, is intact."
    assert newest(tmp_path / "runs" / "a")[0] == "step-000000000019"


@pytest.mark.faults
def test_an_environment_that_raises_keeps_its_traceback(tmp_path: Path) -> None:
    words = ("train", "ppo", "tests.tiny:tiny/Fails-v0", *SMALL, "--total-timesteps", 4000)
    words += ("--checkpoint-seconds", 0, "--segment-length", 2000)
    done = upslope_command(*words, cwd=tmp_path)
    assert done.returncode == 1
    assert 'raise OSError("the robot has fallen over")' in done.stderr
    error, where, saved = done.stderr.splitlines()[-3:]
    assert error == "OSError: the robot has fallen over"
    step = f"raised by environment 0 at step 1000 since the reset, 1000 in all, seed {SEED}, action"
    assert where in (f"{step} 0", f"{step} 1")
    assert saved == (
        "The last checkpoint, runs/ppo-tests.tiny-tiny-Fails-v0/checkpoints/step-000000000019, is "
        "intact."
    )


@pytest.mark.slow
def test_actions_that_no_policy_takes(tmp_path: Path) -> None:
    code, (sentence,) = train("tests.tiny:tiny/Letters-v0", cwd=tmp_path)
    assert code in (1, 2)
    assert sentence.startswith("upslope: ")
    assert "Text" in sentence
    assert not list(tmp_path.iterdir())


@pytest.mark.faults
def test_a_run_that_exists(tmp_path: Path) -> None:
    assert train("CartPole-v1", "--total-timesteps", 200, cwd=tmp_path) == (0, [])
    before = newest(tmp_path / "runs" / "a")
    code, (sentence,) = train("CartPole-v1", cwd=tmp_path)
    assert code == 1
    assert sentence.startswith("upslope: runs/a exists: choose another name (--name), or go on ")
    assert newest(tmp_path / "runs" / "a") == before


@pytest.mark.faults
def test_a_module_named_by_a_file_is_not_imported(tmp_path: Path) -> None:
    words = ("--total-timesteps", 2000, "--max-seconds", 0)
    assert train("tests.tiny:tiny/Walk-v0", *words, cwd=tmp_path) == (0, [])
    for command in (("train", "runs/a", "--resume"), ("evaluate", "runs/a")):
        done = upslope_command(*command, cwd=tmp_path)
        assert done.returncode == 1
        assert sentences(done.stderr) == [
            "upslope: runs/a/config.toml has the module 'tests.tiny' imported: --allow-import "
            "allows it"
        ]
        allowed = upslope_command(*command, "--allow-import", cwd=tmp_path)
        assert (allowed.returncode, allowed.stderr) == (0, "")


# -- a full disk -----------------------------------------------------------------------------------


def at_most(size: int) -> dict[str, object]:
    """Return options that have the system refuse to write a file larger than `size` bytes."""
    return {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))}


@pytest.fixture
def begun(tmp_path: Path) -> tuple[Path, str]:
    """Return where a run was begun, stopped after an iteration, and the name of its checkpoint."""
    words = ("--total-timesteps", 6000, "--max-seconds", 0, "--checkpoint-seconds", 0)
    assert train("CartPole-v1", *words, cwd=tmp_path) == (0, [])
    return tmp_path, newest(tmp_path / "runs" / "a")[0]


LIMITS = {
    # the state does not fit
    1_500: "upslope: checkpoint {a}/checkpoints/step-000000000002 could not be saved, earlier ones",
    # the states fit, the rows and events of many iterations do not
    20_000: "upslope: runs/a/tensorboard/events",
}


@pytest.mark.faults
@pytest.mark.parametrize("size", LIMITS)
def test_files_that_cannot_grow(size: int, begun: tuple[Path, str]) -> None:
    cwd, before = begun
    whole = upslope_command(
        *("train", "ppo", "CartPole-v1", *SMALL, "--total-timesteps", 6000, "--name", "whole"),
        cwd=cwd,
    )
    assert whole.returncode == 0, whole.stderr
    folder = cwd / "runs" / "a"
    done = upslope_command("train", "runs/a", "--resume", cwd=cwd, **at_most(size))
    sentence, note = sentences(done.stderr)
    assert done.returncode == 1
    assert sentence.startswith(LIMITS[size].format(a=folder)), sentence
    assert "File too large" in sentence
    reached, _ = newest(folder)
    assert (reached == before) == (size == 1_500)
    assert (
        note == f"The last checkpoint, {folder.relative_to(cwd)}/checkpoints/{reached}, is intact."
    )
    again = upslope_command("train", "runs/a", "--resume", cwd=cwd)
    assert (again.returncode, again.stderr) == (0, "")
    assert newest(folder) == newest(cwd / "runs" / "whole")


@pytest.mark.faults
def test_a_picture_that_cannot_be_written_costs_nothing_else(tmp_path: Path) -> None:
    words = ("--total-timesteps", 1200)
    code, (sentence,) = train("CartPole-v1", *words, cwd=tmp_path, **at_most(20_000))
    assert code == 1
    path = "runs/a/learning_curve.png"
    assert sentence == f"upslope: {path} cannot be written: File too large"
    assert newest(tmp_path / "runs" / "a")[0] >= "step-000000000012"


@pytest.mark.faults
def test_no_room_for_the_run_at_all(tmp_path: Path) -> None:
    code, (sentence,) = train("CartPole-v1", cwd=tmp_path, **at_most(100))
    assert code == 1
    assert sentence.startswith("upslope: runs/")
    assert sentence.endswith("config.toml cannot be written: File too large")
    assert not list((tmp_path / "runs").iterdir())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Yield a folder on a file system of its own, of one megabyte."""
    place = tmp_path / "disk"
    place.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    try:
        made = subprocess.run(words, capture_output=True)
    except FileNotFoundError:
        pytest.skip("there is no `mount` here")
    if made.returncode:
        pytest.skip("no file system can be mounted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.faults
def test_a_disk_that_is_full(small_disk: Path) -> None:
    words = ("--total-timesteps", 6000, "--checkpoint-seconds", 0)
    assert train("CartPole-v1", *words, "--max-seconds", 0, cwd=small_disk) == (0, [])
    folder = small_disk / "runs" / "a"
    before = newest(folder)
    ballast = small_disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        while True:
            try:
                file.write(bytes(4096))
            except OSError:
                break
    for room, kind in ((0, ""), (24, "checkpoint "), (36, "")):
        with ballast.open("r+b") as file:
            file.truncate(ballast.stat().st_size - room * 1024)
        done = upslope_command("train", "runs/a", "--resume", cwd=small_disk)
        sentence = sentences(done.stderr)[0]
        assert done.returncode == 1, done.stdout
        assert "No space left on device" in sentence
        assert sentence.startswith(f"upslope: {kind}")
        print(room, sentence, newest(folder)[0])
    assert newest(folder) >= before
    ballast.unlink()
    done = upslope_command("train", "runs/a", "--resume", cwd=small_disk)
    assert (done.returncode, done.stderr) == (0, "")
    whole = upslope_command(
        *("train", "ppo", "CartPole-v1", *SMALL, "--total-timesteps", 6000, "--name", "whole"),
        cwd=small_disk,
    )
    assert whole.returncode == 0, whole.stderr
    assert newest(folder) == newest(small_disk / "runs" / "whole")
