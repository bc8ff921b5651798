"""The configuration of a run: written, read back, checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from upslope import recipes
from upslope.errors import ConfigError, RunError
from upslope.runs.configuration import Evaluation, RunConfig, from_recipe


def config(**changed: Any) -> RunConfig:
    return RunConfig(**{"algorithm": "ppo", "env": "CartPole-v1", "total_timesteps": 10} | changed)


def test_it_comes_back_as_it_was_written(tmp_path: Path) -> None:
    whole = config(
        env_kwargs={"gravity": 9.81, "name": "ünïcode \u2028 'x'"},
        backend="sync",
        checkpoint_seconds=0.5,
        evaluation=Evaluation(freq=5, episodes=3, env_kwargs={"score_limit": 10}),
        settings={"clip_range_vf": None, "seed": 0, "policy_kwargs": {"net_arch": [8], "x": {}}},
    )
    whole.write(tmp_path)
    assert RunConfig.read(tmp_path) == whole
    assert [path.name for path in tmp_path.iterdir()] == ["config.toml"]


@pytest.mark.parametrize("env", recipes.names("ppo"))
def test_every_recipe_comes_back(env: str, tmp_path: Path) -> None:
    found = from_recipe("ppo", env)
    assert found is not None
    found.write(tmp_path)
    assert RunConfig.read(tmp_path) == found


def test_there_need_not_be_a_recipe() -> None:
    assert from_recipe("ppo", "NoSuch-v0") is None


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"total_timesteps": 0}, "total_timesteps=0: it takes a whole number of at least 1"),
        ({"total_timesteps": 1.5}, "total_timesteps=1.5: it takes a whole number of at least 1"),
        ({"total_timesteps": True}, "total_timesteps=True: it takes a whole number of at least 1"),
        ({"checkpoint_seconds": -1}, "checkpoint_seconds=-1: it takes a number of at least 0"),
        (
            {"checkpoint_seconds": float("inf")},
            "checkpoint_seconds=inf: it takes a number of at least 0",
        ),
        ({"env": 3}, "env=3: it takes text"),
        ({"settings": [1]}, "settings=[1]: it takes a table"),
    ],
)
def test_a_wrong_value_is_named(changed: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config(**changed)
    assert str(caught.value) == sentence


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"freq": 0}, "evaluation.freq=0: it takes a whole number of at least 1"),
        ({"episodes": 0}, "evaluation.episodes=0: it takes a whole number of at least 1"),
        ({"final_episodes": -1}, "evaluation.final_episodes=-1: it takes a whole number of at lea"),
        ({"final_env_kwargs": 1}, "evaluation.final_env_kwargs=1: it takes a table"),
    ],
)
def test_a_wrong_value_of_the_evaluation_is_named(changed: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Evaluation(**changed)
    assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"a = ", b"a = 1\na = 2"])
def test_what_is_no_toml_is_said_with_its_path(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_bytes(content)
    with pytest.raises(RunError, match=rf"{tmp_path}/config\.toml cannot be read: "):
        RunConfig.read(tmp_path)


def test_what_is_no_run_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path, tmp_path / "nowhere", tmp_path / "file"):
        with pytest.raises(RunError, match="is not a run: it holds no config"):
            RunConfig.read(folder)


def test_a_module_is_not_imported_because_a_file_says_so(tmp_path: Path) -> None:
    config(env="antigravity_of_mine:Env-v0").write(tmp_path)
    with pytest.raises(RunError, match="'antigravity_of_mine' imported: --allow-import allows it"):
        RunConfig.read(tmp_path)
    assert RunConfig.read(tmp_path, allow_import=True).env == "antigravity_of_mine:Env-v0"
    config(env="upslope.errors:Env-v0").write(tmp_path)  # it is imported already
    assert RunConfig.read(tmp_path).env == "upslope.errors:Env-v0"
