"""What the pages of the documentation show is run, and prints what the page says."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
PAGES = (
    *("actor_critic.md", "continuing.md", "dqn.md", "exact.md", "gradient.md", "group.md"),
    *("language.md", "off_policy.md", "ppo.md", "preference.md", "q_learning.md"),
    *("reinforce.md", "traces.md"),
)
pytestmark = pytest.mark.docs


def blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES)
def test_a_page_prints_what_it_says(page):
    names: dict[str, object] = {}
    promises = 0
    for code in blocks(page):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, page, "exec"), names)  # one namespace, from top to bottom
        promised = re.findall(r"^print\(.*\)  # (.*)$", code, re.MULTILINE)
        assert printed.getvalue().splitlines() == promised
        promises += len(promised)
    assert promises >= 3


@pytest.mark.parametrize("page", sorted(path.name for path in DOCS.glob("*.md")))
def test_links_lead_somewhere(page):
    text = (DOCS / page).read_text()
    targets = re.findall(r"(?:\]\(|src=\")(?!https?:|#)([^)\"#]+)", text)
    missing = [target for target in targets if not (DOCS / target).exists()]
    assert missing == []


def table(page: Path) -> list[list[str]]:
    """The first seven columns of the rows of a learning table."""
    lines = re.findall(
        r"^\| (?:q_learning|dqn|reinforce|actor_critic|ppo) \|.*$", page.read_text(), re.M
    )
    return [[cell.strip() for cell in line.strip("|").split("|")][:7] for line in lines]


def test_the_readme_has_the_learning_table_that_was_measured():
    measured = table(DOCS.parent / "benchmarks" / "results" / "learning.md")
    assert len(measured) > 20
    assert table(DOCS.parent / "README.md") == measured
