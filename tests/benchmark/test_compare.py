"""Comparisons: what a row holds, what is kept and what is computed again, and their summary."""

from __future__ import annotations

import gc
import logging
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scvi
from scipy import sparse
from sklearn.cluster import KMeans
from sklearn.decomposition import FactorAnalysis
from sklearn.metrics import (
    adjusted_rand_score,
    normalized_mutual_info_score,
    silhouette_score,
)

from dra_scvi import DRA, InvalidCountsError, TrainingDivergedError, benchmark, datasets, metrics
from dra_scvi._exceptions import TrainingInterruptedError
from dra_scvi._model.epochs import default_max_epochs
from dra_scvi.benchmark import _cells as data
from dra_scvi.benchmark import _models as contenders
from dra_scvi.benchmark._table import COLUMNS, Table, frame

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from anndata import AnnData
    from numpy.typing import NDArray

TYPES = "cell_type"
JOINT = "JointEmbeddingSCVI"
ALL = ("pca", "fa", "scvi", "ldvae", "dra")

pytestmark = pytest.mark.filterwarnings("ignore:no integration scores")  # without scib-metrics


@pytest.fixture(autouse=True)
def _no_collection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare every run a search for garbage among all the objects of the libraries."""
    monkeypatch.setattr(gc, "collect", lambda *_: 0)


class Recorder:
    """A model that returns noise around the types, and remembers what it was given."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int]] = []
        self.counts: list[AnnData] = []
        self.points: list[NDArray[np.floating]] = []

    def __call__(self, counts: AnnData, n_latent: int, seed: int) -> NDArray[np.floating]:
        self.calls.append((n_latent, seed))
        self.counts.append(counts)
        rng = np.random.default_rng(seed)
        self.points.append(rng.normal(size=(counts.n_obs, n_latent)))
        return self.points[-1]


def compare(adata: AnnData, models: Any = "pca", **options: Any) -> pd.DataFrame:
    defaults = {"n_latent": 2, "seeds": 1, "max_epochs": 1, "accelerator": "cpu"}
    return benchmark.compare(
        adata, TYPES, models=models, **{**defaults, "progress": False, **options}
    )


def pca_of(adata: AnnData, n_latent: int) -> NDArray[np.floating]:
    logs = adata.copy()
    sc.pp.normalize_total(logs, target_sum=1e4)
    sc.pp.log1p(logs)
    sc.pp.pca(logs, n_comps=n_latent, svd_solver="arpack")
    return logs.obsm["X_pca"]


# -- a row -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def every_model() -> tuple[AnnData, pd.DataFrame]:
    """Return cells in two batches, and the table of all built-in models on them."""
    adata = datasets.synthetic(n_cells=150, n_genes=40, n_types=3, n_batches=2, seed=0)
    return adata, compare(adata, ALL, batch_key="batch", seeds=[3], name="made up")


def test_rows_of_built_in_models(every_model: tuple[AnnData, pd.DataFrame]) -> None:
    _, table = every_model
    assert list(table.columns) == list(COLUMNS)
    assert list(table["model"]) == list(ALL)
    assert list(table["epochs"].fillna(0)) == [0, 0, 1, 1, 1]
    assert list(table["max_epochs"].fillna(0)) == [0, 0, 1, 1, 1]
    assert (table["status"] == "ok").all()
    described = {
        "dataset": "made up",
        "n_cells": 150,
        "n_genes": 40,
        "n_types": 3,
        "gene_selection": "all",
        "label_key": TYPES,
        "batch_key": "batch",
        "seed": 3,
    }
    assert table[list(described)].drop_duplicates().to_dict("records") == [described]
    assert not table["quick"].any()
    assert table["nmi"].between(0, 1).all()
    assert (table["n_clusters"] == 3).all()
    assert (table["seconds"] > 0).all()
    assert (table["cpu_seconds"] > 0).all()
    assert (table["scvi_tools"] == scvi.__version__).all()


