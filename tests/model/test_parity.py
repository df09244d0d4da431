"""DRA is a drop-in for scVI: every public member and every option, through the same calls."""

from __future__ import annotations

import inspect
import pickle
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import anndata
import numpy as np
import pandas as pd
import pytest
import scvi
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.callbacks import ModelCheckpoint
from scipy import sparse
from scvi.model import SCVI
from scvi.train import SaveCheckpoint
from torch.utils.data import DataLoader

import dra_scvi
from dra_scvi import DRA, DRAVAE, PublishedDRA, datasets
from dra_scvi._compat import with_any_annbatch
from tests.helpers import QUIET

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from anndata import AnnData

KEYS = {"batch_key": "batch", "labels_key": "cell_type"}
N_CELLS, N_GENES = 60, 12
PUBLIC = [name for name in dir(SCVI) if not name.startswith("_")]
METHODS = [name for name in PUBLIC if callable(getattr(SCVI, name))]


# -- the same model twice, and what its answers look like -----------------------------------------


def cells() -> AnnData:
    adata = datasets.synthetic(n_cells=N_CELLS, n_genes=N_GENES, n_types=3, n_batches=2)
    adata.obs["donor"] = pd.Categorical([f"donor_{i % 3}" for i in range(N_CELLS)])
    adata.obs["age"] = np.linspace(-1, 1, N_CELLS)
    adata.obs["score"] = np.linspace(2, 1, N_CELLS)
    adata.obs["depth"] = np.asarray(adata.X.sum(1)).ravel() / N_GENES
    adata.layers["counts"] = adata.X.copy()
    return adata


def fit(
    cls: type[SCVI],
    adata: AnnData | None = None,
    setup: dict[str, Any] | None = None,
    train: dict[str, Any] | None = None,
    **options: Any,
) -> SCVI:
    adata = cells() if adata is None else adata
    cls.setup_anndata(adata, **{**KEYS, **(setup or {})})
    model = cls(adata, **{"n_hidden": 8, "n_latent": 3, **options})
    model.train(**{"max_epochs": 1, "batch_size": 32, **QUIET, **(train or {})})
    return model


