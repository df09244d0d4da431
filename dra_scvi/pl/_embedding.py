"""Embeddings, coloured by columns of `obs` and by genes: scanpy's scatter plots, laid out."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from dra_scvi._argument_kinds import check_adata, check_kinds, check_number
from dra_scvi._data.columns import unknown_key
from dra_scvi.benchmark._pairs import TITLES
from dra_scvi.pl._figures import SIDE, check_names, finish, is_shown, make_axes
from dra_scvi.pl._scatter import PANEL, Legend, Panel, Style, draw_panel, spread_labels
from dra_scvi.pl._values import Lookup

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike, NDArray

    from dra_scvi.pl._values import Values

NCOLS = 4
DRAWN = ("UMAP", "t-SNE")
WORDS = {"umap": "UMAP", "tsne": "t-SNE", **TITLES}
MAKERS = {"umap": "sc.tl.umap(adata)", "tsne": "sc.tl.tsne(adata)", "pca": "sc.pp.pca(adata)"}


def embedding(
    adata: AnnData,
    basis: str | Sequence[str] = ("X_umap",),
    color: str | Sequence[str] | None = None,
    titles: Sequence[str] | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    legend: Legend | None = "right",
    *,
    layer: str | None = None,
    use_raw: bool | None = None,
    gene_symbols: str | None = None,
    ncols: int | None = None,
    size: ArrayLike | None = None,
    ax: Axes | None = None,
    cmap: Any = "viridis",
    palette: Any = None,
    vmin: Any = None,
    vmax: Any = "p99",
    **kwargs: Any,
) -> Axes | Figure | None:
    """Scatter cells in the first two dimensions of embeddings, coloured by columns and genes.

    Panels are drawn by :func:`scanpy.pl.embedding`. Those of one embedding fill a grid, several
    embeddings stand side by side, with a row for each colour.

    Parameters
    ----------
    adata
        Has the embeddings in ``adata.obsm``. It is not changed.
    basis
        One or more keys of ``adata.obsm``; ``"umap"`` finds ``"X_umap"``.
    color
        One or more columns of ``adata.obs``, categorical or numeric, or genes. Counts of a gene
        become ln(1 + counts per 10,000 of the cell). Colours of categories are those in
        ``adata.uns[f"{color}_colors"]`` where there are any.
    titles
        In place of the names above the panels: of the embeddings or, where there is one embedding
        and several colours, of these.
    show
        Show the figure. By default as ``scanpy.settings.autoshow`` says, unless `ax` or `save`
        is given.
    save
        Write the figure to this file.
    legend
        Where categories are named: ``"right"`` of the panel, ``"on data"`` amid their cells,
        ``"numbered"`` both, with a number amid the cells, so that they are told apart without
        colours, or ``"none"``.
    layer, use_raw, gene_symbols
        Where values and names of genes are, as in scanpy: in ``adata.raw`` where there is one,
        unless a layer is named or `use_raw` is `False`.
    ncols
        Panels in a row.
    size
        Area of a dot in square points; by default the smaller the more cells.
    ax
        Draw on these axes, which takes one embedding and one colour.
    cmap
        Colour map of numbers.
    palette
        Colours of categories, as in scanpy: a list, a dictionary, or the name of a colour map.
    vmin, vmax
        Ends of the scale of numbers: a value, a percentile such as ``"p99"``, or a list with one
        for each colour. A percentile that nearly all cells share, as that of a rare gene, gives
        way to the extreme.
    **kwargs
        Further arguments of :func:`scanpy.pl.embedding`, such as `groups` or `frameon`.

    Returns
    -------
    The axes of one panel, the figure of several, or None when the figure was shown.

    Raises
    ------
    TypeError
        When an argument is of another kind.
    KeyError
        When an embedding, a column or a gene does not exist.
    ValueError
        When an embedding has fewer than two dimensions, or titles or axes do not fit.

    Examples
    --------
    >>> import numpy as np
    >>> from anndata import AnnData
    >>> adata = AnnData(np.ones((3, 1)), obsm={"X_dra": np.eye(3)})
    >>> embedding(adata, "X_dra", show=False).get_title()
    'DRA'
    """
    check_kinds(embedding, locals())
    check_adata(adata, ("obs", "obsm"))
    check_names("basis", basis)
    check_names("color", [] if color is None else color)
    if ncols is not None:
        check_number(ncols, "ncols", least=1)
    names = [_basis_key(adata, key) for key in ([basis] if isinstance(basis, str) else basis)]
    keys = [color] if isinstance(color, str) or color is None else list(color)
    values_of = Lookup(adata, layer, use_raw, gene_symbols)
    shown = [None if key is None else values_of(key) for key in keys]
    panels = _panels(adata, names, shown, (vmin, vmax))
    if not panels:
        raise ValueError("there is nothing to draw: basis and color have to name something")
    if ax is not None and len(panels) > 1:
        raise ValueError(f"ax takes one embedding in one colour, not {len(panels)} panels")
    style = Style(_known(legend), size, cmap, palette, kwargs)
    panels, head = _with_titles(
        panels, [titles] if isinstance(titles, str) else titles, len(names)
    )
    show = is_shown(show, ax, save)
    width = ncols or (len(names) if len(names) > 1 else NCOLS)
    figure, grid = make_axes(len(panels), width, PANEL, ax, show)
    for axes, panel in zip(grid.flat, panels, strict=False):
        draw_panel(axes, panel, style)
    if head:
        figure.suptitle(head)
    if ax is None:
        _widen_for_legends(figure, grid)
    if style.legend in ("on data", "numbered"):
        figure.draw_without_rendering()
        for axes, panel in zip(grid.flat, panels, strict=False):
            spread_labels(axes, panel)
    return finish(figure, grid, show, save)


def _known(legend: str | None) -> Legend:
    name = "none" if legend is None else legend
    if name not in get_args(Legend):
        raise ValueError(f"legend={legend!r}: one of {', '.join(map(repr, get_args(Legend)))}")
    return name  # type: ignore[return-value]


def _basis_key(adata: AnnData, key: str) -> str:
    for name in (key, f"X_{key}"):
        if name in adata.obsm:
            return name
    message = unknown_key("basis", key, "a key of adata.obsm", adata.obsm.keys())
    maker = MAKERS.get(key.removeprefix("X_").lower())
    if maker is not None:
        message += f" {maker} makes it"
        message += ", after sc.pp.neighbors(adata, use_rep='X_dra')." * ("umap" in maker)
    raise KeyError(message)


def _points(adata: AnnData, name: str) -> NDArray[np.floating[Any]]:
    """Return an embedding of two or more dimensions, (cell, dimension)."""
    values = np.asarray(adata.obsm[name])
    if values.ndim != 2 or values.shape[1] < 2:
        raise ValueError(
            f"adata.obsm[{name!r}] has shape {values.shape}; at least 2 dimensions are drawn"
        )
    return values


def _in_words(name: str) -> str:
    """Name an embedding as a reader would.

    >>> _in_words("X_umap_scvi"), _in_words("X_mine")
    ('UMAP of scVI', 'mine')
    """
    first, *rest = (WORDS.get(part.lower(), part) for part in name.removeprefix("X_").split("_"))
    joint = " of " if rest and first in DRAWN else " "
    return joint.join([first, " ".join(rest)] if rest else [first])


def _panels(
    adata: AnnData, names: Sequence[str], shown: Sequence[Values | None], limits: tuple[Any, Any]
) -> list[Panel]:
    """Every colour of every embedding; the last embedding of a colour has its legend."""
    panels = []
    for (i, values), name in product(enumerate(shown), names):
        words = _in_words(name)
        method = words.split(" ")[0]
        several = len(names) > 1
        title = values.title if values is not None and not several else words * (i == 0)
        own = tuple(limit[i] if isinstance(limit, list) else limit for limit in limits)
        axis = f"{'PC' if method == 'PCA' else method} "
        points = _points(adata, name)
        panels.append(Panel(title, axis, points, values, own, name == names[-1], several))
    return panels


def _with_titles(
    panels: Sequence[Panel], titles: Sequence[str] | None, n_embeddings: int
) -> tuple[list[Panel], str]:
    """Put other titles above the first panels, or above one embedding in several colours."""
    if titles is None:
        return list(panels), ""
    wanted = n_embeddings if n_embeddings > 1 else len(panels)
    if n_embeddings == 1 and len(titles) == 1 < len(panels):
        return list(panels), titles[0]
    if len(titles) != wanted or not panels:
        raise ValueError(f"{len(titles)} titles do not fit {wanted} embeddings")
    renamed = [panel._replace(title=title) for panel, title in zip(panels, titles, strict=False)]
    return [*renamed, *panels[len(titles) :]], ""


def _widen_for_legends(figure: Figure, grid: NDArray[Any]) -> None:
    """Give legends room of their own, so that panels keep their size."""
    width = PANEL[0] * grid.shape[1]
    for column in grid.T:
        legends = [axes.get_legend() for axes in column]
        beside = [legend.get_window_extent().width / figure.dpi for legend in legends if legend]
        beside += [SIDE for axes in column if axes.child_axes]
        width += max(beside, default=0)
    figure.set_figwidth(max(width, PANEL[0] * grid.shape[1] + SIDE))
