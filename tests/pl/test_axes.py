"""Axes of an embedding: the genes that change most, as bars on one scale."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd
import pytest
from matplotlib.figure import Figure

from dra_scvi import pl
from tests.helpers import cells, fit

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes


@pytest.fixture
def loadings() -> pd.DataFrame:
    genes = ["ACTB", "CD3E", "LYZ", "NKG7"]
    columns = {"Z_0": [0.1, -2.0, 1.0, 0.5], "Z_1": [0.2, 0.0, 0.1, -0.3]}
    return pd.DataFrame(columns, index=genes)


def bars(axes: Axes) -> dict[str, float]:
    """Lengths by the names beside them, from top to bottom."""
    widths = {bar.get_y() + bar.get_height() / 2: bar.get_width() for bar in axes.patches}
    labels = zip(axes.get_yticks(), axes.get_yticklabels(), strict=True)
    found = sorted(((y, label.get_text()) for y, label in labels), reverse=True)
    return {name: _at(widths, y) for y, name in found}


def _at(widths: dict[float, float], y: float) -> float:
    return next(width for height, width in widths.items() if abs(height - y) < 1e-9)


def test_the_largest_changes_are_drawn_from_high_to_low(loadings: pd.DataFrame) -> None:
    figure = pl.axes(loadings, n_genes=3, show=False)
    first, second = figure.axes
    assert [axes.get_title() for axes in figure.axes] == ["Z_0", "Z_1"]
    assert list(bars(first).items()) == [("LYZ", 1.0), ("NKG7", 0.5), ("CD3E", -2.0)]
    assert list(bars(second).items()) == [("ACTB", 0.2), ("LYZ", 0.1), ("NKG7", -0.3)]
    assert first.get_xlim() == second.get_xlim() == pytest.approx((-2.1, 2.1))
    assert first.get_xlabel() == "log2 fold change per s.d."
    up, down = (bar.get_facecolor() for bar in (first.patches[-1], first.patches[0]))
    assert up != down


def test_chosen_axes_in_a_grid(loadings: pd.DataFrame) -> None:
    panel = pl.axes(loadings, "Z_1", show=False)
    assert panel.get_title() == "Z_1"
    assert len(panel.patches) == 4
    assert (
        len({axes.get_position().x0 for axes in pl.axes(loadings, ncols=1, show=False).axes}) == 1
    )
    own = Figure().subplots()
    assert pl.axes(loadings, ["Z_1"], ax=own) is own


def test_axes_of_a_model(tmp_path: Path) -> None:
    model = fit(cells())
    figure = pl.axes(model, n_genes=2, save=tmp_path / "a.png")
    assert len(figure.axes) == 4
    loadings = model.get_loadings()["Z_2"]
    assert set(bars(figure.axes[2])) == set(loadings.abs().nlargest(2).index)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_axes_refuses(loadings: pd.DataFrame) -> None:
    with pytest.raises(TypeError, match="a trained DRA model, or its loadings, are wanted"):
        pl.axes("model", show=False)
    with pytest.raises(KeyError, match="which='Z_9' is not a column of the loadings"):
        pl.axes(loadings, "Z_9", show=False)
    with pytest.raises(ValueError, match="ax takes one axis of the embedding, not 2"):
        pl.axes(loadings, ax=Figure().subplots())
    with pytest.raises(ValueError, match="n_genes"):
        pl.axes(loadings, n_genes=0, show=False)


def test_genes_of_one_name_and_names_with_dollars_are_drawn_as_they_are() -> None:
    loadings = pd.DataFrame({"Z_0": [3.0, 2.0, 0.1]}, index=["a$_{$", "twice", "twice"])
    axes = pl.axes(loadings, n_genes=2, show=False)
    axes.figure.draw_without_rendering()
    assert [bar.get_width() for bar in axes.patches] == [2.0, 3.0]


def test_loadings_that_are_not_known_are_no_bars() -> None:
    axes = pl.axes(pd.DataFrame({"Z_0": [float("nan")] * 2}, index=["a", "b"]), show=False)
    assert axes.get_xlim() == (-1.0, 1.0)


def test_no_axis_at_all_is_refused(loadings: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match="which names no axis"):
        pl.axes(loadings, which=[], show=False)


def test_long_names_of_genes_leave_room_for_bars_and_for_the_scale(loadings: pd.DataFrame) -> None:
    loadings.index = [f"ENSG00000123456.{i}_RP11-123" for i in range(len(loadings))]
    figure = pl.axes(loadings / 4, show=False)
    figure.draw_without_rendering()
    for panel in figure.axes:
        assert panel.get_window_extent().width / figure.dpi > 1.5
        ticks = [tick for tick in panel.xaxis.get_major_ticks() if tick.label1.get_text()]
        boxes = [tick.label1.get_window_extent() for tick in ticks]
        assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
