"""Tests of generated cells: what they hold, whose they are, and what is left as it was."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from threading import Thread
from typing import Any

import anndata
import numpy as np
import pytest
import scvi
import torch
from scipy import sparse
from sklearn.mixture import GaussianMixture

from dra_scvi import DRA, datasets
from dra_scvi._model import generating
from dra_scvi._training.runner import TURNS
from tests.helpers import QUIET, SMALL, cells, fit

BOTH = {"batch_0", "batch_1"}


@pytest.fixture(scope="module")
def model() -> DRA:
    return fit(cells(), batch_key="batch")


@pytest.fixture(scope="module")
def learned() -> DRA:
    """Return a model of 600 cells of two types, one of them three times as deep."""
    adata = datasets.synthetic(n_cells=600, n_genes=40, n_types=2, seed=1)
    deep = adata.obs["cell_type"] == adata.obs["cell_type"].iloc[0]
    counts = adata.X.toarray()
    counts[deep] *= 3
    adata.X = sparse.csr_matrix(counts)
    return fit(adata, max_epochs=60, model={"n_hidden": 32})


def test_cells_are_counts_with_all_that_is_known_of_them(model: DRA) -> None:
    made = model.generate(40, seed=1)
    assert isinstance(made.X, sparse.csr_matrix)
    assert made.X.dtype == np.float32
    assert (made.X.data == np.round(made.X.data)).all()
    assert made.X.data.min() >= 0
    assert made.shape == (40, model.adata.n_vars)
    assert list(made.var_names) == list(model.adata.var_names)
    assert made.obs_names.is_unique
    assert set(made.obs.columns) == {"batch", "component", "depth"}
    assert set(made.obs["batch"]) == BOTH
    assert made.obsm["codes"].shape == (40, SMALL["n_latent"])
    assert made.uns["generated"]["model"] == "DRA"
    assert made.uns["generated"]["seed"] == 1
    DRA.setup_anndata(made[made.X.sum(axis=1).A1 > 0].copy(), batch_key="batch")


def test_a_seed_decides_all_and_disturbs_nothing(model: DRA) -> None:
    def states() -> list[Any]:
        return [
            random.getstate(),
            np.random.get_state()[1].tolist(),  # noqa: NPY002
            torch.get_rng_state().tolist(),
        ]

    before = states()
    one, same, other = (model.generate(30, seed=seed) for seed in (5, 5, 6))
    assert states() == before
    torch.manual_seed(99)
    assert (one.X != same.X).nnz == 0
    assert one.obs.equals(same.obs)
    assert (one.X != other.X).nnz > 0
    assert (one.X != model.generate(30, seed=5).X).nnz == 0


def test_batches_are_those_named_in_their_proportions(model: DRA) -> None:
    assert set(model.generate(30, "batch_1").obs["batch"]) == {"batch_1"}
    assert set(model.generate(30, ["batch_1", "batch_0"]).obs["batch"]) == BOTH
    adata = cells(n_cells=120)
    adata.obs["batch"] = ["rare"] * 12 + ["common"] * 108
    made = fit(adata, batch_key="batch").generate(4_000)
    assert (made.obs["batch"] == "rare").mean() == pytest.approx(0.1, abs=0.02)


def test_depth_goes_with_the_type(learned: DRA) -> None:
    made = learned.generate(2_000)
    totals = made.X.sum(axis=1).A1
    real = learned.adata.X.sum(axis=1).A1
    for share in (0.1, 0.5, 0.9):
        assert np.quantile(totals, share) == pytest.approx(np.quantile(real, share), rel=0.2)
    # what tells the types apart tells their depths apart
    deep = learned.adata.X[real > np.median(real)].mean(axis=0).A1
    flat = learned.adata.X[real <= np.median(real)].mean(axis=0).A1
    contrast = np.log(deep / deep.sum()) - np.log(flat / flat.sum())
    side = made.X @ contrast > 0
    assert np.median(totals[side]) > 2 * np.median(totals[~side])


def test_counts_add_up_to_the_depth_that_was_drawn(learned: DRA) -> None:
    made = learned.generate(2_000)
    ratio = made.X.sum(axis=1).A1 / made.obs["depth"].to_numpy()
    assert ratio.mean() == pytest.approx(1, abs=0.02)
    assert np.corrcoef(np.log1p(made.X.sum(axis=1).A1), np.log(made.obs["depth"]))[0, 1] > 0.9


def test_many_cells_are_decoded_some_at_a_time(
    model: DRA, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    decode = model.module.decode

    def spy(codes: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.append(len(codes))
        return decode(codes, *args, **kwargs)

    monkeypatch.setattr(model.module, "decode", spy)
    monkeypatch.setattr(generating, "VALUES_AT_ONCE", 10 * model.adata.n_vars)
    assert model.generate(25).n_obs == 25
    assert seen == [10, 10, 5]


def test_a_loaded_model_without_cells_makes_the_same(model: DRA, tmp_path: Any) -> None:
    model.save(str(tmp_path / "model"))
    loaded = DRA.load(str(tmp_path / "model"), adata=False, accelerator="cpu")
    assert (loaded.generate(20).X != model.generate(20).X).nnz == 0


def test_training_embeds_as_it_would_without_a_population(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = []
    for _ in range(2):
        scvi.settings.seed = 0
        model = fit(cells(), batch_key="batch")
        found.append((model.get_latent_representation(), torch.get_rng_state()))
        monkeypatch.setattr(DRA, "_learn_population", lambda *_: None)
    np.testing.assert_array_equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


def test_no_mixture_is_fitted_until_cells_are_made_or_the_model_saved(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    fits = []
    of_sklearn = GaussianMixture.fit
    monkeypatch.setattr(
        GaussianMixture, "fit", lambda *given: (fits.append(1), of_sklearn(*given))[1]
    )
    adata = cells()
    model = fit(adata)
    model.get_latent_representation()
    assert fits == []
    adata.obs["batch"] = "another"
    saved = tmp_path / "model"
    model.save(str(saved))
    assert fits == [1]
    made = model.generate(20)
    assert fits == [1]
    loaded = DRA.load(str(saved), adata=False, accelerator="cpu").generate(20)
    assert (loaded.X != made.X).nnz == 0
    assert loaded.obs["depth"].equals(made.obs["depth"])


@pytest.mark.parametrize(
    "made_with",
    [
        {"gene_likelihood": "nb"},
        {"gene_likelihood": "poisson"},
        {"latent_distribution": "ln"},
        {"use_observed_lib_size": False},
        {"prior": "uniform"},
        {"dispersion": "gene-batch"},
        {"batch_representation": "embedding"},
    ],
    ids=str,
)
def test_every_kind_of_model_makes_cells(made_with: dict[str, Any]) -> None:
    model = fit(cells(), batch_key="batch", model=made_with)
    made = model.generate(30)
    if model.module.use_observed_lib_size:  # an encoder of depths takes longer to learn
        real = model.adata.X.sum(axis=1).mean()
        assert made.X.sum(axis=1).mean() == pytest.approx(real, rel=0.5)
    if "latent_distribution" in made_with:
        np.testing.assert_allclose(made.obsm["codes"].sum(axis=1), 1, rtol=1e-4)


def test_size_factors_are_drawn_with_the_codes() -> None:
    adata = cells()
    adata.obs["size"] = adata.X.sum(axis=1).A1 / 7
    made = fit(adata, setup={"size_factor_key": "size"}).generate(500)
    assert made.obs["size"].mean() == pytest.approx(adata.obs["size"].mean(), rel=0.1)
    np.testing.assert_array_equal(made.obs["size"], made.obs["depth"])


def test_covariates_are_those_of_cells_of_the_batch() -> None:
    adata = cells()
    is_first = (adata.obs["batch"] == "batch_0").to_numpy()
    adata.obs["donor"] = np.where(is_first, "a", np.where(np.arange(60) % 2, "b", "c"))
    adata.obs["stress"] = np.where(is_first, 0.25, np.arange(60, dtype=float))
    setup = {
        "categorical_covariate_keys": ["donor"],
        "continuous_covariate_keys": ["stress"],
    }
    made = fit(adata, batch_key="batch", setup=setup).generate(80)
    known = set(zip(adata.obs["batch"], adata.obs["donor"], adata.obs["stress"], strict=True))
    assert set(zip(made.obs["batch"], made.obs["donor"], made.obs["stress"], strict=True)) <= known
    assert set(made.obs["donor"]) == {"a", "b", "c"}


def test_a_minified_model_makes_cells(model: DRA) -> None:
    other = fit(cells(), batch_key="batch")
    expected = other.generate(10)
    other.adata.obsm["Z"], other.adata.obsm["V"] = other.get_latent_representation(
        return_dist=True
    )
    other.minify_adata(use_latent_qzm_key="Z", use_latent_qzv_key="V")
    assert (other.generate(10).X != expected.X).nnz == 0


def test_a_trained_query_makes_cells_of_its_own_batches(model: DRA) -> None:
    adata = cells(seed=3)
    adata.obs["batch"] = "new"
    query = DRA.load_query_data(adata, model, accelerator="cpu")
    embedded = query.module.embedding.axes.clone()
    query.train(max_epochs=1, **QUIET)
    assert torch.equal(query.module.embedding.axes, embedded)
    assert set(query.generate(20).obs["batch"]) == {"new"}
    with pytest.raises(KeyError, match="no batch 'batch_0' among the cells"):
        query.generate(20, "batch_0")


def test_written_cells_are_read_again(model: DRA, tmp_path: Any) -> None:
    made = model.generate(10)
    made.write_h5ad(tmp_path / "made.h5ad")
    read = anndata.read_h5ad(tmp_path / "made.h5ad")
    assert (read.X != made.X).nnz == 0
    assert read.obs["component"].tolist() == made.obs["component"].tolist()


def test_threads_do_not_disturb_each_other() -> None:
    model = fit(cells())
    expected = model.generate(200, seed=3).X.toarray()
    with ThreadPoolExecutor(4) as threads:
        made = list(threads.map(lambda seed: model.generate(200, seed=seed), [3, 1, 3, 2, 3]))
    for adata in made[::2]:
        assert np.array_equal(adata.X.toarray(), expected)


def test_training_keeps_its_turn_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it draws once the epochs are over must not come amid the training of a thread."""
    taken = []

    def try_to_take() -> None:
        taken.append(TURNS.acquire(blocking=False))

    def seen(name: str) -> None:
        own = getattr(DRA, name)

        def watched(self: DRA, *args: Any) -> None:
            thread = Thread(target=try_to_take)
            thread.start()
            thread.join()
            own(self, *args)

        monkeypatch.setattr(DRA, name, watched)

    seen("_finish_training")
    seen("_calibrate")
    fit(cells())
    assert taken == [False, False]
