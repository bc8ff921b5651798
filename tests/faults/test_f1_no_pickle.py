"""F1: a pickle under every file name a loader reads never runs; nothing here could run it."""

from __future__ import annotations

import ast
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import upslope
import upslope.checkpoint as ck
from upslope.checkpoint import codec
from upslope.errors import CheckpointError

pytestmark = pytest.mark.faults

READ = ("state.safetensors", "state.json", "manifest.json")
OTHERS = ("model.pt", "model.zip", "policy.pth", "optimizer.pt", "data.pkl", "state.npz", "a.npy")


class Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


def by_pickle(bomb: Bomb, path: Path) -> None:
    path.write_bytes(pickle.dumps(bomb))


def by_old_pickle(bomb: Bomb, path: Path) -> None:
    path.write_bytes(pickle.dumps(bomb, protocol=0))


def by_torch(bomb: Bomb, path: Path) -> None:
    torch.save(bomb, path)


def by_numpy(bomb: Bomb, path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.array([bomb], dtype=object), allow_pickle=True)


WRITERS = [by_pickle, by_old_pickle, by_torch, by_numpy]
Writer = Callable[[Bomb, Path], None]


@pytest.mark.parametrize("writer", WRITERS)
def test_the_bomb_would_go_off(writer: Writer, tmp_path: Path) -> None:
    marker, path = tmp_path / "marker", tmp_path / "bomb"
    writer(Bomb(marker), path)
    assert not marker.exists()
    if writer is by_torch:
        torch.load(path, weights_only=False)
    elif writer is by_numpy:
        np.load(path, allow_pickle=True)
    else:
        pickle.loads(path.read_bytes())
    assert marker.exists()


@pytest.mark.parametrize("name", READ)
@pytest.mark.parametrize("hashes", ["as they were", "made to fit"])
@pytest.mark.parametrize("writer", WRITERS)
def test_no_bomb_goes_off_under_a_name_that_is_read(
    writer: Writer, hashes: str, name: str, tmp_path: Path
) -> None:
    marker = tmp_path / "marker"
    good, bad = (ck.write(tmp_path / "c", f"step-{i}", {"a": torch.zeros(2)}, {}) for i in (1, 2))
    writer(Bomb(marker), bad / name)
    if hashes == "made to fit" and name != "manifest.json":
        body = {
            "format": codec.FORMAT_NAME,
            "version": codec.FORMAT_VERSION,
            "files": codec._describe({file: bad.joinpath(file).read_bytes() for file in READ}),
        }
        bad.joinpath("manifest.json").write_bytes(codec._manifest_text(body))
    with pytest.raises(CheckpointError, match=f"step-2 is refused: {name}"):
        ck.read(bad)
    assert ck.newest_valid(tmp_path / "c").path == good
    ck.write(tmp_path / "c", "step-2", {}, {})
    assert not marker.exists()


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("writer", WRITERS)
def test_no_bomb_goes_off_beside_them_or_in_place_of_a_folder(
    writer: Writer, name: str, tmp_path: Path
) -> None:
    marker = tmp_path / "marker"
    path = ck.save_at(tmp_path / "agent", {"a": torch.zeros(2)}, {})
    writer(Bomb(marker), path / name)
    writer(Bomb(marker), tmp_path / name)
    for place in (path, tmp_path / name):
        with pytest.raises(CheckpointError, match="is refused: it"):
            ck.read(place)
        with pytest.raises(CheckpointError, match="is not a checkpoint"):
            ck.save_at(place, {}, {})
    assert not marker.exists()


# ---- nothing in the package unpickles or evaluates -----------------------------------------------

FORBIDDEN_MODULES = {
    "pickle",
    "cPickle",
    "_pickle",
    "marshal",
    "shelve",
    "dill",
    "cloudpickle",
    "joblib",
    "jsonpickle",
}
FORBIDDEN_CALLS = {
    "eval",
    "exec",
    "builtins.eval",
    "builtins.exec",
    "torch.load",
    "torch.jit.load",
    "torch.hub.load",
    "torch.serialization.load",
    "torch.package.PackageImporter",
    "pandas.read_pickle",
    "yaml.load",
    "yaml.unsafe_load",
}


def violations(source: str) -> Iterator[str]:
    """Yield what in a file could unpickle or evaluate, with its line."""
    tree = ast.parse(source)
    full_names: dict[str, str] = {}  # what a name in this file was imported as
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                full_names[alias.asname or alias.name.split(".")[0]] = (
                    alias.name if alias.asname else alias.name.split(".")[0]
                )
                if alias.name.split(".")[0] in FORBIDDEN_MODULES:
                    yield f"{node.lineno}: import {alias.name}"
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                full_names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
            if node.module.split(".")[0] in FORBIDDEN_MODULES:
                yield f"{node.lineno}: from {node.module} import"
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute):
            first, *rest = ast.unparse(node).split(".")
            name = ".".join([full_names.get(first, first), *rest])
            if name in FORBIDDEN_CALLS:
                yield f"{node.lineno}: {name}"
        if isinstance(node, ast.Call):
            for keyword in node.keywords:
                allows = not (isinstance(keyword.value, ast.Constant) and not keyword.value.value)
                if keyword.arg == "allow_pickle" and allows:
                    yield f"{node.lineno}: allow_pickle"


@pytest.mark.parametrize(
    "source",
    [
        "eval('1')",
        "exec('1')",
        "run = eval",
        "import builtins\nbuiltins.exec('1')",
        "import torch\ntorch.load(p)",
        "import torch\ntorch.load(p, weights_only=True)",
        "import torch as t\nt.load(p)",
        "import torch\nf = torch.load",
        "from torch import load\nload(p)",
        "from torch import load as fetch\nfetch(p)",
        "from torch import hub\nhub.load(p)",
        "import torch.jit\ntorch.jit.load(p)",
        "import pickle",
        "import pickle as p",
        "from pickle import loads",
        "def f():\n    import dill",
        "import marshal",
        "from cloudpickle.cloudpickle import dumps",
        "import numpy as np\nnp.load(p, allow_pickle=True)",
        "import numpy as np\nnp.load(p, allow_pickle=flag)",
        "import yaml\nyaml.load(p)",
    ],
)
def test_the_check_finds(source: str) -> None:
    assert list(violations(source))


@pytest.mark.parametrize(
    "source",
    [
        "policy.eval()",
        "self.exec('a')",
        "import re\nre.compile('eval(1)')",
        "import torch\nmodule.load(p)\ntorch.save(a, p)",
        "def f():\n    'never torch.load or eval(x), import pickle'",
        "agent.load(p)\ntorch_load = 1\nevaluate(policy)",
        "import numpy as np\nnp.load(p)\nnp.load(p, allow_pickle=False)",
        "import json\njson.load(f)",
        "import tomllib\ntomllib.load(f)",
    ],
)
def test_the_check_does_not_trip_over(source: str) -> None:
    assert list(violations(source)) == []


def test_nothing_in_the_package_unpickles_or_evaluates() -> None:
    root = Path(
        upslope.__file__
    ).parent  # an editable install has a second place, of the native part
    files = sorted(root.rglob("*.py"))
    assert root / "checkpoint" / "codec.py" in files
    found = [f"{file}:{line}" for file in files for line in violations(file.read_text("utf-8"))]
    assert found == []
