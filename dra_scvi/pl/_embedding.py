"""Embeddings side by side, coloured by columns of `obs`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from dra_scvi._argument_kinds import check_adata
from dra_scvi._data.keys import unknown_key, validate_keys
from dra_scvi.pl._figures import (
    COLOURS,
    GUIDE_COLOUR,
    POINTS_PER_INCH,
    SIDE,
    check_names,
    finish,
    make_axes,
    resolve_show,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray


# For more categories: with Tol's wine, olive and indigo, and five that are far from all of them in
# normal sight and in each kind of colour blindness, as simulated by Machado et al. (2009).
MORE_COLOURS = (
    (*COLOURS, "#882255", "#999933", "#332288")
    + ("#9911FF", "#553300", "#9977FF", "#AACC88", "#886633")
)  # fmt: skip
MISSING_COLOUR = "#D3D3D3"
EMBEDDING_PANEL = (3.4, 3.2)
COVERED = 1 / 8  # share of a panel that the dots would cover if none overlapped
DOT_AREAS = (0.5, 20.0)  # least and greatest, in square points
EDGE = 0.08  # width of a dot's edge, in roots of its area
CATEGORY_ALPHA = 0.8
LEGEND_ROWS = 16


def embedding(
    adata: AnnData,
    basis: str | Sequence[str] = ("X_umap",),
    color: str | Sequence[str] | None = None,
    titles: Sequence[str] | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    legend: Literal["right", "numbered"] = "right",
) -> Axes | Figure | None:
    """Scatter cells in the first two dimensions of embeddings, side by side.

    Parameters
    ----------
    adata
        Has the embeddings in ``adata.obsm``. It is not changed.
    basis
        One or more keys of ``adata.obsm``, a column of panels each; ``"umap"`` finds ``"X_umap"``.
    color
        One or more columns of ``adata.obs``, categorical or numeric, a row of panels each. The
        colours of categories are those in ``adata.uns[f"{color}_colors"]`` where there are any.
    titles
        One for each basis, in place of its name.
    show
        Show the figure. By default as ``scanpy.settings.autoshow`` says, unless `save` is given.
    save
        Write the figure to this file.
    legend
        ``"numbered"`` puts a number before each name in the legend, and amid the cells of the
        category, so that they are told apart without colours.

    Returns
    -------
    The axes of one panel, the figure of several, or None when the figure was shown.

    Raises
    ------
    TypeError
        When an argument is of another kind.
    KeyError
        When an embedding or a column does not exist.
    ValueError
        When an embedding has fewer than two dimensions, or the titles do not fit.

    Examples
    --------
    >>> import numpy as np
    >>> from anndata import AnnData
    >>> adata = AnnData(np.ones((3, 1)), obsm={"X_dra": np.eye(3)})
    >>> embedding(adata, "X_dra", show=False).get_title()
    'dra'
    """
    check_adata(adata, ("obs", "obsm"))
    check_names("basis", basis)
    if color is not None:
        check_names("color", color)
    if isinstance(titles, str):
        titles = [titles]
    names = [_basis_key(adata, key) for key in ([basis] if isinstance(basis, str) else basis)]
    colors = [color] if isinstance(color, str) or color is None else list(color)
    validate_keys(adata, obs_keys={"color": [key for key in colors if key is not None]})
    labels = [name.removeprefix("X_") for name in names] if titles is None else list(titles)
    if not names or len(labels) != len(names):
        raise ValueError(f"{len(labels)} titles do not fit {len(names)} embeddings")
    points = [_points(adata, name) for name in names]
    show = resolve_show(show, None, save)
    figure, grid = make_axes(len(colors), len(names), EMBEDDING_PANEL, None, show)
    for key, row in zip(colors, grid, strict=True):
        _draw_row(adata, key, points, row, legend)
    for label, axes in zip(labels, grid[0], strict=True):
        axes.set_title(label)
    for name, axes in zip(names, grid[-1], strict=True):
        axes.set_xlabel(f"{_axis_name(name)} 1 and 2", fontsize="small", color=GUIDE_COLOUR)
    _widen_for_legends(figure, grid)
    return finish(figure, grid, show, save)


def _basis_key(adata: AnnData, key: str) -> str:
    for name in (key, f"X_{key}"):
        if name in adata.obsm:
            return name
    raise KeyError(unknown_key("basis", key, "a key of adata.obsm", adata.obsm.keys()))


def _axis_name(name: str) -> str:
    """Name the axes of an embedding after the method that its key tells of."""
    methods = {"umap": "UMAP", "tsne": "t-SNE", "pca": "PC"}
    found = [title for key, title in methods.items() if key in name.lower()]
    return found[0] if found else name.removeprefix("X_")


def _points(adata: AnnData, name: str) -> NDArray[np.floating[Any]]:
    """Return the first two dimensions of an embedding, (cell, 2)."""
    values = np.asarray(adata.obsm[name])
    if values.ndim != 2 or values.shape[1] < 2:
        raise ValueError(
            f"adata.obsm[{name!r}] has shape {values.shape}; at least 2 dimensions are drawn"
        )
    return values[:, :2]


def _draw_row(
    adata: AnnData,
    key: str | None,
    points: Sequence[NDArray[Any]],
    row: NDArray[Any],
    legend: Literal["right", "numbered"],
) -> None:
    """Draw every embedding in the colours of one column, and one legend at the right."""
    if key is None:
        for axes, xy in zip(row, points, strict=True):
            _scatter(axes, xy, c=COLOURS[0])
    elif _is_numeric(adata.obs[key]):
        _draw_numeric(adata.obs[key], key, points, row)
    else:
        _draw_categories(adata, key, points, row, legend)


def _is_numeric(column: pd.Series) -> bool:
    return pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)


def _draw_numeric(
    column: pd.Series, key: str, points: Sequence[NDArray[Any]], row: NDArray[Any]
) -> None:
    """Draw high values on top of low ones, missing ones beneath."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    values = column.to_numpy(dtype=float, na_value=np.nan)
    known = values[np.isfinite(values)]
    limits = (known.min(), known.max()) if known.size else (0.0, 1.0)
    colormap = colormaps["viridis"].with_extremes(bad=MISSING_COLOUR)
    mappable = ScalarMappable(Normalize(*limits), colormap)
    order = np.argsort(np.where(np.isfinite(values), values, -np.inf), kind="stable")
    colours = mappable.to_rgba(np.ma.masked_invalid(values[order]))
    for axes, xy in zip(row, points, strict=True):
        _scatter(axes, xy[order], c=colours)
    scale = row[-1].inset_axes((1.04, 0.1, 0.04, 0.8))
    row[-1].figure.colorbar(mappable, cax=scale, label=key)


