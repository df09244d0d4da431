"""Networks and likelihood of the released program."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from scvi import REGISTRY_KEYS
from scvi.distributions import ZeroInflatedNegativeBinomial
from scvi.module import VAE
from scvi.module.base import LossOutput, auto_move_data
from torch import nn
from torch.distributions import Normal, kl_divergence

from dra_scvi._compat import MODULE_KEYS
from dra_scvi._kernels.likelihood import count_log_prob
from dra_scvi._module.priors import NormalPrior, Prior, UniformPrior

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


class _Affine(nn.Module):
    """Batch normalisation as the released graph has it: moving statistics stay 0 and 1."""

    EPS = 1e-3

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight / (1 + self.EPS) ** 0.5 + self.bias


def _dense(n_in: int, n_out: int) -> nn.Linear:
    layer = nn.Linear(n_in, n_out)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _hidden(
    n_in: int, widths: Sequence[int], dropout_rate: float, leak: float, batch_norm: bool
) -> nn.Sequential:
    """Dense, leaky ReLU and dropout, or an affine map in place of that, for each width."""
    blocks: list[nn.Module] = []
    for n_input, n_out in zip([n_in, *widths[:-1]], widths, strict=True):
        last = _Affine(n_out) if batch_norm else nn.Dropout(dropout_rate)
        blocks += [_dense(n_input, n_out), nn.LeakyReLU(leak), last]
    return nn.Sequential(*blocks)


class _Encoder(nn.Module):
    """Codes and library size from one hidden stack; the library branch is as wide as a code."""

    def __init__(self, n_input: int, n_latent: int, widths: Sequence[int], **hidden: Any) -> None:
        super().__init__()
        self.hidden = _hidden(n_input, widths, **hidden)
        self.mean = _dense(widths[-1], n_latent)
        self.log_variance = _dense(widths[-1], n_latent)
        self.library = nn.Sequential(_dense(widths[-1], n_latent), nn.ReLU())
        self.library_mean = _dense(n_latent, 1)
        self.library_log_variance = _dense(n_latent, 1)
        self.z_transformation = nn.Identity()

    def forward(self, x: Tensor) -> tuple[Normal, Normal]:
        h = self.hidden(x)
        branch = self.library(h)
        qz = Normal(self.mean(h), torch.exp(0.5 * self.log_variance(h)))
        ql = Normal(self.library_mean(branch), torch.exp(0.5 * self.library_log_variance(branch)))
        return qz, ql


class _Decoder(nn.Module):
    """Scale, zero inflation, and the sigmoid head that the second discriminator is shown."""

    def __init__(self, n_latent: int, n_output: int, widths: Sequence[int], **hidden: Any) -> None:
        super().__init__()
        self.hidden = _hidden(n_latent, widths, **hidden)
        self.scale = _dense(widths[-1], n_output)
        self.zi_logits = _dense(widths[-1], n_output)
        self.reconstruction = _dense(widths[-1], n_output)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = self.hidden(z)
        return (
            torch.softmax(self.scale(h), -1),
            self.zi_logits(h),
            torch.sigmoid(self.reconstruction(h)),
        )


class _Discriminator(nn.Sequential):
    def __init__(self, n_input: int, widths: Sequence[int], **hidden: Any) -> None:
        super().__init__(_hidden(n_input, widths, **hidden), _dense(widths[-1], 1), nn.Flatten(0))


# -- module ----------------------------------------------------------------------------------


class PublishedVAE(VAE):
    """Networks and likelihood of the released program.

    Widths are those of the encoder and of both discriminators; the decoder takes the former in
    reverse, discriminators the latter. `dropout_rate`, 1 - `keep` of the program, and `leak`, the
    slope of the leaky ReLU, are the same in all networks. `batch_norm` is the program's flag as it
    acts: an affine map, and no dropout. `input_max` is the largest ``log2(1 + count)`` of the
    matrix; `library_mean` and `library_var` are moments of the log of the sum of transformed
    values over the training cells. Of batches, labels and so on (`vae_kwargs`) it knows nothing.
    """

    def __init__(
        self,
        n_input: int,
        n_hidden: Sequence[int] = (512,),
        n_latent: int = 10,
        dropout_rate: float = 0.1,
        n_hidden_discriminator: Sequence[int] = (512,),
        leak: float = 0.2,
        batch_norm: bool = False,
        prior: str = "normal",
        input_max: float = 1.0,
        library_mean: float = 0.0,
        library_var: float = 1.0,
        **vae_kwargs: Any,
    ) -> None:
        super().__init__(n_input, n_latent=n_latent, n_hidden=1, **vae_kwargs)
        hidden = {"dropout_rate": dropout_rate, "leak": leak, "batch_norm": batch_norm}
        critic_widths = list(n_hidden_discriminator)[::-1]
        self.z_encoder = _Encoder(n_input, n_latent, list(n_hidden), **hidden)
        self.l_encoder = nn.Identity()
        self.decoder = _Decoder(n_latent, n_input, list(n_hidden)[::-1], **hidden)
        self.latent_discriminator = _Discriminator(n_latent, critic_widths, **hidden)
        self.data_discriminator = _Discriminator(n_input, critic_widths, **hidden)
        self.prior: Prior = (
            UniformPrior(n_latent, edge=0.0) if prior == "uniform" else NormalPrior(n_latent)
        )
        self.register_buffer("input_max", torch.tensor(float(input_max)))
        self.register_buffer("library_mean", torch.tensor(float(library_mean)))
        self.register_buffer("library_var", torch.tensor(float(library_var)))

    def transform(self, counts: Tensor) -> Tensor:
        """``log2(1 + count)`` as a share of its maximum over the whole matrix."""
        return torch.log2(1 + counts) / self.input_max

    @auto_move_data
    def _regular_inference(
        self, x: Tensor, batch_index: Tensor, n_samples: int = 1, **_: Any
    ) -> dict[str, Any]:
        qz, ql = self.z_encoder(self.transform(x))
        shape = (n_samples,) if n_samples > 1 else ()
        return {
            MODULE_KEYS.Z_KEY: qz.rsample(shape),
            MODULE_KEYS.QZ_KEY: qz,
            MODULE_KEYS.QL_KEY: ql,
            MODULE_KEYS.LIBRARY_KEY: ql.rsample(shape),
        }

    @auto_move_data
    def generative(
        self, z: Tensor, library: Tensor, transform_batch: Tensor | None = None, **_: Any
    ) -> dict[str, Any]:
        """Decode codes; `"reconstruction"` is the head that only the discriminator sees."""
        scale, zi_logits, reconstruction = self.decoder(z)
        px = ZeroInflatedNegativeBinomial(
            mu=library.exp() * scale, theta=self.px_r.exp(), zi_logits=zi_logits, scale=scale
        )
        pl = Normal(self.library_mean, self.library_var.sqrt())
        pz = Normal(torch.zeros_like(z), torch.ones_like(z))
        return {
            MODULE_KEYS.PX_KEY: px,
            MODULE_KEYS.PL_KEY: pl,
            MODULE_KEYS.PZ_KEY: pz,
            "reconstruction": reconstruction,
        }

    def loss(
        self,
        tensors: dict[str, Tensor],
        inference_outputs: dict[str, Any],
        generative_outputs: dict[str, Any],
        kl_weight: float = 0.0,
    ) -> LossOutput:
        """``-ln ZINB(x) + KL(q(l) ‖ p(l)) + kl_weight · KL(q(z) ‖ p(z))`` on transformed data."""
        x, px = (
            self.transform(tensors[REGISTRY_KEYS.X_KEY]),
            generative_outputs[MODULE_KEYS.PX_KEY],
        )
        if px.mu.ndim == 2:
            reconstruction = -count_log_prob(x, px.mu, self.px_r.exp(), px.zi_logits)
        else:
            reconstruction = -px.log_prob(x).sum(-1)
        qz, ql = inference_outputs[MODULE_KEYS.QZ_KEY], inference_outputs[MODULE_KEYS.QL_KEY]
        # infinite where the variance of a code underflows, which makes 0 · KL a NaN: there, the
        # released gradient, by the square root of that variance, is one as well
        kl_z = kl_divergence(qz, generative_outputs[MODULE_KEYS.PZ_KEY]).sum(-1)
        kl_l = kl_divergence(ql, generative_outputs[MODULE_KEYS.PL_KEY]).sum(-1)
        return LossOutput(
            loss=(reconstruction + kl_l + kl_weight * kl_z).mean(),
            reconstruction_loss=reconstruction,
            kl_local={MODULE_KEYS.KL_L_KEY: kl_l, MODULE_KEYS.KL_Z_KEY: kl_z},
        )
