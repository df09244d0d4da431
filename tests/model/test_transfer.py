"""A query mapped to a reference, and DRA begun from a trained scVI."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
import torch
from scvi.model import SCVI

from dra_scvi import DRA, datasets
from tests.helpers import QUIET, SMALL

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData


@pytest.fixture
def query() -> AnnData:
    query = datasets.synthetic(n_cells=60, n_genes=40, n_types=3, seed=1)
    query.obs["batch"] = pd.Categorical(["new_0"] * 30 + ["new_1"] * 30)
    query.obs["donor"] = pd.Categorical(["donor_8", "donor_9"] * 30)
    return query


@pytest.fixture
def reference_cells(adata: AnnData) -> AnnData:
    adata.obs["donor"] = pd.Categorical(["donor_0", "donor_1"] * (adata.n_obs // 2))
    return adata


def fit(
    cls: type[SCVI], adata: AnnData, setup: dict[str, Any] | None = None, **options: Any
) -> Any:
    cls.setup_anndata(adata, **{"batch_key": "batch", **(setup or {})})
    model = cls(adata, **options)
    model.train(max_epochs=2, batch_size=64, **QUIET)
    return model


def minify(model: SCVI) -> None:
    """Replace the counts of a model's cells by the posteriors of their codes."""
    obsm = model.adata.obsm
    obsm["X_latent_qzm"], obsm["X_latent_qzv"] = model.get_latent_representation(return_dist=True)
    model.minify_adata()


def weights(model: DRA) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.module.named_parameters()}


def moved(model: DRA, before: dict[str, torch.Tensor]) -> set[str]:
    """First parts of the names of the parameters that are not what they were."""
    after = model.module.named_parameters()
    return {name.split(".")[0] for name, value in after if not torch.equal(value, before[name])}


OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "two-widths": {"n_hidden": [16, 8]},
    "encoded-batch": {"encode_covariates": True, "n_layers": 2},
    "encoded-covariates": {
        "encode_covariates": True,
        "setup": {"categorical_covariate_keys": ["donor"]},
    },
    "embedding": {"batch_representation": "embedding"},
    "gene-batch": {"dispersion": "gene-batch"},
    "normal-prior": {"prior": "normal"},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_a_query_is_mapped_and_the_reference_stays(
    name: str, reference_cells: AnnData, query: AnnData
) -> None:
    reference = fit(DRA, reference_cells, **{**SMALL, **OPTIONS[name]})
    expected = reference.get_latent_representation()
    model = DRA.load_query_data(query, reference, accelerator="cpu")
    before = weights(model)
    model.train(max_epochs=20, batch_size=32, **QUIET)
    codes = model.get_latent_representation()
    assert codes.shape == (60, 4)
    assert np.isfinite(codes).all()
    after = model.get_latent_representation(reference_cells)
    np.testing.assert_allclose(after, expected, atol=1e-4, rtol=0)
    parts = {"decoder"}
    parts |= {"z_encoder"} if "encode_covariates" in OPTIONS[name] else set()
    parts |= {"_embeddings_dict"} if name == "embedding" else set()
    assert moved(model, before) == parts


def test_a_query_that_encodes_its_batch_moves(reference_cells: AnnData, query: AnnData) -> None:
    reference = fit(DRA, reference_cells, encode_covariates=True, **SMALL)
    model = DRA.load_query_data(query, reference, accelerator="cpu")
    model.is_trained_ = True
    before = model.get_latent_representation()
    model.train(max_epochs=20, batch_size=32, **QUIET)
    assert np.abs(model.get_latent_representation() - before).max() > 1e-3


def test_discriminators_and_prior_sit_out_in_a_query(
    reference_cells: AnnData, query: AnnData
) -> None:
    reference = fit(DRA, reference_cells, **SMALL)
    reference.module.prior._started.fill_(False)  # as after a reference of one epoch
    model = DRA.load_query_data(query, reference, accelerator="cpu")
    frozen = {
        name: value.clone()
        for name, value in model.module.state_dict().items()
        if "discriminator" in name or name.startswith("prior")
    }
    assert len(frozen) > 10
    model.train(max_epochs=4, batch_size=32, **QUIET)
    state = model.module.state_dict()
    assert all(torch.equal(state[name], value) for name, value in frozen.items())
    history = model.history
    for term in ("latent_divergence_train", "data_divergence_train"):
        assert not history[term].to_numpy(float).any()
    terms = {name: float(history[name].iloc[-1, 0]) for name in ("train_loss", "elbo_train")}
    # equal where all of the KL divergence is there, but for rounding
    assert terms["train_loss"] <= terms["elbo_train"] * (1 + 1e-6)


def test_an_unfrozen_query_plays_the_whole_game(reference_cells: AnnData, query: AnnData) -> None:
    reference = fit(DRA, reference_cells, **SMALL)
    model = DRA.load_query_data(query, reference, unfrozen=True, accelerator="cpu")
    before = weights(model)
    model.train(max_epochs=2, batch_size=32, **QUIET)
    assert {"latent_discriminator", "data_discriminator", "z_encoder"} <= moved(model, before)
    assert model.history["latent_divergence_train"].to_numpy(float).any()


