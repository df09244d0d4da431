"""Types of a query: those that neighbours have, whatever its genes, batches and columns are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anndata
import numpy as np
import pandas as pd
import pytest
from sklearn.neighbors import KNeighborsClassifier

from dra_scvi import DRA, metrics, tl
from dra_scvi._labels.neighbors import closeness
from dra_scvi._training.runner import seeded
from tests.helpers import QUIET, cells, fit

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData

KEY = "cell_type_transferred"
ALL = cells(n_cells=360, n_genes=60, n_types=3, n_batches=3)
TRAIN = {"enable_progress_bar": False, "batch_size": 64}


def reference_cells() -> AnnData:
    return ALL[ALL.obs["batch"] != "batch_2"].copy()


def query_cells() -> AnnData:
    query = ALL[ALL.obs["batch"] == "batch_2"].copy()
    query.obs = pd.DataFrame({"batch": ["batch_2"] * query.n_obs}, index=query.obs_names)
    return query


def truth(query: AnnData) -> np.ndarray:
    return ALL.obs.loc[query.obs_names, "cell_type"].to_numpy(str)


@pytest.fixture(scope="module")
def model() -> DRA:
    with seeded(0):
        return fit(reference_cells(), batch_key="batch", max_epochs=40, plan_kwargs={"lr": 1e-2})


def transferred(model: DRA, query: AnnData, **options: Any) -> AnnData:
    tl.transfer_labels(model, query, "cell_type", accelerator="cpu", **options)
    return query


def test_types_are_those_of_the_neighbours(model: DRA) -> None:
    query = transferred(model, query_cells(), threshold=0.0, far_quantile=None)
    codes = model.get_latent_representation()
    theirs = KNeighborsClassifier(15, weights=closeness).fit(codes, model.adata.obs["cell_type"])
    expected = theirs.predict(query.obsm["X_dra"])
    assert query.obs[KEY].tolist() == expected.tolist()
    assert (expected == truth(query)).mean() > 0.9
    shares = query.obsm[f"{KEY}_probabilities"]
    assert query.uns[KEY]["types"].index.tolist() == ["type_0", "type_1", "type_2"]
    assert shares.argmax(axis=1).tolist() == [int(name[-1]) for name in expected]
    np.testing.assert_allclose(shares.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(shares.max(axis=1), query.obs[f"{KEY}_probability"])


def test_what_is_added_has_its_names_and_the_rest_stays(model: DRA) -> None:
    before = query_cells()
    query = transferred(model, query_cells())
    added = {KEY, f"{KEY}_probability", f"{KEY}_distance"}
    assert set(query.obs) == {"batch"} | added
    assert set(query.obsm) == {"X_dra", f"{KEY}_probabilities"}
    assert set(query.uns) == {KEY}
    assert (query.X != before.X).nnz == 0
    assert query.obs[KEY].cat.categories.tolist() == ["type_0", "type_1", "type_2", "unknown"]
    report = query.uns[KEY]
    assert report["held_out"] == "batches"
    assert report["types"]["n_reference"].sum() == model.adata.n_obs
    types = report["types"]
    assert report["accuracy"] == pytest.approx(
        (types["recognised"] * types["n_held_out"]).sum() / model.adata.n_obs
    )
    assert report["accuracy"] > 0.9
    bins = report["reliability"]
    gaps = (bins["accuracy"] - bins["confidence"]).abs()
    assert report["ece"] == pytest.approx((gaps * bins["n_cells"]).sum() / model.adata.n_obs)
    assert report["ece"] < 0.1  # the temperature is fitted to the same cells
    assert report["reliability"]["n_cells"].sum() == model.adata.n_obs


def test_unknown_is_what_is_improbable_or_far(model: DRA) -> None:
    query = transferred(model, query_cells())
    middle = float(query.obs[f"{KEY}_probability"].median())
    query = transferred(model, query, threshold=middle, far_quantile=0.8)
    sure = query.obs[f"{KEY}_probability"] >= middle
    near = query.obs[f"{KEY}_distance"] <= 1
    assert ((query.obs[KEY] != "unknown") == (sure & near)).all()
    assert (sure & ~near).any()
    assert (~sure & near).any()
    query = transferred(model, query, unknown="?", threshold=1.0)
    assert set(query.obs[KEY]) == {"?"}


def test_new_batches_take_no_training_where_the_encoder_is_not_told(model: DRA) -> None:
    query = transferred(model, query_cells())
    mapped = DRA.load_query_data(query_cells(), model, accelerator="cpu")
    mapped.train(max_epochs=2, **QUIET)
    np.testing.assert_allclose(
        query.obsm["X_dra"], mapped.get_latent_representation(), atol=1e-5, rtol=0
    )


def test_new_batches_are_trained_on_where_the_encoder_is_told() -> None:
    reference = reference_cells()
    kept = np.flatnonzero(reference.obs["batch"] == "batch_0")[12:]
    reference = reference[np.r_[kept, np.flatnonzero(reference.obs["batch"] == "batch_1")]].copy()
    told = fit(reference, batch_key="batch", model={"encode_covariates": True})
    query = {n: transferred(told, query_cells(), max_epochs=n, train_kwargs=TRAIN) for n in (0, 3)}
    with_known = query_cells()
    with_known.obs["batch"] = "batch_1"  # the largest
    expected = told.get_latent_representation(with_known)
    np.testing.assert_array_equal(query[0].obsm["X_dra"], expected)
    assert not np.allclose(query[3].obsm["X_dra"], expected, atol=1e-3)
    with seeded(0):
        mapped = DRA.load_query_data(query_cells(), told, accelerator="cpu")
        mapped.train(max_epochs=3, batch_size=64, **QUIET)
        expected = mapped.get_latent_representation()
    np.testing.assert_array_equal(query[3].obsm["X_dra"], expected)


def test_known_batches_take_no_training_and_leave_nothing_behind(model: DRA) -> None:
    registered = model._per_instance_manager_store[model.id]
    before = set(registered)
    same = reference_cells()
    transferred(model, same, far_quantile=1.0)
    np.testing.assert_array_equal(same.obsm["X_dra"], model.get_latent_representation())
    assert set(registered) == before


def test_genes_are_found_by_name(model: DRA) -> None:
    expected = transferred(model, query_cells())
    query = query_cells()
    more = query[:, :3].copy()
    more.var_names = ["x", "y", "z"]
    both = anndata.concat([query[:, ::-1], more], axis=1, merge="first")
    both.obs = query.obs.copy()
    query = transferred(model, both)
    np.testing.assert_array_equal(query.obsm["X_dra"], expected.obsm["X_dra"])
    assert query.n_vars == 63


def test_a_query_needs_no_column_of_types_that_the_reference_registered() -> None:
    registered = fit(reference_cells(), setup={"labels_key": "cell_type"})
    query = transferred(registered, query_cells())
    assert query.obs[KEY].notna().all()
    with_own = query_cells()
    with_own.obs["cell_type"] = "none that the model knows"
    again = transferred(registered, with_own)
    np.testing.assert_array_equal(query.obsm["X_dra"], again.obsm["X_dra"])
    assert set(with_own.obs["cell_type"]) == {"none that the model knows"}


def test_minified_cells_serve_as_reference() -> None:
    reference = fit(reference_cells(), batch_key="batch")
    expected = transferred(reference, query_cells())
    obsm = reference.adata.obsm
    obsm["X_latent_qzm"], obsm["X_latent_qzv"] = reference.get_latent_representation(
        return_dist=True
    )
    reference.minify_adata()
    query = transferred(reference, query_cells())
    pd.testing.assert_frame_equal(query.obs, expected.obs)


def test_types_of_any_kind_are_found_again_in_a_file(model: DRA, tmp_path: Path) -> None:
    names = {"type_0": "CD4+/CD45RA+ T", "type_1": "B", "type_2": "3"}
    model.adata.obs["fine"] = pd.Categorical(
        model.adata.obs["cell_type"].map(names), categories=["B", "none", "3", "CD4+/CD45RA+ T"]
    )
    query = query_cells()
    tl.transfer_labels(model, query, "fine")
    expected = ["B", "3", "CD4+/CD45RA+ T", "unknown"]  # in the order of the reference
    assert query.obs["fine_transferred"].cat.categories.tolist() == expected
    query.write_h5ad(tmp_path / "query.h5ad")
    found = anndata.read_h5ad(tmp_path / "query.h5ad")
    types = found.uns["fine_transferred"]["types"].index
    assert types.tolist() == expected[:3]
    shares = found.obsm["fine_transferred_probabilities"]
    score = metrics.calibration(shares, [names[name] for name in truth(query)], types=types)
    assert score["accuracy"] > 0.9


def test_one_seed_gives_one_result_and_the_generators_stay(model: DRA) -> None:
    state = np.random.get_state()[1].tolist()  # noqa: NPY002
    found = [transferred(model, query_cells(), seed=3) for _ in range(2)]
    pd.testing.assert_frame_equal(found[0].obs, found[1].obs)
    assert np.random.get_state()[1].tolist() == state  # noqa: NPY002
