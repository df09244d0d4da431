"""Checks of user input: every bad value is found, named and counted, and good data passes."""

from __future__ import annotations

import pickle
import warnings
from typing import TYPE_CHECKING, Any

import anndata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from dra_scvi._data import matrices
from dra_scvi._data.columns import named_layers, validate_keys
from dra_scvi._data.validation import holds_counts, validate_counts
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
    monkeypatch.setattr(matrices, "BLOCK_ROWS", 5)


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


def message_of(
    matrix: object, layer: str | None = None, to_train: bool = True, **more: Any
) -> str:
    with pytest.raises(InvalidCountsError) as caught:
        validate_counts(named(matrix, **more), layer, to_train=to_train)
    return str(caught.value)


def with_values(*values: float) -> np.ndarray:
    matrix = counts()
    matrix[0, : len(values)] = values
    return matrix


NO_OTHER = "ass the layer of raw counts as layer=...; no other matrix here holds integers."
LOGS, SCALED = "It looks log-normalised", "It looks scaled"
NEEDED = ", and raw counts are needed: "


@pytest.mark.parametrize(
    ("values", "to_train", "remedy"),
    [
        ((np.nan,), True, "Repair them, or drop those cells or genes."),
        ((np.inf,), False, "Repair them, or drop those cells or genes."),
        ((0.5,), True, f"{LOGS}{NEEDED}p{NO_OTHER}"),
        ((0.5, 19.5), True, f"{LOGS}{NEEDED}p{NO_OTHER}"),
        ((0.5, 20), True, f"P{NO_OTHER}"),
        ((-1,), True, f"P{NO_OTHER}"),
        ((-1, 0.5), True, f"{SCALED}{NEEDED}p{NO_OTHER}"),
        ((0.5,), False, f"{LOGS}{NEEDED}put counts into adata.X, which the model reads."),
        ((-1,), False, "Put counts into adata.X, which the model reads."),
    ],
)
def test_remedies(values: tuple[float, ...], to_train: bool, remedy: str) -> None:
    assert message_of(with_values(*values), to_train=to_train).endswith(f"). {remedy}")


def test_the_value_is_shown_unless_it_is_none() -> None:
    assert "gene 'gene-0', value -1.5). " in message_of(with_values(-1.5))
    assert "gene 'gene-0'). " in message_of(with_values(np.nan))
    assert "gene 'gene-0'). " in message_of(with_values(-np.inf))


@pytest.mark.parametrize(
    ("value", "name"),
    [(np.nan, "NaN"), (np.inf, "infinite"), (-1, "negative"), (0.5, "non-integer")],
)
def test_one_value_and_two_values(value: float, name: str) -> None:
    assert f"adata.X holds 1 {name} value (first: " in message_of(with_values(value))
    assert f"adata.X holds 2 {name} values (first: " in message_of(with_values(value, value))


@pytest.mark.usefixtures("small_blocks")
def test_a_layer_is_not_its_own_remedy() -> None:
    bad = counts()
    bad[20, 0] = -1  # it begins with counts
    assert message_of(counts(), "bad", layers={"bad": bad}).endswith(
        "(integers are in: layer=None, that is adata.X)."
    )


def test_matrices_that_hold_counts_are_named() -> None:
    bad = with_values(-1)
    layers = {f"l{i:02d}": counts() for i in range(10)}
    others = {"zero": 0 * counts(), "words": counts().astype(complex), "bad": bad}
    said = message_of(bad, layers={**layers, **others})
    named_ten = ", ".join(f"layer={name!r}" for name in layers)
    assert said.endswith(f"). Pass the raw counts (integers are in: {named_ten}).")
    said = message_of(bad, layers={**layers, "l10": counts() > 1})
    assert said.endswith(f"(integers are in: {named_ten}, ...).")
    said = message_of(counts(), "bad", layers={"bad": bad})
    assert said.endswith("(integers are in: layer=None, that is adata.X).")
    said = message_of(counts(), "bad", layers={"bad": bad, "two": counts()})
    assert said.endswith("(integers are in: layer='two', layer=None, that is adata.X).")


