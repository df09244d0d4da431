"""When the state of a training is kept: now and then, when a signal asks to stop, at the end."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from lightning.pytorch.callbacks import Checkpoint

from dra_scvi._exceptions import TrainingInterruptedError
from dra_scvi._outputs.files import atomic_path
from dra_scvi._training.checkpoint import CheckpointFile, is_checkpoint
from dra_scvi._training.checkpoint_check import check_optimizers
from dra_scvi._training.identity import training_identity
from dra_scvi._training.processes import highest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import FrameType

    from lightning.pytorch import LightningModule, Trainer

    from dra_scvi._model.dra import DRA


SIGNALS = (signal.SIGINT, signal.SIGTERM)


class InterruptCheckpoint(Checkpoint):
    """Save training at the end of an epoch: once in a while, when a signal asks to, and the last.

    During training SIGINT and SIGTERM let the epoch under way be finished, the checkpoint be
    written, and :class:`~dra_scvi.TrainingInterruptedError` be raised. A second signal interrupts
    at once, as does one that comes after the last epoch, whose checkpoint is there. A kill without
    warning costs at most `every_seconds` of work, and one epoch.
    """

    def __init__(self, path: str | Path, every_seconds: float = 60.0) -> None:
        self.file = CheckpointFile(path)
        self.path = self.file.path
        self.every_seconds = every_seconds
        self.signum: int | None = None
        self.owner: tuple[DRA, int | None] | None = None
        self._is_training = False
        self._is_complete = False
        self._n_optimizers = 0  # in the file
        self._epochs: int | None = None  # once they are all done and saved
        self._last_save = time.monotonic()
        self._previous: dict[int, Any] = {}

    # -- signals -----------------------------------------------------------------------------

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """Answer SIGINT and SIGTERM for the time of a block, in the thread that they come to.

        Lightning puts them back to what they were when its part is done, which is what is set
        here.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._previous = {signum: signal.getsignal(signum) for signum in SIGNALS}
        self._take()
        try:
            yield
        finally:
            self._give_back()

    def _take(self) -> None:
        for signum in self._previous:
            signal.signal(signum, self._answer)

    def _give_back(self) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        self._previous = {}

    def _answer(self, signum: int, frame: FrameType | None) -> None:
        if self._epochs is not None:
            raise self._interruption(signum, self._epochs)
        if not self._is_training:
            self._give_back()
            signal.raise_signal(signum)
        elif self.signum is not None:
            raise KeyboardInterrupt
        else:
            self.signum = signum

    def _interruption(self, signum: int, epochs: int) -> TrainingInterruptedError:
        problem = None if self.file.problem is None else str(self.file.problem)
        return TrainingInterruptedError(signum, epochs, self.path, problem)

    # -- training ----------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Note what training this is: what a checkpoint has to be of, to go on from it."""
        if self.owner is not None:
            model, seed = self.owner
            self.file.identity = training_identity(model, pl_module, trainer, seed)
            self.file.form = {
                "state_dict": pl_module.state_dict(),
                "loops": {"fit_loop": trainer.fit_loop.state_dict()},
            }

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over the signals, after Lightning has set handlers of its own."""
        self._take()
        self._is_training = True
        if self.file.is_restoring:
            check_optimizers(self._n_optimizers, trainer.optimizers)
        self.file.is_restoring = False
        self.file.form = {}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save where it is time to, and stop where that was asked for."""
        # what one process was told, or is due for, all do
        signum = highest(self.signum or 0, trainer)
        is_due = highest(time.monotonic() - self._last_save > self.every_seconds, trainer)
        if signum or is_due:
            trainer.save_checkpoint(self.path)
            self._last_save = time.monotonic()
        if signum:
            raise self._interruption(signum, trainer.current_epoch + 1)
        if is_due:
            self._warn()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the last epoch: what follows training can be interrupted, and can fail."""
        self._is_complete = True
        trainer.save_checkpoint(self.path)
        self._epochs = trainer.current_epoch  # from here on there is nothing to wait for
        self._is_training = False
        self._warn()
        signum = highest(self.signum or 0, trainer)
        if signum:  # it came after the end of the last epoch
            raise self._interruption(signum, self._epochs)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Leave signals to those who had them before."""
        self._is_training = False

    def _warn(self) -> None:
        if self.file.problem is not None:
            warnings.warn(
                f"the state of training could not be written to {self.path} "
                f"({self.file.problem}); training goes on without",
                stacklevel=2,
            )

    # -- what is saved besides ---------------------------------------------------------------

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the history, and whether training is complete: early stopping may have ended it."""
        checkpoint["is_complete"] = self._is_complete
        checkpoint["history"] = _history(trainer)

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Restore the history, and train no further what is complete."""
        trainer.should_stop = checkpoint["is_complete"]
        self._n_optimizers = len(checkpoint["optimizer_states"])
        frames = getattr(trainer.logger, "history", None)
        if frames is None or not trainer.is_global_zero:
            return
        for name, (unit, places, values) in checkpoint["history"].items():
            index = pd.Index(places, name=unit)
            frames[name] = pd.DataFrame({name: np.array(values, dtype=object)}, index=index)


def _history(trainer: Trainer) -> dict[str, tuple[str, list[int], list[float]]]:
    """Return what was logged so far, with the epoch that ends now, which is logged only later."""
    if not trainer.is_global_zero:
        return {}  # the first process logs, and writes the checkpoint
    found = {
        name: (str(frame.index.name), frame.index.tolist(), frame[name].tolist())
        for name, frame in (getattr(trainer.logger, "history", None) or {}).items()
    }
    epoch = trainer.current_epoch
    for name, value in trainer.logged_metrics.items():
        unit, places, values = found.get(name, ("epoch", [], []))
        is_of_training = "validation" not in name and unit == "epoch"
        if is_of_training and trainer.training and epoch not in places:
            found[name] = (unit, [*places, epoch], [*values, float(value)])
    return found


def check_place(path: Path) -> None:
    """Check, before any work, that a checkpoint can be written, and over nothing else."""
    if path.is_dir():
        raise IsADirectoryError(f"checkpoint={str(path)!r} is a folder; name a file in it.")
    if path.exists() and not (path.is_file() and is_checkpoint(path)):
        raise ValueError(
            f"checkpoint={str(path)!r} is a file of another kind, or of an earlier version, and "
            "would be replaced: delete it, or choose another name."
        )
    try:
        with contextlib.suppress(_Tried), atomic_path(path) as partial:
            partial.touch()
            raise _Tried
    except OSError as error:
        if error.errno is None:  # it says what is missing
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


class _Tried(Exception):
    """Ends an attempt to write, so that nothing is left of it."""
