"""Embeddings show what they are given, on the axes they are given, and leave no trace."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from dra_scvi import pl
from dra_scvi.pl import _figures, _scatter
from tests.helpers import legend_texts

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.collections import PathCollection

PNG = b"\x89PNG"


@pytest.fixture
def adata() -> AnnData:
    rng = np.random.default_rng(0)
    obs = pd.DataFrame(
        {
            "kind": pd.Categorical(list("abab") + [None, "a"], categories=["a", "b", "unused"]),
            "depth": [5.0, 1.0, np.nan, 3.0, 2.0, 4.0],
            "flag": [True, False] * 3,
        },
        index=[f"cell-{i}" for i in range(6)],
    )
    obsm = {"X_umap": rng.normal(size=(6, 2)), "X_dra": rng.normal(size=(6, 5))}
    return AnnData(np.ones((6, 2), dtype=np.float32), obs=obs, obsm=obsm)


def test_embedding_grid(adata: AnnData) -> None:
    before = adata.copy()
    figure = pl.embedding(adata, ["X_umap", "X_dra"], ["kind", "depth"], show=False)
    panels = figure.axes
    assert len(panels) == 4
    assert [axes.get_title() for axes in panels] == ["UMAP", "DRA", "", ""]
    assert [len(axes.child_axes) for axes in panels] == [0, 0, 0, 1]
    assert panels[3].child_axes[0].get_ylabel() == "depth, grey: NA"
    assert [axes.get_legend() is None for axes in panels] == [True, False, True, True]
    assert all(len(axes.get_xticks()) == len(axes.get_yticks()) == 0 for axes in panels)
    assert adata.uns == before.uns
    pd.testing.assert_frame_equal(adata.obs, before.obs)


def test_embedding_points_without_colour(adata: AnnData) -> None:
    axes = pl.embedding(adata, "umap", show=False)
    (points,) = axes.collections
    np.testing.assert_array_equal(points.get_offsets(), adata.obsm["X_umap"])


def test_embedding_first_two_dimensions(adata: AnnData) -> None:
    (points,) = pl.embedding(adata, "X_dra", show=False).collections
    np.testing.assert_array_equal(points.get_offsets(), adata.obsm["X_dra"][:, :2])


@pytest.mark.parametrize(
    ("n_cells", "least", "greatest"),
    [(1, 20.0, 20.0), (700, 8.0, 12.0), (2400, 2.0, 4.0), (100_000, 0.5, 0.5)],
)
def test_embedding_point_size_follows_the_number_of_cells(
    n_cells: int, least: float, greatest: float
) -> None:
    xy = np.random.default_rng(0).normal(size=(n_cells, 2))
    (points,) = pl.embedding(AnnData(obsm={"X_umap": xy}), show=False).collections
    [size] = points.get_sizes()
    assert least <= size <= greatest
    [edge] = points.get_linewidths()
    assert edge < np.sqrt(size) / 8


def test_embedding_long_names_do_not_narrow_the_panel(adata: AnnData) -> None:
    widths = []
    for name in ("a", "a" * 60):
        adata.obs["kind"] = pd.Categorical([name] * adata.n_obs)
        axes = pl.embedding(adata, color="kind", show=False)
        axes.figure.draw_without_rendering()
        widths.append(axes.get_window_extent().width / axes.figure.dpi)
    assert widths == pytest.approx([3.4, 3.4], abs=0.4)


def drawn(axes: Axes) -> PathCollection:
    """Return the cells; handles of the legend are empty collections behind them."""
    return axes.collections[0]


def test_embedding_categories(adata: AnnData) -> None:
    axes = pl.embedding(adata, color="kind", show=False)
    assert axes.get_title() == "kind"
    assert legend_texts(axes) == ["a", "b", "NA"]
    points = drawn(axes)
    np.testing.assert_array_equal(points.get_offsets()[0], adata.obsm["X_umap"][4])
    colours = [tuple(colour) for colour in points.get_facecolors()]
    assert colours[0] == to_rgba(_scatter.MISSING_COLOUR)
    assert colours[1:] == [to_rgba(_figures.COLOURS[i]) for i in (0, 1, 0, 1, 0)]


def test_embedding_of_cells_without_a_value_beside_a_category_of_that_name(adata: AnnData) -> None:
    adata.obs["kind"] = ["a", "NA", None, "a", "NA", "b"]
    axes = pl.embedding(adata, color="kind", show=False)
    assert legend_texts(axes) == ["a", "b", "NA"]
    colours = [tuple(colour) for colour in drawn(axes).get_facecolors()]
    assert colours[1] == colours[2] == colours[4]


def test_embedding_numbered(adata: AnnData) -> None:
    axes = pl.embedding(adata, color="kind", show=False, legend="numbered")
    assert legend_texts(axes) == ["1  a", "2  b", "NA"]
    first, second = axes.texts
    assert (first.get_text(), second.get_text()) == ("1", "2")
    cells = adata.obsm["X_umap"][adata.obs["kind"].to_numpy() == "b"]
    assert any(np.allclose(second.xy, cell) for cell in cells)


def test_embedding_numbered_leaves_names_that_are_numbers(adata: AnnData) -> None:
    adata.obs["leiden"] = ["0", "10", "2", "0", "10", "2"]
    axes = pl.embedding(adata, color="leiden", show=False, legend="numbered")
    assert legend_texts(axes) == [text.get_text() for text in axes.texts] == ["0", "2", "10"]


@pytest.mark.parametrize("groups", ["b", ["b"]])
def test_embedding_of_some_groups_numbers_and_names_these_alone(
    adata: AnnData, groups: Any
) -> None:
    axes = pl.embedding(adata, color="kind", show=False, legend="numbered", groups=groups)
    assert legend_texts(axes) == ["2  b", "others"]
    assert [text.get_text() for text in axes.texts] == ["2"]


def test_embedding_says_what_grey_is_on_a_scale_of_numbers(adata: AnnData) -> None:
    axes = pl.embedding(adata, color="depth", show=False)
    assert axes.child_axes[0].get_ylabel() == "grey: NA"


def test_embedding_on_data(adata: AnnData) -> None:
    axes = pl.embedding(adata, color="kind", show=False, legend="on data")
    assert axes.get_legend() is None
    assert [text.get_text() for text in axes.texts] == ["a", "b"]
    [outline] = axes.texts[0].get_path_effects()
    assert outline._gc == {"linewidth": 3, "foreground": "white"}
    boxes = [text.get_window_extent() for text in axes.texts]
    assert not boxes[0].overlaps(boxes[1])


@pytest.mark.parametrize("legend", ["none", None])
def test_embedding_without_a_legend(adata: AnnData, legend: str | None) -> None:
    axes = pl.embedding(adata, color="kind", show=False, legend=legend)
    assert axes.get_legend() is None
    assert len(axes.texts) == 0


@pytest.mark.parametrize(
    ("basis", "expected"),
    [("X_umap", "UMAP"), ("X_umap_scvi", "UMAP"), ("X_dra", "DRA"), ("X_pca", "PC")],
)
def test_embedding_axes_are_named(basis: str, expected: str, adata: AnnData) -> None:
    adata.obsm["X_pca"] = adata.obsm["X_umap_scvi"] = adata.obsm["X_dra"]
    axes = pl.embedding(adata, basis, show=False)
    assert (axes.get_xlabel(), axes.get_ylabel()) == (f"{expected} 1", f"{expected} 2")


def test_embedding_stored_colours(adata: AnnData) -> None:
    adata.uns["kind_colors"] = np.array(["#ff0000", "#00ff00", "#0000ff"])
    points = drawn(pl.embedding(adata, color="kind", show=False))
    assert tuple(points.get_facecolors()[1]) == to_rgba("#ff0000")
    adata.uns["kind_colors"] = ["#ff0000"]
    points = drawn(pl.embedding(adata, color="kind", show=False))
    assert tuple(points.get_facecolors()[1]) == to_rgba(_figures.COLOURS[0])


def test_embedding_stored_colours_stay_with_their_categories_in_another_order(
    adata: AnnData,
) -> None:
    adata.obs["leiden"] = pd.Categorical(["0", "10", "2", "0", "10", "2"])
    adata.uns["leiden_colors"] = ["#ff0000", "#00ff00", "#0000ff"]  # of 0, 10 and 2
    axes = pl.embedding(adata, color="leiden", show=False)
    assert legend_texts(axes) == ["0", "2", "10"]
    assert tuple(drawn(axes).get_facecolors()[1]) == to_rgba("#00ff00")
    handles = [tuple(handle.get_facecolor()[0]) for handle in axes.get_legend().legend_handles]
    assert handles == [to_rgba(colour) for colour in ("#ff0000", "#0000ff", "#00ff00")]


@pytest.mark.parametrize("palette", [{"a": "red", "b": "blue"}, ["red", "blue"]])
def test_embedding_palette(adata: AnnData, palette: Any) -> None:
    adata.uns["kind_colors"] = ["#111111", "#222222", "#333333"]
    points = drawn(pl.embedding(adata, color="kind", show=False, palette=palette))
    expected = [to_rgba(colour) for colour in (_scatter.MISSING_COLOUR, "red", "blue")]
    assert [tuple(colour) for colour in points.get_facecolors()[:3]] == expected
    assert adata.uns["kind_colors"][0] == "#111111"


def test_embedding_palette_that_lacks_a_category(adata: AnnData) -> None:
    with pytest.raises(KeyError, match="palette has no colour for 'b'"):
        pl.embedding(adata, color="kind", show=False, palette={"a": "red"})


def test_embedding_booleans_are_categories(adata: AnnData) -> None:
    assert legend_texts(pl.embedding(adata, color="flag", show=False)) == ["False", "True"]


@pytest.mark.parametrize("number", [7, 8, 25, 40, 120])
def test_embedding_as_many_colours_as_categories(number: int) -> None:
    names = [f"type-{i:03d}" for i in range(number)]
    obs = pd.DataFrame({"kind": names}, index=names)
    obsm = {"X_umap": np.random.default_rng(0).normal(size=(number, 2))}
    adata = AnnData(np.ones((number, 1)), obs=obs, obsm=obsm)
    axes = pl.embedding(adata, color="kind", show=False)
    assert legend_texts(axes) == names
    distinct = np.unique(drawn(axes).get_facecolors(), axis=0)
    assert len(distinct) == min(number, 102)


def test_embedding_numbers_are_drawn_from_missing_to_high(adata: AnnData) -> None:
    adata.obs["depth"] = [5.0, 1.0, np.inf, 3.0, 2.0, 4.0]
    axes = pl.embedding(adata, color="depth", show=False, cmap="magma")
    points = drawn(axes)
    order = [2, 1, 4, 3, 5, 0]
    np.testing.assert_array_equal(points.get_offsets(), adata.obsm["X_umap"][order])
    np.testing.assert_array_equal(np.isnan(points.get_array()), [True] + [False] * 5)
    assert points.get_cmap().name == "magma"
    assert tuple(points.get_cmap().get_bad()) == to_rgba(_scatter.MISSING_COLOUR)


@pytest.mark.parametrize(
    ("given", "limits", "extend"),
    [
        ({}, (1.0, 4.96), "max"),
        ({"vmax": "p100"}, (1.0, 5.0), "neither"),
        ({"vmax": None}, (1.0, 5.0), "neither"),
        ({"vmin": 2, "vmax": 3}, (2.0, 3.0), "both"),
        ({"vmin": ["p50"], "vmax": [9]}, (3.0, 9.0), "min"),
    ],
    ids=["default", "p100", "none", "numbers", "lists"],
)
def test_embedding_scale_of_numbers(
    adata: AnnData, given: dict[str, Any], limits: tuple[float, float], extend: str
) -> None:
    axes = pl.embedding(adata, color="depth", show=False, **given)
    assert drawn(axes).get_clim() == pytest.approx(limits)
    assert drawn(axes).colorbar.extend == extend


def test_embedding_numbers_all_missing(adata: AnnData) -> None:
    adata.obs["depth"] = np.nan
    points = drawn(pl.embedding(adata, color="depth", show=False))
    assert np.isnan(np.ma.filled(points.get_array(), np.nan)).all()


def test_embedding_titles(adata: AnnData) -> None:
    figure = pl.embedding(adata, ["umap", "dra"], titles=["scVI", "DR-A"], show=False)
    assert [axes.get_title() for axes in figure.axes] == ["scVI", "DR-A"]
    with pytest.raises(ValueError, match="1 titles do not fit 2 embeddings"):
        pl.embedding(adata, ["umap", "dra"], titles=["scVI"], show=False)


@pytest.mark.parametrize(
    ("basis", "title"),
    [("X_umap_scvi", "UMAP of scVI"), ("X_pca", "PCA"), ("X_mine_2", "mine 2"), ("X_", "")],
)
def test_embedding_titled_in_words(adata: AnnData, basis: str, title: str) -> None:
    adata.obsm[basis] = adata.obsm["X_umap"]
    assert pl.embedding(adata, basis, show=False).get_title() == title


def test_embedding_titles_of_several_colours(adata: AnnData) -> None:
    adata.obs["cell_type"] = adata.obs["kind"]
    both = ["cell_type", "depth"]
    figure = pl.embedding(adata, color=both, show=False)
    assert [axes.get_title() for axes in figure.axes] == ["cell type", "depth"]
    figure = pl.embedding(adata, color=both, titles=["types", "counts"], show=False)
    assert [axes.get_title() for axes in figure.axes] == ["types", "counts"]
    figure = pl.embedding(adata, color=both, titles=["scVI"], show=False)
    assert figure.get_suptitle() == "scVI"
    assert [axes.get_title() for axes in figure.axes] == ["cell type", "depth"]


def test_embedding_of_several_colours_fills_a_grid(adata: AnnData) -> None:
    def shape(**given: Any) -> list[tuple[int, int]]:
        colours = ["kind", "depth", "flag", "kind", "0"]
        panels = pl.embedding(adata, color=colours, show=False, **given).axes
        spans = [axes.get_subplotspec() for axes in panels]
        return [(span.rowspan.start, span.colspan.start) for span in spans]

    assert shape() == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0)]
    assert shape(ncols=2) == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)]
    assert shape(ncols=9) == [(0, column) for column in range(5)]


def test_embedding_several_colours_have_a_legend_each(adata: AnnData) -> None:
    figure = pl.embedding(adata, color=["kind", "flag"], show=False)
    assert [legend_texts(axes) for axes in figure.axes] == [["a", "b", "NA"], ["False", "True"]]
    assert [axes.get_legend().get_title().get_text() for axes in figure.axes] == ["", ""]
    figure.draw_without_rendering()
    first, second = (axes.get_window_extent() for axes in figure.axes)
    beside = figure.axes[0].get_legend().get_window_extent()
    assert first.x1 < beside.x0
    assert beside.x1 < second.x0


@pytest.mark.parametrize("size", [7.0, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]], ids=["one", "each"])
def test_embedding_size(adata: AnnData, size: Any) -> None:
    points = drawn(pl.embedding(adata, color="depth", show=False, size=size))
    order = [2, 1, 4, 3, 5, 0]
    np.testing.assert_array_equal(
        points.get_sizes(), [7.0] if size == 7 else np.array(size)[order]
    )


def test_embedding_given_axes(adata: AnnData) -> None:
    figure = Figure(figsize=(3, 2))
    axes = figure.subplots(1, 2)[1]
    assert pl.embedding(adata, color="kind", ax=axes) is axes
    assert legend_texts(axes) == ["a", "b", "NA"]
    assert figure.get_size_inches().tolist() == [3, 2]
    with pytest.raises(ValueError, match="ax takes one embedding in one colour, not 2 panels"):
        pl.embedding(adata, color=["kind", "depth"], ax=axes)


def test_embedding_passes_on_what_scanpy_takes(adata: AnnData) -> None:
    axes = pl.embedding(adata, "X_dra", color="kind", groups=["b"], dimensions=(2, 4), show=False)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("DRA 3", "DRA 5")
    colours = {tuple(colour) for colour in drawn(axes).get_facecolors()}
    assert colours == {to_rgba(_figures.COLOURS[1]), to_rgba(_scatter.MISSING_COLOUR)}


def test_embedding_unknown_legend(adata: AnnData) -> None:
    with pytest.raises(ValueError, match="legend='left': one of 'right', 'numbered', 'on data'"):
        pl.embedding(adata, color="kind", legend="left", show=False)


def test_embedding_unknown_names(adata: AnnData) -> None:
    with pytest.raises(KeyError) as caught:
        pl.embedding(adata, "X_umpa", show=False)
    assert "did you mean 'X_umap'?" in caught.value.args[0]
    with pytest.raises(KeyError) as caught:
        pl.embedding(adata, color="kinds", show=False)
    assert "color='kinds'" in caught.value.args[0]
    assert "did you mean 'kind'?" in caught.value.args[0]


def test_embedding_one_dimension(adata: AnnData) -> None:
    adata.obsm["X_line"] = np.ones((6, 1))
    with pytest.raises(ValueError, match=r"X_line.*\(6, 1\).*2 dimensions"):
        pl.embedding(adata, "X_line", show=False)


def test_embedding_save_and_show(adata: AnnData, tmp_path: Path, shown: list[int]) -> None:
    assert pl.embedding(adata, color="kind", save=tmp_path / "a.png", show=True) is None
    assert shown == [1]
    assert (tmp_path / "a.png").read_bytes().startswith(PNG)


@pytest.mark.parametrize("legend", ["right", "on data"])
def test_embedding_dollars_in_names_are_no_mathematics(adata: AnnData, legend: Any) -> None:
    adata.obs["kind"] = adata.obs["kind"].cat.rename_categories({"a": "a$_{$", "b": "$b$"})
    axes = pl.embedding(adata, color="kind", legend=legend, show=False)
    axes.figure.draw_without_rendering()
    texts = axes.texts if legend == "on data" else axes.get_legend().get_texts()
    assert {"a$_{$", "$b$"} <= {text.get_text() for text in texts}
    assert not any(text.get_parse_math() for text in texts if "$" in text.get_text())
