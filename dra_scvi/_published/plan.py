"""Training of the released program: four Adam optimizers in its order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from scvi import REGISTRY_KEYS

from dra_scvi._exceptions import TrainingDivergedError
from dra_scvi._published.losses import released_distance, released_generator_loss
from dra_scvi._training.diverged import refused_as_diverged
from dra_scvi._training.resumable import ResumablePlan

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from dra_scvi._published.networks import PublishedVAE


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
