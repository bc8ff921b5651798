"""The table of promises in the README, made from the first sentences of the tests that hold them.

python tests/faults/promises.py      writes it
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

HERE = Path(__file__).parent
README = HERE.parents[1] / "README.md"
BEGIN, END = "<!-- promises: made by tests/faults/promises.py -->", "<!-- end of promises -->"
SENTENCE = re.compile(r"(?P<rows>[A-G]\d[^:]*): (?P<promise>.*)", re.DOTALL)


def table() -> str:
    """Return the table: which rows a file of tests holds, what they promise, how many tests."""
    lines = ["| | promise | tests |", "| --- | --- | --- |"]
    for path in sorted(HERE.glob("test_*.py")):
        tree = ast.parse(path.read_text("utf-8"))
        match = SENTENCE.match((ast.get_docstring(tree) or "").split("\n\n")[0])
        if match is None:
            continue
        count = sum(
            isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
            for node in ast.walk(tree)
        )
        promise = " ".join(match["promise"].split()).rstrip(".")
        promise = promise[0].upper() + promise[1:]
        link = f"[{count}](tests/faults/{path.name})"
        lines.append(f"| {match['rows']} | {promise} | {link} |")
    return "\n".join(lines)


def with_table(text: str) -> str:
    """Return the README's text with the table between its marks."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{table()}\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    README.write_text(with_table(README.read_text("utf-8")), "utf-8")
