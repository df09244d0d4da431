"""Plots that would mislead, or end in an error that says nothing: refused, or drawn as meant."""

from __future__ import annotations

from typing import Any

import matplotlib

matplotlib.use("Agg")

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from dra_scvi import pl


@pytest.fixture
def adata() -> AnnData:
    """Return 200 cells, of which one has a count of the gene ISG15."""
    counts = np.ones((200, 3), dtype=np.float32)
    counts[:, 2] = 0
    counts[7, 2] = 5
    obs = pd.DataFrame({"leiden": ["0", "2", "10", "1"] * 50}, index=[str(i) for i in range(200)])
    var = pd.DataFrame(index=["CD3E", "LYZ", "ISG15"])
    obsm = {"X_dra": np.random.default_rng(0).normal(size=(200, 5))}
    return AnnData(counts, obs=obs, var=var, obsm=obsm)


@pytest.mark.parametrize(
    ("basis", "maker"),
    [
        ("umap", "sc.tl.umap(adata) makes it, after sc.pp.neighbors(adata, use_rep='X_dra')."),
        ("X_tsne", "sc.tl.tsne(adata) makes it"),
        ("X_pca", "sc.pp.pca(adata) makes it"),
    ],
)
def test_an_embedding_that_is_yet_to_be_made(adata: AnnData, basis: str, maker: str) -> None:
    """A plot of a UMAP that nobody has computed says which step of scanpy computes it."""
    with pytest.raises(KeyError) as caught:
        pl.embedding(adata, basis, show=False)
    assert f"basis={basis!r} is not a key of adata.obsm" in caught.value.args[0]
    assert maker in caught.value.args[0]


def test_a_gene_whose_name_is_misspelt(adata: AnnData) -> None:
    """A colour that is neither a column nor a gene is refused by its name, with what is near."""
    with pytest.raises(KeyError) as caught:
        pl.embedding(adata, "X_dra", color=["leiden", "isg15"], show=False)
    message = caught.value.args[0]
    assert message.startswith("color='isg15' is not a column of adata.obs or a gene")
    assert "did you mean 'ISG15'?" in message


def test_a_gene_that_few_cells_have(adata: AnnData) -> None:
    """A gene that less than one cell in a hundred has is not drawn as if no cell had it."""
    axes = pl.embedding(adata, "X_dra", color="ISG15", show=False)
    low, high = axes.collections[0].get_clim()
    assert (low, high) == (0, pytest.approx(np.log1p(1e4 * 5 / 7)))


def test_clusters_whose_names_are_numbers(adata: AnnData) -> None:
    """Clusters 0 to 10 are listed in that order, and not as 0, 1, 10, 2."""
    axes = pl.embedding(adata, "X_dra", color="leiden", show=False)
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert names == ["0", "1", "2", "10"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"color": []}, "there is nothing to draw"),
        ({"basis": []}, "there is nothing to draw"),
        ({"color": ["leiden", "LYZ"], "ncols": -1}, "ncols must be at least 1, not -1"),
    ],
)
def test_a_grid_without_panels(adata: AnnData, options: dict[str, Any], words: str) -> None:
    """Lists of nothing, and less than one column, are refused rather than divided by."""
    with pytest.raises(ValueError, match=words):
        pl.embedding(adata, **{"basis": "X_dra", **options}, show=False)
