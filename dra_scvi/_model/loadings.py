"""Loadings: which genes change along each dimension of the embedding, and by how much."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from scvi import REGISTRY_KEYS

from dra_scvi._compat import MODULE_KEYS
from dra_scvi._model.arguments import takes_cells
from dra_scvi._model.getters import INFERENCE_BATCH_SIZE
from dra_scvi._module.axes import changes_along
from dra_scvi._module.neighborhood import evenly_spaced

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from anndata import AnnData
    from torch import Tensor

    from dra_scvi._module.dravae import DRAVAE

LOADINGS_CELLS = 2_048


class LoadingsMixin:
    """Models that say which genes their dimensions stand for."""

    module: DRAVAE

    @takes_cells
    @torch.inference_mode()
    def get_loadings(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        batch_size: int | None = None,
    ) -> pd.DataFrame:
        """Return by how much each gene changes along each dimension of the embedding.

        A cell is moved along one dimension of :meth:`get_latent_representation`, the others as
        they are, from half a standard deviation of the cells below its own place to half of one
        above. The loading of a gene is the log2 fold change of its decoded share of the counts,
        the mean over cells, each in its own batch: what :class:`~scvi.model.LinearSCVI` reads off
        its linear decoder. Dimensions as trained are in no order, and each may mix what varies;
        ``DRA(adata, expression_axes=True)`` orders and separates them.

        Parameters
        ----------
        adata
            Cells to average over; those of the model by default.
        indices
            Cells to take; by default 2,048 evenly spaced ones, or all where there are fewer.
        batch_size
            Cells that are decoded at a time.

        Returns
        -------
        Genes by dimensions, these named ``Z_0``, ``Z_1``, ...

        Raises
        ------
        RuntimeError
            When the model is not trained.

        Examples
        --------
        >>> import dra_scvi
        >>> adata = dra_scvi.datasets.synthetic(n_cells=200, n_genes=50)
        >>> dra_scvi.DRA.setup_anndata(adata)
        >>> model = dra_scvi.DRA(adata, n_latent=5)
        >>> model.train(max_epochs=2, accelerator="cpu", enable_progress_bar=False)
        >>> loadings = model.get_loadings()
        >>> loadings.shape, list(loadings)[:2]
        ((50, 5), ['Z_0', 'Z_1'])
        """
        self._check_if_trained(warn=False)  # type: ignore[attr-defined]
        adata = self._validate_anndata(adata)  # type: ignore[attr-defined]
        batch_size = batch_size or INFERENCE_BATCH_SIZE
        some = evenly_spaced(adata.n_obs, LOADINGS_CELLS).numpy() if indices is None else indices
        cells = {"adata": adata, "indices": some, "batch_size": batch_size}
        if not len(some):
            raise ValueError("indices names no cells, and loadings are averages over some.")
        embedded = self.get_latent_representation(**cells)  # type: ignore[attr-defined]
        steps = self._steps(embedded.std(axis=0))
        codes = torch.from_numpy(self._codes(**cells))  # type: ignore[attr-defined]
        loader = self._make_data_loader(**cells)  # type: ignore[attr-defined]
        total = torch.zeros(len(steps), self.module.n_input)
        for tensors, own in zip(loader, codes.split(batch_size), strict=True):
            changes = changes_along(_decoder(self.module, tensors), own.to(steps), steps)
            total += changes.cpu() * len(own) / len(codes)
        names = [f"Z_{i}" for i in range(len(steps))]
        return pd.DataFrame(total.T.numpy(), index=adata.var_names, columns=names)

    def _steps(self, lengths: Any) -> Tensor:
        """Return steps of codes that move a cell along one dimension of the embedding alone."""
        axes = self.module.embedding.axes
        lengths = torch.as_tensor(np.asarray(lengths)).to(axes)
        return lengths[:, None] * torch.linalg.pinv(axes.double()).to(axes)


def _decoder(module: DRAVAE, tensors: dict[str, Tensor]) -> Callable[[Tensor], Tensor]:
    """Return the map from codes to log2 shares of genes, for cells with these covariates.

    Depth is left at 1: it cancels in differences of logarithms.
    """
    depth = torch.zeros(len(tensors[REGISTRY_KEYS.BATCH_KEY]), 1)
    outputs = {MODULE_KEYS.Z_KEY: None, MODULE_KEYS.LIBRARY_KEY: depth}
    given = module._get_generative_input(tensors, outputs)

    def decode(codes: Tensor) -> Tensor:
        px = module.generative(**{**given, MODULE_KEYS.Z_KEY: codes})[MODULE_KEYS.PX_KEY]
        shares = px.mean if module.gene_likelihood == "normal" else px.scale
        return shares.clamp_min(torch.finfo(shares.dtype).tiny).log2()

    return decode