def describe(value: Any) -> Any:
    """Reduce a value to its type, names and shape, where a subclass of ours is its parent."""
    if isinstance(value, dict):
        return {key: describe(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [type(value).__name__, *map(describe, value)]
    if isinstance(value, pd.DataFrame):
        return "DataFrame", value.shape, list(value.columns), list(value.index)
    if isinstance(value, torch.distributions.Distribution):
        return type(value).__name__, value.batch_shape, value.event_shape
    if hasattr(value, "shape"):
        kind = "number" if value.shape == () else type(value).__name__
        return kind, tuple(value.shape), str(getattr(value, "dtype", ""))
    theirs = (c for c in type(value).__mro__ if not c.__module__.startswith("dra_scvi"))
    return next(theirs).__name__


def outcome(call: Callable[..., Any], *args: Any) -> Any:
    """Describe what a call returns, or name the error that it raises."""
    try:
        return describe(call(*args))
    except Exception as error:  # noqa: BLE001
        return f"raises {type(error).__name__}"


# -- every public member --------------------------------------------------------------------------


def attribute(name: str) -> Callable[[SCVI, Path], Any]:
    return lambda model, _: getattr(model, name)


def saved(model: SCVI, folder: Path, **kwargs: Any) -> str:
    path = str(folder / type(model).__name__)
    model.save(path, **kwargs)
    return path


def saved_by_an_old_version(folder: Path) -> str:
    folder = folder / "old"
    folder.mkdir()
    torch.save({}, folder / "model_params.pt")
    np.savetxt(folder / "var_names.csv", np.array(["gene_0"]), fmt="%s")
    (folder / "attr.pkl").write_bytes(pickle.dumps({"registry_": {}}))
    return str(folder)


def converted(model: SCVI, folder: Path) -> list[str]:
    new = folder / "new"
    type(model).convert_legacy_save(saved_by_an_old_version(folder), str(new))
    return sorted(path.name for path in new.iterdir())


def registered(model: SCVI, folder: Path) -> Any:
    manager = model.adata_manager.transfer_fields(model.adata.copy())
    type(model).register_manager(manager)
    return type(model)(manager.adata, n_hidden=8)


def query(model: SCVI, folder: Path, **kwargs: Any) -> SCVI:
    adata = cells()[:20].copy()
    adata.obs["batch"] = "new"
    return type(model).load_query_data(adata, model, accelerator="cpu", **kwargs)


def multimodal(model: SCVI, folder: Path) -> Any:
    mudata = pytest.importorskip("mudata")
    mdata = mudata.MuData({"rna": cells()})
    return type(model).prepare_query_mudata(mdata, model)


def expression(**kwargs: Any) -> Callable[[SCVI, Path], Any]:
    return lambda model, _: model.get_normalized_expression(**kwargs)


def differential_expression(**kwargs: Any) -> Callable[[SCVI, Path], Any]:
    fast = {"n_samples_overall": 50, "m_permutation": 100}

    def call(model: SCVI, _: Path) -> pd.DataFrame:
        table = model.differential_expression(silent=True, **fast, **kwargs)
        return table.sort_index()  # the order of genes is that of a result that is random

    return call


def abundance(model: SCVI, _: Path) -> Any:
    model.differential_abundance(sample_key="donor")
    return model.adata.obsm["da_log_probs"]


def posterior_and_means(model: SCVI, _: Path) -> tuple[torch.distributions.Distribution, ...]:
    return tuple(model.get_aggregated_posterior(dof=dof) for dof in (3.0, None))


def minified(model: SCVI, _: Path) -> dict[str, Any]:
    obsm = model.adata.obsm
    obsm["X_latent_qzm"], obsm["X_latent_qzv"] = model.get_latent_representation(return_dist=True)
    model.minify_adata()
    return {
        "type": model.minified_data_type,
        "latent": model.get_latent_representation(),
        "expression": model.get_normalized_expression(n_samples=2),
        "without counts": outcome(model.get_elbo),
    }


def annbatch_module(cls: type[SCVI], folder: Path) -> Any:
    pytest.importorskip("annbatch")
    adata = cells()
    adata.obs["batch"] = adata.obs["batch"].astype(str)
    adata.write_h5ad(folder / "cells.h5ad")
    options = {"batch_size": 16, "chunk_size": 8, "preload_nchunks": 4, "preload_to_gpu": False}
    setup = with_any_annbatch(cls.setup_annbatch)  # which SCVI itself lacks
    return setup(adatas=[adata], batch_key="batch", **options)


def trained_from_disk(model: SCVI, folder: Path) -> Any:
    module = annbatch_module(type(model), folder)
    model = type(model)(registry=module.registry, n_hidden=8, n_latent=3)
    model.train(datamodule=module, max_epochs=1, **QUIET)
    return model.get_latent_representation(dataloader=module.inference_dataloader())


# all calls of a member see one model, in this order
CALLS: dict[str, list[Callable[[SCVI, Path], Any]]] = {
    "adata": [attribute("adata")],
    "adata_manager": [attribute("adata_manager")],
    "convert_legacy_save": [converted],
    "data_registry": [lambda model, _: model.data_registry("X")],
    "deregister_manager": [lambda model, _: model.deregister_manager()],
    "device": [attribute("device")],
    "differential_abundance": [abundance],
    "differential_expression": [
        differential_expression(groupby="cell_type", group1="type_0"),
        differential_expression(groupby="cell_type", batch_correction=True, delta=0.1),
        differential_expression(idx1=np.arange(20), idx2=np.arange(20, 60), mode="vanilla"),
        differential_expression(idx1="age < 0", all_stats=False, weights="importance"),
    ],
    "get_aggregated_posterior": [posterior_and_means],
    "get_anndata_manager": [lambda model, _: model.get_anndata_manager(model.adata)],
    "get_batch_representation": [lambda model, _: model.get_batch_representation()],
    "get_elbo": [
        lambda model, _: model.get_elbo(),
        lambda model, _: model.get_elbo(return_mean=False),
        lambda model, _: model.get_elbo(model.adata[5:20]),
        lambda model, _: model.get_elbo(cells(), indices=[3, 1]),
    ],
    "get_feature_correlation_matrix": [
        lambda model, _: model.get_feature_correlation_matrix(n_samples=2),
        lambda model, _: model.get_feature_correlation_matrix(
            correlation_type="pearson", n_samples=2, transform_batch=["batch_0", "batch_1"]
        ),
    ],
    "get_from_registry": [lambda model, _: model.get_from_registry(model.adata, "batch")],
    "get_importance_weights": [
        expression(
            weights="importance", n_samples_overall=20, return_mean=False, return_numpy=True
        ),
    ],
    "get_latent_library_size": [
        lambda model, _: model.get_latent_library_size(),
        lambda model, _: model.get_latent_library_size(give_mean=False),
    ],
    "get_latent_representation": [
        lambda model, _: model.get_latent_representation(),
        lambda model, _: model.get_latent_representation(give_mean=False),
        lambda model, _: model.get_latent_representation(return_dist=True),
        lambda model, _: model.get_latent_representation(indices=[5, 3, 1], batch_size=2),
        lambda model, _: model.get_latent_representation(model.adata[5:20].copy()),
    ],
    "get_likelihood_parameters": [
        lambda model, _: model.get_likelihood_parameters(),
        lambda model, _: model.get_likelihood_parameters(n_samples=3),
        lambda model, _: model.get_likelihood_parameters(n_samples=3, give_mean=True),
    ],
    "get_marginal_ll": [
        lambda model, _: model.get_marginal_ll(n_mc_samples=4),
        lambda model, _: model.get_marginal_ll(
            n_mc_samples=4, n_mc_samples_per_pass=2, return_mean=False
        ),
    ],
    "get_normalized_expression": [
        expression(),
        expression(n_samples=3, return_mean=False, return_numpy=True),
        expression(n_samples=3, gene_list=["gene_3", "gene_1"], library_size="latent"),
        expression(transform_batch=["batch_0", "batch_1"], n_samples=2, library_size=1e4),
        expression(indices=[5, 3, 1], batch_size=2),
    ],
    "get_normalized_function_name": [attribute("get_normalized_function_name")],
    "get_reconstruction_error": [
        lambda model, _: model.get_reconstruction_error(),
        lambda model, _: model.get_reconstruction_error(return_mean=False),
    ],
    "get_setup_arg": [lambda model, _: model.get_setup_arg("batch_key")],
    "get_state_registry": [lambda model, _: model.get_state_registry("batch")],
    "get_var_names": [lambda model, _: model.get_var_names()],
    "history": [lambda model, _: {k: list(model.history[k]) for k in fit(SCVI).history}],
    "is_trained": [attribute("is_trained")],
    "load": [
        lambda model, folder: type(model).load(saved(model, folder), adata=model.adata),
        lambda model, folder: type(model).load(
            saved(model, folder / "x", prefix="a_", save_anndata=True), prefix="a_"
        ),
        lambda model, folder: type(model).load(str(folder), adata=model.adata),
    ],
    "load_query_data": [query],
    "load_registry": [lambda model, folder: sorted(model.load_registry(saved(model, folder)))],
    "minified_data_type": [attribute("minified_data_type")],
    "minify_adata": [minified],
    "posterior_predictive_sample": [
        lambda model, _: model.posterior_predictive_sample(),
        lambda model, _: model.posterior_predictive_sample(n_samples=3, gene_list=["gene_1"]),
    ],
    "prepare_query_anndata": [
        lambda model, _: type(model).prepare_query_anndata(cells()[:, ::-2].copy(), model),
        lambda model, _: type(model).prepare_query_anndata(
            cells()[:, ::-2].copy(), model, inplace=False
        ),
        lambda model, _: type(model).prepare_query_anndata(
            cells(), model, return_reference_var_names=True
        ),
    ],
    "prepare_query_mudata": [multimodal],
    "register_manager": [registered],
    "registry": [lambda model, _: sorted(model.registry)],
    "run_id": [attribute("run_id")],
    "run_name": [attribute("run_name")],
    "save": [
        lambda model, folder: saved(model, folder),
        lambda model, folder: saved(model, folder),  # exists
        lambda model, folder: saved(model, folder, overwrite=True, save_anndata=True),
    ],
    "setup_annbatch": [trained_from_disk],
    "setup_anndata": [lambda model, _: type(model).setup_anndata(cells(), layer="counts", **KEYS)],
    "summary_string": [attribute("summary_string")],
    "test_indices": [attribute("test_indices")],
    "to_device": [lambda model, _: model.to_device("cpu")],
    "train": [
        lambda model, _: model.train(1, train_size=0.5, validation_size=0.2, **QUIET),
        lambda model, _: [model.train_indices, model.validation_indices, model.test_indices],
    ],
    "train_indices": [attribute("train_indices")],
    "transfer_fields": [lambda model, _: model.transfer_fields(cells())],
    "update_setup_method_args": [
        lambda model, _: model.update_setup_method_args({"batch_key": "batch"}),
    ],
    "validation_indices": [attribute("validation_indices")],
    "view_anndata_setup": [lambda model, _: model.view_anndata_setup()],
    "view_registry": [lambda model, _: model.view_registry()],
    "view_setup_args": [lambda model, folder: model.view_setup_args(saved(model, folder))],
    "view_setup_method_args": [lambda model, _: model.view_setup_method_args()],
}
# where the answer is another on purpose: of which call, and which
OTHER_ANSWERS = {
    "load": {2: "raises FileNotFoundError"},  # scVI: ValueError
    "prepare_query_mudata": {0: "raises TypeError"},  # scVI: AttributeError
    "save": {1: "raises FileExistsError"},  # scVI: ValueError
    "update_setup_method_args": {0: "NoneType"},  # scVI: AttributeError, a bug
    "view_registry": {0: "NoneType"},  # scVI: AttributeError, a bug
}
# errors that are the answer, of either class
ERRORS = {
    "get_batch_representation": ["raises KeyError"],  # without embeddings
    "get_latent_library_size": ["raises RuntimeError"],  # it is observed
    "load": ["raises FileNotFoundError"],
    "prepare_query_mudata": ["raises TypeError"],
    "save": ["raises FileExistsError"],
}
CHANGING = {"deregister_manager", "minify_adata", "register_manager", "to_device", "train"}


@pytest.fixture(scope="module")
def pair() -> tuple[SCVI, DRA]:
    """Return a model of each class, for calls that leave it as it is."""
    return fit(SCVI), fit(DRA)


def test_every_public_member_of_scvi_is_called_here() -> None:
    assert set(PUBLIC) - set(CALLS) == set()


@pytest.mark.parametrize("name", PUBLIC)
def test_a_member_answers_as_that_of_scvi(
    name: str, pair: tuple[SCVI, DRA], tmp_path: Path
) -> None:
    answers = []
    for model in (fit(SCVI), fit(DRA)) if name in CHANGING else pair:
        folder = tmp_path / type(model).__name__
        folder.mkdir()
        answers.append([outcome(call, model, folder) for call in CALLS[name]])
    expected, found = answers
    for position, answer in OTHER_ANSWERS.get(name, {}).items():
        expected[position] = answer
    assert found == expected
    errors = [answer for answer in expected if str(answer).startswith("raises")]
    assert errors == ERRORS.get(name, [])


@pytest.mark.parametrize("name", METHODS)
def test_a_method_takes_the_arguments_of_that_of_scvi(name: str) -> None:
    theirs, ours = (inspect.signature(getattr(cls, name)).parameters for cls in (SCVI, DRA))
    assert [parameter for parameter in ours if parameter in theirs] == list(theirs)
    for parameter, expected in theirs.items():
        found = ours[parameter]
        assert (found.kind, found.default) == (expected.kind, expected.default), parameter
    assert all(ours[p].default is not inspect.Parameter.empty for p in ours.keys() - theirs.keys())


@pytest.mark.parametrize("cls", [DRA, PublishedDRA, DRAVAE, dra_scvi.DualMatchingPlan])
def test_docstrings_describe_every_argument_and_hold_no_placeholder(cls: type) -> None:
    members = [getattr(cls, name) for name in dir(cls) if not name.startswith("_")]
    own = [m for m in members if getattr(m, "__module__", "").startswith("dra_scvi")]
    for member in [cls, *own]:
        text = inspect.getdoc(member) or ""
        assert text, member
        assert "%(" not in text, member
        assert "{parameters}" not in text, member
        if "Parameters\n---" in text:
            parameters = inspect.signature(member).parameters.values()
            for name in [p.name for p in parameters if p.kind != p.VAR_KEYWORD]:
                assert name == "self" or f"\n{name}" in text, (member, name)


# -- every option of the model --------------------------------------------------------------------

COVARIATES = {
    "categorical_covariate_keys": ["donor"],
    "continuous_covariate_keys": ["age", "score"],
}
EMBEDDING = {"batch_representation": "embedding", "batch_embedding_kwargs": {"embedding_dim": 2}}
OPTIONS: dict[str, dict[str, Any]] = {
    "zinb": {"gene_likelihood": "zinb"},
    "nb": {"gene_likelihood": "nb"},
    "poisson": {"gene_likelihood": "poisson"},
    "normal": {"gene_likelihood": "normal"},
    "gene-batch": {"dispersion": "gene-batch"},
    "gene-label": {"dispersion": "gene-label"},
    "gene-cell": {"dispersion": "gene-cell"},
    "learned-library": {"use_observed_lib_size": False},
    "size-factor": {"setup": {"size_factor_key": "depth"}},
    "logistic-normal": {"latent_distribution": "ln"},
    "covariates": {"setup": COVARIATES},
    "encoded-covariates": {"setup": COVARIATES, "encode_covariates": True},
    "covariates-in-the-first-layer": {
        "setup": COVARIATES,
        "encode_covariates": True,
        "deeply_inject_covariates": False,
        "n_layers": 2,
    },
    "embedding": EMBEDDING,
    "encoded-embedding": {
        **EMBEDDING,
        "setup": COVARIATES,
        "encode_covariates": True,
        "use_observed_lib_size": False,
        "dispersion": "gene-batch",
    },
    "layer": {"setup": {"layer": "counts"}},
    "no-batch": {"setup": {"batch_key": None, "labels_key": None}},
    "layer-norm": {
        "use_layer_norm": "both",
        "use_batch_norm": "none",
        "var_activation": torch.nn.functional.softplus,
    },
    "raw-input": {"log_variational": False},
}
ON_EVERY_MODEL = (
    "get_aggregated_posterior",
    "get_elbo",
    "get_feature_correlation_matrix",
    "get_latent_library_size",
    "get_latent_representation",
    "get_likelihood_parameters",
    "get_marginal_ll",
    "get_normalized_expression",
    "get_reconstruction_error",
)
FINITE = (
    lambda model: model.get_latent_representation(),
    lambda model: model.get_normalized_expression(n_samples=2).to_numpy(),
    lambda model: model.get_elbo(return_mean=False).numpy(),
)


def answers_to_every_getter(model: SCVI, folder: Path) -> dict[str, Any]:
    answers = {
        f"{name} {i}": outcome(call, model, folder)
        for name in ON_EVERY_MODEL
        for i, call in enumerate(CALLS[name])
    }
    differential = CALLS["differential_expression"][0]
    if "cell_type" in str(model.registry["setup_args"]["labels_key"]):
        answers["differential_expression"] = outcome(differential, model, folder)
    return answers


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_gives_what_it_gives_with_scvi(name: str, tmp_path: Path) -> None:
    model = fit(DRA, **OPTIONS[name])
    found = answers_to_every_getter(model, tmp_path)
    # with embeddings scVI fails wherever several codes are drawn: compare with what it gives else
    theirs = {"setup": OPTIONS[name].get("setup")} if "embedding" in name else OPTIONS[name]
    if "embedding" in name:
        theirs["use_observed_lib_size"] = OPTIONS[name].get("use_observed_lib_size", True)
    assert found == answers_to_every_getter(fit(SCVI, **theirs), tmp_path)
    for call in FINITE:
        assert np.isfinite(call(model)).all()


def test_embeddings_join_every_code_that_is_drawn() -> None:
    """ScVI fails here: "Tensors must have same number of dimensions"."""
    model = fit(DRA, **EMBEDDING, use_observed_lib_size=False, dispersion="gene-batch")
    module, batch = model.module, torch.arange(6)[:, None] % 2
    z, library = torch.randn(4, 6, 3), torch.randn(4, 6, 1)
    with torch.inference_mode():
        together = module.generative(z, library, batch)["px"]
        apart = [module.generative(z[i], library[i], batch)["px"] for i in range(4)]
        other = module.generative(z, library, batch, transform_batch=1)["px"]
        one = module.generative(z[0], library[0], torch.ones_like(batch))["px"]
    torch.testing.assert_close(together.mu, torch.stack([px.mu for px in apart]))
    torch.testing.assert_close(together.theta, torch.stack([px.theta for px in apart]))
    torch.testing.assert_close(other.mu[0], one.mu)
    embeddings = model.get_batch_representation()
    assert embeddings.shape == (N_CELLS, 2)


def test_one_batch_only_is_no_batch() -> None:
    adata = cells()
    adata.obs["batch"] = pd.Categorical(["only"] * N_CELLS)
    model = fit(DRA, adata)
    assert model.module.latent_discriminator.n_batch == 0
    assert np.isfinite(model.get_latent_representation()).all()


# -- any matrix -----------------------------------------------------------------------------------


def in_file(adata: AnnData, folder: Path) -> AnnData:
    path = folder / f"{len(list(folder.iterdir()))}.h5ad"
    adata.write_h5ad(path)
    return anndata.read_h5ad(path, backed="r+")


def in_chunks(adata: AnnData, block: Callable[[Any], Any]) -> AnnData:
    dask_array = pytest.importorskip("dask.array")
    adata.X = dask_array.from_array(adata.X.toarray(), chunks=(25, N_GENES)).map_blocks(block)
    return adata


def stored_as(adata: AnnData, convert: Callable[[Any], Any]) -> AnnData:
    adata.X = convert(adata.X)
    return adata


MATRICES: dict[str, Callable[[AnnData, Path], AnnData]] = {
    "csr": lambda adata, _: adata,
    "csc": lambda adata, _: stored_as(adata, sparse.csc_matrix),
    "csr-array": lambda adata, _: stored_as(adata, sparse.csr_array),
    "dense": lambda adata, _: stored_as(adata, lambda x: x.toarray()),
    "integers": lambda adata, _: stored_as(adata, lambda x: x.astype(np.int32)),
    "csr-in-a-file": in_file,
    "dense-in-a-file": lambda adata, folder: in_file(
        stored_as(adata, lambda x: x.toarray()), folder
    ),
    "dask": lambda adata, _: in_chunks(adata, np.asarray),
    "dask-of-csr": lambda adata, _: in_chunks(adata, sparse.csr_matrix),
    "copy-of-a-view": lambda adata, _: adata[::-1][::-1].copy(),
}


@pytest.mark.parametrize("name", MATRICES)
def test_a_matrix_is_read_right_whatever_holds_it(
    name: str, pair: tuple[SCVI, DRA], tmp_path: Path
) -> None:
    model, order = pair[1], [5, 3, 40, 1]
    expected = model.get_latent_representation()
    adata = MATRICES[name](cells(), tmp_path)
    np.testing.assert_allclose(model.get_latent_representation(adata), expected, atol=1e-5)
    chosen = model.get_latent_representation(adata, indices=order)
    np.testing.assert_allclose(chosen, expected[order], atol=1e-5)
    table = model.get_normalized_expression(adata, indices=order, n_samples=1)
    assert list(table.index) == [f"cell_{i}" for i in order]
    torch.manual_seed(0)
    sampled = model.get_latent_representation(adata, indices=order, give_mean=False)
    torch.manual_seed(0)
    again = model.get_latent_representation(cells(), indices=order, give_mean=False)
    np.testing.assert_allclose(sampled, again, atol=1e-5)
    trained = fit(type(model), MATRICES[name](cells(), tmp_path))
    assert trained.get_latent_representation().shape == (N_CELLS, 3)


def test_views_give_the_codes_of_their_cells(pair: tuple[SCVI, DRA]) -> None:
    model = pair[1]
    expected = model.get_latent_representation()
    found = model.get_latent_representation(model.adata[10:30])
    np.testing.assert_allclose(found, expected[10:30], atol=1e-5)


# -- every option of training ---------------------------------------------------------------------


def test_early_stopping_watches_the_validation_elbo() -> None:
    options = {"early_stopping": True, "early_stopping_patience": 2, "max_epochs": 50}
    model = fit(DRA, train={**options, "early_stopping_min_delta": 1e9})
    assert len(model.history["elbo_validation"]) == 3
    with pytest.raises(ValueError, match="validation"):
        fit(DRA, train={**options, "train_size": 1.0})


def test_the_learning_rate_falls_on_a_plateau() -> None:
    plan = {"reduce_lr_on_plateau": True, "lr_patience": 1, "lr_threshold": 1e9, "lr_factor": 0.5}
    model = fit(DRA, train={"max_epochs": 6, "plan_kwargs": plan, "check_val_every_n_epoch": 1})
    rates = [group["lr"] for group in model.trainer.optimizers[0].param_groups]
    assert rates[0] < 1e-3
    assert rates[0] / rates[1] == pytest.approx(10)  # both players alike


def test_save_checkpoint_keeps_the_best_epoch(tmp_path: Path) -> None:
    keep = SaveCheckpoint(dirpath=tmp_path, monitor="elbo_validation", load_best_on_end=True)
    train = {"max_epochs": 3, "callbacks": [keep], "check_val_every_n_epoch": 1}
    model = fit(DRA, train=train)
    (folder,) = tmp_path.iterdir()
    best = model.history["elbo_validation"].to_numpy(float).argmin()
    assert f"epoch={best}" in folder.name
    loaded = DRA.load(folder, adata=model.adata, accelerator="cpu")
    np.testing.assert_allclose(
        loaded.get_latent_representation(), model.get_latent_representation(), atol=1e-6
    )


def test_training_resumes_from_lightnings_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scvi.settings, "logging_dir", str(tmp_path / "log"))

    def run(max_epochs: int, **train: Any) -> tuple[DRA, str]:
        scvi.settings.seed = 0
        keep = ModelCheckpoint(dirpath=tmp_path, filename=f"{max_epochs}", every_n_epochs=1)
        train = {"max_epochs": max_epochs, "callbacks": [keep], **train}
        # the warm-up must not depend on where a run is cut
        plan = {"n_epochs_kl_warmup": 4, "prior_start": 1.0}
        model = fit(DRA, train={**train, "enable_checkpointing": True, "plan_kwargs": plan})
        scvi.settings.seed = None
        return model, keep.best_model_path

    uninterrupted, _ = run(4)
    _, path = run(2)
    resumed, _ = run(4, ckpt_path=path)
    np.testing.assert_array_equal(
        resumed.get_latent_representation(), uninterrupted.get_latent_representation()
    )


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        ({"n_epochs_kl_warmup": 4}, [0.0, 0.25, 0.5]),
        ({"n_epochs_kl_warmup": None}, [1.0, 1.0, 1.0]),
        ({"n_epochs_kl_warmup": 2, "max_kl_weight": 0.5, "min_kl_weight": 0.1}, [0.1, 0.3, 0.5]),
    ],
)
def test_the_kl_weight_warms_up(plan: dict[str, Any], expected: list[float]) -> None:
    model = fit(DRA, train={"max_epochs": 3, "plan_kwargs": plan})
    assert model.history["kl_weight"].to_numpy(float).ravel() == pytest.approx(expected)


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed", "64-true"])
def test_precision(precision: str) -> None:
    """After training in double precision scVI's getters fail: the data are single."""
    model = fit(DRA, setup=COVARIATES, encode_covariates=True, train={"precision": precision})
    for call in FINITE:
        assert np.isfinite(call(model)).all()
    assert np.isfinite(model.get_marginal_ll(n_mc_samples=2))


