"""The pages are built without a warning, with every public name and every fault answered."""

from __future__ import annotations

import html
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import dra_scvi

if TYPE_CHECKING:
    from types import ModuleType

ROOT = Path(__file__).parents[1]


def generator() -> Any:
    """Import what makes the table of faults, which lies beside the pages."""
    spec = importlib.util.spec_from_file_location("faults", ROOT / ".docs" / "faults.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the pages, built from a copy as the build leaves files beside its sources."""
    for module in ("sphinx", "myst_nb", "furo", "sphinx_copybutton"):
        pytest.importorskip(module, reason='the pages take pip install ".[docs]"')
    folder = tmp_path_factory.mktemp("docs")
    unwanted = shutil.ignore_patterns("build", "tutorials")
    shutil.copytree(ROOT / ".docs", folder / ".docs", ignore=unwanted)
    shutil.copytree(ROOT / "tutorials", folder / "tutorials")
    shutil.copytree(ROOT / "tests", folder / "tests", ignore=shutil.ignore_patterns("results"))
    shutil.copytree(ROOT / "dra_scvi", folder / "dra_scvi")  # the tree of rooms is read off it
    shutil.copy(ROOT / "CHANGELOG.md", folder)
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", ".docs", "site"]
    environment = {name: v for name, v in os.environ.items() if name != "DRA_SCVI_DOCS_ONLINE"}
    result = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return folder / "site"


def public(module: ModuleType) -> list[str]:
    return [f"{module.__name__}.{name}" for name in module.__all__]


def test_every_public_name_has_an_entry(site: Path) -> None:
    pages = "".join(path.read_text() for path in (site / "api").glob("*.html"))
    names = [f"dra_scvi.{name}" for name in dra_scvi.__all__]
    for part in ("benchmark", "datasets", "metrics", "pl", "report", "tl"):
        names += public(getattr(dra_scvi, part))
    modules = {"dra_scvi.tl", "dra_scvi.presets"}
    missing = [name for name in names if f'id="{name}"' not in pages and name not in modules]
    modules = [f'id="module-{name}"' for name in missing]
    assert all(entry in pages for entry in modules), missing


def test_tutorials_are_shown_with_their_figures(site: Path) -> None:
    for path in (ROOT / "tutorials").glob("*.ipynb"):
        page = (site / "tutorials" / f"{path.stem}.html").read_text()
        assert "<img" in page, path.stem


def test_every_fault_is_in_the_page(site: Path) -> None:
    page = html.unescape((site / "reliability.html").read_text())
    found = generator().faults()
    assert f"{len(found)} faults" in page
    for fault in found:
        assert f"{Path(fault.file).stem}::{fault.test}" in page


def test_readme_counts_the_faults_of_the_contract() -> None:
    number = len(generator().faults())
    assert number >= 52
    told = re.search(r"(\d+) \[faults\]", (ROOT / "README.md").read_text())
    assert told is not None
    assert int(told.group(1)) == number, f"README.md: write {number} [faults]"


def test_faults_are_told_by_docstring_or_name(tmp_path: Path) -> None:
    folder = tmp_path / "tests" / "faults"
    folder.mkdir(parents=True)
    (folder / "test_b.py").write_text(
        "def test_nan_batch():\n    pass\n\ndef cells():\n    pass\n"
    )
    (folder / "helpers.py").write_text("def test_me():\n    pass\n")
    text = (
        "def test_a(x):\n    'A | is\\n\\nmore'\n\nclass A:\n    def test_c(self):\n        pass\n"
    )
    (tmp_path / "tests" / "faults" / "test_contract.py").write_text(text)
    found = generator().faults(tmp_path)
    assert [tuple(fault) for fault in found] == [
        ("Nan batch.", "tests/faults/test_b.py", "test_nan_batch"),
        ("A | is", "tests/faults/test_contract.py", "test_a"),
    ]
    table = generator().table(found)
    assert table.startswith("2 faults")
    assert table.count("\n") == 5
    assert "| A \\| is | `test_contract::test_a` |" in table
