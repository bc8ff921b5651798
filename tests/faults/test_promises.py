"""The README's table of promises is what the tests say."""

from __future__ import annotations

from tests.faults import promises


def test_the_table_in_the_readme_is_current():
    text = promises.README.read_text("utf-8")
    assert promises.with_table(text) == text, "run python tests/faults/promises.py"


def test_every_letter_has_its_promises():
    rows = promises.table()
    assert all(f"| {letter}" in rows for letter in "ABCDEFG" if letter != "D")
    assert "D1" in rows
