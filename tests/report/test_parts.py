"""Parts of the page: quality however counts are stored, markers, and advice with a reason."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

from dra_scvi.report import _figures, _markers, _write
from dra_scvi.report._advice import next_steps
from dra_scvi.report._markers import find_markers
from dra_scvi.report._quality import MOST_BATCHES, batch_rows, measure, quality_rows
from dra_scvi.report._tables import cluster_rows, columns_of, resolution_of

if TYPE_CHECKING:
    from collections.abc import Callable

COUNTS = np.random.default_rng(0).poisson(0.4, (40, 12))
COUNTS[:, 5] = 0
GENES = pd.Index(["mt-Nd1", "MT-ATP6", *[f"g{i}" for i in range(10)]])


def categories(values: list[str], name: str = "leiden") -> pd.Series:
    return pd.Series(pd.Categorical(values), name=name)


@pytest.mark.parametrize(
    "stored", [np.asarray, sparse.csr_matrix, sparse.csc_matrix, sparse.csr_array]
)
def test_quality_however_counts_are_stored(
    stored: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dra_scvi._data.matrices.BLOCK_ROWS", 7)  # blocks that end amid cells
    found = measure(stored(COUNTS), GENES)
    assert np.array_equal(found.depth, COUNTS.sum(1))
    assert np.array_equal(found.n_found, (COUNTS > 0).sum(1))
    assert found.of_mitochondria is not None
    assert np.array_equal(found.of_mitochondria, COUNTS[:, :2].sum(1))
    assert (found.n_silent, found.n_genes) == (1, 12)


def test_quality_in_words() -> None:
    rows = dict(quality_rows(measure(COUNTS, GENES), 9))
    assert rows["Genes"] == "12, of which the model saw 9"
    assert rows["Share of zeros"] == f"{(COUNTS == 0).mean():.1%}"
    assert "Mitochondrial counts, % per cell" in rows
    plain = dict(quality_rows(measure(COUNTS, pd.Index(map(str, range(12)))), 12))
    assert plain["Genes"] == "12"
    assert "Mitochondrial counts, % per cell" not in plain


def test_batches() -> None:
    quality = measure(COUNTS, GENES)
    names = ["b"] * 10 + ["a"] * 30
    rows = batch_rows(quality, categories(names))
    assert [row[:2] for row in rows] == [("a", "30"), ("b", "10")]
    assert rows[1][2] == f"{np.median(COUNTS[:10].sum(1)):,.0f}"
    many = batch_rows(quality, categories([f"{i:02}" for i in range(40)]))
    assert len(many) == MOST_BATCHES + 1
    assert many[-1][:2] == (f"{40 - MOST_BATCHES} more", "10")


def marked(sizes: dict[str, int]) -> tuple[sparse.csr_matrix, pd.Series]:
    """Make counts in which cluster number n has gene n."""
    names = [name for name, size in sizes.items() for _ in range(size)]
    counts = np.random.default_rng(1).poisson(1.0, (len(names), 30))
    for gene, name in enumerate(sizes):
        counts[np.array(names) == name, gene] += 9
    return sparse.csr_matrix(counts), categories(names)


def test_markers() -> None:
    counts, clusters = marked({"x": 30, "y": 20, "rare": 2})
    before = counts.copy()
    found = find_markers(counts, ["twice"] * 30, clusters, seed=0)
    assert sorted(found) == ["x", "y"]
    named = find_markers(counts, [f"g{i}" for i in range(30)], clusters, seed=0)
    for name, gene in (("x", "g0"), ("y", "g1")):
        first = named[name][0]
        assert first.gene == gene
        assert first.fold_change > 1
        assert first.here == 1 > first.elsewhere
        assert len(named[name]) <= 8
    assert (counts != before).nnz == 0


def test_markers_take_two_clusters() -> None:
    counts, clusters = marked({"x": 30})
    assert find_markers(counts, [str(i) for i in range(30)], clusters, seed=0) == {}


def test_markers_of_many_cells_are_of_a_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    read = _markers.read_rows

    def record(counts: Any, rows: Any) -> Any:
        seen.append(rows.tolist())
        return read(counts, rows)

    monkeypatch.setattr(_markers, "read_rows", record)
    monkeypatch.setattr(_markers, "MOST_CELLS", 40)
    counts, clusters = marked({"x": 50, "y": 50})
    genes = [f"g{i}" for i in range(30)]
    found = [find_markers(counts, genes, clusters, seed=seed) for seed in (0, 0, 1)]
    assert seen[0] == seen[1] != seen[2]
    assert [len(set(rows)) for rows in seen] == [40] * 3
    assert {name: markers[0].gene for name, markers in found[0].items()} == {"x": "g0", "y": "g1"}


def falling(last: float) -> dict[str, pd.DataFrame]:
    curve = [*np.linspace(100, 80, 36), *np.linspace(80, last, 4)]
    return {"reconstruction_loss_train": pd.DataFrame({"loss": curve})}


def words(**changes: Any) -> str:
    options = {"history": {}, "clusters": None, "batches": None, "use_rep": "X_dra", **changes}
    return " ".join(step.text + " " + step.code for step in next_steps(**options))


def test_more_epochs_are_advised_while_the_loss_falls() -> None:
    assert "still falling" in words(history=falling(75))
    assert "still falling" not in words(history=falling(80))
    assert "still falling" not in words()


def test_clusters_of_one_batch_are_pointed_out() -> None:
    clusters = categories(["p"] * 20 + ["q"] * 20)
    apart = categories(["a"] * 20 + ["b"] * 18 + ["a"] * 2, "batch")
    assert "cluster p are of one batch" in words(clusters=clusters, batches=apart)
    both = categories(["a"] * 20 + ["b"] * 20, "batch")
    assert "clusters p, q are of one batch" in words(clusters=clusters, batches=both)
    mixed = categories(["a", "b"] * 20, "batch")
    assert "one batch" not in words(clusters=clusters, batches=mixed)
    mostly = categories(["a"] * 38 + ["b"] * 2, "batch")
    assert "one batch" not in words(clusters=clusters, batches=mostly)


def test_what_is_advised_of_clusters() -> None:
    assert 'tl.cluster(adata, "X_other")' in words(use_rep="X_other")
    advice = words(clusters=categories(["p", "q"]))
    assert "Name the clusters" in advice
    assert 'obs["named"] = ' in advice  # and no column of labels that there may be
    assert "Name the clusters" not in words(clusters=categories(["p", "p"]))


def test_columns_are_text_in_their_order() -> None:
    adata = AnnData(np.ones((4, 1)))
    adata.obs["n"] = [10, 2, 2, np.nan]
    found = columns_of(adata, "n")
    assert found is not None
    assert found.tolist() == ["10.0", "2.0", "2.0", "missing"]
    assert list(found.cat.categories) == ["2.0", "10.0", "missing"]
    assert columns_of(adata, "none") is None


def test_rows_of_clusters() -> None:
    clusters, labels = categories(["p"] * 3 + ["q"]), categories(["x", "x", "y", "y"], "type")
    [first, second] = cluster_rows(clusters, None, labels, {})
    assert first[:5] == ("p", "3", "75.0%", "x (67%)", "")
    assert second[:5] == ("q", "1", "25.0%", "y (100%)", "")


@pytest.mark.parametrize("origin", [{}, {"params": {}}, {"params": {"resolution": 1.0}}, "text"])
def test_clusters_of_other_programs(origin: Any) -> None:
    adata = AnnData(np.ones((2, 1)))
    adata.uns["mine"] = origin
    found = resolution_of(adata, "mine")
    assert (found is not None) == (origin == {"params": {"resolution": 1.0}})


def test_too_many_names_are_not_drawn() -> None:
    n_cells = _figures.MOST_CATEGORIES + 1
    adata = AnnData(np.ones((n_cells, 1)), obsm={"X_umap": np.zeros((n_cells, 2))})
    column = categories([f"name {i}" for i in range(n_cells)])
    figure = _figures.draw_umap(adata, "X_umap", column, "Many", "...")
    assert (figure.source, "cannot be told apart" in figure.sentence) == ("", True)


def test_one_and_its_text_are_one_category() -> None:
    adata = AnnData(np.ones((4, 1)))
    adata.obs["mixed"] = pd.Series([1, "1", 2, None], adata.obs_names, dtype=object)
    assert columns_of(adata, "mixed").tolist() == ["1", "1", "2", "missing"]


def test_colours_stay_those_of_their_categories(monkeypatch: pytest.MonkeyPatch) -> None:
    adata = AnnData(np.ones((4, 1)), obsm={"X_umap": np.arange(8.0).reshape(4, 2)})
    adata.obs["type"] = pd.Categorical(list("aacc"), list("abc"))
    adata.uns["type_colors"] = ["#ff0000", "#00ff00", "#0000ff"]
    drawn = []
    monkeypatch.setattr(_figures, "_embed", lambda axes: drawn.append(axes) or "")
    _figures.draw_umap(adata, "X_umap", columns_of(adata, "type"), "title", "sentence")
    dots = drawn[0].collections
    colours = {tuple(colour[:3]) for part in dots for colour in part.get_facecolor()}
    assert (0, 0, 1) in colours
    assert (0, 1, 0) not in colours


def test_clusters_are_named_on_the_map_and_batches_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    adata = AnnData(np.ones((4, 1)), obsm={"X_umap": np.arange(8.0).reshape(4, 2)})
    adata.obs["leiden"] = pd.Categorical(list("0011"))
    columns = dict.fromkeys(("cluster", "batch", "label"), columns_of(adata, "leiden"))
    drawn = []
    monkeypatch.setattr(_figures, "_embed", lambda axes: drawn.append(axes) or "")
    _write._maps(adata, "X_umap", columns)
    written = [[text.get_text() for text in axes.texts] for axes in drawn]
    assert written == [["0", "1"], [], ["0", "1"]]
