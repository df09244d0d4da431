"""The API reference is built without a warning, and has every public name."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import dra_scvi

if TYPE_CHECKING:
    from types import ModuleType

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the pages, built from a copy as the build leaves files beside its sources."""
    for module in ("sphinx", "myst_nb", "furo"):
        pytest.importorskip(module, reason='the API reference takes pip install ".[docs]"')
    folder = tmp_path_factory.mktemp("docs")
    unwanted = shutil.ignore_patterns("build", "tutorials")
    shutil.copytree(ROOT / ".docs", folder / ".docs", ignore=unwanted)
    shutil.copytree(ROOT / "tutorials", folder / "tutorials")
    for name in ("README.md", "CHANGELOG.md"):
        shutil.copy(ROOT / name, folder)
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
    for part in ("benchmark", "datasets", "metrics", "pl", "tl"):
        names += public(getattr(dra_scvi, part))
    modules = {"dra_scvi.tl", "dra_scvi.presets"}
    missing = [name for name in names if f'id="{name}"' not in pages and name not in modules]
    modules = [f'id="module-{name}"' for name in missing]
    assert all(entry in pages for entry in modules), missing


def test_tutorials_are_shown_with_their_figures(site: Path) -> None:
    for path in (ROOT / "tutorials").glob("*.ipynb"):
        page = (site / "tutorials" / f"{path.stem}.html").read_text()
        assert "<img" in page, path.stem
