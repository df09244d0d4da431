"""Faults of libraries that a fresh install brings along, and that we keep from our users."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from anndata import AnnData
from click.testing import CliRunner

from dra_scvi import benchmark, metrics, tl
from dra_scvi.cli import program
from tests.helpers import cells

if TYPE_CHECKING:
    from pathlib import Path

N_MANY = 9_000  # above 8,192 scanpy finds neighbours with pynndescent


# -- neighbours of many cells --------------------------------------------------------------------


@pytest.mark.slow
def test_neighbours_of_more_than_8192_cells() -> None:
    """With 9,000 cells `sc.pp.neighbors`, `sc.tl.umap`, Leiden and `benchmark` work.

    In one test: what finds the neighbours is compiled anew in each process, in half a minute.
    """
    rng = np.random.default_rng(0)
    group = np.arange(N_MANY) % 4
    points = (rng.normal(0, 20, (4, 4))[group] + rng.normal(size=(N_MANY, 4))).astype(np.float32)

    adata = AnnData(rng.poisson(1.0, (N_MANY, 8)).astype(np.float32) + 1)
    adata.obsm["X_dra"] = points
    adata.obs["type"] = pd.Categorical.from_codes(group, list("abcd"))
    sc.pp.neighbors(adata, use_rep="X_dra")
    sc.tl.umap(adata, maxiter=2, init_pos="random")
    assert np.isfinite(adata.obsm["X_umap"]).all()

    found = metrics.cluster(points, "leiden", resolution=0.01)
    assert [len(np.unique(found[group == each])) for each in range(4)] == [1] * 4
    assert len(np.unique(found)) == 4

    models = {"given": lambda *_: points}
    table = benchmark.compare(adata, "type", models=models, n_latent=4, seeds=1)
    assert table["status"].tolist() == ["ok"]
    assert table["leiden_nmi"][0] > 0.99


# -- variable genes ------------------------------------------------------------------------------


def chosen(adata: AnnData, match: str, **options: Any) -> list[str]:
    with pytest.warns(UserWarning, match=match):
        return tl.variable_genes(adata, n_genes=5, **options)


def with_batches(batches: list[str], n_genes: int = 40) -> AnnData:
    adata = cells(n_cells=len(batches), n_genes=n_genes)
    adata.obs["donor"] = batches
    return adata


def test_variable_genes_beside_a_batch_of_one_cell() -> None:
    """A batch of one cell is left out of the ranking, with a word; loess would end the process."""
    adata = with_batches(["a"] * 30 + ["b"] * 29 + ["lonely"])
    found = chosen(adata, "without the 1 cells of 1 of 3 batches .'lonely'.", batch_key="donor")
    assert found == tl.variable_genes(adata[:-1].copy(), n_genes=5, batch_key="donor")


def test_variable_genes_where_each_cell_is_a_batch() -> None:
    """With one batch per cell genes are ranked by variance, with a word."""
    adata = with_batches([f"cell {i}" for i in range(30)])
    assert len(chosen(adata, "fewer than 16 genes vary", batch_key="donor")) == 5


@pytest.mark.parametrize("n_varying", [0, 1, 3, 15])
def test_variable_genes_of_constant_counts(n_varying: int) -> None:
    """Where next to no gene varies they are ranked by variance, with a word."""
    counts = np.full((50, 40), 3.0, np.float32)
    counts[:, :n_varying] = np.random.default_rng(0).poisson(4, (50, n_varying))
    found = chosen(AnnData(counts), "fewer than 16 genes vary")
    assert len(found) == 5


def test_variable_genes_of_one_cell() -> None:
    """A single cell has no variance: a word, and genes all the same."""
    assert len(chosen(cells(n_genes=40)[:1].copy(), "fewer than 16 genes vary")) == 5


def test_variable_genes_of_cells_without_a_batch() -> None:
    """Cells whose batch is not known are refused, with their number."""
    adata = with_batches(["a"] * 30 + ["b"] * 30)
    adata.obs["donor"] = pd.Series([*adata.obs["donor"][:-2], None, None], adata.obs_names)
    with pytest.raises(ValueError, match="2 of 60 cells without a value"):
        tl.variable_genes(adata, n_genes=5, batch_key="donor")


def test_variable_genes_are_those_of_scanpy() -> None:
    """Where nothing is wrong the genes are those that the README's call of scanpy keeps."""
    adata = cells(n_cells=90, n_genes=40)
    expected = adata.copy()
    sc.pp.highly_variable_genes(expected, n_top_genes=9, flavor="seurat_v3", subset=True)
    assert tl.variable_genes(adata, n_genes=9) == list(expected.var_names)


def test_train_on_variable_genes_with_a_batch_of_one_cell(
    tmp_path: Path,
) -> None:
    """`train --n-genes --batch-key` with a batch of one cell trains, and says what it left out."""
    with_batches(["a"] * 59 + ["lonely"]).write_h5ad(tmp_path / "in.h5ad")
    options = ["--n-genes", "10", "--batch-key", "donor", "--max-epochs", "1"]
    paths = [str(tmp_path / "in.h5ad"), "--output", str(tmp_path / "out.h5ad")]
    result = CliRunner().invoke(program, ["train", *paths, *options, "--accelerator", "cpu"])
    assert result.exit_code == 0, result.output
    assert "'lonely'" in result.stderr
