"""Scores of the scripts on continua and on generated cells, where the answer is known."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from anndata import AnnData
from scipy import sparse

SCRIPTS = Path(__file__).parent / "benchmarks"


@pytest.fixture
def script(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import a script that lies beside others that it takes parts of."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module(request.param)


def points_on_a_line(gap: float) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    time = np.sort(rng.random(200))
    points = np.column_stack([time + gap * (time > 0.6), rng.normal(scale=0.01, size=200)])
    return time, points


@pytest.mark.parametrize("script", ["continua"], indirect=True)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("gap", [0.0, 50.0], ids=["joined", "torn"])
def test_order_and_tears_of_a_line(script: Any, gap: float) -> None:
    time, points = points_on_a_line(gap)
    line = script.Line("line", (5 * time).astype(int), np.arange(3))
    cells = script.Cells(AnnData(points), [line], np.ones(200, bool), np.full(200, "x"), [])
    found = {row["measure"]: row["value"] for row in script.line_scores(points, cells)}
    if gap:
        assert found["whole"] < 0.7
        assert found["joined"] == 0
    else:
        assert found["whole"] == 1
        assert found["joined"] > 0.1
        assert found["order"] > 0.97


@pytest.mark.parametrize("script", ["continua"], indirect=True)
def test_earlier_first_counts_pairs(script: Any) -> None:
    early, late = np.array([0.0, 1.0]), np.array([1.0, 2.0])
    assert script.earlier_first(early, late) == 0.875
    assert script.earlier_first(late, early) == 0.125
    nowhere = np.full(2, np.inf)
    assert script.earlier_first(early, nowhere) == 1
    assert script.earlier_first(nowhere, nowhere) == 0.5


@pytest.mark.parametrize("script", ["continua"], indirect=True)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("distance", [0.0, 20.0], ids=["lost", "apart"])
def test_rare_types_that_are_apart_or_lost(script: Any, distance: float) -> None:
    rng = np.random.default_rng(0)
    points = rng.normal(size=(300, 3))
    points[:8] += distance
    types = np.array(["rare"] * 8 + ["common"] * 292)
    cells = script.Cells(AnnData(points), [], np.ones(300, bool), types, ["rare"])
    found = {row["measure"]: row["value"] for row in script.rare_scores(points, cells)}
    if distance:
        assert found["own"] == 1  # of the seven others, not of fifteen
        assert found["cluster at any"] == 1
    else:
        assert found["own"] < 0.2
        assert found["cluster at any"] < 0.5


@pytest.mark.parametrize("script", ["uses"], indirect=True)
def test_shuffled_cells_keep_the_genes_of_their_type(script: Any) -> None:
    rng = np.random.default_rng(0)
    counts = np.repeat([[0, 5], [7, 1]], 50, axis=0) * rng.integers(1, 3, size=(100, 1))
    cells = script.Half(sparse.csr_matrix(counts, dtype=np.float32), np.repeat(["a", "b"], 50))
    made = script.shuffled(cells, 400, rng)
    dense = made.counts.toarray()
    assert set(dense[made.types == "a", 1]) == {5, 10}
    assert set(dense[made.types == "b", 0]) == {7, 14}
    b = dense[made.types == "b"]
    assert abs(np.corrcoef(b.T)[0, 1]) < 0.3  # in the cells themselves it is 1


@pytest.mark.parametrize("script", ["uses"], indirect=True)
@pytest.mark.filterwarnings("ignore")
def test_an_analysis_agrees_with_itself(script: Any) -> None:
    rng = np.random.default_rng(0)
    means = np.exp(rng.normal(size=(3, 60)))[np.arange(180) % 3]
    counts = sparse.csr_matrix(rng.poisson(means), dtype=np.float32)
    analysis = script.Analysis(counts, 0)
    told = analysis.clusters_of(counts)
    assert (told == analysis.clusters).mean() > 0.95
    assert analysis.shared_markers(analysis, told) == 1


@pytest.mark.parametrize("script", ["uses"], indirect=True)
def test_types_are_thinned_to_the_sizes_asked_for(script: Any) -> None:
    types = np.repeat(list("abcd"), 40)
    cells = script.Half(sparse.csr_matrix(np.eye(160, dtype=np.float32)), types)
    thin, rare = script.thinned(cells, cells, np.random.default_rng(0))
    assert sorted(rare.values()) == sorted(script.RARE_SIZES)
    for name, size in rare.items():
        assert (thin.types == name).sum() == size
    assert len(thin.types) == 40 + sum(script.RARE_SIZES)
