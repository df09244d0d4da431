"""Votes made probabilities: a temperature, fitted to cells that were held out, and limits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


# one vote that all types share alike: no type is impossible because none of few cells has it
SHARED_VOTE = 1.0
LOG_TEMPERATURES = (-3.0, 3.0)
ENOUGH_CELLS = 20


def temper(votes: NDArray[np.float64], temperature: float) -> NDArray[np.float64]:
    """Turn votes ``(n_cells, n_types)`` into probabilities, surer below a temperature of 1.

    ``p_c ~ ((v_c + 1 / n_types) / (sum(v) + 1)) ** (1 / temperature)``. Which type is the most
    probable one does not depend on the temperature.

    >>> temper(np.array([[3.0, 0.0], [2.0, 1.0]]), 1.0)
    array([[0.875, 0.125],
           [0.625, 0.375]])
    """
    logs = np.log(votes + SHARED_VOTE / votes.shape[1]) / temperature
    powers = np.exp(logs - logs.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def fit_temperature(
    votes: NDArray[np.float64],
    labels: NDArray[np.int64],
    weights: NDArray[np.float64] | None = None,
) -> float:
    """Find the temperature under which the true types of cells that were held out are most likely.

    One number, for which few cells suffice, and which leaves the order of types alone (Guo et al.
    2017). One more cell counts as of all types alike, so that ten right answers in ten are no
    certainty. `weights` say how much each cell counts, 1 on average.

    >>> votes = np.repeat([[9.0, 0.0]], 100, axis=0)  # sure, and wrong one time in four
    >>> labels = np.repeat([0, 1], [75, 25])
    >>> temper(votes, fit_temperature(votes, labels))[0].round(2)
    array([0.75, 0.25])
    """
    from scipy.optimize import minimize_scalar

    wanted = np.full(votes.shape, 1 / votes.size)  # the one more cell
    wanted[np.arange(len(labels)), labels] += 1.0 if weights is None else weights

    def loss(log_temperature: float) -> float:
        shares = temper(votes, np.exp(log_temperature))
        return -float((wanted * np.log(np.maximum(shares, np.finfo(float).tiny))).sum())

    found = minimize_scalar(loss, bounds=LOG_TEMPERATURES, method="bounded")
    return float(np.exp(found.x))


def distance_limits(
    distances: NDArray[np.float64], labels: NDArray[np.int64], n_types: int, quantile: float
) -> NDArray[np.float64]:
    """Distance from its neighbours beyond which a cell is far from all of a type.

    The quantile of the mean distances that cells of the type have when they are held out; for a
    type of which fewer than 20 were, that of all cells if it is larger.
    """
    of_all = float(np.quantile(distances, quantile))
    limits = np.full(n_types, of_all)
    for number in np.unique(labels):
        own = distances[labels == number]
        limit = float(np.quantile(own, quantile))
        limits[number] = limit if len(own) >= ENOUGH_CELLS else max(limit, of_all)
    return limits