@pytest.mark.parametrize(
    "train",
    [
        pytest.param({"train_size": 0.9, "batch_size": 53}, id="resident"),
        pytest.param({"batch_size": 59, "load_sparse_tensor": True}, id="scvi-tools-loader"),
    ],
)
def test_a_last_minibatch_of_one_cell(train: dict[str, Any]) -> None:
    assert np.isfinite(fit(DRA, train=train).get_latent_representation()).all()


@pytest.mark.parametrize(
    ("train", "sizes"),
    [
        ({"train_size": 0.5, "validation_size": 0.2, "shuffle_set_split": False}, (30, 12, 18)),
        (
            {
                "datasplitter_kwargs": {
                    "external_indexing": [np.arange(40), np.arange(40, 55), np.arange(55, 60)]
                }
            },
            (40, 15, 5),
        ),
        ({"train_size": 1.0, "datasplitter_kwargs": {"drop_last": True}}, (60, 0, 0)),
    ],
    ids=["in-order", "external", "drop-last"],
)
def test_cells_are_split_as_in_scvi(train: dict[str, Any], sizes: tuple[int, ...]) -> None:
    for cls in (SCVI, DRA):
        model = fit(cls, train=train)
        parts = (model.train_indices, model.validation_indices, model.test_indices)
        assert tuple(0 if part is None else len(part) for part in parts) == sizes
        if "validation_size" in train:
            assert list(model.validation_indices) == list(range(12))


