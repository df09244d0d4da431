"""scVI's autoencoder under any prior, its likelihood of counts computed in one compiled pass."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from scvi import REGISTRY_KEYS
from scvi.module import VAE
from scvi.module.base import LossOutput, auto_move_data
from torch.distributions import Poisson, kl_divergence
from torch.func import functional_call

from dra_scvi._compat import MODULE_KEYS
from dra_scvi._kernels.likelihood import count_log_prob, log_counts
from dra_scvi._module.priors import NormalPrior, Prior

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor, nn


class Autoencoder(VAE):
    """:class:`~scvi.module.VAE` with a prior of its own, and a faster way of the same numbers."""

    prior: Prior

    @auto_move_data
    def _regular_inference(
        self,
        x: Tensor,
        batch_index: Tensor,
        cont_covs: Tensor | None = None,
        cat_covs: Tensor | None = None,
        n_samples: int = 1,
    ) -> dict[str, Any]:
        """Run the inference process of :class:`~scvi.module.VAE`, with a compiled logarithm."""
        log_x = log_counts(x) if self.log_variational else x
        qz, z = self._encode(self.z_encoder, log_x, batch_index, cont_covs, cat_covs)
        ql, library = None, x.sum(1).log().unsqueeze(1)
        if not self.use_observed_lib_size:
            ql, library = self._encode(self.l_encoder, log_x, batch_index, cont_covs, cat_covs)
        if n_samples > 1:
            z = self.z_encoder.z_transformation(qz.sample((n_samples,)))
            library = library.expand(n_samples, -1, -1) if ql is None else ql.sample((n_samples,))
        return {
            MODULE_KEYS.Z_KEY: z,
            MODULE_KEYS.QZ_KEY: qz,
            MODULE_KEYS.QL_KEY: ql,
            MODULE_KEYS.LIBRARY_KEY: library,
        }

    def _encode(
        self,
        encoder: Callable[..., Any],
        log_x: Tensor,
        batch_index: Tensor,
        cont_covs: Tensor | None,
        cat_covs: Tensor | None,
    ) -> Any:
        """Hand an encoder the covariates that it was built for, along with log counts."""
        inputs: list[Tensor] = [log_x]
        categories: list[Tensor] = []
        if self.encode_covariates:
            inputs += [cont_covs] if cont_covs is not None else []
            categories += torch.split(cat_covs, 1, dim=1) if cat_covs is not None else []
        if self.batch_representation != "embedding":
            categories.insert(0, batch_index)
        elif self.encode_covariates:
            inputs.append(self.compute_embedding(REGISTRY_KEYS.BATCH_KEY, batch_index))
        return encoder(torch.cat(inputs, -1) if len(inputs) > 1 else log_x, *categories)

    @property
    def gene_weight(self) -> Tensor:
        """Weights of the encoder's first layer on the genes, shape ``(n_genes, n_hidden)``."""
        return self._first_layer.weight[:, : self.n_input].T

    @property
    def _first_layer(self) -> nn.Linear:
        return self.z_encoder.encoder.fc_layers[0][0]

    def _get_inference_input(
        self, tensors: Mapping[str, Tensor | None], full_forward_pass: bool = False
    ) -> dict[str, Any]:
        """Hand a module that was trained in double precision what it can multiply."""
        inputs = super()._get_inference_input(tensors, full_forward_pass)
        dtype = self.z_encoder.mean_encoder.weight.dtype
        if dtype != torch.float64:
            return inputs
        return {
            name: value.to(dtype) if value is not None and value.is_floating_point() else value
            for name, value in inputs.items()
        }

    @torch.inference_mode()
    def posterior(
        self,
        projection: Tensor,
        batch_index: Tensor,
        cont_covs: Tensor | None = None,
        cat_covs: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Mean and variance of q(z|x), shape ``(n_cells, n_latent)`` each; nothing is sampled.

        `projection` is what the encoder sees of the genes, times :attr:`gene_weight`, shape
        ``(n_cells, n_hidden)``: a product that sparse counts make short. All are on the module's
        device.
        """
        encoder = self.z_encoder
        no_genes = projection[:, :0]
        rest = {"fc_layers.Layer 0.0.weight": self._first_layer.weight[:, self.n_input :]}

        def hidden_layers(*inputs: Tensor) -> Tensor:
            return functional_call(encoder.encoder, rest, inputs)

        with self._first_layer.register_forward_hook(lambda *outputs: outputs[-1] + projection):
            hidden = self._encode(hidden_layers, no_genes, batch_index, cont_covs, cat_covs)
        variance = encoder.var_activation(encoder.var_encoder(hidden)) + encoder.var_eps
        return encoder.mean_encoder(hidden), variance

    @auto_move_data
    def generative(
        self,
        z: Tensor,
        library: Tensor,
        batch_index: Tensor,
        cont_covs: Tensor | None = None,
        cat_covs: Tensor | None = None,
        size_factor: Tensor | None = None,
        y: Tensor | None = None,
        transform_batch: Tensor | None = None,  # scvi-tools' getters look for this name
    ) -> dict[str, Any]:
        """Run the generative process of :class:`~scvi.module.VAE` under the prior chosen."""
        if z.ndim > 2 and self.batch_representation == "embedding":
            batch_index = batch_index.expand(len(z), *batch_index.shape)
        outputs = super().generative(
            z, library, batch_index, cont_covs, cat_covs, size_factor, y, transform_batch
        )
        if not isinstance(self.prior, NormalPrior):
            outputs[MODULE_KEYS.PZ_KEY] = self.prior
        return outputs

    def code_and_depth(self, tensors: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Draw what counts are decoded from: codes before any transformation, and ln of depths.

        The depth of a cell is its total, observed or inferred, or its size factor.
        """
        outputs = self.inference(**self._get_inference_input(tensors))
        log_depth = outputs[MODULE_KEYS.LIBRARY_KEY]
        if self.use_size_factor_key:
            log_depth = tensors[REGISTRY_KEYS.SIZE_FACTOR_KEY].log()
        return outputs[MODULE_KEYS.QZ_KEY].sample(), log_depth.view(-1)

    def decode(self, codes: Tensor, log_depth: Tensor, **given: Tensor) -> tuple[Tensor, Any]:
        """Return transformed codes, and the distribution of the counts of cells of a given depth.

        Codes, ``(n_cells, n_latent)``, and depths are as from :meth:`code_and_depth`, batches and
        covariates as :meth:`generative` takes them. Zero inflation takes counts from the total
        that the decoder is told of, which it is told more of for that reason: observed totals are
        what the counts add up to in expectation.
        """
        z = self.z_encoder.z_transformation(codes.to(self.device))
        given = {
            name: value.to(z) if value.is_floating_point() else value
            for name, value in given.items()
        }
        depth = log_depth.to(z)[:, None]

        def counts(library: Tensor) -> Any:
            factor = library if self.use_size_factor_key else None
            return self.generative(z, library, size_factor=factor, **given)[MODULE_KEYS.PX_KEY]

        px = counts(depth)
        is_total = self.use_observed_lib_size and not self.use_size_factor_key
        if is_total and self.gene_likelihood == "zinb":
            px = counts(2 * depth - px.mean.sum(-1, keepdim=True).log())
        return z, px

    def compute_embedding(self, key: str, indices: Tensor) -> Tensor:
        """Embed `indices`, shape ``(..., 1)``, also where several codes are drawn for a cell.

        scvi-tools flattens them, and fails to join the embedding to more than one code.
        """
        embedded = super().compute_embedding(key, indices)
        return embedded.view(*indices.shape[:-1], -1) if indices.ndim > 2 else embedded

    def loss(
        self,
        tensors: dict[str, Tensor],
        inference_outputs: dict[str, Any],
        generative_outputs: dict[str, Any],
        kl_weight: Tensor | float = 1.0,
    ) -> LossOutput:
        """Return the negative evidence lower bound, weighted by `kl_weight`; no adversarial term.

        ``L_AE = E_q[-ln p(x | z, l, b)] + kl_weight · KL(q(z|x) ‖ p(z)) + KL(q(l|x) ‖ p(l))``
        """
        qz, z = inference_outputs[MODULE_KEYS.QZ_KEY], inference_outputs[MODULE_KEYS.Z_KEY]
        kl_z = self.prior.kl(qz, z)
        kl_l = torch.zeros_like(kl_z)
        if not self.use_observed_lib_size:
            ql = inference_outputs[MODULE_KEYS.QL_KEY]
            kl_l = kl_divergence(ql, generative_outputs[MODULE_KEYS.PL_KEY]).sum(-1)
        reconstruction = -self._log_likelihood(
            tensors[REGISTRY_KEYS.X_KEY], generative_outputs[MODULE_KEYS.PX_KEY]
        )
        return LossOutput(
            loss=(reconstruction + kl_weight * kl_z + kl_l).mean(),
            reconstruction_loss=reconstruction,
            kl_local={MODULE_KEYS.KL_L_KEY: kl_l, MODULE_KEYS.KL_Z_KEY: kl_z},
            extra_metrics=self._autotune_payload(tensors, z),
        )

    def _autotune_payload(self, tensors: dict[str, Tensor], z: Tensor) -> dict[str, Tensor]:
        """Return what scvi-tools' tuning of integration scores wants to see."""
        if not self.extra_payload_autotune:
            return {}
        batch, labels = tensors[REGISTRY_KEYS.BATCH_KEY], tensors[REGISTRY_KEYS.LABELS_KEY]
        return {"z": z, "batch": batch, "labels": labels}

    def _log_likelihood(self, x: Tensor, px: Any) -> Tensor:
        """Log-probability of each cell's counts, shape ``(n_cells,)``."""
        if self.gene_likelihood == "poisson":
            # a rate of 0, in cells without counts, has no gradient
            rate = px.rate.clamp_min(torch.finfo(px.rate.dtype).tiny)
            return Poisson(rate).log_prob(x).sum(-1)
        if self.gene_likelihood not in ("zinb", "nb") or px.mu.ndim != 2:
            return px.log_prob(x).sum(-1)
        # `px` holds θ expanded to every cell
        theta = self.px_r.exp() if self.dispersion == "gene" else px.theta
        zi_logits = px.zi_logits if self.gene_likelihood == "zinb" else None
        return count_log_prob(x, px.mu, theta, zi_logits)

    @torch.inference_mode()
    @auto_move_data
    def marginal_ll(
        self,
        tensors: dict[str, Tensor],
        n_mc_samples: int,
        return_mean: bool = False,
        n_mc_samples_per_pass: int = 1,
    ) -> Tensor | float:
        """Log marginal likelihood of each cell by importance sampling from q(z|x).

        As in :class:`~scvi.module.VAE`, under the prior that the model was given.
        """
        n_per_pass = min(n_mc_samples_per_pass, n_mc_samples)
        n_passes = math.ceil(n_mc_samples / n_per_pass)
        weights = [self._log_importance(tensors, n_per_pass) for _ in range(n_passes)]
        log_weights = torch.cat(weights)
        log_likelihood = torch.logsumexp(log_weights, 0) - math.log(len(log_weights))
        return log_likelihood.mean().item() if return_mean else log_likelihood.cpu()

    def _log_importance(self, tensors: dict[str, Tensor], n_samples: int) -> Tensor:
        """``ln p(x, z, l) - ln q(z, l | x)`` at sampled codes, shape ``(n_samples, n_cells)``."""
        inference, generative, losses = self.forward(
            tensors,
            inference_kwargs={"n_samples": n_samples},
            get_inference_input_kwargs={"full_forward_pass": True},
        )
        qz, z = inference[MODULE_KEYS.QZ_KEY], inference[MODULE_KEYS.Z_KEY]
        log_weight = (
            self.prior.log_prob(z)
            - qz.log_prob(z).sum(-1)
            - losses.dict_sum(losses.reconstruction_loss)
        )
        if not self.use_observed_lib_size:
            library = inference[MODULE_KEYS.LIBRARY_KEY]
            ql, pl = inference[MODULE_KEYS.QL_KEY], generative[MODULE_KEYS.PL_KEY]
            log_weight = log_weight + (pl.log_prob(library) - ql.log_prob(library)).sum(-1)
        return log_weight.reshape(n_samples, -1)
