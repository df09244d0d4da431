"""Counts and names as they come: refused with place and remedy, or trained on without harm."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import anndata
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from dra_scvi import DRA, InvalidCountsError, metrics
from tests.helpers import (
    N_CELLS,
    N_GENES,
    SMALL,
    STRICT,
    assert_trained,
    cells,
    embed,
    fit,
    with_value,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = STRICT


@pytest.fixture(scope="module")
def model() -> DRA:
    return fit(cells(), batch_key="batch")


def test_nan() -> None:
    """NaN in the counts: refused before training, with layer, cell and gene."""
    adata = cells()
    adata.layers["counts"] = with_value(np.nan).X
    adata.X = sparse.csr_matrix(adata.layers["counts"])
    places = {"adata.X": None, "adata.layers['counts']": "counts"}
    for where, layer in places.items():
        with pytest.raises(InvalidCountsError) as caught:
            DRA.setup_anndata(adata, layer=layer)
        text = f"{where} holds 1 NaN value (first: cell 'cell_7', gene 'gene_3')"
        assert text in str(caught.value)
        assert caught.value.report["nan"]["count"] == 1
    assert not adata.uns


def test_inf() -> None:
    """Infinite counts: refused, with cell and gene."""
    for value in (np.inf, -np.inf):
        with pytest.raises(InvalidCountsError, match=r"1 infinite value .*'cell_7'.*'gene_3'"):
            DRA.setup_anndata(with_value(value))


@settings(max_examples=60, deadline=None)
@given(
    row=st.integers(0, N_CELLS - 1),
    column=st.integers(0, N_GENES - 1),
    convert=st.sampled_from([np.asarray, sparse.csr_matrix, sparse.csc_matrix, sparse.csr_array]),
)
def test_negative(row: int, column: int, convert: Callable[[Any], Any]) -> None:
    """One negative count anywhere, dense or sparse: refused, with cell and gene."""
    adata = with_value(-1, row, column)
    adata.X = convert(adata.X)
    place = f"1 negative value .*'cell_{row}', gene 'gene_{column}'"
    with pytest.raises(InvalidCountsError, match=place):
        DRA.setup_anndata(adata)


def test_noninteger() -> None:
    """Counts with fractions: refused, or taken with one warning if `allow_noninteger=True`."""
    rng = np.random.default_rng(0)
    for row, column in zip(
        rng.integers(0, N_CELLS, 100), rng.integers(0, N_GENES, 100), strict=True
    ):
        adata = with_value(1.5, row, column)
        with pytest.raises(InvalidCountsError, match="1 non-integer value"):
            DRA.setup_anndata(adata)
    with pytest.warns(UserWarning, match="1 non-integer value") as caught:
        found = fit(adata, setup={"allow_noninteger": True})
    assert len([w for w in caught if "integer" in str(w.message)]) == 1
    assert_trained(found)


def test_lognorm() -> None:
    """Log-normalised values in place of counts: refused, naming the layer that holds integers."""
    adata = cells()
    adata.layers["counts"] = adata.X.copy()
    adata.layers["other"] = adata.X.log1p()
    adata.X = adata.X.log1p()
    with pytest.raises(InvalidCountsError, match="looks log-normalised") as caught:
        DRA.setup_anndata(adata)
    assert "(integers are in: layer='counts')" in str(caught.value)


def test_empty_cell() -> None:
    """Cells without counts: a warning that names the first; training stays finite."""
    adata = cells()
    matrix = adata.X.toarray()
    matrix[[4, 9]] = 0
    adata.X = matrix
    with pytest.warns(UserWarning, match=r"2 cells have no counts \(first: 'cell_4'\)"):
        found = fit(adata)
    assert_trained(found)


def test_empty_gene(caplog: pytest.LogCaptureFixture) -> None:
    """A gene without counts: told in the log; training stays finite."""
    adata = cells()
    matrix = adata.X.toarray()
    matrix[:, 5] = 0
    adata.X = matrix
    with caplog.at_level("INFO", logger="dra_scvi"):
        found = fit(adata)
    assert "adata.X: 1 gene has no counts." in caplog.messages
    assert_trained(found)


def test_zero_batch() -> None:
    """A batch whose cells have no counts at all: refused by name."""
    adata = cells()
    matrix = adata.X.toarray()
    matrix[(adata.obs["batch"] == adata.obs["batch"].iloc[0]).to_numpy()] = 0
    adata.X = matrix
    with pytest.raises(InvalidCountsError, match=f"of batch '{adata.obs['batch'].iloc[0]}'"):
        DRA.setup_anndata(adata, batch_key="batch")


def test_one_batch() -> None:
    """A batch column with one value: trained on; scores of integration are refused."""
    adata = cells()
    adata.obs["batch"] = "the only one"
    found = fit(adata, batch_key="batch")
    assert_trained(found)
    assert found.history["latent_divergence_train"].to_numpy().any()
    assert found.history["data_divergence_train"].to_numpy().any()
    scores = metrics.clustering(found.get_latent_representation(), adata.obs["cell_type"])
    assert np.isfinite(list(scores.values())).all()
    assert not any("batch" in name for name in scores)
    with pytest.raises(ValueError, match="batch"):
        metrics.integration(adata.X.toarray(), adata.obs["cell_type"], adata.obs["batch"])


def test_singleton() -> None:
    """A batch of one cell: a warning; training stays finite."""
    adata = cells()
    adata.obs["donor"] = ["a"] + ["b"] * (N_CELLS - 1)
    with pytest.warns(UserWarning, match="fewer than 3 cells"):
        found = fit(adata, batch_key="donor")
    assert_trained(found)


def test_huge() -> None:
    """Counts above 2**24, which 32-bit floats round: a warning; training stays finite."""
    adata = with_value(1e9, dtype=np.int64)
    with pytest.warns(UserWarning, match=r"counts up to 1000000000; above 2\*\*24"):
        found = fit(adata)
    assert_trained(found)


def test_missing_key() -> None:
    """A column that is not there: refused, with the name that was probably meant."""
    for argument in ("batch_key", "labels_key", "size_factor_key"):
        with pytest.raises(KeyError, match="did you mean 'batch'"):
            DRA.setup_anndata(cells(), **{argument: "bach"})
    with pytest.raises(KeyError, match="did you mean 'batch'"):
        DRA.setup_anndata(cells(), categorical_covariate_keys=["batch", "Batches"])


def test_missing_layer() -> None:
    """A layer that is not there: refused, with the layers that are."""
    adata = cells()
    adata.layers["counts"], adata.layers["raw"] = adata.X, adata.X
    with pytest.raises(KeyError, match="did you mean 'counts'") as caught:
        DRA.setup_anndata(adata, layer="count")
    assert "Available: 'counts', 'raw'." in str(caught.value)


def test_nan_batch() -> None:
    """Cells without a batch: refused, with their number and how to drop them."""
    adata = cells()
    adata.obs["donor"] = pd.Categorical(["a", None, None] + ["b"] * (N_CELLS - 3))
    with pytest.raises(ValueError, match=r"(?s)2 of 60 cells without a value.*notna\(\)\]\.copy"):
        DRA.setup_anndata(adata, batch_key="donor")


def test_dup_genes() -> None:
    """Gene names that repeat: refused, naming the first and the remedy."""
    adata = cells()
    adata.var_names = ["a", "a", *adata.var_names[2:]]
    with pytest.raises(ValueError, match=r"first: 'a'.*var_names_make_unique"):
        DRA.setup_anndata(adata)


def test_dup_cells(model: DRA) -> None:
    """Cell names that repeat: a warning; the embedding is unchanged."""
    adata = cells()
    expected = model.get_latent_representation(adata.copy())
    adata.obs_names = ["same"] * N_CELLS
    with pytest.warns(UserWarning, match="59 cell names repeat"):
        found = model.get_latent_representation(adata)
    np.testing.assert_array_equal(found, expected)
    with pytest.warns(UserWarning, match="59 cell names repeat"):
        assert_trained(fit(adata))


def test_view() -> None:
    """A view of an AnnData: refused, with the advice to copy it."""
    with pytest.raises(ValueError, match=r"adata\.copy\(\)"):
        DRA.setup_anndata(cells()[:20])


def test_csr_array() -> None:
    """SciPy's sparse arrays: the embedding that sparse matrices give; the data are left alone."""
    expected = embed(cells())
    for convert in (sparse.csr_array, sparse.csc_array):
        adata = cells()
        adata.X = convert(adata.X)
        before = adata.X.copy()
        np.testing.assert_array_equal(embed(adata), expected)
        assert type(adata.X) is convert
        assert (before != adata.X).nnz == 0
        found = fit(adata, load_sparse_tensor=convert is sparse.csr_array)
        assert found.get_normalized_expression().shape == adata.shape


