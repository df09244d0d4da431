"""The command line: its options, what goes to which stream, and the exit codes."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import logging
import os
import shutil
import signal
import sys
import threading
import traceback
import uuid
import warnings
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from types import FrameType

    from anndata import AnnData
    from numpy.typing import NDArray

    from dra_scvi._model import DRA

__all__ = ["main", "program"]

PROGRAM = "dra-scvi"
SCHEMA_VERSION = 1
BUG = 1

# The first class of an error's ancestry that is named here decides; names, so that an error can
# be told without importing the library it comes from. Any other error is a bug.
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
SIGNAL_OFFSET = 128

SEED_LIMIT = 2**32 - 1
KEY_ADDED = "X_dra"
PUBLISHED_DIMENSIONS = (2, 10, 20)
MIN_CELLS_TO_SCORE = 3
GENES_SHOWN = 5

PATH = click.Path(path_type=Path)


# -- streams, signals and exit codes -----------------------------------------------------------


class Interrupted(Exception):
    """A signal ended the command, outside of training or for the second time."""

    def __init__(self, signum: int) -> None:
        self.signum = signum
        super().__init__(f"Interrupted by {signal.Signals(signum).name}.")


class _Terminated(KeyboardInterrupt):
    """SIGTERM, made an exception so that unfinished files are removed on the way out."""


class Program(click.Group):
    """The group of commands, which turns every error into one line and an exit code."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run a command and exit."""
        kwargs["standalone_mode"] = False
        try:
            code = super().main(*args, **kwargs)
        except Exception as error:  # noqa: BLE001 - the one place where errors become exit codes
            code = exit_code(error)
            click.echo(f"{PROGRAM}: error: {_message(error)}", err=True)
        sys.exit(code if isinstance(code, int) else 0)


def exit_code(error: BaseException) -> int:
    """Tell the exit code of an error.

    Examples
    --------
    >>> exit_code(FileExistsError("out.h5ad")), exit_code(ZeroDivisionError())
    (73, 1)
    """
    if isinstance(error, click.Abort):
        return SIGNAL_OFFSET + signal.SIGINT
    signum = getattr(error, "signum", None)
    if signum is not None:
        return SIGNAL_OFFSET + signum
    ancestry = [ancestor.__name__ for ancestor in type(error).__mro__]
    return next((EXIT_CODES[name] for name in ancestry if name in EXIT_CODES), BUG)


def _message(error: Exception) -> str:
    """Put an error into one line."""
    if isinstance(error, click.UsageError):
        command = error.ctx.command_path if error.ctx else PROGRAM
        return f"{_one_line(error.format_message())} See {command} --help."
    if isinstance(error, click.ClickException):
        return _one_line(error.format_message())
    if isinstance(error, click.Abort):
        return "Interrupted."
    text = _one_line(error.args[0] if isinstance(error, KeyError) and error.args else error)
    if exit_code(error) != BUG or isinstance(error, OSError):
        return text or type(error).__name__
    return f"{type(error).__name__}: {text} (unexpected; --debug shows where)"


def _one_line(text: object) -> str:
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
        text = _one_line(message)
        is_ours = category is UserWarning and Path(filename).parent == Path(__file__).parent
        if is_ours and text not in seen:
            seen.add(text)
            _warn(text)

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
def _limited_threads(threads: int) -> Iterator[None]:
    """Limit PyTorch, the BLAS libraries and numba."""
    import numba
    import torch
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads(), numba.get_num_threads()
    torch.set_num_threads(threads)
    numba.set_num_threads(min(threads, before[1]))
    try:
        with threadpool_limits(threads):
            yield
    finally:
        torch.set_num_threads(before[0])
        numba.set_num_threads(before[1])


def _warn(text: str) -> None:
    click.echo(f"{PROGRAM}: warning: {text}", err=True)


# -- what all commands share -------------------------------------------------------------------


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
        if not self.quiet:
            click.echo(text, err=True)

    @property
    def shows_bar(self) -> bool:
        """Whether somebody watches."""
        return not self.quiet and sys.stderr.isatty()

    def check_output(self, path: Path | None) -> None:
        """Check, before any work, that an output can be written."""
        from dra_scvi._io import check_output

        if path is not None:
            check_output(path, self.force)


