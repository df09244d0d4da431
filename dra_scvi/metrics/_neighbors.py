"""Whether the nearest neighbours of a cell are of its own type, every type weighing the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dra_scvi._argument_kinds import check_kinds, check_number
from dra_scvi._threads import own_threads
from dra_scvi.metrics._input import codes_of, points_of

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import ArrayLike, NDArray

N_NEIGHBORS = 15


def purity(
    embedding: ArrayLike | AnnData,
    labels: ArrayLike | str,
    n_neighbors: int = N_NEIGHBORS,
    *,
    use_rep: str | None = None,
) -> float:
    """Average the share of each cell's nearest neighbours that are of its own type.

    Averaged within types, and then over types, so that rare ones count as much as common ones. A
    cell is no neighbour of its own. A type of so many cells or fewer cannot reach 1.

    Parameters
    ----------
    embedding
        Coordinates, ``(n_cells, n_latent)``, or an AnnData that has them; distances are
        Euclidean, and exact.
    labels
        Known type of every cell, ``(n_cells,)``, of any kind; of an AnnData, the column of
        ``obs`` that has them.
    n_neighbors
        Neighbours of each cell; all others where there are no more.
    use_rep
        Of an AnnData: the key of ``obsm`` that is taken; ``"X_dra"`` unless given.

    Returns
    -------
    A number in [0, 1], higher is better; about 1 / number of types by chance.

    Raises
    ------
    KeyError
        An AnnData has no such key or column.
    TypeError
        An argument is of another kind, such as the name of a column where there is no AnnData.
    ValueError
        The embedding is not a finite matrix of two cells or more, a label is missing, the lengths
        differ, or ``n_neighbors`` is not positive.

    Examples
    --------
    >>> from dra_scvi import metrics
    >>> embedding = [[0.0], [0.1], [0.3], [9.0], [9.2]]
    >>> round(metrics.purity(embedding, ["B", "B", "T", "T", "T"], n_neighbors=1), 3)
    0.833
    """
    check_kinds(purity, locals())
    check_number(n_neighbors, "n_neighbors", least=1)
    points = points_of(embedding, use_rep)
    known = codes_of(embedding, labels, len(points), name="labels")
    if len(points) < 2:
        raise ValueError("Purity needs at least 2 cells, got 1.")
    return purity_of(points, known, n_neighbors)


def purity_of(
    points: NDArray[np.floating],
    known: NDArray[np.int64],
    n_neighbors: int = N_NEIGHBORS,
    chosen: NDArray[np.bool_] | slice = slice(None),
) -> float:
    """Average over chosen cells, some of every type, whose neighbours are any."""
    from sklearn.neighbors import NearestNeighbors

    index = NearestNeighbors(n_neighbors=min(n_neighbors, len(points) - 1)).fit(points)
    with own_threads():
        neighbors = index.kneighbors(return_distance=False)  # of no points: without themselves
    own = (known[neighbors] == known[:, None]).mean(axis=1)[chosen]
    types = known[chosen]
    return float(np.mean(np.bincount(types, weights=own) / np.bincount(types)))
