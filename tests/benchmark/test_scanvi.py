"""scANVI among the models: what it is told, which cells it is scored on, and how that is said."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
import scvi
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score, silhouette_score
from sklearn.neighbors import NearestNeighbors

from dra_scvi import benchmark, datasets, metrics
from dra_scvi.benchmark import _models, _runs
from dra_scvi.benchmark._cells import prepare, told_half
from dra_scvi.cli._benchmark import MODELS
from tests.helpers import invoke

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData
    from numpy.typing import NDArray

TYPES, SEED, N_TYPES = "cell_type", 3, 3

pytestmark = pytest.mark.filterwarnings("ignore:no integration scores")  # without scib-metrics


def cells() -> AnnData:
    return datasets.synthetic(n_cells=90, n_genes=30, n_types=N_TYPES, n_batches=2, seed=0)


def compare(models: Any, **options: Any) -> pd.DataFrame:
    defaults = {"n_latent": 4, "seeds": [SEED], "max_epochs": 1, "accelerator": "cpu"}
    return benchmark.compare(
        cells(), TYPES, models=models, **{**defaults, "progress": False, **options}
    )


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """Return the rows of scANVI and scVI, as the file has them."""
    path = tmp_path_factory.mktemp("scanvi") / "table.csv"
    compare(("scanvi", "scvi"), batch_key="batch", output=path)
    return pd.read_csv(path).set_index("model")


def scanvi_of(told: NDArray[np.bool_]) -> NDArray[np.floating]:
    """Embed with scANVI as its documentation has it."""
    counts = cells()
    codes = pd.factorize(counts.obs[TYPES])[0].astype(str)
    counts.obs["told"] = np.where(told, codes, "untold")
    quiet = {"accelerator": "cpu", "enable_progress_bar": False}
    scvi.settings.seed = SEED
    scvi.model.SCVI.setup_anndata(counts, batch_key="batch")
    before = scvi.model.SCVI(counts, n_latent=4)
    before.train(max_epochs=1, **quiet)
    model = scvi.model.SCANVI.from_scvi_model(before, "untold", labels_key="told")
    model.train(**quiet)
    return model.get_latent_representation()


@pytest.mark.parametrize("seed", [0, 1])
def test_half_of_each_type_is_told(seed: int) -> None:
    labels = np.repeat([2, 0, 1, 3], [1, 2, 7, 40])
    told = told_half(labels, seed)
    assert np.bincount(labels, weights=told).tolist() == [1, 3, 0, 20]
    np.testing.assert_array_equal(told, told_half(labels, seed))
    assert (told != told_half(labels, seed + 1)).any()
    assert 0 < told[-40:-20].sum() < 20  # drawn, and not the first ones


def test_scanvi_is_scored_on_cells_whose_types_it_was_not_told(table: pd.DataFrame) -> None:
    labels = pd.factorize(cells().obs[TYPES])[0]
    told = told_half(labels, SEED)
    points, row = scanvi_of(told), table.loc["scanvi"]
    found = metrics.cluster(points, "kmeans", N_TYPES, seed=SEED)  # of all cells
    leiden = metrics.leiden_matched(points, N_TYPES, seed=SEED)
    fixed = metrics.cluster(points, "leiden", resolution=1.0, seed=SEED)
    rest = ~told
    nearest = NearestNeighbors(n_neighbors=15).fit(points).kneighbors(return_distance=False)
    own = (labels[nearest] == labels[:, None]).mean(axis=1)
    expected = {
        "nmi": normalized_mutual_info_score(labels[rest], found[rest]),
        "ari": adjusted_rand_score(labels[rest], found[rest]),
        "leiden_nmi": normalized_mutual_info_score(labels[rest], leiden[rest]),
        "leiden_ari": adjusted_rand_score(labels[rest], leiden[rest]),
        "leiden1_nmi": normalized_mutual_info_score(labels[rest], fixed[rest]),
        "silhouette": silhouette_score(points[rest], labels[rest]),
        "purity": np.mean([own[rest & (labels == name)].mean() for name in range(N_TYPES)]),
        "n_clusters": N_TYPES,
        "leiden1_n_clusters": len(np.unique(fixed)),
    }
    for name, value in expected.items():
        assert row[name] == pytest.approx(value, abs=1e-5), name


def test_integration_of_scanvi_is_scored_on_the_same_cells(table: pd.DataFrame) -> None:
    pytest.importorskip("scib_metrics")
    adata = cells()
    rest = ~told_half(pd.factorize(adata.obs[TYPES])[0], SEED)
    points = scanvi_of(~rest)[rest]
    before = prepare(adata, TYPES, "batch").components[rest]
    own = adata.obs[rest]
    expected = metrics.integration(points, own[TYPES], own["batch"], unintegrated=before)
    for name in ("nmi", "silhouette_label", "ilisi", "graph_connectivity", "pcr"):
        found = table.loc["scanvi", f"integration_{name}"]
        assert found == pytest.approx(expected[name], abs=1e-4), name


def test_rows_say_who_saw_labels(table: pd.DataFrame) -> None:
    assert table["saw_labels"].to_dict() == {"scanvi": True, "scvi": False}
    assert (table["status"] == "ok").all()
    assert table["epochs"].to_dict() == {"scanvi": 11, "scvi": 1}  # ten of its own
    assert table.loc["scanvi", "settings"] != table.loc["scvi", "settings"]


def test_other_models_are_scored_as_they_are_without(table: pd.DataFrame) -> None:
    alone = compare("scvi", batch_key="batch").iloc[0]
    for name in ("nmi", "ari", "leiden_nmi", "leiden1_nmi", "purity", "silhouette"):
        assert table.loc["scvi", name] == pytest.approx(alone[name], abs=1e-9), name


def test_half_of_the_cells_can_be_too_few_for_integration() -> None:
    """Which leaves a row of scANVI without these scores, and ends no comparison."""
    pytest.importorskip("scib_metrics")
    adata = cells()[:24].copy()
    ready = prepare(adata, TYPES, "batch")
    points = np.random.default_rng(0).normal(size=(24, 2))
    told = told_half(ready.labels, 0)
    assert "integration_total" in _runs.score(points, ready, 0, True)
    scores = _runs.score(points, ready, 0, True, told)
    assert "integration_total" not in scores
    assert np.isfinite(scores["nmi"])
    one = prepare(adata[adata.obs["batch"] == "batch_0"].copy(), TYPES, "batch")
    with pytest.raises(ValueError, match="Integration scores need"):  # of the others it is said
        _runs.score(points[: one.counts.n_obs], one, 0, True)


def test_scanvi_is_asked_for_by_name() -> None:
    """It is in no default, and other models are told nothing."""
    assert "scanvi" not in MODELS
    assert "scanvi" not in str(benchmark.compare.__defaults__)
    told = [name for name, parts in _models.BUILT_IN.items() if parts.get("sees_labels")]
    assert told == ["scanvi"]


def test_the_printed_table_says_so(tmp_path: Path) -> None:
    cells().write_h5ad(tmp_path / "cells.h5ad")
    options = ("--models", "pca,scanvi", "--n-latent", 2, "--seeds", 1, "--max-epochs", 1)
    outputs = ("--output", tmp_path / "table.csv", "--accelerator", "cpu", "--threads", 1)
    args = ("benchmark", tmp_path / "cells.h5ad", "--label-key", TYPES, *options, *outputs)
    result = invoke(*args)
    assert result.exit_code == 0, result.stderr
    shown = " ".join(result.stdout.split())
    assert "scANVI saw the labels of half of the cells and is scored on the others" in shown
    assert "scANVI (half labelled)" in shown
    alone = invoke(*args[:4], "--models", "pca", *options[2:], *outputs)
    assert "saw the labels" not in " ".join(alone.stdout.split())
