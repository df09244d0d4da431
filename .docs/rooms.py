"""The tree of the package: rooms from the ground up, what each owns, and how large it is."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).resolve().parents[1] / "dra_scvi"

# A room may use those above it in this list, never those below.
ROOMS = (
    "_exceptions",
    "_compat",
    "_docstrings",
    "_argument_kinds",
    "_threads",
    "_kernels",
    "_module",
    "_data",
    "_outputs",
    "_inputs",
    "_training",
    "_folder",
    "_model",
    "presets",
    "_published",
    "datasets",
    "metrics",
    "_labels",
    "_clusters",
    "tl",
    "benchmark",
    "pl",
    "report",
    "demo",
    "cli",
)


class File(NamedTuple):
    """A file of the package: its place, what it says that it owns, its lines, what it uses."""

    path: Path
    sentence: str
    n_lines: int
    uses: frozenset[str]

    @property
    def module(self) -> str:
        """Dotted name, without the package's."""
        parts = self.path.relative_to(PACKAGE).with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    @property
    def room(self) -> str:
        """First part of the name."""
        return self.module.split(".")[0]


def files() -> list[File]:
    """Read the package; what is imported for type checkers alone does not count."""
    return [_read(path) for path in sorted(PACKAGE.rglob("*.py"))]


def _read(path: Path) -> File:
    text = path.read_text()
    tree = ast.parse(text)
    sentence = (ast.get_docstring(tree) or "").split("\n\n")[0].replace("\n", " ")
    return File(path, sentence, text.count("\n"), frozenset(_imports(tree)))


def _imports(tree: ast.AST) -> set[str]:
    """Names of the package's modules that a tree imports, those in functions included."""
    found: set[str] = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.ImportFrom) and node.module is not None and not node.level:
            if node.module == "dra_scvi":
                found |= {alias.name for alias in node.names}
            elif node.module.startswith("dra_scvi."):
                module = node.module.removeprefix("dra_scvi.")
                found |= {module} | {f"{module}.{alias.name}" for alias in node.names}
        found |= _imports(node)
    return found


def upward(found: list[File]) -> list[str]:
    """List imports from a room below in the list."""
    place = {room: number for number, room in enumerate(ROOMS)}
    return [
        f"{file.module} uses {name}"
        for file in found
        for name in sorted(file.uses)
        if file.room in place
        and name.split(".")[0] in place
        and place[name.split(".")[0]] > place[file.room]
    ]


def classes(found: list[File]) -> dict[str, int]:
    """Lines of each class."""
    return {
        f"{file.module}.{node.name}": node.end_lineno - node.lineno + 1
        for file in found
        for node in ast.walk(ast.parse(file.path.read_text()))
        if isinstance(node, ast.ClassDef) and node.end_lineno is not None
    }


def table(found: list[File]) -> str:
    """Write the rooms as a table, the ground first."""
    rows = []
    for room in ROOMS:
        inside = [file for file in found if file.room == room]
        head = next((file for file in inside if file.module == room), inside[0])
        rows.append(
            f"| `{room}` | {head.sentence} | {len(inside)} | {sum(f.n_lines for f in inside)} |"
        )
    total = f"{len(found)} files, {sum(file.n_lines for file in found)} lines."
    return "\n".join([total, "", "| room | owns | files | lines |", "|---|---|---|---|", *rows])


def tree(found: list[File]) -> str:
    """Write what each file owns, room by room."""
    lines = []
    for room in ROOMS:
        inside = sorted((file for file in found if file.room == room), key=lambda f: f.module)
        lines += [f"- `{file.path.relative_to(PACKAGE)}`: {file.sentence}" for file in inside]
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(files()), tree(files()), sep="\n\n")  # noqa: T201 - a script
