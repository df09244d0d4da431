"""Errors of the command line: one line each, in its own words, and an exit code."""

from __future__ import annotations

import ast
import errno
import os
import re
import select
import shlex
import signal
import sys
import traceback
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

PROGRAM = "dra-scvi"
BUG = 1
SIGNAL_OFFSET = 128

# The first class of an error's ancestry that is named here decides; names, so that an error can
# be told without importing the library it comes from. What the system refuses, as for want of
# permission, room or memory, is 1, and so is any other error, which is a bug.
EXIT_CODES = {
    "UsageError": 2,
    "MisconfigurationException": 2,  # Lightning's, for accelerators that are not there
    "TrainingDivergedError": 70,
    "FileNotFoundError": 66,
    "FileExistsError": 73,
    "InvalidCountsError": 65,
    "KeyError": 65,
    "ValueError": 65,
    "TypeError": 65,
}
REMEDIES = {
    errno.EACCES: "choose a place that you may write to, or change its permissions",
    errno.EPERM: "choose a place that you may write to, or change its permissions",
    errno.EROFS: "choose a place that can be written to",
    errno.ENOSPC: "free some room, or choose another place",
    errno.EDQUOT: "free some room, or choose another place",
    errno.EFBIG: "choose a place without such a limit",
    errno.ENAMETOOLONG: "choose a shorter name",
}
OUT_OF_MEMORY = (
    "not enough memory; leave the counts in their file with --out-of-core, train on fewer genes "
    "with --n-genes, or use a larger machine"
)

# What an argument is called on the command line where that is not its own name.
OTHER_NAMES = {"labels_key": "--label-key", "lr": "--learning-rate", "model_dir": "--model-dir"}
# What is said otherwise on the command line.
PHRASES = {
    "The same call with `resume=True`": "The same command with --resume",
    "(`plan_kwargs={'lr': ...}`)": "(--learning-rate)",
    "(adata.to_memory())": "(--in-memory)",
    "`resume=True`": "--resume",
    "resume=True": "--resume",
    "overwrite=True": "--force",
    "balanced=True": "--balanced",
    "far_quantile=None": "--any-distance",
    "n_clusters to": "the number of clusters to",
    "load it with its AnnData, DRA.load(..., adata=adata)": "name their file with --reference",
    "Can't run Early Stopping with validation monitor with no validation set": (
        "--early-stopping goes by cells that are not trained on, and of so few none is left for "
        "that: leave it out"
    ),
    "use dra_scvi.metrics.clustering instead": "leave out --batch-key",
    "layer=None, that is adata.X": "X, which is read without --layer",
    "; adata.raw.to_adata() makes an AnnData of it": ", which has to become X first",
    "as layer=...": "with --layer",
    "sc.pp.filter_cells(adata, min_counts=1) drops them": "leave them out of INPUT",
    "Call adata.var_names_make_unique() first": "Give every gene a name of its own",
    "adata.obs_names_make_unique() tells them apart": "give every cell a name of its own",
    "adata has": "INPUT has",
    "matrix of (n_cells, n_latent)": "matrix of cells by dimensions",
    "a sparse one; pass embedding.toarray()": "a sparse one",
}
TYPED = "\ue000\ue001"  # around the number of a word that was typed
VALUE = (
    r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|-?\d[\d.e+-]*(?!\w)|None|True|False"""
    r"""|[\[(][^\])]*[\])]"""
)


class Unfinished(Exception):
    """Some outputs are there and others are not; says which, and keeps the exit code.

    Parameters
    ----------
    error
        What went wrong.
    remark
        What is there all the same, and where.
    """

    def __init__(self, error: Exception, remark: str) -> None:
        self.error, self.remark = error, remark
        super().__init__(f"{error}; {remark}")


class Program(click.Group):
    """The group of commands, which turns every error into one line and an exit code."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run a command and exit."""
        kwargs["standalone_mode"] = False
        try:
            code = super().main(*args, **kwargs)
        except SystemExit as end:
            if end.code == BUG and _has_lost_reader():  # of the help; figures see to it themselves
                close_stdout()
                sys.exit(0)
            raise
        except Exception as error:  # noqa: BLE001 - the one place where errors become exit codes
            code = exit_code(error)
            if getattr(error, "is_debugged", False):
                traceback.print_exception(error)
            if is_first_process():
                text = _message(error)
                if not isinstance(error, click.UsageError):  # which is in these words already
                    text = in_options(text, self.commands.values())
                click.echo(f"{PROGRAM}: error: {text}", err=True)
        sys.exit(code if isinstance(code, int) else 0)


def exit_code(error: BaseException) -> int:
    """Tell the exit code of an error.

    Examples
    --------
    >>> exit_code(FileExistsError("out.h5ad")), exit_code(ZeroDivisionError())
    (73, 1)
    """
    if isinstance(error, Unfinished):
        return exit_code(error.error)
    if isinstance(error, click.Abort):
        return SIGNAL_OFFSET + signal.SIGINT
    signum = getattr(error, "signum", None)
    if signum is not None:
        return SIGNAL_OFFSET + signum
    ancestry = [ancestor.__name__ for ancestor in type(error).__mro__]
    return next((EXIT_CODES[name] for name in ancestry if name in EXIT_CODES), BUG)


