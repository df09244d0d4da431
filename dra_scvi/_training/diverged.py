"""Training that diverges: how it is told, and the last good epoch that it goes back to."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.callbacks import Checkpoint

from dra_scvi._exceptions import TrainingDivergedError
from dra_scvi._training.processes import failing_together

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lightning.pytorch import Trainer
    from torch import Tensor


@contextlib.contextmanager
def refused_as_diverged(term: str, epoch: int, step: int) -> Iterator[None]:
    """Turn the refusal to build a distribution from NaN or infinity into what it means."""
    try:
        yield
    except ValueError as error:
        if "to satisfy the constraint" not in str(error):
            raise
        raise TrainingDivergedError(term, epoch, step) from error


class LastGoodState(Checkpoint):
    """Keep the module of the last epoch that went well, and go back to it from a divergence.

    It is a :class:`~lightning.pytorch.callbacks.Checkpoint` since those are called last: after the
    plan has looked at the epoch's terms.
    """

    def __init__(self) -> None:
        self._state: dict[str, Tensor] = {}
        self._batch: Any = None

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Keep the beginning."""
        self._keep(pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Keep the last minibatch."""
        self._batch = batch

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Keep the epoch, unless its last step went wrong, which no term has shown yet."""
        state = pl_module.module.state_dict().values()
        sums = {
            "weights": sum(value.sum().float() for value in state if value.is_floating_point())
        }
        if "validation_loss" in trainer.callback_metrics:
            sums["validation_loss"] = trainer.callback_metrics["validation_loss"]
        with failing_together(trainer):
            for term, value in sums.items():
                if not torch.isfinite(value):
                    step = trainer.fit_loop.batch_idx
                    raise TrainingDivergedError(term, trainer.current_epoch, step)
        self._keep(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Refuse what the last step led to where the loss of its minibatch is not finite."""
        with failing_together(trainer):
            if self._batch is not None and not self._is_finite(pl_module):
                last = max(trainer.current_epoch - 1, 0)
                raise TrainingDivergedError("train_loss", last, trainer.fit_loop.batch_idx)
        self._batch = None
        self._state.clear()

    def _is_finite(self, pl_module: Any) -> bool:
        """Tell whether the loss of the last minibatch is, without a trace in random state."""
        devices = [pl_module.device] if pl_module.device.type == "cuda" else []
        was_training = pl_module.module.training
        with torch.inference_mode(), torch.random.fork_rng(devices):
            pl_module.module.eval()
            try:
                with refused_as_diverged("train_loss", 0, 0):
                    loss = pl_module(self._batch, loss_kwargs=pl_module.loss_kwargs)[2].loss
            except TrainingDivergedError:
                return False
            finally:
                pl_module.module.train(was_training)
        return bool(torch.isfinite(loss))

    def on_exception(self, trainer: Trainer, pl_module: Any, exception: BaseException) -> None:
        """Go back where training diverged."""
        if isinstance(exception, TrainingDivergedError) and self._state:
            pl_module.module.load_state_dict(self._state)
            pl_module.module.eval()
        self._state.clear()

    def _keep(self, pl_module: Any) -> None:
        state = pl_module.module.state_dict()
        self._state = {name: value.detach().clone() for name, value in state.items()}
