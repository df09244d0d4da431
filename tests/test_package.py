"""The package as a whole: one version, layers without circles, no habits that hide faults."""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import dra_scvi

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "dra_scvi"
FILES = sorted(PACKAGE.glob("*.py"))


def imports(path: Path) -> list[tuple[str, bool]]:
    """Modules that a file imports, and whether for type checking only."""
    found = []
    tree = ast.parse(path.read_text())
    typing_only = {
        id(node)
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and ast.unparse(branch.test) == "TYPE_CHECKING"
        for node in ast.walk(branch)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
            if node.module == "dra_scvi":
                names = [f"dra_scvi.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found += [(name, id(node) in typing_only) for name in names]
    return found


def test_version_is_that_of_the_metadata_and_heads_the_changelog() -> None:
    assert dra_scvi.__version__ == version("dra_scvi")
    heads = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    released = [head for head in heads if head != "Unreleased"]
    assert released[0] == dra_scvi.__version__
    assert "Unreleased" not in heads[1:]  # what comes next stands above what was released


def test_every_public_name_is_there_and_in_the_pages() -> None:
    pages = "".join(path.read_text() for path in (ROOT / ".docs" / "api").glob("*.md"))
    for name in dra_scvi.__all__:
        assert getattr(dra_scvi, name) is not None
        assert name in pages, name


def test_imports_have_no_circle() -> None:
    names = {path.stem for path in FILES} - {"__init__"}
    graph = {
        path.stem: {
            module.removeprefix("dra_scvi.").split(".")[0]
            for module, typing_only in imports(path)
            if module.startswith("dra_scvi.") and not typing_only
        }
        & names
        for path in FILES
    }
    tuple(graphlib.TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_private_parts_of_scvi_tools_are_imported_in_one_file(path: Path) -> None:
    private = [
        module
        for module, _ in imports(path)
        if module.startswith("scvi.") and any(p.startswith("_") for p in module.split("."))
    ]
    assert path.stem == "_compat" or not private


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_files_say_what_they_own_and_neither_print_nor_assert(path: Path) -> None:
    tree = ast.parse(path.read_text())
    docstring = ast.get_docstring(tree)
    assert docstring
    assert docstring.splitlines()[0].endswith((".", "?"))
    for node in ast.walk(tree):
        assert not isinstance(node, ast.Assert), f"line {node.lineno}: assert is gone under -O"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "print", f"line {node.lineno}"
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"line {node.lineno}: bare except"


IMPORT = """
import logging, random, signal, sys
import lightning, numpy as np, scanpy, torch
import scvi, scvi.hub, scvi.model

def state():
    loggers = [logging.getLogger(name) for name in (None, *logging.root.manager.loggerDict)]
    return {
        "handlers": [(log.name, log.level, log.handlers) for log in loggers if log.handlers],
        "random": (random.getstate(), np.random.get_state()[1].tolist()),
        "torch": (torch.get_rng_state().tolist(), torch.get_num_threads()),
        "backends": (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic),
        "validate": torch.distributions.Distribution._validate_args,
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        "seed": scvi.settings.seed,
        "streams": (sys.stdout, sys.stderr),
    }

before = state()
import dra_scvi, dra_scvi.cli
for name in dra_scvi.__all__:
    getattr(dra_scvi, name)
after = state()
assert [key for key in before if before[key] != after[key]] == []
"""


@pytest.mark.slow
def test_importing_sets_nothing_and_says_nothing() -> None:
    result = subprocess.run(
        [sys.executable, "-c", IMPORT], capture_output=True, text=True, timeout=300, check=False
    )
    assert (result.returncode, result.stdout) == (0, ""), result.stderr


HEAVY = {
    *("anndata", "lightning", "matplotlib", "numba", "numpy", "pandas", "rich", "scanpy"),
    *("scib_metrics", "scipy", "scvi", "sklearn", "torch", "umap"),
}
QUICKLY = """
import sys
try:
    {code}
except SystemExit as end:
    print(end.code, end=" ")
print(*sorted({heavy} & set(sys.modules)))
"""


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        pytest.param("import dra_scvi; dra_scvi.__version__; dir(dra_scvi)", "", id="import"),
        pytest.param("from dra_scvi import InvalidCountsError", "", id="an error"),
        pytest.param("program(['--help'])", "0", id="--help"),
        pytest.param("program(['train', '--help'])", "0", id="train --help"),
        pytest.param("program(['--version'])", "0", id="--version"),
        pytest.param("program(['train', 'a.h5ad', '-o', 'a.txt'])", "2", id="an ending"),
        pytest.param("program(['train', '--nope'])", "2", id="an option"),
        pytest.param("program(['info', 'nowhere'])", "66", id="info of nothing"),
    ],
)
def test_what_needs_no_library_imports_none(code: str, expected: str, tmp_path: Path) -> None:
    """Libraries take seconds to import: not for a name, help, or a word that was mistyped."""
    if code.startswith("program"):
        code = f"from dra_scvi.cli import program; {code}"
    code = QUICKLY.format(code=code, heavy=HEAVY)
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert result.stdout.splitlines()[-1].split() == expected.split(), result.stderr


@pytest.mark.slow
def test_models_import_nothing_heavy_beside_scvi_tools() -> None:
    code = (
        "import sys, scvi.model; before = set(sys.modules); from dra_scvi import DRA, PublishedDRA"
        "; print(*sorted({name.split('.')[0] for name in set(sys.modules) - before}))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300
    )
    new = set(result.stdout.split()) - {"dra_scvi"}
    assert not new & (HEAVY - {"numba", "rich"}), new
