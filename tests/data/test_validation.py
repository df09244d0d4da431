"""Checks of user input: every bad value is found, named and counted, and good data passes."""

from __future__ import annotations

import pickle
import warnings
from typing import TYPE_CHECKING

import anndata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from dra_scvi._data import structure
from dra_scvi._data.keys import named_layers, validate_keys
from dra_scvi._data.validation import validate_counts
from dra_scvi._exceptions import InvalidCountsError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

N_CELLS, N_GENES = 23, 7
FORMATS: dict[str, Callable] = {
    "dense": np.asarray,
    "fortran": np.asfortranarray,
    "csr": sparse.csr_matrix,
    "csc": sparse.csc_matrix,
    "csr_array": sparse.csr_array,
    "csc_array": sparse.csc_array,
}
BAD_VALUES = {
    "nan": (np.nan, "1 NaN value"),
    "plus-inf": (np.inf, "1 infinite value"),
    "minus-inf": (-np.inf, "1 infinite value"),
    "negative": (-1.0, "1 negative value"),
    "non-integer": (0.5, "1 non-integer value"),
}


def counts(seed: int = 0, n_cells: int = N_CELLS, n_genes: int = N_GENES) -> np.ndarray:
    matrix = np.random.default_rng(seed).poisson(1.5, (n_cells, n_genes)).astype(np.float32)
    matrix[:, 0] += 1
    return matrix


def named(matrix: object, **kwargs: object) -> AnnData:
    n_cells, n_genes = matrix.shape
    obs = pd.DataFrame(index=[f"cell-{i}" for i in range(n_cells)])
    var = pd.DataFrame(index=[f"gene-{i}" for i in range(n_genes)])
    return AnnData(matrix, obs=obs, var=var, **kwargs)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(structure, "BLOCK_ROWS", 5)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("kind", BAD_VALUES)
@pytest.mark.parametrize("form", FORMATS)
@settings(max_examples=25, deadline=None)
@given(row=st.integers(0, N_CELLS - 1), column=st.integers(0, N_GENES - 1))
def test_one_bad_value_is_found_and_named(form: str, kind: str, row: int, column: int) -> None:
    value, text = BAD_VALUES[kind]
    matrix = counts()
    matrix[row, column] = value
    with pytest.raises(InvalidCountsError) as caught:
        validate_counts(named(FORMATS[form](matrix)))
    message = str(caught.value)
    assert f"adata.X holds {text} (first: cell 'cell-{row}', gene 'gene-{column}'" in message
    assert "\n" not in message
    (report,) = caught.value.report.values()
    assert report["count"] == 1
    assert (report["cell"], report["gene"]) == (f"cell-{row}", f"gene-{column}")
    np.testing.assert_equal(report["value"], value)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("form", FORMATS)
