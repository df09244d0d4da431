"""The table of faults answered, from the contract tests: python .docs/faults.py."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]


class Fault(NamedTuple):
    """One fault: what a user meets and gets, and the test of it."""

    sentence: str
    file: str
    test: str


def faults(root: Path = ROOT) -> list[Fault]:
    """List the faults, file by file, in the order of the tests."""
    return [
        Fault(_sentence(node), path.relative_to(root).as_posix(), node.name)
        for path in sorted(root.glob("tests/faults/test_*.py"))
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]


def _sentence(test: ast.FunctionDef) -> str:
    """Take the first line of the docstring, or the name in words."""
    docstring = ast.get_docstring(test)
    if docstring:
        return docstring.splitlines()[0]
    return test.name.removeprefix("test_").replace("_", " ").capitalize() + "."


def table(found: list[Fault]) -> str:
    """Write the faults as a table, with their number above it."""
    rows = [
        f"| {sentence.replace('|', chr(92) + '|')} | `{Path(file).stem}::{test}` |"
        for sentence, file, test in found
    ]
    head = f"{len(found)} faults, each with its test."
    return "\n".join([head, "", "| a user meets, and gets | test |", "|---|---|", *rows])


if __name__ == "__main__":
    print(table(faults()))  # noqa: T201 - a script
