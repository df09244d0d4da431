"""Getters of scvi-tools that hold for any prior, and in every version of scvi-tools."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch
from scvi.model import SCVI
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal, StudentT

from dra_scvi._argument_kinds import check_call
from dra_scvi._docstrings import with_parameters_of
from dra_scvi._model.arguments import takes_cells

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from anndata import AnnData
    from numpy.typing import NDArray
    from torch import Tensor
    from torch.distributions import Distribution


INFERENCE_BATCH_SIZE = 512


class GetterMixin(SCVI):
    """What :class:`~scvi.model.SCVI` computes under assumptions that a model here may break."""

    @property
    def _registry(self) -> dict[str, Any]:
        """What `update_setup_method_args` of scvi-tools looks for, and no model has."""
        return self.registry_

    def view_registry(self, hide_state_registries: bool = False) -> None:
        """Print what is registered of the AnnData; scvi-tools' own method fails.

        Parameters
        ----------
        hide_state_registries
            Whether to leave out the details of each field.
        """
        self.adata_manager.view_registry(hide_state_registries)

    get_batch_representation = takes_cells(SCVI.get_batch_representation)
    get_elbo = takes_cells(SCVI.get_elbo)
    get_feature_correlation_matrix = takes_cells(SCVI.get_feature_correlation_matrix)
    get_latent_library_size = takes_cells(SCVI.get_latent_library_size)
    get_latent_representation = takes_cells(SCVI.get_latent_representation)
    get_likelihood_parameters = takes_cells(SCVI.get_likelihood_parameters)
    get_marginal_ll = takes_cells(SCVI.get_marginal_ll)
    get_normalized_expression = takes_cells(SCVI.get_normalized_expression)
    get_reconstruction_error = takes_cells(SCVI.get_reconstruction_error)
    differential_abundance = takes_cells(SCVI.differential_abundance)
    differential_expression = takes_cells(SCVI.differential_expression)
    posterior_predictive_sample = takes_cells(SCVI.posterior_predictive_sample)

    @functools.wraps(SCVI.minify_adata)
    def minify_adata(self, *args: Any, **kwargs: Any) -> None:
        check_call(super().minify_adata, *args, **kwargs)
        self._validate_anndata()
        super().minify_adata(*args, **kwargs)

    @takes_cells
    @with_parameters_of(SCVI.get_aggregated_posterior)
    @torch.inference_mode()
    def get_aggregated_posterior(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        batch_size: int | None = None,
        dof: float | None = 3.0,
    ) -> MixtureSameFamily:
        """Return the mixture of the posteriors of cells, one component for each.

        Its components are as wide as the posteriors; scvi-tools 1.4 takes their variances for
        standard deviations.

        Parameters
        ----------
        {parameters}
        """
        if indices is not None and len(indices) == 0:
            indices = None
        means, variances = self.get_latent_representation(
            adata, indices, batch_size=batch_size, return_dist=True
        )
        device = self.device
        loc = torch.as_tensor(means, device=device)
        scale = torch.as_tensor(variances, device=device).sqrt()
        components = Normal(loc, scale) if dof is None else StudentT(dof, loc, scale)
        weights = Categorical(logits=torch.zeros(len(loc), device=device))
        return MixtureSameFamily(weights, Independent(components, 1))

    @takes_cells
    @with_parameters_of(SCVI.get_importance_weights)
    def get_importance_weights(
        self,
        adata: AnnData | None,
        indices: list[int] | None,
        qz: Distribution,
        px: Distribution,
        zs: Tensor,
        max_cells: int = 1024,
        truncation: bool = False,
        n_mc_samples: int = 500,
        n_mc_samples_per_pass: int = 250,
        **data_loader_kwargs: Any,
    ) -> NDArray[np.floating]:
        """Return a weight for each code in `zs`, under the prior of the model.

        scvi-tools assumes N(0, I); the weights that it gives are multiplied by the ratio of the
        densities.

        Parameters
        ----------
        {parameters}
        """
        weights = super().get_importance_weights(
            self._validate_anndata(adata),
            indices,
            qz,
            px,
            zs.double(),  # weights of codes far from the origin are tiny under N(0, I)
            max_cells,
            False,
            n_mc_samples,
            n_mc_samples_per_pass,
            **data_loader_kwargs,
        )
        log_weights = torch.from_numpy(weights).double().log()
        log_weights = log_weights + self._log_prior_ratio(zs)
        if truncation:
            log_mean = log_weights.logsumexp(0) - torch.tensor(len(log_weights)).log()
            log_weights = log_weights.clamp(min=log_mean)
        return log_weights.softmax(0).numpy()

    def _log_prior_ratio(self, zs: Tensor) -> Tensor | float:
        """``ln p(z) - ln N(z; 0, I)`` of codes, in one row, or one number for all."""
        return 0.0
