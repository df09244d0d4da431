"""Clusters of an embedding, and their agreement with known labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from dra_scvi._argument_kinds import check_kinds, check_number, check_seed
from dra_scvi._threads import own_threads
from dra_scvi.metrics._input import codes_of, n_distinct, points_of

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import ArrayLike, NDArray

Method = Literal["kmeans", "leiden"]

_SILHOUETTE_CELLS = 5_000
_LEIDEN_NEIGHBORS = 15
_RESOLUTIONS = (1e-3, 1e2)
_RESOLUTIONS_TRIED = 16


def cluster(
    embedding: ArrayLike | AnnData,
    method: Method = "kmeans",
    n_clusters: int | None = None,
    resolution: float = 1.0,
    seed: int = 0,
    n_init: int = 10,
    *,
    use_rep: str | None = None,
) -> NDArray[np.int64]:
    """Partition cells by their position in an embedding, without looking at any label.

    Parameters
    ----------
    embedding
        Coordinates, ``(n_cells, n_latent)``, or an AnnData that has them.
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
    use_rep
        Of an AnnData: the key of ``obsm`` that is taken; ``"X_dra"`` unless given.

    Returns
    -------
    Cluster of every cell, ``(n_cells,)``, numbered from 0.

    Raises
    ------
    KeyError
        An AnnData has no such key or column.
    TypeError
        An argument is of another kind, such as the name of a column where there is no AnnData.
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
    check_kinds(cluster, locals())
    points = points_of(embedding, use_rep)
    _check_method(method, n_clusters)
    _check_numbers(len(points), n_clusters, resolution, seed, n_init)
    if method == "leiden":
        return cluster_graph(neighbor_graph(points, seed), resolution, seed)
    if n_clusters is None:
        raise ValueError("k-means needs the number of clusters: pass n_clusters.")
    return _kmeans(points, n_clusters=n_clusters, seed=seed, n_init=n_init)


def clustering(
    embedding: ArrayLike | AnnData,
    labels: ArrayLike | str,
    method: Method = "kmeans",
    seed: int = 0,
    n_clusters: int | None = None,
    resolution: float = 1.0,
    n_init: int = 10,
    *,
    use_rep: str | None = None,
) -> dict[str, float | int]:
    """Cluster an embedding and compare the clusters with known labels.

    Parameters
    ----------
    embedding
        Coordinates, ``(n_cells, n_latent)``, or an AnnData that has them.
    labels
        Known label of every cell, ``(n_cells,)``, of any type; of an AnnData, the column of
        ``obs`` that has them.
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
    use_rep
        Of an AnnData: the key of ``obsm`` that is taken; ``"X_dra"`` unless given.

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
    KeyError
        An AnnData has no such key or column.
    TypeError
        An argument is of another kind, such as the name of a column where there is no AnnData.
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

    Or by name, of what is in an AnnData:

    >>> import dra_scvi
    >>> adata = dra_scvi.datasets.synthetic(n_cells=100, n_genes=20)
    >>> adata.obsm["X_pca"] = np.log1p(adata.X.toarray())
    >>> sorted(metrics.clustering(adata, labels="cell_type", use_rep="X_pca"))
    ['ari', 'n_clusters', 'nmi', 'silhouette']
    """
    check_kinds(clustering, locals())
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    points = points_of(embedding, use_rep)
    known = codes_of(embedding, labels, len(points), name="labels")
    _check_method(method, n_clusters)
    if method == "kmeans" and n_clusters is None:
        n_clusters = n_distinct(known)
    found = cluster(points, method, n_clusters, resolution, seed, n_init)
    scores: dict[str, float | int] = {
        "nmi": float(normalized_mutual_info_score(known, found, average_method="arithmetic")),
        "ari": float(adjusted_rand_score(known, found)),
        "n_clusters": n_distinct(found),
    }
    silhouette = silhouette_of(points, known, seed)
    if silhouette is not None:
        scores["silhouette"] = silhouette
    return scores


def leiden_matched(
    embedding: ArrayLike | AnnData, n_clusters: int, seed: int = 0, *, use_rep: str | None = None
) -> NDArray[np.int64]:
    """Partition cells by Leiden, at a resolution that gives a wanted number of clusters.

    The resolution is bisected on a logarithmic scale; of the labels only their number may be
    known. Where no resolution tried gives that number, the nearest partition is returned.

    Parameters
    ----------
    embedding
        Coordinates, ``(n_cells, n_latent)``, or an AnnData that has them.
    n_clusters
        Wanted number of clusters.
    seed
        Seed of the graph and of the clustering.
    use_rep
        Of an AnnData: the key of ``obsm`` that is taken; ``"X_dra"`` unless given.

    Returns
    -------
    Cluster of every cell, ``(n_cells,)``, numbered from 0.

    Raises
    ------
    KeyError
        An AnnData has no such key or column.
    TypeError
        An argument is of another kind, such as the name of a column where there is no AnnData.
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
    check_kinds(leiden_matched, locals())
    check_number(n_clusters, "n_clusters", least=1)
    check_seed(seed)
    return matched(neighbor_graph(points_of(embedding, use_rep), seed), n_clusters, seed)


def matched(graph: AnnData, n_clusters: int, seed: int) -> NDArray[np.int64]:
    """Bisect the resolution of Leiden until it gives a wanted number of clusters, or nearly."""
    low, high = np.log(_RESOLUTIONS)
    partitions: list[NDArray[np.int64]] = []
    for _ in range(_RESOLUTIONS_TRIED):
        middle = (low + high) / 2
        partitions.append(cluster_graph(graph, float(np.exp(middle)), seed))
        surplus = n_distinct(partitions[-1]) - n_clusters
        if surplus == 0:
            break
        low, high = (low, middle) if surplus > 0 else (middle, high)
    return min(partitions, key=lambda found: abs(n_distinct(found) - n_clusters))


def _kmeans(
    points: NDArray[np.floating], n_clusters: int, seed: int, n_init: int
) -> NDArray[np.int64]:
    from sklearn.cluster import KMeans

    model = KMeans(n_clusters=n_clusters, n_init=n_init, random_state=seed)
    with own_threads():
        return model.fit_predict(points).astype(np.int64)


def neighbor_graph(points: NDArray[np.floating], seed: int) -> AnnData:
    import scanpy as sc
    from anndata import AnnData

    if len(points) < 3:
        raise ValueError(f"Leiden needs at least 3 cells, got {len(points)}.")
    graph = AnnData(obsm={"embedding": points})
    n_neighbors = min(_LEIDEN_NEIGHBORS, len(points) - 1)
    with own_threads():
        sc.pp.neighbors(graph, n_neighbors=n_neighbors, use_rep="embedding", random_state=seed)
    return graph


def cluster_graph(graph: AnnData, resolution: float, seed: int) -> NDArray[np.int64]:
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


def silhouette_of(
    points: NDArray[np.floating], known: NDArray[np.int64], seed: int
) -> float | None:
    from sklearn.metrics import silhouette_score

    if len(points) > _SILHOUETTE_CELLS:
        rng = np.random.default_rng(seed)
        drawn = rng.choice(len(points), size=_SILHOUETTE_CELLS, replace=False)
        points, known = points[drawn], known[drawn]
    if not 2 <= n_distinct(known) < len(points):
        return None
    with own_threads():
        return float(silhouette_score(points, known))


def _check_numbers(
    n_cells: int, n_clusters: int | None, resolution: float, seed: int, n_init: int
) -> None:
    check_seed(seed)
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
