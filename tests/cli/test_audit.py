"""`upslope audit`: the table, the files, the exit status, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from upslope.audit import audit
from upslope.audit.measure import measure
from upslope.audit.picture import split
from upslope.audit.table import markdown, summary, tables
from upslope.cli import main as cli
from upslope.gradient import LeaveOneOut

Captured = pytest.CaptureFixture[str]
ROOT = Path(__file__).parents[2]
QUICK = ("audit", "--problem", "bernoulli", "--estimates", "10000")


def code_of(*arguments: str) -> int | str | None:
    with pytest.raises(SystemExit) as ended:
        cli.main(list(arguments))
    return ended.value.code


def row(scale: float = 1.0, estimator: str = "score", problem: str = "coin", **options):
    noise = torch.tensor([[-0.1], [0.1]] * 50, dtype=torch.float64)
    exact = torch.ones(1, dtype=torch.float64)
    return measure(noise + scale, exact, problem=problem, estimator=estimator, **options)


def test_it_prints_a_table_and_ends_well(capsys: Captured) -> None:
    assert code_of(*QUICK) == 0
    out, err = capsys.readouterr()
    assert not err
    assert "\x1b" not in out
    assert "bernoulli: σ(0)" in out
    assert "normal:" not in out
    for found in audit(problem="bernoulli", estimates=10_000):
        assert f" {found.estimator} " in out
    assert "10 of 10 rows that declare no bias show none" in out


def test_it_ends_with_1_where_a_declaration_falls(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LeaveOneOut, "__call__", lambda self, f, lp: f.mean(0).expand_as(f))
    assert code_of(*QUICK) == 1
    out = capsys.readouterr().out
    assert "NOT AS DECLARED" in out
    assert "not as declared: score, leave-one-out (bernoulli" in out
    assert "declares no bias, and is" in out


@pytest.mark.slow
def test_files(tmp_path: Path, capsys: Captured) -> None:
    assert code_of(*QUICK, "--output", str(tmp_path / "new" / "folder")) == 0
    folder = tmp_path / "new" / "folder"
    assert sorted(path.name for path in folder.iterdir()) == ["audit.md", "audit.png"]
    text = (folder / "audit.md").read_text()
    assert text.startswith("# upslope audit\n\n10 of 10 rows")
    assert "\n## bernoulli" in text
    assert "| score, leave-one-out | 4 |" in text
    assert (folder / "audit.png").read_bytes().startswith(b"\x89PNG")
    out = capsys.readouterr().out
    assert f"table: {folder / 'audit.md'}" in out
    assert f"picture: {folder / 'audit.png'}" in out
    other = [str(tmp_path / name) for name in ("t.md", "p.svg")]
    assert code_of(*QUICK, "--markdown", other[0], "--picture", other[1]) == 0
    assert Path(other[0]).read_text() == text
    assert "<svg" in Path(other[1]).read_text()


@pytest.mark.parametrize(
    ("options", "code", "sentence"),
    [
        (["--problem", "corridr"], 2, "problem takes one of normal, .*did you mean 'corridor'"),
        (["--estimates", "5"], 2, "estimates takes a whole number from 10000, got 5"),
        (["--picture", "audit.bmp"], 2, r"ends in \.png, \.svg or \.pdf: audit\.bmp"),
        (["--outptu", "here"], 2, r"no option --outptu \(did you mean 'output'\?\)"),
        (["everything"], 2, "audit takes options only"),
        (["--markdown", "."], 2, r"\. is a folder"),
        (["--output", "/dev/null/x"], 1, "/dev/null/x.* cannot be written"),
    ],
)
def test_refusals_come_before_the_work(
    options: list[str], code: int, sentence: str, capsys: Captured
) -> None:
    assert code_of("audit", *options) == code
    out, err = capsys.readouterr()
    assert not out
    assert re.search(sentence, err), err
    assert err.count("\n") == 1


def test_help_names_the_way_for_an_estimator_of_ones_own(capsys: Captured) -> None:
    assert code_of("audit", "--help") == 0
    assert "check_unbiased" in capsys.readouterr().out


# ---------------------------------------------------------------- tables and pictures
def test_sentences() -> None:
    rows = [row(), row(1.3, "wrong"), row(0.5, "short", bias="shrinks", declared_scale=0.7)]
    first, second, third = summary(rows)
    assert first.startswith("1 of 2 rows that declare no bias")
    assert second.startswith("not as declared: wrong (coin) declares no bias, and is 29.8 standard")
    assert "1.3 ± 0.01 times the gradient, cosine 1" in second
    assert "short (coin) declares 0.7 times the gradient" in third


def test_markdown_by_hand() -> None:
    text = markdown([row(), row(0.5, "other", "dice | cup", bias="some", declared_scale=None)])
    head, rule, line = text.splitlines()[6:9]
    assert head.count("|") == rule.count("|") == line.count("|") == 11
    assert line == (
        "| score | 1 | 0.0 | 1.000 ± 0.010 | 1.0000 | 0.0101 |  | 99 | 0.0101 | unbiased |"
    )
    assert "## dice | cup" in text
    assert "biased as declared |" in text
    assert [table.title for table in tables([row(), row(problem="b"), row(problem="b")])] == [
        "coin",
        "b",
    ]


def test_columns_of_the_picture_are_balanced() -> None:
    problems = [(str(k), [row()] * k) for k in (1, 2, 3, 20)]
    assert [len(part) for part in split(problems)] == [3, 1]
    assert [len(part) for part in split(problems[:1])] == [1]


# ---------------------------------------------------------------- the documentation
@pytest.mark.docs
def test_the_documented_table_is_current() -> None:
    """The same problems, estimators and exact variances; the noise is not compared."""

    def names(text: str) -> list[tuple[str, ...]]:
        found: list[tuple[str, ...]] = []
        for line in text.splitlines():
            if line.startswith("## "):
                found.append((line,))
            elif line.startswith("| "):
                cells = [cell.strip() for cell in line.strip("|").split("|")]
                found.append((*cells[:2], cells[6]))
        return found

    written = (ROOT / "docs" / "audit-table.md").read_text()
    assert names(written) == names(markdown(audit(estimates=10_000)))
    assert "NOT AS DECLARED" not in written
