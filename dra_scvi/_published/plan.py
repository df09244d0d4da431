"""Training of the released program: its split, minibatches, losses, and four Adam optimizers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scvi import REGISTRY_KEYS
from scvi.dataloaders import DataSplitter
from torch.utils.data import DataLoader, Sampler

from dra_scvi._exceptions import TrainingDivergedError
from dra_scvi._training.diverged import refused_as_diverged
from dra_scvi._training.resumable import ResumablePlan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    from dra_scvi._published.networks import PublishedVAE


TRAIN_SHARE = 0.8


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
    """Split cells into training and test: a permutation seeded with 0, cut at 80 %."""
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


def released_distance(real: Tensor, fake: Tensor) -> Tensor:
    r"""Loss of both discriminators in the released program, which they minimise.

    .. math:: -\ln \left( \sum_i \sqrt{\left| \frac{a_i}{\sum a} \frac{b_i}{\sum b} \right|} +
        10^{-10} \right)

    for outputs `a` on the real and `b` on the fake rows, ``(n_cells,)``, paired by their position.
    Both are unbounded linear outputs divided by a signed sum, so that this is no divergence: it
    falls without limit as a sum nears 0.
    """
    coefficient = torch.sqrt(torch.abs(real / real.sum() * (fake / fake.sum()))).sum()
    return -torch.log(coefficient + 1e-10)


def released_generator_loss(fake: Tensor) -> Tensor:
    r"""Adversarial loss of the encoder in the released program, blind to the prior's samples.

    .. math:: -\ln \left( \sum_i \sqrt{\left| b_i / \sum b \right|} + 10^{-10} \right)

    for outputs `b` of the discriminator on codes, ``(n_cells,)``.

    >>> round(released_generator_loss(torch.ones(128)).item(), 3)  # its optimum, -ln(128) / 2
    -2.426
    """
    return -torch.log(torch.sqrt(torch.abs(fake / fake.sum())).sum() + 1e-10)


class PublishedPlan(ResumablePlan):
    """Four Adam optimizers in the released order, every step with noise and dropout of its own.

    In each minibatch: the autoencoder; in every third one (`control`) the latent discriminator and
    in the others the encoder as generator; the data discriminator, which reaches nothing else.
    `lr` and `beta1` are those of all four.
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