class Result(NamedTuple):
    """What a command found: all of it for JSON, and the table for people."""

    figures: dict[str, Any]
    title: str = ""
    rows: Sequence[Mapping[str, Any]] = ()


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
    ]


def _command(name: str) -> Callable[[Callable[..., Result]], click.Command]:
    """Make a command of a function that takes :class:`Common` and returns :class:`Result`."""

    def decorate(function: Callable[..., Result]) -> click.Command:
        @functools.wraps(function)
        def run(**options: Any) -> None:
            common = Common(**{field.name: options.pop(field.name) for field in fields(Common)})
            with _signals_as_errors():
                with _session(common):
                    if common.json not in (None, "-"):
                        common.check_output(Path(str(common.json)))
                    result = function(common, **options)
                _emit(name, result, common)

        command = program.command(name)(run)
        command.params.extend(_common_options())
        return command

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
        if common.threads is not None:
            stack.enter_context(_limited_threads(common.threads))
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

    from dra_scvi._io import write_json

    if common.json is not None:
        header = {"schema_version": SCHEMA_VERSION, "command": name}
        write_json({**header, "version": version("dra_scvi"), **result.figures}, common.json)
    if common.json == "-":
        return
    if common.json is not None:
        common.say(f"wrote {common.json}")
    if result.rows:
        _print_table(result.title, result.rows)


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


@contextlib.contextmanager
def _atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a hidden sibling folder whose files take their place once all of them are complete.

    Files of the same name in a folder that exists are replaced, others left alone.
    """
    path = path.resolve()
    unique = f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
    temporary = path.with_name(f".{unique}-{path.name}")
    temporary.mkdir()
    try:
        yield temporary
        if path.exists():
            for file in sorted(temporary.iterdir()):
                file.replace(path / file.name)
        else:
            temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


class Widths(click.ParamType):
    """Widths of hidden layers: ``128``, or ``512,512``."""

    name = "widths"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> list[int]:
        """Split at commas."""
        if isinstance(value, list):
            return value
        try:
            widths = [int(width) for width in str(value).split(",")]
        except ValueError:
            widths = []
        if not widths or min(widths) < 1:
            self.fail(f"{value!r} is not a list of widths such as 128 or 512,512.", param, ctx)
        return widths

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        """Show how several layers are written."""
        return "N[,N...]"


def _h5ad(ctx: click.Context, param: click.Parameter, value: Path) -> Path:
    if value.suffix != ".h5ad":
        raise click.BadParameter(f"{str(value)!r} does not end in .h5ad.", ctx, param)
    return value


def _input_argument() -> Callable[[Any], Any]:
    return click.argument("input_path", metavar="INPUT", type=PATH)


def _output_option() -> Callable[[Any], Any]:
    return click.option(
        "--output",
        type=PATH,
        required=True,
        callback=_h5ad,
        metavar="OUT.h5ad",
        help="Where INPUT is written with its embedding.",
    )


def _check_labels(adata: AnnData, label_key: str | None) -> None:
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


def _clustering(embedding: NDArray[Any], labels: Any, seed: int) -> dict[str, dict[str, Any]]:
    """Score k-means, which is told the number of labels, and Leiden, which is not."""
    from dra_scvi import metrics

    return {
        "kmeans": metrics.clustering(embedding, labels, "kmeans", seed=seed),
        "leiden": metrics.clustering(embedding, labels, "leiden", seed=seed),
    }


def _clustering_rows(scores: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
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


def _bare(adata: AnnData, layer: str | None, columns: Sequence[str]) -> AnnData:
    """Share the counts and copy some columns, so that training leaves no trace in `adata`."""
    import anndata
    import pandas as pd

    return anndata.AnnData(
        X=None if layer else adata.X,
        obs=adata.obs[list(columns)].copy(),
        var=pd.DataFrame(index=adata.var_names),
        layers={layer: adata.layers[layer]} if layer else {},
    )


# -- commands ----------------------------------------------------------------------------------


@click.group(cls=Program, name=PROGRAM, invoke_without_command=True)
@click.version_option(package_name="dra_scvi", message="%(version)s")
@click.pass_context
def program(ctx: click.Context) -> None:
    """Embed single cells with DR-A.

    INPUT is an .h5ad file, a zarr store of an AnnData, a 10x .h5 file, or a folder with one .mtx
    and labels.txt, and holds raw counts. Start with "dra-scvi demo".

    Exit codes: 0 done, 2 wrong usage, 65 bad data, 66 missing input, 70 training diverged, 73
    output exists, 130 and 143 interrupted.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help(), err=True)
        ctx.exit(2)