def test_csc() -> None:
    """Counts by column (CSC): advice to convert; the same embedding."""
    adata = cells()
    adata.X = sparse.csc_matrix(adata.X)
    with pytest.warns(UserWarning, match="formatted as CSR"):
        found = embed(adata)
    np.testing.assert_allclose(found, embed(cells()), rtol=1e-5, atol=1e-5)


def test_dtypes() -> None:
    """Counts as integers or floats of any width: the same embedding to the last bit."""
    for make in (lambda x: x, lambda x: x.toarray()):
        expected = None
        for dtype in (np.float32, np.int64, np.float64, np.uint16):
            adata = cells()
            adata.X = make(adata.X).astype(dtype)
            found = embed(adata)
            expected = found if expected is None else expected
            np.testing.assert_array_equal(found, expected)


def test_backed(model: DRA, tmp_path: Path) -> None:
    """A backed file: trained on and embedded as it is on disk, and not changed."""
    expected = model.get_latent_representation(cells())
    for name, matrix in {"csr": cells().X, "dense": cells().X.toarray()}.items():
        adata, path = cells(), tmp_path / f"{name}.h5ad"
        adata.X = matrix
        adata.write_h5ad(path)
        before = path.read_bytes()
        backed = anndata.read_h5ad(path, backed="r")
        found = model.get_latent_representation(backed)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
        assert_trained(fit(backed, batch_key="batch"))
        backed.file.close()
        assert path.read_bytes() == before


