"""B4, B5, for a run: other settings, another algorithm or shape, or a part missing: refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.command import sentences, upslope_command
from upslope import PPO, checkpoint
from upslope.errors import ArgumentError, CheckpointError, ConfigError, RunError
from upslope.runs import run
from upslope.runs.configuration import RunConfig

CONFIG = RunConfig(
    algorithm="ppo",
    env="Pendulum-v1",
    total_timesteps=600,
    settings={
        **{"n_envs": 2, "n_steps": 20, "batch_size": 20, "n_epochs": 1, "segment_length": 80},
        **{"normalize_observation": True, "normalize_reward": True, "learning_rate": 1e-3},
    },
)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run that was stopped after its first iteration."""
    folder = tmp_path_factory.mktemp("runs") / "stopped"
    run.create(folder, CONFIG)
    run.train(folder, CONFIG, max_seconds=0, progress=False)
    return folder


@pytest.fixture
def folder(stopped: Path, tmp_path: Path) -> Path:
    shutil.copytree(stopped, tmp_path / "a")
    return tmp_path / "a"


def edit(folder: Path, old: str, new: str) -> None:
    path = folder / "config.toml"
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))


def go_on(folder: Path) -> run.Outcome:
    return run.train(folder, RunConfig.read(folder), progress=False, say=lambda _: None)


def contents(folder: Path) -> dict[Path, bytes]:
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != "lock"}


