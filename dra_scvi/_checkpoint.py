"""Training that stops: what is kept of it, when, and how it goes on exactly from there."""

from __future__ import annotations

import contextlib
import random
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning.pytorch.callbacks import Checkpoint
from scvi.train import TrainingPlan

from dra_scvi._distributed import failing_together, gathered, highest
from dra_scvi._exceptions import TrainingDivergedError, TrainingInterruptedError
from dra_scvi._files import atomic_path
from dra_scvi._progress import ProgressLines

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    from lightning.pytorch import Callback, LightningModule, Trainer
    from torch import Tensor


@contextlib.contextmanager
def refused_as_diverged(term: str, epoch: int, step: int) -> Iterator[None]:
    """Turn the refusal to build a distribution from NaN or infinity into what it means.

    Raises
    ------
    TrainingDivergedError
        In place of the `ValueError` of :mod:`torch.distributions`.
    """
    try:
        yield
    except ValueError as error:
        if "to satisfy the constraint" not in str(error):
            raise
        raise TrainingDivergedError(term, epoch, step) from error


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
        # what one process was told, or is due for, all do
        signum = highest(self.signum or 0, trainer)
        is_due = highest(time.monotonic() - self._last_save > self.every_seconds, trainer)
        if not signum and not is_due:
            return
        writes = trainer.is_global_zero
        with atomic_path(self.path) if writes else contextlib.nullcontext(self.path) as partial:
            trainer.save_checkpoint(partial)
        self._last_save = time.monotonic()
        if signum:
            raise TrainingInterruptedError(signum, trainer.current_epoch + 1, self.path)


def check_checkpoint(path: Path, module: torch.nn.Module) -> None:
    """Check that training can go on from a checkpoint.

    Parameters
    ----------
    path
        The checkpoint.
    module
        What is to be trained.

    Raises
    ------
    ValueError
        When it is damaged, or of a training with other networks or other genes.
    """
    remedy = "delete it to start from the beginning"
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    except Exception as error:
        raise ValueError(f"{path} is corrupt or truncated; {remedy}.") from error
    expected = {f"module.{name}": value.shape for name, value in module.state_dict().items()}
    if expected != {n: v.shape for n, v in saved.items() if n.startswith("module.")}:
        raise ValueError(
            f"{path} is of a training with other settings, genes or batches; repeat those, or "
            f"{remedy}."
        )


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
        """Keep the epoch, unless its last step went wrong, which no term has shown yet.

        Raises
        ------
        TrainingDivergedError
            When a weight, or the loss of the validation cells, is not finite.
        """
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
        """Look at what the last step has led to.

        Raises
        ------
        TrainingDivergedError
            When the loss of the last minibatch is no longer finite.
        """
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


class _WithoutRemark:
    """Standard output without the line in which scvi-tools repeats what is raised."""

    REMARK = "Exception raised during training."

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._is_remark = False

    def write(self, text: str) -> int:
        if text == self.REMARK:
            self._is_remark = True
        if not self._is_remark:
            return self._stream.write(text)
        self._is_remark = not text.endswith("\n")
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let errors and interrupts out of the trainers as they are.

    Lightning ends the interpreter for a KeyboardInterrupt and has the process ignore the next
    ones; scvi-tools prints every error.
    """
    is_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT)
    try:
        with contextlib.redirect_stdout(_WithoutRemark(sys.stdout)):
            yield
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise error.__context__ from None
        raise
    finally:
        if is_main and handler is not None:
            signal.signal(signal.SIGINT, handler)


class ResumablePlan(TrainingPlan):
    """A training plan that keeps what is worth keeping when training stops.

    Its checkpoints hold the state of the random generators: training that goes on from one is
    equal, bit by bit on a CPU, to training without a stop. Where training diverges, the module
    is left as it was at the end of the last good epoch.

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
        """Attach the callbacks that say how it goes, go back and, if there is one, save."""
        saves = [] if self._checkpoint is None else [self._checkpoint]
        return [ProgressLines(), LastGoodState(), *saves]

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Log the loss of a minibatch that is not trained on.

        Raises
        ------
        TrainingDivergedError
            When no distribution can be built for it.
        """
        diverged = refused_as_diverged("validation_loss", self.current_epoch, batch_idx)
        with self.together(), diverged:
            super().validation_step(batch, batch_idx)

    def together(self) -> contextlib.AbstractContextManager[None]:
        """Let processes fail together, where asking after each other does not stall a device."""
        if self._trainer is None or self.device.type != "cpu":
            return contextlib.nullcontext()
        return failing_together(self._trainer)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the random state of every process."""
        checkpoint["random_state"], *others = gathered(_random_state(), self.trainer)
        checkpoint["random_states_of_others"] = others

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the random state: here, since the loader's iterator draws from it next."""
        states = [checkpoint["random_state"], *checkpoint.get("random_states_of_others", [])]
        # one that was not there before takes the first one's, and differs from it by its cells
        _set_random_state(states[self.global_rank if self.global_rank < len(states) else 0])


def _random_state() -> dict[str, Any]:
    """Collect the random state, in plain types that can be loaded without running code."""
    name, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002
    version, internal, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": (str(name), np.asarray(keys).tolist(), *rest),
        "python": (version, list(internal), gauss),
    }


def _set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"]:
        torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda"]])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))  # noqa: NPY002
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
