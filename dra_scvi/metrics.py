"""Scores of an embedding against known labels and batches, as pure functions.

The arithmetic is that of scikit-learn (partitions, silhouette), scanpy (Leiden) and scib-metrics
(integration); this file owns the input checks and the choice of settings.
"""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pandas as pd

from dra_scvi._argument_kinds import check_number, matrix, one_per_cell
from dra_scvi._threads import own_threads

if TYPE_CHECKING:
    from types import ModuleType

    from anndata import AnnData
    from numpy.typing import ArrayLike, NDArray

__all__ = ["cluster", "clustering", "integration", "leiden_matched"]

Method = Literal["kmeans", "leiden"]

_SILHOUETTE_CELLS = 5_000
_LEIDEN_NEIGHBORS = 15
_RESOLUTIONS = (1e-3, 1e2)
_RESOLUTIONS_TRIED = 16
_CONNECTIVITY_NEIGHBORS = 15
_KBET_NEIGHBORS = 50
_LISI_NEIGHBORS = 90
_BIO_WEIGHT, _BATCH_WEIGHT = 0.6, 0.4


def cluster(
    embedding: ArrayLike,
    method: Method = "kmeans",
    n_clusters: int | None = None,
    resolution: float = 1.0,
    seed: int = 0,
    n_init: int = 10,
) -> NDArray[np.int64]:
    """Partition cells by their position in an embedding, without looking at any label.

    Parameters
    ----------
    embedding
        Coordinates, ``(n_cells, n_latent)``.
    method
        ``"kmeans"`` (scikit-learn) or ``"leiden"`` on the graph of the 15 nearest neighbours
        (scanpy).
    n_clusters
        Number of clusters; required by k-means, refused by Leiden.
    resolution
        Resolution of Leiden; k-means does not use it.
    seed
        Seed of the clustering.
    n_init
        Restarts of k-means, of which the best is kept.

    Returns
    -------
    Cluster of every cell, ``(n_cells,)``, numbered from 0.

    Raises
    ------
    TypeError
        An argument is of another kind, such as an AnnData or the name of a column.
    ValueError
        The embedding is not a finite matrix, the method is unknown, or ``n_clusters`` does not
        fit the method.

    Examples
    --------
    >>> import numpy as np
    >>> from dra_scvi.metrics import cluster
    >>> embedding = np.array([[0.0, 0.0], [0.1, 0.0], [9.0, 9.0], [9.1, 9.0]])
    >>> found = cluster(embedding, n_clusters=2)
    >>> bool(found[0] == found[1]), bool(found[0] == found[2])
    (True, False)
    """
    points = _checked_embedding(embedding)
    _check_method(method, n_clusters)
    _check_numbers(len(points), n_clusters, resolution, seed, n_init)
    if method == "leiden":
        return _leiden(_neighbor_graph(points, seed), resolution, seed)
    if n_clusters is None:
        raise ValueError("k-means needs the number of clusters: pass n_clusters.")
    return _kmeans(points, n_clusters=n_clusters, seed=seed, n_init=n_init)


def clustering(
    embedding: ArrayLike,
    labels: ArrayLike,
    method: Method = "kmeans",
    seed: int = 0,
    n_clusters: int | None = None,
    resolution: float = 1.0,
    n_init: int = 10,
) -> dict[str, float | int]:
    """Cluster an embedding and compare the clusters with known labels.

    Parameters
    ----------
    embedding
        Coordinates, ``(n_cells, n_latent)``.
    labels
        Known label of every cell, ``(n_cells,)``, of any type.
    method
        ``"kmeans"`` or ``"leiden"``, see :func:`cluster`.
    seed
        Seed of the clustering, and of the draw of cells for the silhouette.
    n_clusters
        Number of clusters for k-means; the number of distinct labels if None.
    resolution
        Resolution of Leiden. The default takes nothing from the labels.
    n_init
        Restarts of k-means, of which the best is kept.

    Returns
    -------
    Dictionary with

    - ``"nmi"``: normalised mutual information of clusters and labels, arithmetic average, in
      [0, 1], higher is better;
    - ``"ari"``: adjusted Rand index, at most 1, about 0 by chance, higher is better;
    - ``"silhouette"``: mean silhouette of the *labels* on the embedding (Euclidean), in [-1, 1],
      higher is better, on at most 5,000 cells drawn at random; left out where it is undefined
      (one label, or as many labels as cells);
    - ``"n_clusters"``: number of clusters found.

    Raises
    ------
    TypeError
        An argument is of another kind, such as an AnnData or the name of a column.
    ValueError
        The embedding is not a finite matrix, a label is missing, the lengths differ, the method
        is unknown, or ``n_clusters`` is given to Leiden.

    References
    ----------
    Rousseeuw, P. J. (1987). Silhouettes. J. Comput. Appl. Math. 20, 53-65.

    Hubert, L. & Arabie, P. (1985). Comparing partitions. J. Classif. 2, 193-218.

    Traag, V. A., Waltman, L. & van Eck, N. J. (2019). From Louvain to Leiden. Sci. Rep. 9, 5233.

    Examples
    --------
    >>> import numpy as np
    >>> from dra_scvi import metrics
    >>> labels = np.repeat(["B", "T"], 50)
    >>> noise = np.random.default_rng(0).normal(size=(100, 2))
    >>> scores = metrics.clustering(noise + 20 * (labels == "T")[:, None], labels)
    >>> round(scores["nmi"], 6), round(scores["ari"], 6), scores["n_clusters"]
    (1.0, 1.0, 2)
    """
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    points = _checked_embedding(embedding)
    known = _label_codes(labels, len(points), name="labels")
    _check_method(method, n_clusters)
    if method == "kmeans" and n_clusters is None:
        n_clusters = _n_distinct(known)
    found = cluster(points, method, n_clusters, resolution, seed, n_init)
    scores: dict[str, float | int] = {
        "nmi": float(normalized_mutual_info_score(known, found, average_method="arithmetic")),
        "ari": float(adjusted_rand_score(known, found)),
        "n_clusters": _n_distinct(found),
    }
    silhouette = _silhouette(points, known, seed)
    if silhouette is not None:
        scores["silhouette"] = silhouette
    return scores


