"""A user's own data: what changed after registration, odd types, wrong arguments, hand-over."""

from __future__ import annotations

import inspect
import warnings
from typing import TYPE_CHECKING, Any

import anndata
import numpy as np
import pandas as pd
import pytest
import scvi
import torch
from anndata import AnnData
from scipy import sparse

from dra_scvi import DRA, PublishedDRA, metrics
from dra_scvi._data.matrices import check_structure
from dra_scvi._data.minibatches import Minibatches, Share
from dra_scvi._data.rows import StoredRows
from dra_scvi._data.validation import validate_counts
from dra_scvi._exceptions import GeneMismatchError, InvalidCountsError
from dra_scvi._kernels import compiled as _count_kernel
from dra_scvi._kernels import rows as rows_kernel
from tests.helpers import N_CELLS, N_GENES, QUIET, SMALL, cells

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


CHANGED = "not what was registered"
GETTERS: dict[str, Callable[[DRA], Any]] = {
    "get_latent_representation": lambda m: m.get_latent_representation(),
    "get_latent_representation-drawn": lambda m: m.get_latent_representation(give_mean=False),
    "get_elbo": lambda m: m.get_elbo(),
    "get_marginal_ll": lambda m: m.get_marginal_ll(n_mc_samples=2),
    "get_reconstruction_error": lambda m: m.get_reconstruction_error(),
    "get_normalized_expression": lambda m: m.get_normalized_expression(),
    "get_likelihood_parameters": lambda m: m.get_likelihood_parameters(),
    "get_latent_library_size": lambda m: m.get_latent_library_size(),
    "get_aggregated_posterior": lambda m: m.get_aggregated_posterior(),
    "get_feature_correlation_matrix": lambda m: m.get_feature_correlation_matrix(n_samples=1),
    "posterior_predictive_sample": lambda m: m.posterior_predictive_sample(),
    "differential_expression": lambda m: m.differential_expression(groupby="cell_type"),
    "differential_abundance": lambda m: m.differential_abundance(sample_key="batch"),
    "minify_adata": lambda m: m.minify_adata(),
    "train": lambda m: m.train(1, **QUIET),
}


def untrained(adata: AnnData, made_with: dict[str, Any] | None = None, **setup: Any) -> DRA:
    """Make a model whose getters work, without the time that training takes."""
    DRA.setup_anndata(adata, **setup)
    model = DRA(adata, **{**SMALL, **(made_with or {})})
    model.is_trained_ = True
    model.module.eval()
    return model


def elbo(model: DRA, adata: AnnData | None = None) -> float:
    torch.manual_seed(0)
    return float(model.get_elbo(adata))


def with_covariates(number: int = N_CELLS) -> AnnData:
    adata = cells(n_cells=number)
    generator = np.random.default_rng(0)
    adata.obs["age"] = generator.normal(size=number)
    adata.obs["smokes"] = generator.integers(0, 2, number).astype(bool)
    adata.obs["factor"] = generator.uniform(0.5, 2, number)
    return adata


# -- what changed after registration ------------------------------------------------------------


def half_of_the_genes(adata: AnnData) -> None:
    adata._inplace_subset_var(np.arange(N_GENES) % 2 == 0)


def genes_backwards(adata: AnnData) -> None:
    adata._inplace_subset_var(np.arange(N_GENES)[::-1])


def rename_genes(adata: AnnData) -> None:
    adata.var_names = [f"other_{i}" for i in range(N_GENES)]


