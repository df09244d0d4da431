"""Plots in the manner of scanpy: training curves, embeddings side by side, models compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from dra_scvi._argument_kinds import check_adata
from dra_scvi._data.validation import unknown_key, validate_keys
from dra_scvi._outputs.files import atomic_path
from dra_scvi.benchmark import _statistics as _paired

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

__all__ = ["benchmark", "embedding", "training"]

# Okabe and Ito's colours, which colour-blind readers can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
# For more categories: with Tol's wine, olive and indigo, and five that are far from all of them in
# normal sight and in each kind of colour blindness, as simulated by Machado et al. (2009).
MORE_COLOURS = (
    (*COLOURS, "#882255", "#999933", "#332288")
    + ("#9911FF", "#553300", "#9977FF", "#AACC88", "#886633")
)  # fmt: skip
MISSING_COLOUR = "#D3D3D3"
DOTS_PER_INCH = 150
POINTS_PER_INCH = 72
CURVES_PANEL = (4.2, 3.2)  # width and height in inches
GUIDE_HEIGHT = 0.5  # inches below a panel
EMBEDDING_PANEL = (3.4, 3.2)
SIDE = 1.0  # inches at the right, at least
COVERED = 1 / 8  # share of a panel that the dots would cover if none overlapped
DOT_AREAS = (0.5, 20.0)  # least and greatest, in square points
EDGE = 0.08  # width of a dot's edge, in roots of its area
CATEGORY_ALPHA = 0.8
LEGEND_ROWS = 16
COMPARISON_SIZE = (5.0, 0.9)  # inches: width, and height without rows
ROW_HEIGHT = 0.2  # inches for each baseline of each data set
ROW_PART = 0.5  # of the distance between data sets, filled by the baselines of one
MARKERS = ("o", "s", "D", "^", "v", "P", "X")  # told apart without colours
BAND_COLOUR = "#F2F2F2"
ALL_DATA_SETS = "all data sets"
METRIC_TITLES = {
    "nmi": "NMI (k-means)",
    "ari": "ARI (k-means)",
    "leiden_nmi": "NMI (Leiden)",
    "leiden_ari": "ARI (Leiden)",
    "integration_total": "integration score",
}

NAMES = {
    "elbo": "negative ELBO",
    "reconstruction_loss": "reconstruction",
    "latent_divergence": "codes and prior",
    "data_divergence": "means and data",
    "kl_local": "KL of codes",
    "kl_weight": "weight of KL",
}
SUFFIXES = {"_train": "", "_validation": ", held out"}
START = 0.03  # share of the epochs whose heights do not set the scale
GUIDE_COLOUR = "#595959"

# Title, y label, how the keys of a panel begin, and what a training that went well looks like.
PANELS = (
    (
        "Loss",
        "nats per cell",
        ("elbo", "reconstruction_loss"),
        "Falls, then levels off.\nHeld out: close to training, not rising.",
    ),
    (
        "Divergence",
        "nats",
        ("latent_divergence", "data_divergence"),
        "Codes: stays near 0. Means and data:\nrises to at most 2, as means have no noise.",
    ),
    (
        "Kullback-Leibler",
        "nats per cell",
        ("kl_local",),
        "Rises, may drop where the prior starts,\nthen steady. At 0, codes hold nothing.",
    ),
)


class _Effect(NamedTuple):
    """A mean difference, its interval, which is NaN where it is not known, and the runs."""

    difference: float
    low: float
    high: float
    n_pairs: int


class _Panel(NamedTuple):
    title: str
    ylabel: str
    keys: list[str]
    guide: str = ""


def training(
    model_or_history: Any,
    keys: str | Sequence[str] | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    guide: bool = True,
) -> Axes | Figure | None:
    """Plot how the terms of the objective went over the epochs.

    A colour for each term, dashes for the held-out cells. The first epochs, far above the rest,
    do not set the scale.

    Parameters
    ----------
    model_or_history
        A trained model, or its ``history``: from names to tables with one column, by epoch.
    keys
        Names to draw in one panel. By default up to three panels: loss, divergence, KL.
    ax
        Draw everything on these axes.
    show
        Show the figure. By default as ``scanpy.settings.autoshow`` says, unless `ax` or `save`
        is given.
    save
        Write the figure to this file.
    guide
        Write below each panel what a training that went well looks like.

    Returns
    -------
    The axes of one panel, the figure of several, or None when the figure was shown.

    Raises
    ------
    KeyError
        When the history has no such key.
    ValueError
        When there is no history, or nothing in it to draw.

    Examples
    --------
    >>> import pandas as pd
    >>> history = {"elbo_train": pd.DataFrame({"elbo_train": [9.0, 7.0, 6.5]})}
    >>> training(history, show=False).get_title()
    'Loss'
    """
    history = _history(model_or_history)
    panels = _panels(history, [keys] if isinstance(keys, str) else keys)
    if ax is not None:
        panels = [_merge(panels)]
    show = _resolve_show(show, ax, save)
    width, height = CURVES_PANEL
    height += GUIDE_HEIGHT * any(panel.guide for panel in panels) * guide
    figure, grid = _axes(1, len(panels), (width, height), ax, show)
    for panel, axes in zip(panels, grid[0], strict=True):
        _draw_curves(axes, history, panel)
        if guide and panel.guide:
            _write_below(axes, panel.guide)
    return _finish(figure, grid, show, save)


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
    _check_names("basis", basis)
    if color is not None:
        _check_names("color", color)
    if isinstance(titles, str):
        titles = [titles]
    names = [_basis_key(adata, key) for key in ([basis] if isinstance(basis, str) else basis)]
    colors = [color] if isinstance(color, str) or color is None else list(color)
    validate_keys(adata, obs_keys={"color": [key for key in colors if key is not None]})
    labels = [name.removeprefix("X_") for name in names] if titles is None else list(titles)
    if not names or len(labels) != len(names):
        raise ValueError(f"{len(labels)} titles do not fit {len(names)} embeddings")
    points = [_points(adata, name) for name in names]
    show = _resolve_show(show, None, save)
    figure, grid = _axes(len(colors), len(names), EMBEDDING_PANEL, None, show)
    for key, row in zip(colors, grid, strict=True):
        _draw_row(adata, key, points, row, legend)
    for label, axes in zip(labels, grid[0], strict=True):
        axes.set_title(label)
    for name, axes in zip(names, grid[-1], strict=True):
        axes.set_xlabel(f"{_axis_name(name)} 1 and 2", fontsize="small", color=GUIDE_COLOUR)
    _widen_for_legends(figure, grid)
    return _finish(figure, grid, show, save)


def benchmark(
    table: pd.DataFrame,
    model: str = "dra",
    baselines: str | Sequence[str] | None = None,
    metric: str = "nmi",
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
) -> Axes | Figure | None:
    """Plot by how much a model is ahead of others, on each data set and on all.

    Points are mean differences of runs paired by dimensions and seed, lines their 95% intervals
    from a bootstrap over seeds and, for all data sets, over data sets as well. A hollow point is
    a single pair, of which there is no interval. Every data set ×
    dimension weighs the same, as in :func:`dra_scvi.benchmark.summary`.

    Parameters
    ----------
    table
        Rows as :func:`dra_scvi.benchmark.compare` returns them, of any number of data sets.
    model
        Model that is looked at.
    baselines
        One or more models to subtract, a colour and marker each; by default all others.
    metric
        Column that is compared.
    ax
        Draw on these axes.
    show
        Show the figure. By default as ``scanpy.settings.autoshow`` says, unless `ax` or `save`
        is given.
    save
        Write the figure to this file.

    Returns
    -------
    The axes, or None when the figure was shown.

    Raises
    ------
    KeyError
        When the table has no such model or column.
    ValueError
        When the table is of another kind, rows repeat, or no two runs can be paired.

    Examples
    --------
    >>> import pandas as pd
    >>> table = pd.DataFrame({"model": ["pca", "dra"], "nmi": [0.6, 0.7]})
    >>> table = table.assign(dataset="pbmc", n_latent=10, seed=0)
    >>> benchmark(table, show=False).get_legend().get_title().get_text()
    'DRA minus'
    """
    _paired.check_table(table, metric)
    chosen = [baselines] if isinstance(baselines, str) else baselines
    others = _baselines(table, model, chosen)
    pairs = {other: _paired.pairs(table, model, other, metric) for other in others}
    shown = set().union(*(rows["dataset"] for rows in pairs.values()))
    names = [name for name in dict.fromkeys(table["dataset"]) if name in shown]
    if not names:
        raise ValueError(f"no run of {model!r} has a finite partner of the same data set and seed")
    show = _resolve_show(show, ax, save)
    width, height = COMPARISON_SIZE
    n_rows = len(names) + (len(names) > 1)
    height += ROW_HEIGHT * n_rows * (len(others) + 1)
    figure, grid = _axes(1, 1, (width, height), ax, show)
    _draw_differences(grid[0, 0], pairs, names)
    _label_differences(grid[0, 0], names, model, metric)
    if "quick" in table and table["quick"].any():
        grid[0, 0].set_title("quick look, too short for conclusions", fontsize="medium")
    return _finish(figure, grid, show, save)


def _baselines(table: pd.DataFrame, model: str, baselines: Sequence[str] | None) -> list[str]:
    """Check the names of models; by default take all others of the table."""
    models = [str(name) for name in dict.fromkeys(table["model"])]
    for argument, name in [("model", model), *(("baselines", name) for name in baselines or ())]:
        if name not in models:
            raise KeyError(unknown_key(argument, name, "a model of the table", models))
    others = [name for name in baselines or models if name != model]
    if not others:
        raise ValueError(f"the table has no model besides {model!r}: nothing to compare it with")
    return others


def _draw_differences(axes: Axes, pairs: Mapping[str, pd.DataFrame], names: Sequence[str]) -> None:
    """Draw the baselines of a data set below each other, and all data sets last."""
    offsets = np.linspace(-ROW_PART / 2, ROW_PART / 2, len(pairs)) if len(pairs) > 1 else [0.0]
    for index, (baseline, rows) in enumerate(pairs.items()):
        groups = [rows[rows["dataset"] == name] for name in names]
        if len(names) > 1:
            groups.append(rows)
        middle, low, high, n_pairs = np.array([_effect(group) for group in groups]).T
        heights = np.arange(len(groups)) + offsets[index]
        colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
        axes.errorbar(
            middle,
            heights,
            xerr=np.nan_to_num([middle - low, high - middle]).clip(min=0),
            color=colour,
            marker=marker,
            markersize=5,
            linestyle="",
            elinewidth=1.5,
            label=_paired.TITLES.get(baseline, baseline),
        )
        single = n_pairs == 1
        [points] = axes.plot(middle[single], heights[single], color=colour, linestyle="")
        points.set(marker=marker, markersize=5, markerfacecolor="white", zorder=3)


def _effect(differences: pd.DataFrame) -> _Effect:
    if differences.empty:
        return _Effect(np.nan, np.nan, np.nan, 0)
    cells = differences.groupby(_paired.CELL)["difference"].mean()
    return _Effect(float(cells.mean()), *_paired.interval(differences), len(differences))


def _label_differences(axes: Axes, names: Sequence[str], model: str, metric: str) -> None:
    """Name what is drawn; bands group the rows, a line sets all data sets apart from each."""
    labels = [str(name) for name in names]
    for row in range(0, len(names), 2):
        axes.axhspan(row - 0.5, row + 0.5, color=BAND_COLOUR, linewidth=0, zorder=-1)
    if len(names) > 1:
        axes.axhline(len(names) - 0.5, color="black", linewidth=0.8)
        labels.append(ALL_DATA_SETS)
    axes.axvline(0, color="black", linewidth=0.8, zorder=0)
    axes.set_yticks(range(len(labels)), labels)
    if len(names) > 1:
        axes.get_yticklabels()[-1].set_fontweight("bold")
    axes.set_ylim(len(labels) - 0.5, -0.5)
    title = _paired.TITLES.get(model, model)
    metric = METRIC_TITLES.get(metric, metric)
    axes.set_xlabel(f"difference in {metric}, 95% interval\n{title} is ahead right of 0")
    axes.locator_params(axis="x", nbins=6)
    axes.xaxis.set_major_formatter(_signed)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.legend(
        title=f"{title} minus",
        loc="upper left",
        bbox_to_anchor=(1.02, 1.0),
        frameon=False,
        fontsize="small",
        alignment="left",
    )


def _signed(value: float, _: float) -> str:
    """Write a difference with its sign, which 0 has not."""
    return f"{value:+.3g}".replace("-", "\N{MINUS SIGN}") if abs(value) > 1e-12 else "0"


def _history(model_or_history: Any) -> dict[str, pd.Series]:
    """Turn a model's history into one series of numbers by epoch for each name."""
    tables = model_or_history
    if not isinstance(tables, Mapping):
        if not hasattr(model_or_history, "history"):
            kind = type(model_or_history).__name__
            raise TypeError(f"a trained model, or its history, is wanted, not {kind}")
        tables = model_or_history.history
    if not tables:
        raise ValueError("there is no training history: call model.train() first")
    return {str(name): _series(table) for name, table in tables.items()}


