"""Tests of dra_scvi.metrics against hand-made partitions and the underlying libraries."""

from __future__ import annotations

import inspect
import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from sklearn.metrics import (
    adjusted_rand_score,
    normalized_mutual_info_score,
    silhouette_score,
)
from sklearn.neighbors import NearestNeighbors

from dra_scvi import metrics
from dra_scvi.metrics import _clustering, _input, _integration

if TYPE_CHECKING:
    from numpy.typing import NDArray

PACKAGE = Path(metrics.__file__).parents[1]


def blobs(n_per_type: int = 40, distance: float = 30.0) -> tuple[NDArray, NDArray]:
    """Return three round clouds, ``(3 * n_per_type, 2)``, and their names."""
    rng = np.random.default_rng(1)
    centres = distance * np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    codes = np.repeat(np.arange(3), n_per_type)
    return centres[codes] + rng.normal(size=(len(codes), 2)), np.array(["A", "B", "C"])[codes]


@pytest.mark.parametrize("method", ["kmeans", "leiden"])
def test_separate_types_are_found_perfectly(method: str) -> None:
    embedding, labels = blobs()
    options = {"resolution": 0.1} if method == "leiden" else {}
    scores = metrics.clustering(embedding, labels, method=method, **options)
    assert scores["nmi"] == pytest.approx(1.0)
    assert scores["ari"] == pytest.approx(1.0)
    assert scores["n_clusters"] == 3
    assert scores["silhouette"] > 0.9


def test_scores_equal_scikit_learn_on_overlapping_types() -> None:
    embedding, labels = blobs(distance=2.0)
    found = KMeans(3, n_init=10, random_state=3).fit_predict(embedding)
    scores = metrics.clustering(embedding, labels, seed=3)
    assert 0.1 < scores["nmi"] < 0.9
    assert scores["nmi"] == pytest.approx(
        normalized_mutual_info_score(labels, found, average_method="arithmetic")
    )
    assert scores["ari"] == pytest.approx(adjusted_rand_score(labels, found))
    assert scores["silhouette"] == pytest.approx(silhouette_score(embedding, labels))


def test_nmi_uses_the_arithmetic_average() -> None:
    embedding, labels = blobs()
    scores = metrics.clustering(embedding, labels, n_clusters=2)
    mutual_information = -(np.log(1 / 3) / 3 + 2 * np.log(2 / 3) / 3)
    mean_entropy = (np.log(3) + mutual_information) / 2
    assert scores["nmi"] == pytest.approx(mutual_information / mean_entropy)


def test_shuffled_labels_score_about_zero_by_ari() -> None:
    embedding, labels = blobs(n_per_type=200)
    shuffled = np.random.default_rng(0).permutation(labels)
    scores = metrics.clustering(embedding, shuffled)
    assert abs(scores["ari"]) < 0.02
    assert scores["silhouette"] < 0.05


@given(order=st.permutations([0, 1, 2]))
@settings(max_examples=6, deadline=None)
def test_names_of_labels_do_not_matter(order: list[int]) -> None:
    embedding, labels = blobs(n_per_type=15, distance=2.5)
    codes = np.array(order)[np.searchsorted(["A", "B", "C"], labels)]
    assert metrics.clustering(embedding, codes) == pytest.approx(
        metrics.clustering(embedding, labels)
    )


@pytest.mark.parametrize(
    "wrap",
    [list, pd.Categorical, lambda x: pd.Series(x, index=range(9, 9 + len(x)))],
    ids=["list", "categorical", "series-with-foreign-index"],
)
def test_labels_of_any_container_give_the_same_scores(wrap: type) -> None:
    embedding, labels = blobs(distance=2.0)
    assert metrics.clustering(embedding, wrap(labels)) == metrics.clustering(embedding, labels)


def test_one_label_leaves_the_silhouette_out() -> None:
    embedding, _ = blobs()
    assert "silhouette" not in metrics.clustering(embedding, ["A"] * len(embedding))


def test_as_many_labels_as_cells_leave_the_silhouette_out() -> None:
    embedding, _ = blobs(n_per_type=4)
    assert "silhouette" not in metrics.clustering(embedding, np.arange(12), n_clusters=3)