def half_of_the_cells(adata: AnnData) -> None:
    adata._inplace_subset_obs(np.arange(N_CELLS) < N_CELLS // 2)


def cells_backwards(adata: AnnData) -> None:
    adata._inplace_subset_obs(np.arange(N_CELLS)[::-1])


def halve(adata: AnnData) -> None:
    adata.X.data[:] *= 0.5


def log(adata: AnnData) -> None:
    np.log1p(adata.X.data, out=adata.X.data)


def one_entry(adata: AnnData) -> None:
    adata.X.data[-1] += 1


def rows_backwards(adata: AnnData) -> None:
    adata.X = adata.X[::-1].copy()


def columns_backwards(adata: AnnData) -> None:
    adata.X = adata.X[:, ::-1].copy()


CHANGES = {
    half_of_the_genes: "6 genes in place of 12 (first one gone: 'gene_1')",
    genes_backwards: "the genes are in another order (gene 0 is 'gene_11', and was 'gene_0')",
    rename_genes: "12 genes have another name (first: 'other_0', which was 'gene_0')",
    half_of_the_cells: "30 cells in place of 60",
    cells_backwards: "the cells are in another order",
    halve: "no longer counts",
    log: "adata.X changed in 60 cells",
    one_entry: "adata.X changed in 1 cell (first: 'cell_59'), they are other counts",
    rows_backwards: "they are other counts",
    columns_backwards: "they are other counts",
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_changed_in_place(change: Callable[[AnnData], None]) -> None:
    """Genes, cells or counts changed in place after registration: an error names the change."""
    adata = cells()
    model = untrained(adata, batch_key="batch")
    change(adata)
    with pytest.raises(ValueError, match=CHANGED) as caught:
        model.get_latent_representation()
    assert CHANGES[change] in str(caught.value)
    assert "adata.copy()" in str(caught.value)
    genes = {half_of_the_genes, genes_backwards, rename_genes}
    counts = {halve, log, one_entry, rows_backwards, columns_backwards}
    assert isinstance(caught.value, GeneMismatchError) == (change in genes)
    assert isinstance(caught.value, InvalidCountsError) == (change in counts)


@pytest.mark.parametrize("getter", GETTERS)
def test_changed_for_every_getter(getter: str) -> None:
    """Counts normalised in place: every getter refuses them, through whichever code it reads."""
    adata = cells()
    model = untrained(adata, batch_key="batch")
    adata.obsm["X_latent_qzm"], adata.obsm["X_latent_qzv"] = model.get_latent_representation(
        return_dist=True
    )
    halve(adata)
    with pytest.raises(InvalidCountsError, match=CHANGED):
        GETTERS[getter](model)


def test_changed_and_saved(tmp_path: Path) -> None:
    """Genes removed in place, then saved: refused, and no folder is left with names of others."""
    adata = cells()
    model = untrained(adata)
    half_of_the_genes(adata)
    with pytest.raises(GeneMismatchError, match=CHANGED):
        model.save(tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_changed_before_the_model_is_made() -> None:
    """Counts changed between setup_anndata and DRA(adata): refused at once."""
    adata = cells()
    DRA.setup_anndata(adata)
    halve(adata)
    with pytest.raises(InvalidCountsError, match=CHANGED):
        DRA(adata, **SMALL)


@pytest.mark.parametrize("form", ["dense", "fortran", "csc", "strided", "layer"])
def test_changed_in_every_form(form: str) -> None:
    """A single count changed in place is found, whatever holds the counts."""
    adata = cells(n_cells=600, n_genes=40)
    layer = None
    dense = adata.X.toarray()
    if form == "layer":
        layer, adata.layers["counts"] = "counts", adata.X.copy()
    else:
        wide = np.repeat(dense, 2, axis=1)
        forms = {
            "dense": lambda: dense,
            "fortran": lambda: np.asfortranarray(dense),
            "csc": lambda: sparse.csc_matrix(dense),
            "strided": lambda: wide[:, ::2],
        }
        adata.X = forms[form]()
    model = untrained(adata, layer=layer)
    model.get_elbo()
    matrix = adata.layers["counts"] if form == "layer" else adata.X
    values = matrix.data if sparse.issparse(matrix) else matrix
    values[np.unravel_index(np.argmax(values), values.shape)] += 1
    with pytest.raises(InvalidCountsError, match="changed in 1 cell "):
        model.get_elbo()


def test_layer_deleted() -> None:
    """The registered layer was deleted: the error names it, instead of a KeyError."""
    adata = cells()
    adata.layers["counts"] = adata.X.copy()
    model = untrained(adata, layer="counts")
    del adata.layers["counts"]
    with pytest.raises(InvalidCountsError, match=r"adata.layers\['counts'\].* is gone"):
        model.get_elbo()


@pytest.mark.parametrize("change", ["values", "renamed", "table", "codes"])
def test_column_changed(change: str) -> None:
    """A batch, category or covariate overwritten after registration: refused, with its name."""
    adata = with_covariates()
    adata.obs["batch"] = adata.obs["batch"].astype("category")
    setup = {"batch_key": "batch", "continuous_covariate_keys": ["age"]}
    model = untrained(adata, **setup)
    if change == "values":
        adata.obs.loc[adata.obs_names[:3], "age"] += 1.0
        named = r"adata.obs\['age'\] changed for 3 cells"
    elif change == "renamed":
        names = adata.obs["batch"].cat.categories
        adata.obs["batch"] = adata.obs["batch"].cat.rename_categories(
            dict(zip(names, "zy", strict=True))
        )
        named = r"adata.obs\['batch'\] changed for 60 cells"
    elif change == "codes":
        adata.obs["_scvi_batch"] = 0
        named = r"adata.obs\['_scvi_batch'\] changed for"
    else:
        adata.obsm["_scvi_extra_continuous_covs"] *= 2
        named = r"adata.obsm\['_scvi_extra_continuous_covs'\] changed for 60 cells"
    for getter in ("get_latent_representation", "get_elbo"):
        with pytest.raises(ValueError, match=named):
            GETTERS[getter](model)


def test_same_counts_in_another_form() -> None:
    """The same data in another form (CSC, dense, integers, other cell names): all works."""
    adata = cells()
    adata.obs["batch"] = adata.obs["batch"].astype(str)
    model = untrained(adata, batch_key="batch", labels_key="cell_type")
    expected = model.get_latent_representation()
    for matrix in (adata.X.tocsc(), adata.X.toarray(), adata.X.toarray().astype(np.int64)):
        adata.X = matrix
        np.testing.assert_allclose(model.get_latent_representation(), expected, atol=1e-4)
    adata.obs_names = [f"renamed_{i}" for i in range(N_CELLS)]
    adata.obs["batch"] = adata.obs["batch"].astype("category")
    adata.obs["batch"] = adata.obs["batch"].cat.reorder_categories(
        list(adata.obs["batch"].cat.categories)[::-1]
    )
    adata.obs["cell_type"] = "annotated anew"
    adata.obsm["X_dra"] = expected
    np.testing.assert_allclose(model.get_latent_representation(), expected, atol=1e-4)


def test_query_changed_between_two_getters() -> None:
    """Other cells, changed between two calls: refused as the model's own are."""
    model = untrained(cells(), batch_key="batch")
    query = cells(seed=1)
    model.get_latent_representation(query)
    halve(query)
    with pytest.raises(InvalidCountsError, match=CHANGED):
        model.get_latent_representation(query)


def test_registered_by_another_model() -> None:
    """A second model on the same data, with other batches: the first one goes on as before."""
    adata = cells()
    adata.obs["other"] = np.where(np.arange(N_CELLS) < 7, "q", "p")
    first = untrained(adata, {"encode_covariates": True}, batch_key="batch")
    expected = first.get_latent_representation()
    codes = adata.obs["_scvi_batch"].to_numpy().copy()
    untrained(adata, batch_key="other")
    rows = first.adata_manager.create_torch_dataset()[list(range(N_CELLS))]
    assert np.array_equal(rows["batch"].ravel(), codes)
    np.testing.assert_array_equal(first.get_latent_representation(), expected)


def test_names_changed_beside_a_file(tmp_path: Path) -> None:
    """Counts in a file: at least the names of the genes and the number of cells are compared."""
    cells().write_h5ad(tmp_path / "a.h5ad")
    adata = anndata.read_h5ad(tmp_path / "a.h5ad", backed="r")
    model = untrained(adata)
    model.get_latent_representation()
    rename_genes(adata)
    with pytest.raises(GeneMismatchError, match=CHANGED):
        model.get_latent_representation()
    adata.file.close()


@pytest.mark.parametrize("form", ["csr", "csc", "dense", "fortran", "strided"])
def test_one_entry_of_wide_counts(form: str, tmp_path: Path) -> None:
    """One count of a million made NaN or -5 in place: no getter, training or save goes on."""
    adata = cells(n_cells=2_000, n_genes=600)
    dense = adata.X.toarray() + 1
    forms = {
        "csr": lambda: sparse.csr_matrix(dense),
        "csc": lambda: sparse.csc_matrix(dense),
        "dense": lambda: dense,
        "fortran": lambda: np.asfortranarray(dense),
        "strided": lambda: np.repeat(dense, 2, axis=1)[:, ::2],
    }
    adata.X = forms[form]()
    model = untrained(adata)
    values = adata.X.data if sparse.issparse(adata.X) else adata.X
    calls = GETTERS["train"], GETTERS["get_elbo"], lambda m: m.save(tmp_path / "model")
    for number, (share, value) in enumerate([(0.123, -5), (0.5, np.nan), (0.987, -5)]):
        place = np.unravel_index(int(share * values.size), values.shape)
        before, values[place] = values[place], value
        with pytest.raises(InvalidCountsError, match="changed in 1 cell .*no longer counts"):
            calls[number](model)
        values[place] = before
    assert np.isfinite(elbo(model))


@pytest.mark.parametrize("name", ["disorder-1", "cells are in another order"])
def test_cells_named_like_a_message(name: str) -> None:
    """Cells may be renamed after registration, whatever words their names hold."""
    adata = cells()
    model = untrained(adata)
    expected = model.get_latent_representation()
    adata.obs_names = [name, *adata.obs_names[1:]]
    np.testing.assert_array_equal(model.get_latent_representation(), expected)


# -- compiled code ----------------------------------------------------------------------


def damaged(**changes: Any) -> sparse.csr_matrix:
    matrix = sparse.csr_matrix(np.arange(1.0, 13.0, dtype=np.float32).reshape(3, 4))
    for name, (position, value) in changes.items():
        getattr(matrix, name)[position] = value
    return matrix


@pytest.mark.parametrize(
    ("matrix", "row", "error"),
    [
        pytest.param(damaged(indices=(5, 4)), 1, InvalidCountsError, id="column-too-high"),
        pytest.param(damaged(indices=(5, -1)), 1, InvalidCountsError, id="column-negative"),
        pytest.param(damaged(indptr=(2, 99)), 1, InvalidCountsError, id="end-beyond"),
        pytest.param(damaged(indptr=(1, -3)), 1, InvalidCountsError, id="start-negative"),
        pytest.param(damaged(indptr=(1, 9)), 1, InvalidCountsError, id="end-before-start"),
        pytest.param(damaged(indptr=(2, 12)), 1, InvalidCountsError, id="longer-than-a-row"),
        pytest.param(damaged(), 3, IndexError, id="row-too-high"),
        pytest.param(damaged(), -1, IndexError, id="row-negative"),
    ],
)
def test_kernels_of_rows_stay_inside(
    matrix: sparse.csr_matrix, row: int, error: type[Exception]
) -> None:
    """A damaged sparse row, or one that is not there: an error, never another's memory."""
    rows = np.array([0, row])
    with pytest.raises(error):
        rows_kernel.gather_rows(matrix, rows)
    with pytest.raises(error):
        rows_kernel.project_rows(matrix, rows, np.ones((4, 2), np.float32), True, 1)


def test_weights_of_other_genes() -> None:
    """Weights for fewer genes than the counts have: refused before the kernel runs."""
    rows = np.array([0])
    with pytest.raises(ValueError, match=r"weight has the shape \(3, 2\), not \(4, 2\)"):
        rows_kernel.project_rows(damaged(), rows, np.ones((3, 2), np.float32), False, 1)
    with pytest.raises(TypeError, match="float64, not float32"):
        rows_kernel.project_rows(damaged(), rows, np.ones((4, 2)), False, 1)
    with pytest.raises(TypeError, match="whole numbers"):
        rows_kernel.gather_rows(damaged(), np.array([0.5]))


@pytest.mark.parametrize("wrong", ["mu", "theta", "zi_logits", "scale"])
def test_kernels_of_the_likelihood_compare_shapes(wrong: str) -> None:
    """Arrays of other shapes: refused before the kernel runs."""
    shapes = {"x": (3, 4), "mu": (3, 4), "theta": (4,), "zi_logits": (3, 4), "scale": (3,)}
    shapes[wrong] = tuple(n - 1 for n in shapes[wrong])
    x, mu, theta, zi, scale = (np.ones(shape, np.float32) for shape in shapes.values())
    kernel, arrays = _count_kernel.log_prob_and_derivatives, (x, mu, theta, zi)
    if wrong == "scale":
        kernel, arrays = _count_kernel.log1p_counts, (x, scale)
    with pytest.raises(ValueError, match=f"{wrong} has the shape"):
        kernel(*arrays, 1)
    if wrong in ("scale", "zi_logits"):
        with pytest.raises(ValueError, match=f"{wrong} has the shape"):
            _count_kernel.log_expression_and_derivatives(mu, zi, scale, 1)


@pytest.mark.parametrize("value", [N_GENES, -1])
def test_index_outside_of_a_stored_matrix(value: int, tmp_path: Path) -> None:
    """An index beyond the genes, or negative, in memory or in a file: refused at registration."""
    adata = cells()
    adata.write_h5ad(tmp_path / "a.h5ad")
    adata.X.indices[5] = value
    with pytest.raises(InvalidCountsError, match="damaged sparse matrix"):
        check_structure(adata.X, "adata.X")
    with pytest.raises(InvalidCountsError, match="damaged sparse matrix"):
        DRA.setup_anndata(adata)
    backed = anndata.read_h5ad(tmp_path / "a.h5ad", backed="r+")
    backed.file._file["X/indices"][5] = value
    with pytest.raises(InvalidCountsError, match="damaged sparse matrix"):
        validate_counts(backed)
    backed.file.close()


def test_stored_duplicates_are_summed() -> None:
    """A stored sparse matrix with an entry in two parts gives what the dense one gives."""
    dense = np.array([[5.0, 0.0], [0.0, 1.0]], np.float32)
    parts = np.array([2.0, 3.0, 1.0], np.float32), np.array([0, 0, 1]), np.array([0, 2, 3])
    rows = StoredRows(sparse.csr_matrix(parts, shape=(2, 2)))
    np.testing.assert_array_equal(rows.take(torch.tensor([1, 0])).numpy(), dense[::-1])


def test_processes_shuffle_stored_blocks_alike() -> None:
    """Two processes on one file, each in a random state of its own: every cell comes once."""
    matrix = np.arange(16_384 + 256, dtype=np.float32)[:, None]
    seen = []
    for rank in range(2):
        torch.manual_seed(rank)
        share = Share(rank, 2, agree=lambda _: 5)
        rows = {"X": StoredRows(matrix)}
        batches = Minibatches(rows, np.arange(len(matrix)), 512, shuffle=True, share=share)
        assert batches.in_blocks
        seen.append(torch.cat([batch["X"].ravel() for batch in batches]))
    assert torch.equal(torch.cat(seen).sort().values, torch.from_numpy(matrix.ravel()))


# -- types ----------------------------------------------------------------------

COVARIATES: dict[str, Callable[[AnnData], None]] = {
    "float-beside-bool": lambda adata: None,
    "object": lambda adata: recast(adata, object),
    "Float64": lambda adata: recast(adata, "Float64"),
    "Int64": lambda adata: recast(adata, "Float64", smokes="Int64"),
    "boolean": lambda adata: recast(adata, "float32", smokes="boolean"),
    "big-endian": lambda adata: recast(adata, ">f8"),
    "longdouble": lambda adata: recast(adata, np.longdouble),
}


def recast(adata: AnnData, dtype: Any, smokes: Any = None) -> None:
    for key in ("age", "factor"):
        adata.obs[key] = adata.obs[key].astype(dtype)
    adata.obs["smokes"] = adata.obs["smokes"].astype(smokes or bool)


@pytest.mark.parametrize("kind", COVARIATES)
def test_columns_of_every_numeric_type(kind: str) -> None:
    """Covariates and size factors of mixed and nullable types: trained on, and read, as floats."""
    setup = {"continuous_covariate_keys": ["age", "smokes"], "size_factor_key": "factor"}
    plain = with_covariates()
    plain.obs["smokes"] = plain.obs["smokes"].astype(float)
    adata = with_covariates()
    COVARIATES[kind](adata)
    model = untrained(adata, {"encode_covariates": True}, **setup)
    for getter in (model.get_latent_representation, lambda data=None: elbo(model, data)):
        np.testing.assert_allclose(getter(), getter(plain), rtol=1e-4, atol=1e-6)
    model.train(1, batch_size=32, **QUIET)
    assert np.isfinite(model.get_latent_representation(plain)).all()


@pytest.mark.parametrize(
    ("form", "dtype"),
    [
        *(("dense", dtype) for dtype in (">f4", ">f8", ">i4", ">u2", "g", "e", "u8", "?")),
        *((form, dtype) for form in ("csr", "csc") for dtype in ("g", "u8", "?")),
    ],
)
def test_counts_of_every_type(form: str, dtype: str) -> None:
    """Big-endian, half, long and unsigned counts give what float32 gives, in every reader."""
    adata, plain = cells(), cells()
    counts = plain.X.toarray()
    counts = (counts > 0).astype(np.float32) if dtype == "?" else counts
    plain.X = sparse.csr_matrix(counts)
    typed = counts.astype(dtype)
    if form == "dense":
        adata.X = typed
    else:
        matrix = sparse.csr_matrix(counts) if form == "csr" else sparse.csc_matrix(counts)
        matrix.data = matrix.data.astype(dtype)
        adata.X = matrix
    model = untrained(adata)
    np.testing.assert_allclose(
        model.get_latent_representation(), model.get_latent_representation(plain), atol=1e-5
    )
    np.testing.assert_allclose(elbo(model), elbo(model, plain), rtol=1e-4)
    model.train(1, batch_size=32, **QUIET)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *((key, v) for key in ("age", "factor") for v in (np.inf, -np.inf, np.nan, 1e39, "many")),
        ("factor", 0.0),
        ("factor", -1.0),
    ],
)
def test_columns_that_are_no_finite_numbers(key: str, value: Any) -> None:
    """A NaN, infinite or (size factor) negative value: refused at registration and in a query."""
    setup = {"continuous_covariate_keys": ["age"], "size_factor_key": "factor"}
    model = untrained(with_covariates(), **setup)
    adata = with_covariates()
    adata.obs[key] = adata.obs[key].astype(object)
    adata.obs.loc["cell_7", key] = value
    for use in (
        lambda: DRA.setup_anndata(adata, **setup),
        lambda: model.get_latent_representation(adata),
        lambda: model.get_elbo(adata),
    ):
        with pytest.raises(ValueError, match=rf"adata.obs\['{key}'\]") as caught:
            use()
        text = str(caught.value)
        assert "_key" in text
        assert any(word in text for word in ("cell_7", "many", "without"))


# -- hand-over ----------------------------------------------------------------------


def with_labels() -> AnnData:
    adata = cells()
    adata.obs["label"] = np.array(["one", "two", "Unknown"])[np.arange(N_CELLS) % 3]
    return adata


@pytest.mark.parametrize("labelled", [True, False])
def test_scanvi_takes_over(labelled: bool) -> None:
    """SCANVI.from_scvi_model(dra_model): begins with DRA's weights, trains and predicts."""
    setup = {"labels_key": "label"} if labelled else {}
    made_with = {"n_hidden": [16, 16], "prior": "normal", "n_neighbors": 5}
    model = untrained(with_labels(), made_with, batch_key="batch", **setup)
    scanvi = scvi.model.SCANVI.from_scvi_model(model, "Unknown", labels_key="label")
    own, theirs = model.module.z_encoder.state_dict(), scanvi.module.z_encoder.state_dict()
    assert own.keys() == theirs.keys()
    assert all(torch.equal(own[name], theirs[name]) for name in own)
    scanvi.train(max_epochs=2, batch_size=32, **QUIET)
    assert set(scanvi.predict()) <= {"one", "two"}
    assert model.get_latent_representation().shape == (N_CELLS, SMALL["n_latent"])


def test_scanvi_takes_over_a_loaded_model(tmp_path: Path) -> None:
    """The same of a model that was saved and loaded, which keeps all that it was made with."""
    adata = with_labels()
    untrained(adata, {"prior_anchor": 0.25}, batch_key="batch").save(tmp_path / "model")
    model = DRA.load(tmp_path / "model", adata=adata, accelerator="cpu")
    assert model.init_arguments["prior_anchor"] == 0.25
    assert model.module.prior.anchor == 0.25
    scvi.model.SCANVI.from_scvi_model(model, "Unknown", labels_key="label")


def test_scanvi_cannot_take_over_unequal_widths() -> None:
    """SCANVI of a model with hidden layers of several widths: one sentence says why not."""
    model = untrained(with_labels(), {"n_hidden": [16, 8]}, batch_key="batch")
    with pytest.raises(TypeError, match=r"cannot be handed over.*\[16, 8\].*n_hidden"):
        scvi.model.SCANVI.from_scvi_model(model, "Unknown", labels_key="label")


def test_scanvi_cannot_take_over_the_published_model() -> None:
    """SCANVI of a PublishedDRA: one sentence says why not."""
    adata = with_labels()
    PublishedDRA.setup_anndata(adata)
    model = PublishedDRA(adata, n_hidden=[8], n_hidden_discriminator=[8])
    model.is_trained_ = True
    with pytest.raises(TypeError, match="cannot be handed over.*released program"):
        scvi.model.SCANVI.from_scvi_model(model, "Unknown", labels_key="label")


def test_solo_takes_over() -> None:
    """SOLO.from_scvi_model(dra_model): trains and predicts doublets."""
    adata = cells()
    model = untrained(adata, batch_key="batch")
    solo = scvi.external.SOLO.from_scvi_model(model, restrict_to_batch=adata.obs["batch"].iloc[0])
    solo.train(max_epochs=1, batch_size=32, **QUIET)
    assert list(solo.predict().columns) == ["doublet", "singlet"]


def test_criticism_takes_a_model() -> None:
    """PosteriorPredictiveCheck of scvi-tools works with a DRA model."""
    pytest.importorskip("xarray")
    pytest.importorskip("sparse")
    from scvi.criticism import PosteriorPredictiveCheck

    adata = cells()
    adata.X = adata.X.toarray()  # it cannot compare sparse floats
    check = PosteriorPredictiveCheck(adata, {"DRA": untrained(adata)}, n_samples=2)
    check.coefficient_of_variation("cells")
    assert np.isfinite(check.metrics["cv_gene"]["Raw"]).all()
    assert "DRA" in check.metrics["cv_gene"]


def test_hub_takes_a_model(tmp_path: Path) -> None:
    """HubMetadata and HubModel of scvi-tools read, and load, a saved DRA model."""
    pytest.importorskip("huggingface_hub")
    from huggingface_hub import ModelCard
    from scvi.hub import HubMetadata, HubModel

    model = untrained(cells(), batch_key="batch")
    model.save(tmp_path / "model", save_anndata=True)
    metadata = HubMetadata.from_dir(
        str(tmp_path / "model"), anndata_version="0.12", model_parent_module="dra_scvi"
    )
    assert metadata.model_cls_name == "DRA"
    hub = HubModel(str(tmp_path / "model"), metadata=metadata, model_card=ModelCard("A card."))
    found, expected = (m.get_latent_representation() for m in (hub.model, model))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_estimates_stay_allowed(tmp_path: Path) -> None:
    """allow_noninteger=True holds for a loaded model and for its queries."""
    adata = cells()
    adata.X = adata.X * 0.5
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        untrained(adata, allow_noninteger=True).save(tmp_path / "model")
        model = DRA.load(tmp_path / "model", adata=adata.copy(), accelerator="cpu")
        query = adata.copy()
        assert model.get_latent_representation(query).shape[0] == N_CELLS
    assert "allow_noninteger" not in model.registry["setup_args"]


# -- arguments ----------------------------------------------------------------------


def test_indices_in_every_form() -> None:
    """Tuples, masks, pandas objects, `np.argwhere`, slices and negative indices: as in NumPy."""
    model = untrained(cells(), batch_key="batch")
    mask = np.zeros(N_CELLS, bool)
    mask[[3, 5, 59]] = True
    expected = model.get_latent_representation()[[3, 5, 59]]
    forms = {
        "tuple": (3, 5, 59),
        "range-like": np.array([3, 5, 59], np.uint8),
        "negative": [3, 5, -1],
        "argwhere": np.argwhere(mask),
        "mask": mask,
        "list of bools": mask.tolist(),
        "series": pd.Series(mask, dtype="boolean"),
        "index": pd.Index([3, 5, 59]),
        "tensor": torch.tensor([3, 5, 59]),
    }
    library = model.get_latent_library_size(give_mean=False)[[3, 5, 59]]
    for name, cells_ in forms.items():
        found = model.get_latent_representation(indices=cells_)
        np.testing.assert_allclose(found, expected, atol=1e-5, err_msg=name)
        found = model.get_latent_library_size(indices=cells_, give_mean=False)
        np.testing.assert_allclose(found, library, err_msg=name)
    assert len(model.get_latent_representation(indices=slice(0, 10, 2))) == 5
    assert model.get_latent_representation(indices=[]).shape == (0, SMALL["n_latent"])


@pytest.mark.parametrize(
    ("indices", "error", "words"),
    [
        pytest.param([0, N_CELLS], IndexError, "indices holds 60, and there are 60", id="beyond"),
        pytest.param([-N_CELLS - 1], IndexError, "indices holds -61", id="before"),
        pytest.param([True, False], IndexError, "mask of 2 entries", id="short-mask"),
        pytest.param(np.eye(3, dtype=int), ValueError, "one dimension", id="matrix"),
        pytest.param(["cell_1"], TypeError, "get_indexer", id="names"),
        pytest.param([0.5], TypeError, "positions of cells", id="fractions"),
    ],
)
def test_indices_that_are_none(indices: Any, error: type[Exception], words: str) -> None:
    """Positions outside, a mask of another length, names: one sentence, from every getter."""
    model = untrained(cells())
    for getter in ("get_latent_representation", "get_elbo", "get_normalized_expression"):
        with pytest.raises(error, match=words):
            getattr(model, getter)(indices=indices)


def test_every_getter_checks_its_indices() -> None:
    """No getter of scvi-tools that is told of cells goes by without the check."""
    for name, method in inspect.getmembers(scvi.model.SCVI, inspect.isfunction):
        named = {"indices", "idx1"} & set(inspect.signature(method).parameters)
        if not named or name.startswith("_"):
            continue
        model = untrained(cells())
        arguments = dict.fromkeys(named, [N_CELLS + 7])
        if name == "get_importance_weights":
            arguments |= {"adata": None, "qz": None, "px": None, "zs": None}
        with pytest.raises(IndexError, match="holds 67"):
            getattr(model, name)(**arguments)


@pytest.mark.parametrize(
    "wrong",
    [
        *({"n_latent": value} for value in (0, -1, 1.5, True, "10")),
        *({"n_layers": value} for value in (0, 1.5)),
        *({"n_hidden": value} for value in (0, [], [16, 0], 1.5, True)),
        *({"n_hidden_discriminator": value} for value in ([], [0], 16)),
        *({"dropout_rate": value} for value in (2, 1, -0.1, "0.1")),
        *({"n_components": value} for value in (0, 1.5)),
        *({"prior_anchor": value} for value in (-0.1, 1.1)),
        *({"n_neighbors": value} for value in (-1, 1.5)),
    ],
    ids=str,
)
def test_sizes_that_no_model_has(wrong: dict[str, Any]) -> None:
    """A size that no network can have: refused when the model is made, in one sentence."""
    adata = cells()
    DRA.setup_anndata(adata)
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=rf"^{name}=") as caught:
        DRA(adata, **wrong)
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize(
    "wrong",
    [
        *({"max_epochs": value} for value in (0, -1, 1.5, True)),
        *({"batch_size": value} for value in (0, -1, 1, 32.0)),
        *({"train_size": value} for value in (0, 1.2, -0.5, "0.9")),
        {"validation_size": 1.2},
        {"train_size": 0.8, "validation_size": 0.5},
    ],
    ids=str,
)
def test_numbers_that_no_training_has(wrong: dict[str, Any]) -> None:
    """Epochs, minibatches and shares that cannot be: refused before training begins."""
    model = untrained(cells())
    with pytest.raises(ValueError, match=rf"^{next(iter(wrong))}="):
        model.train(**{"max_epochs": 1, **wrong}, **QUIET)