@dataclass(frozen=True)
class TrainRequest:
    """Options of ``train``; `None` leaves a setting to the model."""

    input_path: Path
    output: Path
    model_dir: Path | None
    layer: str | None
    batch_key: str | None
    label_key: str | None
    n_latent: int
    preset: str | None
    max_epochs: int | None
    batch_size: int | None
    learning_rate: float | None
    beta1: float | None
    n_hidden: list[int] | None
    n_hidden_discriminator: list[int] | None
    dropout_rate: float | None
    leak: float | None
    batch_norm: bool | None
    prior: str | None
    divergence: str | None
    metrics_log: Path | None
    resume: bool

    MODEL = (
        "n_hidden",
        "n_hidden_discriminator",
        "dropout_rate",
        "leak",
        "batch_norm",
        "prior",
        "divergence",
    )
    PUBLISHED_ONLY = ("beta1", "leak", "batch_norm")

    def check_usage(self) -> None:
        """Refuse options that contradict each other."""
        if self.metrics_log is not None and self.label_key is None:
            raise click.UsageError("--metrics-log needs --label-key.")
        if self.preset is None:
            for name in self.PUBLISHED_ONLY:
                if getattr(self, name) is not None:
                    option = name.replace("_", "-")
                    raise click.UsageError(f"--{option} needs --preset published.")
            return
        if self.n_latent not in PUBLISHED_DIMENSIONS:
            raise click.UsageError(
                f"--preset published takes --n-latent 2, 10 or 20, not {self.n_latent}."
            )
        if self.divergence is not None:
            raise click.UsageError("--divergence cannot be chosen with --preset published.")
        if self.prior == "mixture":
            raise click.UsageError("--prior mixture cannot be chosen with --preset published.")

    def check_outputs(self, common: Common) -> None:
        """Check that everything can be written."""
        from dra_scvi._io import check_output

        common.check_output(self.output)
        common.check_output(self.model_dir)
        if self.metrics_log is not None:
            check_output(self.metrics_log, force=True)  # it is appended to

    @property
    def checkpoint(self) -> Path:
        """File in which the state of training is kept."""
        return self.output.with_name(f".{self.output.name}.ckpt")

    @property
    def model_kwargs(self) -> dict[str, Any]:
        """Arguments of the model, those that were given."""
        values = {name: getattr(self, name) for name in self.MODEL}
        return {name: value for name, value in values.items() if value is not None}

    @property
    def plan_kwargs(self) -> dict[str, Any]:
        """Arguments of the training plan; those of a preset are kept unless given."""
        from dra_scvi import presets

        preset = presets.published(self.n_latent).train["plan_kwargs"] if self.preset else {}
        given = {"lr": self.learning_rate, "beta1": self.beta1}
        return preset | {name: value for name, value in given.items() if value is not None}

    def train_kwargs(self, common: Common) -> dict[str, Any]:
        """Arguments of training, those that were given."""
        kwargs: dict[str, Any] = {"enable_progress_bar": common.shows_bar}
        if self.plan_kwargs:
            kwargs["plan_kwargs"] = self.plan_kwargs
        if self.batch_size is not None:
            kwargs["batch_size"] = self.batch_size
        return kwargs


