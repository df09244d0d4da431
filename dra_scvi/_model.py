"""DRA: the model class that analysts use, scvi.model.SCVI with DR-A's module and training plan."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any, Literal

from scvi.model import SCVI
from scvi.utils import setup_anndata_dsp

from dra_scvi._compat import is_minified
from dra_scvi._module import DRAVAE
from dra_scvi._training_plan import DualMatchingPlan
from dra_scvi._validation import validate_counts, validate_keys

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

    from dra_scvi._module import DivergenceName, PriorName


MIN_STEPS = 2_000
MAX_EPOCHS = 400


def default_max_epochs(n_obs: int, batch_size: int = 128) -> int:
    """Epochs of training for a number of cells: a quarter of scVI's, but at least 2,000 steps.

    Parameters
    ----------
    n_obs
        Number of cells, of which nine in ten are trained on.
    batch_size
        Cells in a minibatch.

    Examples
    --------
    >>> [default_max_epochs(n_obs) for n_obs in (700, 4_000, 20_000, 1_000_000)]
    [400, 100, 100, 2]
    """
    steps_per_epoch = math.ceil(0.9 * n_obs / batch_size)
    enough = math.ceil(MIN_STEPS / steps_per_epoch)
    quarter_of_scvi = round(MAX_EPOCHS / 4 * min(1.0, 20_000 / n_obs))
    return max(1, min(MAX_EPOCHS, max(enough, quarter_of_scvi)))


class DRA(SCVI):
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
        Number of hidden layers; ignored when `n_hidden` is a list.
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
    divergence
        What the discriminators estimate: `"bhattacharyya"` or `"jensen-shannon"`.
    n_hidden_discriminator
        Width of each hidden layer of both discriminators.
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

    _module_cls = DRAVAE
    _training_plan_cls = DualMatchingPlan

    def __init__(
        self,
        adata: AnnData | None = None,
        registry: dict | None = None,
        n_hidden: int | Sequence[int] = 128,
        n_latent: int = 10,
        n_layers: int = 1,
        dropout_rate: float = 0.1,
        dispersion: Literal["gene", "gene-batch", "gene-label", "gene-cell"] = "gene",
        gene_likelihood: Literal["zinb", "nb", "poisson", "normal"] = "zinb",
        use_observed_lib_size: bool = True,
        latent_distribution: Literal["normal", "ln"] = "normal",
        prior: PriorName | None = None,
        n_components: int = 20,
        divergence: DivergenceName = "bhattacharyya",
        n_hidden_discriminator: Sequence[int] = (64,),
        **kwargs: Any,
    ) -> None:
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
            divergence=divergence,
            n_hidden_discriminator=n_hidden_discriminator,
            **kwargs,
        )
        self._model_summary_string = (
            f"DRA model with the following parameters: \n"
            f"n_hidden: {n_hidden}, n_latent: {n_latent}, n_layers: {n_layers}, "
            f"dropout_rate: {dropout_rate}, dispersion: {dispersion}, "
            f"gene_likelihood: {gene_likelihood}, latent_distribution: {latent_distribution}, "
            f"prior: {prior}, divergence: {divergence}."
        )
        self.init_params_ = self._get_init_params(locals())

    # the signature is scVI's, the docstring is not: the default of `max_epochs` differs
    @functools.wraps(SCVI.train, assigned=("__module__", "__qualname__"))
    def train(self, max_epochs: int | None = None, *args: Any, **kwargs: Any) -> None:
        """Train the model.

        Parameters
        ----------
        max_epochs
            Passes over the data; `None` for :func:`default_max_epochs`.
        *args
            As in :meth:`scvi.model.SCVI.train`.
        **kwargs
            As in :meth:`scvi.model.SCVI.train`; `plan_kwargs` are arguments of
            :class:`~dra_scvi.DualMatchingPlan`.

        Raises
        ------
        TrainingDivergedError
            When a term of the objective is not finite.
        """
        if max_epochs is None and self.adata is not None:
            max_epochs = default_max_epochs(self.adata.n_obs, kwargs.get("batch_size") or 128)
        return super().train(max_epochs, *args, **kwargs)

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

        Raises
        ------
        KeyError
            When a layer or a column of ``adata.obs`` does not exist.
        InvalidCountsError
            When the matrix does not hold raw counts.
        """
        keys = {
            "batch_key": batch_key,
            "labels_key": labels_key,
            "size_factor_key": size_factor_key,
            "categorical_covariate_keys": categorical_covariate_keys,
            "continuous_covariate_keys": continuous_covariate_keys,
        }
        validate_keys(adata, layer=layer, obs_keys=keys)
        if not is_minified(adata):
            validate_counts(adata, layer=layer, batch_key=batch_key)
        super().setup_anndata(adata, layer=layer, **keys, **kwargs)