def leiden_matched(embedding: ArrayLike, n_clusters: int, seed: int = 0) -> NDArray[np.int64]:
    """Partition cells by Leiden, at a resolution that gives a wanted number of clusters.

    The resolution is bisected on a logarithmic scale; of the labels only their number may be
    known. Where no resolution tried gives that number, the nearest partition is returned.

    Parameters
    ----------
    embedding
        Coordinates, ``(n_cells, n_latent)``.
    n_clusters
        Wanted number of clusters.
    seed
        Seed of the graph and of the clustering.

    Returns
    -------
    Cluster of every cell, ``(n_cells,)``, numbered from 0.

    Raises
    ------
    TypeError
        An argument is of another kind, such as an AnnData or the name of a column.
    ValueError
        The embedding is not a finite matrix, or ``n_clusters`` is not positive.

    Examples
    --------
    >>> import numpy as np
    >>> from dra_scvi import metrics
    >>> embedding = np.random.default_rng(0).normal(size=(200, 2))
    >>> len(np.unique(metrics.leiden_matched(embedding, n_clusters=4)))
    4
    """
    check_number(n_clusters, "n_clusters", least=1)
    check_number(seed, "seed", least=0)
    graph = _neighbor_graph(_checked_embedding(embedding), seed)
    low, high = np.log(_RESOLUTIONS)
    partitions: list[NDArray[np.int64]] = []
    for _ in range(_RESOLUTIONS_TRIED):
        middle = (low + high) / 2
        partitions.append(_leiden(graph, float(np.exp(middle)), seed))
        surplus = _n_distinct(partitions[-1]) - n_clusters
        if surplus == 0:
            break
        low, high = (low, middle) if surplus > 0 else (middle, high)
    return min(partitions, key=lambda found: abs(_n_distinct(found) - n_clusters))


def integration(
    embedding: ArrayLike,
    labels: ArrayLike,
    batches: ArrayLike,
    unintegrated: ArrayLike | None = None,
) -> dict[str, float]:
    """Score how well an embedding mixes batches and keeps cell types apart.

    The scores that ``scib_metrics.benchmark.Benchmarker`` computes by default, scaled as there: in
    [0, 1] up to the estimation error of LISI, higher is better. Neighbours are exact, so the
    result depends on the data alone.

    Parameters
    ----------
    embedding
        Coordinates, ``(n_cells, n_latent)``.
    labels
        Cell type of every cell, ``(n_cells,)``; at least two types.
    batches
        Batch of every cell, ``(n_cells,)``; at least two batches.
    unintegrated
        Coordinates of the same cells before integration, ``(n_cells, n_components)``, such as
        principal components of log-normalised counts; `"pcr"` needs them.

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
    TypeError
        An argument is of another kind, such as an AnnData or the name of a column.
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
    ...     adata.obsm["X_dra"], adata.obs["cell_type"], adata.obs["batch"]
    ... )  # doctest: +SKIP
    >>> scores["total"]  # doctest: +SKIP
    """
    points = _checked_embedding(embedding)
    types = _label_codes(labels, len(points), name="labels")
    batch = _label_codes(batches, len(points), name="batches")
    _check_comparable(types, batch)
    scib = _import_scib()
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
        before = _checked_embedding(unintegrated, "unintegrated")
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


def _kmeans(
    points: NDArray[np.floating], n_clusters: int, seed: int, n_init: int
) -> NDArray[np.int64]:
    from sklearn.cluster import KMeans

    model = KMeans(n_clusters=n_clusters, n_init=n_init, random_state=seed)
    with own_threads():
        return model.fit_predict(points).astype(np.int64)


