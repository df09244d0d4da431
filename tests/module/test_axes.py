"""Tests of the axes of expression: what they keep, what they ignore, and where codes use them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist
from sklearn.linear_model import LinearRegression

from dra_scvi import DRA
from dra_scvi._module.axes import expression_axes, tempered
from tests.helpers import QUIET

if TYPE_CHECKING:
    from anndata import AnnData
    from torch import Tensor


def problem(seed: int = 0, n_genes: int = 12) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Codes of 300 cells in two batches, and a noisy response of another length per direction."""
    rng = np.random.default_rng(seed)
    means = rng.normal(size=(300, 4)) * [1.0, 3.0, 0.5, 1.0]
    samples = means + 0.3 * rng.normal(size=means.shape)
    response = rng.normal(size=(4, n_genes)) * np.array([5.0, 0.1, 1.0, 0.0])[:, None]
    expression = samples @ response + 0.1 * rng.normal(size=(300, n_genes))
    arrays = samples, expression, means, rng.integers(0, 2, 300)
    return tuple(torch.as_tensor(array) for array in arrays)  # type: ignore[return-value]


def test_distances_are_those_of_the_predicted_expression() -> None:
    samples, expression, means, _ = problem()
    axes = expression_axes(samples, expression, means, torch.zeros(300))
    fitted = LinearRegression().fit(samples, expression)
    expected = pdist(means.numpy() @ fitted.coef_.T)
    np.testing.assert_allclose(pdist((means @ axes).numpy()), expected, rtol=1e-6)


def test_dimensions_are_principal_components_in_order() -> None:
    samples, expression, means, _ = problem()
    axes = expression_axes(samples, expression, means, torch.zeros(300))
    covariance = np.cov((means @ axes).numpy().T)
    variances = covariance.diagonal()
    assert (np.diff(variances) <= 0).all()
    np.testing.assert_allclose(covariance, np.diag(variances), atol=1e-8 * variances.max())
    assert (axes.gather(0, axes.abs().argmax(0, keepdim=True)) > 0).all()


def test_a_stretch_that_the_decoder_undoes_changes_nothing() -> None:
    """Two models with the same predictions have the same codes, up to nothing."""
    samples, expression, means, groups = problem()
    stretch = torch.as_tensor(np.random.default_rng(1).normal(size=(4, 4)))
    codes = means @ expression_axes(samples, expression, means, groups)
    stretched = [rows @ stretch for rows in (samples, means)]
    others = stretched[1] @ expression_axes(stretched[0], expression, stretched[1], groups)
    np.testing.assert_allclose(pdist(others.numpy()), pdist(codes.numpy()), rtol=1e-6)


def test_tempered_lengths_are_square_roots_up_to_one_factor() -> None:
    samples, expression, means, groups = problem()
    axes = expression_axes(samples, expression, means, groups)
    within = means.clone()
    for group in groups.unique():
        within[groups == group] -= within[groups == group].mean(0)
    before, after = ((within @ found).std(0) for found in (axes, tempered(axes, means, groups)))
    torch.testing.assert_close(after, (before * before[0]).sqrt())


def test_tempered_axes_keep_their_directions() -> None:
    samples, expression, means, groups = problem()
    axes = expression_axes(samples, expression, means, groups)
    found = tempered(axes, means, groups)
    cosines = torch.nn.functional.cosine_similarity(axes, found, dim=0)
    torch.testing.assert_close(cosines, torch.ones_like(cosines))


def test_codes_that_are_equal_are_not_tempered() -> None:
    axes = torch.eye(3)
    assert torch.equal(tempered(axes, torch.ones(9, 3), torch.zeros(9)), axes)
    flat = torch.tensor([[1.0, 0.0, 5.0], [-1.0, 0.0, 5.0]])
    assert torch.equal(tempered(axes, flat, torch.zeros(2)), axes)


@pytest.mark.parametrize("share", [1e-20, 1e-8])
def test_an_axis_without_length_but_for_rounding_stays_as_it_is(share: float) -> None:
    """In single precision; stretched to the others it would show the rounding alone."""
    means = torch.tensor([[1.0, share, 1e-4], [-1.0, -share, 1e-4]] * 5, dtype=torch.float64)
    means[:5, 2] *= -1
    found = tempered(torch.eye(3), means, torch.zeros(10))
    lengths = means.std(0)
    expected = [1.0, 1.0, float((lengths[0] / lengths[2]).sqrt())]
    torch.testing.assert_close(found, torch.diag(torch.tensor(expected)))


def test_differences_between_batches_do_not_count() -> None:
    samples, expression, means, groups = problem()
    axes = expression_axes(samples, expression, means, groups)
    shifted = expression + 50.0 * groups[:, None]
    torch.testing.assert_close(expression_axes(samples, shifted, means, groups), axes)


def test_codes_are_the_means_on_the_axes(adata: AnnData) -> None:
    DRA.setup_anndata(adata, batch_key="batch")
    model = DRA(adata, n_latent=4, expression_axes=True)
    assert torch.equal(model.module.embedding.axes, torch.eye(4))
    torch.manual_seed(0)
    model.train(2, **QUIET)
    means, _ = model.get_latent_representation(return_dist=True)
    axes = model.module.embedding.axes
    expected = torch.from_numpy(means) @ axes
    np.testing.assert_allclose(model.get_latent_representation(), expected, rtol=1e-5)
    assert not np.allclose(axes, np.eye(4))


def test_axes_are_saved_and_need_no_random_numbers(adata: AnnData, tmp_path: object) -> None:
    DRA.setup_anndata(adata)
    model = DRA(adata, n_latent=4, expression_axes=True)
    model.train(2, **QUIET)
    state = torch.get_rng_state()
    axes = model.module.embedding.axes.clone()
    model._calibrate()
    assert torch.equal(model.module.embedding.axes, axes)
    assert torch.equal(torch.get_rng_state(), state)
    model.save(f"{tmp_path}/model")
    loaded = DRA.load(f"{tmp_path}/model", adata)
    assert torch.equal(loaded.module.embedding.axes, axes)


@pytest.mark.parametrize("likelihood", ["zinb", "nb", "poisson", "normal"])
def test_every_likelihood_has_axes(adata: AnnData, likelihood: str) -> None:
    DRA.setup_anndata(adata, batch_key="batch")
    model = DRA(adata, n_latent=3, gene_likelihood=likelihood, expression_axes=True)
    model.train(1, **QUIET)
    assert model.module.embedding.axes.isfinite().all()
    assert np.linalg.matrix_rank(model.module.embedding.axes.numpy()) == 3


def test_differential_abundance_stays_in_the_coordinates_of_the_decoder(adata: AnnData) -> None:
    DRA.setup_anndata(adata, batch_key="batch")
    model = DRA(adata, n_latent=3)
    model.train(1, **QUIET)
    model.differential_abundance(adata, sample_key="batch")
    before = adata.obsm["da_log_probs"].copy()
    model.module.embedding.axes.mul_(100.0)
    model.differential_abundance(adata, sample_key="batch")
    np.testing.assert_allclose(adata.obsm["da_log_probs"], before, rtol=1e-6)


@pytest.mark.parametrize("n_genes", [1, 2, 4])
def test_fewer_genes_than_dimensions_leave_dimensions_empty(n_genes: int) -> None:
    axes = expression_axes(*problem(n_genes=n_genes))
    assert axes.shape == (4, 4)
    assert axes.isfinite().all()
    assert np.linalg.matrix_rank(axes, tol=1e-8) <= n_genes