@_command("train")
@_input_argument()
@_output_option()
@click.option("--model-dir", type=PATH, metavar="DIR", help="Save the trained model here.")
@click.option("--layer", help="Layer that holds the counts; X without it.")
@click.option("--batch-key", help="Column of obs with batches to integrate.")
@click.option("--label-key", help="Column of obs with cell types, to score the embedding.")
@click.option(
    "--n-latent",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    help="Dimensions of the embedding.",
)
@click.option(
    "--preset", type=click.Choice(["published"]), help="Run the released program's settings."
)
@click.option("--max-epochs", type=click.IntRange(min=1), help="Passes over the cells.")
@click.option("--batch-size", type=click.IntRange(min=2), help="Cells in a minibatch.")
@click.option(
    "--learning-rate", type=click.FloatRange(min=0, min_open=True), help="Step size of Adam."
)
@click.option(
    "--beta1",
    type=click.FloatRange(0, 1, max_open=True),
    help="Momentum of Adam; with --preset published.",
)
@click.option("--n-hidden", type=Widths(), help="Widths of the encoder's hidden layers.")
@click.option(
    "--n-hidden-discriminator", type=Widths(), help="Widths of the discriminators' hidden layers."
)
@click.option(
    "--dropout-rate", type=click.FloatRange(0, 1, max_open=True), help="Share of units dropped."
)
@click.option(
    "--leak", type=float, help="Slope of the leaky ReLU below 0; with --preset published."
)
@click.option(
    "--batch-norm/--no-batch-norm",
    default=None,
    help="The released flag as it acts (affine maps, no dropout); with --preset published.",
)
@click.option(
    "--prior",
    type=click.Choice(["normal", "uniform", "mixture"]),
    help="Distribution that the codes are matched to.",
)
@click.option(
    "--divergence",
    type=click.Choice(["bhattacharyya", "jensen-shannon"]),
    help="Distance that the discriminators estimate.",
)
@click.option(
    "--metrics-log", type=PATH, metavar="FILE", help="Append settings and NMI to this text file."
)
@click.option("--resume", is_flag=True, help="Go on from where an interrupted run stopped.")
def train(common: Common, **options: Any) -> Result:
    """Train DR-A on INPUT and write its cells with their embedding.

    OUT.h5ad is INPUT with the embedding in obsm["X_dra"] and the settings in uns["dra"]. With
    --label-key, clusters found in the embedding are compared with the labels.

    A run that is stopped by SIGINT or SIGTERM leaves a checkpoint beside OUT.h5ad; the same
    command with --resume goes on from there.

    Example: dra-scvi train cells.h5ad --output out.h5ad --label-key cell_type
    """
    from dra_scvi._io import read_input

    request = TrainRequest(**options)
    request.check_usage()
    request.check_outputs(common)
    adata = read_input(request.input_path)
    _check_trainable(adata, request)
    model = _fit(adata, request, common)
    scores, cells = _score_training(adata, request, common)
    figures: dict[str, Any] = {
        "input": {
            "n_cells": adata.n_obs,
            "n_genes": adata.n_vars,
            "layer": request.layer,
            "batch_key": request.batch_key,
            "label_key": request.label_key,
        },
        "settings": _effective_settings(model, request, common),
        "training": {name: float(h.iloc[-1, 0]) for name, h in model.history.items()},
        **scores,
    }
    if scores:
        figures["cells"] = cells
    _write_training(adata, model, request, common)
    _log_metrics(figures, request)
    title = f"{cells} cells of {request.input_path.name}"
    return Result(figures, title, _clustering_rows(scores) if scores else ())


def _check_trainable(adata: AnnData, request: TrainRequest) -> None:
    """Check all of INPUT before the first line about training."""
    from dra_scvi._validation import validate_counts, validate_keys

    validate_keys(adata, request.layer, {"batch_key": request.batch_key})
    _check_labels(adata, request.label_key)
    validate_counts(adata, request.layer, request.batch_key)
    if request.preset and request.batch_key:
        _warn("--batch-key has no effect with --preset published.")


def _fit(adata: AnnData, request: TrainRequest, common: Common) -> DRA:
    """Train on the counts of `adata`, and add what came of it."""
    from dra_scvi import tl

    _announce(adata, request, common)
    work = _bare(adata, request.layer, [request.batch_key] if request.batch_key else [])
    model = tl.dra(
        work,
        layer=request.layer,
        batch_key=request.batch_key,
        n_latent=request.n_latent,
        key_added=KEY_ADDED,
        seed=common.seed,
        preset="published" if request.preset else None,
        max_epochs=request.max_epochs,
        accelerator=common.accelerator,
        model_kwargs=request.model_kwargs,
        train_kwargs=request.train_kwargs(common),
        checkpoint=request.checkpoint,
        resume=request.resume,
    )
    adata.obsm[KEY_ADDED] = work.obsm[KEY_ADDED]
    adata.uns["dra"] = work.uns["dra"]
    if "dra_split" in work.obs:
        adata.obs["dra_split"] = work.obs["dra_split"]
    return model