def test_short_scvi_is_scvi_for_as_many_epochs_as_dra(
    adata: AnnData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which are more with batches and in few dimensions; a number that is named holds."""
    for name, value in (("MIN_STEPS", 1), ("MIN_EPOCHS", 1), ("MAX_EPOCHS", 16)):
        monkeypatch.setattr(f"dra_scvi._model.epochs.{name}", value)
    cells, found = adata[:40].copy(), []
    for k, batch_key in ((2, None), (10, None), (10, "batch")):
        options = {"batch_key": batch_key, "n_latent": k, "max_epochs": None}
        found += compare(cells, "scvi-short", **options)["epochs"].tolist()
    expected = [
        default_max_epochs(40, n_latent=k, n_batch=n) for k, n in ((2, 1), (10, 1), (10, 2))
    ]
    assert found == expected == [8, 2, 4]
    table = compare(adata, ("scvi", "scvi-short"), n_latent=5, max_epochs=1)
    assert table["epochs"].tolist() == [1, 1]
    assert table["nmi"][0] == table["nmi"][1]
    assert table["settings"][0] != table["settings"][1]


def test_harmony_is_that_of_harmonypy_on_thirty_components(adata: AnnData) -> None:
    harmonypy = pytest.importorskip("harmonypy")
    logs = pca_of(adata, 30)
    corrected = harmonypy.run_harmony(logs, adata.obs, ["batch"], random_state=4, verbose=False)
    points = np.asarray(corrected.Z_corr)
    assert points.shape == (adata.n_obs, 30)
    table = compare(adata, "harmony", batch_key="batch", n_latent=(2, 5), seeds=[4])
    expected = metrics.clustering(points, adata.obs[TYPES], seed=4)
    assert table["silhouette"].tolist() == pytest.approx([expected["silhouette"]] * 2, abs=1e-5)
    assert table["purity"][0] == pytest.approx(metrics.purity(points, adata.obs[TYPES]), abs=1e-6)


@pytest.mark.parametrize("name", ["drvi", "jointembedding"])
def test_models_of_scvi_tools_1_5_run_with_their_defaults(name: str, adata: AnnData) -> None:
    model_cls = contenders._upstream_class({"drvi": "DRVI", "jointembedding": JOINT}[name])
    if model_cls is None:
        pytest.skip("scvi-tools 1.5")
    table = compare(adata, name, batch_key="batch", n_latent=4, seeds=[3])
    counts = adata.copy()
    scvi.settings.seed = 3
    model_cls.setup_anndata(counts, batch_key="batch")
    model = model_cls(counts, n_latent=4)
    model.train(max_epochs=1, accelerator="cpu", enable_progress_bar=False)
    scores = metrics.clustering(model.get_latent_representation(), adata.obs[TYPES], seed=3)
    assert table["silhouette"][0] == pytest.approx(scores["silhouette"], abs=1e-6)


def test_scores_of_integration(every_model: tuple[AnnData, pd.DataFrame]) -> None:
    pytest.importorskip("scib_metrics")
    adata, table = every_model
    components = pca_of(adata, min(adata.shape) - 1)
    expected = metrics.integration(
        pca_of(adata, 2), adata.obs[TYPES], adata.obs["batch"], unintegrated=components[:, :50]
    )
    for name, value in expected.items():
        assert table.loc[0, f"integration_{name}"] == pytest.approx(value, abs=1e-5)


def test_scvi_runs_with_its_defaults(every_model: tuple[AnnData, pd.DataFrame]) -> None:
    adata, table = every_model
    counts = adata.copy()
    scvi.settings.seed = 3
    scvi.model.SCVI.setup_anndata(counts, batch_key="batch")
    model = scvi.model.SCVI(counts, n_latent=2)
    model.train(max_epochs=1, accelerator="cpu", enable_progress_bar=False)
    scores = metrics.clustering(model.get_latent_representation(), adata.obs[TYPES], seed=3)
    row = table.set_index("model").loc["scvi"]
    assert row["nmi"] == pytest.approx(scores["nmi"])
    assert row["silhouette"] == pytest.approx(scores["silhouette"], abs=1e-6)


def test_dra_runs_with_its_defaults(every_model: tuple[AnnData, pd.DataFrame]) -> None:
    adata, table = every_model
    counts = adata.copy()
    scvi.settings.seed = 3
    DRA.setup_anndata(counts, batch_key="batch")
    model = DRA(counts, n_latent=2)
    model.train(max_epochs=1, accelerator="cpu", enable_progress_bar=False)
    scores = metrics.clustering(model.get_latent_representation(), adata.obs[TYPES], seed=3)
    row = table.set_index("model").loc["dra"]
    assert row["nmi"] == pytest.approx(scores["nmi"])
    assert row["silhouette"] == pytest.approx(scores["silhouette"], abs=1e-6)


def test_factor_analysis_is_that_of_scikit_learn(adata: AnnData) -> None:
    row = compare(adata, "fa", n_latent=5, seeds=[4]).iloc[0]
    logs = data.log_normalised(adata).X
    model = FactorAnalysis(5, svd_method="randomized", random_state=4)
    points = model.fit_transform(logs.toarray() if sparse.issparse(logs) else logs)
    assert row["nmi"] == pytest.approx(metrics.clustering(points, adata.obs[TYPES], seed=4)["nmi"])


def test_scores_equal_scikit_learn_on_the_embedding(adata: AnnData) -> None:
    model = Recorder()
    row = compare(adata, {"noise": model}, n_latent=4, seeds=[7]).iloc[0]
    [points], labels = model.points, adata.obs[TYPES]
    found = KMeans(3, n_init=10, random_state=7).fit_predict(points)
    assert row["nmi"] == pytest.approx(normalized_mutual_info_score(labels, found))
    assert row["ari"] == pytest.approx(adjusted_rand_score(labels, found))
    assert row["silhouette"] == pytest.approx(silhouette_score(points, labels))
    leiden = metrics.leiden_matched(points, 3, seed=7)
    assert row["leiden_nmi"] == pytest.approx(normalized_mutual_info_score(labels, leiden))
    assert row["leiden_ari"] == pytest.approx(adjusted_rand_score(labels, leiden))
    assert row["leiden_n_clusters"] == len(np.unique(leiden))
    fixed = metrics.cluster(points, "leiden", resolution=1.0, seed=7)
    assert row["leiden1_nmi"] == pytest.approx(normalized_mutual_info_score(labels, fixed))
    assert row["leiden1_n_clusters"] == len(np.unique(fixed))
    assert row["purity"] == metrics.purity(points, labels)


def test_both_leidens_share_one_graph(adata: AnnData, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, neighbors = [], sc.pp.neighbors

    def count(*args: Any, **options: Any) -> Any:
        calls.append(options)
        return neighbors(*args, **options)

    monkeypatch.setattr(sc.pp, "neighbors", count)
    compare(adata, {"noise": Recorder()}, seeds=2)
    assert len(calls) == 2


def test_runs_come_seed_by_seed(adata: AnnData) -> None:
    model = Recorder()
    table = compare(adata, {"noise": model, "other": "pca"}, n_latent=(2, 3), seeds=2)
    assert model.calls == [(2, 0), (3, 0), (2, 1), (3, 1)]
    assert list(table["model"]) == ["noise", "other"] * 4
    assert list(table["seed"]) == [0] * 4 + [1] * 4


def test_pca_is_computed_once_per_dimension(
    adata: AnnData, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    pca = contenders.BUILT_IN["pca"]["embed"]

    def count(counts: AnnData, task: contenders.Task) -> contenders.Embedded:
        calls.append(task.n_latent)
        return pca(counts, task)

    monkeypatch.setitem(contenders.BUILT_IN["pca"], "embed", count)
    table = compare(adata, n_latent=(2, 3), seeds=3)
    assert calls == [2, 3]
    for _, row in table.iterrows():
        points = pca_of(adata, row["n_latent"])
        expected = metrics.clustering(points, adata.obs[TYPES], seed=row["seed"])
        assert row["nmi"] == pytest.approx(expected["nmi"], abs=1e-6)


def test_models_get_a_copy_of_counts_and_batches_only(adata: AnnData) -> None:
    def vandal(counts: AnnData, n_latent: int, seed: int) -> NDArray[Any]:
        assert list(counts.obs) == ["batch"]
        assert (adata.layers["counts"] != counts.X).nnz == 0
        points = counts.X.toarray()[:, :n_latent].copy()
        counts.X.data[:] = 0
        counts.obs["batch"] = "none"
        return points

    adata.layers["counts"] = adata.X.copy()
    adata.X = adata.X.multiply(0.5).tocsr()
    adata.uns["note"], adata.obsm["X_other"] = "kept", np.ones((adata.n_obs, 2))
    before = adata.copy()
    models = {"vandal": vandal, "dra": "dra"}
    table = compare(adata, models, layer="counts", batch_key="batch", seeds=2)
    assert (table["status"] == "ok").all()
    assert (adata.X != before.X).nnz == 0
    assert (adata.layers["counts"] != before.layers["counts"]).nnz == 0
    assert list(adata.uns) == ["note"]
    assert list(adata.obsm) == ["X_other"]
    assert list(adata.layers) == list(before.layers)
    pd.testing.assert_frame_equal(adata.obs, before.obs)
    pd.testing.assert_frame_equal(adata.var, before.var)


def test_peak_memory_is_that_of_the_run(adata: AnnData) -> None:
    def large(counts: AnnData, n_latent: int, seed: int) -> NDArray[Any]:
        return np.arange(400 * 2**17, dtype=float)[: 2 * counts.n_obs].reshape(-1, 2)

    table = compare(adata, {"large": large, "small": Recorder()})
    if table["peak_memory_mb"].isna().all():
        pytest.skip("no peak of resident memory on this system")
    large_peak, small_peak = table["peak_memory_mb"]
    assert large_peak - small_peak > 300


def test_every_run_is_logged_and_handed_over(
    adata: AnnData, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[tuple[str, bool]] = []
    with caplog.at_level(logging.INFO, "dra_scvi"):
        table = compare(adata, seeds=2, on_row=lambda row, kept: seen.append((row["model"], kept)))
    assert seen == [("pca", False)] * 2
    assert f"data: pca, k=2, seed 1: NMI {table['nmi'][1]:.3f} in" in caplog.text
    compare(adata, progress=True)
    assert capsys.readouterr().out == ""


# -- cells and genes ---------------------------------------------------------------------------


def test_genes_are_ranked_by_seurat_v3(adata: AnnData) -> None:
    cells = data.prepare(adata, TYPES, n_genes=30)
    ranked = sc.pp.highly_variable_genes(adata, flavor="seurat_v3", n_top_genes=30, inplace=False)
    assert list(cells.counts.var_names) == list(adata.var_names[ranked["highly_variable"]])
    assert cells.gene_selection == "seurat_v3"


@pytest.mark.parametrize("error", [ImportError("no skmisc"), ValueError("near singularities")])
def test_genes_of_highest_variance_where_the_ranking_fails(
    error: Exception, adata: AnnData, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(sc.pp, "highly_variable_genes", fail)
    with pytest.warns(UserWarning, match=f"cells: seurat_v3 cannot rank.*{error}.*the 15 of"):
        cells = data.prepare(adata, TYPES, n_genes=15, name="cells")
    variance = data.log_normalised(adata).X.toarray().var(axis=0)
    expected = set(adata.var_names[np.argsort(-variance)[:15]])
    assert set(cells.counts.var_names) == expected
    assert cells.gene_selection == "variance"


def test_all_genes_where_there_are_no_more(adata: AnnData) -> None:
    for n_genes in (None, 40, 1000):
        cells = data.prepare(adata, TYPES, n_genes=n_genes)
        assert (cells.counts.n_vars, cells.gene_selection) == (40, "all")


def test_real_cells_that_seurat_v3_cannot_rank(real_data: Callable[[str], AnnData]) -> None:
    worm = real_data("worm_neuron_4186x13488")
    with pytest.warns(UserWarning, match="seurat_v3 cannot rank"):
        cells = data.prepare(worm, TYPES, n_genes=1000)
    assert cells.counts.n_vars == 1000


def test_cells_without_counts_are_left_out(adata: AnnData) -> None:
    counts = adata.X.toarray()
    counts[:5] = 0
    counts[5:9] = 0
    counts[5:, 0] = 1  # a gene that does not vary is never chosen
    adata.X = counts
    with pytest.warns(UserWarning, match="5 of 150 cells have no counts in the 40") as caught:
        table = compare(adata, n_genes=39)
    assert table.loc[0, "n_cells"] == 141
    messages = " ".join(str(warning.message) for warning in caught)
    assert "data: 4 of 145 cells have no counts in the 39 genes" in messages


def test_fingerprint_is_of_the_content(adata: AnnData) -> None:
    def fingerprint(batch_key: str | None = None) -> str:
        return data.prepare(adata, TYPES, batch_key).fingerprint

    first = fingerprint()
    for kind in (sparse.csc_matrix, sparse.csr_array, np.asarray):
        adata.X = kind(adata.X.toarray()) if sparse.issparse(adata.X) else kind(adata.X)
        assert fingerprint() == first
    adata.obs[TYPES] = adata.obs[TYPES].astype(str) + " by another name"
    assert fingerprint() == first
    assert fingerprint("batch") != first
    adata.obs.iloc[3, adata.obs.columns.get_loc(TYPES)] = "new"
    relabelled = fingerprint()
    adata.X = adata.X.copy()
    adata.X[4, 5] += 1
    assert len({first, relabelled, fingerprint()}) == 3


def test_quick_look(monkeypatch: pytest.MonkeyPatch) -> None:
    adata = datasets.synthetic(n_cells=1100, n_genes=30, seed=1)
    model, taken = Recorder(), []
    monkeypatch.setitem(
        contenders.BUILT_IN["scvi"],
        "embed",
        lambda counts, task: taken.append(task) or contenders.Embedded(pca_of(counts, 10)),
    )
    models = {"noise": model, "scvi": "scvi"}
    table = compare(adata, models, n_latent=(2, 20), seeds=[5, 6], max_epochs=None, quick=True)
    assert model.calls == [(10, 5)]
    assert (taken[0].max_epochs, taken[0].n_latent) == (50, 10)
    assert list(table["n_cells"]) == [1000, 1000]
    assert table["quick"].all()
    assert [points.shape for points in model.points] == [(1000, 10)]


# -- refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"models": "scvii"}, ValueError, "did you mean 'scvi'"),
        ({"models": ["pca", "pca"]}, ValueError, "one twice"),
        ({"models": []}, ValueError, "models is empty"),
        ({"n_latent": 0}, ValueError, "n_latent takes whole numbers from 1, not 0"),
        ({"n_latent": (2, 2)}, ValueError, "n_latent must name at least one number"),
        ({"n_latent": 2.5}, TypeError, "whole number or a list of them, not 2.5"),
        ({"seeds": 0}, ValueError, "seeds must be at least 1, not 0"),
        ({"seeds": [-1]}, ValueError, "seeds takes whole numbers from 0, not -1"),
        ({"max_epochs": 0}, ValueError, "max_epochs takes whole numbers from 1"),
        ({"layer": "count"}, KeyError, "layer='count'"),
        ({"batch_key": "bach"}, KeyError, "did you mean 'batch'"),
        ({"parallel": 0}, ValueError, "parallel must be at least 1, not 0"),
        ({"n_latent": 40}, ValueError, "n_latent=40: PCA and factor analysis of 150"),
        (
            {"output": "no/such/table.csv"},
            FileNotFoundError,
            "the output folder no/such does not exist",
        ),
    ],
)
def test_bad_arguments_stop_before_any_work(
    options: dict[str, Any], error: type[Exception], text: str, adata: AnnData
) -> None:
    model = Recorder()
    models = options.pop("models", {"noise": model, "pca": "pca"})
    with pytest.raises(error, match=text):
        compare(adata, models, **options)
    assert model.calls == []


def test_harmony_without_batches_or_its_library_stops_before_any_work(
    adata: AnnData, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Recorder()
    models = {"noise": model, "mixed": "harmony"}
    with pytest.raises(ValueError, match="'mixed' integrates batches: name .* with batch_key"):
        compare(adata, models)
    monkeypatch.setattr(contenders.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ImportError, match=r"harmonypy: pip install \"dra_scvi\[scib\]\""):
        compare(adata, models, batch_key="batch")
    assert model.calls == []


@pytest.mark.parametrize("name", ["drvi", "jointembedding"])
def test_models_that_an_older_scvi_tools_lacks_stop_before_any_work(
    name: str, adata: AnnData, monkeypatch: pytest.MonkeyPatch
) -> None:
    for upstream in ("DRVI", JOINT):
        monkeypatch.delattr(scvi.external, upstream, raising=False)
    model = Recorder()
    with pytest.raises(ImportError, match=r"scvi-tools 1\.5 or later.*pip install"):
        compare(adata, {"noise": model, name: name})
    assert model.calls == []


def test_bad_data_stops_before_any_work(adata: AnnData) -> None:
    model = Recorder()
    with pytest.raises(KeyError, match="did you mean 'cell_type'"):
        benchmark.compare(adata, "celltype", models={"noise": model})
    labels = adata.obs[TYPES].astype(object)
    adata.obs[TYPES] = labels.where(np.arange(adata.n_obs) > 1)
    with pytest.raises(ValueError, match=r"label_key='cell_type' is missing \(NaN\) in 2 of 150"):
        compare(adata, {"noise": model})
    adata.obs[TYPES] = "T"
    with pytest.raises(ValueError, match="150 cells have 1 distinct label; at least 2"):
        compare(adata, {"noise": model})
    adata.obs[TYPES] = labels
    adata.X = adata.X.multiply(0.5).tocsr()
    with pytest.raises(InvalidCountsError, match="non-integer"):
        compare(adata, {"noise": model})
    assert model.calls == []


def test_no_integration_scores_are_said_once(
    adata: AnnData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "scib_metrics", None)
    with pytest.warns(UserWarning, match="no integration scores: .*pip install") as caught:
        table = compare(adata, seeds=2, batch_key="batch")
    assert sum("no integration scores" in str(warning.message) for warning in caught) == 1
    assert table["integration_total"].isna().all()


def test_one_batch_has_no_integration_scores(adata: AnnData) -> None:
    pytest.importorskip("scib_metrics")
    adata.obs["batch"] = "one"
    with pytest.warns(UserWarning, match="no integration scores: .*at least two batch values"):
        table = compare(adata, batch_key="batch")
    assert table.loc[0, "status"] == "ok"
    assert table["integration_total"].isna().all()


# -- failures ----------------------------------------------------------------------------------


def not_finite(counts: AnnData, n_latent: int, seed: int) -> NDArray[Any]:
    points = np.zeros((counts.n_obs, n_latent))
    points[:3] = np.nan
    return points


def raising(error: BaseException) -> Callable[..., NDArray[Any]]:
    def embed(*_: Any) -> NDArray[Any]:
        raise error

    return embed


@pytest.mark.parametrize(
    ("model", "status"),
    [
        (raising(TrainingDivergedError("elbo", 1, 2)), "TrainingDivergedError: Training diverged"),
        (raising(ValueError("Expected\n  parameter loc")), "ValueError: Expected parameter loc"),
        (raising(FloatingPointError("overflow")), "FloatingPointError: overflow"),
        (not_finite, "the embedding of 3 cells is not finite"),
    ],
)
def test_failed_runs_are_rows(
    model: Callable[..., Any],
    status: str,
    adata: AnnData,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    table = compare(adata, {"bad": model, "pca": "pca"}, output=tmp_path / "table.csv")
    bad, pca = (row for _, row in table.iterrows())
    assert bad["status"].startswith(status)
    assert bad[["nmi", "leiden_nmi", "silhouette"]].isna().all()
    assert bad["seconds"] >= 0
    assert pca["status"] == "ok"
    assert f"data: bad, k=2, seed 0 failed: {status}" in caplog.text
    again = compare(adata, {"bad": Recorder(), "pca": "pca"}, output=tmp_path / "table.csv")
    assert list(again["status"]) == ["ok", "ok"]
    assert len(pd.read_csv(tmp_path / "table.csv")) == 2


@pytest.mark.parametrize(
    ("model", "error"),
    [
        (raising(TrainingInterruptedError(15, 1, "checkpoint")), TrainingInterruptedError),
        (raising(NameError("bug")), NameError),
        (lambda counts, n_latent, seed: np.zeros(counts.n_obs), TypeError),
        (lambda counts, n_latent, seed: np.zeros((3, n_latent)), TypeError),
    ],
)
def test_bugs_and_stops_are_not_rows(
    model: Callable[..., Any], error: type[Exception], adata: AnnData
) -> None:
    with pytest.raises(error):
        compare(adata, {"bad": model})


# -- going on ----------------------------------------------------------------------------------


class Stopping(Recorder):
    """A model that is interrupted in a certain run."""

    def __init__(self, run: int) -> None:
        super().__init__()
        self.run = run

    def __call__(self, *args: Any) -> NDArray[np.floating]:
        if len(self.calls) == self.run:
            raise KeyboardInterrupt
        return super().__call__(*args)


def test_interrupted_comparison_goes_on(adata: AnnData, tmp_path: Path) -> None:
    output, options = tmp_path / "table.csv", {"n_latent": (2, 3), "seeds": 2}
    whole = compare(adata, {"noise": Recorder(), "pca": "pca"}, **options)
    with pytest.raises(KeyboardInterrupt):
        compare(adata, {"noise": Stopping(2), "pca": "pca"}, output=output, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["table.csv"]
    kept = pd.read_csv(output)
    assert list(zip(kept["model"], kept["n_latent"], kept["seed"], strict=True)) == [
        ("noise", 2, 0),
        ("pca", 2, 0),
        ("noise", 3, 0),
        ("pca", 3, 0),
    ]
    model, seen = Recorder(), []
    table = compare(
        adata,
        {"noise": model, "pca": "pca"},
        output=output,
        on_row=lambda _, is_kept: seen.append(is_kept),
        **options,
    )
    assert model.calls == [(2, 1), (3, 1)]
    assert seen == [True] * 4 + [False] * 4
    scores = ["model", "n_latent", "seed", "nmi", "ari", "leiden_nmi", "silhouette"]
    pd.testing.assert_frame_equal(table[scores], whole[scores])
    pd.testing.assert_series_equal(table["seconds"][:4], kept["seconds"])


def test_finished_comparison_runs_nothing(adata: AnnData, tmp_path: Path) -> None:
    output = tmp_path / "table.csv"
    first = compare(adata, {"noise": Recorder(), "dra": "dra"}, output=output)
    before = output.read_bytes()
    model = Recorder()
    second = compare(adata, {"noise": model, "dra": "dra"}, output=output)
    assert model.calls == []
    pd.testing.assert_frame_equal(first, second)
    assert output.read_bytes() == before


def change_counts(adata: AnnData) -> dict[str, Any]:
    adata.X[0, 0] += 1
    return {}


def change_label(adata: AnnData) -> dict[str, Any]:
    adata.obs[TYPES] = adata.obs[TYPES].to_numpy()[::-1]
    return {}


@pytest.mark.parametrize(
    "change",
    [
        change_counts,
        change_label,
        lambda _: {"name": "other"},
        lambda _: {"n_genes": 20},
        lambda _: {"seeds": [1]},
        lambda _: {"n_latent": 3},
        lambda _: {"quick": True},
    ],
    ids=["count", "label", "name", "genes", "seed", "dimensions", "quick"],
)
def test_what_changed_is_computed_again(
    change: Callable[[AnnData], dict[str, Any]], adata: AnnData, tmp_path: Path
) -> None:
    adata.X = adata.X.toarray()
    model, output = Recorder(), tmp_path / "table.csv"
    compare(adata, {"noise": model}, output=output)
    compare(adata, {"noise": model}, output=output, **change(adata))
    assert len(model.calls) == 2
    assert len(pd.read_csv(output)) == 2


class FewNeighbors(DRA):
    """DRA as a version with another default has it."""

    def __init__(self, adata: AnnData | None = None, n_neighbors: int = 10, **kwargs: Any) -> None:
        super().__init__(adata, n_neighbors=n_neighbors, **kwargs)


def test_rows_of_other_epochs_or_defaults_are_not_kept(
    adata: AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    options = {
        "models": ("pca", "scvi", "dra"),
        "output": tmp_path / "table.csv",
        "on_row": lambda row, kept: None if kept else seen.append(row["model"]),
    }
    compare(adata, **options)
    seen.clear()
    compare(adata, max_epochs=2, **options)
    assert seen == ["scvi", "dra"]
    seen.clear()
    monkeypatch.setattr("dra_scvi._model.dra.DRA", type("Alike", (DRA,), {}))
    compare(adata, **options)
    assert seen == []
    monkeypatch.setattr("dra_scvi._model.dra.DRA", FewNeighbors)
    compare(adata, **options)
    assert seen == ["dra"]
    seen.clear()
    monkeypatch.setattr(contenders, "version", lambda name: f"99 of {name}")
    compare(adata, **options)
    assert seen == ["scvi", "dra"]


def test_tables_of_before_are_read_and_their_rows_completed(
    adata: AnnData, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Rows that lack purity and Leiden at resolution 1 are made again; other rows stay as is."""
    path, models = tmp_path / "table.csv", ("pca", "fa")
    new = compare(adata, models, output=path)
    compare(adata, "pca", seeds=[9], output=path)
    columns = ["leiden1_nmi", "leiden1_n_clusters", "purity"]
    pd.read_csv(path).drop(columns=columns).to_csv(path, index=False)
    assert benchmark.summary(pd.read_csv(path))["nmi"].notna().all()
    with caplog.at_level(logging.INFO, "dra_scvi"):
        again = compare(adata, models, output=path)
    assert "data: pca, k=2, seed 0 is made again: the table lacks leiden1_nmi" in caplog.text
    scores = ["model", "seed", "nmi", "leiden_nmi", "silhouette", *columns]
    pd.testing.assert_frame_equal(again[scores], new[scores])
    kept = pd.read_csv(path).set_index(["model", "seed"])
    assert len(kept) == 3
    assert kept["purity"].isna().sum() == 1
    assert np.isnan(kept.loc[("pca", 9), "purity"])
    finished = path.read_bytes()
    compare(adata, models, output=path)
    assert path.read_bytes() == finished


def test_integration_scores_are_added_to_rows_without(
    adata: AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("scib_metrics")
    options: dict[str, Any] = {"batch_key": "batch", "output": tmp_path / "table.csv"}
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "scib_metrics", None)
        with pytest.warns(UserWarning, match="scib-metrics"):
            compare(adata, **options)
    table = compare(adata, **options)
    assert table["integration_total"].notna().all()
    assert len(pd.read_csv(tmp_path / "table.csv")) == 1


# -- the file ----------------------------------------------------------------------------------

ROW = {
    "dataset": "NA",
    "fingerprint": "007",
    "model": "None",
    "n_latent": 2,
    "seed": 0,
    "quick": False,
    "status": "ok",
    "nmi": 0.1 + 0.2,
    "settings": "1e5",
}


def test_values_survive_the_file(tmp_path: Path) -> None:
    table = Table(tmp_path / "table.csv")
    table.add(ROW)
    table.add({**ROW, "seed": 1, "status": 'Error: "quoted", with comma'})
    read = Table(tmp_path / "table.csv")
    kept = read.find(ROW)
    assert kept is not None
    assert {name: kept[name] for name in ROW} == ROW
    assert read.find({**ROW, "seed": 1}) is None
    assert read.find({**ROW, "max_epochs": 3}) is None
    pd.testing.assert_frame_equal(frame([kept]), frame([ROW]))


def test_two_writers_keep_each_others_rows(tmp_path: Path) -> None:
    one, other = Table(tmp_path / "table.csv"), Table(tmp_path / "table.csv")
    for seed in range(4):
        (one, other)[seed % 2].add({**ROW, "seed": seed})
    assert list(pd.read_csv(tmp_path / "table.csv")["seed"]) == [0, 1, 2, 3]


def test_columns_of_the_user_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    Table(path).add(ROW)
    pd.read_csv(path, dtype=str, keep_default_na=False).assign(remark="mine").to_csv(
        path, index=False
    )
    Table(path).add({**ROW, "seed": 1})
    read = pd.read_csv(path)
    assert list(read["remark"].fillna("")) == ["mine", ""]
    assert list(read["seed"]) == [0, 1]


@pytest.mark.parametrize(
    "content", [b"", b"a,b\n1,2\n", b"\x89PNG\xff\xfe", b"model,seed,nmi\npca,0,0.5\n"]
)
def test_other_files_are_not_touched(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes(content)
    words = "is not a table of a comparison; pass overwrite=True"
    with pytest.raises(FileExistsError, match=words):
        Table(path)
    assert path.read_bytes() == content
    Table(path, overwrite=True).add(ROW)
    assert Table(path).find(ROW) is not None


def test_folders_are_never_replaced(tmp_path: Path) -> None:
    with pytest.raises(FileExistsError):
        Table(tmp_path, overwrite=True)


def test_overwrite_keeps_the_rows_of_a_table(tmp_path: Path) -> None:
    Table(tmp_path / "table.csv").add(ROW)
    assert Table(tmp_path / "table.csv", overwrite=True).find(ROW) is not None


@pytest.mark.parametrize("line", ["x" + "," * (len(COLUMNS) - 1) + "\n", "NA,many\n", "," * 99])
def test_damaged_tables_are_refused(line: str, tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    Table(path).add(ROW)
    path.write_text(path.read_text() + line.replace("x", "x,ten", 1))
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"table.csv is damaged in line 3: .*; delete that line"):
        Table(path)
    assert path.read_bytes() == before


# -- the summary -------------------------------------------------------------------------------


def test_summary_is_reproducible_and_reads_the_file(adata: AnnData, tmp_path: Path) -> None:
    table = compare(adata, ("pca", "fa"), seeds=3, output=tmp_path / "table.csv")
    found = benchmark.summary(table)
    pd.testing.assert_frame_equal(found, benchmark.summary(table))
    read = benchmark.summary(pd.read_csv(tmp_path / "table.csv"))
    pd.testing.assert_frame_equal(found, read)
