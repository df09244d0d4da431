"""The released DR-A program, quirks included, as a scvi-tools model: to check published numbers.

Written from the equations, not from the code. What it does differently from its own premise (and
from :class:`~dra_scvi.DRA`): the likelihood sees scaled logarithms in place of counts, the KL
divergence of the codes has weight 0, the latent discriminator cooperates, the second one moves
nothing but itself, and its input comes from a head that no loss trains.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scvi import REGISTRY_KEYS

from dra_scvi._argument_kinds import check_kinds
from dra_scvi._exceptions import InvalidCountsError
from dra_scvi._model.arguments import check_model
from dra_scvi._model.base import BaseDRA
from dra_scvi._model.transfer import Refused
from dra_scvi._published.networks import PublishedVAE
from dra_scvi._published.plan import PublishedPlan, PublishedSplitter, published_split
from dra_scvi.presets import published

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData


class PublishedDRA(BaseDRA):
    """DR-A as its released program runs it, to check published numbers; not for analyses.

    Train it with ``model.train(**dra_scvi.presets.published(n_latent).train)``; score the cells of
    ``model.test_indices`` on one sample of the codes,
    ``model.get_latent_representation(indices=model.test_indices, give_mean=False)``. Expression
    that it returns is on the scale of its input, ``log2(1 + count)`` over its maximum. Batches and
    covariates are ignored, as in the program.

    Parameters
    ----------
    adata
        AnnData object registered with :meth:`setup_anndata`.
    registry
        Not supported: the input is scaled by the maximum of the whole matrix.
    n_latent
        Dimensions of the latent space.
    n_hidden
        Width of each hidden layer of the encoder; `None` for the published ones.
    n_hidden_discriminator
        Width of each hidden layer of both discriminators; `None` for the published ones.
    dropout_rate
        1 - `keep` of the program.
    leak
        Slope of the leaky ReLU.
    batch_norm
        The program's flag as it acts: an affine map in place of batch normalisation, no dropout.
        Written `--bn False`, as its instructions have it, TensorFlow 1.5 or later reads it as on.
    prior
        `"normal"` or `"uniform"` on [-1, 1].

    References
    ----------
    https://github.com/eugenelin1/DRA, the program to Lin, Mukherjee & Kannan, BMC Bioinformatics
    21 (2020) 64.

    Examples
    --------
    >>> import dra_scvi
    >>> adata = dra_scvi.datasets.synthetic(n_cells=200, n_genes=50)
    >>> dra_scvi.PublishedDRA.setup_anndata(adata)
    >>> model = dra_scvi.PublishedDRA(adata, n_latent=10)
    >>> settings = dra_scvi.presets.published(10).train | {"max_epochs": 1}
    >>> model.train(**settings, accelerator="cpu", enable_progress_bar=False)
    >>> len(model.test_indices)
    40
    """

    _module_cls = PublishedVAE
    _training_plan_cls = PublishedPlan
    _data_splitter_cls = PublishedSplitter

    def __init__(
        self,
        adata: AnnData | None = None,
        registry: dict | None = None,
        n_latent: int = 10,
        n_hidden: Sequence[int] | None = None,
        n_hidden_discriminator: Sequence[int] | None = None,
        dropout_rate: float = 0.1,
        leak: float = 0.2,
        batch_norm: bool = False,
        prior: str = "normal",
    ) -> None:
        if adata is None:
            raise ValueError(
                "PublishedDRA needs `adata`: its input is scaled by the whole matrix."
            )
        if n_hidden is None or n_hidden_discriminator is None:
            networks = published(n_latent).model
            n_hidden = n_hidden or networks["n_hidden"]
            n_hidden_discriminator = n_hidden_discriminator or networks["n_hidden_discriminator"]
        check_model(locals())
        check_kinds(PublishedDRA, locals())
        super().__init__(
            adata,
            n_hidden=n_hidden,
            n_latent=n_latent,
            dropout_rate=dropout_rate,
            use_observed_lib_size=False,
            n_hidden_discriminator=n_hidden_discriminator,
            leak=leak,
            batch_norm=batch_norm,
            prior=prior,
        )
        input_max, library_mean, library_var = self._input_moments()
        self.module.input_max.fill_(input_max)
        self.module.library_mean.fill_(library_mean)
        self.module.library_var.fill_(library_var)
        self._model_summary_string = (
            f"Published DR-A with the following parameters: \nn_latent: {n_latent}, "
            f"n_hidden: {n_hidden}, n_hidden_discriminator: {n_hidden_discriminator}, "
            f"dropout_rate: {dropout_rate}, leak: {leak}, batch_norm: {batch_norm}, "
            f"prior: {prior}."
        )
        self._init_arguments = self._get_init_params(locals())
        reason = "its networks are those of the released program, and not scVI's."
        self.init_params_ = {"non_kwargs": Refused(reason), "kwargs": {}}

    def _input_moments(self) -> tuple[float, float, float]:
        """Scale of the input, and moments of the log library size over the training cells."""
        counts = self.adata_manager.get_from_registry(REGISTRY_KEYS.X_KEY)
        logs = (
            np.log2(1 + counts) if isinstance(counts, np.ndarray) else counts.log1p() / np.log(2)
        )
        input_max = float(logs.max())
        totals = np.asarray(logs.sum(1)).ravel() / input_max
        if not totals.all():
            raise InvalidCountsError(
                f"{int((totals == 0).sum())} cells have no counts, and the published model takes "
                "the logarithm of their sum: sc.pp.filter_cells(adata, min_counts=1) "
                "drops them."
            )
        library = np.log(totals[published_split(self.adata.n_obs)[0]])
        return input_max, float(library.mean()), float(library.var())