def test_minified_data_may_keep_their_counts() -> None:
    answers = []
    for cls in (SCVI, DRA):
        model = fit(cls)
        counts = model.adata.X.copy()
        obsm = model.adata.obsm
        dist = model.get_latent_representation(return_dist=True)
        obsm["X_latent_qzm"], obsm["X_latent_qzv"] = dist
        codes = model.get_latent_representation()
        model.minify_adata("latent_posterior_parameters_with_counts")
        assert (counts != model.adata.X).nnz == 0
        np.testing.assert_allclose(model.get_latent_representation(), codes, atol=1e-5)
        calls = [*CALLS["get_normalized_expression"], *CALLS["get_marginal_ll"]]
        answers.append([outcome(call, model, None) for call in calls])
    assert answers[1] == answers[0]


def test_configuration_objects_are_taken() -> None:
    model = fit(
        DRA,
        train={
            "plan_config": {"lr": 1e-4, "latent_weight": 0.0},
            "trainer_config": {"check_val_every_n_epoch": 1},
        },
    )
    assert model.trainer.optimizers[0].param_groups[0]["lr"] == 1e-4
    assert "elbo_validation" in model.history


# -- discriminators of one's own ------------------------------------------------------------------


class Linear(torch.nn.Linear):
    """The least that a discriminator must be."""

    def __init__(self, n_input: int, n_hidden: list[int], n_batch: int) -> None:
        super().__init__(n_input, 1)

    def forward(self, rows: torch.Tensor, batch_index: torch.Tensor) -> torch.Tensor:
        return super().forward(rows).squeeze(-1)