def _announce(adata: AnnData, request: TrainRequest, common: Common) -> None:
    found = request.checkpoint.exists()
    if request.resume and found:
        common.say(f"going on from {request.checkpoint}")
    elif request.resume:
        common.say(f"no checkpoint at {request.checkpoint}: starting from the beginning")
    elif found:
        common.say(f"not going on from {request.checkpoint}, which takes --resume")
    common.say(f"training on {adata.n_obs} cells and {adata.n_vars} genes")


def _score_training(
    adata: AnnData, request: TrainRequest, common: Common
) -> tuple[dict[str, dict[str, Any]], str]:
    """Score all cells or, as the released program, the test cells; say which."""
    import numpy as np

    cells = "test" if request.preset else "all"
    if request.label_key is None:
        return {}, cells
    rows = np.ones(adata.n_obs, dtype=bool)
    if request.preset:
        rows = (adata.obs["dra_split"] == "test").to_numpy()
    labels = adata.obs[request.label_key][rows]
    seed = 0 if request.preset else common.seed
    return _clustering(adata.obsm[KEY_ADDED][rows], labels, seed), cells


def _effective_settings(model: DRA, request: TrainRequest, common: Common) -> dict[str, Any]:
    """Name the settings that held, given or not."""
    from dra_scvi import presets

    chosen = model.init_params_["non_kwargs"]
    plan = model.trainer.lightning_module
    preset = presets.published(request.n_latent).train if request.preset else {}
    settings = {
        "n_latent": request.n_latent,
        "preset": request.preset,
        "seed": common.seed,
        "max_epochs": model.trainer.max_epochs,
        "learning_rate": getattr(plan, "lr", None),
        "beta1": getattr(plan, "beta1", None),
        "batch_size": request.batch_size or preset.get("batch_size"),
        **{name: chosen[name] for name in TrainRequest.MODEL if name in chosen},
    }
    return {name: list(v) if isinstance(v, tuple) else v for name, v in settings.items()}


def _write_training(adata: AnnData, model: DRA, request: TrainRequest, common: Common) -> None:
    from dra_scvi._io import write_h5ad

    if request.model_dir is not None:
        with _atomic_folder(request.model_dir) as temporary:
            model.save(str(temporary), overwrite=True)
        common.say(f"wrote {request.model_dir}")
    write_h5ad(adata, request.output)
    common.say(f"wrote {request.output}")


def _log_metrics(figures: Mapping[str, Any], request: TrainRequest) -> None:
    """Append one line, as the released program did."""
    from datetime import UTC, datetime

    from dra_scvi._io import append_line

    if request.metrics_log is None:
        return
    words = [datetime.now(UTC).isoformat(timespec="seconds"), request.input_path.name]
    for name, value in figures["settings"].items():
        if value is not None:
            shown = ",".join(map(str, value)) if isinstance(value, list) else value
            words.append(f"{name}={shown}")
    words.append(f"NMI={figures['kmeans']['nmi']:.4f}")
    append_line(request.metrics_log, _one_line(" ".join(words)))


