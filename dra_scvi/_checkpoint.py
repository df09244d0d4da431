"""Interrupted training that goes on exactly where it stopped: what is saved, and when."""

from __future__ import annotations

import random
import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning.pytorch.callbacks import Checkpoint
from scvi.train import TrainingPlan

from dra_scvi._exceptions import TrainingInterruptedError
from dra_scvi._io import atomic_path

if TYPE_CHECKING:
    from types import FrameType

    from lightning.pytorch import Callback, LightningModule, Trainer


class InterruptCheckpoint(Checkpoint):
    """Save training at the end of an epoch: once in a while, and when a signal asks to stop.

    During training it takes over SIGINT and SIGTERM: the epoch under way is finished, the
    checkpoint written, and :class:`~dra_scvi.TrainingInterruptedError` raised. A second signal
    interrupts at once.

    Parameters
    ----------
    path
        Where the checkpoint is written, whole or not at all.
    every_seconds
        How much work a kill without warning may cost, at most, in addition to one epoch.
    """

    def __init__(self, path: str | Path, every_seconds: float = 60.0) -> None:
        self.path = Path(path)
        self.every_seconds = every_seconds
        self.signum: int | None = None
        self._last_save = time.monotonic()
        self._previous: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over the signals, after Lightning has set handlers of its own."""
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM):
                self._previous[signum] = signal.signal(signum, self._request)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the signals back."""
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        self._previous.clear()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Give the signals back."""
        self.on_train_end(trainer, pl_module)

    def _request(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is not None:
            raise KeyboardInterrupt
        self.signum = signum

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save where it is time to, and stop where that was asked for."""
        is_due = time.monotonic() - self._last_save > self.every_seconds
        if self.signum is None and not is_due:
            return
        with atomic_path(self.path) as partial:
            trainer.save_checkpoint(partial)
        self._last_save = time.monotonic()
        if self.signum is not None:
            raise TrainingInterruptedError(self.signum, trainer.current_epoch + 1, self.path)


class ResumablePlan(TrainingPlan):
    """A training plan whose checkpoints hold the state of the random generators.

    Training that goes on from one is equal, bit by bit on a CPU, to training without a stop.

    Parameters
    ----------
    *args
        Arguments of :class:`~scvi.train.TrainingPlan`.
    checkpoint
        Callback that saves; scvi-tools' trainer takes such callbacks from a plan only.
    **kwargs
        Arguments of :class:`~scvi.train.TrainingPlan`.
    """

    def __init__(
        self, *args: Any, checkpoint: InterruptCheckpoint | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self._checkpoint = checkpoint

    def configure_callbacks(self) -> list[Callback]:
        """Attach the callback that saves, if there is one."""
        return [] if self._checkpoint is None else [self._checkpoint]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the random state, in plain types that can be loaded without running code."""
        name, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002
        version, internal, gauss = random.getstate()
        checkpoint["random_state"] = {
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "numpy": (str(name), np.asarray(keys).tolist(), *rest),
            "python": (version, list(internal), gauss),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the random state: here, since the loader's iterator draws from it next."""
        state = checkpoint["random_state"]
        torch.set_rng_state(state["torch"].cpu())
        if state["cuda"]:
            torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda"]])
        name, keys, *rest = state["numpy"]
        np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))  # noqa: NPY002
        version, internal, gauss = state["python"]
        random.setstate((version, tuple(internal), gauss))
