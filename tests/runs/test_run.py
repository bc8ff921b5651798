"""A run on disk: its folder, its lock, its best and its last policy."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.command import environment
from upslope.agents.saving import made_with
from upslope.errors import ArgumentError, CheckpointError, RunError
from upslope.runs import run
from upslope.runs.configuration import Evaluation, RunConfig
from upslope.runs.metrics import read_metrics

CONFIG = RunConfig(
    algorithm="ppo",
    env="CartPole-v1",
    total_timesteps=400,
    evaluation=Evaluation(freq=100, episodes=2, final_episodes=3),
    settings={"n_envs": 2, "n_steps": 25, "batch_size": 25, "n_epochs": 1},
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, run.Outcome]:
    folder = tmp_path_factory.mktemp("runs") / "a"
    run.create(folder, CONFIG)
    return folder, run.train(folder, CONFIG, progress=False)


def test_what_is_in_its_folder(trained: tuple[Path, run.Outcome]) -> None:
    folder, outcome = trained
    assert outcome.finished
    assert outcome.exit_code == 0
    rows = read_metrics(folder / "metrics.csv")
    assert len(rows) == outcome.agent.iteration
    assert rows[-1]["timesteps"] == outcome.agent.num_timesteps >= 400
    assert RunConfig.read(folder) == CONFIG
    names = {path.name for path in folder.iterdir()} - {"evaluation.json"}
    assert names == {"config.toml", "metrics.csv", "tensorboard", "checkpoints", "best", "lock"}
    newest, *_ = sorted((folder / "checkpoints").iterdir(), reverse=True)
    assert newest.name == f"step-{outcome.agent.iteration:012d}"


def test_what_differs_is_said_and_what_is_finished_stays_as_it_is(
    trained: tuple[Path, run.Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(trained[0], tmp_path / "a")
    before = {p: p.read_bytes() for p in (tmp_path / "a" / "checkpoints").glob("*/*")}
    said: list[str] = []
    was = made_with(trained[1].agent.engine)
    now = was | {"torch": "1.0", "processor": "ABACUS"}
    monkeypatch.setattr("upslope.runs.run.made_with", lambda _: now)
    monkeypatch.setattr("upslope.agents.saving.made_with", lambda _: now)
    assert run.train(tmp_path / "a", CONFIG, progress=False, say=said.append).finished
    assert said[:2] == [
        f"torch was {was['torch']} and is 1.0: the run goes on, but not bit for bit the same",
        f"processor was {was['processor']} and is ABACUS: the run goes on, but not bit for bit "
        "the same",
    ]
    assert {p: p.read_bytes() for p in (tmp_path / "a" / "checkpoints").glob("*/*")} == before


def test_rows_behind_the_checkpoint_that_is_gone_on_from_are_written_anew(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, checkpoint_seconds=0.0)
    folder = tmp_path / "a"
    run.create(folder, config)
    run.train(folder, config, progress=False)
    before = [(row["iteration"], row["approx_kl"]) for row in read_metrics(folder / "metrics.csv")]
    for newest in sorted((folder / "checkpoints").iterdir())[-2:]:
        shutil.rmtree(newest)
    run.train(folder, config, progress=False)
    after = [(row["iteration"], row["approx_kl"]) for row in read_metrics(folder / "metrics.csv")]
    assert after == before
    assert len((folder / "metrics.csv").read_text().splitlines()) == 1 + len(before)


def test_the_number_of_threads_is_taken_up_again(tmp_path: Path) -> None:
    folder, threads = tmp_path / "a", torch.get_num_threads()
    run.create(folder, CONFIG)
    try:
        torch.set_num_threads(2)
        run.train(folder, CONFIG, progress=False, max_seconds=0)
        torch.set_num_threads(1)
        run.train(folder, CONFIG, progress=False, say=lambda _: None, max_seconds=0)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


# -- folders ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("there", ["folder", "full", "file", "link"])
def test_what_exists_is_never_touched(there: str, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "a"
    folder.parent.mkdir()
    if there == "file":
        folder.write_text("mine")
    elif there == "link":
        folder.symlink_to(tmp_path / "nowhere")
    else:
        folder.mkdir()
        if there == "full":
            (folder / "config.toml").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(RunError, match=f"{folder} exists: choose another name .--name., or go on"):
        run.create(folder, CONFIG)
    assert sorted(tmp_path.rglob("*")) == before
    if there in ("file", "full"):
        assert (folder / "config.toml" if there == "full" else folder).read_text() == "mine"


def test_a_folder_that_cannot_be_made_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="file/a cannot be written: Not a directory"):
        run.create(tmp_path / "file" / "a", CONFIG)
    with pytest.raises(RunError, match="cannot be written: File name too long"):
        run.create(tmp_path / ("a" * 300), CONFIG)
    unwritable = dataclasses.replace(CONFIG, env_kwargs={"a": object()})
    with pytest.raises(ArgumentError, match="cannot be written to a configuration file"):
        run.create(tmp_path / "b", unwritable)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_free_names(tmp_path: Path) -> None:
    assert run.free_name(tmp_path, "ppo-A-v1") == tmp_path / "ppo-A-v1"
    (tmp_path / "ppo-A-v1").mkdir()
    (tmp_path / "ppo-A-v1-2").write_text("")
    assert run.free_name(tmp_path, "ppo-A-v1") == tmp_path / "ppo-A-v1-3"
    for wanted, found in (("ppo-../../x:a/B v1", "ppo-..-..-x-a-B-v1"), ("../..", "run")):
        assert run.free_name(tmp_path, wanted) == tmp_path / found


@pytest.mark.parametrize("name", ["", ".", "..", "../a", "a/b", "/a", "a/", "./a"])
def test_a_name_that_leads_elsewhere_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="it takes a name without slashes"):
        run.named(tmp_path, name)


def test_a_name() -> None:
    assert run.named(Path("runs"), "first one") == Path("runs/first one")


# -- the lock --------------------------------------------------------------------------------------

HOLD = """
import sys, pathlib
from upslope.runs.run import locked
with locked(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def held(tmp_path: Path) -> Iterator[tuple[Path, subprocess.Popen[str]]]:
    folder = tmp_path / "a"
    run.create(folder, CONFIG)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    words = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(words, env=environment(), text=True, **pipes) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield folder, process
        process.kill()


@pytest.mark.slow
def test_a_run_that_another_process_trains(held: tuple[Path, subprocess.Popen[str]]) -> None:
    folder, process = held
    with pytest.raises(RunError, match=f"{folder} is being trained by process {process.pid}"):
        run.train(folder, CONFIG, progress=False)
    assert not (folder / "metrics.csv").exists()
    process.kill()
    process.wait()
    with run.locked(folder):  # the system let go of it
        assert (folder / "lock").read_text() == f"{os.getpid()}\n"


def test_a_run_whose_folder_is_gone(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="gone cannot be written: No such file or directory"):
        run.train(tmp_path / "gone", CONFIG, progress=False)


# -- the policies ----------------------------------------------------------------------------------


def weights(agent: object) -> torch.Tensor:
    return agent.engine.flat.value.clone()  # type: ignore[attr-defined]


def test_the_best_and_the_last_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    means = iter([10.0, 30.0, 20.0, 5.0, 1.0, 1.0])
    monkeypatch.setattr("upslope.agents.agent.evaluate_policy", lambda *_, **__: (next(means), 0.0))
    folder = tmp_path / "a"
    run.create(folder, CONFIG)
    run.train(folder, CONFIG, progress=False)
    rows = read_metrics(folder / "metrics.csv")
    best, last = (run.load_agent(folder, CONFIG, which=which) for which in ("best", "last"))
    (at_best,) = [row["timesteps"] for row in rows if row["eval_return"] == 30]
    assert best.num_timesteps == at_best
    assert last.num_timesteps == rows[-1]["timesteps"] > at_best
    assert not torch.equal(weights(best), weights(last))
    last.restore_best()
    assert torch.equal(weights(best), weights(last))


def test_without_a_best_policy_the_last_is_taken(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    config = dataclasses.replace(CONFIG, evaluation=Evaluation(final_episodes=3))
    run.create(folder, config)
    with pytest.raises(CheckpointError, match="holds no valid checkpoint"):
        run.load_agent(folder, config)
    outcome = run.train(folder, config, progress=False)
    assert torch.equal(weights(run.load_agent(folder, config)), weights(outcome.agent))


def test_a_best_policy_whose_replacement_was_killed_half_way(
    trained: tuple[Path, run.Outcome], tmp_path: Path
) -> None:
    folder, _ = trained
    shutil.copytree(folder, tmp_path / "a")
    (tmp_path / "a" / "best").rename(tmp_path / "a" / "best.replaced")
    found = run.load_agent(tmp_path / "a", CONFIG)
    assert torch.equal(weights(found), weights(run.load_agent(folder, CONFIG)))


def test_evaluation_json(trained: tuple[Path, run.Outcome]) -> None:
    folder, outcome = trained
    played = run.evaluate(folder)
    told = json.loads((folder / "evaluation.json").read_text())
    assert told["returns"] == played.returns.tolist()
    assert len(told["returns"]) == 3
    assert told["lengths"] == played.lengths.tolist()
    assert told["scores"] is None
    assert (told["policy"], told["timesteps"]) == ("best", outcome.agent.best.timesteps)
    assert np.array_equal(run.evaluate(folder).returns, played.returns)  # the same seeds
    run.evaluate(folder, episodes=4, which="last")
    told = json.loads((folder / "evaluation.json").read_text())
    assert (told["policy"], told["timesteps"]) == ("last", outcome.agent.num_timesteps)
    assert len(told["returns"]) == 4
    with pytest.raises(ArgumentError, match="n_eval_episodes=0"):
        run.evaluate(folder, episodes=0)
    assert not list(folder.glob(".*"))


def test_scores_are_in_evaluation_json(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    config = dataclasses.replace(
        CONFIG,
        env="upslope/FlappyBird-v0",
        evaluation=Evaluation(final_episodes=3, final_env_kwargs={"score_limit": 2}),
    )
    run.create(folder, config)
    run.train(folder, config, progress=False, max_seconds=0)
    played = run.evaluate(folder)
    told = json.loads((folder / "evaluation.json").read_text())
    assert told["scores"] == played.scores.tolist()
    assert np.isfinite(played.scores).all()


def test_the_module_of_an_environment_is_imported_only_when_allowed(tmp_path: Path) -> None:
    """A checkpoint or config.toml that came from elsewhere does not decide what is run."""
    folder = tmp_path / "a"
    sys.modules.pop("tests.tiny", None)
    config = dataclasses.replace(CONFIG, env="tests.tiny:tiny/Walk-v0")
    run.create(folder, config)
    run.train(folder, config, progress=False, max_seconds=0)
    run.evaluate(folder, episodes=1)  # it is imported now
    sys.modules.pop("tests.tiny")
    with pytest.raises(RunError, match=r"'tests\.tiny' imported: --allow-import allows it"):
        run.evaluate(folder, episodes=1)
    import upslope as us

    best = folder / "best"
    with pytest.raises(ArgumentError, match=r"env='tests\.tiny:tiny/Walk-v0' allows it"):
        us.load(
            best if best.exists() else run.checkpoint.list_checkpoints(folder / "checkpoints")[0]
        )
    assert "tests.tiny" not in sys.modules
    RunConfig.read(folder, allow_import=True)
    assert "tests.tiny" not in sys.modules
