"""What all commands share: common options, streams, signals, threads, and how they score."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import signal
import sys
import threading
import traceback
import warnings
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from dra_scvi._cli_config import config_option

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from types import FrameType

    from anndata import AnnData
    from numpy.typing import NDArray

__all__ = [
    "KEY_ADDED",
    "PATH",
    "PROGRAM",
    "Common",
    "Interrupted",
    "Result",
    "bare",
    "check_labels",
    "clustering",
    "clustering_rows",
    "command",
    "effective_prior",
    "input_argument",
    "is_first_process",
    "one_line",
    "out_of_core_option",
    "output_option",
    "read_or_open",
    "warn",
    "write_cells",
]

PROGRAM = "dra-scvi"
SCHEMA_VERSION = 1
SEED_LIMIT = 2**32 - 1
KEY_ADDED = "X_dra"
MIN_CELLS_TO_SCORE = 3

PATH = click.Path(path_type=Path)


class Interrupted(Exception):
    """A signal ended the command, outside of training or for the second time."""

    def __init__(self, signum: int) -> None:
        self.signum = signum
        super().__init__(f"Interrupted by {signal.Signals(signum).name}.")


class _Terminated(KeyboardInterrupt):
    """SIGTERM, made an exception so that unfinished files are removed on the way out."""


def one_line(text: object) -> str:
    return " ".join(str(text).split())


@contextlib.contextmanager
def _signals_as_errors() -> Iterator[None]:
    """Raise :class:`Interrupted` for both signals, also where Lightning exits for them."""
    is_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, _terminate) if is_main else None
    try:
        yield
    except KeyboardInterrupt as error:
        raise Interrupted(_signum(error)) from error
    except SystemExit as error:
        if not isinstance(error.__context__, KeyboardInterrupt):
            raise
        raise Interrupted(_signum(error.__context__)) from error
    finally:
        if is_main:
            signal.signal(signal.SIGTERM, before)


def _terminate(signum: int, frame: FrameType | None) -> None:
    raise _Terminated


def _signum(error: KeyboardInterrupt) -> int:
    return signal.SIGTERM if isinstance(error, _Terminated) else signal.SIGINT


@contextlib.contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Show this package's own warnings in one line each, and nothing of what others say."""
    seen: set[str] = set()

    def show(
        message: Warning | str, category: type[Warning], filename: str, *_: Any, **__: Any
    ) -> None:
        text = one_line(message)
        is_ours = category is UserWarning and Path(filename).parent == Path(__file__).parent
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


