"""The classifier: right, as sure as it is right, and silent on what it does not know."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.calibration import calibration_curve

from dra_scvi import metrics
from dra_scvi._labels.calibration import temper
from dra_scvi._labels.classifier import Classifier


def cells(n_cells: int, seed: int, spread: float = 1.2) -> tuple[np.ndarray, np.ndarray]:
    """Draw codes of four types that overlap, one of them rare."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(4, n_cells, p=[0.4, 0.3, 0.28, 0.02])
    centres = np.array([[0, 0], [3, 0], [0, 3], [3, 3]])
    return centres[labels] + rng.normal(scale=spread, size=(n_cells, 2)), labels


@pytest.mark.parametrize("batches", [None, 4])
def test_probabilities_of_new_cells_are_what_they_say(batches: int | None) -> None:
    codes, labels = cells(3000, 0)
    given = None if batches is None else np.arange(3000) % batches
    made = Classifier.fit(codes, labels, given, n_neighbors=15)
    assert made.by_batch == (batches is not None)
    asked, truth = cells(6000, 1)
    found = made.predict(asked).probabilities
    score = metrics.calibration(found, truth, types=range(4))
    plain = made._replace(temperature=1.0).predict(asked).probabilities
    assert score["ece"] < 0.025
    assert score["ece"] < metrics.calibration(plain, truth, types=range(4))["ece"]
    share, said = calibration_curve(truth == 0, found[:, 0], n_bins=5)
    np.testing.assert_allclose(share, said, atol=0.06)


def test_a_type_that_the_reference_lacks_is_far() -> None:
    codes, labels = cells(2000, 0, spread=0.5)
    is_known = labels != 2
    known = np.unique(labels[is_known], return_inverse=True)[1]
    made = Classifier.fit(codes[is_known], known)
    asked, truth = cells(2000, 1, spread=0.5)
    far = made.predict(asked).distance > 1
    assert far[truth == 2].mean() > 0.95
    assert far[truth != 2].mean() < 0.03


def test_balanced_finds_more_of_a_rare_type_and_says_so() -> None:
    codes, labels = cells(3000, 0)
    asked, truth = cells(6000, 1)
    found = {}
    for balanced in (False, True):
        made = Classifier.fit(codes, labels, balanced=balanced)
        shares = made.predict(asked).probabilities
        found[balanced] = (shares.argmax(axis=1) == 3)[truth == 3].mean(), made.recovered()[1][3]
    assert found[True][0] > found[False][0] + 0.2
    for there, held_out in found.values():
        assert there == pytest.approx(held_out, abs=0.15)


def test_balanced_is_calibrated_for_types_of_equal_number() -> None:
    codes, labels = cells(6000, 0)
    made = Classifier.fit(codes, labels, balanced=True)
    rng = np.random.default_rng(1)
    truth = rng.integers(4, size=4000)
    centres = np.array([[0, 0], [3, 0], [0, 3], [3, 3]])
    found = made.predict(centres[truth] + rng.normal(scale=1.2, size=(4000, 2))).probabilities
    assert metrics.calibration(found, truth, types=range(4))["ece"] < 0.06


def test_batches_that_share_no_type_are_held_out_cell_by_cell() -> None:
    codes, labels = cells(300, 0)
    labels = np.minimum(labels, 1)
    made = Classifier.fit(codes, labels, batches=labels)
    assert not made.by_batch
    assert len(made.held_out.labels) == 300


def test_what_is_recognised_is_counted_by_type() -> None:
    codes, labels = cells(200, 0)
    labels[labels == 3] = 0
    labels[0] = 3  # a type of one cell, which nothing else can tell
    made = Classifier.fit(codes, labels)
    n_cells, share = made.recovered()
    called = temper(made.held_out.votes, made.temperature).argmax(axis=1)
    assert n_cells.tolist() == [*np.bincount(labels)[:3], 0]
    for label in range(3):
        own = made.held_out.labels == label
        assert share[label] == pytest.approx((called[own] == label).mean())
    assert np.isnan(share[3])


def test_nothing_to_hold_out_is_refused() -> None:
    with pytest.raises(ValueError, match="no type has two cells"):
        Classifier.fit(np.zeros((3, 2)), np.arange(3))
