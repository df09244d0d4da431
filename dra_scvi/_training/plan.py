"""DualMatchingPlan: one backward pass and one optimizer step for all three players."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch

from dra_scvi._exceptions import TrainingDivergedError
from dra_scvi._module.priors import MixturePrior
from dra_scvi._training.diverged import refused_as_diverged
from dra_scvi._training.processes import (
    failing_together,
    gathered_scores,
    share_buffers,
    share_state,
)
from dra_scvi._training.resumable import ResumablePlan

if TYPE_CHECKING:
    from collections.abc import Callable

    from scvi.module.base import LossOutput
    from torch import Tensor
    from torch.nn import Parameter
    from torch.optim import Optimizer

    from dra_scvi._module.dravae import DRAVAE

# with several batches the match is what mixes them: each must fill the same prior
LATENT_WEIGHT_OF_BATCHES = 10.0
DISCRIMINATORS = ("latent_discriminator", "data_discriminator")
TERMS = (
    "train_loss",
    "elbo_train",
    "reconstruction_loss_train",
    "kl_local_train",
    "kl_global_train",
    "latent_divergence_train",
    "data_divergence_train",
    "kl_weight",
)


def is_trainable(module: torch.nn.Module) -> bool:
    """Whether no parameter of a module is frozen."""
    return all(parameter.requires_grad for parameter in module.parameters())


class DualMatchingPlan(ResumablePlan):
    r"""Train a :class:`~dra_scvi._module.dravae.DRAVAE`: autoencoder against two discriminators.

    The autoencoder minimises

    .. math:: L = L_{AE} + \lambda_z D_z + \lambda_x D_x,

    each discriminator maximises its divergence. All three take their step from one backward pass
    of :math:`L_{AE} - D_z - D_x`, in which the gradient from a divergence into the autoencoder is
    multiplied by :math:`-\lambda`; they are the parameter groups of one optimizer. Lightning's
    automatic optimization stays in force therefore, with clipping, accumulation of gradients,
    schedulers, checkpoints and a `global_step` that counts minibatches. Validation is scVI's.

    Metrics are gathered on the device and logged once an epoch, under the names of
    :data:`TERMS`.

    What is frozen plays no part, as in a query that is mapped to a reference
    (:meth:`DRA.load_query_data`): the divergence of a frozen discriminator is left out, a frozen
    prior stays where it is, and weights decay only where all are trained.

    In several processes (DDP) each trains on its share of the cells. The divergence's means are
    over the minibatches of all, statistics of batch normalisation over a process' own; the first
    process' statistics and prior are everybody's at the end of an epoch.

    Parameters
    ----------
    module
        Module to train.
    latent_weight
        λ_z, weight of the divergence of codes from the prior; 0 leaves the term out. `None` for 1,
        or for 10 with several batches.
    data_weight
        λ_x, weight of the divergence of reconstructions from the data; 0 leaves the term out.
    within_components
        Whether batches are matched within the components of a mixture prior, so that a type that
        a batch lacks is not filled with other cells of it
        (:class:`~dra_scvi._module.composition.Composition`).
    discriminator_lr
        Learning rate of both discriminators. They learn more slowly than the autoencoder: one that
        tells the samples apart for certain has no gradient left to give.
    n_epochs_kl_warmup
        Epochs in which the weight of the KL divergence rises from `min_kl_weight` to
        `max_kl_weight`; `"auto"` for half of all epochs, or for one with several batches.
    n_steps_kl_warmup
        The same in minibatches.
    lr_decay_start
        When learning rates begin to fall, along a line to 0 at the end, as a share of all steps;
        1 for never. They stay as they are where scvi-tools lowers them (`reduce_lr_on_plateau`),
        and where training has no number of epochs.
    prior_start
        When the components of a mixture prior are placed among the codes, as a share of all
        epochs.
    gradient_clip_val
        Largest norm of each player's gradient; `None` for no limit.
    **kwargs
        Further arguments of :class:`~dra_scvi._training.resumable.ResumablePlan`.

    Raises
    ------
    TrainingDivergedError
        When a term is not finite: before the step on a CPU, at the end of the epoch on other
        devices, which would have to wait for every check.
    """

    def __init__(
        self,
        module: DRAVAE,
        *,
        latent_weight: float | None = None,
        data_weight: float = 1.0,
        within_components: bool = True,
        discriminator_lr: float = 1e-4,
        lr_decay_start: float = 1.0,
        n_epochs_kl_warmup: int | Literal["auto"] | None = "auto",
        n_steps_kl_warmup: int | None = None,
        prior_start: float = 0.25,
        gradient_clip_val: float | None = None,
        **kwargs: Any,
    ) -> None:
        if latent_weight is None:
            latent_weight = LATENT_WEIGHT_OF_BATCHES if module.n_batch > 1 else 1.0
        if latent_weight < 0 or data_weight < 0:
            raise ValueError("latent_weight and data_weight must not be negative.")
        self._kl_warmup_is_auto = n_epochs_kl_warmup == "auto"
        super().__init__(
            module,
            n_epochs_kl_warmup=None if n_epochs_kl_warmup == "auto" else n_epochs_kl_warmup,
            n_steps_kl_warmup=n_steps_kl_warmup,
            **kwargs,
        )
        self.latent_weight = latent_weight if is_trainable(module.latent_discriminator) else 0.0
        self.data_weight = data_weight if is_trainable(module.data_discriminator) else 0.0
        if "weight_decay" not in kwargs and not is_trainable(module):
            self.weight_decay = 0.0  # it would move weights whose gradient scArches masks
        self.within_components = within_components
        if not 0 <= lr_decay_start <= 1:
            raise ValueError(f"lr_decay_start must be between 0 and 1, not {lr_decay_start}.")
        self.discriminator_lr = discriminator_lr
        self.lr_decay_start = lr_decay_start
        self.prior_start = prior_start
        self.gradient_clip_val = gradient_clip_val
        self._steps: list[Tensor] = []
        self._codes: list[Tensor] = []

    # -- one minibatch -----------------------------------------------------------------------

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of the game, whose gradient moves every player its own way."""
        self.loss_kwargs["kl_weight"] = self.kl_weight
        with self.together(), refused_as_diverged("elbo_train", self.current_epoch, batch_idx):
            inference, generative, output = self.forward(batch, loss_kwargs=self.loss_kwargs)
        divergences = self.module.matching(
            batch,
            inference,
            generative,
            self.latent_weight,
            self.data_weight,
            self.within_components,
            partial(gathered_scores, trainer=self.trainer),
        )
        self._record(output, divergences, batch_idx)
        if self._prior_starts_after_this_epoch:
            self._codes.append(inference["qz"].loc.detach())
        if output.extra_metrics:
            self.prepare_scib_autotune(output.extra_metrics, "training")
        return output.loss - sum(divergences.values())

    def _record(self, output: LossOutput, divergences: dict[str, Tensor], batch_idx: int) -> None:
        """Keep the terms of this minibatch, in the order of `TERMS`, and their number of cells."""
        loss, n_obs = output.loss.detach(), output.n_obs_minibatch
        reconstruction = output.reconstruction_loss_sum.detach() / n_obs
        kl_local = output.kl_local_sum.detach() / n_obs
        nothing = torch.zeros_like(loss)
        latent = divergences.get("latent_divergence", nothing).detach()
        data = divergences.get("data_divergence", nothing).detach()
        total = loss + self.latent_weight * latent + self.data_weight * data
        step = torch.stack(
            [
                total,
                reconstruction + kl_local,
                reconstruction,
                kl_local,
                nothing,  # of the global KL
                latent,
                data,
                self.loss_kwargs["kl_weight"].to(loss),
                torch.full_like(loss, n_obs),
            ]
        )
        if step.device.type == "cpu":
            with self.together():
                self._check_finite(step[None], first_step=batch_idx)
        if self.on_step:
            names = (f"{name}_step" for name in TERMS)
            self.logger.log_metrics(
                dict(zip(names, step.tolist(), strict=False)), self.global_step
            )
        self._steps.append(step)

    def _check_finite(self, steps: Tensor, first_step: int = 0) -> None:
        """Raise if any of the terms, shape ``(n_steps, n_terms)``, is NaN or infinite."""
        bad = ~torch.isfinite(steps)
        if not bad.any():
            return
        step, term = bad.nonzero()[0].tolist()
        # the first term is the sum of the others: name the one that spoils it
        culprits = bad[step, 1:].nonzero()
        if len(culprits):
            term = int(culprits[-1]) + 1
        raise TrainingDivergedError(TERMS[term], self.current_epoch, first_step + step)

    # -- one epoch ---------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        """Choose the length of the KL warm-up where that was left to us.

        Before training is resumed, which may have ended: no epoch would start.

        Until the divergence weighs in, codes learn what batches are, and keep it for long.
        """
        if self._kl_warmup_is_auto and self.n_steps_kl_warmup is None:
            half = max(1, (self.trainer.max_epochs or 1) // 2)
            self.n_epochs_kl_warmup = 1 if self.module.n_batch > 1 else half

    def on_train_start(self) -> None:
        """Let every process draw codes of its own."""
        if self.global_rank and not self.trainer.ckpt_path:
            # processes that begin with one seed must not draw the same codes for their cells
            torch.manual_seed((torch.initial_seed() + self.global_rank) % 2**63)

    def on_train_batch_start(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Set the learning rates of this step, from the step's number alone."""
        if self.reduce_lr_on_plateau or self.lr_decay_start == 1:
            return
        n_steps = self.trainer.estimated_stepping_batches
        if math.isinf(n_steps):
            return
        factor = min(1.0, (1 - self.global_step / n_steps) / (1 - self.lr_decay_start))
        for group in self.optimizers().param_groups:
            group["lr"] = factor * group.setdefault("initial_lr", group["lr"])

    def on_train_epoch_end(self) -> None:
        """Log the epoch's means, and place the components of a mixture prior when it is time."""
        share_buffers(self.module, self.trainer)
        if self._steps:
            steps = torch.stack(self._steps)
            self._steps.clear()
            with failing_together(self.trainer):
                self._check_finite(steps)
            n_obs = steps[:, -1:]
            means = (steps[:, :-1] * n_obs).sum(0) / n_obs.sum()
            terms = dict(zip(TERMS, means, strict=True))
            self.log(
                "train_loss", terms.pop("train_loss"), prog_bar=True, sync_dist=self.use_sync_dist
            )
            self.log_dict(terms, sync_dist=self.use_sync_dist)
        if self._codes:
            self.module.prior.start(torch.cat(self._codes))
            self._codes.clear()
            share_state(self.module.prior, self.trainer)

    @property
    def _prior_starts_after_this_epoch(self) -> bool:
        prior = self.module.prior
        max_epochs = self.trainer.max_epochs or 1
        start = max(1, round(self.prior_start * max_epochs))
        if not start < max_epochs or self.current_epoch != start - 1:
            return False  # most epochs: what follows would wait for an accelerator
        return isinstance(prior, MixturePrior) and not prior.is_started and is_trainable(prior)

    # -- optimizer ---------------------------------------------------------------------------

    def parameter_groups(self) -> dict[str, list[Parameter]]:
        """Trainable parameters of each player; a player without any, or of weight 0, is absent."""
        groups: dict[str, list[Parameter]] = {"autoencoder": []}
        for name, parameter in self.module.named_parameters():
            owner = name.removeprefix("_orig_mod.").split(".")[0]
            player = owner if owner in DISCRIMINATORS else "autoencoder"
            if parameter.requires_grad:
                groups.setdefault(player, []).append(parameter)
        weights = dict(zip(DISCRIMINATORS, (self.latent_weight, self.data_weight), strict=True))
        return {name: group for name, group in groups.items() if group and weights.get(name, 1)}

    def get_optimizer_creator(self) -> Callable[[Any], Optimizer]:
        """Create the optimizer over the players' groups instead of one flat list."""
        create = super().get_optimizer_creator()
        return lambda _: create(
            [
                {"params": group, **self._group_options(name)}
                for name, group in self.parameter_groups().items()
            ]
        )

    def _group_options(self, name: str) -> dict[str, Any]:
        if self.optimizer_name == "Custom" or name == "autoencoder":
            return {}
        return {"lr": self.discriminator_lr, "eps": 1e-8}

    def _optimizer_creator_fn(
        self, optimizer_cls: type[torch.optim.Adam] | type[torch.optim.AdamW]
    ) -> Callable[[Any], Optimizer]:
        return lambda params: optimizer_cls(
            params, lr=self.lr, eps=self.eps, weight_decay=self.weight_decay, fused=self._can_fuse
        )

    @property
    def _can_fuse(self) -> bool:
        """Fused steps need a device that has them; a loss scaler must unscale before they run."""
        trainer = self._trainer
        half = trainer is not None and str(trainer.precision).startswith("16")
        return self.device.type in ("cpu", "cuda") and not half

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip each player's gradient by itself, so that one cannot drown another."""
        limit = self.gradient_clip_val if gradient_clip_val is None else gradient_clip_val
        if limit is None:
            return
        for group in optimizer.param_groups:
            if gradient_clip_algorithm == "value":
                torch.nn.utils.clip_grad_value_(group["params"], limit)
            else:
                torch.nn.utils.clip_grad_norm_(group["params"], limit)
