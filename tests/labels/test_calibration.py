"""One temperature against a logistic regression, and limits that hold what they promise."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from dra_scvi._labels.calibration import distance_limits, fit_temperature, temper


def drawn(n_cells: int, n_types: int, sharpness: float) -> tuple[np.ndarray, np.ndarray]:
    """Votes, and labels that are drawn with what they say to a power."""
    rng = np.random.default_rng(0)
    votes = rng.dirichlet(np.ones(n_types), n_cells) * 12
    true = temper(votes, 1 / sharpness)
    return votes, (rng.random((n_cells, 1)) > true.cumsum(axis=1)).sum(axis=1)


@pytest.mark.parametrize("sharpness", [0.4, 1.0, 2.5])
def test_temperature_is_that_labels_were_drawn_with(sharpness: float) -> None:
    votes, labels = drawn(40_000, 5, sharpness)
    assert 1 / fit_temperature(votes, labels) == pytest.approx(sharpness, rel=0.05)


@pytest.mark.parametrize("weighted", [False, True])
def test_of_two_types_temperature_is_a_logistic_regression(weighted: bool) -> None:
    votes, labels = drawn(80, 2, 1.7)
    weights = np.where(labels == 0, 0.5, 1.5) if weighted else None
    odds = np.log((votes[:, 1] + 0.5) / (votes[:, 0] + 0.5))[:, None]
    regression = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10, max_iter=1000)
    # the one more cell, of both types alike and everywhere
    own = np.ones(80) if weights is None else weights
    sizes = np.concatenate([own, np.full(160, 1 / 160)])
    regression.fit(
        np.tile(odds, (3, 1)), np.repeat([labels, 0 * labels, 0 * labels + 1], 1, 0).ravel(), sizes
    )
    assert 1 / fit_temperature(votes, labels, weights) == pytest.approx(
        regression.coef_.item(), rel=1e-3
    )


def test_temperature_leaves_the_order_of_types_alone() -> None:
    votes, _ = drawn(50, 4, 1.0)
    for temperature in (0.1, 1.0, 10.0):
        shares = temper(votes, temperature)
        np.testing.assert_allclose(shares.sum(axis=1), 1)
        assert (shares.argsort(axis=1) == votes.argsort(axis=1)).all()


def test_ten_right_answers_in_ten_are_no_certainty() -> None:
    votes = np.tile([9.0, 0.0], (10, 1))
    found = temper(votes, fit_temperature(votes, np.zeros(10, int)))[0, 0]
    assert 0.9 < found < 0.97


def test_limits_hold_the_share_that_was_asked_for() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 4000)
    distances = rng.gamma(4, np.where(labels == 0, 1.0, 5.0))
    limits = distance_limits(distances[::2], labels[::2], 2, 0.95)
    for label in (0, 1):
        within = distances[1::2][labels[1::2] == label] <= limits[label]
        assert within.mean() == pytest.approx(0.95, abs=0.02)
    assert limits[1] > 4 * limits[0]


def test_limits_of_few_cells_are_no_closer_than_those_of_all() -> None:
    distances = np.concatenate([np.linspace(1, 2, 100), [0.1] * 19, [9.0] * 19, [0.1] * 20])
    labels = np.repeat([0, 1, 2, 3], [100, 19, 19, 20])
    limits = distance_limits(distances, labels, 5, 0.8)
    of_all = np.quantile(distances, 0.8)
    np.testing.assert_allclose(limits, [1.8, of_all, 9.0, 0.1, of_all])
