"""tl.dra: one call, its seed, its traces in the AnnData, and going on after a stop."""

from __future__ import annotations

import hashlib
import os
import random
import signal
from typing import TYPE_CHECKING, Any

import anndata
import numpy as np
import pytest
import scvi
import torch
from lightning.pytorch.callbacks import Callback
from sklearn.neighbors import KNeighborsClassifier

import dra_scvi
from dra_scvi import DRA, PublishedDRA, TrainingInterruptedError, datasets

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from anndata import AnnData

QUIET = {"enable_progress_bar": False}


def embed(adata: AnnData, **kwargs: Any) -> np.ndarray:
    train = {**QUIET, "batch_size": 64, **kwargs.pop("train_kwargs", {})}
    defaults = {"max_epochs": 2, "accelerator": "cpu", "train_kwargs": train}
    dra_scvi.tl.dra(adata, **{**defaults, **kwargs})
    return adata.obsm[kwargs.get("key_added", "X_dra")]


def test_writes_the_embedding_and_its_settings_and_nothing_else_of_the_users(
    adata: AnnData,
) -> None:
    before = adata.copy()
    model = dra_scvi.tl.dra(
        adata, batch_key="batch", n_latent=3, max_epochs=1, accelerator="cpu", train_kwargs=QUIET
    )
    assert isinstance(model, DRA)
    np.testing.assert_array_equal(adata.obsm["X_dra"], model.get_latent_representation())
    assert adata.uns["dra"]["params"]["n_latent"] == 3
    assert adata.uns["dra"]["params"]["batch_key"] == "batch"
    assert (adata.X != before.X).nnz == 0
    assert list(adata.layers) == list(before.layers)
    assert before.obs.equals(adata.obs[before.obs.columns])


def test_uns_says_where_the_embedding_comes_from(adata: AnnData, tmp_path: Path) -> None:
    embed(adata, model_kwargs={"prior": "uniform", "n_hidden": [12, 8]}, seed=7)
    path = tmp_path / "out.h5ad"
    adata.write_h5ad(path)
    for found in (adata.uns["dra"], anndata.read_h5ad(path).uns["dra"]):
        assert found["version"] == dra_scvi.__version__
        assert found["prior"] == "uniform"
        assert found["genes"]["n"] == adata.n_vars
        names = "\n".join(adata.var_names).encode()
        assert found["genes"]["sha256"] == hashlib.sha256(names).hexdigest()
        told = found["settings"]
        given = (told["seed"], told["n_hidden"], told["batch_size"], told["max_epochs"])
        assert given == (7, "[12, 8]", 64, 2)
        assert told["model"] == "DRA"
        assert told["divergence"] == "bhattacharyya"  # not given, and held all the same
        assert told["lr"] == 1e-3


@pytest.mark.parametrize("options", [{}, {"preset": "published", "n_latent": 2}])
def test_uns_names_the_prior_that_nobody_chose(adata: AnnData, options: dict[str, Any]) -> None:
    embed(adata, **options)
    assert adata.uns["dra"]["prior"] == ("normal" if options else "mixture")


def test_same_seed_same_embedding_whatever_came_before(adata: AnnData) -> None:
    first = embed(adata.copy(), seed=3)
    torch.rand(5)
    assert np.array_equal(embed(adata.copy(), seed=3), first)
    assert not np.array_equal(embed(adata.copy(), seed=4), first)


def test_the_global_generators_are_left_as_they_were(adata: AnnData) -> None:
    scvi.settings.seed = 11
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    embed(adata)
    assert scvi.settings.seed == 11
    assert random.getstate() == states[0]
    np.testing.assert_array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), states[2])
    scvi.settings.seed = None


def test_arguments_reach_model_and_training(adata: AnnData) -> None:
    model = dra_scvi.tl.dra(
        adata,
        key_added="X_other",
        max_epochs=3,
        accelerator="cpu",
        model_kwargs={"prior": "uniform", "n_hidden": [12, 8]},
        train_kwargs={**QUIET, "plan_kwargs": {"latent_weight": 0.0}},
    )
    assert "X_other" in adata.obsm
    assert model.init_arguments["prior"] == "uniform"
    assert len(model.history["train_loss"]) == 3
    assert not model.history["latent_divergence_train"].to_numpy().any()