def _series(table: pd.DataFrame | pd.Series) -> pd.Series:
    column = table.iloc[:, 0] if isinstance(table, pd.DataFrame) else pd.Series(table)
    return pd.Series(np.asarray(column, dtype=float), index=column.index)


def _panels(history: Mapping[str, pd.Series], keys: Sequence[str] | None) -> list[_Panel]:
    """Choose what to draw where."""
    if keys is not None:
        for key in keys:
            if key not in history:
                raise KeyError(unknown_key("keys", key, "in the training history", history))
        panels = [_Panel("Training", "value", list(keys))]
    else:
        panels = [
            _Panel(title, ylabel, _terms_first(history, prefixes), guide)
            for title, ylabel, prefixes, guide in PANELS
        ]
    panels = [panel for panel in panels if panel.keys]
    if not panels:
        names = ", ".join(history)
        raise ValueError(f"nothing to draw; pass keys=..., the history has: {names}")
    return panels


def _merge(panels: Sequence[_Panel]) -> _Panel:
    """Put all keys into one panel."""
    if len(panels) == 1:
        return panels[0]
    return _Panel("Training", "value", [key for panel in panels for key in panel.keys])


def _terms_first(history: Mapping[str, pd.Series], prefixes: tuple[str, ...]) -> list[str]:
    """Keys of a panel by term, in the order of the panel; training before held-out cells."""
    keys = [key for prefix in prefixes for key in history if key.startswith(prefix)]
    return sorted(keys, key=lambda key: (keys.index(_first_of(keys, key)), "_valid" in key))


