"""Rows in the order asked for, from files, and from sparse blocks of dask."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anndata
import numpy as np
import pytest
from scipy import sparse

from dra_scvi import DRA
from dra_scvi._data.registration import CountsDataset

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from anndata import AnnData

ROWS = [7, 2, 31, 4]


def rows_of(adata: AnnData, indexes: object) -> dict[str, np.ndarray]:
    adata.obs["age"] = np.arange(adata.n_obs, dtype=float)
    DRA.setup_anndata(adata, batch_key="batch", continuous_covariate_keys=["age"])
    dataset = DRA._get_most_recent_anndata_manager(adata).create_torch_dataset()
    assert isinstance(dataset, CountsDataset)
    return dataset[indexes]


@pytest.mark.parametrize(
    "convert", [sparse.csr_matrix, lambda x: x.toarray()], ids=["csr", "dense"]
)
@pytest.mark.parametrize(
    "indexes", [ROWS, np.array(ROWS), slice(2, 5), 9], ids=["list", "array", "slice", "one"]
)
def test_rows_of_a_file_come_in_the_order_asked_for(
    adata: AnnData, tmp_path: Path, convert: Callable, indexes: object
) -> None:
    expected = np.atleast_2d(adata.X.toarray()[indexes])
    adata.X = convert(adata.X)
    adata.write_h5ad(tmp_path / "a.h5ad")
    backed = anndata.read_h5ad(tmp_path / "a.h5ad", backed="r+")
    found = rows_of(backed, indexes)
    np.testing.assert_array_equal(found["X"], expected)
    ages = np.atleast_1d(np.arange(adata.n_obs)[indexes])
    np.testing.assert_array_equal(found["extra_continuous_covs"].ravel(), ages)
    backed.file.close()


@pytest.mark.parametrize("block", [np.asarray, sparse.csr_matrix])
def test_rows_of_dask_blocks_are_dense(adata: AnnData, block: Callable) -> None:
    dask_array = pytest.importorskip("dask.array")
    counts = adata.X.toarray().astype(np.int64)
    adata.X = dask_array.from_array(counts, chunks=(50, 40)).map_blocks(block)
    found = rows_of(adata, ROWS)["X"]
    assert isinstance(found, np.ndarray)
    np.testing.assert_array_equal(found, counts[ROWS])
    if block is sparse.csr_matrix:
        assert found.dtype == np.float32
