"""What a command line may not say ends in one sentence that names it, and nothing is made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.test_train import SHORT, Captured, code_of, refused

NUMBER = "takes a whole number, got"
TRAIN = ("train", "ppo", "Pendulum-v1")
REFUSED = {
    "half an environment": ((*TRAIN, "--n-envs", "1.5"), f"--n-envs {NUMBER} '1.5'"),
    "steps": ((*TRAIN, "--total-timesteps=1e5"), f"--total-timesteps {NUMBER} '1e5'"),
    "an option without a value": ((*TRAIN, "--n-envs"), f"--n-envs {NUMBER} nothing"),
    "none": ((*TRAIN, "--n-envs", "None"), f"--n-envs {NUMBER} 'None'"),
    "text": ((*TRAIN, "--gamma", "x"), "--gamma takes a number, got 'x'"),
    "episodes": (("evaluate", "runs/a", "--episodes", "x"), f"--episodes {NUMBER} 'x'"),
    "no time": ((*TRAIN, "--max-seconds", "nan"), "max_seconds=nan: it takes seconds"),
    "time": (("demo", "--max-seconds", "-3"), "max_seconds=-3.0: it takes seconds"),
    "threads": ((*TRAIN, "--threads", "100000"), "threads=100000: it takes at most 1,024"),
    "no number": (
        (*TRAIN, "--policy-kwargs", "{log_std_init = nan}"),
        "policy_kwargs['log_std_init'] is nan; it takes finite numbers",
    ),
    "weight": (
        (*TRAIN, "--no-recipe", "--env-kwargs", "{g = inf}"),
        "env_kwargs['g'] is inf; it takes finite numbers",
    ),
    "two networks": (
        (*TRAIN, "--policy-kwargs", "{net_arch = {pi = [64], vf = [64]}}"),
        "net_arch={'pi': [64], 'vf': [64]}: it takes a list of units such as [64, 64]",
    ),
    "the demonstration's seed": (("demo", "--seed", "-1"), "seed=-1: seed takes a whole number"),
}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name: str, capsys: Captured) -> None:
    words, sentence = REFUSED[name]
    assert sentence in refused(capsys, *words)


def test_none_is_taken_where_it_is_meant(capsys: Captured) -> None:
    words = ("train", "q_learning", "FrozenLake-v1", "--bins", "None", "--threads", "None")
    short = ("--total-timesteps", "64", "--final-episodes", "0", "--max-seconds", "None")
    assert code_of(*words, *short) == 0, capsys.readouterr().err


def test_a_doctor_without_patients(capsys: Captured) -> None:
    assert code_of("doctor", "CartPole-v1", "--n-envs", "0") == 2
    assert capsys.readouterr().err == "upslope: --n-envs takes a number of at least 1, got 0\n"


def test_a_run_that_is_played_and_filmed_in_vain(capsys: Captured) -> None:
    assert code_of("train", "ppo", "CartPole-v1", *SHORT, "--name", "a") == 0
    told = json.loads(Path("runs/a/evaluation.json").read_text())
    assert told["policy"] == ("best" if Path("runs/a/best").exists() else "last")
    capsys.readouterr()
    for words, sentence in {
        ("evaluate", "runs/a", "--seed", "-1"): "seed=-1: it takes a whole number of at least 0",
        ("video", "runs/a", "--seconds", "nan"): "seconds=nan: a video takes a finite number",
        ("video", "runs/a", "--seconds", "inf"): "seconds=inf: a video takes a finite number",
        ("train", "runs/a", "--resume", "--max-seconds", "nan"): "max_seconds=nan: it takes sec",
    }.items():
        assert code_of(*words) == 2
        assert sentence in capsys.readouterr().err
    Path("runs/a/metrics.csv").unlink()
    Path("runs/a/metrics.csv").mkdir()
    assert code_of("train", "runs/a", "--resume") == 1
    assert capsys.readouterr().err.startswith("upslope: runs/a/metrics.csv")
