"""Loadings: what the decoder does along each dimension of the embedding, and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from dra_scvi import DRA, datasets
from dra_scvi._model import loadings
from dra_scvi._module.axes import changes_along
from tests.helpers import cells, fit


@pytest.fixture(scope="module")
def model() -> DRA:
    adata = cells()
    adata.obs["age"] = np.linspace(-1, 1, adata.n_obs)
    setup = {"continuous_covariate_keys": ["age"]}
    return fit(adata, "batch", setup=setup, model={"expression_axes": True, "n_neighbors": 3})


def decoded(model: DRA, embedded: np.ndarray) -> np.ndarray:
    """Log2 shares of genes where cells lie in the embedding, by the decoder itself."""
    module, obs = model.module, model.adata.obs
    codes = torch.tensor(embedded) @ torch.linalg.inv(module.embedding.axes)
    inputs = torch.cat([codes, torch.tensor(obs["age"].to_numpy(np.float32))[:, None]], -1)
    batch = torch.tensor(obs["batch"].cat.codes.to_numpy(np.int64))[:, None]
    with torch.inference_mode():
        shares, *_ = module.decoder("gene", inputs, torch.zeros(len(codes), 1), batch)
    return shares.log2().numpy()


def test_loadings_are_what_the_decoder_does_along_one_dimension_alone(model: DRA) -> None:
    found = model.get_loadings()
    assert list(found) == ["Z_0", "Z_1", "Z_2", "Z_3"]
    assert list(found.index) == list(model.adata.var_names)
    # neighbours give the lengths of the axes, and cells are decoded where they lie themselves
    lengths = model.get_latent_representation().std(axis=0)
    places = model._codes() @ model.module.embedding.axes.numpy()
    for j, length in enumerate(lengths):
        step = np.zeros_like(places)
        step[:, j] = length / 2
        expected = (decoded(model, places + step) - decoded(model, places - step)).mean(0)
        np.testing.assert_allclose(found[f"Z_{j}"], expected, rtol=1e-3, atol=1e-4)
    assert found.abs().to_numpy().max() > 1e-2


def test_cells_and_sizes_of_minibatches(model: DRA, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = model.get_loadings()
    np.testing.assert_allclose(model.get_loadings(batch_size=7), whole, rtol=1e-3, atol=1e-5)
    some = model.get_loadings(indices=np.arange(0, 60, 3))
    assert np.abs(some - whole).to_numpy().max() > 1e-3
    monkeypatch.setattr(loadings, "LOADINGS_CELLS", 20)
    np.testing.assert_array_equal(model.get_loadings(), some)


def test_nothing_in_loadings_is_random(model: DRA) -> None:
    np.testing.assert_array_equal(model.get_loadings(), model.get_loadings())


@pytest.mark.parametrize(
    "given",
    [
        {"gene_likelihood": "normal"},
        {"gene_likelihood": "poisson", "latent_distribution": "ln"},
        {"gene_likelihood": "nb", "dispersion": "gene-cell", "batch_representation": "embedding"},
    ],
    ids=["normal", "ln", "batch embedding"],
)
def test_loadings_of_other_models(given: dict[str, Any]) -> None:
    found = fit(cells(), "batch", model=given).get_loadings()
    assert found.shape == (12, 4)
    assert np.isfinite(found).all(axis=None)
    assert found.abs().to_numpy().max() > 0


def test_loadings_of_minified_cells() -> None:
    own = fit(cells(), "batch")
    expected = own.get_loadings()
    means, variances = own.get_latent_representation(return_dist=True)
    own.adata.obsm["X_latent_qzm"], own.adata.obsm["X_latent_qzv"] = means, variances
    own.minify_adata()
    np.testing.assert_allclose(own.get_loadings(), expected, rtol=1e-3, atol=1e-4)


def test_an_axis_between_two_types_has_the_genes_that_tell_them_apart() -> None:
    adata = datasets.synthetic(n_cells=300, n_genes=40, n_types=2, seed=1)
    model = fit(adata, max_epochs=30, model={"n_hidden": 32, "expression_axes": True})
    embedded = model.get_latent_representation()
    is_first = (adata.obs["cell_type"] == adata.obs["cell_type"].iloc[0]).to_numpy()
    shares = adata.X.toarray() / adata.X.sum(axis=1)
    shares = np.asarray(shares)
    apart = np.log2(shares[is_first].mean(0) + 1e-4) - np.log2(shares[~is_first].mean(0) + 1e-4)
    side = np.sign(embedded[is_first, 0].mean() - embedded[~is_first, 0].mean())
    assert np.corrcoef(side * model.get_loadings()["Z_0"], apart)[0, 1] > 0.8


def test_a_model_that_is_not_trained() -> None:
    adata = cells()
    DRA.setup_anndata(adata)
    with pytest.raises(RuntimeError, match="untrained model"):
        DRA(adata).get_loadings()


def test_changes_of_a_curved_map_are_those_over_the_whole_step() -> None:
    codes = torch.tensor([[0.0, 1.0], [2.0, -1.0]])
    found = changes_along(torch.square, codes, torch.tensor([[2.0, 0.0], [0.0, 1.0]]))
    # (z + 1)² - (z - 1)² = 4 z, at 0 and 2; 2 z at 1 and -1
    torch.testing.assert_close(found, torch.tensor([[4.0, 0.0], [0.0, 0.0]]))


def test_loadings_of_no_cells_are_refused(model: DRA) -> None:
    with pytest.raises(ValueError, match="indices names no cells"):
        model.get_loadings(indices=[])
