"""What training says of itself: how it is set up, and how far it has come."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from lightning.pytorch.callbacks import Callback

from dra_scvi._data.columns import counted

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

logger = logging.getLogger("dra_scvi")


class ProgressLines(Callback):
    """Logs the settings of training at its start and, where no bar is shown, its progress.

    The time to the next line about the progress doubles, up to `MOST_SECONDS`.
    """

    MOST_SECONDS = 120.0

    def __init__(self, first_seconds: float = 10.0) -> None:
        self._wait = first_seconds
        self._first_epoch = 0
        self._start = self._last = 0.0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what was chosen: epochs, device, learning rates."""
        rates = [f"learning rate {getattr(pl_module, 'lr', float('nan')):g}"]
        discriminator_lr = getattr(pl_module, "discriminator_lr", None)
        if discriminator_lr is not None:
            rates.append(f"of the discriminators {discriminator_lr:g}")
        device = trainer.strategy.root_device
        length = counted(_epochs(trainer), "epoch", "epochs")
        logger.info("Training for %s on %s, %s.", length, device, ", ".join(rates))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._first_epoch = trainer.current_epoch
        self._start = self._last = time.monotonic()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say how far training is, once in a while; the last epoch's metrics are known by now."""
        now = time.monotonic()
        done = trainer.current_epoch - self._first_epoch
        if not done or now - self._last < self._wait or _has_bar(trainer):
            return
        self._last, self._wait = now, min(2 * self._wait, self.MOST_SECONDS)
        pace = (now - self._start) / done
        left = pace * (_epochs(trainer) - trainer.current_epoch)
        loss = trainer.callback_metrics.get("train_loss")
        logger.info(
            "Epoch %d of %d done: %s%s an epoch, %s left.",
            trainer.current_epoch,
            _epochs(trainer),
            "" if loss is None else f"loss {float(loss):.1f}, ",
            duration(pace),
            duration(left),
        )

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say where early stopping has ended training, also one that went on when it had ended."""
        watch = trainer.early_stopping_callback
        if watch is not None and has_stopped_early(trainer):
            logger.info(
                "Training stopped early, after %d of %d epochs: %s had not improved for %d.",
                *(trainer.current_epoch, _epochs(trainer), watch.monitor, watch.wait_count),
            )

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """End the bar, so that what is said next has a line of its own."""
        bar = getattr(trainer.progress_bar_callback, "main_progress_bar", None)
        if bar is not None:
            bar.close()


def has_stopped_early(trainer: Trainer) -> bool:
    """Whether early stopping has ended a training before its last epoch."""
    return trainer.early_stopping_callback is not None and trainer.current_epoch < _epochs(trainer)


def duration(seconds: float) -> str:
    """Write a time in the unit that suits it.

    >>> [duration(seconds) for seconds in (0.25, 42, 600, 20_000)]
    ['0.2 s', '42 s', '10 min', '5.6 h']
    """
    if seconds < 120:
        return f"{seconds:.{0 if seconds >= 10 else 1}f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7_200 else f"{seconds / 3_600:.1f} h"


def _epochs(trainer: Trainer) -> int:
    return trainer.max_epochs or 0


def _has_bar(trainer: Trainer) -> bool:
    return bool(getattr(trainer.progress_bar_callback, "is_enabled", False))
