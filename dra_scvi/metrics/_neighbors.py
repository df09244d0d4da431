"""Whether the nearest neighbours of a cell are of its own type, every type weighing the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dra_scvi._argument_kinds import check_number
from dra_scvi._threads import own_threads
from dra_scvi.metrics._input import checked_embedding, label_codes

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


def purity(embedding: ArrayLike, labels: ArrayLike, n_neighbors: int = 15) -> float:
    """Average the share of each cell's nearest neighbours that are of its own type.

    Averaged within types, and then over types, so that rare ones count as much as common ones. A
    cell is no neighbour of its own. A type of so many cells or fewer cannot reach 1.

    Parameters
    ----------
    embedding
        Coordinates, ``(n_cells, n_latent)``; distances are Euclidean, and exact.
    labels
        Known type of every cell, ``(n_cells,)``, of any kind.
    n_neighbors
        Neighbours of each cell; all others where there are no more.

    Returns
    -------
    A number in [0, 1], higher is better; about 1 / number of types by chance.

    Raises
    ------
    TypeError
        An argument is of another kind, such as an AnnData or the name of a column.
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
    from sklearn.neighbors import NearestNeighbors

    check_number(n_neighbors, "n_neighbors", least=1)
    points = checked_embedding(embedding)
    known = label_codes(labels, len(points), name="labels")
    if len(points) < 2:
        raise ValueError("Purity needs at least 2 cells, got 1.")
    index = NearestNeighbors(n_neighbors=min(n_neighbors, len(points) - 1)).fit(points)
    with own_threads():
        neighbors = index.kneighbors(return_distance=False)  # of no points: without themselves
    own = (known[neighbors] == known[:, None]).mean(axis=1)
    return float(np.mean(np.bincount(known, weights=own) / np.bincount(known)))
