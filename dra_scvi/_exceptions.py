"""The errors that dra_scvi raises itself, each naming what went wrong, where, and what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

DETAIL_LENGTH = 160


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
            "Lower the learning rate (`plan_kwargs={'lr': ...}`), or look for "
            "cells with extreme counts."
        )

    def __reduce__(self) -> tuple[type[TrainingDivergedError], tuple[str, int, int]]:
        return type(self), (self.term, self.epoch, self.step)


class TrainingInterruptedError(RuntimeError):
    """A signal stopped training after its state had been written, or could not be.

    Parameters
    ----------
    signum
        Number of the signal.
    epochs
        Epochs finished.
    path
        The checkpoint.
    problem
        Why the checkpoint could not be written; `None` where it was.
    """

    def __init__(self, signum: int, epochs: int, path: Path, problem: str | None = None) -> None:
        self.signum, self.epochs, self.path, self.problem = signum, epochs, path, problem
        again = "The same call with `resume=True`"
        if problem is None:
            end = f"{path} holds its state. {again} goes on from there."
        elif path.is_file():
            end = (
                f"its state could not be written ({problem}), and {path} holds that of an earlier "
                f"epoch. {again} goes on from there."
            )
        else:
            end = f"its state could not be written to {path} ({problem}) and is lost."
        super().__init__(
            f"Training was interrupted after {epochs} epoch{'s' * (epochs != 1)}; {end}"
        )

    def __reduce__(
        self,
    ) -> tuple[type[TrainingInterruptedError], tuple[int, int, Path, str | None]]:
        return type(self), (self.signum, self.epochs, self.path, self.problem)


def message_of(error: BaseException) -> str:
    """Return what an error says, without the quotation marks of a :class:`KeyError`."""
    return str(error.args[0] if error.args else error).strip()


def first_line(error: BaseException) -> str:
    r"""Shorten an error to its kind and the beginning of its first line.

    >>> first_line(KeyError("no such gene\nnor any other"))
    'KeyError: no such gene'
    """
    text = next(iter(message_of(error).splitlines()), "")
    short = text if len(text) <= DETAIL_LENGTH else text[:DETAIL_LENGTH] + "..."
    return f"{type(error).__name__}: {short}" if short else type(error).__name__
