"""Clusters: confirmed only where there is something to confirm, and with nothing of old ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anndata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from dra_scvi import tl
from tests.helpers import cells, invoke

if TYPE_CHECKING:
    from pathlib import Path


def test_a_few_cells_confirm_no_resolution() -> None:
    """Of a few cells no resolution is suggested: every one would look confirmed."""
    adata = AnnData(obsm={"X_dra": np.random.default_rng(0).normal(size=(9, 3))})
    with pytest.raises(ValueError, match="adata has 9 cells.* at least 10 are needed"):
        tl.suggest_resolution(adata)


def test_cells_apart_are_no_clusters_that_are_confirmed() -> None:
    """A resolution at which every cell is a cluster is not called stable."""
    adata = AnnData(obsm={"X_dra": np.random.default_rng(0).normal(size=(12, 3))})
    found = tl.suggest_resolution(adata, resolutions=[1, 50])
    assert found.table["n_clusters"].tolist()[-1] == 9  # as many as cells are drawn
    assert (found.is_stable, found.resolution) == (False, 1)


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_new_clusters_have_no_colours_of_old_ones(tmp_path: Path, suffix: str) -> None:
    """Colours of clusters that are replaced go with them, also where counts stay in their file."""
    adata = cells()
    adata.obs["leiden"] = pd.Categorical(["before"] * adata.n_obs)
    adata.uns["leiden"] = {"suggestion": {"is_stable": True}}
    adata.uns["leiden_colors"] = np.array(["#123456"])
    adata.uns["batch_colors"] = np.array(["#123456", "#654321"])
    source, output = tmp_path / f"cells{suffix}", tmp_path / "out.h5ad"
    adata.write_h5ad(source) if suffix == ".h5ad" else adata.write_zarr(source)
    quick = ("--max-epochs", 1, "--accelerator", "cpu", "--leiden", "--resolution", 1)
    done = invoke("train", source, "-o", output, "--out-of-core", "--force", *quick)
    assert done.exit_code == 0, done.stderr
    written = anndata.read_h5ad(output)
    assert "before" not in set(written.obs["leiden"])
    assert "leiden_colors" not in written.uns
    assert list(written.uns["leiden"]) == ["params"]
    assert written.uns["batch_colors"].tolist() == ["#123456", "#654321"]