@pytest.mark.parametrize("n_genes", [N_GENES, 3])
def test_raw_counts_are_named(n_genes: int) -> None:
    adata = named(counts())[:, :n_genes].copy()
    whole = named(counts())
    whole.raw = adata
    whole.X = with_values(-1)
    with pytest.raises(InvalidCountsError) as caught:
        validate_counts(whole)
    place = "adata.raw" if n_genes == N_GENES else "adata.raw, of 3 genes"
    assert f"(integers are in: {place}; adata.raw.to_adata() makes an AnnData of it)" in str(
        caught.value
    )


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[True, False]]), True),
        (np.array([[0, 3]], np.uint8), True),
        (np.array([[0, 3]]), True),
        (np.array([[-1, 3]]), False),
        (np.array([[0.0, 3.0]]), True),
        (np.array([[-1.0, 3.0]]), False),
        (np.array([[0.0, np.nan]]), False),
        (np.array([[0.0, np.inf]]), False),
        (np.array([[0.5, 1.0]]), False),
        (np.zeros((0, 2)), True),
        (sparse.csr_matrix(np.array([[0.0, 0.5]])), False),
        (sparse.csr_matrix((2, 2)), True),
    ],
)
def test_what_counts_are(values: Any, expected: bool) -> None:
    assert holds_counts(values) is expected


def test_cells_to_be_embedded_may_be_few_or_empty() -> None:
    one = named(np.ones((1, 2)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        validate_counts(one, to_train=False)
    with pytest.warns(
        UserWarning, match=r"^adata.X: 1 cell has no counts \(first: 'cell-0'\)\. The"
    ):
        validate_counts(named(np.zeros((1, 2))), to_train=False)
    for shape in ((0, 2), (1, 0)):
        with pytest.raises(InvalidCountsError, match="nothing to work on. Check earlier filters"):
            validate_counts(named(np.ones(shape)), to_train=False)
    with pytest.raises(InvalidCountsError, match="^adata has only 1 cell; at least 3 are needed"):
        validate_counts(named(np.ones((1, 2))))
    adata = named(np.array([[1.0, 1.0], [0.0, 0.0]]))
    adata.obs["donor"] = ["a", "b"]
    with pytest.warns(UserWarning, match="1 cell has no counts"):
        validate_counts(adata, batch_key="donor", to_train=False)


def test_genes_without_counts_are_remarked_on(caplog: pytest.LogCaptureFixture) -> None:
    matrix = counts()
    with caplog.at_level("INFO", "dra_scvi"):
        validate_counts(named(matrix))
        assert caplog.messages == []
        matrix[:, [2]] = 0
        validate_counts(named(matrix))
        matrix[:, [5]] = 0
        validate_counts(named(sparse.csc_matrix(matrix)))
    assert caplog.messages == [
        "adata.X: 1 gene has no counts.",
        "adata.X: 2 genes have no counts.",
    ]


def test_remarks_come_in_this_order_and_from_the_caller() -> None:
    matrix = counts()
    matrix[[3, 4]] = 0
    matrix[0, :2] = 0.5, 2**25
    adata = named(matrix, layers={"l": matrix})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adata.obs_names = ["a", "a", "a", *adata.obs_names[3:]]
    with pytest.warns(UserWarning) as caught:  # noqa: PT030
        validate_counts(adata, "l", allow_noninteger=True)
    said = [str(one.message) for one in caught]
    assert [one.filename for one in caught] == [__file__] * 4
    assert said[0].startswith("adata.layers['l'] holds 1 non-integer value (first: cell 'a', gene")
    assert said[1].startswith("adata.layers['l']: 2 cells have no counts (first: 'cell-3'). Their")
    assert said[2].startswith("2 cell names repeat an earlier one; adata.obs_names_make_unique()")
    assert said[3].startswith("adata.layers['l'] holds counts up to 33554432; above 2**24 = 16777")


def test_two_gene_names_are_not_unique() -> None:
    adata = named(counts())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adata.var_names = list("abbbccd")
    with pytest.raises(
        ValueError, match=r"^2 gene names are not unique \(first: 'b'\)\. Call adat"
    ):
        validate_counts(adata)


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