@_command("embed")
@_input_argument()
@click.option(
    "--model", "model_dir", type=PATH, required=True, metavar="DIR", help="A saved model."
)
@_output_option()
@click.option(
    "--key-added", default=KEY_ADDED, show_default=True, help="Key of obsm for the embedding."
)
def embed(
    common: Common, input_path: Path, model_dir: Path, output: Path, key_added: str
) -> Result:
    """Embed the cells of INPUT with a model that was trained before.

    Genes are found by their names, whatever their order; all genes of the model must be there.
    The counts are taken from the layer, and the batches from the column, of the training. Loading
    a model can run code that is hidden in it: only load what you trust.

    Example: dra-scvi embed more.h5ad --model model --output out.h5ad
    """
    from dra_scvi._io import read_input, write_h5ad

    common.check_output(output)
    saved = _read_model(model_dir)
    adata = read_input(input_path)
    query = _query(adata, saved)
    common.say(f"embedding {adata.n_obs} cells")
    adata.obsm[key_added] = _encode(query, model_dir, saved, common)
    write_h5ad(adata, output)
    common.say(f"wrote {output}")
    figures = {
        "input": {"n_cells": adata.n_obs, "n_genes": adata.n_vars},
        "settings": {"model_class": saved.class_name, "key_added": key_added, "seed": common.seed},
        "embedding": {"n_latent": adata.obsm[key_added].shape[1]},
    }
    return Result(figures)


class SavedModel(NamedTuple):
    """What is known of a saved model without any data."""

    class_name: str
    registry: Mapping[str, Any]
    settings: Mapping[str, Any]
    genes: list[str]


def _read_model(folder: Path) -> SavedModel:
    """Read what a folder says of its model."""
    import torch

    file = folder / "model.pt"
    if not file.is_file():
        what = "holds no model.pt" if folder.is_dir() else "does not exist"
        raise FileNotFoundError(f"{folder} {what}; pass the --model-dir of an earlier train.")
    try:
        content = torch.load(file, map_location="cpu", weights_only=False)
        attributes = content["attr_dict"]
        registry = attributes["registry_"]
        name = registry["model_name"]
        settings = attributes["init_params_"]["non_kwargs"]
        genes = [str(gene) for gene in content["var_names"]]
    except Exception as error:
        kind = type(error).__name__
        raise ValueError(
            f"{file} is not a model saved by scvi-tools, or damaged ({kind})."
        ) from error
    if name not in ("DRA", "PublishedDRA"):
        raise ValueError(f"{file} is a model of class {name}; DRA or PublishedDRA is needed.")
    return SavedModel(name, registry, settings, genes)


def _query(adata: AnnData, saved: SavedModel) -> AnnData:
    """Take the genes of a model, in its order, and the columns that it reads."""
    from dra_scvi._validation import validate_keys

    if not adata.var_names.is_unique:
        first = adata.var_names[adata.var_names.duplicated()][0]
        raise ValueError(f"gene names of the input are not unique (first: {str(first)!r}).")
    missing = [gene for gene in saved.genes if gene not in adata.var_names]
    if missing:
        raise ValueError(
            f"{len(missing)} of the model's {len(saved.genes)} genes are missing from the input "
            f"(first: {missing[0]!r}); add them, with 0 where they were not detected."
        )
    setup = saved.registry["setup_args"]
    keys = {name: value for name, value in setup.items() if name.endswith(("_key", "_keys"))}
    validate_keys(adata, setup["layer"], keys)
    if list(adata.var_names) != saved.genes:
        adata = adata[:, saved.genes].copy()
    return _bare(adata, setup["layer"], list(adata.obs.columns))


def _encode(query: AnnData, folder: Path, saved: SavedModel, common: Common) -> NDArray[Any]:
    """Return posterior means or, from the released program's model, a sample as in training."""
    import dra_scvi
    from dra_scvi import tl

    model_cls = getattr(dra_scvi, saved.class_name)
    with tl._seeded(common.seed):
        model = model_cls.load(str(folder), adata=query, accelerator=common.accelerator)
        return model.get_latent_representation(give_mean=saved.class_name == "DRA")


@_command("evaluate")
@_input_argument()
@click.option("--label-key", required=True, help="Column of obs with cell types.")
@click.option(
    "--use-rep", default=KEY_ADDED, show_default=True, help="Key of obsm with the embedding."
)
@click.option("--batch-key", help="Column of obs with batches, to score how well they mix.")
def evaluate(
    common: Common, input_path: Path, label_key: str, use_rep: str, batch_key: str | None
) -> Result:
    """Compare clusters in an embedding of INPUT with known cell types.

    Clusters are found by k-means, with as many clusters as labels, and by Leiden. Scores of
    integration, with --batch-key, need scib-metrics.

    Example: dra-scvi evaluate embedded.h5ad --label-key cell_type --json -
    """
    from dra_scvi._io import read_input
    from dra_scvi._validation import unknown_key, validate_keys

    if batch_key is not None and importlib.util.find_spec("scib_metrics") is None:
        raise click.UsageError('--batch-key needs scib-metrics: pip install "dra_scvi[scib]".')
    adata = read_input(input_path)
    if use_rep not in adata.obsm:
        raise KeyError(unknown_key("use_rep", use_rep, "a key of adata.obsm", adata.obsm.keys()))
    validate_keys(adata, obs_keys={"batch_key": batch_key})
    _check_labels(adata, label_key)
    figures, rows = _evaluate(adata, label_key, use_rep, batch_key, common.seed)
    return Result(figures, f"{use_rep} of {input_path.name}", rows)


