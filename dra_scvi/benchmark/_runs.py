"""One run of one model: its embedding, the time and memory that it took, and its scores."""

from __future__ import annotations

import gc
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dra_scvi import metrics
from dra_scvi._exceptions import TrainingInterruptedError
from dra_scvi._threads import own_threads
from dra_scvi.benchmark._table import INTEGRATION, OK, Row
from dra_scvi.metrics import _clustering, _input, _neighbors

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dra_scvi.benchmark._cells import Cells
    from dra_scvi.benchmark._models import Contender, Embedded, Task


KIB_PER_MIB = 1024


class Measured(NamedTuple):
    """What came of one model: an embedding or the reason why not, and what it took."""

    embedded: Embedded | None
    status: str
    seconds: float
    cpu_seconds: float
    peak_memory_mb: float


def measure(contender: Contender, cells: Cells, task: Task) -> Measured:
    """Run a model on a copy of the counts; a run that fails is a result as well."""
    counts = cells.counts.copy()
    counts_memory = _reset_peak_memory()
    wall, cpu = time.perf_counter(), time.process_time()
    embedded, status = None, OK
    try:
        with own_threads():
            embedded = contender.embed(counts, task)
    except TrainingInterruptedError:
        raise
    except (ArithmeticError, RuntimeError, ValueError) as error:
        status = " ".join(f"{type(error).__name__}: {error}".split())
    took = time.perf_counter() - wall, time.process_time() - cpu
    memory = _peak_memory() if counts_memory else float("nan")
    if not contender.is_linear:
        gc.collect()  # a trained model refers to itself, and would count for the next run
    if embedded is not None:
        _check_shape(embedded.points, contender, cells)
        n_bad = int((~np.isfinite(embedded.points).all(axis=1)).sum())
        if n_bad:
            embedded, status = None, f"the embedding of {n_bad} cells is not finite"
    return Measured(embedded, status, *took, memory)


def _check_shape(points: NDArray[Any], contender: Contender, cells: Cells) -> None:
    n_cells = cells.counts.n_obs
    if points.ndim != 2 or points.shape[0] != n_cells or points.shape[1] < 1:
        raise TypeError(
            f"model {contender.name!r} returned an array of shape {points.shape}; an embedding of "
            f"shape ({n_cells}, n_latent) is needed."
        )


def score(
    points: NDArray[Any],
    cells: Cells,
    seed: int,
    with_integration: bool,
    told: NDArray[np.bool_] | None = None,
) -> Row:
    """Cluster all cells, and score those whose types the model was not `told`."""
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    points = _input.checked_embedding(points)
    scored = slice(None) if told is None else ~told
    labels = cells.labels[scored]
    kmeans = metrics.cluster(points, "kmeans", cells.n_types, seed=seed)
    graph = _clustering.neighbor_graph(points, seed)
    found = _clustering.matched(graph, cells.n_types, seed)
    fixed = _clustering.cluster_graph(graph, 1.0, seed)
    scores: Row = {
        "nmi": float(normalized_mutual_info_score(labels, kmeans[scored])),
        "ari": float(adjusted_rand_score(labels, kmeans[scored])),
        "n_clusters": len(np.unique(kmeans)),
        "silhouette": _clustering.silhouette_of(points[scored], labels, seed),
        "leiden_nmi": float(normalized_mutual_info_score(labels, found[scored])),
        "leiden_ari": float(adjusted_rand_score(labels, found[scored])),
        "leiden_n_clusters": len(np.unique(found)),
        "leiden1_nmi": float(normalized_mutual_info_score(labels, fixed[scored])),
        "leiden1_n_clusters": len(np.unique(fixed)),
        "purity": _neighbors.purity_of(points, cells.labels, chosen=scored),
    }
    if with_integration and cells.batches is not None:
        scores |= _integration_scores(points, cells, cells.batches, scored)
    return scores


def _integration_scores(
    points: NDArray[Any],
    cells: Cells,
    batches: NDArray[np.int64],
    scored: slice | NDArray[np.bool_],
) -> Row:
    try:
        found = metrics.integration(
            points[scored],
            cells.labels[scored],
            batches[scored],
            unintegrated=cells.components[scored],
        )
    except ValueError:
        if isinstance(scored, slice):
            raise
        return {}  # half of the cells can be too few
    return {f"integration_{name}": found[name] for name in INTEGRATION}


def _reset_peak_memory() -> bool:
    """Let Linux count the greatest resident memory anew; say whether it does."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _peak_memory() -> float:
    """Return the greatest resident memory since it was reset, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next((line for line in lines if line.startswith("VmHWM")), None)
    return int(peak.split()[1]) / KIB_PER_MIB if peak else float("nan")
