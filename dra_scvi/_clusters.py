"""Clusters where nobody knows how many there are: Leiden, its resolution, and the UMAP."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from dra_scvi._argument_kinds import check_adata, check_kinds, check_number, check_seed
from dra_scvi._outputs.h5ad_content import check_key
from dra_scvi._threads import own_threads
from dra_scvi.metrics._clustering import cluster_graph, neighbor_graph
from dra_scvi.metrics._input import DEFAULT_REP, n_distinct, points_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from numpy.typing import NDArray


RESOLUTIONS = (0.01, 0.03, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.2, 1.5, 2.0)
MOST_CELLS = 4_000
DRAWS = 5
LEAST_CELLS = 10  # of fewer, draws are so alike that whatever is found in one is in the others
LEAST_SPECTRAL = 4
SHARE = 0.8  # of the cells in a draw
STABLE = 0.9  # mean adjusted Rand index
ABSENT = -1  # cluster of a cell that a draw leaves out


class Suggestion(NamedTuple):
    """A resolution of Leiden, and how it was chosen.

    Parameters
    ----------
    resolution
        The choice.
    is_stable
        Whether clusters come out alike in other draws of the cells. Otherwise there may be none,
        and the choice is a resolution that leaves the cells in as few as possible.
    table
        A row for each resolution tried: ``"resolution"``, ``"n_clusters"`` (median of the draws),
        ``"stability"`` (mean adjusted Rand index of two draws) and ``"is_chosen"``.
    """

    resolution: float
    is_stable: bool
    table: pd.DataFrame


def suggest_resolution(
    adata: AnnData,
    use_rep: str = DEFAULT_REP,
    resolutions: Sequence[float] = RESOLUTIONS,
    *,
    seed: int = 0,
    max_cells: int = MOST_CELLS,
) -> Suggestion:
    """Suggest a resolution of Leiden by how stable its clusters are; no label is looked at.

    Five times 80 % of the cells are drawn, and clustered at every resolution on a graph of their
    own, with a seed of their own. Two draws agree by the adjusted Rand index over the cells that
    they share: 1 where they find the same clusters, 0 by chance, and 0 where each cell is one. A
    resolution is stable where the mean over all pairs is at least 0.9. Of the stable ones with two
    clusters or more, those with the most clusters are kept, and the middle one of them is the
    choice.

    Clusters that are stable are not always cell types: rare types may be missed, and batches that
    were not integrated are stable as well. Look at the markers.

    Parameters
    ----------
    adata
        Has the embedding. It is not changed.
    use_rep
        Key of ``adata.obsm``.
    resolutions
        Those to be tried.
    seed
        Seed of draws, graphs and clusters.
    max_cells
        Of more cells so many are drawn first, which bounds the time to some seconds. Leiden
        splits a little more finely on the graph of all of them.

    Returns
    -------
    The choice, whether it is stable, and the table behind it. Where nothing is stable, as in
    cells without types, the choice is the middle one of those with the fewest clusters, mostly
    one.

    Raises
    ------
    KeyError
        When there is no such embedding.
    TypeError, ValueError
        When an argument is not what it may be, or there are fewer than ten cells.

    References
    ----------
    Hubert, L. & Arabie, P. (1985). Comparing partitions. J. Classif. 2, 193-218.

    Ben-Hur, A., Elisseeff, A. & Guyon, I. (2002). A stability based method for discovering
    structure in clustered data. Pac. Symp. Biocomput., 6-17.

    Examples
    --------
    >>> import numpy as np
    >>> from anndata import AnnData
    >>> from dra_scvi import tl
    >>> rng = np.random.default_rng(0)
    >>> types = np.repeat(np.eye(3), 50, axis=0)
    >>> adata = AnnData(obsm={"X_dra": 9 * types + rng.normal(size=(150, 3))})
    >>> found = tl.suggest_resolution(adata, resolutions=[0.1, 0.5])
    >>> found.is_stable, found.table["n_clusters"].tolist()
    (True, [3, 3])
    """
    check_kinds(suggest_resolution, locals())
    check_adata(adata, ("obsm",))
    check_seed(seed)
    check_number(max_cells, "max_cells", least=LEAST_CELLS)
    tried = sorted({_checked(resolution) for resolution in resolutions})
    if not tried:
        raise ValueError("resolutions must hold at least one number.")
    points = points_of(adata, use_rep)
    if len(points) < LEAST_CELLS:
        raise ValueError(
            f"adata has {len(points)} cells, in which clusters are not told from chance; at least "
            f"{LEAST_CELLS} are needed. tl.cluster takes a resolution of your own."
        )
    rng = np.random.default_rng(seed)
    if len(points) > max_cells:
        points = points[np.sort(rng.choice(len(points), max_cells, replace=False))]
    draws = [_draw(points, tried, rng) for _ in range(DRAWS)]
    rows = [_row(resolution, [draw[resolution] for draw in draws]) for resolution in tried]
    return _choose(pd.DataFrame(rows))


def cluster(
    adata: AnnData,
    use_rep: str = DEFAULT_REP,
    resolution: float | None = None,
    *,
    leiden: bool = True,
    umap: bool = True,
    key_added: str = "leiden",
    seed: int = 0,
) -> Suggestion | None:
    """Add clusters of an embedding and its UMAP to `adata`, by scanpy's own steps.

    They are ``sc.pp.neighbors`` on the embedding, with 15 neighbours, ``sc.tl.leiden`` in the
    flavour of igraph, and ``sc.tl.umap``. The graph is not kept.

    Parameters
    ----------
    adata
        Has the embedding.
    use_rep
        Key of ``adata.obsm``.
    resolution
        Resolution of Leiden; `None` for that of :func:`suggest_resolution`.
    leiden
        Whether clusters are found.
    umap
        Whether the UMAP is computed.
    key_added
        Column of ``adata.obs`` for the clusters, ``"0"``, ``"1"``, ... from the largest on, and
        key of ``adata.uns`` for their parameters.
    seed
        Seed of everything random.

    Returns
    -------
    The suggestion, where the resolution was suggested. ``adata.obsm["X_umap"]`` is the UMAP.

    Raises
    ------
    KeyError
        When there is no such embedding.
    TypeError, ValueError
        When an argument is not what it may be.

    Examples
    --------
    >>> import numpy as np
    >>> from anndata import AnnData
    >>> from dra_scvi import tl
    >>> rng = np.random.default_rng(0)
    >>> types = np.repeat(np.eye(3), 50, axis=0)
    >>> adata = AnnData(obsm={"X_dra": 9 * types + rng.normal(size=(150, 3))})
    >>> tl.cluster(adata, resolution=0.5, umap=False)
    >>> adata.obs["leiden"].value_counts().tolist()
    [50, 50, 50]
    """
    check_kinds(cluster, locals())
    check_adata(adata, ("obs", "obsm", "uns"))
    check_seed(seed)
    check_key(key_added, "key_added")
    graph = neighbor_graph(points_of(adata, use_rep), seed)
    suggestion = None
    if leiden:
        origin: dict[str, Any] = {}
        if resolution is None:
            suggestion = suggest_resolution(adata, use_rep, seed=seed)
            resolution = suggestion.resolution
            table = {name: values.to_numpy() for name, values in suggestion.table.items()}
            origin["suggestion"] = {"is_stable": suggestion.is_stable, **table}
        found = _from_largest(cluster_graph(graph, _checked(resolution), seed))
        names = [str(number) for number in range(n_distinct(found))]
        adata.obs[key_added] = pd.Categorical.from_codes(found, names)
        adata.uns[key_added] = {**graph.uns["cluster"], **origin}
        adata.uns.pop(f"{key_added}_colors", None)  # of clusters that were there before
    if umap:
        import scanpy as sc

        with own_threads():
            sc.tl.umap(graph, init_pos=_begin_at(graph), random_state=seed)
        adata.obsm["X_umap"] = graph.obsm["X_umap"]
        adata.uns["umap"] = graph.uns["umap"]
    return suggestion


def _from_largest(found: NDArray[np.int64]) -> NDArray[np.int64]:
    """Renumber clusters, the largest first, as Leiden's own numbers follow no order.

    >>> _from_largest(np.array([0, 1, 1, 2, 2, 2])).tolist()
    [2, 1, 1, 0, 0, 0]
    """
    order = np.argsort(-np.bincount(found), kind="stable")
    return np.argsort(order)[found]


def _begin_at(graph: AnnData) -> str:
    """Begin where scanpy does, unless the graph is too small to have enough eigenvectors."""
    return "spectral" if graph.n_obs >= LEAST_SPECTRAL else "random"


def _checked(resolution: Any) -> float:
    check_number(resolution, "resolution", least=0, whole=False)
    return float(resolution)


def _draw(
    points: NDArray[np.floating], resolutions: Sequence[float], rng: np.random.Generator
) -> dict[float, NDArray[np.int64]]:
    """Cluster a draw of the cells at every resolution, each ``(n_cells,)``."""
    n_cells, seed = len(points), int(rng.integers(2**31))
    rows = np.sort(rng.choice(n_cells, int(SHARE * n_cells), replace=False))
    graph = neighbor_graph(points[rows], seed)
    found = {}
    for resolution in resolutions:
        found[resolution] = np.full(n_cells, ABSENT)
        found[resolution][rows] = cluster_graph(graph, resolution, seed)
    return found


def _row(resolution: float, draws: Sequence[NDArray[np.int64]]) -> dict[str, Any]:
    """Describe what several draws have found at one resolution."""
    numbers = [n_distinct(found[found != ABSENT]) for found in draws]
    agreement = [_agreement(one, other) for one, other in combinations(draws, 2)]
    return {
        "resolution": resolution,
        "n_clusters": int(np.median(numbers)),
        "stability": float(np.mean(agreement)),
    }


def _agreement(one: NDArray[np.int64], other: NDArray[np.int64]) -> float:
    from sklearn.metrics import adjusted_rand_score

    shared = (one != ABSENT) & (other != ABSENT)
    if n_distinct(one[shared]) == n_distinct(other[shared]) == shared.sum():
        return 0.0  # cells apart agree with cells apart, whatever the cells
    return float(adjusted_rand_score(one[shared], other[shared]))


def _choose(table: pd.DataFrame) -> Suggestion:
    """Choose as :func:`suggest_resolution` says."""
    # one cluster agrees with one cluster, whatever the cells
    stable = table[(table["n_clusters"] > 1) & (table["stability"] >= STABLE)]
    numbers = stable["n_clusters"] if len(stable) else -table["n_clusters"]
    candidates = numbers[numbers == numbers.max()]
    # the middle one, as those at the ends give another number in a few cells more or less
    chosen = candidates.index[len(candidates) // 2]
    table["is_chosen"] = table.index == chosen
    return Suggestion(float(table["resolution"][chosen]), len(stable) > 0, table)
