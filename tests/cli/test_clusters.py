"""train writes clusters and the UMAP beside the embedding, in memory and out of it alike."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import anndata
import numpy as np
import pandas as pd
import pytest

from dra_scvi import tl
from tests.helpers import cells, invoke

if TYPE_CHECKING:
    from pathlib import Path

    from click.testing import Result

QUICK = ("--max-epochs", 2, "--accelerator", "cpu", "--threads", 1)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("input") / "cells.h5ad"
    adata = cells()
    adata.obs["leiden"] = pd.Categorical(["before"] * adata.n_obs)
    adata.uns["leiden_colors"] = ["#000000"]
    adata.obsm["X_umap"] = np.zeros((adata.n_obs, 2), dtype=np.float32)
    adata.write_h5ad(path)
    return path


def train(source: Path, folder: Path, *options: object) -> Result:
    return invoke("train", source, "--output", folder / "out.h5ad", *options, *QUICK)


@pytest.fixture(scope="module")
def folder(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with what a command wrote."""
    folder = tmp_path_factory.mktemp("out")
    options = ("--leiden", "--umap", "--force", "--json", folder / "out.json")
    result = train(source, folder, *options)
    assert result.exit_code == 0, result.stderr
    (folder / "stderr").write_text(result.stderr)
    return folder


def test_clusters_are_those_of_the_embedding(folder: Path) -> None:
    adata = anndata.read_h5ad(folder / "out.h5ad")
    bare = anndata.AnnData(obs=adata.obs[[]], obsm={"X_dra": adata.obsm["X_dra"]})
    suggestion = tl.cluster(bare)
    assert suggestion is not None
    pd.testing.assert_series_equal(adata.obs["leiden"], bare.obs["leiden"])
    assert np.array_equal(adata.obsm["X_umap"], bare.obsm["X_umap"])
    assert "leiden_colors" not in adata.uns
    assert adata.uns["leiden"]["params"]["resolution"] == suggestion.resolution
    clusters = json.loads((folder / "out.json").read_text())["clusters"]
    assert clusters == {
        "resolution": suggestion.resolution,
        "is_suggested": True,
        "is_stable": suggestion.is_stable,
        "n_clusters": bare.obs["leiden"].nunique(),
    }
    told = (folder / "stderr").read_text()
    assert f"at resolution {suggestion.resolution:g}" in told
    assert ("warning" in told) != suggestion.is_stable


def test_counts_that_stay_in_their_file(source: Path, tmp_path: Path) -> None:
    options = ("--leiden", "--umap", "--resolution", 0.7, "--force", "--label-key", "cell_type")
    stored, memory = tmp_path / "stored", tmp_path / "memory"
    for place, option in ((stored, "--out-of-core"), (memory, "--in-memory")):
        result = train(source, place, option, *options)
        assert result.exit_code == 0, result.stderr
    one, other = (anndata.read_h5ad(place / "out.h5ad") for place in (stored, memory))
    pd.testing.assert_frame_equal(one.obs, other.obs)
    assert np.array_equal(one.obsm["X_umap"], other.obsm["X_umap"])
    assert one.uns["leiden"] == other.uns["leiden"]
    assert one.uns["leiden"]["params"]["resolution"] == 0.7


def test_nothing_is_added_unasked(source: Path, tmp_path: Path) -> None:
    result = train(source, tmp_path, "--umap", "--force")
    assert result.exit_code == 0, result.stderr
    adata = anndata.read_h5ad(tmp_path / "out.h5ad")
    assert (adata.obs["leiden"] == "before").all()
    assert adata.obsm["X_umap"].any()
