"""Getters of scvi-tools that hold for any prior, and in every version of scvi-tools."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from scvi.model import SCVI
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal, StudentT

from dra_scvi._docstrings import with_parameters_of
from dra_scvi._module import DRAVAE
from dra_scvi._priors import NormalPrior

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from anndata import AnnData
    from numpy.typing import NDArray
    from torch import Tensor
    from torch.distributions import Distribution


class GetterMixin:
    """What :class:`~scvi.model.SCVI` computes under assumptions that a model here may break."""

    @property
    def _registry(self) -> dict[str, Any]:
        """What `update_setup_method_args` of scvi-tools looks for, and no model has."""
        return self.registry_  # type: ignore[attr-defined]

    def view_registry(self, hide_state_registries: bool = False) -> None:
        """Print what is registered of the AnnData; scvi-tools' own method fails.

        Parameters
        ----------
        hide_state_registries
            Whether to leave out the details of each field.
        """
        self.adata_manager.view_registry(hide_state_registries)  # type: ignore[attr-defined]

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
        means, variances = self.get_latent_representation(  # type: ignore[attr-defined]
            adata, indices, batch_size=batch_size, return_dist=True
        )
        device = self.device  # type: ignore[attr-defined]
        loc = torch.as_tensor(means, device=device)
        scale = torch.as_tensor(variances, device=device).sqrt()
        components = Normal(loc, scale) if dof is None else StudentT(dof, loc, scale)
        weights = Categorical(logits=torch.zeros(len(loc), device=device))
        return MixtureSameFamily(weights, Independent(components, 1))

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
        weights = super().get_importance_weights(  # type: ignore[misc]
            self._validate_anndata(adata),  # type: ignore[attr-defined]
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
        module = self.module  # type: ignore[attr-defined]
        if isinstance(module, DRAVAE) and not isinstance(module.prior, NormalPrior):
            log_weights = log_weights + _log_ratio_to_normal(module, zs)
        if truncation:
            log_mean = log_weights.logsumexp(0) - torch.tensor(len(log_weights)).log()
            log_weights = log_weights.clamp(min=log_mean)
        return log_weights.softmax(0).numpy()


@torch.inference_mode()
def _log_ratio_to_normal(module: DRAVAE, zs: Tensor) -> Tensor:
    """``ln p(z) - ln N(z; 0, I)`` of codes ``(..., n_latent)``, in one row."""
    zs = zs.to(module.device)
    normal = NormalPrior(module.n_latent).to(zs.device)
    ratio = module.prior.log_prob(zs) - normal.log_prob(zs)
    return ratio.reshape(-1).cpu().double()
