"""Zarr stores that lack a chunk: refused where zeros are no answer, and read where they may be."""

from __future__ import annotations

import shutil
import warnings
from typing import TYPE_CHECKING, Any

import anndata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from click.testing import CliRunner
from scipy import sparse

from dra_scvi._exceptions import InputError
from dra_scvi._inputs.zarr_chunks import check_chunks
from dra_scvi.cli import program
from tests.helpers import cells

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from click.testing import Result

pytest.importorskip("zarr")
QUICK = ("--max-epochs", "1", "--accelerator", "cpu", "--n-hidden", "8", "--n-latent", "2")


@pytest.fixture(params=[2, 3])
def version(request: pytest.FixtureRequest) -> Iterator[int]:
    """Write stores in either version of the format."""
    with anndata.settings.override(zarr_write_format=request.param):
        yield request.param


def written(adata: AnnData, path: Path, **options: Any) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of version 2
        adata.write_zarr(path, **options)
    return path


def chunks(store: Path, name: str) -> list[Path]:
    files = [file for file in (store / name).rglob("*") if file.is_file()]
    return sorted(f for f in files if not f.name.startswith(".") and f.name != "zarr.json")


def train(store: Path, *options: str) -> Result:
    output = str(store.with_name("out.h5ad"))
    return CliRunner().invoke(program, ["train", str(store), "--output", output, *QUICK, *options])


def refused(done: Result, name: str) -> None:
    assert done.exit_code == 65, (done.exit_code, done.stderr, done.exception)
    assert f"is incomplete: {name} lacks 1 of its" in done.stderr


@pytest.mark.parametrize("mode", ["--in-memory", "--out-of-core"])
@pytest.mark.parametrize(
    "name",
    [
        *("X/data", "X/indices", "X/indptr", "obs/batch/codes", "obs/batch/categories"),
        *("obs/_index", "var/_index"),
    ],
)
def test_a_store_that_lacks_a_chunk_is_no_store_of_zeros(
    tmp_path: Path, version: int, name: str, mode: str
) -> None:
    """A lost chunk of counts, batches or names is refused by its name, and not read as zeros."""
    store = written(cells(), tmp_path / "cells.zarr")
    if not (store / name / ".zarray").exists() and (store / name / "values").is_dir():
        name += "/values"  # text from version 0.13 of anndata on
    chunks(store, name)[0].unlink()
    refused(train(store, mode), name)


def test_a_store_that_lacks_the_first_rows_of_many_is_refused(tmp_path: Path) -> None:
    """One chunk of several, of the starts of rows or of genes, is missed as the only one is."""
    import zarr

    store = written(cells(), tmp_path / "cells.zarr")
    for name in ("indptr", "indices"):
        group = zarr.open(str(store), mode="r+")["X"]
        values = group[name][:]
        del group[name]
        group.create_array(name, shape=values.shape, chunks=(20,), dtype=values.dtype)[:] = values
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of version 3
        zarr.consolidate_metadata(str(store))
    check_chunks(store)
    for name in ("indptr", "indices"):
        lost = chunks(store, f"X/{name}")
        for chunk in (lost[0], lost[1], lost[-1]):
            content = chunk.read_bytes()
            chunk.unlink()
            with pytest.raises(InputError, match=f"X/{name} lacks 1 of its {len(lost)} chunks"):
                check_chunks(store)
            chunk.write_bytes(content)
    check_chunks(store)


@pytest.mark.parametrize("mode", ["--in-memory", "--out-of-core"])
def test_dense_counts_of_a_block_of_cells_that_are_lost_are_refused(
    tmp_path: Path, version: int, mode: str
) -> None:
    """Twenty cells without their chunk are not twenty cells without a count."""
    adata = cells()
    adata.X = adata.X.toarray()
    store = written(adata, tmp_path / "cells.zarr", chunks=(20, 12))
    chunks(store, "X")[1].unlink()
    refused(train(store, mode), "X")


def test_dense_counts_of_which_a_part_may_be_zeros_are_told_of(
    tmp_path: Path, version: int
) -> None:
    """Where some genes of some cells have no chunk, a warning says that zeros are read there."""
    adata = cells()
    adata.X = adata.X.toarray()
    store = written(adata, tmp_path / "cells.zarr", chunks=(20, 4))
    chunks(store, "X")[1].unlink()
    done = train(store)
    assert done.exit_code == 0, done.stderr
    assert "X lacks 1 of its 9 chunks, which are read as zeros" in done.stderr


def test_a_store_whose_folder_of_an_array_is_lost_is_refused(tmp_path: Path) -> None:
    """An array of which only the summary of the store still speaks is missed like a chunk."""
    with anndata.settings.override(zarr_write_format=3):
        store = written(cells(), tmp_path / "cells.zarr")
    shutil.rmtree(store / "X" / "data")
    refused(train(store), "X/data")


def test_zeros_that_anndata_does_not_write_are_read(tmp_path: Path, version: int) -> None:
    """A store whose zeros have no chunks, as anndata writes them, is read as what it was."""
    adata = cells()
    zeros = {"one": pd.Categorical(["a"] * 60), "number": np.zeros(60), "flag": np.zeros(60, bool)}
    adata.obs = adata.obs.assign(**zeros, maybe=pd.array([0] * 60, dtype="Int64"), empty="")
    adata.obs["sorted"] = pd.Categorical(["a"] * 30 + ["b"] * 30)
    adata.X = sparse.vstack([sparse.csr_matrix((20, 12)), adata.X[20:]], format="csr")
    adata.layers["none"] = sparse.csr_matrix((60, 12))
    adata.layers["first"] = sparse.csr_matrix(np.eye(1, 12)[[0] * 60])
    adata.obsm["zeros"] = np.zeros((60, 2))
    adata.uns["codes"], adata.uns["categories"] = np.zeros(3), np.zeros(3)
    store = written(adata, tmp_path / "cells.zarr")
    assert not chunks(store, "obs/one/codes")
    assert not chunks(store, "layers/first/indices")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        check_chunks(store)
    done = train(store)
    assert done.exit_code == 0, done.stderr
    found = anndata.read_h5ad(tmp_path / "out.h5ad")
    np.testing.assert_array_equal(found.X.toarray(), adata.X.toarray())
    assert found.obs["one"].tolist() == ["a"] * 60