@pytest.mark.parametrize("batch_size", [0, -1, 1.5])
def test_minibatches_that_no_getter_has(batch_size: Any) -> None:
    """A minibatch of no cells: refused by getters; one of one cell is fine there."""
    model = untrained(cells())
    for getter in ("get_latent_representation", "get_elbo"):
        with pytest.raises(ValueError, match="^batch_size="):
            getattr(model, getter)(batch_size=batch_size)
        getattr(model, getter)(batch_size=1, indices=[0, 1])


@pytest.mark.parametrize(
    ("setup", "words"),
    [
        ({"categorical_covariate_keys": "batch"}, r"as in \['batch'\]"),
        ({"continuous_covariate_keys": "age"}, r"as in \['age'\]"),
        ({"batch_key": ["batch", "cell_type"]}, "one name is needed.*covariates"),
        ({"labels_key": ("batch",)}, "one name is needed"),
        ({"layer": 1}, "layer=1: a name is needed"),
        ({"layer": ["counts"]}, "one name is needed"),
        ({"categorical_covariate_keys": [1]}, "a name is needed"),
    ],
    ids=str,
)
def test_names_that_are_none(setup: dict[str, Any], words: str) -> None:
    """A string for a list of columns, a list for one column, a number: said with the remedy."""
    with pytest.raises(TypeError, match=words):
        DRA.setup_anndata(with_covariates(), **setup)


