"""Votes against scikit-learn's classifier, and cells held out against a loop over all pairs."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from dra_scvi._labels import neighbors
from dra_scvi._labels.neighbors import closeness, folds, hold_out, vote

RNG = np.random.default_rng(0)
LABELS = RNG.integers(3, size=90)
CODES = RNG.normal(size=(90, 4)) + LABELS[:, None]


@pytest.mark.parametrize("n_neighbors", [1, 7, 90])
def test_votes_are_those_of_a_weighted_neighbours_classifier(n_neighbors: int) -> None:
    asked = RNG.normal(size=(40, 4)) + 1
    theirs = KNeighborsClassifier(n_neighbors, weights=closeness).fit(CODES, LABELS)
    votes, distance = vote(CODES, LABELS, asked, 3, n_neighbors)
    shares = votes / votes.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(shares, theirs.predict_proba(asked), atol=1e-12)
    np.testing.assert_allclose(distance, theirs.kneighbors(asked)[0].mean(axis=1))


def test_all_vote_where_there_are_no_more() -> None:
    votes, _ = vote(CODES[:4], LABELS[:4], CODES[:1], 3, 15)
    weights = closeness(np.sort(np.linalg.norm(CODES[:4] - CODES[:1], axis=1))[None])
    assert votes.sum() == pytest.approx(weights.sum())


def test_cells_in_one_place_vote_alike() -> None:
    votes, distance = vote(np.zeros((3, 2)), np.array([0, 0, 1]), np.zeros((1, 2)), 2, 3)
    assert (votes.tolist(), distance.tolist()) == ([[2.0, 1.0]], [0.0])


def test_a_batch_is_held_out_whole() -> None:
    batches = RNG.integers(3, size=90)
    found = hold_out(CODES, LABELS, folds(LABELS, batches), 3, 5)
    order = np.concatenate([np.flatnonzero(batches == batch) for batch in range(3)])
    assert found.labels.tolist() == LABELS[order].tolist()
    for row in (0, 40, 89):
        others = batches != batches[order[row]]
        distances = np.linalg.norm(CODES[others] - CODES[order[row]], axis=1)
        nearest = np.argsort(distances)[:5]
        weights = closeness(distances[nearest][None])[0]
        expected = np.bincount(LABELS[others][nearest], weights=weights, minlength=3)
        np.testing.assert_allclose(found.votes[row], expected)
        assert found.distance[row] == pytest.approx(distances[nearest].mean())


def test_a_cell_of_a_type_that_is_nowhere_else_is_not_asked_about() -> None:
    labels, batches = np.array([0, 0, 1, 0, 0]), np.array([0, 0, 0, 1, 1])
    found = hold_out(CODES[:5], labels, folds(labels, batches), 2, 2)
    assert found.labels.tolist() == [0, 0, 0, 0]


def test_parts_of_one_batch_have_their_share_of_each_type() -> None:
    labels = np.repeat([0, 1, 2], [50, 7, 30])
    parts = folds(labels, np.zeros(87, np.int64), seed=3)
    for label in range(3):
        counts = np.bincount(parts[labels == label], minlength=10)
        assert counts.max() - counts.min() <= 1
    assert (folds(labels, None, seed=3) == parts).all()
    assert (folds(labels, None, seed=4) != parts).any()


def test_many_batches_are_held_out_several_at_a_time() -> None:
    batches = np.arange(90) % 25 * 7
    parts = folds(LABELS, batches)
    assert np.unique(parts).tolist() == list(range(10))
    assert all(len(np.unique(parts[batches == batch])) == 1 for batch in batches)


def test_of_many_cells_each_type_is_asked_about_by_its_share(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(neighbors, "MOST_HELD_OUT", 30)
    labels = np.repeat([0, 1], [60, 30])
    found = hold_out(CODES, labels, folds(labels, None), 2, 5)
    assert np.bincount(found.labels).tolist() == [20, 10]