class LinearVAE(DRAVAE):
    _discriminator_cls = Linear


class LinearDRA(DRA):
    _module_cls = LinearVAE


def test_discriminators_of_ones_own_are_trained_and_saved(tmp_path: Path) -> None:
    model = fit(LinearDRA)
    assert isinstance(model.module.data_discriminator, Linear)
    assert float(model.history["latent_divergence_train"].iloc[-1, 0]) != 0
    model.save(tmp_path / "model")
    loaded = LinearDRA.load(tmp_path / "model", adata=model.adata, accelerator="cpu")
    for name, weight in model.module.state_dict().items():
        assert torch.equal(loaded.module.state_dict()[name], weight), name


def test_a_discriminator_may_be_replaced_before_training() -> None:
    adata = cells()
    DRA.setup_anndata(adata, **KEYS)
    model = DRA(adata, n_hidden=8, n_latent=3)
    model.module.latent_discriminator = Linear(3, [], 2)
    before = model.module.latent_discriminator.weight.detach().clone()
    model.train(max_epochs=1, batch_size=32, **QUIET)
    assert not torch.equal(model.module.latent_discriminator.weight, before)


# -- other sources of data ------------------------------------------------------------------------


class Counts(LightningDataModule):
    """The least that a data module of scvi-tools must be: minibatches, a registry, sizes."""

    def __init__(self, adata: AnnData) -> None:
        super().__init__()
        manager = fit(SCVI, adata).adata_manager
        names = {"model_name": "DRA", "setup_method_name": "setup_datamodule"}
        self.registry = {**manager.registry, **names}
        self.dataset = manager.create_torch_dataset()
        stats = manager.summary_stats
        self.n_obs, self.n_vars = stats.n_cells, stats.n_vars
        self.n_batch, self.n_labels, self.n_samples = stats.n_batch, stats.n_labels, 1
        self.batch_labels, self.label_keys = ["batch_0", "batch_1"], None

    def minibatches(self) -> Iterator[dict[str, torch.Tensor]]:
        for start in range(0, self.n_obs, 20):
            rows = self.dataset[np.arange(start, start + 20)]
            yield {key: torch.as_tensor(value) for key, value in rows.items()}

    def train_dataloader(self) -> DataLoader:
        return DataLoader(list(self.minibatches()), batch_size=None)


