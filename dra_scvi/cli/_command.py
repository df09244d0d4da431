"""A command: what each does around its work, with streams, signals, threads and errors."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import signal
import sys
import threading
import warnings
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dra_scvi.cli._config import CONFIG, config_option
from dra_scvi.cli._errors import PROGRAM, in_options, is_first_process, one_line
from dra_scvi.cli._help import Command
from dra_scvi.cli._options import common_options
from dra_scvi.cli._result import Result, finish

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from types import FrameType

    from dra_scvi._outputs.rehearsal import Kind

PACKAGE = Path(__file__).parents[1]


@dataclass(frozen=True)
class Common:
    """Options that every command takes."""

    seed: int
    threads: int | None
    accelerator: str
    force: bool
    json: Path | None
    quiet: bool
    debug: bool

    def say(self, text: str) -> None:
        """Tell how far the work is."""
        if not self.quiet and is_first_process():
            _tell(one_line(text))

    @property
    def shows_bar(self) -> bool:
        """Whether somebody watches."""
        return not self.quiet and sys.stderr is not None and sys.stderr.isatty()

    def rehearse(
        self, inputs: Mapping[str, Path | None], *outputs: tuple[str, Path | None, Kind]
    ) -> None:
        """Check, before any work, that everything can be written; make missing folders.

        Inputs and outputs are named by their options; those not asked for are `None`. Folders in
        which nothing comes to lie are removed when the command ends.
        """
        from dra_scvi._outputs.rehearsal import Output, rehearse, remove_empty

        context = click.get_current_context()
        read = {**inputs, "--config": context.meta.get(CONFIG)}
        json = None if str(self.json) == "-" else self.json
        written = [*outputs, ("--json", json, "file")]
        made = rehearse(
            [Output(option, path, kind) for option, path, kind in written if path is not None],
            {name: path for name, path in read.items() if path is not None},
            self.force,
        )
        context.call_on_close(lambda: remove_empty(made))


def command(name: str) -> Callable[[Callable[..., Result | None]], click.Command]:
    """Make a command of a function that takes :class:`Common` and returns :class:`Result`.

    Or `None`, where there is nothing to tell.
    """

    def decorate(function: Callable[..., Result | None]) -> click.Command:
        @functools.wraps(function)
        def run(**options: Any) -> None:
            common = Common(**{field.name: options.pop(field.name) for field in fields(Common)})
            try:
                with _signals_as_errors():
                    with _surroundings(common):
                        result = function(common, **options)
                    if result is not None:
                        finish(name, result, common)
            except Exception as error:
                error.is_debugged = common.debug  # type: ignore[attr-defined]
                raise

        made = click.command(name, cls=Command, context_settings={"show_default": True})(run)
        made.params += [*common_options(), config_option()]
        return made

    return decorate


@contextlib.contextmanager
def _surroundings(common: Common) -> Iterator[None]:
    """Keep stdout for results, libraries silent, and threads within their number."""
    with contextlib.ExitStack() as stack:
        # scvi-tools prints there; Lightning's bar is the one thing worth seeing
        shown = common.debug or common.shows_bar
        chatter = sys.stderr if shown else stack.enter_context(Path(os.devnull).open("w"))
        stack.enter_context(contextlib.redirect_stdout(chatter))
        if not common.debug:
            stack.enter_context(_quiet_libraries())
        if not common.quiet:
            stack.enter_context(_own_log(common))
        if common.threads is not None:
            from dra_scvi._threads import own_threads

            stack.enter_context(own_threads(common.threads))
        _check_accelerator(common.accelerator)
        yield


def _check_accelerator(name: str) -> None:
    """Refuse names that Lightning does not know, and what is not there."""
    if name in ("auto", "cpu"):
        return
    from lightning.pytorch.accelerators import AcceleratorRegistry

    known = {key: AcceleratorRegistry[key]["accelerator"] for key in AcceleratorRegistry}
    choices = sorted({"auto", "gpu", *known})
    if name not in choices:
        raise click.UsageError(f"--accelerator {name}: choose one of {', '.join(choices)}.")
    there = [key for key, accelerator in known.items() if accelerator.is_available()]
    if name not in there and (name != "gpu" or not {"cuda", "mps"}.intersection(there)):
        raise click.UsageError(
            f"--accelerator {name}: there is none here; choose one of auto, {', '.join(there)}."
        )


# -- what is told --------------------------------------------------------------------------------


def warn(text: str) -> None:
    """Say that something may be wrong."""
    _tell(f"{PROGRAM}: warning: {text}")


def _tell(text: str) -> None:
    """Write a line to stderr in the words of the command; that nobody reads it stops no work."""
    context = click.get_current_context(silent=True)
    with contextlib.suppress(BrokenPipeError):
        click.echo(in_options(text, [context.command] if context else []), err=True)


@contextlib.contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Show this package's own warnings in one line each, and nothing of what others say."""
    seen: set[str] = set()

    def show(
        message: Warning | str, category: type[Warning], filename: str, *_: Any, **__: Any
    ) -> None:
        text = one_line(message)
        is_ours = category is UserWarning and Path(filename).is_relative_to(PACKAGE)
        if is_ours and text not in seen:
            seen.add(text)
            warn(text)

    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            warnings.showwarning = show
            yield
    finally:
        logging.disable(level)


@contextlib.contextmanager
def _own_log(common: Common) -> Iterator[None]:
    """Say on stderr what this package logs, also while other libraries are kept silent."""
    logger = logging.getLogger("dra_scvi")
    handler, level, propagate = _Lines(common), logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    # logging.disable, which silences the others, would silence this one too
    logger.isEnabledFor = lambda level: level >= logger.level  # type: ignore[method-assign]
    try:
        yield
    finally:
        del logger.isEnabledFor
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


class _Lines(logging.Handler):
    """Says what this package logs, a line each, and each line once."""

    def __init__(self, common: Common) -> None:
        super().__init__(logging.INFO)
        self.common = common
        self.seen: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """Write a message in the manner of the other lines."""
        text = one_line(record.getMessage())
        if text in self.seen:
            return
        self.seen.add(text)
        if record.levelno >= logging.WARNING:
            warn(text)
        else:
            self.common.say(text[:1].lower() + text[1:].rstrip("."))


# -- signals -------------------------------------------------------------------------------------


class Interrupted(Exception):
    """A signal ended the command, outside of training or for the second time."""

    def __init__(self, signum: int, remark: str = "") -> None:
        self.signum = signum
        end = f"; {remark}" if remark else "."
        super().__init__(f"Interrupted by {signal.Signals(signum).name}{end}")


class _Terminated(KeyboardInterrupt):
    """SIGTERM, made an exception so that unfinished files are removed on the way out."""

    signum = signal.SIGTERM


def _terminate(signum: int, frame: FrameType | None) -> None:
    raise _Terminated


@contextlib.contextmanager
def _signals_as_errors() -> Iterator[None]:
    """Raise :class:`Interrupted` for both signals, also where Lightning exits for them."""
    is_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, _terminate) if is_main else None
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as error:
        cause = error.__context__ if isinstance(error, SystemExit) else error
        if not isinstance(cause, KeyboardInterrupt):
            raise
        raise Interrupted(getattr(cause, "signum", signal.SIGINT), *cause.args) from error
    finally:
        if is_main:
            signal.signal(signal.SIGTERM, before)