def in_options(text: str, commands: Iterable[click.Command]) -> str:
    """Say in options of the command line what a message says in arguments of Python.

    Parameters
    ----------
    text
        The message.
    commands
        Whose options to use.

    Examples
    --------
    >>> layer = click.Command("train", params=[click.Option(["--layer"])])
    >>> in_options("layer='count' is not a key of adata.layers; did you mean 'counts'?", [layer])
    "--layer count is not a key of layers; did you mean 'counts'?"
    """
    options = _options(commands)
    # what was typed is shown as it was typed
    typed = [word for word in sys.argv[1:] if "/" in word or "=" in word or word in options]
    for number, word in enumerate(typed):
        whole = rf"(?<!\w){re.escape(word)}(?!\w)"
        text = re.sub(whole, f"{TYPED[0]}{number}{TYPED[1]}", text)
    text = _with_options(text, options)
    for number, word in enumerate(typed):
        text = text.replace(f"{TYPED[0]}{number}{TYPED[1]}", word)
    return text


def _with_options(text: str, options: Mapping[str, str]) -> str:
    for phrase, other in PHRASES.items():
        text = text.replace(phrase, other)
    names = "|".join(sorted(options, key=len, reverse=True))
    several_words = "|".join(name for name in options if "_" in name)
    # in one pass, so that a value, which may have such a name as well, is not replaced once more
    text = re.sub(
        r"--[a-z][a-z0-9-]* \S+"
        rf"|(?<![\w.'\"/`-])(?P<name>{names})=(?P<value>{VALUE})(?![\w/])"
        rf"|(?<![\w.'\"/-])`?(?P<alone>{several_words})`?(?!\.?\w|['\"/=\]-])",
        lambda found: _in_option(found, options),
        text,
    )
    return re.sub(r"\badata\.(?=(?:X|obs|var|obsm|uns|layers|raw)\b)", "", text)


def _in_option(found: re.Match[str], options: Mapping[str, str]) -> str:
    if found["name"]:
        return f"{options[found['name']]} {_shown(found['value'])}"
    return options[found["alone"]] if found["alone"] else found[0]


def is_first_process() -> bool:
    """Whether this is no process that Lightning has started beside another."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def one_line(text: object) -> str:
    """Put a text into one line."""
    return " ".join(str(text).split())


def _options(commands: Iterable[click.Command]) -> Mapping[str, str]:
    """Map names of arguments to options, as long as those of one name are the same."""
    found = {
        option.name: option.opts[-1]
        for command in commands
        for option in command.params
        if isinstance(option, click.Option) and option.name is not None
    }
    return {**found, **OTHER_NAMES}


def _shown(value: str) -> str:
    """Write a value as a shell takes it."""
    try:
        found = ast.literal_eval(value)
    except (SyntaxError, ValueError):  # as 01, which is part of a name
        return value
    if isinstance(found, list | tuple):
        return ",".join(map(str, found))
    text = str(found)
    return text if TYPED[0] in text else shlex.quote(text)


def _message(error: Exception) -> str:
    """Put an error into one line."""
    if isinstance(error, Unfinished):
        return f"{_message(error.error).rstrip('.')}; {one_line(error.remark)}"
    if isinstance(error, click.UsageError):
        path = error.ctx.command_path if error.ctx else PROGRAM
        return f"{one_line(error.format_message())} See {path} --help."
    if isinstance(error, click.ClickException):
        return one_line(error.format_message())
    if isinstance(error, click.Abort):
        return "Interrupted."
    if _is_out_of_memory(error):
        return OUT_OF_MEMORY
    if isinstance(error, OSError) and error.errno and error.filename:
        remedy = REMEDIES.get(error.errno)
        text = f"{error.filename}: {error.strerror}" + (f"; {remedy}" if remedy else "")
        return one_line(text)
    text = one_line(error.args[0] if isinstance(error, KeyError) and error.args else error)
    if exit_code(error) != BUG or isinstance(error, OSError | ImportError):
        return text or type(error).__name__
    return f"{type(error).__name__}: {text} (unexpected; --debug shows where)"


def _is_out_of_memory(error: Exception) -> bool:
    text = str(error)
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and "can't allocate memory" in text)
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
    )


def _has_lost_reader() -> bool:
    """Whether nobody reads standard output any more, as after ``| head``."""
    if not hasattr(select, "poll"):
        return False
    poll = select.poll()
    poll.register(1, select.POLLERR)
    return any(events & select.POLLERR for _, events in poll.poll(0))


def close_stdout() -> None:
    """Let the interpreter, which flushes at its end, find nothing to complain about."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)