def _draw_categories(
    adata: AnnData,
    key: str,
    points: Sequence[NDArray[Any]],
    row: NDArray[Any],
    legend: Literal["right", "numbered"],
) -> None:
    """Draw cells in their order, those without a category beneath."""
    from matplotlib.colors import to_rgba_array

    column = adata.obs[key].astype("category").cat.remove_unused_categories()
    names = [str(name) for name in column.cat.categories]
    palette = _palette(adata, key, column)
    codes = column.cat.codes.to_numpy()
    if legend == "numbered":
        for axes, xy in zip(row, points, strict=True):
            _number(axes, xy, codes)
        names = [f"{number}  {name}" for number, name in enumerate(names, start=1)]
    if (codes < 0).any():
        names, palette = [*names, "missing"], [*palette, MISSING_COLOUR]
    order = np.argsort(codes >= 0, kind="stable")
    colours = to_rgba_array(palette)[codes[order]]
    for axes, xy in zip(row, points, strict=True):
        _scatter(axes, xy[order], c=colours, alpha=CATEGORY_ALPHA)
    _add_legend(row[-1], key, names, palette)


def _add_legend(axes: Axes, key: str, names: Sequence[str], palette: Sequence[str]) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], linestyle="", marker="o", markersize=5, color=colour, label=name)
        for name, colour in zip(names, palette, strict=True)
    ]
    axes.legend(
        handles=handles,
        title=key,
        loc="center left",
        bbox_to_anchor=(1.02, 0.5),
        ncols=-(-len(handles) // LEGEND_ROWS),
        frameon=False,
        fontsize="small",
        handletextpad=0.2,
        alignment="left",
    )


def _number(axes: Axes, xy: NDArray[Any], codes: NDArray[np.integer]) -> None:
    """Write the number of each category on the cell that is nearest to the middle of its cells."""
    from matplotlib.patheffects import withStroke

    for code in range(codes.max() + 1):
        cells = xy[codes == code]
        middle = np.median(cells, axis=0)
        x, y = cells[np.argmin(np.square(cells - middle).sum(1))]
        text = axes.text(x, y, str(code + 1), ha="center", va="center", fontweight="bold")
        text.set(zorder=3, path_effects=[withStroke(linewidth=3, foreground="white")])


def _widen_for_legends(figure: Figure, grid: NDArray[Any]) -> None:
    """Give long names room of their own, so that panels keep their size."""
    legends = [axes.get_legend() for axes in grid[:, -1]]
    widths = [legend.get_window_extent().width / figure.dpi for legend in legends if legend]
    panels = EMBEDDING_PANEL[0] * grid.shape[1]
    figure.set_figwidth(panels + max([*widths, SIDE]))


def _palette(adata: AnnData, key: str, column: pd.Series) -> list[str]:
    """Take the colours stored with the data, or as many as the categories need."""
    stored = adata.uns.get(f"{key}_colors", ())
    by_name = dict(zip(adata.obs[key].astype("category").cat.categories, stored, strict=False))
    if all(name in by_name for name in column.cat.categories):
        return [str(by_name[name]) for name in column.cat.categories]
    return _distinct_colours(len(column.cat.categories))


def _distinct_colours(number: int) -> list[str]:
    from scanpy.plotting import palettes

    scanpys = (palettes.default_20, palettes.default_28, palettes.default_102)
    for colours in (COLOURS, MORE_COLOURS, *scanpys):
        if number <= len(colours):
            return list(colours[:number])
    return [palettes.default_102[i % 102] for i in range(number)]


def _scatter(axes: Axes, xy: NDArray[Any], **colour: Any) -> None:
    """Draw dots that shrink with their number; large plots stay small files."""
    area = _dot_area(len(xy))
    axes.scatter(
        xy[:, 0],
        xy[:, 1],
        s=area,
        linewidths=EDGE * np.sqrt(area),
        edgecolors="white",
        rasterized=True,
        **colour,
    )
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set(linewidth=0.6, color=GUIDE_COLOUR)


def _dot_area(n_cells: int) -> float:
    """Share out a part of the panel among the cells, in square points."""
    width, height = EMBEDDING_PANEL
    part = COVERED * width * height * POINTS_PER_INCH**2
    return float(np.clip(part / max(n_cells, 1), *DOT_AREAS))
