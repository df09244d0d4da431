"""The released DR-A program, quirks included, as a scvi-tools model: to check published numbers.

Written from the equations, not from the code. What it does differently from its own premise (and
from :class:`~dra_scvi.DRA`): the likelihood sees scaled logarithms in place of counts, the KL
divergence of the codes has weight 0, the latent discriminator cooperates, the second one moves
nothing but itself, and its input comes from a head that no loss trains.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scvi import REGISTRY_KEYS
from scvi.dataloaders import DataSplitter
from scvi.distributions import ZeroInflatedNegativeBinomial
from scvi.model import SCVI
from scvi.module import VAE
from scvi.module.base import LossOutput, auto_move_data
from torch import nn
from torch.distributions import Normal, kl_divergence
from torch.utils.data import DataLoader, Sampler

from dra_scvi._compat import MODULE_KEYS
from dra_scvi._exceptions import InvalidCountsError, TrainingDivergedError
from dra_scvi._kernels.likelihood import count_log_prob
from dra_scvi._model.arguments import check_model
from dra_scvi._model.dra import DRA
from dra_scvi._model.hand_over import Refused
from dra_scvi._module.matching import released_distance, released_generator_loss
from dra_scvi._module.priors import NormalPrior, Prior, UniformPrior
from dra_scvi._training.divergence import refused_as_diverged
from dra_scvi._training.resumable import ResumablePlan
from dra_scvi.presets import published

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from anndata import AnnData
    from torch import Tensor

TRAIN_SHARE = 0.8


# -- networks --------------------------------------------------------------------------------


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

    Parameters
    ----------
    n_input
        Number of genes.
    n_hidden
        Width of each hidden layer of the encoder; the decoder takes them in reverse.
    n_latent
        Dimensions of a code.
    dropout_rate
        1 - `keep` of the program, in encoder, decoder and both discriminators.
    n_hidden_discriminator
        Width of each hidden layer of both discriminators, which take them in reverse.
    leak
        Slope of the leaky ReLU.
    batch_norm
        What the program does with its flag on: an affine map, and no dropout.
    prior
        `"normal"` or `"uniform"` on [-1, 1].
    input_max
        Largest ``log2(1 + count)`` of the whole matrix.
    library_mean
        Mean of the log of the sum of transformed values over the training cells.
    library_var
        Variance of the same.
    **vae_kwargs
        Number of batches, labels and so on, of which the program knows nothing.
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


# -- training --------------------------------------------------------------------------------


class PublishedPlan(ResumablePlan):
    """Four Adam optimizers in the released order, every step with noise and dropout of its own.

    In each minibatch: the autoencoder; in every third one the latent discriminator and in the
    others the encoder as generator; the data discriminator, which reaches nothing else.

    Parameters
    ----------
    module
        Module to train.
    lr
        Learning rate of all four.
    beta1
        β₁ of all four.
    control
        Every how many minibatches the latent discriminator steps instead of the generator.

    Raises
    ------
    TrainingDivergedError
        When a loss is not finite, before its step.
    """

    LOSSES = ("train_loss", "latent_discriminator", "generator", "data_discriminator")

    def __init__(
        self,
        module: PublishedVAE,
        *,
        lr: float = 7e-4,
        beta1: float = 0.9,
        control: int = 3,
        **kwargs: Any,
    ) -> None:
        super().__init__(module, lr=lr, **kwargs)
        self.automatic_optimization = False
        self.beta1 = beta1
        self.control = control
        # the weight of KL(z) is the constant 0 in the released program
        self.loss_kwargs["kl_weight"] = 0.0
        self._sums: dict[str, list[Tensor]] = {name: [] for name in self.LOSSES}

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Step the four players in turn."""
        autoencoder, latent, generator, data = self.optimizers()
        loss = self._step(autoencoder, "train_loss", self._autoencoder_loss, batch, batch_idx)
        if batch_idx % self.control == 0:
            self._step(latent, "latent_discriminator", self._latent_loss, batch, batch_idx)
        else:
            self._step(generator, "generator", self._generator_loss, batch, batch_idx)
        self._step(data, "data_discriminator", self._data_loss, batch, batch_idx)
        return loss

    def _autoencoder_loss(self, batch: dict[str, Tensor]) -> Tensor:
        return self.forward(batch, loss_kwargs=self.loss_kwargs)[2].loss

    def _codes(self, batch: dict[str, Tensor]) -> Tensor:
        qz, _ = self.module.z_encoder(self.module.transform(batch[REGISTRY_KEYS.X_KEY]))
        return qz.rsample()

    def _latent_loss(self, batch: dict[str, Tensor]) -> Tensor:
        with torch.no_grad():
            z = self._codes(batch)
        discriminator = self.module.latent_discriminator
        return released_distance(discriminator(self.module.prior.sample(len(z))), discriminator(z))

    def _generator_loss(self, batch: dict[str, Tensor]) -> Tensor:
        return released_generator_loss(self.module.latent_discriminator(self._codes(batch)))

    def _data_loss(self, batch: dict[str, Tensor]) -> Tensor:
        with torch.no_grad():
            reconstruction = self.module.decoder(self._codes(batch))[2]
        discriminator = self.module.data_discriminator
        x = self.module.transform(batch[REGISTRY_KEYS.X_KEY])
        return released_distance(discriminator(x), discriminator(reconstruction))

    def _step(
        self,
        optimizer: Any,
        name: str,
        compute: Callable[[dict[str, Tensor]], Tensor],
        batch: dict[str, Tensor],
        batch_idx: int,
    ) -> Tensor:
        with refused_as_diverged(name, self.current_epoch, batch_idx):
            loss = compute(batch)
        if not torch.isfinite(loss):
            raise TrainingDivergedError(name, self.current_epoch, batch_idx)
        # the generator's loss reaches the discriminator too, whose optimizer is not this one
        self.module.zero_grad(set_to_none=True)
        self.manual_backward(loss)
        optimizer.step()
        self._sums[name].append(loss.detach())
        return loss.detach()

    def on_train_epoch_end(self) -> None:
        """Log the mean of each loss."""
        for name, losses in self._sums.items():
            mean = torch.stack(losses).mean() if losses else torch.zeros(())
            self.log(name, mean, prog_bar=name == "train_loss")
            losses.clear()

    def configure_optimizers(self) -> list[torch.optim.Adam]:
        """Create one Adam per player; autoencoder and generator share the encoder."""
        module = self.module
        encoder = list(module.z_encoder.parameters())
        # the head that the data discriminator sees is trained by nothing
        decoder = [
            parameter
            for name, parameter in module.decoder.named_parameters()
            if not name.startswith("reconstruction")
        ]
        players = [
            [*encoder, *decoder, module.px_r],
            list(module.latent_discriminator.parameters()),
            encoder,
            list(module.data_discriminator.parameters()),
        ]
        betas = (self.beta1, 0.999)
        return [torch.optim.Adam(player, lr=self.lr, betas=betas, eps=1e-8) for player in players]