def _neighbor_graph(points: NDArray[np.floating], seed: int) -> AnnData:
    import scanpy as sc
    from anndata import AnnData

    if len(points) < 3:
        raise ValueError(f"Leiden needs at least 3 cells, got {len(points)}.")
    graph = AnnData(obsm={"embedding": points})
    n_neighbors = min(_LEIDEN_NEIGHBORS, len(points) - 1)
    with own_threads():
        sc.pp.neighbors(graph, n_neighbors=n_neighbors, use_rep="embedding", random_state=seed)
    return graph


def _leiden(graph: AnnData, resolution: float, seed: int) -> NDArray[np.int64]:
    import scanpy as sc

    sc.tl.leiden(
        graph,
        resolution=resolution,
        random_state=seed,
        flavor="igraph",
        n_iterations=2,
        directed=False,
        key_added="cluster",
    )
    return graph.obs["cluster"].cat.codes.to_numpy(dtype=np.int64)


def _silhouette(points: NDArray[np.floating], known: NDArray[np.int64], seed: int) -> float | None:
    from sklearn.metrics import silhouette_score

    if len(points) > _SILHOUETTE_CELLS:
        rng = np.random.default_rng(seed)
        drawn = rng.choice(len(points), size=_SILHOUETTE_CELLS, replace=False)
        points, known = points[drawn], known[drawn]
    if not 2 <= _n_distinct(known) < len(points):
        return None
    with own_threads():
        return float(silhouette_score(points, known))


def _exact_neighbors(points: NDArray[np.floating], n_neighbors: int) -> Any:
    from scib_metrics.nearest_neighbors import NeighborsResults
    from sklearn.neighbors import NearestNeighbors

    index = NearestNeighbors(n_neighbors=min(n_neighbors, len(points))).fit(points)
    with own_threads():
        distances, indices = index.kneighbors(points)
    return NeighborsResults(indices=indices, distances=distances)


def _import_scib() -> ModuleType:
    try:
        import scib_metrics
    except ImportError as error:
        raise ImportError(
            'Integration scores need scib-metrics: pip install "dra_scvi[scib]"'
        ) from error
    return scib_metrics


def _checked_embedding(embedding: ArrayLike, argument: str = "embedding") -> NDArray[np.floating]:
    points = matrix(embedding, argument)
    if points.ndim != 2 or 0 in points.shape:
        raise ValueError(
            "The embedding must be a dense matrix of shape (n_cells, n_latent), neither of them "
            f"zero; got shape {points.shape}."
        )
    if points.dtype != np.float32:
        points = points.astype(np.float64)
    n_bad = int((~np.isfinite(points).all(axis=1)).sum())
    if n_bad:
        raise ValueError(
            f"The embedding has NaN or infinite values in {n_bad} of {len(points)} cells; "
            "remove these cells, or train the model again with a lower learning rate."
        )
    return points


def _label_codes(labels: ArrayLike, n_cells: int, name: str) -> NDArray[np.int64]:
    values = pd.Series(one_per_cell(labels, n_cells, name))
    codes, _ = pd.factorize(values)
    n_missing = int((codes < 0).sum())
    if n_missing:
        raise ValueError(
            f"{name} is missing (NaN) in {n_missing} of {n_cells} cells; drop these cells, or "
            "give them a value of their own such as 'unknown'."
        )
    return codes.astype(np.int64)


def _check_numbers(
    n_cells: int, n_clusters: int | None, resolution: float, seed: int, n_init: int
) -> None:
    check_number(seed, "seed", least=0)
    check_number(n_init, "n_init", least=1)
    check_number(resolution, "resolution", least=0, whole=False)
    if n_clusters is None:
        return
    check_number(n_clusters, "n_clusters", least=1)
    if n_clusters > n_cells:
        raise ValueError(f"n_clusters={n_clusters} is more than the {n_cells} cells there are.")


def _check_method(method: str, n_clusters: int | None) -> None:
    choices = get_args(Method)
    if not isinstance(method, str) or method not in choices:
        listed = " or ".join(repr(choice) for choice in choices)
        raise ValueError(f"Unknown clustering method {method!r}; choose {listed}.")
    if method == "leiden" and n_clusters is not None:
        raise ValueError(
            "Leiden finds the number of clusters itself: leave n_clusters out and set resolution."
        )


def _check_comparable(types: NDArray[np.int64], batch: NDArray[np.int64]) -> None:
    if len(types) <= _CONNECTIVITY_NEIGHBORS:
        raise ValueError(
            f"Integration scores need more than {_CONNECTIVITY_NEIGHBORS} cells, got {len(types)}."
        )
    for codes, what in ((batch, "batch"), (types, "label")):
        if _n_distinct(codes) < 2:
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


def _n_distinct(codes: NDArray[np.int64]) -> int:
    return len(np.unique(codes))
