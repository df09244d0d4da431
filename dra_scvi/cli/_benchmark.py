"""The benchmark command: its options, its progress, and the summary that it prints."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from dra_scvi.cli._cells import remark
from dra_scvi.cli._command import Common, command, warn
from dra_scvi.cli._errors import in_options
from dra_scvi.cli._options import (
    COUNT,
    SEED_LIMIT,
    CommaSeparated,
    FileName,
    Numbers,
    batch_key_option,
    layer_option,
    paths_argument,
)
from dra_scvi.cli._result import Result

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    import pandas as pd

MODELS = "pca,scvi,dra"
N_LATENT = "2,10,20"
SEEDS = 5
OTHERS = {  # means besides those of the measures
    "leiden1_n_clusters": "clusters (Leiden 1)",
    "rank": "mean rank",
    "n_first": "first in measures",
    "sd": "sd of NMI (k-means)",
    "seconds": "seconds",
}
PAIRED = "Differences, paired by data set, dimensions and seed"
ASKED = {"n_latent": "n_latent", "seeds": "seed"}
DESCRIPTION = ("dataset", "n_cells", "n_genes", "n_types", "gene_selection", "fingerprint")


class Models(CommaSeparated):
    """Names of models: ``pca,scvi,dra``."""

    name = "models"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> list[str]:
        """Split at commas."""
        from dra_scvi.benchmark._models import resolve

        if isinstance(value, list):
            return value
        names = [name.strip() for name in value.split(",") if name.strip()]
        try:
            resolve(names)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        return names


@dataclass(frozen=True)
class BenchmarkRequest:
    """Options of ``benchmark``; `None` leaves a setting to its default, or to ``--quick``."""

    input_paths: tuple[Path, ...]
    output: Path
    label_key: str
    batch_key: str | None
    layer: str | None
    models: list[str]
    n_latent: list[int] | None
    seeds: int | None
    n_genes: int | None
    max_epochs: int | None
    quick: bool
    parallel: int

    SET_BY_QUICK = ("n_latent", "seeds", "max_epochs")

    def check_usage(self) -> None:
        """Refuse options that contradict each other, and inputs of the same name."""
        for name in self.SET_BY_QUICK:
            if self.quick and getattr(self, name) is not None:
                option = name.replace("_", "-")
                raise click.UsageError(f"--quick sets --{option}: leave one of them out.")
        from dra_scvi.benchmark._models import resolve

        try:
            for model in resolve(self.models):
                model.check(self.batch_key)
        except (ImportError, ValueError) as error:
            command = click.get_current_context().command
            raise click.UsageError(in_options(str(error), [command])) from error
        names = [self.name(path) for path in self.input_paths]
        repeated = next((name for name in names if names.count(name) > 1), None)
        if repeated is not None:
            raise click.UsageError(
                f"two inputs are called {repeated!r}, which the table could not tell apart; "
                "rename one of them."
            )

    def check_seeds(self, first: int) -> None:
        """Refuse seeds of which the last is too large."""
        if first + (self.seeds or SEEDS) - 1 > SEED_LIMIT:
            raise click.UsageError(
                f"--seed {first}: the seeds counted from it go beyond {SEED_LIMIT}, the largest."
            )

    @staticmethod
    def name(path: Path) -> str:
        """Name of a data set in the table."""
        return path.stem if path.suffix.lower() in (".h5ad", ".zarr", ".h5") else path.name

    def numbers(self, common: Common) -> dict[str, Any]:
        """Arguments of the comparison that say which runs are made."""
        return {
            "models": self.models,
            "n_latent": self.n_latent or [int(k) for k in N_LATENT.split(",")],
            "seeds": range(common.seed, common.seed + (self.seeds or SEEDS)),
            "max_epochs": self.max_epochs,
            "n_genes": self.n_genes,
            "quick": self.quick,
        }


@command("benchmark")
@paths_argument()
@click.option("--label-key", required=True, help="Column of obs with cell types.")
@batch_key_option
@layer_option
@click.option(
    "--models",
    type=Models(),
    default=MODELS,
    help="Among pca, fa (factor analysis), harmony (with --batch-key), scvi, scvi-short (as many "
    "epochs as dra), ldvae, drvi and jointembedding (scvi-tools 1.5), scanvi (sees half of the "
    "labels), dra.",
)
@click.option(
    "--n-latent",
    type=Numbers("dimensions", N_LATENT, may_repeat=False),
    show_default=N_LATENT,
    help="Dimensions of the embeddings.",
)
@click.option(
    "--seeds", type=COUNT, show_default=str(SEEDS), help="Number of seeds, counted from --seed."
)
@click.option("--n-genes", type=COUNT, show_default="all", help="Most variable genes to keep.")
@click.option(
    "--max-epochs",
    type=COUNT,
    show_default="each model's own",
    help="Epochs of all that train, alike.",
)
@click.option(
    "--quick",
    is_flag=True,
    help="A look in minutes: 1,000 cells, 10 dimensions, one seed, 50 epochs.",
)
@click.option(
    "--parallel", type=COUNT, default=1, help="Runs at a time, each in a process of one thread."
)
@click.option(
    "-o",
    "--output",
    type=FileName(".csv"),
    required=True,
    metavar="TABLE.csv",
    help="One row per data set, model, dimensions and seed.",
)
def benchmark(common: Common, **options: Any) -> Result:
    """Compare DR-A with other models on the same cells, genes and seeds.

    Every model runs with its own defaults; clusters found in its embeddings are compared with
    the labels. TABLE.csv is written after every run: one that exists is kept and gone on with, so
    that the same command goes on where an interrupted one stopped. Delete it to start again.

    scVI's defaults take minutes per run on a CPU; --quick is for a first look.

    Example: dra-scvi benchmark cells.h5ad --label-key cell_type --n-genes 1000 --output table.csv
    """
    from dra_scvi.benchmark._table import Table

    request = BenchmarkRequest(**options)
    request.check_usage()
    request.check_seeds(common.seed)
    inputs = {f"INPUT {path}": path for path in request.input_paths}
    common.rehearse(inputs, ("--output", request.output, "table"))
    Table(request.output, overwrite=common.force)
    _check_inputs(request)
    table = _run(request, common)
    if table["nmi"].isna().any():
        failed = table[table["nmi"].isna()]
        warn(f"{len(failed)} of {len(table)} runs failed; the first: {failed['status'].iloc[0]}")
    return _result(table, request, common)


def _check_inputs(request: BenchmarkRequest) -> None:
    """Check every input before the first run, which may be hours before the last."""
    from dra_scvi._inputs.read import read_input
    from dra_scvi.benchmark._cells import check_input

    for path in request.input_paths:
        adata = read_input(path)
        with _naming(path):
            check_input(adata, request.label_key, request.batch_key, request.layer)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Put the name of the input before an error, where there may be several inputs."""
    try:
        yield
    except (KeyError, ValueError) as error:
        error.args = (f"{path}: {error.args[0]}", *error.args[1:])
        raise