def _evaluate(
    adata: AnnData, label_key: str, use_rep: str, batch_key: str | None, seed: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    import numpy as np

    from dra_scvi import metrics

    embedding, labels = np.asarray(adata.obsm[use_rep]), adata.obs[label_key]
    scores: dict[str, Any] = dict(_clustering(embedding, labels, seed))
    rows = _clustering_rows(scores)
    if batch_key is not None:
        scores["integration"] = metrics.integration(embedding, labels, adata.obs[batch_key])
    figures = {
        "input": {
            "n_cells": adata.n_obs,
            "n_genes": adata.n_vars,
            "label_key": label_key,
            "batch_key": batch_key,
        },
        "settings": {"use_rep": use_rep, "seed": seed},
        **scores,
    }
    return figures, rows


@_command("info")
@click.argument("model_dir", metavar="DIR", type=PATH)
def info(common: Common, model_dir: Path) -> Result:
    """Say what the model saved in DIR is.

    Loading a model can run code that is hidden in it: only load what you trust.

    Example: dra-scvi info model
    """
    saved = _read_model(model_dir)
    setup = saved.registry["setup_args"]
    facts = {
        "class": saved.class_name,
        "n_latent": saved.settings["n_latent"],
        "prior": saved.settings["prior"],
        "n_genes": len(saved.genes),
        "n_batch": _n_batch(saved),
        "layer": setup["layer"],
        "batch_key": setup["batch_key"],
        "scvi_version": saved.registry["scvi_version"],
        "first_genes": saved.genes[:GENES_SHOWN],
    }
    shown = {**facts, "first_genes": ", ".join(saved.genes[:GENES_SHOWN])}
    rows = [{"field": name, "value": "-" if v is None else str(v)} for name, v in shown.items()]
    return Result({"model": facts}, f"Model in {model_dir.name}", rows)


def _n_batch(saved: SavedModel) -> int:
    return int(saved.registry["field_registries"]["batch"]["summary_stats"]["n_batch"])


@_command("demo")
@click.option(
    "--output",
    type=PATH,
    default=Path("dra-scvi-demo"),
    show_default=True,
    metavar="DIR",
    help="Folder for the results.",
)
def demo(common: Common, output: Path) -> Result:
    """Embed 700 blood cells with PCA, scVI and DR-A, and compare the three.

    The counts ship with scanpy: nothing is downloaded. DIR gets pbmc68k.h5ad, umap.png,
    training.png and metrics.json.

    Example: dra-scvi demo
    """
    from dra_scvi import demo as job
    from dra_scvi._io import check_output

    is_empty_folder = output.is_dir() and not any(output.iterdir())
    check_output(output, force=common.force or is_empty_folder)
    common.say("embedding 700 cells with PCA, scVI and DR-A")
    with _atomic_folder(output) as temporary:
        figures = job.run(temporary, common.seed, common.accelerator, common.shows_bar)
    common.say(f"wrote {output}")
    rows = [
        {
            "embedding": job.TITLES[name],
            "k-means NMI": scores["kmeans"]["nmi"],
            "k-means ARI": scores["kmeans"]["ari"],
            "Leiden NMI": scores["leiden"]["nmi"],
            "Leiden ARI": scores["leiden"]["ari"],
        }
        for name, scores in figures["embeddings"].items()
    ]
    return Result(figures, "Agreement of clusters with cell types", rows)


def main() -> None:
    """Run the command line."""
    program(prog_name=PROGRAM)
