"""DRA: the model class that analysts use, scvi.model.SCVI with DR-A's module and training plan."""

from __future__ import annotations

from inspect import signature
from typing import TYPE_CHECKING, Any, Literal

from scvi import REGISTRY_KEYS
from scvi.model import SCVI
from scvi.utils import setup_anndata_dsp
from torch.nn import BatchNorm1d

from dra_scvi._compat import is_minified, minified_type
from dra_scvi._data.fields import (
    CategoriesField,
    CategoryField,
    CountsField,
    NumbersField,
    SizeFactorField,
)
from dra_scvi._data.keys import validate_keys
from dra_scvi._data.minibatches import DataSplitter
from dra_scvi._data.registration import CountsManager
from dra_scvi._docstrings import with_parameters_of
from dra_scvi._exceptions import TrainingDivergedError
from dra_scvi._model.arguments import (
    check_columns,
    check_model,
    check_training,
    refuse_mudata,
    takes_cells,
)
from dra_scvi._model.epochs import default_max_epochs
from dra_scvi._model.getters import INFERENCE_BATCH_SIZE, GetterMixin
from dra_scvi._model.hand_over import as_scvi
from dra_scvi._model.saving import PersistenceMixin
from dra_scvi._model.transfer import TransferMixin
from dra_scvi._module.dravae import DRAVAE, hidden_widths
from dra_scvi._module.neighborhood import evenly_spaced
from dra_scvi._module.priors import default_prior
from dra_scvi._threads import with_own_threads
from dra_scvi._training.divergence import refused_as_diverged
from dra_scvi._training.plan import DualMatchingPlan
from dra_scvi._training.processes import n_processes, share_buffers, trainer_settings
from dra_scvi._training.runner import TURNS, QuietRunner, interruptible

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from anndata import AnnData

    from dra_scvi._module.dravae import DivergenceName, PriorName


CALIBRATION_CELLS = 2_048


