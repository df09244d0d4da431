"""How well batches mix while types stay apart: the ten scores of scib-metrics."""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from dra_scvi._threads import own_threads
from dra_scvi.metrics._input import codes_of, n_distinct, other_points_of, points_of

if TYPE_CHECKING:
    from types import ModuleType

    from anndata import AnnData
    from numpy.typing import ArrayLike, NDArray
_BIO_WEIGHT, _BATCH_WEIGHT = 0.6, 0.4


_CONNECTIVITY_NEIGHBORS = 15
_KBET_NEIGHBORS = 50
_LISI_NEIGHBORS = 90


def integration(
    embedding: ArrayLike | AnnData,
    labels: ArrayLike | str,
    batches: ArrayLike | str,
    unintegrated: ArrayLike | str | None = None,
    *,
    use_rep: str | None = None,
) -> dict[str, float]:
    """Score how well an embedding mixes batches and keeps cell types apart.

    The scores that ``scib_metrics.benchmark.Benchmarker`` computes by default, scaled as there: in
    [0, 1] up to the estimation error of LISI, higher is better. Neighbours are exact, so the
    result depends on the data alone.

    Parameters
    ----------
    embedding
        Coordinates, ``(n_cells, n_latent)``, or an AnnData that has them.
    labels
        Cell type of every cell, ``(n_cells,)``; at least two types. Of an AnnData, the column of
        ``obs`` that has them.
    batches
        Batch of every cell, ``(n_cells,)``, or a column; at least two batches.
    unintegrated
        Coordinates of the same cells before integration, ``(n_cells, n_components)``, such as
        principal components of log-normalised counts, or a key of ``obsm``; `"pcr"` needs them.
    use_rep
        Of an AnnData: the key of ``obsm`` that is taken; ``"X_dra"`` unless given.

    Returns
    -------
    Dictionary with

    - ``"isolated_labels"``: silhouette of the types that occur in the fewest batches;
    - ``"nmi"``, ``"ari"``: clusters of k-means, as many as types, against the types;
    - ``"silhouette_label"``: silhouette of the cell types;
    - ``"clisi"``: cell-type LISI over 90 neighbours;
    - ``"bras"``: batch-removal adapted silhouette, within each type;
    - ``"ilisi"``: batch LISI over 90 neighbours;
    - ``"kbet"``: acceptance rate of kBET within each type, over 50 neighbours; NaN where every
      type is too small for it or in one batch;
    - ``"graph_connectivity"``: share of each type in its largest strongly connected component of
      the graph of 15 neighbours;
    - ``"pcr"``: how much less variance batches explain than before integration, 0 where they
      explain more; NaN without `unintegrated`;
    - ``"bio_conservation"``: mean of the first five;
    - ``"batch_correction"``: mean of the next five, those that are NaN left out;
    - ``"total"``: 0.6 bio conservation + 0.4 batch correction, the weights of the benchmark.

    Raises
    ------
    ImportError
        scib-metrics is not installed.
    KeyError
        An AnnData has no such key or column.
    TypeError
        An argument is of another kind, such as the name of a column where there is no AnnData.
    ValueError
        The embedding is not a finite matrix, a label or batch is missing, the lengths differ, or
        there is only one label, only one batch, or no label that occurs in two batches.

    References
    ----------
    Luecken, M. D. et al. (2022). Benchmarking atlas-level data integration in single-cell
    genomics. Nat. Methods 19, 41-50.

    Examples
    --------
    >>> from dra_scvi import metrics
    >>> scores = metrics.integration(
    ...     adata, labels="cell_type", batches="batch", unintegrated="X_pca"
    ... )  # doctest: +SKIP
    >>> scores["total"]  # doctest: +SKIP
    """
    points = points_of(embedding, use_rep)
    types = codes_of(embedding, labels, len(points), name="labels")
    batch = codes_of(embedding, batches, len(points), name="batches")
    check_comparable(types, batch)
    scib = import_scib()
    near, middle, wide = (
        _exact_neighbors(points, n)
        for n in (_CONNECTIVITY_NEIGHBORS, _KBET_NEIGHBORS, _LISI_NEIGHBORS)
    )
    clusters = scib.nmi_ari_cluster_labels_kmeans(points, types)
    bio = {
        "isolated_labels": scib.isolated_labels(points, types, batch),
        "nmi": clusters["nmi"],
        "ari": clusters["ari"],
        "silhouette_label": scib.silhouette_label(points, types),
        "clisi": scib.clisi_knn(wide, types),
    }
    mixing = {
        "bras": scib.bras(points, types, batch),
        "ilisi": scib.ilisi_knn(wide, batch),
        "kbet": _kbet(scib, middle, batch, types),
        "graph_connectivity": scib.graph_connectivity(near, types),
        "pcr": np.nan,
    }
    if unintegrated is not None:
        before = other_points_of(embedding, unintegrated, "unintegrated")
        if len(before) != len(points):
            raise ValueError(f"unintegrated has {len(before)} cells, the embedding {len(points)}.")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "PCR comparison score is negative", UserWarning)
            mixing["pcr"] = scib.pcr_comparison(before, points, batch, categorical=True)
    bio_mean, mixing_mean = (np.nanmean(list(part.values())) for part in (bio, mixing))
    total = _BIO_WEIGHT * bio_mean + _BATCH_WEIGHT * mixing_mean
    means = {"bio_conservation": bio_mean, "batch_correction": mixing_mean, "total": total}
    return {name: float(score) for name, score in {**bio, **mixing, **means}.items()}


def _kbet(
    scib: ModuleType, neighbors: Any, batch: NDArray[np.int64], types: NDArray[np.int64]
) -> float:
    """Compute the acceptance rate of kBET, silent about the types that it leaves out."""
    logger = logging.getLogger("scib_metrics")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Mean of empty slice", RuntimeWarning)
            return float(scib.kbet_per_label(neighbors, batch, types))
    finally:
        logger.setLevel(level)


def _exact_neighbors(points: NDArray[np.floating], n_neighbors: int) -> Any:
    from scib_metrics.nearest_neighbors import NeighborsResults
    from sklearn.neighbors import NearestNeighbors

    index = NearestNeighbors(n_neighbors=min(n_neighbors, len(points))).fit(points)
    with own_threads():
        distances, indices = index.kneighbors(points)
    return NeighborsResults(indices=indices, distances=distances)


def import_scib() -> ModuleType:
    try:
        import scib_metrics
    except ImportError as error:
        raise ImportError(
            'Integration scores need scib-metrics: pip install "dra_scvi[scib]"'
        ) from error
    return scib_metrics


def check_comparable(types: NDArray[np.int64], batch: NDArray[np.int64]) -> None:
    if len(types) <= _CONNECTIVITY_NEIGHBORS:
        raise ValueError(
            f"Integration scores need more than {_CONNECTIVITY_NEIGHBORS} cells, got {len(types)}."
        )
    for codes, what in ((batch, "batch"), (types, "label")):
        if n_distinct(codes) < 2:
            raise ValueError(
                f"Integration scores need at least two {what} values, found one; "
                "use dra_scvi.metrics.clustering instead."
            )
    sizes = pd.crosstab(types, batch)
    n_batches, n_cells = (sizes > 0).sum(axis=1), sizes.sum(axis=1)
    if not ((n_batches > 1) & (n_batches < n_cells)).any():
        raise ValueError(
            "No label occurs in two batches with more than one cell in one of them, so mixing of "
            "batches cannot be told from difference of types."
        )
