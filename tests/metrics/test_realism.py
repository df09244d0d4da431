"""Tests of realism against other implementations, and on cells whose answer is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from anndata import AnnData
from scipy import sparse, stats
from sklearn.ensemble import RandomForestClassifier

from dra_scvi import metrics
from dra_scvi.metrics import _realism

SCORES = {
    *("accuracy", "precision", "coverage", "mmd", "means", "variances", "zeros"),
    *("correlations", "depth"),
}


def counts(n_cells: int, seed: int, factor: float = 1.0) -> np.ndarray:
    """Draw two types, which differ in half of 30 genes; `factor` changes five of them."""
    rng = np.random.default_rng(seed)
    rate = np.tile(np.linspace(0.5, 6, 30), (n_cells, 1))
    rate[: n_cells // 2, ::2] *= 3
    rate[:, :5] *= factor
    return rng.poisson(rate)


@pytest.fixture(scope="module")
def same() -> dict[str, float]:
    return metrics.realism(counts(300, 0), counts(300, 1), counts(300, 2))


def test_cells_of_one_distribution_cannot_be_told_apart(same: dict[str, float]) -> None:
    assert set(same) == SCORES
    assert all(type(value) is float for value in same.values())
    assert same["accuracy"] == pytest.approx(0.5, abs=0.07)
    assert same["precision"] > 0.75
    assert same["coverage"] == pytest.approx(1 - 2**-5, abs=0.03)
    assert abs(same["mmd"]) < 0.005
    assert same["depth"] < 0.12


def test_cells_of_another_distribution_are_told_by_every_score(same: dict[str, float]) -> None:
    other = metrics.realism(counts(300, 0), counts(300, 1, factor=6.0), counts(300, 2))
    assert other["accuracy"] > 0.95
    assert other["precision"] < 0.2
    assert other["coverage"] < 0.2
    for name in ("mmd", "means", "variances", "zeros", "depth"):
        assert other[name] > 1.5 * same[name], name


def test_a_type_that_is_not_generated_costs_coverage_alone(same: dict[str, float]) -> None:
    scores = metrics.realism(counts(300, 0), counts(600, 1)[:300], counts(300, 2))
    assert scores["precision"] > same["precision"]
    assert scores["coverage"] < same["coverage"] - 0.2


def test_genes_that_are_shuffled_apart_cost_correlations() -> None:
    rng = np.random.default_rng(0)
    apart = np.column_stack([rng.permutation(gene) for gene in counts(300, 1).T])
    whole, shuffled = (
        metrics.realism(counts(300, 0), side, counts(300, 2)) for side in (counts(300, 1), apart)
    )
    assert shuffled["correlations"] > 2 * whole["correlations"]
    assert shuffled["zeros"] == pytest.approx(whole["zeros"])


def test_scores_are_those_of_other_implementations() -> None:
    """By loops over cells, scipy and scikit-learn, from counts to scores."""
    real, generated, third = counts(60, 0), counts(60, 1, factor=1.5), counts(60, 2)
    scores = metrics.realism(real, generated, third, n_components=4, n_neighbors=3)
    depth = np.median(real.sum(1))
    x, y, r = (np.log1p(c / c.sum(1, keepdims=True) * depth) for c in (real, generated, third))
    _, _, axes = np.linalg.svd(r - r.mean(0), full_matrices=False)
    p, q = ((side - r.mean(0)) @ axes[:4].T for side in (x, y))
    radius = [sorted(np.linalg.norm(p - p[i], axis=1))[3] for i in range(60)]
    inside = np.array(
        [[np.linalg.norm(q[j] - p[i]) <= radius[i] for i in range(60)] for j in range(60)]
    )
    assert scores["precision"] == pytest.approx(inside.any(1).mean())
    assert scores["coverage"] == pytest.approx(inside.any(0).mean())
    between = [np.linalg.norm(p[i] - p[j]) for i in range(60) for j in range(i)]
    width = np.median(between)

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.exp(-((a - b) ** 2).sum() / (2 * width**2)))

    within = [
        np.mean([kernel(s[i], s[j]) for i in range(60) for j in range(60) if i != j])
        for s in (p, q)
    ]
    across = np.mean([kernel(a, b) for a in p for b in q])
    assert scores["mmd"] == pytest.approx(sum(within) - 2 * across, abs=1e-5)
    assert scores["means"] == pytest.approx(np.abs(x.mean(0) - y.mean(0)).mean(), rel=1e-4)
    assert scores["variances"] == pytest.approx(np.abs(x.var(0) - y.var(0)).mean(), rel=1e-4)
    zeros = np.abs((real == 0).mean(0) - (generated == 0).mean(0)).mean()
    assert scores["zeros"] == pytest.approx(zeros)
    gap = np.abs(np.corrcoef(x.T) - np.corrcoef(y.T))[np.triu_indices(30, 1)]
    assert scores["correlations"] == pytest.approx(gap.mean(), rel=1e-4)
    found = stats.ks_2samp(real.sum(1), generated.sum(1)).statistic
    assert scores["depth"] == pytest.approx(found)
    forest = RandomForestClassifier(_realism.N_TREES, random_state=0)
    folds = np.arange(60) % 5  # other folds, so that only about the same is to be expected
    both, is_real = np.concatenate([p, q]), np.arange(120) < 60
    which = np.concatenate([folds, folds])
    right = [
        forest.fit(both[which != k], is_real[which != k]).score(
            both[which == k], is_real[which == k]
        )
        for k in range(5)
    ]
    assert scores["accuracy"] == pytest.approx(np.mean(right), abs=0.1)


@pytest.mark.parametrize(
    "wrap",
    [AnnData, sparse.csr_matrix, sparse.csc_matrix, sparse.csr_array, lambda x: x.astype("f4")],
    ids=["anndata", "csr", "csc", "array", "float32"],
)
def test_counts_of_any_kind_give_the_same_scores(wrap: Any, same: dict[str, float]) -> None:
    sides = [wrap(counts(300, seed)) for seed in range(3)]
    assert metrics.realism(*sides) == pytest.approx(same)


def test_sides_of_unequal_size_are_drawn_to_one_size(same: dict[str, float]) -> None:
    rng = np.random.default_rng(0)
    many = rng.permutation(counts(900, 1))
    scores = metrics.realism(counts(300, 0), many, counts(300, 2))
    assert scores["coverage"] == pytest.approx(same["coverage"], abs=0.03)
    assert scores["accuracy"] == pytest.approx(0.5, abs=0.07)


def test_components_come_from_neither_side() -> None:
    """No real cell that is compared shapes the components, without a reference either."""
    real, generated = counts(400, 0), counts(200, 1)
    order = np.random.default_rng(0).permutation(400)
    by_hand = metrics.realism(real[np.sort(order[::2])], generated, real[np.sort(order[1::2])])
    scores = metrics.realism(real, generated)
    for name in ("precision", "coverage", "mmd", "depth"):
        assert scores[name] == pytest.approx(by_hand[name], abs=1e-6), name


def test_genes_and_cells_without_counts_are_no_trouble() -> None:
    sides = [counts(40, seed) for seed in range(3)]
    for side in sides:
        side[:, 7] = 0
    sides[1][3] = 0
    assert all(np.isfinite(value) for value in metrics.realism(*sides).values())
