"""Every model on the same cells, genes and seeds: what is to be run, and a row for each run."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np

from dra_scvi._argument_kinds import check_adata, check_kinds, check_number
from dra_scvi.benchmark._cells import Cells, check_input, prepare, told_half
from dra_scvi.benchmark._models import UNTOLD, Contender, Embed, Task, resolve
from dra_scvi.benchmark._parallel import spread
from dra_scvi.benchmark._plan import Plan, check_rank
from dra_scvi.benchmark._runs import Measured, measure, score
from dra_scvi.benchmark._table import ALWAYS_SCORED, INTEGRATION, OK, Row, Table, frame
from dra_scvi.metrics import _integration

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import pandas as pd
    from anndata import AnnData
    from numpy.typing import NDArray


logger = logging.getLogger("dra_scvi")

OnRow = Callable[[Mapping[str, Any], bool], None]
_Job = tuple[Contender, int, int]  # model, dimensions, seed


def compare(
    adata: AnnData,
    label_key: str,
    batch_key: str | None = None,
    layer: str | None = None,
    models: Sequence[str] | Mapping[str, str | Embed] = ("pca", "scvi", "dra"),
    n_latent: int | Sequence[int] = (2, 10, 20),
    seeds: int | Sequence[int] = 5,
    max_epochs: int | None = None,
    *,
    n_genes: int | None = None,
    name: str = "data",
    output: str | Path | None = None,
    overwrite: bool = False,
    quick: bool = False,
    accelerator: str = "auto",
    progress: bool = True,
    parallel: int = 1,
    on_row: OnRow | None = None,
) -> pd.DataFrame:
    """Embed the same cells with several models, and score every embedding against known types.

    Each model runs from raw counts with its own defaults, and cells without counts in the genes
    compared on are left out. There are, of ln(1 + counts per 10,000),

    - ``"pca"``, principal components, and ``"fa"``, factor analysis;
    - ``"harmony"`` of 30 principal components, whatever `n_latent`; it needs `batch_key`;

    and, of counts,

    - ``"scvi"`` (:class:`scvi.model.SCVI`), and ``"scvi-short"``, for as many epochs as DRA;
    - ``"ldvae"`` (:class:`scvi.model.LinearSCVI`);
    - ``"drvi"`` and ``"jointembedding"`` (DRVI and JointEmbeddingSCVI of scvi-tools 1.5);
    - ``"scanvi"`` (:class:`scvi.model.SCANVI`, from a trained scVI), which sees labels: those of
      a random half of the cells of each type. Its clusters are of all cells; its scores, those of
      integration included, are of the cells whose labels it has not seen;
    - ``"dra"`` (:class:`~dra_scvi.DRA`).

    Parameters
    ----------
    adata
        Raw counts of ``(n_cells, n_genes)``, dense or sparse. It is not changed.
    label_key
        Column of ``adata.obs`` with known types, which no model but ``"scanvi"`` sees.
    batch_key
        Column of ``adata.obs`` with batches, which all but PCA and factor analysis integrate, and
        within which variable genes are ranked. Embeddings are then also scored by
        :func:`dra_scvi.metrics.integration`, where scib-metrics is installed.
    layer
        Layer that holds the counts; `None` for ``adata.X``.
    models
        Names of the above, or a mapping from names in the table to such names or to functions of
        ``(counts, n_latent, seed)`` that return an embedding; `counts` is an AnnData that they
        may write to. Give a function another name when you change it: rows are kept by name.
    n_latent
        Dimensions (k) to compare at.
    seeds
        Number of seeds, from 0, or the seeds themselves. Each seeds the model, the clusterings,
        and the draw of cells for the silhouette; PCA is computed once per k.
    max_epochs
        Epochs of the models of counts, all alike; `None` for the default of each. Those of scANVI
        on top of scVI's stay its own.
    n_genes
        Number of most variable genes to keep, by ``seurat_v3``, or by variance of log-normalised
        counts where that fails; `None` for all.
    name
        Name of the data set in the table.
    output
        CSV file that is written after every run. The rows already there are kept, and not
        computed again where name, counts, labels, model, k, seed, epochs, defaults and versions
        are the same; failed runs, and those that lack a score, are made again.
    overwrite
        Whether `output` may be replaced where it is no table of a comparison.
    quick
        Look in minutes instead: at most 1,000 cells, one k (10), the first seed, 50 epochs,
        whatever the other arguments say.
    accelerator
        `"auto"`, `"cpu"`, `"gpu"`, ..., as in Lightning.
    progress
        Whether to show a progress bar.
    parallel
        Runs at a time, each in a process of one thread. `output` has the rows as they finish.
    on_row
        Called with each row as it is there, and whether it was kept from `output`.

    Returns
    -------
    One row per model, k and seed, in the order of the runs:

    - what ran: ``dataset``, ``n_cells``, ``n_genes``, ``n_types``, ``gene_selection`` (`"all"`,
      `"seurat_v3"` or `"variance"`), ``label_key``, ``batch_key``, ``quick``, ``model``,
      ``n_latent``, ``seed``, ``max_epochs`` (as asked for), ``saw_labels`` (of half of the cells,
      and is scored on the others);
    - ``status``: `"ok"`, or why the run failed, its scores being NaN then;
    - ``nmi``, ``ari``, ``n_clusters``: k-means with as many clusters as types;
    - ``leiden_nmi``, ``leiden_ari``, ``leiden_n_clusters``: Leiden at the resolution that gives as
      many clusters as types, or nearly (:func:`dra_scvi.metrics.leiden_matched`);
    - ``leiden1_nmi``, ``leiden1_n_clusters``: Leiden at resolution 1, on the same graph;
    - ``purity`` (:func:`dra_scvi.metrics.purity`) and ``silhouette`` of the types, and
      ``integration_...`` with `batch_key`;
    - ``epochs`` trained; ``seconds`` and ``cpu_seconds`` (of all threads) from counts to
      embedding, imports and compilation included the first time in a process;
    - ``peak_memory_mb``: greatest resident memory of the whole process in that time, libraries
      and data included, without memory on a GPU; NaN where the system is not Linux;
    - versions ``dra_scvi``, ``scvi_tools``, ``torch``; ``settings`` and ``fingerprint``, digests
      of the model's defaults and of the data.

    Raises
    ------
    TypeError
        When an argument is of another kind.
    KeyError
        When a column or the layer does not exist.
    ValueError
        When a model is not known or takes batches and there are none, a number is out of range, a
        label is missing, there are fewer than two types, or the counts are not raw
        (:class:`~dra_scvi.InvalidCountsError`).
    FileExistsError
        When `output` is no table of a comparison.
    ImportError
        When a model takes a library, or a version of scvi-tools, that is not installed.

    Examples
    --------
    >>> import dra_scvi
    >>> adata = dra_scvi.datasets.synthetic(n_cells=90, n_genes=30, n_types=3)
    >>> table = dra_scvi.benchmark.compare(
    ...     adata, "cell_type", models=("pca", "fa"), n_latent=2, seeds=2, progress=False
    ... )
    >>> table[["model", "n_latent", "seed", "n_clusters"]].to_numpy().tolist()
    [['pca', 2, 0, 3], ['fa', 2, 0, 3], ['pca', 2, 1, 3], ['fa', 2, 1, 3]]
    """
    check_kinds(compare, locals())
    check_adata(adata)
    _check_kinds(label_key=label_key, batch_key=batch_key, layer=layer)
    check_number(parallel, "parallel", least=1)
    contenders = resolve(models)
    for contender in contenders:
        contender.check(batch_key)
    plan = Plan.checked(n_latent, seeds, max_epochs, quick)
    table = Table(output, overwrite)
    check_input(adata, label_key, batch_key, layer)
    cells = prepare(adata, label_key, batch_key, layer, n_genes, plan.max_cells, name)
    check_rank(contenders, plan, cells)
    facts = {"dataset": name, "label_key": label_key, "batch_key": batch_key, "quick": quick}
    comparison = _Comparison(cells, plan, table, facts, accelerator, _scores_integration(cells))
    jobs = [(c, k, seed) for seed in plan.seeds for k in plan.n_latent for c in contenders]
    rows: list[Row] = [{}] * len(jobs)
    with _progress_bar(progress, len(jobs)) as advance:
        runs = comparison.rows(jobs, advance, parallel)
        for place, row, is_kept in runs:
            rows[place] = row
            if on_row is not None:
                on_row(row, is_kept)
    return frame(rows)


def _check_kinds(**names: Any) -> None:
    """Refuse columns and lists where the name of a column or layer is wanted."""
    for argument, name in names.items():
        if not (isinstance(name, str) or (name is None and argument != "label_key")):
            raise TypeError(f"{argument} takes one name, not {type(name).__name__}")


def _scores_integration(cells: Cells) -> bool:
    """Whether batches can be scored; say once why not."""
    if cells.batches is None:
        return False
    try:
        _integration.import_scib()
        _integration.check_comparable(cells.labels, cells.batches)
    except (ImportError, ValueError) as error:
        warnings.warn(f"no integration scores: {error}", UserWarning, stacklevel=1)
        return False
    return True


@dataclass
class _Comparison:
    """Makes the rows of one data set, of which those in the table are kept."""

    cells: Cells
    plan: Plan
    table: Table
    facts: Row
    accelerator: str
    scores_integration: bool
    computed: dict[tuple[str, int], Measured] = field(default_factory=dict)

    def rows(
        self, jobs: Sequence[_Job], advance: Callable[[str], None], parallel: int
    ) -> Iterator[tuple[int, Row, bool]]:
        """Yield place, row, and whether it was there before, of each job."""
        wanted = []
        for place, job in enumerate(jobs):
            kept = self._kept(job)
            if kept is None and parallel > 1:
                wanted.append(place)
                continue
            advance(self._title(job))
            yield place, kept or self._add(job, self.compute(*job)), kept is not None
        if not wanted:
            return
        for i, result in spread(self.compute, [jobs[place] for place in wanted], parallel):
            job = jobs[wanted[i]]
            advance(self._title(job))
            yield wanted[i], self._add(job, result), False

    def _title(self, job: _Job) -> str:
        contender, k, seed = job
        return f"{self.facts['dataset']}: {contender.name}, k={k}, seed {seed}"

    def _kept(self, job: _Job) -> Row | None:
        """Return the row of a job that is in the table, whole."""
        kept = self.table.find(self._description(*job))
        # what every run has; older tables, or those without scib-metrics, lack some
        scores = (*ALWAYS_SCORED, *[f"integration_{INTEGRATION[-1]}"] * self.scores_integration)
        missing = [] if kept is None else [name for name in scores if kept.get(name) is None]
        if missing:
            logger.info("%s is made again: the table lacks %s", self._title(job), missing[0])
        return None if missing else kept

    def _add(self, job: _Job, result: Row) -> Row:
        row = {**self._description(*job), **result}
        self.table.add(row)
        _log(row)
        return row

    def compute(self, contender: Contender, n_latent: int, seed: int) -> Row:
        """Train, embed and score."""
        task = Task(
            n_latent, seed, self.facts["batch_key"], self.plan.max_epochs, self.accelerator
        )
        if not contender.sees_labels:
            return self._result(self.measure(contender, task), seed)
        told = told_half(self.cells.labels, seed)
        types = np.where(told, self.cells.labels.astype(str), UNTOLD).astype(object)
        return self._result(self.measure(contender, replace(task, told=types)), seed, told)

    def _description(self, contender: Contender, n_latent: int, seed: int) -> Row:
        """Name what is known of a row before it is computed."""
        counts = self.cells.counts
        return {
            **self.facts,
            "n_cells": counts.n_obs,
            "n_genes": counts.n_vars,
            "n_types": self.cells.n_types,
            "gene_selection": self.cells.gene_selection,
            "model": contender.name,
            "n_latent": n_latent,
            "seed": seed,
            "max_epochs": self.plan.max_epochs if contender.takes_epochs else None,
            "saw_labels": contender.sees_labels,
            "settings": contender.settings(self.cells, n_latent),
            "fingerprint": self.cells.fingerprint,
            "dra_scvi": version("dra_scvi"),
            "scvi_tools": version("scvi-tools"),
            "torch": version("torch"),
        }

    def measure(self, contender: Contender, task: Task) -> Measured:
        if not contender.is_deterministic:
            return measure(contender, self.cells, task)
        key = contender.name, task.n_latent
        if key not in self.computed:
            self.computed[key] = measure(contender, self.cells, task)
        return self.computed[key]

    def _result(self, measured: Measured, seed: int, told: NDArray[np.bool_] | None = None) -> Row:
        scores: Row = {}
        if measured.embedded is not None:
            points = measured.embedded.points
            scores = score(points, self.cells, seed, self.scores_integration, told)
        return {
            "status": measured.status,
            **scores,
            "epochs": measured.embedded.epochs if measured.embedded else None,
            "seconds": measured.seconds,
            "cpu_seconds": measured.cpu_seconds,
            "peak_memory_mb": measured.peak_memory_mb,
        }


def _log(row: Row) -> None:
    run = f"{row['dataset']}: {row['model']}, k={row['n_latent']}, seed {row['seed']}"
    if row["status"] == OK:
        logger.info("%s: NMI %.3f in %.1f s", run, row["nmi"], row["seconds"])
    else:
        logger.warning("%s failed: %s", run, row["status"])


@contextlib.contextmanager
def _progress_bar(shown: bool, total: int) -> Iterator[Callable[[str], None]]:
    """Yield a function that begins the next run."""
    if not shown:
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn

    columns = "{task.description}", BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total)
        begun = 0

        def advance(run: str) -> None:
            nonlocal begun
            bar.update(task, completed=begun, description=run)
            begun += 1

        yield advance