def test_the_published_preset_marks_its_split(adata: AnnData) -> None:
    embed(adata, preset="published", n_latent=2)
    assert adata.obsm["X_dra"].shape == (150, 2)
    assert (adata.obs["dra_split"] == "test").sum() == 30
    assert adata.uns["dra"]["params"]["preset"] == "published"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "publish"}, "None or 'published'"),
        ({"preset": "published", "n_latent": 5}, "2, 10 and 20"),
    ],
)
def test_unknown_presets_are_refused(adata: AnnData, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        embed(adata, **options)


class Interrupt(Callback):
    def __init__(self, signum: int, epoch: int) -> None:
        self.signum, self.epoch = signum, epoch

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        if trainer.current_epoch == self.epoch:
            os.kill(os.getpid(), self.signum)
            self.epoch = -1


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"batch_key": "batch"}, id="default"),
        pytest.param({"model_kwargs": {"prior": "mixture", "n_components": 3}}, id="mixture"),
        pytest.param({"preset": "published", "n_latent": 2}, id="published"),
    ],
)
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_training_after_a_stop_is_training_without_one(
    adata: AnnData, tmp_path: Path, options: dict[str, Any], signum: int
) -> None:
    uninterrupted = embed(adata.copy(), max_epochs=6, **options)
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    path, stopped = tmp_path / "state.ckpt", adata.copy()
    stop = {"callbacks": [Interrupt(signum, epoch=2)]}
    with pytest.raises(TrainingInterruptedError, match="after 3 epochs") as info:
        embed(stopped, max_epochs=6, checkpoint=path, train_kwargs=stop, **options)
    assert info.value.signum == signum
    assert os.listdir(tmp_path) == ["state.ckpt"]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    assert "X_dra" not in stopped.obsm
    resumed = embed(stopped, max_epochs=6, checkpoint=path, resume=True, **options)
    np.testing.assert_array_equal(resumed, uninterrupted)
    assert not path.exists()


def test_without_a_checkpoint_resume_begins_at_the_beginning(
    adata: AnnData, tmp_path: Path
) -> None:
    path = tmp_path / "state.ckpt"
    expected = embed(adata.copy())
    assert np.array_equal(embed(adata.copy(), checkpoint=path, resume=True), expected)


def test_the_published_model_is_its_own_class(adata: AnnData) -> None:
    model = dra_scvi.tl.dra(
        adata,
        preset="published",
        max_epochs=1,
        accelerator="cpu",
        train_kwargs={**QUIET, "batch_size": 32},
    )
    assert type(model) is PublishedDRA


@pytest.mark.parametrize("latent_weight", [None, 100.0])
@pytest.mark.slow
def test_nothing_takes_the_place_of_a_type_that_a_batch_lacks(latent_weight: float | None) -> None:
    adata = datasets.synthetic(n_cells=600, n_genes=60, n_types=4, n_batches=2, seed=0)
    types, batches = (adata.obs[key].to_numpy(str) for key in ("cell_type", "batch"))
    absent, second = types[0], np.unique(batches)[1]
    adata = adata[(types != absent) | (batches != second)].copy()
    train = {**QUIET, "plan_kwargs": {"latent_weight": latent_weight} if latent_weight else {}}
    embedding = embed(adata, batch_key="batch", seed=0, max_epochs=60, train_kwargs=train)
    types, batches = (adata.obs[key].to_numpy(str) for key in ("cell_type", "batch"))
    is_second = batches == second
    beside = KNeighborsClassifier(15).fit(embedding[~is_second], types[~is_second])
    found = beside.predict(embedding[is_second])
    assert np.mean(found == absent) < 0.03
    assert np.mean(found == types[is_second]) > 0.9


@pytest.mark.parametrize(
    ("name", "max_epochs", "least"),
    [
        ("zeisel_ewce_3005x200", 40, 0.5),
        ("zeisel_descend_1464x1000", 70, 0.7),
        ("pbmc4k_4271x2000", 20, 0.7),
    ],
)
@pytest.mark.slow
def test_real_counts_sparse_as_stored_give_an_embedding_that_tells_types_apart(
    real_data: Callable[[str], AnnData], name: str, max_epochs: int, least: float
) -> None:
    from dra_scvi.metrics import clustering

    adata = real_data(name)
    assert adata.X.format == "csr"
    latent = embed(adata, max_epochs=max_epochs, train_kwargs={"batch_size": 128})
    assert np.isfinite(latent).all()
    # log-normalised PCA gives 0.59, 0.89 and 0.78; a shuffled embedding 0.00
    assert clustering(latent, adata.obs["cell_type"])["nmi"] > least


def test_arguments_given_twice_alike() -> None:
    """An argument that is given twice with one value is taken."""
    adata = datasets.synthetic(n_cells=60, n_genes=12)
    kwargs: dict[str, Any] = {
        "train_kwargs": {"max_epochs": 2, "enable_progress_bar": False},
        "model_kwargs": {"n_hidden": 8, "n_latent": 3},
    }
    model = dra_scvi.tl.dra(adata, n_latent=3, max_epochs=2, accelerator="cpu", **kwargs)
    assert (model.module.n_latent, model.trainer.max_epochs) == (3, 2)