@with_own_threads(
    "differential_abundance",
    "differential_expression",
    "get_aggregated_posterior",
    "get_batch_representation",
    "get_elbo",
    "get_feature_correlation_matrix",
    "get_importance_weights",
    "get_latent_library_size",
    "get_latent_representation",
    "get_likelihood_parameters",
    "get_marginal_ll",
    "get_normalized_expression",
    "get_reconstruction_error",
    "posterior_predictive_sample",
    "train",
)
class DRA(PersistenceMixin, TransferMixin, GetterMixin, SCVI):  # type: ignore[misc]
    """Embed single cells with an adversarial variational autoencoder with dual matching (DR-A).

    A drop-in for :class:`~scvi.model.SCVI`: registration, training, every getter, differential
    expression, saving, and mapping of query data are inherited. One discriminator matches the
    codes to the prior, another the reconstructions to the data.

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
        Prior that codes are matched to: `"normal"`, `"uniform"`, or `"mixture"` for a mixture of
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
        Training cells around a code, to whose mean :meth:`get_latent_representation` moves it;
        0 for none.
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
    _uses_code_axes = True
    _train_runner_cls = QuietRunner
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
        n_neighbors: int = 30,
        **kwargs: Any,
    ) -> None:
        check_model(locals())
        super().__init__(
            adata,
            registry,
            n_hidden=n_hidden,
            n_latent=n_latent,
            n_layers=n_layers,
            dropout_rate=dropout_rate,
            dispersion=dispersion,
            gene_likelihood=gene_likelihood,
            use_observed_lib_size=use_observed_lib_size,
            latent_distribution=latent_distribution,
            prior=prior,
            n_components=n_components,
            prior_anchor=prior_anchor,
            divergence=divergence,
            n_hidden_discriminator=n_hidden_discriminator,
            n_neighbors=n_neighbors,
            **kwargs,
        )
        widths = list(map(int, hidden_widths(n_hidden, n_layers, n_latent)))
        self._model_summary_string = (
            f"DRA model with the following parameters: \n"
            f"n_hidden: {n_hidden}, n_latent: {n_latent}, n_layers: {len(widths)}, "
            f"dropout_rate: {dropout_rate}, dispersion: {dispersion}, "
            f"gene_likelihood: {gene_likelihood}, latent_distribution: {latent_distribution}, "
            f"prior: {prior or default_prior(latent_distribution)}, divergence: {divergence}."
        )
        self._init_arguments = self._get_init_params(locals())
        self.init_params_ = as_scvi(self._init_arguments, widths)
        if self.adata is not None:
            self._validate_anndata()

    @property
    def init_arguments(self) -> dict[str, Any]:
        """What the model was made with; `init_params_` is what scvi-tools may take over."""
        non_kwargs, kwargs = self._init_arguments["non_kwargs"], self._init_arguments["kwargs"]
        return non_kwargs | {k: v for named in kwargs.values() for k, v in named.items()}

    def _get_user_attributes(self) -> list[tuple[str, Any]]:
        """Return what is saved, and given to a query: all that the model was made with."""
        attributes = dict(super()._get_user_attributes())
        return list((attributes | {"init_params_": self._init_arguments}).items())

    @with_parameters_of(SCVI.train, leave_out=["max_epochs"])
    def train(self, max_epochs: int | None = None, *args: Any, **kwargs: Any) -> None:
        """Train the model; `plan_kwargs` are arguments of :class:`~dra_scvi.DualMatchingPlan`.

        With ``devices=2``, or more, each trains on its share of the cells, in a process of its own
        (Lightning's ``strategy="ddp"``); ``num_nodes=`` is for several machines, as under torchrun
        or Slurm. `batch_size` is then that of each. All end with the same model.

        Parameters
        ----------
        max_epochs
            Passes over the data; `None` for :func:`default_max_epochs`.
        {parameters}

        Raises
        ------
        TrainingDivergedError
            When a term of the objective is not finite. The model is then as it was at the end of
            the last epoch that went well.
        """
        given = signature(super().train).bind_partial(max_epochs, *args, **kwargs)
        least = 2 if any(isinstance(m, BatchNorm1d) for m in self.module.modules()) else 1
        check_training(given.arguments | given.arguments.get("trainer_kwargs", {}), least)
        n_obs = getattr(kwargs.get("datamodule") or self.adata, "n_obs", None)
        if max_epochs is None and n_obs is not None:
            batch_size = (kwargs.get("batch_size") or 128) * n_processes(kwargs)
            max_epochs = default_max_epochs(
                n_obs, batch_size, self.module.n_latent, self.module.n_batch
            )
        with TURNS, interruptible(), trainer_settings(kwargs) as settings:
            super().train(max_epochs, *args, **settings)
        self._calibrate()

    def _calibrate(self) -> None:
        """Take from the cells how codes are embedded; a query keeps what its reference took.

        Raises
        ------
        TrainingDivergedError
            When the last step has led to codes that are not finite.
        """
        is_query = not all(p.requires_grad for p in self.module.decoder.parameters())
        has_axes = isinstance(self.module, DRAVAE) and self.module.latent_distribution == "normal"
        if not has_axes or is_query or self.adata is None:
            return
        adata = self._validate_anndata()
        cells = evenly_spaced(adata.n_obs, CALIBRATION_CELLS).numpy()
        loader = self._make_data_loader(adata, cells, batch_size=INFERENCE_BATCH_SIZE)
        epoch, step = max(self.trainer.current_epoch - 1, 0), self.trainer.fit_loop.batch_idx
        try:
            with refused_as_diverged("codes", epoch, step):
                is_finite = self.module.calibrate(loader)
            share_buffers(self.module, self.trainer)
            if not is_finite:
                raise TrainingDivergedError("codes", epoch, step)
        except TrainingDivergedError:
            self.is_trained_ = False
            raise

    @with_parameters_of(PersistenceMixin.save)
    def save(self, *args: Any, **kwargs: Any) -> None:
        """Save the model, whole or not at all.

        Parameters
        ----------
        {parameters}

        Raises
        ------
        FileExistsError
            When the folder exists and may not be overwritten.

        Notes
        -----
        Of several processes that trained together, the first one writes.
        """
        trainer = getattr(self, "trainer", None)
        if trainer is not None and trainer.state.status == "running":  # SaveCheckpoint's work
            self._calibrate()
        if self.adata is not None:
            self._validate_anndata()
        if trainer is None or trainer.is_global_zero:
            super().save(*args, **kwargs)

    @takes_cells
    @with_parameters_of(SCVI.differential_abundance)
    def differential_abundance(self, *args: Any, **kwargs: Any) -> pd.DataFrame | None:
        """Compare samples by the density of their cells' codes, as scVI does.

        Parameters
        ----------
        {parameters}
        """
        self._uses_code_axes = False  # densities are those of the module's own codes
        try:
            return super().differential_abundance(*args, **kwargs)
        finally:
            del self._uses_code_axes

    @classmethod
    @setup_anndata_dsp.dedent
    def setup_anndata(
        cls,
        adata: AnnData,
        layer: str | None = None,
        batch_key: str | None = None,
        labels_key: str | None = None,
        size_factor_key: str | None = None,
        categorical_covariate_keys: list[str] | None = None,
        continuous_covariate_keys: list[str] | None = None,
        allow_noninteger: bool = False,
        **kwargs: Any,
    ) -> None:
        """%(summary)s.

        Every count is checked first: raw, non-negative, finite integers.

        Parameters
        ----------
        %(param_adata)s
        %(param_layer)s
        %(param_batch_key)s
        %(param_labels_key)s
        %(param_size_factor_key)s
        %(param_cat_cov_keys)s
        %(param_cont_cov_keys)s
        allow_noninteger
            Turn the error about values that are not integers into a warning, for counts that were
            corrected or estimated.

        Raises
        ------
        KeyError
            When a layer or a column of ``adata.obs`` does not exist.
        InvalidCountsError
            When the matrix does not hold raw counts.
        """
        setup_method_args = cls._get_setup_method_args(**locals())  # needs nothing else in scope
        refuse_mudata(adata)
        given = setup_method_args["setup_args"]
        del given["allow_noninteger"]  # no class of scvi-tools knows it
        named = {k: v for k, v in given.items() if k == "layer" or k.endswith(("_key", "_keys"))}
        given |= check_columns(named)
        validate_keys(
            adata, layer, {k: v for k, v in given.items() if k in named and k != "layer"}
        )
        fields = [
            CountsField(layer, batch_key, allow_noninteger),
            CategoryField(REGISTRY_KEYS.BATCH_KEY, batch_key),
            CategoryField(REGISTRY_KEYS.LABELS_KEY, labels_key),
            SizeFactorField(REGISTRY_KEYS.SIZE_FACTOR_KEY, size_factor_key, required=False),
            CategoriesField(REGISTRY_KEYS.CAT_COVS_KEY, given["categorical_covariate_keys"]),
            NumbersField(REGISTRY_KEYS.CONT_COVS_KEY, given["continuous_covariate_keys"]),
        ]
        if is_minified(adata):
            fields += cls._get_fields_for_adata_minification(minified_type(adata))
        manager = CountsManager(fields=fields, setup_method_args=setup_method_args)
        manager.register_fields(adata, **kwargs)
        cls.register_manager(manager)