def test_a_data_module_in_place_of_an_anndata(tmp_path: Path) -> None:
    module = Counts(cells())
    options = {"n_hidden": 8, "n_latent": 3, "prior": "uniform", "n_hidden_discriminator": [5]}
    model = DRA(registry=module.registry, **options)
    model.train(datamodule=module, max_epochs=1, **QUIET)
    codes = model.get_latent_representation(dataloader=module.minibatches())
    assert codes.shape == (N_CELLS, 3)
    assert np.isfinite(float(model.get_elbo(dataloader=module.minibatches())))
    model.save(tmp_path / "model", datamodule=module)
    loaded = DRA.load(tmp_path / "model", adata=False, accelerator="cpu")
    again = loaded.get_latent_representation(dataloader=module.minibatches())
    np.testing.assert_array_equal(again, codes)
    with pytest.raises(ValueError, match="adata or registry"):
        DRA()


def test_a_data_module_beside_an_anndata() -> None:
    adata = cells()
    DRA.setup_anndata(adata, batch_key="batch")
    model = DRA(adata, n_hidden=8, n_latent=3)
    before = model.module.px_r.detach().clone()
    model.train(datamodule=Counts(adata), max_epochs=1, **QUIET)
    assert model.get_latent_representation().shape == (N_CELLS, 3)
    assert not torch.equal(model.module.px_r, before)


