"""The public names, and what `import upslope` costs."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import upslope

ROOT = Path(__file__).resolve().parents[1]

# The contract with everyone who types `us.`; a new name is added here on purpose.
PUBLIC = {
    "ActorCritic",
    "DQN",
    "DPO",
    "GRPO",
    "PPO",
    "REINFORCE",
    "QLearning",
    "__version__",
    "envs",
    "errors",
    "evaluate_policy",
    "exact",
    "gradient",
    "load",
    "losses",
    "returns",
}


def fresh_interpreter(code: str) -> str:
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return run.stdout.strip()


def test_public_names_are_the_agreed_ones():
    assert set(upslope.__all__) == PUBLIC
    assert dir(upslope) == sorted(PUBLIC)


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_public_name_resolves(name):
    value = getattr(upslope, name)
    if name in upslope._HOME:
        assert value is getattr(importlib.import_module(upslope._HOME[name]), name)
    elif name != "__version__":
        assert value is sys.modules[f"upslope.{name}"]


@pytest.mark.slow
def test_each_name_resolves_in_a_fresh_interpreter():
    # In this process an earlier import may have put a submodule into the package already.
    names = sorted(PUBLIC)
    code = f"import upslope\nfor n in {names}: getattr(upslope, n)\nprint('ok')"
    assert fresh_interpreter(code) == "ok"


def test_unknown_name_is_an_attribute_error_with_a_suggestion():
    with pytest.raises(AttributeError, match="module 'upslope' has no attribute 'PP0'"):
        upslope.PP0  # noqa: B018
    code = "import upslope\nupslope.evaluate_polcy"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "Did you mean: 'evaluate_policy'?" in run.stderr  # Python's own, from __dir__


@pytest.mark.slow
def test_submodules_outside_the_public_names_still_import():
    # `from package import x` asks the package's __getattr__ before it looks for a submodule.
    assert (
        fresh_interpreter("from upslope import shapes; print(shapes.__name__)") == "upslope.shapes"
    )


def test_import_is_light():
    code = """
import sys, time
before = set(sys.modules)
start = time.process_time()
import upslope
seconds = time.process_time() - start
new = {name.split(".")[0] for name in set(sys.modules) - before}
print(",".join(sorted(new - set(sys.stdlib_module_names))), seconds)
"""
    runs = [fresh_interpreter(code).split() for _ in range(5)]
    assert {packages for packages, _ in runs} == {"upslope"}
    assert min(float(seconds) for _, seconds in runs) < 0.020


def test_version_is_the_same_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    changelog = (ROOT / "CHANGELOG.md").read_text()
    newest = re.search(r"^## \[(\d+\.\d+\.\d+)\]", changelog, re.MULTILINE)
    assert newest is not None
    assert upslope.__version__ == project["version"] == newest.group(1)


def test_types_are_shipped():
    assert (Path(upslope.__file__).parent / "py.typed").is_file()