def test_columns_in_a_tuple() -> None:
    """Several columns may be named in any sequence."""
    adata = with_covariates()
    model = untrained(adata, continuous_covariate_keys=("age", "factor"))
    assert model.registry["setup_args"]["continuous_covariate_keys"] == ["age", "factor"]
    model.get_elbo()


# -- queries ----------------------------------------------------------------------


@pytest.mark.parametrize("key", ["batch", "site"])
def test_query_columns(key: str) -> None:
    """A query with gaps, other types, unknown or no categories: one clear error about each."""
    reference = cells()
    reference.obs["site"] = np.arange(N_CELLS) % 3
    setup = {"batch_key": "batch", "categorical_covariate_keys": ["site"]}
    model = untrained(reference, **setup)
    cases: list[tuple[Any, str]] = [
        (lambda column: column.astype(object).where(np.arange(N_CELLS) > 1), "2 of 60 cells"),
        (lambda column: pd.Series(["new"] * N_CELLS, column.index), "'new'"),
        (lambda column: pd.Series([99] * N_CELLS, column.index), "'99'"),
        (lambda column: None, "is not a column of adata.obs"),
    ]
    if key == "site":
        cases.append((lambda column: column.astype(str), "of type str .*as int"))
    for change, words in cases:
        query = cells()
        query.obs["site"] = np.arange(N_CELLS) % 3
        column = change(query.obs[key])
        if column is None:
            del query.obs[key]
        else:
            query.obs[key] = column
        for getter in (model.get_latent_representation, model.get_elbo):
            with pytest.raises((ValueError, KeyError), match=words) as caught:
                getter(query)
            assert key in str(caught.value)
            assert "extend_categories" not in str(caught.value)