def test_dask() -> None:
    """Dask arrays, dense or sparse: the same embedding, and still dask afterwards."""
    array = pytest.importorskip("dask.array")
    expected = embed(cells())
    for convert in (np.asarray, sparse.csr_matrix):
        adata = cells()
        adata.X = array.from_array(adata.X.toarray(), chunks=(17, N_GENES)).map_blocks(convert)
        np.testing.assert_allclose(embed(adata), expected, rtol=1e-3, atol=1e-4)
        assert isinstance(adata.X, array.Array)


def test_zero_cells() -> None:
    """No cells: refused."""
    with pytest.raises(InvalidCountsError, match="no cells"):
        DRA.setup_anndata(cells()[:0].copy())


def test_one_cell(model: DRA) -> None:
    """Fewer than three cells to train on: refused; one cell to embed: embedded."""
    for number in (1, 2):
        with pytest.raises(InvalidCountsError, match=f"only {number} cells?; at least 3"):
            DRA.setup_anndata(cells()[:number].copy())
    assert_trained(fit(cells()[:3].copy()))
    assert model.get_latent_representation(cells()[:1].copy()).shape == (1, 4)


def test_last_batch_1() -> None:
    """A last minibatch of one cell: training stays finite."""
    for options in ({}, {"load_sparse_tensor": True}, {"batch_size": 2}):
        adata = cells(n_cells=65)
        assert_trained(fit(adata, train_size=1.0, **{"batch_size": 32, **options}))


def test_n_var_1() -> None:
    """A single gene: trained on, and decoded in the right shape."""
    adata = cells(n_genes=1)
    adata.X = adata.X.toarray() + 1
    found = fit(adata)
    assert_trained(found)
    assert found.get_normalized_expression().shape == (N_CELLS, 1)


def test_unfitted() -> None:
    """A getter before training: an error that says to train."""
    adata = cells()
    DRA.setup_anndata(adata)
    with pytest.raises(RuntimeError, match="train"):
        DRA(adata, **SMALL).get_latent_representation()


def test_not_mutated() -> None:
    """Counts, layers and columns of the user: the same bytes after training as before."""
    for convert in (np.array, np.asfortranarray, sparse.csr_matrix, sparse.csc_array):
        adata = cells()
        adata.X = convert(adata.X.toarray())
        adata.layers["other"] = adata.X.copy()
        adata.obsm["X_own"] = np.ones((N_CELLS, 2))
        before, matrix = adata.copy(), adata.X
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            fit(adata, batch_key="batch").get_latent_representation()
        pd.testing.assert_frame_equal(adata.obs[before.obs.columns], before.obs)
        pd.testing.assert_frame_equal(adata.var, before.var)
        for found, expected in zip(
            (adata.X, adata.layers["other"]), (before.X, before.layers["other"]), strict=True
        ):
            assert type(found) is type(expected)
            assert found.dtype == expected.dtype
            assert _bytes(found) == _bytes(expected)
        assert _bytes(matrix) == _bytes(before.X)
        assert set(adata.layers) == set(before.layers)
        assert set(adata.obsm) == {"X_own"}
        assert all(name.startswith("_scvi") for name in {*adata.obs} - {*before.obs})


def _bytes(matrix: Any) -> list[bytes]:
    if sparse.issparse(matrix):
        return [part.tobytes() for part in (matrix.data, matrix.indices, matrix.indptr)]
    return [np.ascontiguousarray(matrix).tobytes()]
