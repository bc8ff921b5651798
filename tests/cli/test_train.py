"""`upslope train`, `evaluate`, `video`: what is asked for is what is done, mistakes are named."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from upslope import recipes
from upslope.agents.table import ALGORITHMS
from upslope.cli.main import main
from upslope.runs import run
from upslope.runs.metrics import read_metrics

Captured = pytest.CaptureFixture[str]
SMALL = ("--n-envs", "2", "--n-steps", "16", "--n-epochs", "1", "--total-timesteps", "64")
SHORT = (*SMALL, "--final-episodes", "2", "--no-recipe")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def code_of(*arguments: str) -> int | str | None:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return ended.value.code


def refused(capsys: Captured, *arguments: str, code: int = 2) -> str:
    """Return the one sentence with which a call is refused, before anything is made."""
    assert code_of(*arguments) == code
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("upslope: ")
    assert err.count("\n") == 1, err
    assert not list(Path.cwd().iterdir())
    return err.removeprefix("upslope: ").strip()


def written(name: str) -> dict[str, Any]:
    return tomllib.loads((Path("runs") / name / "config.toml").read_text())


# -- train -----------------------------------------------------------------------------------------


def test_what_is_said_of_the_environment_holds_in_evaluations(capsys: Captured) -> None:
    words = (
        "train",
        "ppo",
        "upslope/FlappyBird-v0",
        "--name",
        "a",
        "--n-envs",
        "2",
        "--n-steps",
        "8",
    )
    short = ("--total-timesteps", "16", "--final-episodes", "0")
    assert code_of(*words, *short, "--env-kwargs", "{score_limit = 20}") == 0
    told = written("a")
    assert told["env_kwargs"] == {"score_limit": 20}
    evaluation = told["evaluation"]
    assert not evaluation.get("env_kwargs")
    assert not evaluation.get("final_env_kwargs")
    assert code_of(*words[:3], "--name", "b", *words[5:], *short) == 0
    assert written("b")["evaluation"]["final_env_kwargs"] == {"score_limit": 10_000}


def test_a_run(capsys: Captured) -> None:
    assert code_of("train", "ppo", "CartPole-v1", *SHORT) == 0
    out, err = capsys.readouterr()
    assert not err
    first, engine, learned, returned = out.splitlines()
    assert engine.startswith("engine: native (")
    assert first == "training ppo on CartPole-v1 for 64 steps in runs/ppo-CartPole-v1"
    assert learned.startswith("learned for ")
    assert returned.startswith("return over 2 episodes, deterministic: mean ")
    assert not any(ord(c) < 32 for c in out if c != "\n")
    assert len(read_metrics(Path("runs/ppo-CartPole-v1/metrics.csv"))) == 3
    assert code_of("train", "PPO", "CartPole-v1", *SHORT) == 0
    assert written("ppo-CartPole-v1-2")["algorithm"] == "ppo"


def test_the_options_are_what_is_written_down() -> None:
    words = (
        *("--name", "mine", "--runs", "elsewhere", "--seed=7", "--learning-rate", "linear(1e-3)"),
        *("--clip-range-vf", "0.5", "--target-kl", "0.01", "--normalize-observation"),
        *("--no-normalize-advantage", "--checkpoint_seconds", "1.5", "--max-grad-norm", "None"),
        *("--eval-freq", "32", "--eval-episodes", "1", "--backend", "sync", "--threads", "1"),
        *("--env-kwargs", "{sutton_barto_reward = true}"),
        *("--policy-kwargs", 'net_arch = [8, 8], activation = "relu"'),
    )
    assert code_of("train", "ppo", "CartPole-v1", *SHORT, *words) == 0
    found = tomllib.loads(Path("elsewhere/mine/config.toml").read_text())
    settings = found.pop("settings")
    assert found == {
        **{"algorithm": "ppo", "env": "CartPole-v1", "total_timesteps": 64, "backend": "sync"},
        **{"checkpoint_seconds": 1.5, "env_kwargs": {"sutton_barto_reward": True}, "threads": 1},
        "evaluation": {
            **{"freq": 32, "episodes": 1, "final_episodes": 2},
            **{"env_kwargs": {}, "final_env_kwargs": {}},
        },
    }
    expected = {
        **{"seed": 7, "learning_rate": "linear(1e-3)", "clip_range_vf": 0.5, "target_kl": 0.01},
        **{"normalize_observation": True, "normalize_advantage": False, "max_grad_norm": "none"},
        **{"policy_kwargs": {"net_arch": [8, 8], "activation": "relu"}, "n_envs": 2},
    }
    assert {name: settings[name] for name in expected} == expected
    agent = run.load_agent(Path("elsewhere/mine"), run.RunConfig.read(Path("elsewhere/mine")))
    assert agent.config.max_grad_norm is None
    assert agent.policy.actor[0].out_features == 8
    assert agent.env_kwargs == {"sutton_barto_reward": True}
    assert "sutton_barto_reward" in str(agent.env_kwargs)


@pytest.mark.slow
def test_a_recipe_is_where_it_starts() -> None:
    words = ("--total-timesteps", "300", "--final-episodes", "0", "--name")
    assert code_of("train", "ppo", "CartPole-v1", *words, "a") == 0
    assert written("a")["settings"]["n_epochs"] == 20
    assert written("a")["evaluation"]["freq"] == 20_000
    assert code_of("train", "ppo", "CartPole-v1", *words, "b", "--gamma", "0.5") == 0
    assert written("b")["settings"]["gamma"] == 0.5
    assert written("b")["settings"]["n_epochs"] == 20
    assert code_of("train", "ppo", "CartPole-v1", *words, "c", "--no-recipe") == 0
    assert written("c")["settings"]["n_epochs"] == 4
    assert "freq" not in written("c")["evaluation"]


def test_resume_goes_on(capsys: Captured) -> None:
    words = ("train", "ppo", "CartPole-v1", *SHORT, "--name", "a", "--max-seconds", "0")
    assert code_of(*words) == 0
    assert len(read_metrics(Path("runs/a/metrics.csv"))) == 1
    capsys.readouterr()
    assert code_of("train", "runs/a", "--resume") == 0
    out, err = capsys.readouterr()
    assert "going on from step-000000000001 (" in out
    assert not err
    assert len(read_metrics(Path("runs/a/metrics.csv"))) == 3


@pytest.mark.parametrize("words", [["train"], ["train", "ppo"], ["train", "a", "b", "c"]])
def test_an_algorithm_and_an_environment(words: list[str], capsys: Captured) -> None:
    sentence = refused(capsys, *words)
    assert sentence.startswith("train takes an algorithm and an environment: upslope train ALG")


MISTAKES = [
    (
        ["pop", "CartPole-v1"],
        "there is no algorithm 'pop' (did you mean 'ppo'?); there is q_learning, dqn, ",
    ),
    (
        ["ppo", "CartPol-v1"],
        "is not an environment that Gymnasium or EnvPool knows (did you mean 'CartPole-v1",
    ),
    (["ppo", "FlappyBird-v0"], "(did you mean 'upslope/FlappyBird-v0'?)"),
    (["ppo", "no_such_module:A-v0"], "'no_such_module' cannot be imported"),
    (
        ["ppo", "CartPole-v1", "--lerning-rate", "1"],
        "option --lerning-rate (did you mean 'learning",
    ),
    (["ppo", "CartPole-v1", "--clip_rnge=1"], "no option --clip_rnge (did you mean 'clip-range'"),
    (
        ["ppo", "CartPole-v1", "-s", "1"],
        "there is no option -s; upslope train ppo CartPole-v1 --help",
    ),
    (["ppo", "CartPole-v1", "--gamma", "2"], "gamma=2.0: gamma takes a number from 0 to 1"),
    (["ppo", "CartPole-v1", "--seed", "-1"], "seed=-1: seed takes a whole number of at least 0"),
    (
        ["ppo", "CartPole-v1", "--learning-rate", "lin(1)"],
        "learning_rate='lin(1)' is not a schedule",
    ),
    (
        ["ppo", "CartPole-v1", "--total-timesteps", "0"],
        "total_timesteps=0: it takes a whole number",
    ),
    (["ppo", "CartPole-v1", "--eval-freq", "0"], "evaluation.freq=0: it takes a whole number of"),
    (["ppo", "CartPole-v1", "--final-episodes", "-1"], "evaluation.final_episodes=-1: it takes a"),
    (["ppo", "CartPole-v1", "--backend", "snyc"], "got 'snyc' (did you mean 'sync'?)"),
    (
        ["ppo", "CartPole-v1", "--env-kwargs", "{a b}"],
        "--env-kwargs '{a b}' is not a table such as",
    ),
    (
        ["ppo", "CartPole-v1", "--env-kwargs", "{gravty = 1}"],
        "unexpected keyword argument 'gravty'",
    ),
    (["ppo", "CartPole-v1", "--policy-kwargs", 'activation = "rleu"'], "(did you mean 'relu'?)"),
    (["ppo", "CartPole-v1", "--name", "../x"], "--name '../x': it takes a name without slashes"),
    (["ppo", "CartPole-v1", "--name", ".."], "--name '..': it takes a name without slashes"),
    (["ppo", "CartPole-v1", "--name", ""], "--name '': it takes a name without slashes"),
    (["ppo", "CartPole-v1", "--resume"], "--resume takes one run: upslope train ALGORITHM"),
    (["runs/a", "--resume"], "there is no run runs/a"),
]


@pytest.mark.parametrize(("words", "told"), MISTAKES, ids=[" ".join(w[1:]) for w, _ in MISTAKES])
def test_a_mistake_is_one_sentence(words: list[str], told: str, capsys: Captured) -> None:
    assert told in refused(capsys, "train", *words)


@pytest.mark.parametrize("words", [["--seed", "abc"], ["--seed"], ["stray"], ["--seed", "1", "x"]])
def test_a_value_of_another_kind(words: list[str], capsys: Captured) -> None:
    assert code_of("train", "ppo", "CartPole-v1", *words[:1], *words[1:]) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert not list(Path.cwd().iterdir())


def test_a_run_that_exists(capsys: Captured) -> None:
    words = ("train", "ppo", "CartPole-v1", *SHORT, "--name", "first", "--max-seconds", "0")
    assert code_of(*words) == 0
    before = {path: path.read_bytes() for path in Path("runs").rglob("*") if path.is_file()}
    capsys.readouterr()
    assert code_of(*words) == 1
    assert capsys.readouterr().err == (
        "upslope: runs/first exists: choose another name (--name), or go on with it: "
        "upslope train runs/first --resume\n"
    )
    assert code_of("train", "runs/first") == 2
    assert "go on with upslope train runs/first --resume" in capsys.readouterr().err
    assert code_of("train", "runs/frist", "--resume") == 2
    assert "there is no run runs/frist (did you mean 'first'?)" in capsys.readouterr().err
    assert {p: p.read_bytes() for p in Path("runs").rglob("*") if p.is_file()} == before


def test_help_of_train(capsys: Captured) -> None:
    for words, usage in (
        ((), "usage: upslope train ppo ENVIRONMENT "),
        (("ppo",), "usage: upslope train ppo ENVIRONMENT "),
        (("ppo", "Pendulum-v1"), "usage: upslope train ppo Pendulum-v1 "),
        (("runs/a", "--resume"), "usage: upslope train runs/a "),
    ):
        assert code_of("train", *words, "--help") == 0
        assert capsys.readouterr().out.startswith(usage)


@pytest.mark.slow
def test_help_of_every_recipe(capsys: Captured) -> None:
    listed = [(name, env) for name in ALGORITHMS for env in recipes.names(name)]
    for words in listed:
        assert code_of("train", *words, "--help") == 0  # a warning would be an error
        out, err = capsys.readouterr()
        assert out.startswith(f"usage: upslope train {' '.join(words)} ")
        assert not err
    assert ("q_learning", "upslope/FlappyBird-v0") in listed


# -- evaluate, video -------------------------------------------------------------------------------


@pytest.fixture
def bird() -> str:
    assert code_of("train", "ppo", "upslope/FlappyBird-v0", *SHORT, "--name", "bird") == 0
    return "runs/bird"


def test_evaluate(bird: str, capsys: Captured) -> None:
    capsys.readouterr()
    words = ("--episodes", "3", "--last", "--seed", "5", "--env-kwargs", "{score_limit = 1}")
    assert code_of("evaluate", bird, *words) == 0
    out, err = capsys.readouterr()
    assert not err
    returned, score = out.splitlines()
    assert returned.startswith("return over 3 episodes, deterministic: mean ")
    assert score.startswith("score: median ")
    assert json.loads(Path(bird, "evaluation.json").read_text())["policy"] == "last"


@pytest.mark.slow
def test_video(bird: str, capsys: Captured) -> None:
    capsys.readouterr()
    assert code_of("video", bird, "--seconds", "0.2") == 0
    assert capsys.readouterr().out == "filmed 0.2 s: runs/bird/video.mp4\n"
    assert code_of("video", bird, "--seconds", "0.2", "--output", "bird.gif", "--last") == 0
    assert Path("bird.gif").exists()


@pytest.mark.parametrize("command", ["evaluate", "video"])
def test_evaluate_and_video_take_one_run(command: str, capsys: Captured) -> None:
    assert f"{command} takes one run: upslope {command} runs/NAME" in refused(capsys, command)
    assert f"{command} takes one run" in refused(capsys, command, "a", "b")
    assert "is not a run: it holds no config.toml" in refused(capsys, command, "nowhere", code=1)
    assert "no option --epsiodes" in refused(capsys, command, "a", "--epsiodes", "3")


def test_a_run_without_a_checkpoint(bird: str, capsys: Captured) -> None:
    for path in Path(bird, "checkpoints").rglob("*"):
        if path.is_file():
            path.unlink()
    for path in Path(bird, "checkpoints").iterdir():
        path.rmdir()
    capsys.readouterr()
    assert code_of("evaluate", bird) == 1
    assert "bird/checkpoints holds no valid checkpoint" in capsys.readouterr().err


def test_an_environment_without_pictures(capsys: Captured) -> None:
    words = ("train", "ppo", "tests.tiny:tiny/Walk-v0", *SHORT, "--name", "walk")
    assert code_of(*words) == 0
    capsys.readouterr()
    assert code_of("video", "runs/walk") == 1
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("upslope: tests.tiny:tiny/Walk-v0 cannot be filmed: ")
    assert err.count("\n") == 1