def test_the_default_number_of_epochs_follows_a_data_module(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = Counts(cells())
    monkeypatch.setattr("dra_scvi._model.base.default_max_epochs", lambda n_obs, *_: n_obs // 30)
    model = DRA(registry=module.registry, n_hidden=8)
    model.train(datamodule=module, **QUIET)
    assert model.trainer.max_epochs == 2


def test_an_anncollection(tmp_path: Path) -> None:
    from anndata.experimental import AnnCollection
    from scvi.dataloaders import CollectionAdapter

    parts = [cells()[:40].copy(), cells()[40:].copy()]
    collection = AnnCollection(parts, join_vars="inner", join_obs="inner", label="source")
    adapter = CollectionAdapter(collection)
    model = fit(DRA, adapter, setup={"batch_key": "source", "layer": "counts"})
    assert model.get_latent_representation().shape == (N_CELLS, 3)
    parts[1].layers["counts"][3, 2] = -1
    with pytest.raises(dra_scvi.InvalidCountsError, match="1 negative value"):
        DRA.setup_anndata(adapter, layer="counts")


def test_a_mudata_is_refused_with_the_way_out() -> None:
    mudata = pytest.importorskip("mudata")
    mdata = mudata.MuData({"rna": cells(), "adt": cells()})
    with pytest.raises(TypeError, match=r"setup_anndata\(mdata\['rna'\]\).*'rna', 'adt'"):
        DRA.setup_anndata(mdata)


# -- the rest of scvi-tools -----------------------------------------------------------------------


def test_a_trial_of_the_autotuner(tmp_path: Path) -> None:
    pytest.importorskip("ray.tune", reason='autotune: pip install "dra_scvi[tune]"')
    pytest.importorskip("hyperopt", reason='autotune: pip install "dra_scvi[tune]"')
    from scvi.autotune import run_autotune

    adata = cells()
    DRA.setup_anndata(adata, **KEYS)
    experiment = run_autotune(
        DRA,
        data=adata,
        metrics=["elbo_validation"],
        mode="min",
        search_space={
            "model_params": {"n_hidden": 8, "prior": "normal"},
            "train_params": {"max_epochs": 1, "plan_kwargs": {"latent_weight": 0.5}},
        },
        num_samples=1,
        searcher="random",
        seed=0,
        resources={"cpu": 1},
        logging_dir=str(tmp_path),
    )
    (trial,) = experiment.result_grid
    assert trial.error is None
    assert np.isfinite(trial.metrics["elbo_validation"])


def test_what_the_autotuner_of_integration_scores_wants_to_see() -> None:
    model = fit(DRA, extra_payload_autotune=True)
    tensors = next(iter(model._make_data_loader(model.adata)))
    *_, output = model.module(tensors)
    assert set(output.extra_metrics) == {"z", "batch", "labels"}


def test_posterior_predictive_checks(pair: tuple[SCVI, DRA]) -> None:
    from scvi.criticism import PosteriorPredictiveCheck

    adata = cells()
    adata.X = adata.X.toarray()  # scvi-tools 1.4 criticises dense counts only
    models = dict(zip(("SCVI", "DRA"), pair, strict=True))
    check = PosteriorPredictiveCheck(adata, models, n_samples=2)
    check.coefficient_of_variation("cells")
    check.zero_fraction()
    for frame in check.metrics.values():
        assert {"SCVI", "DRA"} <= set(frame.columns)
        assert np.isfinite(frame["DRA"].to_numpy(float)).all()


def test_a_model_for_the_hub(pair: tuple[SCVI, DRA], tmp_path: Path) -> None:
    """scvi-tools writes cards for five named models only: hand it one of your own."""
    hub = pytest.importorskip("huggingface_hub")
    from scvi.hub import HubMetadata, HubModel

    model, folder = pair[1], str(tmp_path / "model")
    model.save(folder, save_anndata=True)
    metadata = HubMetadata.from_dir(
        folder, anndata_version=version("anndata"), model_parent_module="dra_scvi"
    )
    card = hub.ModelCard("---\nlicense: cc-by-4.0\n---\n# DRA of synthetic cells\n")
    HubModel(folder, metadata=metadata, model_card=card).save()
    pulled = HubModel(folder)
    pulled.load_model(accelerator="cpu")
    assert type(pulled.model) is DRA
    np.testing.assert_array_equal(
        pulled.model.get_latent_representation(), model.get_latent_representation()
    )
    assert "synthetic cells" in pulled.model_card.content
