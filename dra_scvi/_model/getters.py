"""Getters of scvi-tools that hold for any prior, and in every version of scvi-tools."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scvi import REGISTRY_KEYS
from scvi.model import SCVI
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal, StudentT

from dra_scvi._compat import is_minified
from dra_scvi._data.rows import registered_rows
from dra_scvi._docstrings import with_parameters_of
from dra_scvi._model.arguments import takes_cells
from dra_scvi._module.dravae import DRAVAE
from dra_scvi._module.priors import NormalPrior

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from anndata import AnnData
    from numpy.typing import NDArray
    from torch import Tensor
    from torch.distributions import Distribution

    from dra_scvi._data.rows import Rows


INFERENCE_BATCH_SIZE = 512


class GetterMixin(SCVI):
    """What :class:`~scvi.model.SCVI` computes under assumptions that a model here may break."""

    _uses_code_axes: bool

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
    get_likelihood_parameters = takes_cells(SCVI.get_likelihood_parameters)
    get_marginal_ll = takes_cells(SCVI.get_marginal_ll)
    get_normalized_expression = takes_cells(SCVI.get_normalized_expression)
    get_reconstruction_error = takes_cells(SCVI.get_reconstruction_error)
    differential_expression = takes_cells(SCVI.differential_expression)
    posterior_predictive_sample = takes_cells(SCVI.posterior_predictive_sample)

    @functools.wraps(SCVI.minify_adata)
    def minify_adata(self, *args: Any, **kwargs: Any) -> None:
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
        module = self.module
        if isinstance(module, DRAVAE) and not isinstance(module.prior, NormalPrior):
            log_weights = log_weights + _log_ratio_to_normal(module, zs)
        if truncation:
            log_mean = log_weights.logsumexp(0) - torch.tensor(len(log_weights)).log()
            log_weights = log_weights.clamp(min=log_mean)
        return log_weights.softmax(0).numpy()

    @takes_cells
    def get_latent_representation(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        give_mean: bool = True,
        mc_samples: int = 5_000,
        batch_size: int | None = None,
        return_dist: bool = False,
        dataloader: Iterator[dict[str, Tensor | None]] | None = None,
        **data_loader_kwargs: Any,
    ) -> NDArray[np.float32] | tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the codes of cells, shape ``(n_cells, n_latent)``.

        The mean of q(z|x) is moved to where the training cells that are like it lie on average,
        those of every batch alike (:class:`~dra_scvi._module.neighborhood.Neighborhood`), and put
        on the axes that training ends with: principal components by the distance between the
        log-normalised profiles that codes predict
        (:func:`~dra_scvi._module.axes.expression_axes`), in order, their lengths tempered
        (:func:`~dra_scvi._module.axes.tempered`).
        ``DRA(adata, n_neighbors=0)`` leaves the first step out; ``return_dist=True`` gives q(z|x)
        itself, in the coordinates of the decoder, and ``model.module.embedding`` makes the former
        of the latter.

        Counts in memory are encoded in large minibatches, without drawing codes.

        Parameters
        ----------
        adata
            AnnData with the genes that the model was trained on; `None` for the model's own.
        indices
            Cells to embed; `None` for all.
        give_mean
            Whether to go by the mean of q(z|x). Otherwise one code is drawn from it for each cell,
            and only put on the axes.
        mc_samples
            Number of codes that the mean is estimated from where it has no closed form
            (`latent_distribution="ln"`).
        batch_size
            Cells in a minibatch; `None` for as many as are embedded fastest.
        return_dist
            Whether to return mean and variance of q(z|x) instead.
        dataloader
            Minibatches to embed in place of an AnnData.
        **data_loader_kwargs
            Arguments of :class:`~scvi.dataloaders.AnnDataLoader`.

        Returns
        -------
        Codes, or means and variances where `return_dist` is set.
        """
        self._check_if_trained(warn=False)
        has_closed_form = isinstance(self.module, DRAVAE) and (
            return_dist or (give_mean and self.module.latent_distribution == "normal")
        )
        rows = None
        if has_closed_form and dataloader is None and not data_loader_kwargs:
            adata = self._validate_anndata(adata)
            manager = self.get_anndata_manager(adata, required=True)
            rows = None if is_minified(adata) else registered_rows(manager)
        if rows is None:
            codes = super().get_latent_representation(
                adata,
                indices,
                give_mean,
                mc_samples,
                batch_size,
                return_dist,
                dataloader,
                **data_loader_kwargs,
            )
        else:
            cells = np.arange(manager.adata.n_obs) if indices is None else np.asarray(indices)
            codes = self._posterior(rows, cells, batch_size or INFERENCE_BATCH_SIZE)
            codes = codes if return_dist else codes[0]
        if return_dist or not self._uses_code_axes or not isinstance(self.module, DRAVAE):
            return codes
        return self.module.embedding(torch.from_numpy(codes), average=give_mean).cpu().numpy()

    def _posterior(
        self, rows: dict[str, Rows], cells: NDArray[np.int64], batch_size: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Mean and variance of q(z|x) of chosen cells."""
        names = {
            REGISTRY_KEYS.BATCH_KEY: "batch_index",
            REGISTRY_KEYS.CONT_COVS_KEY: "cont_covs",
            REGISTRY_KEYS.CAT_COVS_KEY: "cat_covs",
        }
        counts = rows[REGISTRY_KEYS.X_KEY]
        weight = self.module.gene_weight.detach().contiguous()
        parts = []
        for index in torch.from_numpy(cells).split(batch_size):
            genes = counts.project(index, weight, self.module.log_variational)
            covariates = {
                argument: rows[key].take(index) for key, argument in names.items() if key in rows
            }
            parts.append([part.cpu() for part in self.module.posterior(genes, **covariates)])
        means, variances = (torch.cat(part).numpy() for part in zip(*parts, strict=True))
        return means, variances


@torch.inference_mode()
def _log_ratio_to_normal(module: DRAVAE, zs: Tensor) -> Tensor:
    """``ln p(z) - ln N(z; 0, I)`` of codes ``(..., n_latent)``, in one row."""
    zs = zs.to(module.device)
    normal = NormalPrior(module.n_latent).to(zs.device)
    ratio = module.prior.log_prob(zs) - normal.log_prob(zs)
    return ratio.reshape(-1).cpu().double()
