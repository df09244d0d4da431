"""A resolution that nobody gave finds the types that there are, and none where there are none."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from anndata import AnnData
from sklearn.metrics import adjusted_rand_score

from dra_scvi import _clusters, tl

TRIED = (0.05, 0.2, 0.5, 0.8, 1.2, 2.0)


def of_types(sizes: list[int], distance: float = 8.0) -> AnnData:
    """Cells of types that lie apart, in as many dimensions."""
    rng = np.random.default_rng(3)
    types = np.repeat(np.arange(len(sizes)), sizes)
    points = distance * np.eye(len(sizes))[types] + rng.normal(size=(len(types), len(sizes)))
    obs = pd.DataFrame({"type": types.astype(str)}, index=[f"cell {n}" for n in range(len(types))])
    return AnnData(obs=obs, obsm={"X_dra": points})


@pytest.mark.parametrize("sizes", [[150, 150, 150], [120, 100, 80, 60, 40, 25]], ids=str)
def test_known_types_are_found(sizes: list[int]) -> None:
    adata = of_types(sizes)
    found = tl.suggest_resolution(adata, resolutions=TRIED)
    tl.cluster(adata, resolution=found.resolution, umap=False)
    assert found.is_stable
    assert adata.obs["leiden"].nunique() == len(sizes)
    assert adjusted_rand_score(adata.obs["type"], adata.obs["leiden"]) > 0.99
    row = found.table[found.table["is_chosen"]].iloc[0]
    assert (row["resolution"], row["n_clusters"]) == (found.resolution, len(sizes))
    assert found.table["resolution"].tolist() == list(TRIED)


def test_cells_without_types_have_no_stable_clusters() -> None:
    points = np.random.default_rng(0).normal(size=(400, 10))
    adata = AnnData(obsm={"X_dra": points})
    found = tl.suggest_resolution(adata, resolutions=TRIED)
    assert not found.is_stable
    split = found.table[found.table["n_clusters"] > 1]
    assert len(split) > 0  # Leiden finds some all the same
    assert (split["stability"] < 0.6).all()
    tl.cluster(adata, resolution=found.resolution, umap=False)
    assert adata.obs["leiden"].nunique() == 1


def rows(*values: tuple[float, int, float]) -> pd.DataFrame:
    return pd.DataFrame(values, columns=["resolution", "n_clusters", "stability"])


@pytest.mark.parametrize(
    ("table", "choice", "is_stable"),
    [
        ([(0.1, 1, 1.0), (0.2, 2, 0.99), (0.4, 4, 0.91), (0.8, 9, 0.6)], 0.4, True),
        ([(0.1, 2, 1.0), (0.2, 3, 0.95), (0.3, 3, 1.0), (0.4, 3, 0.93)], 0.3, True),
        ([(0.1, 3, 0.9), (0.2, 5, 0.89)], 0.1, True),
        ([(0.1, 1, 1.0), (0.2, 1, 1.0), (0.3, 1, 1.0), (0.4, 3, 0.8)], 0.2, False),
        ([(0.1, 2, 0.5), (0.2, 6, 0.7)], 0.1, False),
    ],
    ids=["finest", "middle", "limit", "one", "none"],
)
def test_rule(table: list[tuple[float, int, float]], choice: float, is_stable: bool) -> None:
    found = _clusters._choose(rows(*table))
    assert (found.resolution, found.is_stable) == (choice, is_stable)
    assert found.table.loc[found.table["is_chosen"], "resolution"].tolist() == [choice]


def test_draws_have_cells_and_seeds_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    graph = _clusters.neighbor_graph

    def record(points: np.ndarray, seed: int) -> AnnData:
        seen.append((points[:, 0].tolist(), seed))
        return graph(points, seed)

    monkeypatch.setattr(_clusters, "neighbor_graph", record)
    adata = of_types([40, 40])
    before = np.random.get_state()[1].tolist()  # noqa: NPY002
    first = tl.suggest_resolution(adata, resolutions=[0.3, 0.1], max_cells=50)
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002
    cells, seeds = zip(*seen, strict=True)
    assert [len(drawn) for drawn in cells] == [40] * 5
    assert len({tuple(drawn) for drawn in cells}) == len(set(seeds)) == 5
    assert len(set().union(*cells)) <= 50
    assert first.table["resolution"].tolist() == [0.1, 0.3]
    again = tl.suggest_resolution(adata, resolutions=[0.1, 0.3], max_cells=50)
    assert first.table.equals(again.table)
    assert cells == tuple(drawn for drawn, _ in seen[5:])
    tl.suggest_resolution(adata, resolutions=[0.1], max_cells=50, seed=1)
    assert seen[10] not in seen[:10]


def test_clusters_and_umap_are_scanpys() -> None:
    adata = of_types([60, 50, 40])
    adata.uns["leiden_colors"] = ["#000000"]
    assert tl.cluster(adata, resolution=1.0, seed=2) is None
    sc.pp.neighbors(adata, use_rep="X_dra", random_state=2)
    expected = adata.copy()
    sc.tl.leiden(
        expected, resolution=1.0, random_state=2, flavor="igraph", n_iterations=2, directed=False
    )
    sc.tl.umap(expected, random_state=2)
    assert adjusted_rand_score(adata.obs["leiden"], expected.obs["leiden"]) == 1
    assert adata.uns["leiden"] == expected.uns["leiden"]
    assert np.array_equal(adata.obsm["X_umap"], expected.obsm["X_umap"])
    assert "leiden_colors" not in adata.uns


def test_clusters_are_numbered_from_the_largest_on() -> None:
    adata = of_types([25, 60, 120])
    tl.cluster(adata, resolution=0.3, umap=False)
    sizes = adata.obs["leiden"].value_counts().loc[adata.obs["leiden"].cat.categories].tolist()
    assert len(sizes) >= 3
    assert sizes == sorted(sizes, reverse=True)


def test_what_is_asked_for_is_added_under_its_name() -> None:
    adata = of_types([30, 30])
    assert tl.cluster(adata, leiden=False) is None
    assert (list(adata.obs), list(adata.obsm)) == (["type"], ["X_dra", "X_umap"])
    adata.obsm["X_other"] = adata.obsm.pop("X_dra")
    found = tl.cluster(adata, "X_other", umap=False, key_added="mine")
    assert found is not None
    assert adata.uns["mine"]["params"]["resolution"] == found.resolution
    assert list(adata.obs) == ["type", "mine"]


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"use_rep": "X_drb"}, KeyError, "did you mean 'X_dra'"),
        ({"resolutions": []}, ValueError, "at least one"),
        ({"resolutions": [0.0]}, ValueError, "above 0"),
        ({"resolutions": ["low"]}, TypeError, "a number"),
        ({"seed": -1}, ValueError, "seed"),
        ({"max_cells": 5}, ValueError, "at least 10"),
    ],
)
def test_arguments(arguments: dict[str, object], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        tl.suggest_resolution(of_types([20, 20]), **arguments)


@pytest.mark.parametrize("n_cells", [3, 4])
def test_few_cells_are_clustered_and_have_a_umap(n_cells: int) -> None:
    adata = AnnData(obsm={"X_dra": np.random.default_rng(0).normal(size=(n_cells, 3))})
    tl.cluster(adata, resolution=0.5)
    assert len(adata.obs["leiden"]) == n_cells
    assert np.isfinite(adata.obsm["X_umap"]).all()


@pytest.mark.parametrize("key", ["a/b", "", 3])
def test_names_that_no_file_can_have_are_refused(key: object) -> None:
    adata = of_types([20])
    with pytest.raises((TypeError, ValueError), match="key_added=.* cannot be a name"):
        tl.cluster(adata, resolution=0.5, umap=False, key_added=key)
    assert list(adata.obs) == ["type"]
