"""F2: files from elsewhere, damaged or forged, are loaded right or refused by name."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import upslope as us
from tests.command import ROOT
from upslope import checkpoint
from upslope.checkpoint import codec
from upslope.cli import language
from upslope.errors import CheckpointError, ConfigError, RunError
from upslope.runs.configuration import RunConfig

pytestmark = pytest.mark.faults


def test_four_hundred_mutated_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`python benchmarks/fuzz.py` does the same with 10,000."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import fuzz

    came, wrong = fuzz.fuzz(400, 1, tmp_path)
    assert wrong == []
    assert sum(came.values()) == 400
    for kind in ("agent", "table", "config.toml", "grpo.toml"):
        assert came[f"{kind} refused"] > 50
        assert came[f"{kind} loaded"] > 0
    assert not {"this", "antigravity"} & set(sys.modules)


FORGED: dict[str, Any] = {
    "best": "x",
    "best.mean": None,
    "env_kwargs": 3,
    "config": [],
    "iteration": True,
    "experience": 1,
    "experience.segment": {},
    "experience.segment_steps": 10**30,
    "experience.episodes": 0.5,
}


@pytest.mark.parametrize("name", FORGED)
def test_an_entry_of_another_kind_is_named(name: str, tmp_path: Path) -> None:
    agent = us.PPO("Acrobot-v1", n_envs=1, n_steps=4, policy_kwargs={"net_arch": [4]})
    agent.learn(8)
    tensors, meta = agent.state()
    meta["best"] = {"timesteps": 1, "mean": 2.0}
    *outer, last = name.split(".")
    place = meta[outer[0]] if outer else meta
    place[last] = FORGED[name]
    checkpoint.save_at(tmp_path / "a", tensors, meta)
    with pytest.raises(CheckpointError, match=rf"a has {name} = .*, which takes"):
        us.load(tmp_path / "a")


@pytest.mark.parametrize("text", ["a = " + "[" * 3000 + "]" * 3000, "[a" + ".a" * 3000 + "]\n"])
def test_tables_nested_without_end(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(text)
    with pytest.raises(RunError, match="nested more than 32 deep"):
        RunConfig.read(tmp_path)
    with pytest.raises(ConfigError, match="nested more than 32 deep"):
        language.read(tmp_path / "config.toml")


def test_what_a_file_says_takes_no_memory(tmp_path: Path) -> None:
    """It says that a million million actions are to be replayed, and holds eight."""
    agent = us.PPO("Acrobot-v1", n_envs=1, n_steps=4, policy_kwargs={"net_arch": [4]})
    tensors, meta = agent.learn(8).state()
    meta["experience"]["segment_steps"] = 10**12
    checkpoint.save_at(tmp_path / "a", tensors, meta)
    with pytest.raises(CheckpointError, match=r"expected int64 \[1000000000000, 1\]"):
        us.load(tmp_path / "a")


def test_files_and_headers_beyond_their_bounds_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = checkpoint.save_at(tmp_path / "a", {"w": torch.zeros(2)}, {})
    with monkeypatch.context() as patched:
        patched.setattr(codec, "MAX_HEADER_BYTES", 8)
        with pytest.raises(CheckpointError, match=r"has a header of \d+ bytes; at most 8 are read"):
            checkpoint.read(path)
    for name in codec.MAX_BYTES:
        with monkeypatch.context() as patched:
            patched.setitem(codec.MAX_BYTES, name, 1)
            with pytest.raises(CheckpointError, match=rf"{name} has \d+ bytes; at most 1 are read"):
                checkpoint.read(path)
    assert checkpoint.read(path).meta == {}