def _run(request: BenchmarkRequest, common: Common) -> pd.DataFrame:
    import pandas as pd

    from dra_scvi import benchmark as job
    from dra_scvi._inputs.read import read_input

    tables = []
    kept: list[bool] = []
    try:
        for path in request.input_paths:
            adata = read_input(path)
            remark(adata, request.batch_key, request.n_genes, common)
            with _naming(path):
                table = job.compare(
                    adata,
                    request.label_key,
                    request.batch_key,
                    request.layer,
                    **request.numbers(common),
                    name=request.name(path),
                    output=request.output,
                    overwrite=common.force,
                    accelerator=common.accelerator,
                    progress=common.shows_bar,
                    parallel=request.parallel,
                    on_row=lambda _, is_kept: kept.append(is_kept),
                )
            tables.append(table)
    except (KeyboardInterrupt, SystemExit):
        common.say(f"{request.output} keeps finished runs; the same command goes on from there")
        raise
    if any(kept):  # of the other runs the log tells
        common.say(f"kept {sum(kept)} runs found in {request.output}")
    common.say(f"wrote {request.output}")
    return pd.concat(tables, ignore_index=True)


def _result(table: pd.DataFrame, request: BenchmarkRequest, common: Common) -> Result:
    summaries = _summaries(table)
    numbers = request.numbers(common)
    figures = {
        "input": _records(table[list(DESCRIPTION)].drop_duplicates()),
        "settings": {
            **{name: numbers[name] for name in ("models", "n_genes", "max_epochs", "quick")},
            **{name: table[column].unique().tolist() for name, column in ASKED.items()},
            **{name: getattr(request, name) for name in ("label_key", "batch_key", "layer")},
        },
        "runs": _records(table),
        "summary": _records(summaries),
    }
    means = _mean_rows(_records(summaries.drop_duplicates("model")))
    # of DR-A, where there is that; JSON has the other differences as well
    is_main = (summaries["model"] == "dra") | ("dra" not in set(summaries["model"]))
    shown = summaries[is_main & (summaries["model"] != summaries["baseline"])]
    differences = [_difference_row(row) for row in _records(shown)]
    return Result(figures, _title(table, request.quick), means, [(PAIRED, differences)])


