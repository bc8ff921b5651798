"""The README's table of promises is what the tests say."""

from __future__ import annotations

from tests.faults import promises


def test_the_table_in_the_readme_is_current():
    text = promises.README.read_text("utf-8")
    assert promises.with_table(text) == text, "run python tests/faults/promises.py"


def test_rows_of_every_letter_are_in_it():
    rows = promises.table()
    assert all(row in rows for row in ("A1", "B1", "C1", "D1", "E1", "F1", "G1"))