def test_new_batch_in_python() -> None:
    """Cells of a new batch: what a Python user can do is a note, not in the sentence itself."""
    model = untrained(cells(), batch_key="batch")
    query = cells()
    query.obs["batch"] = "new"
    with pytest.raises(ValueError, match="1 category that the model does not know") as caught:
        model.get_latent_representation(query)
    assert "load_query_data" in caught.value.__notes__[0]
    assert "load_query_data" not in str(caught.value)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ("ENSG{:011d}", "no name matches. Identifiers against symbols.*'gene_0'.*'ENSG0000000000"),
        ("gene_{}.3", "12 differ in version suffix alone .'gene_0' in the model, 'gene_0.3'"),
        ("GENE_{}", "12 differ in case alone .'gene_0' in the model, 'GENE_0'"),
    ],
)
def test_gene_names_of_another_kind(names: str, words: str) -> None:
    """Identifiers against symbols, versions, case: said so, with an example of each."""
    model = untrained(cells())
    query = cells()
    query.var_names = [names.format(i) for i in range(N_GENES)]
    with pytest.raises(GeneMismatchError, match=words) as caught:
        model.get_latent_representation(query)
    assert "with 0" not in str(caught.value)
    assert "None of the model's 12 genes" in str(caught.value)


def test_gene_names_that_match_in_part() -> None:
    """Few genes match: how many, and no advice to fill in the rest; of many, the usual one."""
    model = untrained(cells())
    few, many = cells(), cells()
    few.var_names = [f"gene_{i}" if i < 3 else f"x{i}" for i in range(N_GENES)]
    many.var_names = [f"gene_{i}" if i < 10 else f"x{i}" for i in range(N_GENES)]
    with pytest.raises(GeneMismatchError, match="9 of the model's 12 .* only 3 match"):
        model.get_latent_representation(few)
    with pytest.raises(GeneMismatchError, match="2 of the model's 12 .*with 0 where"):
        model.get_latent_representation(many)


