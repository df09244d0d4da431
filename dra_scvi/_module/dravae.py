"""DRAVAE: scVI's autoencoder with a choice of prior and the discriminators of dual matching."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from scvi import REGISTRY_KEYS

from dra_scvi._compat import MODULE_KEYS
from dra_scvi._module.autoencoder import Autoencoder
from dra_scvi._module.cell_mixture import Population
from dra_scvi._module.composition import Composition
from dra_scvi._module.embedding import Embedding, with_present_names
from dra_scvi._module.matching import (
    DIVERGENCES,
    Discriminator,
    expression_to_match,
    scale_gradient,
)
from dra_scvi._module.networks import set_decoder_widths, set_widths
from dra_scvi._module.priors import PRIORS, MixturePrior, Prior, default_prior

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from torch import Tensor

PriorName = Literal["normal", "uniform", "mixture"]
DivergenceName = Literal["bhattacharyya", "jensen-shannon"]

# a plane, into which cells have to be folded
FLAT_N_LATENT = 2


def hidden_widths(n_hidden: int | Sequence[int], n_layers: int | None, n_latent: int) -> list[int]:
    """Return the width of each hidden layer of the encoder.

    >>> hidden_widths(128, None, 10), hidden_widths(128, None, 2), hidden_widths([64, 32], None, 2)
    ([128], [128, 128], [64, 32])
    """
    if not isinstance(n_hidden, int | np.integer):
        return list(n_hidden)
    if n_layers is None:
        n_layers = 2 if n_latent <= FLAT_N_LATENT else 1
    return [int(n_hidden)] * n_layers


class DRAVAE(Autoencoder):
    """Adversarial variational autoencoder with dual matching (AVAE-DM).

    Everything is inherited from :class:`~scvi.module.VAE` but for

    - the prior of the codes (normal, uniform or a learned mixture of Gaussians),
    - hidden layers of unequal width, when `n_hidden` is a list,
    - the likelihood of ZINB and NB, computed with
      :func:`~dra_scvi._kernels.likelihood.count_log_prob`,
    - two discriminators: one holds codes against the prior, the other reconstructions against
      the data; :meth:`matching` returns both divergences. :meth:`loss` stays the evidence lower
      bound alone, equal to scVI's under a normal prior.

    Parameters
    ----------
    n_input
        Number of genes.
    n_batch
        Number of batches.
    n_labels
        Number of labels.
    n_hidden
        Width of the hidden layers: one number for all `n_layers`, or one number per layer of the
        encoder, which the decoder takes in reverse.
    n_latent
        Dimensions of a code.
    n_layers
        Number of hidden layers; `None` for one, or for two with two latent dimensions or fewer.
        Ignored when `n_hidden` is a list.
    n_continuous_cov
        Number of continuous covariates.
    n_cats_per_cov
        Number of categories of each categorical covariate.
    dropout_rate
        Dropout rate of the encoder.
    dispersion
        Flexibility of the dispersion, as in :class:`~scvi.module.VAE`.
    gene_likelihood
        Distribution of the counts, as in :class:`~scvi.module.VAE`.
    latent_distribution
        Distribution of the codes, as in :class:`~scvi.module.VAE`; `"ln"` needs the normal prior.
    use_observed_lib_size
        Whether a cell's library size is its observed total.
    prior
        Prior of the codes: `"normal"`, `"uniform"` or `"mixture"`; `None` for a mixture, or for
        the normal where `latent_distribution` is `"ln"`.
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
        Training cells around a code, to whose mean :attr:`embedding` moves it; 0 for none.
    expression_axes
        Whether :attr:`embedding` puts codes on axes of expression.
    **vae_kwargs
        Further arguments of :class:`~scvi.module.VAE`.

    References
    ----------
    Lin, Mukherjee & Kannan, BMC Bioinformatics 21 (2020) 64; Lopez et al., Nature Methods 15
    (2018) 1053.
    """

    # what both discriminators are made of; subclasses may put a network of their own here
    _discriminator_cls: type[torch.nn.Module] = Discriminator

    def __init__(
        self,
        n_input: int,
        n_batch: int = 0,
        n_labels: int = 0,
        n_hidden: int | Sequence[int] = 128,
        n_latent: int = 10,
        n_layers: int | None = None,
        n_continuous_cov: int = 0,
        n_cats_per_cov: list[int] | None = None,
        dropout_rate: float = 0.1,
        dispersion: Literal["gene", "gene-batch", "gene-label", "gene-cell"] = "gene",
        gene_likelihood: Literal["zinb", "nb", "poisson", "normal"] = "zinb",
        latent_distribution: Literal["normal", "ln"] = "normal",
        use_observed_lib_size: bool = True,
        prior: PriorName | None = None,
        n_components: int = 20,
        prior_anchor: float = 0.5,
        divergence: DivergenceName = "bhattacharyya",
        n_hidden_discriminator: Sequence[int] = (64,),
        n_neighbors: int = 0,
        expression_axes: bool = False,
        **vae_kwargs: Any,
    ) -> None:
        widths = hidden_widths(n_hidden, n_layers, n_latent)
        super().__init__(
            n_input,
            n_batch=n_batch,
            n_labels=n_labels,
            n_hidden=widths[-1],
            n_latent=n_latent,
            n_layers=len(widths),
            n_continuous_cov=n_continuous_cov,
            n_cats_per_cov=n_cats_per_cov,
            dropout_rate=dropout_rate,
            dispersion=dispersion,
            gene_likelihood=gene_likelihood,
            latent_distribution=latent_distribution,
            use_observed_lib_size=use_observed_lib_size,
            **vae_kwargs,
        )
        if len(set(widths)) > 1:
            set_widths(self.z_encoder.encoder, widths)
            set_decoder_widths(self.decoder, widths[::-1])
        self.prior = _make_prior(prior, n_latent, latent_distribution, n_components, prior_anchor)
        n_components = getattr(self.prior, "n_components", 1)
        self.composition = Composition(max(1, n_batch), n_components)
        self.divergence = _choose(DIVERGENCES, "divergence", divergence)
        self.embedding = Embedding(n_latent, n_neighbors, expression_axes)
        self.population = Population(n_latent, n_batch)
        make = self._discriminator_cls
        self.latent_discriminator = make(n_latent, n_hidden_discriminator, n_batch)
        self.data_discriminator = make(n_input, n_hidden_discriminator, n_batch)

    def calibrate(self, minibatches: Iterable[dict[str, Any]]) -> bool:
        """Fit :attr:`embedding` to cells, which are decoded where that has a use.

        Return whether codes and expression are finite; all is left as it was if not.
        """
        parts = []
        with torch.inference_mode(), torch.random.fork_rng():
            torch.manual_seed(0)
            for tensors in minibatches:
                inference = self.inference(**self._get_inference_input(tensors))
                z, qz = inference[MODULE_KEYS.Z_KEY], inference[MODULE_KEYS.QZ_KEY]
                decodes = self.embedding.expression_axes
                expression = self._expression(tensors, inference) if decodes else z[:, :0]
                batch = tensors[REGISTRY_KEYS.BATCH_KEY].view(-1)
                parts.append([part.cpu() for part in (z, expression, qz.loc, batch)])
            whole = [torch.cat(part) for part in zip(*parts, strict=True)]
        return self.embedding.fit(*whole)

    def _expression(self, tensors: dict[str, Any], inference: dict[str, Any]) -> Tensor:
        """``ln(1 + 10⁴ ρ)`` with ρ the decoder's share of each gene, or a normal's mean.

        That is the scale of log-normalised counts.
        """
        px = self.generative(**self._get_generative_input(tensors, inference))[MODULE_KEYS.PX_KEY]
        return px.mean if self.gene_likelihood == "normal" else torch.log1p(1e4 * px.scale)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        with_present_names(state_dict, prefix)
        state_dict.setdefault(f"{prefix}composition.shares", self.composition.shares)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def matching(
        self,
        tensors: dict[str, Tensor],
        inference_outputs: dict[str, Any],
        generative_outputs: dict[str, Any],
        latent_weight: float = 1.0,
        data_weight: float = 1.0,
        within_components: bool = True,
        gather: Callable[[Tensor], Tensor] = lambda scores: scores,
    ) -> dict[str, Tensor]:
        """Both divergences of dual matching, with the gradient of a two-player game.

        Where a divergence is *subtracted* from the loss, one backward pass makes its discriminator
        ascend and, through :func:`~dra_scvi._module.matching.scale_gradient`, the autoencoder
        descend on it with the given weight. A term of weight 0 is left out. Data are matched on
        the first quarter of the minibatch, or 32 cells where that is less.

        Parameters
        ----------
        tensors
            Minibatch, its cells in random order.
        inference_outputs
            Outputs of :meth:`inference`.
        generative_outputs
            Outputs of :meth:`generative`.
        latent_weight
            λ_z, weight for the autoencoder of the divergence of codes from the prior.
        data_weight
            λ_x, weight for the autoencoder of the divergence of reconstructions from the data.
        within_components
            Whether, with several batches and a mixture prior, codes are weighed so that batches of
            unlike composition match (:class:`~dra_scvi._module.composition.Composition`).
        gather
            From the scores of this minibatch to those of all that are trained on together.

        Returns
        -------
        `"latent_divergence"` and `"data_divergence"` in nats, as far as their weights are not 0.
        """
        batch_index = tensors[REGISTRY_KEYS.BATCH_KEY]

        def estimate(
            player: torch.nn.Module,
            real: Tensor,
            fake: Tensor,
            weight: float,
            copies: Tensor | None = None,
        ) -> Tensor:
            rows = torch.cat([real, scale_gradient(fake, -weight)])
            batches = batch_index[: len(real)].repeat(2, 1)
            h_real, h_fake = player(rows, batch_index=batches).chunk(2)
            copies = None if copies is None else gather(copies)
            return DIVERGENCES[self.divergence](gather(h_real), gather(h_fake), copies)

        terms = {}
        if latent_weight:
            z = inference_outputs[MODULE_KEYS.Z_KEY]
            prior_z = self.z_encoder.z_transformation(self.prior.sample(len(z)))
            player = self.latent_discriminator
            copies = self._weigh(z, batch_index) if within_components else None
            terms["latent_divergence"] = estimate(player, prior_z, z, latent_weight, copies)
        if data_weight:
            x, px = tensors[REGISTRY_KEYS.X_KEY], generative_outputs[MODULE_KEYS.PX_KEY]
            x, x_hat = expression_to_match(x, px, self.gene_likelihood)
            terms["data_divergence"] = estimate(self.data_discriminator, x, x_hat, data_weight)
        return terms

    def _weigh(self, z: Tensor, batch_index: Tensor) -> Tensor | None:
        """Weigh codes by the composition of their batches; `None` where all count alike."""
        if self.n_batch < 2 or not isinstance(self.prior, MixturePrior):
            return None
        responsibilities = self.prior.responsibilities(z)
        batch = batch_index.long().view(-1)
        self.composition.update(responsibilities, batch)
        return self.composition.weights(responsibilities, batch)


def _make_prior(
    name: str | None, n_latent: int, latent_distribution: str, n_components: int, anchor: float
) -> Prior:
    name = name or default_prior(latent_distribution)
    prior_cls = PRIORS[_choose(PRIORS, "prior", name)]
    if latent_distribution != "normal" and name != "normal":
        raise ValueError(
            f"prior={name!r} needs latent_distribution='normal', not {latent_distribution!r}."
        )
    if prior_cls is MixturePrior:
        return MixturePrior(n_latent, n_components, anchor)
    return prior_cls(n_latent)


def _choose(choices: Collection[str], argument: str, value: str) -> str:
    if value not in choices:
        names = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{argument} must be one of {names}, not {value!r}.")
    return value