def test_weights_of_a_query_do_not_decay_unless_told_to(
    reference_cells: AnnData, query: AnnData
) -> None:
    reference = fit(DRA, reference_cells, **SMALL)
    for plan, expected in (({}, 0.0), ({"weight_decay": 1e-3}, 1e-3)):
        model = DRA.load_query_data(query.copy(), reference, accelerator="cpu")
        model.train(max_epochs=1, plan_kwargs=plan, **QUIET)
        (group,) = model.trainer.optimizers[0].param_groups
        assert group["weight_decay"] == expected
    group = reference.trainer.optimizers[0].param_groups[0]
    assert group["weight_decay"] == 1e-6


def test_a_query_from_a_folder_with_other_genes(
    reference_cells: AnnData, query: AnnData, tmp_path: Path
) -> None:
    reference = fit(DRA, reference_cells, **SMALL)
    reference.save(tmp_path / "reference")
    shuffled = query[:, ::-1][:, 3:].copy()
    DRA.prepare_query_anndata(shuffled, str(tmp_path / "reference"))
    assert list(shuffled.var_names) == list(reference_cells.var_names)
    assert shuffled.X[:, -3:].sum() == 0
    model = DRA.load_query_data(shuffled, str(tmp_path / "reference"), accelerator="cpu")
    model.train(max_epochs=1, **QUIET)
    model.save(tmp_path / "query")
    loaded = DRA.load(tmp_path / "query", adata=shuffled, accelerator="cpu")
    np.testing.assert_array_equal(
        loaded.get_latent_representation(), model.get_latent_representation()
    )


def test_minified_reference_data_serve_as_reference(
    reference_cells: AnnData, query: AnnData, tmp_path: Path
) -> None:
    reference = fit(DRA, reference_cells, **SMALL)
    expected = reference.get_latent_representation()
    minify(reference)
    np.testing.assert_array_equal(reference.get_latent_representation(), expected)
    reference.save(tmp_path / "reference", save_anndata=True)
    loaded = DRA.load(tmp_path / "reference", accelerator="cpu")
    assert loaded.minified_data_type == "latent_posterior_parameters"
    assert loaded.adata.X.nnz == 0
    np.testing.assert_array_equal(loaded.get_latent_representation(), expected)
    model = DRA.load_query_data(query, str(tmp_path / "reference"), accelerator="cpu")
    model.train(max_epochs=1, **QUIET)
    assert model.get_latent_representation().shape == (60, 4)


# -- from a trained scVI -------------------------------------------------------------------------

SCVI_OPTIONS: dict[str, dict[str, Any]] = {
    "default": {"n_latent": 3},
    "options": {
        "n_hidden": 8,
        "n_layers": 2,
        "gene_likelihood": "nb",
        "dispersion": "gene-batch",
        "encode_covariates": True,
        "use_observed_lib_size": False,
        "setup": {"categorical_covariate_keys": ["donor"]},
    },
}


@pytest.mark.parametrize("name", SCVI_OPTIONS)
def test_a_trained_scvi_is_where_dra_begins(name: str, reference_cells: AnnData) -> None:
    theirs = fit(SCVI, reference_cells, **SCVI_OPTIONS[name])
    model = DRA.from_scvi_model(theirs, prior="normal", n_hidden_discriminator=[5])
    assert not model.is_trained
    assert model.init_arguments["prior"] == "normal"
    state = model.module.state_dict()
    for name_, value in theirs.module.state_dict().items():
        assert torch.equal(state[name_], value), name_
    model.is_trained_ = True
    model.module.eval()
    np.testing.assert_allclose(
        model.get_latent_representation(), theirs.get_latent_representation(), atol=1e-5
    )
    model.train(max_epochs=1, **QUIET)
    assert np.isfinite(model.get_latent_representation()).all()
    theirs.get_latent_representation()  # still serves


def test_a_scvi_model_serves_for_other_cells_of_its_batches(adata: AnnData) -> None:
    theirs = fit(SCVI, adata)
    model = DRA.from_scvi_model(theirs, adata[adata.obs["batch"] == "batch_1"].copy())
    assert model.summary_stats.n_batch == 2
    model.train(max_epochs=1, **QUIET)


def test_what_dra_cannot_begin_from_is_refused(adata: AnnData, query: AnnData) -> None:
    theirs = fit(SCVI, adata)
    with pytest.raises(ValueError, match="new_0"):
        DRA.from_scvi_model(theirs, query)
    with pytest.raises(TypeError, match="n_latent"):
        DRA.from_scvi_model(theirs, n_latent=5)
    with pytest.raises(TypeError, match="must be an SCVI, not DRA"):
        DRA.from_scvi_model(fit(DRA, adata.copy(), **SMALL))
    with pytest.raises(RuntimeError, match="Train the scVI model first"):
        DRA.from_scvi_model(SCVI(adata))
    minify(theirs)
    with pytest.raises(ValueError, match="with counts"):
        DRA.from_scvi_model(theirs)