def test_printed_model() -> None:
    """print(model) names the layers and the prior that it has, not None."""
    adata = cells()
    DRA.setup_anndata(adata)
    for made_with, words in (
        ({}, "n_layers: 1,"),
        ({"n_latent": 2}, "n_layers: 2,"),
        ({"n_hidden": [8, 8, 8]}, "n_layers: 3,"),
    ):
        summary = DRA(adata, **made_with).summary_string
        assert words in summary
        assert "prior: mixture" in summary
        assert "None" not in summary
    assert "prior: normal" in DRA(adata, latent_distribution="ln").summary_string


@pytest.mark.parametrize("where", ["raw", "wider raw", "layer"])
def test_counts_elsewhere(where: str) -> None:
    """Counts in adata.raw, or in a layer, beside normalised ones: the message names them."""
    adata = cells()
    if where == "layer":
        adata.layers["counts"] = adata.X.copy()
    else:
        adata.raw = adata
        if where == "wider raw":
            adata = adata[:, :7].copy()
    adata.X = adata.X * 0.5
    expected = {"raw": "adata.raw;", "wider raw": "adata.raw, of 12 genes", "layer": "layer='cou"}
    with pytest.raises(InvalidCountsError) as caught:
        DRA.setup_anndata(adata)
    assert expected[where] in str(caught.value)
    assert "no other matrix" not in str(caught.value)


