"""The shape of the project: what keeps it small, layered and documented as it grows."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

import upslope

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "upslope"
FILES = sorted(SOURCE.rglob("*.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

LONGEST_FILE = 320
MOST_PUBLIC_NAMES = 100  # of the package and its public modules together


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def public_names() -> list[tuple[str, object]]:
    """Every name a user may rely on: `us.x`, and `us.module.x` for the public modules."""
    found: list[tuple[str, object]] = []
    for name in upslope.__all__:
        value = getattr(upslope, name)
        if name.startswith("__"):
            continue
        found.append((f"upslope.{name}", value))
        if isinstance(value, ModuleType):
            found += [(f"upslope.{name}.{inner}", getattr(value, inner)) for inner in value.__all__]
    return found


# ---- size ----------------------------------------------------------------------------------------
def test_there_are_files():
    assert len(FILES) > 10


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_file_is_short(path):
    lines = len(path.read_text().splitlines())
    assert lines < LONGEST_FILE, (
        f"{name_of(path)} has {lines} lines: split it where it reads better"
    )


def test_public_names_are_few():
    assert len(public_names()) <= MOST_PUBLIC_NAMES


# ---- imports -------------------------------------------------------------------------------------
def test_dependencies_point_downwards():
    linter = Path(sys.executable).with_name("lint-imports")
    run = subprocess.run(
        [linter, "--no-logo", "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_what_is_imported_is_declared():
    """Each distribution named in pyproject.toml has the name of its package, up to the hyphen."""
    extras = PROJECT["optional-dependencies"]
    items = PROJECT["dependencies"] + extras["envpool"] + extras["language"]
    declared = {re.split(r"[><=~!\[; ]", item)[0].replace("-", "_") for item in items}
    allowed = declared | {"upslope"} | set(sys.stdlib_module_names)
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{name_of(path)}:{node.lineno}: imports are absolute"
                names = [node.module or ""]
            else:
                continue
            for name in names:
                assert name.split(".")[0] in allowed, f"{name_of(path)}:{node.lineno}: {name}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_annotations_are_lazy(path):
    text = path.read_text()
    defines = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.AnnAssign)
    if any(isinstance(node, defines) for node in ast.walk(ast.parse(text))):
        assert "from __future__ import annotations" in text


# ---- documentation -------------------------------------------------------------------------------
def undocumented(name: str, value: object) -> list[str]:
    if not callable(value) and not isinstance(value, ModuleType):
        return []  # a constant
    text = (value.__doc__ or "").strip()
    simple = name.rsplit(".", 1)[1]
    missing = [] if text and not text.startswith(f"{simple}(") else [name]  # dataclasses write one
    if isinstance(value, type):
        for inner, member in vars(value).items():
            public = inspect.isfunction(member) and not inner.startswith("_")
            if public and not inspect.getdoc(member):
                missing.append(f"{name}.{inner}")
    return missing


def test_every_public_name_is_documented():
    missing = [gap for name, value in public_names() for gap in undocumented(name, value)]
    assert missing == []


def test_public_modules_list_their_names():
    for name in upslope.__all__:
        value = getattr(upslope, name)
        if isinstance(value, ModuleType):
            assert value.__all__, name
            assert len(set(value.__all__)) == len(value.__all__), name


def test_public_functions_are_annotated():
    for name, value in public_names():
        if inspect.isfunction(value):
            signature = inspect.signature(value)
            bare = [p.name for p in signature.parameters.values() if p.annotation is p.empty]
            assert bare == [], name
            assert signature.return_annotation is not signature.empty, name


def test_every_module_says_what_it_is():
    for path in FILES:
        if path.read_text().strip():
            assert ast.get_docstring(ast.parse(path.read_text())), name_of(path)


# ---- the project does not know whose machine it is on --------------------------------------------
def project_files() -> list[Path]:
    files = [path for path in ROOT.iterdir() if path.is_file()]
    for folder in ("src", "tests", "docs", "examples", "benchmarks", ".ci"):
        files += [path for path in (ROOT / folder).rglob("*") if path.is_file()]
    return [path for path in files if "__pycache__" not in path.parts]


def test_no_source_file_is_ignored_by_git():
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    command = ["git", "check-ignore", "--no-index", "--", *map(name_of, FILES)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.stdout == ""
    assert run.returncode == 1, run.stderr  # 1: none is ignored


def test_no_machine_paths():
    pattern = re.compile(rb"(?<![\w./-])/(?:work|root|home|Users)/[\w.]")
    for path in project_files():
        found = pattern.search(path.read_bytes()) if path.stat().st_size < 2**20 else None
        assert found is None, f"{name_of(path)} names {found.group().decode() if found else ''}"


def test_submodules_import_one_by_one():
    """No module relies on another having been imported first."""
    for path in FILES:
        parts = path.relative_to(SOURCE.parent).with_suffix("").parts
        if parts[-1] == "__main__":
            continue
        importlib.import_module(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
