"""train --report writes the page beside cells that hold the clusters which it shows."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import anndata
import pytest

from tests.helpers import cells, invoke

if TYPE_CHECKING:
    from pathlib import Path

    from click.testing import Result

QUICK = ("--max-epochs", 2, "--accelerator", "cpu", "--threads", 1, "--resolution", 0.5)
KEYS = ("--label-key", "cell_type", "--batch-key", "batch")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("input") / "<b>cells.h5ad"
    cells().write_h5ad(path)
    return path


def train(source: Path, folder: Path, *options: object) -> Result:
    names = ("--output", folder / "out.h5ad", "--report", folder / "report.html")
    return invoke("train", source, *names, *KEYS, *options, *QUICK)


@pytest.fixture(scope="module")
def folder(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with what a command wrote."""
    folder = tmp_path_factory.mktemp("out")
    result = train(source, folder, "--json", folder / "out.json")
    assert result.exit_code == 0, result.stderr
    assert f"wrote {folder / 'report.html'}" in result.stderr
    return folder


def test_page_shows_what_was_written(folder: Path) -> None:
    page = (folder / "report.html").read_text()
    figures = json.loads((folder / "out.json").read_text())
    adata = anndata.read_h5ad(folder / "out.h5ad")
    assert "X_umap" in adata.obsm
    assert "<h1>DR-A: &lt;b&gt;cells.h5ad</h1>" in page
    assert "Leiden at resolution 0.5" in page
    for name, size in adata.obs["leiden"].value_counts().items():
        assert f'<tr><th scope="row">{name}</th><td>{size} (' in page
    for method in ("kmeans", "leiden"):
        assert f"<td>{figures[method]['nmi']:.3f}</td><td>{figures[method]['ari']:.3f}" in page
    assert figures["clusters"]["n_clusters"] == adata.obs["leiden"].nunique()
    for value in ("n_latent", adata.uns["dra"]["genes"]["sha256"]):
        assert value in page
    assert page.count("<img ") == 6


def test_same_page_of_counts_that_stay_in_their_file(
    source: Path, folder: Path, tmp_path: Path
) -> None:
    result = train(source, tmp_path, "--out-of-core")
    assert result.exit_code == 0, result.stderr
    assert (tmp_path / "report.html").read_bytes() == (folder / "report.html").read_bytes()


def test_page_of_the_released_program(source: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    preset = ("--preset", "published", "--n-latent", 2, "--batch-size", 32)
    output = ("--output", tmp_path / "out.h5ad", "--label-key", "cell_type")
    result = invoke("train", source, *output, *preset, "--report", page, *QUICK)
    assert result.exit_code == 0, result.stderr
    text = page.read_text()
    assert "k-means and Leiden are those of the test cells alone" in text
    assert "<h3>Losses</h3>" in text
    assert text.count("<img ") == 3
