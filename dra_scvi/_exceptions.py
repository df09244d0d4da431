"""The errors that dra_scvi raises itself, each naming what went wrong, where, and what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path


class InvalidCountsError(ValueError):
    """The expression matrix does not hold raw counts.

    Parameters
    ----------
    message
        One line for the user.
    report
        The same as data: for each fault a dictionary with its ``"count"`` and the ``"cell"``,
        ``"gene"`` and ``"value"`` of its first entry; empty for faults of the whole matrix.
    """

    def __init__(
        self, message: str, report: Mapping[str, Mapping[str, Any]] | None = None
    ) -> None:
        self.report = dict(report or {})
        super().__init__(message)


class InputError(ValueError):
    """A file or folder that is not read, and why, in a sentence that names it."""


class GeneMismatchError(ValueError):
    """The genes are not those of the model, or not in its order.

    Parameters
    ----------
    message
        One line for the user.
    missing
        Genes of the model that the data lack, in the order of the model.
    unknown
        Genes of the data that the model does not know.
    """

    def __init__(
        self, message: str, missing: Sequence[str] = (), unknown: Sequence[str] = ()
    ) -> None:
        self.missing, self.unknown = tuple(missing), tuple(unknown)
        super().__init__(message)


class UntrustedModelError(ValueError):
    """A saved model would import what no model needs: code may be hidden in it.

    Parameters
    ----------
    message
        One line for the user.
    names
        What the file would import; empty where that cannot be told.
    """

    def __init__(self, message: str, names: Sequence[str] = ()) -> None:
        self.names = tuple(names)
        super().__init__(message)


class TrainingDivergedError(RuntimeError):
    """A term of the training objective became NaN or infinite.

    Parameters
    ----------
    term
        Name of the first non-finite term, as in ``model.history``.
    epoch
        Epoch in which it happened, counted from 0.
    step
        Minibatch within that epoch, counted from 0.
    """

    def __init__(self, term: str, epoch: int, step: int) -> None:
        self.term, self.epoch, self.step = term, epoch, step
        super().__init__(
            f"Training diverged: {term} is not finite in epoch {epoch}, step {step}. "
            "Lower the learning rate (`plan_kwargs={'lr': ...}`, `--learning-rate`), or look for "
            "cells with extreme counts."
        )

    def __reduce__(self) -> tuple[type[TrainingDivergedError], tuple[str, int, int]]:
        return type(self), (self.term, self.epoch, self.step)


class TrainingInterruptedError(RuntimeError):
    """A signal stopped training after a checkpoint had been written.

    Parameters
    ----------
    signum
        Number of the signal.
    epochs
        Epochs finished.
    path
        The checkpoint.
    """

    def __init__(self, signum: int, epochs: int, path: Path) -> None:
        self.signum, self.epochs, self.path = signum, epochs, path
        super().__init__(
            f"Training was interrupted after {epochs} epochs; {path} holds its state. "
            "The same call with `resume=True` (`--resume` on the command line) goes on from there."
        )

    def __reduce__(self) -> tuple[type[TrainingInterruptedError], tuple[int, int, Path]]:
        return type(self), (self.signum, self.epochs, self.path)
