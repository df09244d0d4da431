"""Cells of several files in an AnnCollection: counts stay in their files, genes are in common."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anndata
import h5py
import numpy as np
import pytest
import scvi
from anndata.experimental import AnnCollection
from anndata.io import read_elem, sparse_dataset
from scvi.dataloaders import CollectionAdapter

from dra_scvi import DRA, GeneMismatchError
from tests.helpers import cells, fit

if TYPE_CHECKING:
    from pathlib import Path

JOIN = {"join_vars": "inner", "join_obs": "inner", "label": "file", "index_unique": "-"}


def open_file(path: Path) -> anndata.AnnData:
    """Open cells as the page on large data says."""
    file = h5py.File(path)
    counts = sparse_dataset(file["X"])
    obs, var = read_elem(file["obs"]), read_elem(file["var"])
    return anndata.AnnData(counts, obs=obs, var=var, layers={"counts": counts})


def stored(parts: dict[str, anndata.AnnData], folder: Path) -> dict[str, anndata.AnnData]:
    for name, part in parts.items():
        part.write_h5ad(folder / f"{name}.h5ad")
    return {name: open_file(folder / f"{name}.h5ad") for name in parts}


@pytest.mark.parametrize("are_alike", [True, False], ids=["in files", "other genes, in memory"])
def test_the_codes_are_those_of_one_file(tmp_path: Path, are_alike: bool) -> None:
    parts = {"one": cells(seed=1), "two": cells(seed=2)}
    if not are_alike:
        parts = {"one": parts["one"][:, 2:].copy(), "two": parts["two"][:, ::-1].copy()}
    for part in parts.values():
        part.layers["counts"] = part.X
    files = stored(parts, tmp_path) if are_alike else parts
    adapter = CollectionAdapter(AnnCollection(files, **JOIN))
    scvi.settings.seed = 0
    model = fit(adapter, "file", setup={"layer": "counts"})
    assert model.summary_stats.n_batch == 2
    whole = anndata.concat(parts, join="inner", label="file", index_unique="-")
    assert list(model.get_var_names()) == list(whole.var_names)
    scvi.settings.seed = 0
    expected = fit(whole, "file").get_latent_representation()
    np.testing.assert_allclose(model.get_latent_representation(), expected, atol=1e-5)


def test_other_genes_in_files_are_refused(tmp_path: Path) -> None:
    parts = {"one": cells(seed=1)[:, 2:].copy(), "two": cells(seed=2)}
    adapter = CollectionAdapter(AnnCollection(stored(parts, tmp_path), **JOIN))
    with pytest.raises(GeneMismatchError, match="AnnCollection .* same order; read these into"):
        DRA.setup_anndata(adapter, layer="counts", batch_key="file")


def test_a_collection_has_no_x() -> None:
    parts = {"one": cells(seed=1), "two": cells(seed=2)}
    adapter = CollectionAdapter(AnnCollection(parts, **JOIN))
    with pytest.raises(ValueError, match=r"layer=None: an AnnCollection has no X .* layer="):
        DRA.setup_anndata(adapter, batch_key="file")
