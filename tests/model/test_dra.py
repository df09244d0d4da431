"""DRA as an analyst uses it: register, train, embed, save, load, and what bad input says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from scvi.model import SCVI

from dra_scvi import DRA, InvalidCountsError
from tests.helpers import QUIET, SMALL

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from anndata import AnnData


def trained(adata: AnnData, max_epochs: int | None = 2, **kwargs: Any) -> DRA:
    DRA.setup_anndata(adata, batch_key="batch")
    model = DRA(adata, **{**SMALL, **kwargs})
    model.train(max_epochs=max_epochs, **QUIET)
    return model


def test_the_five_lines_of_any_scvi_model(
    adata: AnnData, capsys: pytest.CaptureFixture[str]
) -> None:
    DRA.setup_anndata(adata)
    model = DRA(adata)
    assert not model.is_trained
    model.train(max_epochs=1, **QUIET)
    adata.obsm["X_dra"] = model.get_latent_representation()
    assert adata.obsm["X_dra"].shape == (150, 10)
    assert np.isfinite(adata.obsm["X_dra"]).all()
    repr(model)  # scvi-tools prints it
    assert "DRA model with the following parameters" in capsys.readouterr().out


def test_training_separates_the_types(adata: AnnData) -> None:
    from dra_scvi import tl
    from dra_scvi.metrics import clustering

    tl.dra(
        adata, batch_key="batch", accelerator="cpu", train_kwargs={"enable_progress_bar": False}
    )
    assert clustering(adata.obsm["X_dra"], adata.obs["cell_type"])["nmi"] > 0.8


@pytest.mark.parametrize(
    ("n_latent", "batch_key", "expected"),
    [(10, None, 2), (2, None, 8), (10, "batch", 4), (2, "batch", 8)],
)
def test_default_epochs_follow_dimensions_and_batches(
    adata: AnnData,
    monkeypatch: pytest.MonkeyPatch,
    n_latent: int,
    batch_key: str | None,
    expected: int,
) -> None:
    from dra_scvi._model import epochs

    monkeypatch.setattr(epochs, "MIN_STEPS", 1)
    monkeypatch.setattr(epochs, "MIN_EPOCHS", 2)
    monkeypatch.setattr(epochs, "MAX_EPOCHS", 16)
    DRA.setup_anndata(adata, batch_key=batch_key)
    model = DRA(adata, n_hidden=8, n_latent=n_latent)
    model.train(**QUIET)
    assert model.trainer.max_epochs == expected


@pytest.mark.parametrize(
    "convert",
    [
        pytest.param(lambda x: x.toarray(), id="dense"),
        pytest.param(sp.csc_matrix, id="csc"),
        pytest.param(lambda x: x.astype(np.int64), id="int64"),
        pytest.param(lambda x: x.astype(np.float64), id="float64"),
    ],
)
def test_any_matrix_of_the_same_counts_gives_the_same_embedding(
    adata: AnnData, convert: Callable[[Any], Any]
) -> None:
    import scvi

    embeddings = []
    for change in (lambda x: x, convert):
        copy = adata.copy()
        copy.X = change(copy.X)
        scvi.settings.seed = 0
        embeddings.append(trained(copy).get_latent_representation())
    scvi.settings.seed = None
    np.testing.assert_allclose(embeddings[1], embeddings[0], atol=1e-5)


def test_a_subclass_passes_on_what_its_constructor_does_not_name(adata: AnnData) -> None:
    class Narrow(DRA):
        def __init__(self, adata: AnnData, **kwargs: Any) -> None:
            super().__init__(adata, n_latent=3, **kwargs)

    Narrow.setup_anndata(adata)
    assert Narrow(adata, n_hidden=8).module.n_latent == 3


def test_counts_in_a_layer(adata: AnnData) -> None:
    adata.layers["counts"] = adata.X.copy()
    adata.X = adata.X.log1p()
    DRA.setup_anndata(adata, layer="counts")
    model = DRA(adata, **SMALL)
    model.train(max_epochs=1, **QUIET)
    with pytest.raises(InvalidCountsError, match="layer"):
        DRA.setup_anndata(adata)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"layer": "countz"}, "did you mean|closest|counts"),
        ({"batch_key": "bach"}, "batch"),
        ({"labels_key": "cell_typ"}, "cell_type"),
        ({"categorical_covariate_keys": ["bach"]}, "batch"),
    ],
)
def test_a_misspelt_key_is_answered_with_the_closest_one(
    adata: AnnData, keys: dict[str, Any], message: str
) -> None:
    adata.layers["counts"] = adata.X.copy()
    with pytest.raises(KeyError, match=message):
        DRA.setup_anndata(adata, **keys)


@pytest.mark.parametrize("value", [-1.0, 0.5, np.nan, np.inf])
def test_one_bad_count_is_refused_before_anything_is_registered(
    adata: AnnData, value: float
) -> None:
    adata.X.data[17] = value
    with pytest.raises(InvalidCountsError):
        DRA.setup_anndata(adata)
    assert not any(name.startswith("_scvi") for name in [*adata.obs, *adata.uns])


def test_save_and_load_keep_embedding_and_discriminators(adata: AnnData, tmp_path: Path) -> None:
    model = trained(adata, prior="mixture", n_components=3, max_epochs=4)
    model.save(tmp_path / "model")
    loaded = DRA.load(tmp_path / "model", adata=adata, accelerator="cpu")
    expected, found = model.module.state_dict(), loaded.module.state_dict()
    assert expected.keys() == found.keys()
    assert any("latent_discriminator" in n for n in found)
    assert any("data_discriminator" in n for n in found)
    assert all(torch.equal(expected[n], found[n]) for n in expected)
    assert found["prior._started"]
    np.testing.assert_array_equal(
        loaded.get_latent_representation(), model.get_latent_representation()
    )
    assert loaded.module.divergence == model.module.divergence
    loaded.train(max_epochs=1, **QUIET)


@pytest.mark.parametrize(
    "options",
    [
        {"n_hidden": [12, 8], "prior": "uniform", "divergence": "jensen-shannon"},
        {"gene_likelihood": "nb", "dispersion": "gene-batch", "n_layers": 2},
    ],
)
def test_constructor_arguments_survive_save_and_load(
    adata: AnnData, tmp_path: Path, options: dict[str, Any]
) -> None:
    model = trained(adata, max_epochs=1, **options)
    model.save(tmp_path / "model")
    loaded = DRA.load(tmp_path / "model", adata=adata, accelerator="cpu")
    found = loaded.init_arguments
    assert {name: found[name] for name in options} == options


def test_query_data_with_a_new_batch_can_be_mapped(adata: AnnData) -> None:
    reference = trained(adata)
    query = adata[:50].copy()
    query.obs["batch"] = "new"
    mapped = DRA.load_query_data(query, reference, accelerator="cpu")
    mapped.train(max_epochs=2, plan_kwargs={"weight_decay": 0.0}, **QUIET)
    assert mapped.get_latent_representation().shape == (50, 4)
    before = reference.get_latent_representation()
    after = mapped.get_latent_representation(adata[50:].copy())
    np.testing.assert_allclose(after, before[50:], atol=1e-4)


def test_getters_of_scvi_have_scvis_shapes(adata: AnnData) -> None:
    model = trained(adata)
    assert model.get_normalized_expression().shape == (150, 40)
    assert model.posterior_predictive_sample().shape == (150, 40)
    assert np.isfinite(float(model.get_elbo()))
    assert np.isfinite(float(model.get_marginal_ll(n_mc_samples=3)))
    table = model.differential_expression(
        groupby="cell_type", group1=adata.obs["cell_type"].iloc[0], silent=True
    )
    assert len(table) == 40


def test_every_argument_of_scvi_is_taken(adata: AnnData) -> None:
    import inspect

    ours, theirs = (inspect.signature(cls.__init__).parameters for cls in (DRA, SCVI))
    chosen_by_dimensions = {"n_layers": None}
    for name, parameter in theirs.items():
        if parameter.kind is not parameter.VAR_KEYWORD:
            expected = chosen_by_dimensions.get(name, parameter.default)
            assert ours[name].default == expected, name
    for method in ("setup_anndata", "train", "get_latent_representation"):
        ours, theirs = (inspect.signature(getattr(c, method)).parameters for c in (DRA, SCVI))
        assert list(theirs) == [n for n in ours if n in theirs], method


def test_docstrings_hold_no_raw_placeholder() -> None:
    for member in (DRA, DRA.setup_anndata, DRA.train, DRA.load_query_data):
        assert "%(" not in (member.__doc__ or "")
