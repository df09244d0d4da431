"""DRA: the model class that analysts use, scvi.model.SCVI with DR-A's module and training plan."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from scvi import REGISTRY_KEYS
from scvi.model import SCVI

from dra_scvi._compat import is_minified
from dra_scvi._data.minibatches import DataSplitter
from dra_scvi._data.rows import registered_rows
from dra_scvi._docstrings import with_parameters_of
from dra_scvi._exceptions import TrainingDivergedError
from dra_scvi._model.arguments import check_model, check_model_names, takes_cells
from dra_scvi._model.base import BaseDRA
from dra_scvi._model.generating import GeneratingMixin
from dra_scvi._model.getters import INFERENCE_BATCH_SIZE
from dra_scvi._model.loadings import LoadingsMixin
from dra_scvi._model.transfer import as_scvi
from dra_scvi._module.dispersion import fit_dispersions, has_dispersions_to_fit
from dra_scvi._module.dravae import DRAVAE, hidden_widths
from dra_scvi._module.neighborhood import evenly_spaced
from dra_scvi._module.priors import NormalPrior, default_prior
from dra_scvi._training.diverged import refused_as_diverged
from dra_scvi._training.plan import DualMatchingPlan, is_trainable
from dra_scvi._training.processes import share_buffers

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pandas as pd
    from anndata import AnnData
    from numpy.typing import NDArray
    from torch import Tensor

    from dra_scvi._data.rows import Rows
    from dra_scvi._module.dravae import DivergenceName, PriorName


CALIBRATION_CELLS = 2_048
DISPERSION_CELLS, DISPERSION_STEPS = 10_000, 60


class DRA(GeneratingMixin, LoadingsMixin, BaseDRA):  # type: ignore[misc]
    """Embed single cells with an adversarial variational autoencoder with dual matching (DR-A).

    A drop-in for :class:`~scvi.model.SCVI`: registration, training, every getter, differential
    expression, saving, and mapping of query data are inherited. One discriminator matches the
    latents to the prior, another the reconstructions to the data.

    Parameters
    ----------
    adata
        AnnData object registered with :meth:`setup_anndata`.
    registry
        Registry of a data module, in place of `adata`.
    n_hidden
        Width of the hidden layers: one number, or one per layer of the encoder, which the decoder
        takes in reverse.
    n_latent
        Dimensions of the latent space.
    n_layers
        Number of hidden layers; `None` for one, or for two with two latent dimensions or fewer.
        Ignored when `n_hidden` is a list.
    dropout_rate
        Dropout rate of the encoder.
    dispersion
        `"gene"`, `"gene-batch"`, `"gene-label"` or `"gene-cell"`, as in scVI.
    gene_likelihood
        `"zinb"`, `"nb"`, `"poisson"` or `"normal"`, as in scVI.
    use_observed_lib_size
        Whether a cell's library size is its observed total.
    latent_distribution
        `"normal"` or `"ln"`, as in scVI.
    prior
        Prior that latents are matched to: `"normal"`, `"uniform"`, or `"mixture"` for a mixture of
        Gaussians that is learned with the model. `None` for the mixture, or for the normal where
        `latent_distribution` is `"ln"`.
    n_components
        Number of Gaussians of the mixture prior.
    prior_anchor
        Weight of the standard normal in the mixture prior, between 0 and 1: how much it costs
        clusters to lie far apart.
    divergence
        What the discriminators estimate: `"bhattacharyya"` or `"jensen-shannon"`.
    n_hidden_discriminator
        Width of each hidden layer of both discriminators.
    n_neighbors
        Training cells around a latent, to whose mean :meth:`get_latent_representation` moves it;
        0 for none. Neighbours are then more often of one type, and clusters at a given resolution
        more and smaller; batches mix less.
    expression_axes
        Whether :meth:`get_latent_representation` puts latents on axes, in order, by the distance
        between the log-normalised profiles that they predict
        (:func:`~dra_scvi._module.axes.expression_axes`), of tempered lengths.
    **kwargs
        Further arguments of :class:`~scvi.module.VAE`.

    References
    ----------
    Lin, Mukherjee & Kannan, A deep adversarial variational autoencoder model for dimensionality
    reduction in single-cell RNA sequencing analysis, BMC Bioinformatics 21 (2020) 64.

    Examples
    --------
    >>> import dra_scvi
    >>> adata = dra_scvi.datasets.synthetic(n_cells=200, n_genes=50)
    >>> dra_scvi.DRA.setup_anndata(adata)
    >>> model = dra_scvi.DRA(adata, n_latent=5)
    >>> model.train(max_epochs=2, accelerator="cpu", enable_progress_bar=False)
    >>> adata.obsm["X_dra"] = model.get_latent_representation()
    >>> adata.obsm["X_dra"].shape
    (200, 5)
    """

    _data_splitter_cls = DataSplitter
    _module_cls = DRAVAE
    _training_plan_cls = DualMatchingPlan

    def __init__(
        self,
        adata: AnnData | None = None,
        registry: dict | None = None,
        n_hidden: int | Sequence[int] = 128,
        n_latent: int = 10,
        n_layers: int | None = None,
        dropout_rate: float = 0.1,
        dispersion: Literal["gene", "gene-batch", "gene-label", "gene-cell"] = "gene",
        gene_likelihood: Literal["zinb", "nb", "poisson", "normal"] = "zinb",
        use_observed_lib_size: bool = True,
        latent_distribution: Literal["normal", "ln"] = "normal",
        prior: PriorName | None = None,
        n_components: int = 20,
        prior_anchor: float = 0.5,
        divergence: DivergenceName = "bhattacharyya",
        n_hidden_discriminator: Sequence[int] = (64,),
        n_neighbors: int = 0,
        expression_axes: bool = False,
        **kwargs: Any,
    ) -> None:
        arguments = dict(locals())  # needs nothing else in scope
        for name in ("self", "adata", "registry", "kwargs", "__class__"):
            del arguments[name]
        check_model(arguments)
        check_model_names(type(self), arguments | kwargs, type(self).__name__)
        super().__init__(adata, registry, **arguments, **kwargs)
        widths = list(map(int, hidden_widths(n_hidden, n_layers, n_latent)))
        self._model_summary_string = (
            f"DRA model with the following parameters: \n"
            f"n_hidden: {n_hidden}, n_latent: {n_latent}, n_layers: {len(widths)}, "
            f"dropout_rate: {dropout_rate}, dispersion: {dispersion}, "
            f"gene_likelihood: {gene_likelihood}, latent_distribution: {latent_distribution}, "
            f"prior: {prior or default_prior(latent_distribution)}, divergence: {divergence}."
        )
        self._init_arguments = self._get_init_params(locals())
        # scvi-tools builds the module of a model on a data module from them once more
        has_data_module = (registry or {}).get("setup_method_name") == "setup_datamodule"
        given = self._init_arguments
        self.init_params_ = given if has_data_module else as_scvi(given, widths)
        if self.adata is not None:
            self._validate_anndata()

    def _finish_training(self) -> None:
        """Fit dispersions to training cells, in no more steps than training had, unless frozen."""
        is_frozen = not self.trainer.lightning_module.lr  # as all that it is the rate of
        if self.adata is None or is_frozen or not has_dispersions_to_fit(self.module):
            return
        # the model's own come at the end; a user's data module need not tell
        training = getattr(self.trainer.datamodule, "train_idx", None)
        cells = np.arange(self.adata.n_obs) if training is None else np.asarray(training)
        cells = cells[evenly_spaced(len(cells), DISPERSION_CELLS).numpy()]
        with torch.random.fork_rng():
            torch.manual_seed(0)
            loader = self._make_data_loader(self.adata, cells, batch_size=128, shuffle=True)
            fit_dispersions(self.module, loader, min(DISPERSION_STEPS, self.trainer.global_step))

    def _calibrate(self) -> None:
        """Take from the cells how codes are embedded, and where they lie, by which cells are made.

        A query keeps the embedding that its reference took.
        """
        if self.adata is None:
            return
        adata = self._validate_anndata()
        is_query = not is_trainable(self.module.decoder)
        if self.module.latent_distribution == "normal" and not is_query:
            self._learn_embedding(adata)
        self._learn_population(adata)
        if self.trainer.world_size > 1:
            self.module.population.fit_to_kept()
        share_buffers(self.module, self.trainer)

    def _learn_embedding(self, adata: AnnData) -> None:
        cells = evenly_spaced(adata.n_obs, CALIBRATION_CELLS).numpy()
        loader = self._make_data_loader(adata, cells, batch_size=INFERENCE_BATCH_SIZE)
        epoch, step = max(self.trainer.current_epoch - 1, 0), self.trainer.fit_loop.batch_idx
        try:
            with refused_as_diverged("codes", epoch, step):
                is_finite = self.module.calibrate(loader)
            if not is_finite:
                raise TrainingDivergedError("codes", epoch, step)
        except TrainingDivergedError:
            self.is_trained_ = False
            raise

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
        """Return the latents of cells, shape ``(n_cells, n_latent)``.

        They are the means of q(z|x), as scVI returns them. ``DRA(adata, n_neighbors=30)`` moves
        each to where the training cells that are like it lie on average, those of every batch
        alike (:class:`~dra_scvi._module.neighborhood.Neighborhood`), and
        ``DRA(adata, expression_axes=True)`` puts them on axes of expression;
        ``return_dist=True`` gives q(z|x) itself, in the coordinates of the decoder, and
        ``model.module.embedding`` makes the former of the latter.

        Counts in memory are encoded in large minibatches, without drawing latents.

        Parameters
        ----------
        adata
            AnnData with the genes that the model was trained on; `None` for the model's own.
        indices
            Cells to embed; `None` for all.
        give_mean
            Whether to go by the mean of q(z|x). Otherwise one latent is drawn for each cell,
            and not moved to the mean of others.
        mc_samples
            Number of latents that the mean is estimated from where it has no closed form
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
        Latents, or means and variances where `return_dist` is set.
        """
        options = {"mc_samples": mc_samples, "dataloader": dataloader, **data_loader_kwargs}
        codes = self._codes(adata, indices, give_mean, batch_size, return_dist, **options)
        if return_dist:
            return codes
        return self.module.embedding(torch.from_numpy(codes), average=give_mean).cpu().numpy()

    def _codes(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        give_mean: bool = True,
        batch_size: int | None = None,
        return_dist: bool = False,
        **options: Any,
    ) -> Any:
        """Return codes in the coordinates of the decoder, or means and variances."""
        self._check_if_trained(warn=False)
        is_normal = self.module.latent_distribution == "normal"
        has_closed_form = return_dist or (give_mean and is_normal)
        is_plain = options.get("dataloader") is None and options.keys() <= {
            "mc_samples",
            "dataloader",
        }
        rows = None
        if has_closed_form and is_plain:
            adata = self._validate_anndata(adata)
            manager = self.get_anndata_manager(adata, required=True)
            rows = None if is_minified(adata) else registered_rows(manager)
        if rows is None:
            options |= {"batch_size": batch_size, "return_dist": return_dist}
            return super().get_latent_representation(adata, indices, give_mean, **options)
        cells = np.arange(manager.adata.n_obs) if indices is None else np.asarray(indices)
        codes = self._posterior(rows, cells, batch_size or INFERENCE_BATCH_SIZE)
        return codes if return_dist else codes[0]

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
            genes = counts.project(index, weight, self.module.log_variational).to(weight.device)
            covariates = {
                argument: rows[key].take(index).to(weight.device)
                for key, argument in names.items()
                if key in rows
            }
            parts.append([part.cpu() for part in self.module.posterior(genes, **covariates)])
        means, variances = (torch.cat(part).numpy() for part in zip(*parts, strict=True))
        return means, variances

    @takes_cells
    @with_parameters_of(SCVI.differential_abundance)
    def differential_abundance(self, *args: Any, **kwargs: Any) -> pd.DataFrame | None:
        """Compare samples by the density of their cells' latents, as scVI does.

        Parameters
        ----------
        {parameters}
        """
        return SCVI.differential_abundance(_InDecoderCoordinates(self), *args, **kwargs)

    @torch.inference_mode()
    def _log_prior_ratio(self, zs: Tensor) -> Tensor | float:
        prior = self.module.prior
        if isinstance(prior, NormalPrior):
            return 0.0
        zs = zs.to(self.module.device)
        normal = NormalPrior(self.module.n_latent).to(zs.device)
        return (prior.log_prob(zs) - normal.log_prob(zs)).reshape(-1).cpu().double()


class _InDecoderCoordinates:
    """A model whose codes are those that its decoder takes, in which densities are computed."""

    def __init__(self, model: DRA) -> None:
        self._model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def get_latent_representation(self, *args: Any, **kwargs: Any) -> NDArray[np.float32]:
        return self._model._codes(*args, **kwargs)
