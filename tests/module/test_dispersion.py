"""Dispersions fitted by themselves: to what likelihood wants, and nothing else is touched."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from anndata import AnnData
from scipy import optimize, stats
from scvi import REGISTRY_KEYS

from dra_scvi import DRA, DRAVAE
from dra_scvi._module.dispersion import fit_dispersions, has_dispersions_to_fit
from tests.helpers import QUIET, SMALL, cells, fit

if TYPE_CHECKING:
    from collections.abc import Callable

THETA = np.array([0.3, 1.0, 3.0, 10.0])


def minibatches(counts: np.ndarray, size: int = 100) -> list[dict[str, torch.Tensor]]:
    x = torch.from_numpy(counts.astype(np.float32))
    zeros = torch.zeros(len(x), 1)
    names = (REGISTRY_KEYS.BATCH_KEY, REGISTRY_KEYS.LABELS_KEY)
    parts = range(0, len(x), size)
    return [
        {REGISTRY_KEYS.X_KEY: x[i : i + size], **dict.fromkeys(names, zeros[i : i + size])}
        for i in parts
    ]


def module_of_equal_genes(**options: Any) -> DRAVAE:
    """Return a module that expects a cell's total in equal parts from all genes."""
    torch.manual_seed(0)
    module = DRAVAE(len(THETA), n_latent=2, n_hidden=8, gene_likelihood="nb", **options)
    for parameter in module.decoder.px_scale_decoder.parameters():
        parameter.data.zero_()
    return module.eval()


def test_dispersions_become_the_most_likely_ones() -> None:
    """The oracle maximises SciPy's likelihood, gene by gene."""
    rng = np.random.default_rng(0)
    rates = rng.gamma(THETA, 1 / THETA, size=(2000, 4)) * 20
    counts = rng.poisson(rates)
    mean = counts.sum(1, keepdims=True) / 4

    def most_likely(gene: int) -> float:
        def loss(log_theta: float) -> float:
            theta = np.exp(log_theta)
            p = theta / (theta + mean[:, 0])
            return -stats.nbinom.logpmf(counts[:, gene], theta, p).sum()

        return optimize.minimize_scalar(loss, bounds=(-4, 6), method="bounded").x

    some = counts.sum(1) > 0
    counts, mean = counts[some], mean[some]
    module = module_of_equal_genes()
    fit_dispersions(module, minibatches(counts), 300)
    expected = [most_likely(gene) for gene in range(4)]
    np.testing.assert_allclose(module.px_r.detach().numpy(), expected, atol=0.1)


def test_all_else_stays_as_it_was() -> None:
    module = module_of_equal_genes(dropout_rate=0.5, use_batch_norm="both")
    module.prior.requires_grad_(False)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    could_learn = {name: p.requires_grad for name, p in module.named_parameters()}
    fit_dispersions(module, minibatches(np.full((50, 4), 3)), 5)
    changed = {n for n, value in module.state_dict().items() if not torch.equal(value, before[n])}
    assert changed == {"px_r"}
    assert {name: p.requires_grad for name, p in module.named_parameters()} == could_learn
    assert not any(part.training for part in module.modules())


def test_an_error_leaves_nothing_frozen_or_dropping() -> None:
    module = module_of_equal_genes()
    broken = minibatches(np.full((50, 4), 3))
    del broken[0][REGISTRY_KEYS.X_KEY]
    with pytest.raises(KeyError):
        fit_dispersions(module, broken, 5)
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert not any(part.training for part in module.modules())


def test_units_are_dropped_as_in_training() -> None:
    module = module_of_equal_genes(dropout_rate=0.5, use_batch_norm="both")
    seen: dict[type, set[bool]] = {torch.nn.Dropout: set(), torch.nn.BatchNorm1d: set()}
    for part in module.modules():
        if type(part) in seen:
            part.register_forward_hook(lambda part, *_: seen[type(part)].add(part.training))
    fit_dispersions(module, minibatches(np.full((50, 4), 3)), 5)
    assert seen == {torch.nn.Dropout: {True}, torch.nn.BatchNorm1d: {False}}


@pytest.mark.parametrize(
    "options",
    [{"gene_likelihood": "poisson"}, {"gene_likelihood": "normal"}, {"dispersion": "gene-cell"}],
)
def test_where_there_are_none_nothing_is_fitted(options: dict[str, Any]) -> None:
    assert not has_dispersions_to_fit(DRAVAE(4, **options))
    assert fit(cells(), model=options).get_latent_representation().shape == (60, 4)


@pytest.fixture
def overdispersed() -> Callable[[int], AnnData]:
    def draw(seed: int) -> AnnData:
        """Return 20 genes of dispersion 0.5 beside 20 of Poisson's."""
        rng = np.random.default_rng(seed)
        mean = np.full((600, 40), 5.0)
        mean[:, :20] *= rng.gamma(0.5, 2.0, size=(600, 20))
        return AnnData(rng.poisson(mean).astype(np.float32))

    return draw


def test_training_ends_with_them(overdispersed: Callable[[int], AnnData]) -> None:
    """After 75 steps genes are told apart by how they vary, wherever dispersions began."""
    adata = overdispersed(0)
    DRA.setup_anndata(adata)
    torch.manual_seed(0)
    model = DRA(adata, gene_likelihood="nb", **SMALL)
    model.train(max_epochs=15, **QUIET)
    found = model.module.px_r.detach().exp()
    assert found[:20].max() < 1.5
    assert found[20:].min() > 1.5


def test_the_embedding_does_not_depend_on_them() -> None:
    model = fit(cells())
    before, latent = model.module.px_r.detach().clone(), model.get_latent_representation()
    model._finish_training()
    assert not torch.equal(model.module.px_r, before)
    np.testing.assert_array_equal(model.get_latent_representation(), latent)


def test_those_of_a_reference_stay_in_its_queries() -> None:
    reference = fit(cells(), batch_key="batch")
    query = cells(seed=1)
    query.obs["batch"] = "new"
    model = DRA.load_query_data(query, reference, accelerator="cpu")
    model.train(max_epochs=2, **QUIET)
    assert torch.equal(model.module.px_r, reference.module.px_r)
