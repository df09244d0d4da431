"""Votes of the nearest cells whose types are known, and how far away those cells are."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dra_scvi._module.neighborhood import evenly_spaced
from dra_scvi._threads import own_threads

if TYPE_CHECKING:
    from numpy.typing import NDArray


N_FOLDS = 10
MOST_HELD_OUT = 50_000


class Votes(NamedTuple):
    """What neighbours say: votes ``(n_cells, n_types)``, and mean distances ``(n_cells,)``."""

    votes: NDArray[np.float64]
    distance: NDArray[np.float64]


class HeldOut(NamedTuple):
    """Cells that were asked about as if their types, `labels`, were not known."""

    votes: NDArray[np.float64]
    distance: NDArray[np.float64]
    labels: NDArray[np.int64]


def closeness(distances: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weigh neighbours, the farthest of each cell last: ``exp(-(d / d_last)^2)``.

    The width is the cell's own, so that sparse and dense regions are alike: the weight falls from
    1 for a cell in the same place to 0.37 for the last neighbour.

    >>> closeness(np.array([[0.0, 1.0, 2.0], [0.0, 0.0, 0.0]])).round(2)
    array([[1.  , 0.78, 0.37],
           [1.  , 1.  , 1.  ]])
    """
    last = distances[:, -1:]
    return np.exp(-np.square(distances / np.where(last > 0, last, 1.0)))


def vote(
    codes: NDArray[np.floating],
    labels: NDArray[np.int64],
    asked: NDArray[np.floating],
    n_types: int,
    n_neighbors: int,
) -> Votes:
    """Let the nearest of some cells vote on others; distances are Euclidean, and exact.

    >>> known = np.array([[0.0], [1.0], [5.0]])
    >>> vote(known, np.array([0, 0, 1]), np.array([[0.0]]), n_types=2, n_neighbors=2)
    Votes(votes=array([[1.36787944, 0.        ]]), distance=array([0.5]))
    """
    from sklearn.neighbors import NearestNeighbors

    with own_threads():
        index = NearestNeighbors(n_neighbors=min(n_neighbors, len(codes))).fit(codes)
        distances, neighbors = index.kneighbors(asked)
    votes = np.zeros((len(asked), n_types))
    rows = np.arange(len(asked))[:, None]
    np.add.at(votes, (rows, labels[neighbors]), closeness(distances))
    return Votes(votes, distances.mean(axis=1))


def folds(
    labels: NDArray[np.int64], batches: NDArray[np.int64] | None, seed: int = 0
) -> NDArray[np.int64]:
    """Divide cells into the parts that are held out in turn, numbered from 0.

    Batches are held out whole, for how cells of a batch that nobody has seen will fare is the
    question; beyond ten, several at a time. Of one batch, or none, each part has its share of
    every type.

    >>> np.bincount(folds(np.repeat([0, 1], [30, 10]), None)[:30])
    array([3, 3, 3, 3, 3, 3, 3, 3, 3, 3])
    """
    if batches is not None and len(np.unique(batches)) > 1:
        return np.unique(batches, return_inverse=True)[1] % N_FOLDS
    part = np.empty(len(labels), np.int64)
    part[_by_type(labels, seed)] = np.arange(len(labels)) % N_FOLDS
    return part


def _by_type(labels: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Order cells by their type, and by chance within it."""
    order = np.random.default_rng(seed).permutation(len(labels))
    return order[np.argsort(labels[order], kind="stable")]


def hold_out(
    codes: NDArray[np.floating],
    labels: NDArray[np.int64],
    parts: NDArray[np.int64],
    n_types: int,
    n_neighbors: int,
    seed: int = 0,
) -> HeldOut:
    """Ask the other :func:`folds` about the cells of each.

    Cells whose type no other part has are left out: no neighbour can know it. Of many cells,
    50,000 are asked about, of each type its share.
    """
    is_asked = np.zeros(len(labels), bool)
    chosen = evenly_spaced(len(labels), MOST_HELD_OUT).numpy()
    is_asked[_by_type(labels, seed)[chosen]] = True
    found = [HeldOut(np.empty((0, n_types)), np.empty(0), np.empty(0, np.int64))]
    for part in np.unique(parts):
        inside = parts == part
        asked = inside & is_asked & np.isin(labels, labels[~inside])
        if asked.any():
            others = vote(codes[~inside], labels[~inside], codes[asked], n_types, n_neighbors)
            found.append(HeldOut(*others, labels[asked]))
    return HeldOut(*(np.concatenate(parts) for parts in zip(*found, strict=True)))