def is_first_process() -> bool:
    """Whether this is no process that Lightning has started beside another."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def warn(text: str) -> None:
    click.echo(f"{PROGRAM}: warning: {text}", err=True)


@dataclass(frozen=True)
class Common:
    """Options that every command takes."""

    seed: int
    threads: int | None
    accelerator: str
    force: bool
    json: str | None
    quiet: bool
    debug: bool

    def say(self, text: str) -> None:
        """Tell how far the work is."""
        if not self.quiet and is_first_process():
            click.echo(text, err=True)

    @property
    def shows_bar(self) -> bool:
        """Whether somebody watches."""
        return not self.quiet and sys.stderr.isatty()

    def check_output(self, path: Path | None) -> None:
        """Check, before any work, that an output can be written."""
        from dra_scvi._files import check_output

        if path is not None:
            check_output(path, self.force)


class Result(NamedTuple):
    """What a command found: all of it for JSON, and one or more tables for people."""

    figures: dict[str, Any]
    title: str = ""
    rows: Sequence[Mapping[str, Any]] = ()
    more: Sequence[tuple[str, Sequence[Mapping[str, Any]]]] = ()


def _common_options() -> list[click.Option]:
    return [
        click.Option(
            ["--seed"],
            type=click.IntRange(0, SEED_LIMIT),
            default=0,
            show_default=True,
            help="Seed of everything random.",
        ),
        click.Option(["--threads"], type=click.IntRange(min=1), help="Most CPU threads to use."),
        click.Option(
            ["--accelerator"],
            default="auto",
            show_default=True,
            help="auto, cpu, gpu, or another that Lightning knows.",
        ),
        click.Option(["--force"], is_flag=True, help="Replace outputs that exist."),
        click.Option(
            ["--json"],
            metavar="PATH|-",
            help="Write the figures as JSON; - writes them, and nothing else, to stdout.",
        ),
        click.Option(["--quiet"], is_flag=True, help="No progress on stderr."),
        click.Option(["--debug"], is_flag=True, help="Show traces and all libraries' messages."),
        config_option(),
    ]


def command(name: str) -> Callable[[Callable[..., Result | None]], click.Command]:
    """Make a command of a function that takes :class:`Common` and returns :class:`Result`.

    Or `None`, where there is nothing to tell.
    """

    def decorate(function: Callable[..., Result | None]) -> click.Command:
        @functools.wraps(function)
        def run(**options: Any) -> None:
            common = Common(**{field.name: options.pop(field.name) for field in fields(Common)})
            with _signals_as_errors():
                with _session(common):
                    if common.json not in (None, "-"):
                        common.check_output(Path(str(common.json)))
                    result = function(common, **options)
                if result is not None:
                    _emit(name, result, common)

        made = click.command(name)(run)
        made.params.extend(_common_options())
        return made

    return decorate


@contextlib.contextmanager
def _session(common: Common) -> Iterator[None]:
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
        try:
            _check_accelerator(common.accelerator)
            yield
        except BaseException:
            if common.debug:
                traceback.print_exc()
            raise


def _check_accelerator(name: str) -> None:
    """Refuse names that Lightning does not know; it tells itself what is not there."""
    if name in ("auto", "cpu", "gpu"):
        return
    from lightning.pytorch.accelerators import AcceleratorRegistry

    known = sorted({"auto", "gpu", *AcceleratorRegistry.available_accelerators()})
    if name not in known:
        raise click.UsageError(f"--accelerator {name}: choose one of {', '.join(known)}.")


def _emit(name: str, result: Result, common: Common) -> None:
    """Write the figures as JSON where that was asked for, and the table to stdout."""
    from importlib.metadata import version

    from dra_scvi._files import write_json

    if common.json is not None:
        header = {"schema_version": SCHEMA_VERSION, "command": name}
        write_json({**header, "version": version("dra_scvi"), **result.figures}, common.json)
    if common.json == "-":
        return
    if common.json is not None:
        common.say(f"wrote {common.json}")
    for title, rows in ((result.title, result.rows), *result.more):
        if rows:
            _print_table(title, rows)


def _print_table(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for name, value in rows[0].items():
        table.add_column(name, justify="right" if isinstance(value, int | float) else "left")
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    Console(file=sys.stdout).print(table, markup=False)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _h5ad(ctx: click.Context, param: click.Parameter, value: Path) -> Path:
    if value.suffix != ".h5ad":
        raise click.BadParameter(f"{str(value)!r} does not end in .h5ad.", ctx, param)
    return value


def input_argument() -> Callable[[Any], Any]:
    return click.argument("input_path", metavar="INPUT", type=PATH)


def output_option() -> Callable[[Any], Any]:
    return click.option(
        "--output",
        type=PATH,
        required=True,
        callback=_h5ad,
        metavar="OUT.h5ad",
        help="Where INPUT is written with its embedding.",
    )


def out_of_core_option() -> Callable[[Any], Any]:
    return click.option(
        "--out-of-core/--in-memory",
        default=None,
        help="Leave the counts in their file; default: where they would fill half of the memory.",
    )


def read_or_open(
    path: Path, layer: str | None, out_of_core: bool | None, common: Common
) -> tuple[AnnData, bool]:
    """Read INPUT, or leave its counts where they are, and say which."""
    from dra_scvi._io import read_input
    from dra_scvi._out_of_core import open_stored, stays_in_file

    if not stays_in_file(path, out_of_core):
        return read_input(path), False
    common.say(f"counts stay in {path}")
    return open_stored(path, layer), True


def write_cells(adata: AnnData, path: Path, source: Path | None, common: Common) -> None:
    """Write INPUT with what was added to it; of `source`, where its counts are still there."""
    from dra_scvi._files import write_h5ad
    from dra_scvi._out_of_core import write_copy

    if source is None:
        write_h5ad(adata, path)
    else:
        write_copy(source, adata, path)
    common.say(f"wrote {path}")


def check_labels(adata: AnnData, label_key: str | None) -> None:
    """Check that cells can be scored against a column of labels."""
    if label_key is None:
        return
    from dra_scvi._validation import validate_keys

    validate_keys(adata, obs_keys={"label_key": label_key})
    missing = int(adata.obs[label_key].isna().sum())
    if missing:
        raise ValueError(
            f"label_key={label_key!r}: {missing} of {adata.n_obs} cells have no label; drop these "
            "cells, or give them a label of their own such as 'unknown'."
        )
    if adata.n_obs < MIN_CELLS_TO_SCORE:
        raise ValueError(
            f"{adata.n_obs} cells cannot be clustered; at least {MIN_CELLS_TO_SCORE} are needed."
        )


def clustering(embedding: NDArray[Any], labels: Any, seed: int) -> dict[str, dict[str, Any]]:
    """Score k-means, which is told the number of labels, and Leiden, which is not."""
    from dra_scvi import metrics

    return {
        "kmeans": metrics.clustering(embedding, labels, "kmeans", seed=seed),
        "leiden": metrics.clustering(embedding, labels, "leiden", seed=seed),
    }


def clustering_rows(scores: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    titles = {"kmeans": "k-means", "leiden": "Leiden"}
    return [
        {
            "clustering": title,
            "NMI": scores[method]["nmi"],
            "ARI": scores[method]["ari"],
            "silhouette": scores[method].get("silhouette"),
            "clusters": scores[method]["n_clusters"],
        }
        for method, title in titles.items()
    ]


def effective_prior(settings: Mapping[str, Any]) -> str:
    """Name the prior of a model from its arguments, where `None` is the model's own choice."""
    from dra_scvi._priors import default_prior

    return settings["prior"] or default_prior(settings.get("latent_distribution", "normal"))


def bare(adata: AnnData, layer: str | None, columns: Sequence[str]) -> AnnData:
    """Share the counts and copy some columns, so that training leaves no trace in `adata`."""
    import anndata
    import pandas as pd

    return anndata.AnnData(
        X=None if layer else adata.X,
        obs=adata.obs[list(columns)].copy(),
        var=pd.DataFrame(index=adata.var_names),
        layers={layer: adata.layers[layer]} if layer else {},
    )
