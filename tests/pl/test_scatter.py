"""Colours, scales and labels of one panel: told apart, not misled by few cells, not in the way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from matplotlib.colors import to_rgba
from matplotlib.text import Text

from dra_scvi import pl
from dra_scvi.pl import _figures, _scatter
from dra_scvi.pl._scatter import bound_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray


# Machado, Oliveira & Fernandes, IEEE TVCG 15 (2009) 1291, severity 1, on linear RGB
SIGHTS = {
    "normal": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}


def lab(colours: Sequence[str], sight: ArrayLike) -> NDArray[np.float64]:
    """Return what is seen of sRGB colours as CIELAB, whose distances are those of sight."""
    rgb = np.array([to_rgba(colour)[:3] for colour in colours])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.asarray(sight).T, 0, 1)
    to_xyz = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750]]
    to_xyz += [[0.0193339, 0.1191920, 0.9503041]]
    xyz = seen @ np.transpose(to_xyz) / [0.95047, 1.0, 1.08883]
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116).T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)


@pytest.mark.parametrize("sight", SIGHTS)
def test_colours_are_told_apart_by_every_sight(sight: str) -> None:
    for colours, least in ((_figures.COLOURS, 15), (_scatter.MORE_COLOURS, 12)):
        points = lab([*colours, _scatter.MISSING_COLOUR], SIGHTS[sight])
        distances = np.linalg.norm(points[:, None] - points, axis=2)
        assert distances[np.triu_indices(len(points), 1)].min() > least


@pytest.mark.parametrize("number", [16, 30, 50])
def test_colours_of_many_categories_are_far_apart_and_not_pale(number: int) -> None:
    names = [str(i) for i in range(number)]
    colours = _scatter._stored_or_distinct({}, names)
    points = lab([*colours, _scatter.MISSING_COLOUR, "white", "black"], np.eye(3))
    distances = np.linalg.norm(points[:, None] - points, axis=2)
    assert distances[np.triu_indices(len(points), 1)].min() > 8
    distances = distances[:number, :number]
    assert distances[np.triu_indices(number, 1)].min() > 14
    assert points[:number, 0].max() < 75  # of lightness, 100 is paper


def test_a_percentile_leaves_out_the_few_that_stand_out() -> None:
    values = [*np.arange(199.0), 1e6]
    assert bound_of("p99", "vmax")(values) == pytest.approx(np.percentile(values, 99))
    assert bound_of("p99", "vmax")(values) < 200
    assert bound_of("p1", "vmin")(values) == pytest.approx(1.99)
    assert bound_of(None, "vmin")(values) == 0
    assert bound_of(None, "vmax")(values) == 1e6


def test_a_percentile_of_what_few_cells_have_gives_way_to_the_extreme() -> None:
    rare = [0.0] * 199 + [2.0]
    assert bound_of("p99", "vmax")(rare) == 2
    assert bound_of("p1", "vmin")([-value for value in rare]) == -2
    assert bound_of("p99", "vmax")([np.nan, np.inf, 1.0, 3.0]) == pytest.approx(2.98)
    assert bound_of("p99", "vmax")([np.nan]) > bound_of(None, "vmin")([np.nan])


@pytest.mark.parametrize("bound", ["99", "p", "p101", "high"])
def test_a_percentile_that_is_none_is_refused(bound: str) -> None:
    with pytest.raises(ValueError, match=f"vmax='{bound}': a number, or a percentile such as"):
        bound_of(bound, "vmax")


@pytest.mark.parametrize("legend", ["on data", "numbered"])
def test_labels_cover_neither_each_other_nor_what_is_beside_the_axes(legend: Any) -> None:
    rng = np.random.default_rng(0)
    kinds = np.arange(400) % 20
    obs = pd.DataFrame({"kind": [f"a long name of type {kind}" for kind in kinds]})
    points = rng.normal(size=(400, 2)) + [[5, 0]] * (kinds == 7)[:, None]
    adata = AnnData(obs=obs.set_index(obs.index.astype(str)), obsm={"X_umap": points})
    axes = pl.embedding(adata, color="kind", legend=legend, show=False)
    axes.figure.draw_without_rendering()
    boxes = [Text.get_window_extent(text) for text in axes.texts]
    assert len(boxes) == 20
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    frame = axes.get_window_extent()
    assert all(frame.padded(1).contains(*corner) for box in boxes for corner in box.corners())


def test_a_label_does_not_hide_a_cluster_that_is_smaller_than_itself() -> None:
    rng = np.random.default_rng(0)
    obs = pd.DataFrame({"kind": ["large"] * 200 + ["small"] * 9 + ["high"] * 9})
    points = rng.normal(size=(218, 2))
    points[200:] = [9, 1] + points[200:] / 50
    points[209:] += [-9, 3]
    adata = AnnData(obs=obs.set_index(obs.index.astype(str)), obsm={"X_umap": points})
    axes = pl.embedding(adata, color="kind", legend="numbered", show=False)
    axes.figure.draw_without_rendering()
    for text in axes.texts:
        cells = axes.transData.transform(points[obs["kind"] == text.get_label()])
        box = Text.get_window_extent(text)
        hidden = np.all((cells > box.min) & (cells < box.max), axis=1)
        assert hidden.mean() < 0.3, text.get_label()
    small, high = (text.get_position()[1] for text in axes.texts if text.get_label() != "large")
    assert small > 0 > high or high > 0 > small  # above or, below the upper edge, beneath