def test_one_bad_value_first_of_many_does_not_depend_on_the_format(form: str) -> None:
    matrix = counts()
    matrix[[3, 3, 17, 22], [6, 2, 0, 1]] = np.nan
    with pytest.raises(InvalidCountsError, match=r"4 NaN values \(first: cell 'cell-3', ge") as e:
        validate_counts(named(FORMATS[form](matrix)))
    assert e.value.report["nan"]["gene"] == "gene-2"


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("reader", ["csr", "csc", "dense"])
def test_one_bad_value_in_a_backed_file(tmp_path: Path, reader: str) -> None:
    matrix = counts()
    matrix[21, 4] = -2
    named(FORMATS[reader](matrix)).write_h5ad(tmp_path / "a.h5ad")
    backed = anndata.read_h5ad(tmp_path / "a.h5ad", backed="r")
    with pytest.raises(InvalidCountsError, match=r"cell 'cell-21', gene 'gene-4', value -2"):
        validate_counts(backed)
    backed.file.close()


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("form", ["dense", "csr"])
def test_one_bad_value_in_a_dask_array(form: str) -> None:
    dask_array = pytest.importorskip("dask.array")
    matrix = counts()
    matrix[11, 3] = 0.25
    lazy = dask_array.from_array(matrix, chunks=(4, N_GENES)).map_blocks(FORMATS[form])
    with pytest.raises(InvalidCountsError, match=r"cell 'cell-11', gene 'gene-3', value 0.25"):
        validate_counts(named(lazy))


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n_cells=st.integers(3, 30), n_genes=st.integers(1, 9))
@pytest.mark.parametrize("dtype", ["int8", "uint16", "int32", "int64", "float32", "float64"])
@pytest.mark.parametrize("form", FORMATS)
def test_counts_of_every_type_pass(
    form: str, dtype: str, seed: int, n_cells: int, n_genes: int
) -> None:
    # made beforehand: anndata 0.13 warns of pandas 3 when it is made
    adata = named(FORMATS[form](counts(seed, n_cells, n_genes).astype(dtype)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        validate_counts(adata)


def test_input_is_not_changed() -> None:
    matrix = sparse.csr_matrix(counts())
    adata = named(matrix.copy(), layers={"counts": counts()})
    validate_counts(adata)
    validate_counts(adata, layer="counts")
    assert (matrix != adata.X).nnz == 0
    assert named_layers(adata) == ["counts"]
    assert adata.obs.shape[1] == 0


def test_worst_fault_is_reported_and_all_are_counted() -> None:
    matrix = counts()
    matrix[0, 0], matrix[1, 1], matrix[2, 2], matrix[5, 3] = 0.5, -0.5, np.inf, np.nan
    matrix[6, 3] = np.nan
    with pytest.raises(InvalidCountsError, match="2 NaN values") as caught:
        validate_counts(named(matrix))
    numbers = {name: fault["count"] for name, fault in caught.value.report.items()}
    assert numbers == {"nan": 2, "infinite": 1, "negative": 1, "non-integer": 1}


def test_error_survives_pickling() -> None:
    error = InvalidCountsError("message", {"nan": {"count": 1}})
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.report) == ("message", {"nan": {"count": 1}})


def test_log_normalised_matrix_names_the_layers_with_counts() -> None:
    layers = {"counts": counts(), "scaled": counts() - 0.5, "nothing": 0 * counts()}
    with pytest.raises(InvalidCountsError, match="looks log-normalised") as caught:
        validate_counts(named(np.log1p(counts()), layers=layers))
    assert "layer='counts'" in str(caught.value)
    assert "scaled" not in str(caught.value)
    assert "nothing" not in str(caught.value)


def test_counts_in_x_are_suggested_when_the_layer_holds_none() -> None:
    adata = named(counts(), layers={"logs": np.log1p(counts())})
    validate_counts(adata)
    with pytest.raises(InvalidCountsError, match=r"adata.layers\['logs'\] holds") as caught:
        validate_counts(adata, layer="logs")
    assert "layer=None, that is adata.X" in str(caught.value)


def test_large_non_integers_are_not_called_logs() -> None:
    matrix = counts() * 100
    matrix[0, 0] = 100.5
    with pytest.raises(InvalidCountsError) as caught:
        validate_counts(named(matrix))
    assert "log" not in str(caught.value)
    assert "no other matrix here holds integers" in str(caught.value)


def test_non_integers_can_be_allowed_but_not_nan() -> None:
    matrix = counts()
    matrix[4, 4] = 1.5
    with pytest.warns(UserWarning, match=r"1 non-integer value \(first: cell 'cell-4'"):
        validate_counts(named(matrix), allow_noninteger=True)
    matrix[4, 5] = np.nan
    with pytest.raises(InvalidCountsError, match="NaN"):
        validate_counts(named(matrix), allow_noninteger=True)


@pytest.mark.parametrize(
    ("shape", "text"),
    [((0, 3), "no cells"), ((3, 0), "no genes"), ((2, 3), "only 2 cells; at least 3")],
)
def test_too_small(shape: tuple[int, int], text: str) -> None:
    with pytest.raises(InvalidCountsError, match=text):
        validate_counts(named(np.ones(shape)))


def test_one_gene_is_enough() -> None:
    validate_counts(named(np.ones((3, 1))))


@pytest.mark.parametrize("form", FORMATS)
def test_only_zeros(form: str) -> None:
    with pytest.raises(InvalidCountsError, match="holds no counts: every value is zero"):
        validate_counts(named(FORMATS[form](np.zeros((4, 3)))))


def test_stored_zeros_are_no_counts() -> None:
    matrix = sparse.csr_matrix(np.ones((4, 3)))
    matrix.data[:] = 0
    with pytest.raises(InvalidCountsError, match="every value is zero"):
        validate_counts(named(matrix))


def test_missing_matrix_and_wrong_type() -> None:
    with pytest.raises(InvalidCountsError, match=r"adata.X holds nothing.*layer="):
        validate_counts(AnnData(obs=pd.DataFrame(index=[*"abc"]), var=pd.DataFrame(index=["g"])))
    with pytest.raises(InvalidCountsError, match="complex128, not numbers"):
        validate_counts(named(counts().astype(complex)))


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.usefixtures("small_blocks")
def test_empty_batch_is_named(form: str) -> None:
    matrix = counts()
    matrix[10:13] = 0
    adata = named(FORMATS[form](matrix))
    adata.obs["donor"] = pd.Categorical(["a"] * 10 + ["b"] * 3 + ["c"] * 10, list("abcz"))
    with pytest.raises(InvalidCountsError, match=r"any of the 3 cells of batch 'b'.*\['donor'\]"):
        validate_counts(adata, batch_key="donor")
    adata.obs.loc["cell-13", "donor"] = "b"
    with pytest.warns(UserWarning, match="3 cells have no counts"):
        validate_counts(adata, batch_key="donor")


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.usefixtures("small_blocks")
def test_empty_cells_give_one_warning(form: str) -> None:
    matrix = counts()
    matrix[[7, 20]] = 0
    adata = named(FORMATS[form](matrix))
    with pytest.warns(UserWarning, match=r"2 cells have no counts \(first: 'cell-7'\)") as caught:
        validate_counts(adata)
    assert len(caught) == 1
    assert caught[0].filename == __file__


@pytest.mark.parametrize(("value", "warned"), [(2**24, False), (2**24 + 2, True), (10**9, True)])
@pytest.mark.parametrize("dtype", ["float64", "int64"])
def test_counts_beyond_float32_are_warned_of(dtype: str, value: int, warned: bool) -> None:
    matrix = counts().astype(dtype)
    matrix[2, 2] = value
    adata = named(matrix)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        validate_counts(adata)
    assert len(caught) == warned
    assert all(f"up to {value};" in str(w.message) for w in caught)
    assert all("float32" in str(w.message) for w in caught)


@pytest.mark.filterwarnings("ignore:Variable names are not unique")
def test_duplicate_genes() -> None:
    adata = named(counts())
    adata.var_names = ["a", "b", "b", "c", "d", "e", "f"]
    with pytest.raises(ValueError, match=r"1 gene name is not unique \(first: 'b'\).*make_unique"):
        validate_counts(adata)


@pytest.mark.filterwarnings("ignore:Observation names are not unique")
def test_duplicate_cells_are_warned_of() -> None:
    adata = named(counts())
    adata.obs_names = ["same", "same", *adata.obs_names[2:]]
    with pytest.warns(UserWarning, match=r"1 cell name repeats.*obs_names_make_unique"):
        validate_counts(adata)


def test_views_are_checked_like_copies() -> None:
    matrix = counts()
    matrix[4, 2] = np.nan
    adata = named(sparse.csr_matrix(matrix))
    validate_counts(adata[5:])
    with pytest.raises(InvalidCountsError, match="cell 'cell-4'"):
        validate_counts(adata[3:])


def test_keys_layer() -> None:
    adata = named(counts(), layers={"counts": counts(), "logs": counts()})
    validate_keys(adata, "counts")
    for check in (validate_keys, validate_counts):
        with pytest.raises(KeyError) as caught:
            check(adata, "Count")
        message = caught.value.args[0]
        assert message.startswith("layer='Count' is not a key of adata.layers")
        assert "did you mean 'counts'?" in message
        assert "Available: 'counts', 'logs'." in message


def test_keys_no_layers_at_all() -> None:
    with pytest.raises(KeyError, match="There are none"):
        validate_keys(named(counts()), "counts")


def test_keys_column() -> None:
    adata = named(counts())
    adata.obs["donor"] = "a"
    validate_keys(adata, None, {"batch_key": "donor", "labels_key": None})
    with pytest.raises(KeyError, match="batch_key='donr' is not a column") as caught:
        validate_keys(adata, None, {"batch_key": "donr"})
    assert "did you mean 'donor'?" in caught.value.args[0]


def test_keys_column_within_a_list() -> None:
    adata = named(counts())
    adata.obs["donor"] = "a"
    with pytest.raises(KeyError, match="categorical_covariate_keys='sex'") as caught:
        validate_keys(adata, obs_keys={"categorical_covariate_keys": ["donor", "sex"]})
    assert "did you mean" not in caught.value.args[0]


def test_keys_long_lists_are_cut() -> None:
    adata = named(counts())
    for i in range(14):
        adata.obs[f"column-{i:02d}"] = 0
    with pytest.raises(KeyError) as caught:
        validate_keys(adata, obs_keys={"batch_key": "x"})
    assert "'column-09', ..." in caught.value.args[0]
    assert "column-10" not in caught.value.args[0]


def test_keys_missing_values_where_a_model_reads_them() -> None:
    adata = named(counts())
    adata.obs["donor"] = pd.Categorical(["a", None, None] + ["b"] * 20)
    validate_keys(adata, obs_keys={"label_key": "donor"})
    pattern = r"batch_key='donor': 2 of 23 cells without a value(?s:.*)\.notna\(\)"
    with pytest.raises(ValueError, match=pattern):
        validate_keys(adata, obs_keys={"batch_key": "donor"})
    with pytest.raises(ValueError, match=pattern):
        validate_counts(adata, batch_key="donor")
