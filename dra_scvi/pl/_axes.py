"""Axes of an embedding: the genes that change most along each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from dra_scvi._argument_kinds import check_number
from dra_scvi._data.columns import unknown_key
from dra_scvi.pl._figures import COLOURS, check_names, finish, is_shown, literal, make_axes

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

AXIS_WIDTH = 2.6  # inches of a panel
LETTERS = 10  # of the name of a gene, for which there is room
LETTER = 0.08  # inches for each one more
GENE_HEIGHT = 0.18  # inches
MARGIN = 0.8  # inches above and below the genes
NCOLS = 5


def axes(
    model_or_loadings: Any,
    which: str | Sequence[str] | None = None,
    n_genes: int = 10,
    ncols: int = NCOLS,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
) -> Axes | Figure | None:
    """Plot the genes that change most along each axis of an embedding.

    A bar is the log2 fold change of a gene's share of the counts over one standard deviation of
    the cells. All panels have one scale: an axis with short bars sets few cells apart.

    Parameters
    ----------
    model_or_loadings
        A trained model, or what its :meth:`~dra_scvi.DRA.get_loadings` returned.
    which
        One or more columns of the loadings, such as ``"Z_0"``; by default all.
    n_genes
        Genes for each axis, those of the largest change in either direction.
    ncols
        Panels in a row.
    ax
        Draw on these axes, which takes one axis of the embedding.
    show
        Show the figure. By default as ``scanpy.settings.autoshow`` says, unless `ax` or `save`
        is given.
    save
        Write the figure to this file.

    Returns
    -------
    The axes of one panel, the figure of several, or None when the figure was shown.

    Raises
    ------
    TypeError
        When neither a model nor loadings are given.
    KeyError
        When there is no such axis.
    ValueError
        When `ax` is given for several.

    Examples
    --------
    >>> import pandas as pd
    >>> loadings = pd.DataFrame({"Z_0": [0.1, -2.0, 1.0]}, index=["ACTB", "CD3E", "LYZ"])
    >>> panel = axes(loadings, n_genes=2, show=False)
    >>> [label.get_text() for label in panel.get_yticklabels()]
    ['LYZ', 'CD3E']
    """
    check_number(n_genes, "n_genes", least=1)
    check_number(ncols, "ncols", least=1)
    loadings = _loadings(model_or_loadings)
    names = _names(loadings, which)
    if ax is not None and len(names) > 1:
        raise ValueError(f"ax takes one axis of the embedding, not {len(names)}: name it in which")
    show = is_shown(show, ax, save)
    shown = {name: _largest(loadings[name], n_genes) for name in names}
    longest = max(len(str(gene)) for genes in shown.values() for gene in genes.index)
    width = AXIS_WIDTH + LETTER * max(longest - LETTERS, 0)
    size = (width, MARGIN + GENE_HEIGHT * min(n_genes, len(loadings)))
    figure, grid = make_axes(len(names), ncols, size, ax, show)
    limit = 1.05 * np.abs(np.nan_to_num(loadings[names].to_numpy())).max(initial=0.0)
    for (name, genes), panel in zip(shown.items(), grid.flat, strict=False):
        _draw_axis(panel, name, genes, limit or 1.0)
    return finish(figure, grid, show, save)


def _loadings(given: Any) -> pd.DataFrame:
    if isinstance(given, pd.DataFrame):
        return given
    if not hasattr(given, "get_loadings"):
        raise TypeError(
            f"a trained DRA model, or its loadings, are wanted, not {type(given).__name__}"
        )
    return given.get_loadings()


def _names(loadings: pd.DataFrame, which: str | Sequence[str] | None) -> list[str]:
    if which is None:
        return list(loadings.columns)
    check_names("which", which)
    names = [which] if isinstance(which, str) else list(which)
    if not names:
        raise ValueError("which names no axis: leave it out for all.")
    for name in names:
        if name not in loadings:
            raise KeyError(unknown_key("which", name, "a column of the loadings", loadings))
    return names


def _largest(loadings: pd.Series, n_genes: int) -> pd.Series:
    """Keep the largest changes, in ascending order."""
    largest = np.argsort(-loadings.abs().to_numpy(), kind="stable")[:n_genes]
    return loadings.iloc[largest].sort_values()  # by place, as names may repeat


def _draw_axis(panel: Axes, name: str, shown: pd.Series, limit: float) -> None:
    """Draw changes as bars, from the highest to the lowest."""
    colours = [COLOURS[1] if value > 0 else COLOURS[0] for value in shown]
    heights = np.arange(len(shown))
    panel.barh(heights, shown, color=colours, height=0.7)
    panel.set_yticks(heights[::-1], list(map(literal, shown.index[::-1])), fontsize="small")
    panel.axvline(0, color="black", linewidth=0.8)
    panel.set(title=name, xlim=(-limit, limit), ylim=(-0.7, len(shown) - 0.3))
    panel.set_xlabel("log2 fold change per s.d.", fontsize="small")
    panel.locator_params(axis="x", nbins=4)
    panel.spines[["top", "right", "left"]].set_visible(False)
    panel.tick_params(axis="y", length=0)