def _first_of(keys: Sequence[str], key: str) -> str:
    return next(other for other in keys if _term(other) == _term(key))


def _draw_curves(axes: Axes, history: Mapping[str, pd.Series], panel: _Panel) -> None:
    """Draw one line for each key: a colour for each term, dashes for the held-out cells."""
    from matplotlib.ticker import MaxNLocator

    terms = list(dict.fromkeys(_term(key) for key in panel.keys))
    for key in panel.keys:
        curve = history[key]
        axes.plot(
            curve.index.to_numpy(),
            curve.to_numpy(),
            color=COLOURS[terms.index(_term(key)) % len(COLOURS)],
            linestyle=(0, (3, 1.5)) if key.endswith("_validation") else "-",
            linewidth=1.5,
            marker="o" if len(curve) == 1 else None,
            label=_label(key),
        )
    axes.set(title=panel.title, xlabel="epoch", ylabel=panel.ylabel)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10], integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    _leave_out_start(axes, [history[key] for key in panel.keys])
    axes.legend(frameon=False, fontsize="small")


def _write_below(axes: Axes, text: str) -> None:
    """Write below the label of the x axis, in points from the axes so that nothing overlaps."""
    axes.annotate(
        text,
        (0.5, 0),
        (0, -38),
        xycoords="axes fraction",
        textcoords="offset points",
        ha="center",
        va="top",
        fontsize="small",
        color=GUIDE_COLOUR,
    )


