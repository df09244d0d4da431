"""Getters that scvi-tools has wrong for a learned prior, or in one of its versions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from scvi.distributions import NegativeBinomial
from torch.distributions import Normal

from dra_scvi import DRA

if TYPE_CHECKING:
    from anndata import AnnData


@pytest.fixture
def model(adata: AnnData) -> DRA:
    DRA.setup_anndata(adata, batch_key="batch")
    model = DRA(adata, n_hidden=8, n_latent=3, prior="mixture", n_components=4)
    model.train(max_epochs=1, accelerator="cpu", enable_progress_bar=False)
    return model


@pytest.mark.parametrize("dof", [None, 3.0])
def test_the_aggregated_posterior_is_as_wide_as_the_posteriors(
    model: DRA, dof: float | None
) -> None:
    """scvi-tools 1.4 takes variances for standard deviations."""
    means, variances = model.get_latent_representation(return_dist=True)
    mixture = model.get_aggregated_posterior(dof=dof)
    components = mixture.component_distribution.base_dist
    np.testing.assert_allclose(components.loc.numpy(), means)
    np.testing.assert_allclose(components.scale.numpy() ** 2, variances, rtol=1e-5)
    assert mixture.mixture_distribution.probs.numpy() == pytest.approx(1 / len(means))
    chosen = model.get_aggregated_posterior(indices=[4, 2], dof=dof)
    np.testing.assert_allclose(chosen.component_distribution.base_dist.loc, means[[4, 2]])


def importance_weights(
    model: DRA, n_cells: int = 5, **kwargs: Any
) -> tuple[np.ndarray, torch.Tensor]:
    """Weights of random codes, and the codes."""
    indices = np.arange(n_cells)
    means, variances = model.get_latent_representation(indices=indices, return_dist=True)
    qz = Normal(torch.as_tensor(means), torch.as_tensor(variances).sqrt())
    generator = torch.Generator().manual_seed(0)
    zs = qz.loc + qz.scale * torch.randn(2, n_cells, 3, generator=generator)
    scale = torch.rand(2, n_cells, model.adata.n_vars, generator=generator).softmax(-1)
    px = NegativeBinomial(mu=scale, theta=torch.ones_like(scale), scale=scale)
    return model.get_importance_weights(None, indices, qz=qz, px=px, zs=zs, **kwargs), zs


@pytest.mark.parametrize("truncation", [False, True])
def test_importance_weights_follow_the_prior(
    model: DRA, truncation: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the ratio of the densities is under test, and the real one changes with the prior as well
    monkeypatch.setattr(DRA, "get_marginal_ll", lambda *_, indices, **__: torch.zeros(5))
    weights = {}
    for location in (0.0, 2.0):
        with torch.no_grad():
            model.module.prior.loc.fill_(location)
        weights[location], zs = importance_weights(model, truncation=False)
        assert weights[location].sum() == pytest.approx(1)
    normal = Normal(torch.zeros(3), torch.ones(3)).log_prob(zs.reshape(-1, 3)).sum(-1)
    prior = model.module.prior.log_prob(zs.reshape(-1, 3)).detach()
    expected = torch.as_tensor(weights[0.0]).log() + prior - normal
    if truncation:
        tau = expected.logsumexp(0) - np.log(len(expected))
        expected = expected.clamp(min=float(tau))
    found, _ = importance_weights(model, truncation=truncation)
    np.testing.assert_allclose(found, expected.softmax(0).numpy(), rtol=1e-4)


def test_importance_weights_are_scvis_under_a_normal_prior(
    model: DRA, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not model.module.prior.is_started  # all of its components are N(0, I)
    with torch.no_grad():
        model.module.prior.load_state_dict(type(model.module.prior)(3, 4).state_dict())
    torch.manual_seed(0)
    mixture, _ = importance_weights(model, truncation=True)
    monkeypatch.setattr(DRA, "_log_prior_ratio", lambda *_: 0.0)  # that of N(0, I)
    torch.manual_seed(0)
    scvis, _ = importance_weights(model, truncation=True)
    np.testing.assert_allclose(mixture, scvis, rtol=1e-5)


def test_flags_of_numpy_are_flags(model: DRA) -> None:
    """True and False of NumPy are taken as what they are."""
    one, _ = model.get_latent_representation(give_mean=np.True_, return_dist=np.True_)
    assert np.array_equal(one, model.get_latent_representation())
