"""ResumablePlan: a training plan that can be stopped, and goes on exactly from there."""

from __future__ import annotations

import contextlib
import random
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scvi.train import TrainingPlan

from dra_scvi._training.checkpoint_check import set_random_state
from dra_scvi._training.diverged import LastGoodState, refused_as_diverged
from dra_scvi._training.processes import failing_together, gathered
from dra_scvi._training.progress import ProgressLines

if TYPE_CHECKING:
    from lightning.pytorch import Callback
    from torch import Tensor

    from dra_scvi._training.interrupts import InterruptCheckpoint


class ResumablePlan(TrainingPlan):
    """A training plan that keeps what is worth keeping when training stops.

    Its checkpoints hold the state of the random generators: training that goes on from one is
    equal, bit by bit on a CPU, to training without a stop. Where training diverges, the module
    is left as it was at the end of the last good epoch. `checkpoint` is the callback that saves:
    scvi-tools' trainer takes such callbacks from a plan only.
    """

    def __init__(
        self, *args: Any, checkpoint: InterruptCheckpoint | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self._checkpoint = checkpoint
        self._state_at_end: dict[str, Any] | None = None

    def configure_callbacks(self) -> list[Callback]:
        """Attach the callbacks that say how it goes, go back and, if there is one, save."""
        saves = [] if self._checkpoint is None else [self._checkpoint]
        return [ProgressLines(), LastGoodState(), *saves]

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Log the loss of a minibatch that is not trained on."""
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
        state = states[self.global_rank if self.global_rank < len(states) else 0]
        _set_random_state(state)
        self._state_at_end = state

    def on_train_epoch_start(self) -> None:
        """Note that something was left to train."""
        self._state_at_end = None

    def on_fit_end(self) -> None:
        """Restore the random state once more where nothing was, and the loader drew in vain."""
        if self._state_at_end is not None:
            _set_random_state(self._state_at_end)


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
    set_random_state(state)