class _Windows(Sampler[list[int]]):
    """Contiguous windows of the training cells at random starts; the last cell is in none."""

    def __init__(self, n_train: int, batch_size: int, n_windows: int) -> None:
        self.n_train, self.batch_size, self.n_windows = n_train, batch_size, n_windows

    def __len__(self) -> int:
        return self.n_windows

    def __iter__(self) -> Iterator[list[int]]:
        for _ in range(self.n_windows):
            start = int(torch.randint(0, self.n_train - self.batch_size, ()))
            yield list(range(start, start + self.batch_size))


def published_split(n_obs: int) -> tuple[np.ndarray, np.ndarray]:
    """Split cells into training and test: a permutation seeded with 0, cut at 80 %.

    Examples
    --------
    >>> train, test = published_split(3005)
    >>> len(train), len(test)
    (2404, 601)
    """
    order = np.random.RandomState(0).permutation(n_obs)
    n_train = int(TRAIN_SHARE * n_obs)
    return order[:n_train], order[n_train:]


class PublishedSplitter(DataSplitter):
    """The released split and minibatches: an epoch is ``n_obs // batch_size`` windows."""

    def setup(self, stage: str | None = None) -> None:
        """Split the cells; the last fifth is for testing, none for validation."""
        self.train_idx, self.test_idx = published_split(self.adata_manager.adata.n_obs)
        self.val_idx = np.array([], dtype=int)
        self.n_train, self.n_val = len(self.train_idx), 0

    def train_dataloader(self) -> DataLoader:
        """Return a loader of random windows over the permuted training cells."""
        n_obs = self.adata_manager.adata.n_obs
        batch_size = self.data_loader_kwargs["batch_size"]
        if self.n_train <= batch_size:
            raise ValueError(
                f"The published minibatches need more training cells than `batch_size`: there are "
                f"{self.n_train} (80 % of {n_obs} cells) for {batch_size}. Lower batch_size."
            )
        dataset = self.adata_manager.create_torch_dataset(indices=self.train_idx)
        windows = _Windows(self.n_train, batch_size, n_obs // batch_size)
        return DataLoader(dataset, sampler=windows, batch_size=None)


# -- model -----------------------------------------------------------------------------------


class PublishedDRA(DRA):
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

    _module_cls = PublishedVAE  # type: ignore[assignment]
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
        # not DRA's own: the networks have other arguments
        SCVI.__init__(
            self,
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
                "the logarithm of their sum: drop them with `sc.pp.filter_cells(adata, "
                "min_counts=1)`."
            )
        library = np.log(totals[published_split(self.adata.n_obs)[0]])
        return input_max, float(library.mean()), float(library.var())
