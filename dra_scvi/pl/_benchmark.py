"""Models compared: paired differences with their intervals, beside the scores themselves."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dra_scvi._data.columns import unknown_key
from dra_scvi.benchmark import _pairs
from dra_scvi.benchmark._statistics import interval
from dra_scvi.pl._figures import COLOURS, finish, is_shown, make_axes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


COMPARISON_SIZE = (6.0, 0.9)  # inches: width, and height without rows
ROW_HEIGHT = 0.22  # inches for each baseline of each data set, and the name above them
SCORES_AT = (1.1, 1.25)  # right of the axes, in their widths: the model's, and the baseline's
MARKERS = ("o", "s", "D", "^", "v", "P", "X")  # told apart without colours
BAND_COLOUR = "#F2F2F2"
ALL_DATA_SETS = "all data sets"


class _Effect(NamedTuple):
    """Mean scores and difference, its interval, NaN where it is not known, and the runs."""

    own: float
    other: float
    difference: float
    low: float
    high: float
    n_pairs: int


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

    A row for each other model, under the name of the data set; at the right the mean scores of
    both, of the same runs. Points are mean differences of runs paired by dimensions and seed,
    lines their 95% intervals from a bootstrap over seeds and, for all data sets, over data sets
    as well. A hollow point is a single pair, of which there is no interval. Every data set ×
    dimension weighs the same, as in :func:`dra_scvi.benchmark.summary`.

    Parameters
    ----------
    table
        Rows as :func:`dra_scvi.benchmark.compare` returns them, of any number of data sets.
    model
        Model that is looked at.
    baselines
        One or more models to subtract, a row, colour and marker each; by default all others.
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
    >>> axes = benchmark(table, show=False)
    >>> [label.get_text() for label in axes.get_yticklabels()]
    ['pbmc', 'PCA']
    >>> [text.get_text() for text in axes.texts]
    ['DRA', 'other', '0.700', '0.600']
    """
    _pairs.check_table(table, metric)
    chosen = [baselines] if isinstance(baselines, str) else baselines
    others = _baselines(table, model, chosen)
    pairs = {other: _with_scores(table, model, other, metric) for other in others}
    shown = set().union(*(rows["dataset"] for rows in pairs.values()))
    names = [name for name in dict.fromkeys(table["dataset"]) if name in shown]
    if not names:
        raise ValueError(f"no run of {model!r} has a finite partner of the same data set and seed")
    show = is_shown(show, ax, save)
    width, height = COMPARISON_SIZE
    n_rows = (len(names) + (len(names) > 1)) * (1 + len(others))
    height += ROW_HEIGHT * n_rows
    figure, grid = make_axes(1, 1, (width, height), ax, show)
    _draw_differences(grid[0, 0], pairs, names, _pairs.title(model))
    _label_differences(grid[0, 0], others, names, model, metric)
    if "quick" in table and table["quick"].any():
        grid[0, 0].set_title("quick look, too short for conclusions", fontsize="medium")
    return finish(figure, grid, show, save)


def _with_scores(table: pd.DataFrame, model: str, other: str, metric: str) -> pd.DataFrame:
    """Pair the runs of two models, and keep what the first one scored."""
    own = table.loc[table["model"] == model, [*_pairs.PAIR, metric]]
    pairs = _pairs.pairs(table, model, other, metric)
    return pairs.merge(own.rename(columns={metric: "own"}), on=_pairs.PAIR)


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


def _draw_differences(
    axes: Axes, pairs: Mapping[str, pd.DataFrame], names: Sequence[str], title: str
) -> None:
    """Draw the baselines of a data set below each other, and all data sets last."""
    write = partial(axes.text, transform=axes.get_yaxis_transform(), ha="center", va="center")
    for at, head in zip(SCORES_AT, (title, "other"), strict=True):
        write(at, 0, head, fontsize="small", fontweight="bold")
    for index, (baseline, rows) in enumerate(pairs.items()):
        groups = [rows[rows["dataset"] == name] for name in names]
        if len(names) > 1:
            groups.append(rows)
        *scores, middle, low, high, n_pairs = np.array([_effect(group) for group in groups]).T
        heights = np.arange(len(groups)) * (1 + len(pairs)) + 1 + index
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
            label=_pairs.title(baseline),
        )
        single = n_pairs == 1
        [points] = axes.plot(middle[single], heights[single], color=colour, linestyle="")
        points.set(marker=marker, markersize=5, markerfacecolor="white", zorder=3)
        for height, *both in zip(heights, *scores, strict=True):
            for at, score in zip(SCORES_AT, both, strict=True):
                write(at, height, "" if np.isnan(score) else f"{score:.3f}", fontsize="small")


def _effect(pairs: pd.DataFrame) -> _Effect:
    if pairs.empty:
        return _Effect(np.nan, np.nan, np.nan, np.nan, np.nan, 0)
    cells = pairs.groupby(_pairs.CELL)[["own", "difference"]].mean()
    own, difference = cells.astype(float).mean()
    return _Effect(own, own - difference, difference, *interval(pairs), len(pairs))


def _label_differences(
    axes: Axes, others: Sequence[str], names: Sequence[str], model: str, metric: str
) -> None:
    """Name data sets and models; bands group the rows, a line sets all data sets apart."""
    groups = [*map(str, names), *[ALL_DATA_SETS] * (len(names) > 1)]
    n_rows = 1 + len(others)
    labels = []
    for row, group in enumerate(groups):
        labels += [group, *(_pairs.title(other) for other in others)]
        if row % 2 == 0:
            band = (row * n_rows - 0.5, (row + 1) * n_rows - 0.5)
            axes.axhspan(*band, color=BAND_COLOUR, linewidth=0, zorder=-1)
    if len(names) > 1:
        axes.axhline(len(names) * n_rows - 0.5, color="black", linewidth=0.8)
    axes.axvline(0, color="black", linewidth=0.8, zorder=0)
    axes.set_yticks(range(len(labels)), labels)
    for label in axes.get_yticklabels()[::n_rows]:
        label.set_fontweight("bold")
    axes.set_ylim(len(labels) - 0.5, -0.5)
    title = _pairs.title(model)
    metric = _pairs.MEASURES.get(metric, metric)
    axes.set_xlabel(f"difference in {metric}, 95% interval\n{title} is ahead right of 0")
    axes.locator_params(axis="x", nbins=6)
    axes.xaxis.set_major_formatter(_signed)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)


def _signed(value: float, _: float) -> str:
    """Write a difference with its sign, which 0 has not."""
    return f"{value:+.3g}".replace("-", "\N{MINUS SIGN}") if abs(value) > 1e-12 else "0"