def _leave_out_start(axes: Axes, curves: Sequence[pd.Series]) -> None:
    """Set the upper limit by what comes after the first epochs, where those stand out."""
    later = [curve.iloc[round(START * len(curve)) :] for curve in curves]
    values = np.concatenate([curve[np.isfinite(curve)] for curve in later])
    whole = axes.get_ylim()
    if not values.size or np.ptp(values) == 0:
        return
    top = values.max() + 0.08 * np.ptp(values)
    if whole[1] - whole[0] > 1.3 * (top - whole[0]):
        axes.set_ylim(top=top)


def _term(key: str) -> str:
    return key.removesuffix("_train").removesuffix("_validation")


def _label(key: str) -> str:
    """Name a term as a reader would, and the cells where they are held out."""
    term = _term(key)
    return NAMES.get(term, term.replace("_", " ")) + SUFFIXES.get(key.removeprefix(term), "")


def _check_names(argument: str, names: Any) -> None:
    """Refuse values where names are wanted."""
    listed = [names] if isinstance(names, str) else names
    if not hasattr(listed, "__iter__") or not all(
        key is None or isinstance(key, str) for key in listed
    ):
        raise TypeError(f"{argument} takes a name or a list of names, not {type(names).__name__}")


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


def _resolve_show(show: bool | None, ax: Axes | None, save: str | Path | None) -> bool:
    if show is not None:
        return show
    if ax is not None or save is not None:
        return False
    import scanpy

    return bool(scanpy.settings.autoshow)


def _axes(
    n_rows: int, n_columns: int, size: tuple[float, float], ax: Axes | None, show: bool
) -> tuple[Figure, NDArray[Any]]:
    """Make a grid of axes; only a figure that will be shown is known to pyplot."""
    if ax is not None:
        return ax.figure.figure, np.array([[ax]])
    options: dict[str, Any] = {
        "figsize": (size[0] * n_columns + SIDE, size[1] * n_rows),
        "layout": "constrained",
    }
    if show:
        from matplotlib import pyplot

        figure = pyplot.figure(**options)
    else:
        from matplotlib.figure import Figure

        figure = Figure(**options)
    return figure, figure.subplots(n_rows, n_columns, squeeze=False)


def _finish(
    figure: Figure, grid: NDArray[Any], show: bool, save: str | Path | None
) -> Axes | Figure | None:
    """Save, show and return a figure."""
    if save is not None:
        with atomic_path(save) as temporary:
            kind = temporary.suffix.lstrip(".").lower() or "png"
            figure.savefig(temporary, format=kind, dpi=DOTS_PER_INCH, bbox_inches="tight")
    if show:
        from matplotlib import pyplot

        pyplot.show()
        return None
    return grid[0, 0] if grid.size == 1 else figure