EDITS = [
    (
        "learning_rate = 0.001",
        "learning_rate = 0.002",
        "config: learning_rate 0.001 saved, 0.002 now",
    ),
    ("n_epochs = 1", "n_epochs = 3", "config: n_epochs 1 saved, 3 now"),
    ("n_envs = 2", "n_envs = 4", "config: n_envs 2 saved, 4 now"),
    ("normalize_reward = true", "", "config: normalize_reward True saved, False now"),
    ('backend = "auto"', 'backend = "async"', "backend: 'sync' saved, 'async' now"),
    ('backend = "auto"', 'backend = "auto"\nthreads = 7', "threads: 1 saved, 7 now"),
    ("[env_kwargs]", "[env_kwargs]\ng = 9.0", "env_kwargs: g None saved, 9.0 now"),
    ('"Pendulum-v1"', '"MountainCarContinuous-v0"', "env: 'Pendulum-v1' saved, 'MountainCarCont"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("old", "new", "listed"), EDITS, ids=[new or old for old, new, _ in EDITS])
def test_an_edited_configuration_is_refused(folder: Path, old: str, new: str, listed: str) -> None:
    edit(folder, old, new)
    before = contents(folder)
    with pytest.raises(RunError, match="with its own settings only: ") as caught:
        go_on(folder)
    assert listed in str(caught.value)
    assert contents(folder) == before


def test_all_differences_are_listed_at_once(folder: Path) -> None:
    edit(folder, "n_epochs = 1", "n_epochs = 3")
    edit(folder, "batch_size = 20", "batch_size = 10")
    edit(folder, "[env_kwargs]", "[env_kwargs]\ng = 9.0")
    with pytest.raises(RunError) as caught:
        go_on(folder)
    assert str(caught.value) == (
        f"{folder}/config.toml is not what step-000000000001 was trained with, and a run goes on "
        "with its own settings only: env_kwargs: g None saved, 9.0 now; "
        "config: batch_size 20 saved, 10 now, n_epochs 1 saved, 3 now"
    )


@pytest.mark.slow
def test_on_the_command_line_it_is_one_sentence(folder: Path) -> None:
    edit(folder, "n_epochs = 1", "n_epochs = 3")
    done = upslope_command("train", folder, "--resume", cwd=folder.parent)
    assert done.returncode == 1
    (sentence,) = sentences(done.stderr)
    assert sentence.startswith(f"upslope: {folder}/config.toml is not what step-000000000001 was")
    assert sentence.endswith("config: n_epochs 1 saved, 3 now")


def test_more_steps_are_allowed_and_said(folder: Path) -> None:
    edit(folder, "total_timesteps = 600", "total_timesteps = 400")
    said: list[str] = []
    outcome = run.train(folder, RunConfig.read(folder), progress=False, say=said.append)
    assert outcome.finished
    assert outcome.agent.num_timesteps == 400
    assert said[0] == "total_timesteps was 600 and is 400: the run and its schedules go on to there"


MISTAKES = [
    ("n_epochs = 1", "n_epoch = 1", ConfigError, "no setting 'n_epoch' .did you mean 'n_epochs'"),
    ('"ppo"', '"pgo"', ArgumentError, "there is no algorithm 'pgo'"),
    ("total_timesteps = 600", "", RunError, "total_timesteps is missing"),
    ("total_timesteps = 600", "total_timesteps = 'all'", RunError, "it takes a whole number of at"),
    ("checkpoint_seconds", "checkpoint_second", RunError, "did you mean 'checkpoint_seconds'"),
    ("checkpoint_seconds = 30.0", "checkpoint_seconds = nan", RunError, "takes a number of at lea"),
    ("[evaluation]", "[evaluation]\nfreq = 0", RunError, r"evaluation\.freq=0: it takes a whole"),
    ("[settings]", "[[settings]]", RunError, "settings=.*: it takes a table"),
    ("[settings]", "[settings", RunError, "cannot be read: "),
    ("[settings]", "[settings]\na = " + "[" * 5000, RunError, "cannot be read: "),
]


@pytest.mark.parametrize(
    ("old", "new", "kind", "match"), MISTAKES, ids=[new[:40] for _, new, _, _ in MISTAKES]
)
def test_a_mistake_in_the_configuration_is_named(
    folder: Path, old: str, new: str, kind: type[Exception], match: str
) -> None:
    edit(folder, old, new)
    with pytest.raises(kind, match=match):
        go_on(folder)


# -- another checkpoint ----------------------------------------------------------------------------


def put_instead(folder: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> None:
    """Replace the run's checkpoint by a valid one with other content."""
    place = folder / "checkpoints"
    newest = checkpoint.newest_valid(place)
    tensors, meta = dict(newest.tensors), json.loads(json.dumps(newest.meta))
    change(tensors, meta)
    shutil.rmtree(place)
    checkpoint.write(place, newest.path.name, tensors, meta)


def test_the_checkpoint_of_another_algorithm(folder: Path) -> None:
    put_instead(folder, lambda _, meta: meta.update(algorithm="DQN"))
    with pytest.raises(RunError, match="algorithm: 'DQN' saved, 'PPO' now"):
        go_on(folder)
    with pytest.raises(CheckpointError, match="holds an agent of DQN, not of PPO"):
        run.evaluate(folder, episodes=1)


def test_the_checkpoint_of_another_shape(folder: Path, tmp_path: Path) -> None:
    settings = CONFIG.settings | {"policy_kwargs": {"net_arch": [8]}}
    other = dataclasses.replace(CONFIG, settings=settings)
    run.create(tmp_path / "other", other)
    run.train(tmp_path / "other", other, max_seconds=0, progress=False)
    shutil.rmtree(folder / "checkpoints")
    shutil.copytree(tmp_path / "other" / "checkpoints", folder / "checkpoints")
    with pytest.raises(
        RunError, match=r"config: policy_kwargs \{'net_arch': \[8\]\} saved, \{\} now"
    ):
        go_on(folder)
    own = run.make_agent(CONFIG).state()[1]["config"]
    put_instead(folder, lambda _, meta: meta.update(config=own))  # as if the settings were the same
    with pytest.raises(CheckpointError, match="does not fit this PPO, ") as caught:
        go_on(folder)
    assert (
        "policy/actor.0.weight: float32 [8, 3] in the checkpoint, expected float32 [64, 3]"
        in str(caught.value)
    )


def names(stopped: Path) -> tuple[list[str], list[tuple[str, ...]]]:
    newest = checkpoint.newest_valid(stopped / "checkpoints")
    meta = newest.meta
    paths = [(name,) for name in meta] + [("experience", name) for name in meta["experience"]]
    return sorted(newest.tensors), paths


@pytest.mark.slow
def test_any_tensor_or_number_missing_is_refused_and_nothing_is_changed(
    stopped: Path, tmp_path: Path
) -> None:
    """The optimiser, a schedule's counter, a normaliser, an open episode: none may be absent."""
    tensors, meta_paths = names(stopped)
    assert {n.split("/")[0] for n in tensors} >= {"policy", "adam_m", "adam_v", "experience"}
    assert any("observation_normalizer" in name for name in tensors)
    assert any("reward_normalizer" in name for name in tensors)
    cases = [(name, None) for name in tensors] + [(None, path) for path in meta_paths]
    for name, path in cases:
        folder = tmp_path / "a"
        shutil.copytree(stopped, folder)

        def take_away(
            found: dict[str, Any], meta: dict[str, Any], name: Any = name, path: Any = path
        ) -> None:
            if name:
                del found[name]
                return
            *outer, last = path
            for step in outer:
                meta = meta[step]
            del meta[last]

        put_instead(folder, take_away)
        agent = run.make_agent(CONFIG)
        before = agent.state()
        newest = checkpoint.newest_valid(folder / "checkpoints")
        with pytest.raises(CheckpointError) as caught:
            agent.load_state(newest.tensors, newest.meta)
        assert (name or path[-1]) in str(caught.value)
        assert all(bool((before[0][n] == t).all()) for n, t in agent.state()[0].items())
        assert agent.state()[1] == before[1]
        with pytest.raises((CheckpointError, RunError)):
            go_on(folder)
        shutil.rmtree(folder)


def test_an_agent_that_was_saved_cannot_stand_in_for_a_run(tmp_path: Path) -> None:
    agent = PPO("CartPole-v1", n_envs=2, n_steps=8)
    with pytest.raises(RunError, match=r"is not a run: it holds no config\.toml"):
        run.evaluate(agent.save(tmp_path / "agent"))