@pytest.mark.parametrize("convert", [np.asarray, sparse.csr_matrix])
def test_two_counts_of_one_cell_that_change_places(convert: Callable[[Any], Any]) -> None:
    """Two counts exchanged in one cell are noticed, whatever their bits are."""
    counts = np.zeros((60, 40), dtype=np.float32)
    counts[:, ::3] = 1
    counts[:, 1] = 2
    adata = AnnData(convert(counts))
    DRA.setup_anndata(adata)
    model = DRA(adata, **SMALL)
    model.is_trained_ = True
    for cell in range(0, 60, 7):
        counts[cell, [1, 5]] = counts[cell, [5, 1]]
        adata.X = convert(counts)
        with pytest.raises(InvalidCountsError, match=f"1 cell .first: '{cell}'"):
            model.get_latent_representation()
        counts[cell, [1, 5]] = counts[cell, [5, 1]]
    adata.X = convert(counts)
    assert np.isfinite(model.get_latent_representation()).all()


NAMES: dict[str, tuple[Callable[[DRA], Any], type[Exception], str]] = {
    "gene": (
        lambda m: m.get_normalized_expression(gene_list=["gene_1", "gene_99"]),
        KeyError,
        "gene_list='gene_99' is not a gene of adata",
    ),
    "one gene": (
        lambda m: m.posterior_predictive_sample(gene_list="gene_1"),
        TypeError,
        "gene_list='gene_1': a list of names is needed",
    ),
    "column": (
        lambda m: m.differential_expression(groupby="type"),
        KeyError,
        "groupby='type' is not a column of adata.obs",
    ),
    "sample": (
        lambda m: m.differential_abundance(sample_key="bach"),
        KeyError,
        "sample_key='bach' is not a column of adata.obs; did you mean 'batch'",
    ),
    "first group": (
        lambda m: m.differential_expression(groupby="cell_type", group1="type_9"),
        KeyError,
        "group1='type_9' is not a value of adata.obs\\['cell_type'\\]",
    ),
    "second group": (
        lambda m: m.differential_expression(groupby="cell_type", group1=["type_0"], group2="B"),
        KeyError,
        "group2='B' is not a value",
    ),
    "cells": (
        lambda m: m.get_latent_representation(indices="all"),
        TypeError,
        "indices holds 'all': positions of cells",
    ),
    "file": (
        lambda m: m.get_latent_representation("cells.h5ad"),
        TypeError,
        "adata must be an AnnData, not str; read it first",
    ),
}


@pytest.mark.parametrize("case", NAMES)
def test_names_that_getters_do_not_find(case: str) -> None:
    """Genes, columns, groups and cells that are not there are refused, not passed over."""
    call, error, words = NAMES[case]
    adata = cells()
    DRA.setup_anndata(adata, batch_key="batch")
    model = DRA(adata, **SMALL)
    model.is_trained_ = True
    with pytest.raises(error, match=words):
        call(model)


def test_labels_of_the_same_cells_in_another_order() -> None:
    """Labels of an AnnData's cells in another order are not taken for those of other cells."""
    adata = cells()
    adata.obsm["X_dra"] = np.eye(2)[(adata.obs["cell_type"] == "type_0").to_numpy(int)]
    labels = adata.obs["cell_type"]
    with pytest.raises(ValueError, match=r"labels has the cells in another order .*\.loc\["):
        metrics.clustering(adata, labels[::-1])
    assert metrics.clustering(adata, labels[::-1].loc[adata.obs_names])["nmi"] == pytest.approx(1)
