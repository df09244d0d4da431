"""Calibration against scikit-learn's curve, and against probabilities that are right by design."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.calibration import calibration_curve

from dra_scvi.metrics import calibration

RNG = np.random.default_rng(0)
SHARES = RNG.dirichlet([1, 1, 1], 4000)
FAIR = (RNG.random((4000, 1)) > SHARES.cumsum(axis=1)).sum(axis=1)  # drawn with what they say


@pytest.mark.parametrize("n_bins", [1, 7, 10])
def test_curve_is_that_of_scikit_learn(n_bins: int) -> None:
    found = calibration(SHARES, FAIR, n_bins, types=range(3))["bins"]
    is_right = SHARES.argmax(axis=1) == FAIR
    right, said = calibration_curve(is_right, SHARES.max(axis=1), n_bins=n_bins)
    np.testing.assert_allclose(found["accuracy"], right)
    np.testing.assert_allclose(found["confidence"], said)
    assert found["n_cells"].sum() == 4000


def test_error_is_small_where_probabilities_are_right_and_the_gap_where_not() -> None:
    assert calibration(SHARES, FAIR, types=range(3))["ece"] < 0.02
    boast = np.tile([0.9, 0.1], (100, 1))
    found = calibration(boast, np.repeat([0, 1], [60, 40]), types=range(2))
    assert found["ece"] == pytest.approx(0.3)
    assert (found["accuracy"], found["confidence"]) == (0.6, pytest.approx(0.9))


def test_error_weighs_bins_by_their_cells() -> None:
    shares = np.array([[0.95, 0.05]] * 3 + [[0.55, 0.45]])
    found = calibration(shares, [0, 0, 0, 1], types=[0, 1])
    assert found["ece"] == pytest.approx((3 * 0.05 + 0.55) / 4)
    assert found["bins"]["lower"].tolist() == [0.5, 0.9]


def test_tables_name_types_and_certainty_is_in_the_last_bin() -> None:
    table = pd.DataFrame({"B": [1.0, 0.2], "T": [0.0, 0.8]})
    found = calibration(table, pd.Categorical(["B", "NK"]))
    assert found["accuracy"] == 0.5
    assert found["bins"]["upper"].tolist() == [0.9, 1.0]


@pytest.mark.parametrize(
    ("probabilities", "labels", "options", "words"),
    [
        ([[0.5, 0.4]], ["a"], {"types": "ab"}, "1 of 1 cells .* do not sum to 1"),
        ([[1.5, -0.5]], ["a"], {"types": "ab"}, "negative"),
        ([[np.nan, 1.0]], ["a"], {"types": "ab"}, "not finite"),
        ([[0.5, 0.5]], ["a"], {}, "2 columns, and 0 types are named; pass types"),
        ([[0.5, 0.5]], [None], {"types": "ab"}, "labels is missing"),
        ([[0.5, 0.5]], ["a", "b"], {"types": "ab"}, "labels has 2 entries"),
        ([0.5, 0.5], ["a"], {"types": "ab"}, "shape"),
        ([[0.5, 0.5]], ["a"], {"types": "ab", "n_bins": 0}, "n_bins must be at least 1"),
    ],
)
def test_what_is_no_probability_is_refused(
    probabilities: list, labels: list, options: dict, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        calibration(probabilities, labels, **options)


@pytest.mark.parametrize("labels", [[1, 2], [True, False]])
def test_types_of_another_kind_than_the_labels_are_refused(labels: list[object]) -> None:
    names = [str(label) for label in labels]
    with pytest.raises(ValueError, match=rf"labels has {labels[0]} where types has '{labels[0]}'"):
        calibration([[0.9, 0.1], [0.2, 0.8]], labels, types=names)