def test_silhouette_of_many_cells_comes_from_a_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    embedding, labels = blobs(distance=3.0)
    exact = metrics.clustering(embedding, labels)["silhouette"]
    monkeypatch.setattr(_clustering, "_SILHOUETTE_CELLS", 60)
    drawn = [metrics.clustering(embedding, labels, seed=seed)["silhouette"] for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert drawn[0] != exact
    assert drawn[0] == pytest.approx(exact, abs=0.15)


def test_silhouette_of_many_cells_draws_each_at_most_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """All cells but one: the score is that of one of the sets that lack a single cell."""
    embedding, labels = blobs(n_per_type=10, distance=3.0)
    monkeypatch.setattr(_clustering, "_SILHOUETTE_CELLS", 29)
    found = metrics.clustering(embedding, labels, seed=4)["silhouette"]
    lacking = [
        silhouette_score(np.delete(embedding, i, axis=0), np.delete(labels, i)) for i in range(30)
    ]
    assert min(abs(found - score) for score in lacking) < 1e-12


def test_silhouette_of_as_many_cells_as_are_drawn_is_exact(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    embedding, labels = blobs(n_per_type=10, distance=3.0)
    monkeypatch.setattr(_clustering, "_SILHOUETTE_CELLS", 30)
    found = metrics.clustering(embedding, labels)["silhouette"]
    assert found == silhouette_score(embedding, labels)


def test_silhouette_is_defined_for_all_but_as_many_labels_as_cells() -> None:
    embedding, _ = blobs(n_per_type=4)
    labels = np.array([0, *range(11)])  # two cells share a label
    scores = metrics.clustering(embedding, labels, n_clusters=3)
    assert scores["silhouette"] == pytest.approx(silhouette_score(embedding, labels))
    two = np.array([0] * 11 + [1])
    scores = metrics.clustering(embedding, two)
    assert scores["silhouette"] == pytest.approx(silhouette_score(embedding, two))


def test_cells_a_billionth_apart_are_told_apart() -> None:
    """Double precision stays; whatever is neither double nor single becomes double."""
    names = np.resize(["x", "y"], 40)
    apart = 1.0 + 1e-9 * (names == "y")[:, None] + 1e-12 * np.arange(40)[:, None]
    assert metrics.clustering(apart, names)["ari"] == 1.0
    assert metrics.clustering(apart.astype(np.longdouble), names)["ari"] == 1.0
    assert metrics.clustering((names == "y")[:, None], names)["ari"] == 1.0
    half = _input.checked_embedding(np.ones((3, 2), np.float16))
    assert half.dtype == np.float64


def test_single_precision_stays_single() -> None:
    """A copy in double precision would double the memory of a million cells."""
    embedding = blobs()[0].astype(np.float32)
    assert _input.checked_embedding(embedding) is embedding


@pytest.mark.parametrize("seed", [0, 5])
def test_kmeans_passes_seed_and_restarts_on(seed: int) -> None:
    embedding = np.random.default_rng(0).normal(size=(90, 3))
    expected = KMeans(8, n_init=1, random_state=seed).fit_predict(embedding)
    found = metrics.cluster(embedding, n_clusters=8, seed=seed, n_init=1)
    np.testing.assert_array_equal(found, expected)


def test_defaults_are_as_documented() -> None:
    signatures = [
        {name: p.default for name, p in inspect.signature(function).parameters.items()}
        for function in (metrics.cluster, metrics.clustering, metrics.leiden_matched)
    ]
    for found in signatures[:2]:
        assert (found["method"], found["seed"], found["n_init"]) == ("kmeans", 0, 10)
        assert (found["resolution"], found["n_clusters"]) == (1.0, None)
    assert signatures[2]["seed"] == 0
    assert _clustering._SILHOUETTE_CELLS == 5_000
    neighbors = (
        _integration._CONNECTIVITY_NEIGHBORS,
        _integration._KBET_NEIGHBORS,
        _integration._LISI_NEIGHBORS,
    )
    assert neighbors == (15, 50, 90)


@pytest.mark.parametrize(("n_cells", "n_neighbors"), [(90, 15), (16, 15), (15, 14), (3, 2)])
def test_leiden_is_that_of_scanpy_on_the_nearest_neighbours(
    n_cells: int, n_neighbors: int
) -> None:
    import scanpy as sc

    embedding = np.random.default_rng(3).normal(size=(n_cells, 3))
    for seed, resolution in ((0, 1.0), (4, 2.5)):
        graph = AnnData(obsm={"X_any": embedding})
        options = {"n_neighbors": n_neighbors, "use_rep": "X_any", "random_state": seed}
        sc.pp.neighbors(graph, **options)
        options = {"flavor": "igraph", "n_iterations": 2, "directed": False}
        sc.tl.leiden(graph, resolution=resolution, random_state=seed, **options)
        found = metrics.cluster(embedding, "leiden", resolution=resolution, seed=seed)
        np.testing.assert_array_equal(found, graph.obs["leiden"].astype(int))
        connected = _clustering.neighbor_graph(embedding, seed).obsp["connectivities"]
        assert (connected != graph.obsp["connectivities"]).nnz == 0


def test_clustering_is_that_of_cluster_with_the_same_settings() -> None:
    embedding, labels = blobs(distance=1.5)
    for method, options in (
        ("kmeans", {"n_clusters": 7, "seed": 3, "n_init": 1}),
        ("leiden", {"seed": 3, "resolution": 3.0}),
    ):
        scores = metrics.clustering(embedding, labels, method, **options)
        found = metrics.cluster(embedding, method, **options)
        assert scores["ari"] == adjusted_rand_score(labels, found)
        assert scores["n_clusters"] == len(np.unique(found))


def test_matched_leiden_is_leiden_of_the_same_seed() -> None:
    """Of the first resolution halfway between .001 and 100 on a logarithmic scale."""
    embedding = np.random.default_rng(0).normal(size=(120, 2))
    middle = float(np.sqrt(1e-3 * 1e2))
    for seed in (0, 6):
        expected = metrics.cluster(embedding, "leiden", resolution=middle, seed=seed)
        found = metrics.leiden_matched(embedding, len(np.unique(expected)), seed)
        np.testing.assert_array_equal(found, expected)


def test_kmeans_takes_another_number_of_clusters() -> None:
    embedding, labels = blobs()
    assert metrics.clustering(embedding, labels, n_clusters=5)["n_clusters"] == 5


def test_leiden_looks_at_no_label() -> None:
    embedding, labels = blobs()
    other = np.resize(["x", "y"], len(labels))
    found = [
        metrics.clustering(embedding, y, method="leiden")["n_clusters"] for y in (labels, other)
    ]
    assert found[0] == found[1] == len(np.unique(metrics.cluster(embedding, "leiden")))


def test_leiden_resolution_splits_further() -> None:
    embedding, _ = blobs(n_per_type=60)
    coarse, fine = (
        len(np.unique(metrics.cluster(embedding, "leiden", resolution=r))) for r in (0.1, 5.0)
    )
    assert coarse == 3 < fine


@pytest.mark.parametrize("method", ["kmeans", "leiden"])
def test_same_seed_same_clusters(method: str) -> None:
    embedding, _ = blobs(distance=2.0)
    n_clusters = 4 if method == "kmeans" else None
    first, second = (metrics.cluster(embedding, method, n_clusters, seed=7) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert first.shape == (len(embedding),)
    assert set(first) == set(range(first.max() + 1))


@pytest.mark.parametrize("method", ["kmeans", "leiden"])
def test_clustering_leaves_global_state_and_input_alone(method: str) -> None:
    embedding, labels = blobs()
    before, state = embedding.copy(), np.random.get_state()[1].copy()  # noqa: NPY002
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metrics.clustering(embedding, labels, method=method)
    np.testing.assert_array_equal(embedding, before)
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002


@pytest.mark.parametrize("n_neighbors", [1, 5, 15])
def test_purity_is_that_of_the_neighbours_of_scikit_learn(n_neighbors: int) -> None:
    """Types of unequal size: the cell itself is the first neighbour, and is left out by hand."""
    embedding, labels = blobs(n_per_type=60, distance=2.0)
    embedding, labels = embedding[20:150], labels[20:150]
    index = NearestNeighbors(n_neighbors=n_neighbors + 1).fit(embedding)
    neighbors = index.kneighbors(embedding, return_distance=False)
    assert (neighbors[:, 0] == np.arange(130)).all()
    own = (labels[neighbors[:, 1:]] == labels[:, None]).mean(axis=1)
    expected = pd.Series(own).groupby(labels).mean().mean()
    assert abs(expected - own.mean()) > 0.001
    assert metrics.purity(embedding, labels, n_neighbors) == pytest.approx(expected, abs=1e-12)
    if n_neighbors == 15:
        assert metrics.purity(embedding, labels) == pytest.approx(expected, abs=1e-12)


def test_purity_counts_rare_types_as_much_as_common_ones() -> None:
    embedding = np.concatenate([np.arange(90.0), 1000 + np.arange(10.0), [50.25, 60.25]])
    labels = ["common"] * 100 + ["rare"] * 2
    found = metrics.purity(embedding[:, None], labels, n_neighbors=1)
    assert found == pytest.approx(0.48)  # 96 in 100, and none


def test_purity_of_cells_in_one_place_leaves_each_out_itself() -> None:
    embedding = np.zeros((4, 2))
    assert metrics.purity(embedding, ["A", "B", "C", "D"], n_neighbors=3) == 0
    assert metrics.purity(embedding, ["A", "A", "B", "B"]) == pytest.approx(1 / 3)


def test_purity_of_few_cells_takes_all_others() -> None:
    embedding, labels = blobs(n_per_type=3)
    assert metrics.purity(embedding, labels) == pytest.approx(2 / 8)
    assert metrics.purity([[0.0], [1.0]], ["A", "A"]) == 1


def test_purity_is_of_the_share_of_types_where_nothing_is_known() -> None:
    noise = np.random.default_rng(0).normal(size=(3000, 2))
    labels = np.repeat(["A", "B", "C"], [2400, 400, 200])
    assert metrics.purity(noise, labels) == pytest.approx(1 / 3, abs=0.01)


def test_purity_refuses_what_it_cannot_score() -> None:
    with pytest.raises(ValueError, match="needs at least 2 cells"):
        metrics.purity([[0.0]], ["A"])
    with pytest.raises(ValueError, match="n_neighbors must be at least 1"):
        metrics.purity([[0.0], [1.0]], ["A", "B"], n_neighbors=0)
    with pytest.raises(ValueError, match="labels is missing"):
        metrics.purity([[0.0], [1.0]], ["A", None])
    with pytest.raises(ValueError, match="NaN or infinite values in 1 of 2"):
        metrics.purity([[0.0], [np.nan]], ["A", "B"])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_cells_are_counted_in_the_error(bad: float) -> None:
    embedding, labels = blobs()
    embedding[[3, 3, 8], [0, 1, 0]] = bad
    with pytest.raises(ValueError, match="in 2 of 120 cells"):
        metrics.clustering(embedding, labels)


@pytest.mark.parametrize("shape", [(10,), (0, 2), (10, 0), (2, 5, 1)])
def test_embedding_must_be_a_matrix(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"shape \(n_cells, n_latent\).*got shape"):
        metrics.cluster(np.zeros(shape), n_clusters=2)


def test_length_mismatch_names_both_lengths() -> None:
    embedding, labels = blobs()
    with pytest.raises(ValueError, match="labels has 119 entries but the embedding has 120"):
        metrics.clustering(embedding, labels[:-1])


@pytest.mark.parametrize("missing", [None, np.nan, pd.NA])
def test_missing_labels_are_counted_in_the_error(missing: object) -> None:
    embedding, labels = blobs()
    holed = labels.astype(object)
    holed[[0, 5, 9]] = missing
    with pytest.raises(ValueError, match="labels is missing .* in 3 of 120 cells; drop"):
        metrics.clustering(embedding, list(holed))


def test_unknown_method_names_the_choices() -> None:
    embedding, labels = blobs()
    with pytest.raises(ValueError, match="'louvain'; choose 'kmeans' or 'leiden'"):
        metrics.clustering(embedding, labels, method="louvain")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"n_clusters": 0}, "n_clusters must be at least 1"),
        ({"n_clusters": 5}, "more than the 4 cells there are"),
        ({"n_clusters": 2, "n_init": 0}, "n_init must be at least 1"),
        ({"n_clusters": 2, "seed": -1}, "seed must be at least 0"),
        ({"method": "leiden", "resolution": -0.5}, "resolution must be"),
    ],
)
def test_cluster_refuses_numbers_that_mean_nothing(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        metrics.cluster(np.arange(8.0).reshape(4, 2), **options)


def test_the_graph_of_neighbours_has_the_seed() -> None:
    graph = _clustering.neighbor_graph(np.random.default_rng(0).normal(size=(30, 3)), seed=7)
    assert graph.uns["neighbors"]["params"]["random_state"] == 7


@pytest.mark.parametrize(("n_clusters", "off"), [(2, 0), (3, 0), (6, 0), (12, 1)])
def test_matched_leiden_gives_the_wanted_number(n_clusters: int, off: int) -> None:
    embedding, _ = blobs(distance=3.0)
    found = metrics.leiden_matched(embedding, n_clusters)
    # graphs differ between versions of scanpy and umap in the last bits, and clouds are but three
    assert abs(len(np.unique(found)) - n_clusters) <= off
    np.testing.assert_array_equal(found, metrics.leiden_matched(embedding, n_clusters))


@pytest.mark.parametrize(("n_clusters", "nearest"), [(1, 3), (120, 120)])
def test_matched_leiden_comes_as_near_as_it_can(n_clusters: int, nearest: int) -> None:
    embedding, _ = blobs(distance=300.0)  # no resolution joins clouds without a common neighbour
    assert len(np.unique(metrics.leiden_matched(embedding, n_clusters))) == nearest


def test_matched_leiden_refuses_no_cluster() -> None:
    with pytest.raises(ValueError, match="n_clusters must be at least 1, not 0"):
        metrics.leiden_matched(blobs()[0], 0)


def test_leiden_refuses_a_number_of_clusters() -> None:
    embedding, labels = blobs()
    with pytest.raises(ValueError, match="set resolution"):
        metrics.clustering(embedding, labels, method="leiden", n_clusters=3)


def test_kmeans_without_labels_needs_a_number_of_clusters() -> None:
    with pytest.raises(ValueError, match="pass n_clusters"):
        metrics.cluster(blobs()[0])


def test_leiden_refuses_two_cells() -> None:
    with pytest.raises(ValueError, match="at least 3 cells, got 2"):
        metrics.cluster(np.eye(2), "leiden")


def test_missing_scib_metrics_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scib_metrics", None)
    embedding, labels = blobs()
    with pytest.raises(ImportError, match=r'pip install "dra_scvi\[scib\]"'):
        metrics.integration(embedding, labels, np.resize(["x", "y"], len(labels)))


@pytest.mark.parametrize("what", ["batch", "label"])
def test_integration_needs_two_batches_and_two_labels(what: str) -> None:
    embedding, labels = blobs()
    varied, constant = np.resize(["x", "y"], len(labels)), ["z"] * len(labels)
    arguments = (labels, constant) if what == "batch" else (constant, varied)
    with pytest.raises(ValueError, match=f"at least two {what} values"):
        metrics.integration(embedding, *arguments)


def test_integration_refuses_types_confined_to_one_batch() -> None:
    embedding, labels = blobs()
    with pytest.raises(ValueError, match="No label occurs in two batches"):
        metrics.integration(embedding, labels, labels)


@pytest.mark.parametrize(
    ("types", "batches", "comparable"),
    [
        pytest.param("A" * 16 + "BB", "x" * 16 + "xy", False, id="a-cell-of-each-batch"),
        pytest.param("A" * 15 + "BBB", "x" * 15 + "xxy", True, id="one-cell-more"),
        pytest.param("A" * 9 + "B" * 9, "x" * 9 + "y" * 9, False, id="apart"),
        pytest.param("A" * 8 + "BB" + "C" * 8, "x" * 8 + "xy" + "y" * 8, False, id="both"),
    ],
)
def test_integration_needs_a_type_with_more_cells_than_batches(
    types: str, batches: str, comparable: bool
) -> None:
    codes = [pd.factorize(np.array(list(names)))[0] for names in (types, batches)]
    if comparable:
        _integration.check_comparable(*codes)
    else:
        with pytest.raises(ValueError, match="No label occurs in two batches"):
            _integration.check_comparable(*codes)


@pytest.mark.parametrize("n_cells", [15, 16])
def test_integration_needs_more_cells_than_neighbours(n_cells: int) -> None:
    types, batch = np.arange(n_cells) % 2, np.arange(n_cells) // 2 % 2
    if n_cells == 16:
        _integration.check_comparable(types, batch)
    else:
        with pytest.raises(ValueError, match="more than 15 cells, got 15"):
            _integration.check_comparable(types, batch)


def test_integration_refuses_missing_batches() -> None:
    embedding, labels = blobs()
    batches = ["x", None, *["y"] * (len(labels) - 2)]
    with pytest.raises(ValueError, match="batches is missing .* in 1 of 120 cells"):
        metrics.integration(embedding, labels, batches)


def test_integration_refuses_few_cells() -> None:
    with pytest.raises(ValueError, match="more than 15 cells, got 4"):
        metrics.integration(np.eye(4), list("AABB"), list("xyxy"))


def test_integration_prefers_mixed_batches_and_separate_types() -> None:
    pytest.importorskip("scib_metrics")
    embedding, labels = blobs(n_per_type=100)
    batches = np.resize(["x", "y"], len(labels))
    shifted = embedding + 200.0 * (batches == "y")[:, None]
    mixed, split = (metrics.integration(e, labels, batches) for e in (embedding, shifted))
    assert mixed["bras"] > 0.8 > split["bras"]
    assert mixed["kbet"] > 0.8
    assert split["kbet"] < 0.2
    assert mixed["nmi"] == pytest.approx(1.0)
    assert mixed["ilisi"] > 0.8
    assert split["ilisi"] < 0.05
    assert mixed["graph_connectivity"] > 0.98
    assert split["graph_connectivity"] == pytest.approx(0.5, abs=0.02)
    assert mixed["clisi"] > 0.95
    assert mixed["total"] > split["total"]


def test_integration_label_silhouette_is_the_rescaled_one_of_scikit_learn() -> None:
    pytest.importorskip("scib_metrics")
    embedding, labels = blobs(distance=3.0)
    scores = metrics.integration(embedding, labels, np.resize(["x", "y"], len(labels)))
    expected = (silhouette_score(embedding, labels) + 1) / 2
    assert scores["silhouette_label"] == pytest.approx(expected, abs=1e-5)


def test_integration_aggregates_follow_the_benchmark_weights() -> None:
    pytest.importorskip("scib_metrics")
    embedding, labels = blobs(distance=3.0)
    s = metrics.integration(embedding, labels, np.resize(["x", "y"], len(labels)))
    bio = ["isolated_labels", "nmi", "ari", "silhouette_label", "clisi"]
    mixing = ["bras", "ilisi", "kbet", "graph_connectivity"]
    means = [np.mean([s[name] for name in names]) for names in (bio, mixing)]
    assert np.isnan(s["pcr"])
    assert [s["bio_conservation"], s["batch_correction"]] == pytest.approx(means)
    assert s["total"] == pytest.approx(0.6 * means[0] + 0.4 * means[1])
    assert all(type(value) is float for value in s.values())


def test_integration_is_that_of_the_benchmarker_of_scib_metrics() -> None:
    pytest.importorskip("scib_metrics")
    from scib_metrics.benchmark import Benchmarker

    embedding, labels = blobs(n_per_type=60, distance=3.0)
    batches = np.resize(["x", "y", "y"], len(labels))
    before = embedding + (batches == "y")[:, None]
    adata = AnnData(before, obsm={"pre": before, "z": embedding})
    adata.obs["type"], adata.obs["batch"] = pd.Categorical(labels), pd.Categorical(batches)
    bench = Benchmarker(
        adata, "batch", "type", ["z"], pre_integrated_embedding_obsm_key="pre", progress_bar=False
    )
    bench.benchmark()
    expected = bench.get_results(min_max_scale=False).loc["z"]
    ours = metrics.integration(embedding, labels, batches, unintegrated=before)
    assert ours["total"] == pytest.approx(expected["Total"], abs=0.01)  # it searches approximately
    assert ours["pcr"] == pytest.approx(expected["PCR comparison"], abs=1e-3)


def test_integration_scores_are_those_of_scib_metrics_on_exact_neighbours() -> None:
    scib = pytest.importorskip("scib_metrics")
    from scib_metrics.nearest_neighbors import NeighborsResults
    from sklearn.neighbors import NearestNeighbors

    embedding, labels = blobs(distance=3.0)
    batches = np.resize(["x", "y", "y"], len(labels))
    types, batch = (pd.factorize(names)[0] for names in (labels, batches))

    def neighbors(n: int) -> NeighborsResults:
        distances, indices = NearestNeighbors(n_neighbors=n).fit(embedding).kneighbors(embedding)
        return NeighborsResults(indices=indices, distances=distances)

    clusters = scib.nmi_ari_cluster_labels_kmeans(embedding, types)
    expected = {
        "isolated_labels": scib.isolated_labels(embedding, types, batch),
        "nmi": clusters["nmi"],
        "ari": clusters["ari"],
        "silhouette_label": scib.silhouette_label(embedding, types),
        "clisi": scib.clisi_knn(neighbors(90), types),
        "bras": scib.bras(embedding, types, batch),
        "ilisi": scib.ilisi_knn(neighbors(90), batch),
        "kbet": scib.kbet_per_label(neighbors(50), batch, types),
        "graph_connectivity": scib.graph_connectivity(neighbors(15), types),
        "pcr": scib.pcr_comparison(2 * embedding + 1, embedding, batch, categorical=True),
    }
    before = 2 * embedding + 1
    found = metrics.integration(embedding, labels, batches, before)
    assert list(found) == [*expected, "bio_conservation", "batch_correction", "total"]
    for name, score in expected.items():
        tolerance = 0.1 if name == "kbet" else 1e-6  # which begins at random
        assert found[name] == pytest.approx(float(score), abs=tolerance), name


def test_integration_of_fewer_cells_than_neighbours_uses_all() -> None:
    pytest.importorskip("scib_metrics")
    embedding, labels = blobs(n_per_type=6)
    found = _integration._exact_neighbors(embedding, 90)
    assert found.indices.shape == found.distances.shape == (18, 18)
    scores = metrics.integration(embedding, labels, np.resize(["x", "y"], 18))
    assert 0 <= scores["total"] <= 1


def test_integration_says_nothing_of_types_or_batches_that_it_leaves_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Types too small for kBET, and batches that explain more than before."""
    pytest.importorskip("scib_metrics")
    embedding, labels = blobs(n_per_type=6)
    batches = np.resize(["x", "y"], 18)
    level = logging.getLogger("scib_metrics").level
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shifted = embedding + 50.0 * (batches == "y")[:, None]
        scores = metrics.integration(shifted, labels, batches, embedding)
    assert scores["pcr"] == 0
    assert np.isnan(scores["kbet"])
    assert caplog.records == []
    assert logging.getLogger("scib_metrics").level == level


def test_integration_refuses_other_cells_before() -> None:
    pytest.importorskip("scib_metrics")
    embedding, labels = blobs()
    with pytest.raises(ValueError, match="unintegrated has 3 cells, the embedding 120"):
        metrics.integration(embedding, labels, np.resize(["x", "y"], len(labels)), np.eye(3))


def test_real_batches_of_cell_lines_do_not_mix_under_pca() -> None:
    pytest.importorskip("scib_metrics")
    adata = real_data("sc_mixology_5batches.h5ad")
    import scanpy as sc

    sc.pp.normalize_total(adata)
    sc.pp.log1p(adata)
    sc.pp.pca(adata, n_comps=10)
    scores = metrics.integration(adata.obsm["X_pca"], adata.obs["cell_type"], adata.obs["batch"])
    assert scores["clisi"] > scores["ilisi"]
    assert scores["ilisi"] < 0.5


def real_data(name: str):  # noqa: ANN201
    """Read a shared data set, or skip the test where there is none."""
    folder = os.environ.get("DRA_SCVI_DATA")
    if not folder:
        pytest.skip("DRA_SCVI_DATA is not set")
    import anndata

    return anndata.read_h5ad(Path(folder, name))


@pytest.mark.parametrize("module", ["metrics", "datasets"])
def test_module_alone_imports_no_deep_learning(module: str) -> None:
    code = (
        "import sys, types, importlib\n"
        "package = types.ModuleType('dra_scvi')\n"
        f"package.__path__ = [{str(PACKAGE)!r}]\n"
        "sys.modules['dra_scvi'] = package\n"
        f"importlib.import_module('dra_scvi.{module}')\n"
        "found = {'torch', 'scvi', 'scanpy', 'pooch'} & set(sys.modules)\n"
        "sys.exit(' '.join(found) or 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip() == ""
    assert done.returncode == 0


def test_the_embedding_of_some_of_the_cells_is_a_matrix() -> None:
    adata = AnnData(np.zeros((30, 1)), obsm={"X_dra": np.repeat(np.eye(3), 10, axis=0)})
    some = adata[np.arange(30) % 2 == 0]
    assert metrics.clustering(some.obsm["X_dra"], np.repeat(list("abc"), 5))["nmi"] == 1.0


# -- names in an AnnData -----------------------------------------------------------------------


def named_cells() -> AnnData:
    """Cells with two embeddings, of which `X_dra` is the better one, and columns."""
    embedding, labels = blobs(n_per_type=20, distance=3.0)
    columns = {"type": labels, "donor": np.tile(["a", "b"], len(labels) // 2)}
    adata = AnnData(obs=pd.DataFrame(columns, index=[f"c{i}" for i in range(len(labels))]))
    adata.obsm["X_dra"] = embedding
    adata.obsm["X_other"] = embedding + np.random.default_rng(5).normal(0, 3, embedding.shape)
    return adata


@pytest.mark.parametrize("key", ["X_dra", "X_other"])
def test_names_in_an_anndata_are_what_they_name(key: str) -> None:
    adata = named_cells()
    points, labels = adata.obsm[key], adata.obs["type"]
    named = {} if key == "X_dra" else {"use_rep": key}  # what tl.dra writes is taken by default
    assert metrics.clustering(adata, labels="type", **named) == metrics.clustering(points, labels)
    assert metrics.purity(adata, "type", **named) == metrics.purity(points, labels)
    for found, wanted in (
        (metrics.cluster(adata, n_clusters=3, **named), metrics.cluster(points, n_clusters=3)),
        (metrics.leiden_matched(adata, 3, **named), metrics.leiden_matched(points, 3)),
    ):
        np.testing.assert_array_equal(found, wanted)


def test_an_anndata_takes_arrays_beside_names() -> None:
    adata = named_cells()
    wanted = metrics.purity(adata.obsm["X_other"], adata.obs["type"])
    assert metrics.purity(adata, adata.obs["type"].tolist(), use_rep="X_other") == wanted


def test_gaps_in_a_column_are_told_by_its_name() -> None:
    adata = named_cells()
    adata.obs["type"] = adata.obs["type"].where(np.arange(adata.n_obs) > 1)
    with pytest.raises(ValueError, match=r"labels='type' is missing \(NaN\) in 2 of 60 cells"):
        metrics.clustering(adata, "type")


def test_integration_by_names_is_that_of_the_arrays() -> None:
    pytest.importorskip("scib_metrics")
    adata = named_cells()
    named = metrics.integration(adata, "type", "donor", "X_other", use_rep="X_dra")
    points, before = adata.obsm["X_dra"], adata.obsm["X_other"]
    assert named == metrics.integration(points, adata.obs["type"], adata.obs["donor"], before)
    with pytest.raises(KeyError, match="unintegrated='X_pca' is not a key of adata.obsm"):
        metrics.integration(adata, "type", "donor", "X_pca")
    with pytest.raises(KeyError, match="batches='donr' is not a column of adata.obs"):
        metrics.integration(adata, "type", "donr")
