"""`upslope doctor` names what is wrong, says what to do, and finds nothing where all is well."""

from __future__ import annotations

from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch

from tests import tiny
from upslope.cli import doctor as command
from upslope.cli import main as cli
from upslope.runs import installation
from upslope.runs.doctor import GOOD, NOTE, WRONG, Finding, examine


def found(env, **options) -> dict[str, Finding]:
    return {one.about: one for one in examine(env, **{"steps": 2_400} | options)}


@pytest.mark.slow
@pytest.mark.parametrize("env", ["CartPole-v1", "upslope/FlappyBird-v0", lambda: tiny.Walk(8)])
def test_nothing_is_wrong_with_a_good_one(env):
    levels = {about: one.level for about, one in found(env).items()}
    assert set(levels) == {"seeding", "spaces", "scale", "reward", "ends", "autoreset", "speed"}
    assert set(levels.values()) == {GOOD}


class UnseededLater(tiny.Walk):
    """Its first episode is seeded; the others begin where the process's generator says."""

    def reset(self, *, seed=None, options=None):
        seen = super().reset(seed=seed)
        return seen if seed is not None else (seen[0] + np.float32(np.random.uniform()), {})  # noqa: NPY002


class Out(tiny.Walk):
    """It leaves its space at its 300th step."""

    observation_space = gymnasium.spaces.Box(-100, 100, (2,), np.float32)

    def observation(self):
        return super().observation() + np.float32(500 * (self.total == 300))


class Unmade(tiny.Walk):
    def __init__(self):
        raise ImportError("no simulator here")


WRONGS = [
    (tiny.Unseeded, "seeding", "environment 0 gave another observation after the reset"),
    (UnseededLater, "seeding", "environment 0 gave another observation at step 21"),
    (tiny.NaNAtThousand, "contract", "environment 0 returned nan as observation at [0]"),
    (Out, "contract", "outside Box"),
    (tiny.Fails, "exception", "OSError: the robot has fallen over"),
    (Unmade, "exception", "ImportError: no simulator here"),
    (tiny.Letters, "environment", "Text"),
    ("CartPole-v7", "environment", "CartPole"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("env", "about", "said"), WRONGS, ids=[about for _, about, _ in WRONGS])
def test_what_is_wrong_is_named(env, about, said):
    one = found(env, steps=4_800)[about]
    assert one.level == WRONG
    assert said in one.found
    assert one.advice or about == "environment"


def test_what_may_be_meant_is_a_note():
    findings = found(tiny.Endless)
    assert {one.level for one in findings.values()} == {GOOD, NOTE}
    assert "never end" in findings["ends"].found
    assert "every reward was 0" in findings["reward"].found
    assert "normalize_observation" in findings["scale"].advice
    assert "one step" in found(lambda: tiny.Walk(1))["ends"].advice


def test_the_generators_of_the_process_are_left_alone():
    before = np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
    found(tiny.Unseeded)
    after = np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
    assert after == before


def test_a_fault_of_our_own_is_no_finding(monkeypatch):
    monkeypatch.setattr("upslope.runs.doctor._collect", lambda agent, k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        found("CartPole-v1")


# ---- the installation ----------------------------------------------------------------------------
def of_installation(folder: Path) -> dict[str, Finding]:
    return {one.about: one for one in installation.inspect_installation(folder)}


def test_the_installation_here_is_good(tmp_path):
    findings = of_installation(tmp_path / "runs")
    assert not [one for one in findings.values() if one.level == WRONG]
    assert f"torch {torch.__version__}" in findings["versions"].found
    assert not list(tmp_path.iterdir())


def test_what_is_too_old_or_missing_is_named(tmp_path, monkeypatch):
    needed = ["torch>=99.1", "no-such-thing>=1", "numpy>=2", 'envpool>=9; extra == "envpool"']
    monkeypatch.setattr("importlib.metadata.requires", lambda name: needed)
    findings = list(installation._versions())
    assert [one.level for one in findings] == [WRONG, WRONG, GOOD]
    assert "at least 99.1 is needed" in findings[0].found
    assert "no-such-thing is not installed" in findings[1].found


def test_too_many_threads_no_engine_and_no_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 10_000)
    monkeypatch.setattr(installation.native_engine, "MISSING", "it was not built")
    (tmp_path / "runs").write_text("")
    findings = of_installation(tmp_path / "runs" / "below")
    levels = [findings[about].level for about in ("threads", "native engine", "disk")]
    assert levels == [WRONG, NOTE, WRONG]


def test_the_command_ends_with_1_where_something_is_wrong(capsys, tmp_path):
    words = ["--steps", "600", "--runs", str(tmp_path)]
    assert command.main(["CartPole-v1", *words]) == 0
    assert capsys.readouterr().out.endswith("nothing is wrong\n")
    assert command.main(["tests.tiny:tiny/Unseeded-v0", *words]) == 1
    out = capsys.readouterr().out
    assert "  WRONG  seeding: " in out
    assert "-> draw everything random from self.np_random" in out
    assert out.endswith("1 wrong\n")
    with pytest.raises(SystemExit) as ended:
        cli.main(["doctor", "CartPole-v1", "Pendulum-v1"])
    assert ended.value.code == 2