def _summaries(table: pd.DataFrame) -> pd.DataFrame:
    """Compare all models with the strongest baseline, and DR-A with scVI where that is another."""
    import pandas as pd

    from dra_scvi import benchmark as job
    from dra_scvi.benchmark._pairs import MEASURES

    strongest = job.summary(table, metric=None)
    if not {"scvi", "dra"} <= set(table["model"]):
        return strongest
    other = job.summary(table, "scvi", metric=None)
    is_new = (other["model"] == "dra") & (strongest["baseline"] != "scvi")
    both = pd.concat([strongest, other[is_new]])
    place = {measure: number for number, measure in enumerate(MEASURES)}
    return both.sort_values("metric", kind="stable", key=lambda names: names.map(place))


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Turn rows into dictionaries, with None for what is missing."""
    return table.astype(object).where(table.notna(), None).to_dict("records")


def _title(table: pd.DataFrame, quick: bool) -> str:
    n_sets, n_seeds = table["dataset"].nunique(), table["seed"].nunique()
    dims = ", ".join(str(k) for k in sorted(table["n_latent"].unique()))
    runs = (
        f"{n_sets} data set{'s' * (n_sets > 1)}, k = {dims}, {n_seeds} seed{'s' * (n_seeds > 1)}"
    )
    if table["saw_labels"].any():
        runs += "; scANVI saw the labels of half of the cells and is scored on the others"
    if quick:
        return f"Quick look, too short for conclusions: at most 1,000 cells, 50 epochs, {runs}"
    return f"Agreement with labels, mean over {runs}"


def _mean_rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Put measures below each other, and models, of which there are fewer, side by side."""
    from dra_scvi.benchmark._pairs import MEASURES, title

    columns = [
        title(row["model"]) + (f" ({row['n_failed']} failed)" if row["n_failed"] else "")
        for row in rows
    ]
    return [
        {"": measure, **{column: row[name] for column, row in zip(columns, rows, strict=True)}}
        for name, measure in {**MEASURES, **OTHERS}.items()
        if any(row.get(name) is not None for row in rows)
    ]


def _difference_row(row: Mapping[str, Any]) -> dict[str, Any]:
    from dra_scvi.benchmark._pairs import MEASURES, title

    first, second = (title(row[name]) for name in ("model", "baseline"))
    bounds = [row["low"], row["high"]]
    return {
        "score": MEASURES[row["metric"]],
        "models": f"{first} - {second}",
        "mean": _signed(row["difference"]),
        "95% interval": "-" if None in bounds else " to ".join(map(_signed, bounds)),
        "ahead": "-" if row["ahead"] is None else f"{row['ahead']:.0%}",
        "worst": _signed(row["worst"]),
    }


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{round(value, 3) + 0.0:+.3f}"  # never -0.000
