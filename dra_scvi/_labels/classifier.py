"""A classifier of codes: neighbours, temperature and limits learnt from cells of known types."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dra_scvi._labels.calibration import distance_limits, fit_temperature, temper
from dra_scvi._labels.neighbors import HeldOut, folds, hold_out, vote

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Prediction(NamedTuple):
    """Probabilities ``(n_cells, n_types)``; how far cells are, 1 being the limit of their type."""

    probabilities: NDArray[np.float64]
    distance: NDArray[np.float64]


class Classifier(NamedTuple):
    """Cells of known types, numbered from 0, and what was learnt by holding out some of them.

    `votes_of` is what a vote for each type is worth, 1 on average over cells. Temperature and
    limits are those of :mod:`dra_scvi._labels.calibration`; `held_out` are cells with the votes on
    them, of batches that were held out whole where `by_batch` says so.
    """

    codes: NDArray[np.floating]
    labels: NDArray[np.int64]
    votes_of: NDArray[np.float64]
    n_neighbors: int
    temperature: float
    limits: NDArray[np.float64]
    held_out: HeldOut
    by_batch: bool

    @classmethod
    def fit(
        cls,
        codes: NDArray[np.floating],
        labels: NDArray[np.int64],
        batches: NDArray[np.int64] | None = None,
        n_neighbors: int = 15,
        quantile: float = 0.99,
        balanced: bool = False,
        seed: int = 0,
    ) -> Classifier:
        """Learn from cells whose types are known, numbered from 0, none of them without a cell.

        `quantile` is the share of cells of a type that lie within its limit. Types weigh the same,
        however many cells they have, where that is to be `balanced`. The seed is that of how cells
        are held out.

        >>> rng = np.random.default_rng(0)
        >>> labels = np.repeat([0, 1], 50)
        >>> codes = rng.normal(size=(100, 2)) + 9.0 * labels[:, None]
        >>> made = Classifier.fit(codes, labels)
        >>> found = made.predict(np.array([[9.0, 9.0], [4.5, 30.0]]))
        >>> found.probabilities.round(1)[0], found.distance > 1
        (array([0., 1.]), array([False,  True]))
        """
        n_cells = np.bincount(labels)
        worth = len(labels) / (len(n_cells) * n_cells) if balanced else np.ones(len(n_cells))
        sizes = len(n_cells), n_neighbors, seed
        by_batch = batches is not None and len(np.unique(batches)) > 1
        held_out = hold_out(codes, labels, folds(labels, batches, seed), *sizes)
        if by_batch and not len(held_out.labels):  # no type is in two batches
            by_batch = False
            held_out = hold_out(codes, labels, folds(labels, None, seed), *sizes)
        if not len(held_out.labels):
            raise ValueError("no type has two cells: of one at least, two are needed.")
        votes = held_out.votes * worth
        temperature = fit_temperature(votes, held_out.labels, worth[held_out.labels])
        limits = distance_limits(held_out.distance, held_out.labels, len(n_cells), quantile)
        held_out = held_out._replace(votes=votes)
        return cls(codes, labels, worth, n_neighbors, temperature, limits, held_out, by_batch)

    def predict(self, codes: NDArray[np.floating]) -> Prediction:
        """Tell the types of other cells."""
        n_types = len(self.votes_of)
        found = vote(self.codes, self.labels, codes, n_types, self.n_neighbors)
        probabilities = temper(found.votes * self.votes_of, self.temperature)
        limit = self.limits[probabilities.argmax(axis=1)]
        return Prediction(probabilities, found.distance / np.maximum(limit, np.finfo(float).tiny))

    def recovered(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Count the cells of each type that were held out, and the share that was recognised."""
        own = self.held_out.labels
        is_right = self.held_out.votes.argmax(axis=1) == own
        n_cells = np.bincount(own, minlength=len(self.votes_of))
        n_right = np.bincount(own, weights=is_right, minlength=len(self.votes_of))
        with np.errstate(invalid="ignore"):
            return n_cells, n_right / n_cells
