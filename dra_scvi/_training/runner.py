"""One training at a time in a process: turns, seeds, and errors that come out as they are."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scvi import settings
from scvi.train import TrainRunner

from dra_scvi._training.checkpoint import with_plain_checkpoints

if TYPE_CHECKING:
    from collections.abc import Iterator

# Trainings of several threads take turns: torch's default generator, scvi-tools' seed and the
# filters of warnings, which scvi-tools sets for the time of a training, are the whole process'.
TURNS = threading.RLock()
# what scvi-tools and Lightning set in the environment along with a seed
SEED_VARIABLES = ("PL_GLOBAL_SEED", "PL_SEED_WORKERS", "XLA_FLAGS")


class QuietRunner(TrainRunner):
    """scvi-tools' runner, without the line on standard output in which it repeats every error.

    Checkpoints that training goes on from are read without running code that they name.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if kwargs.get("ckpt_path") is not None:
            kwargs["plugins"] = with_plain_checkpoints(kwargs.get("plugins"))
        super().__init__(*args, **kwargs)

    def __call__(self) -> None:
        """Run training."""
        self._handled_before = sys.exception()
        super().__call__()

    def _update_history(self) -> None:
        """Keep the history and, where training has failed, raise at once what it failed with."""
        goes_on = self.model.is_trained_ and isinstance(self.model.history_, dict)
        if goes_on or not self.model.is_trained_:
            super()._update_history()
        else:  # scvi-tools warns, and keeps nothing, where nothing was kept before
            self.model.is_trained_ = False
            super()._update_history()
            self.model.is_trained_ = True
        error = sys.exception()
        if error is not None and error is not self._handled_before:
            raise error


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let errors and interrupts out of the trainers as they are.

    Lightning ends the interpreter for a KeyboardInterrupt, and has the process ignore the next
    ones.
    """
    is_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise error.__context__ from None
        raise
    finally:
        if is_main and handler is not None:
            signal.signal(signal.SIGINT, handler)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed all generators, and scvi-tools' split, for the time of a block.

    Everything that scvi-tools' seed is wired to is put back: generators, environment, cuDNN. They
    are the whole process': blocks in several threads take turns.
    """
    cudnn = torch.backends.cudnn
    with TURNS, torch.random.fork_rng(enabled=True):
        before = settings.seed, cudnn.deterministic, cudnn.benchmark
        python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
        environment = {name: os.environ.get(name) for name in SEED_VARIABLES}
        try:
            settings.seed = int(seed)
            yield
        finally:
            settings.seed, cudnn.deterministic, cudnn.benchmark = before
            random.setstate(python_state)
            np.random.set_state(numpy_state)  # noqa: NPY002
            for name, value in environment.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value
