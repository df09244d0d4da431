"""One panel of an embedding: scanpy's scatter plot, its colours, its scale and its labels."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from dra_scvi.pl._figures import COLOURS, GUIDE_COLOUR, POINTS_PER_INCH
from dra_scvi.pl._values import MISSING, as_categories, is_numeric

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from numpy.typing import ArrayLike, NDArray

    from dra_scvi.pl._values import Values

Legend = Literal["right", "numbered", "on data", "none"]

# For more categories: with Tol's wine, olive and indigo, and five that are far from all of them in
# normal sight and in each kind of colour blindness, as simulated by Machado et al. (2009).
MORE_COLOURS = (
    (*COLOURS, "#882255", "#999933", "#332288")
    + ("#9911FF", "#553300", "#9977FF", "#AACC88", "#886633")
)  # fmt: skip
MISSING_COLOUR = "#D3D3D3"
# least and greatest of the colours of scanpy that are told from black, and from paper
LUMINANCE = (0.05, 0.7)
PANEL = (3.4, 3.2)  # inches
COVERED = 1 / 8  # share of a panel that the dots would cover if none overlapped
DOT_AREAS = (0.5, 20.0)  # least and greatest, in square points
EDGE = 0.08  # width of a dot's edge, in roots of its area
OTHERS = "others"
HIDDEN = 0.3  # share of the cells of a cluster that its label may lie on
STEPS = 30  # halves of a label, how far it may be moved in each direction
GAP = 3.0  # points from a cell to a label beside it


class Style(NamedTuple):
    """What all panels of a figure share."""

    legend: Legend
    size: ArrayLike | None
    cmap: Any
    palette: Any
    more: dict[str, Any]


class Panel(NamedTuple):
    """One embedding in one colour."""

    title: str
    axis: str
    points: NDArray[Any]
    values: Values | None
    limits: tuple[Any, Any] = (None, None)
    has_legend: bool = True
    is_named_beside: bool = False  # what is the colour, where the title does not say so


def draw_panel(axes: Axes, panel: Panel, style: Style) -> None:
    """Draw cells; those without a value lie beneath, high values on top of low ones."""
    if panel.values is None:
        _scatter(axes, panel, style, None, na_color=COLOURS[0])
    elif is_numeric(panel.values.column):
        _draw_numbers(axes, panel, panel.values, style)
    else:
        _draw_categories(axes, panel, panel.values, style)
    axes.set_title(panel.title)


def _scatter(
    axes: Axes, panel: Panel, style: Style, column: pd.Series | None, **options: Any
) -> None:
    """Have scanpy draw dots that shrink with their number; large plots stay small files."""
    import scanpy as sc
    from anndata import AnnData

    n_cells = len(panel.points)
    obs = pd.DataFrame(index=np.arange(n_cells).astype(str))
    name = None if column is None else str(column.name)
    if column is not None:
        obs[name] = column.array
    uns = {f"{name}_colors": options.pop("colours", [])}
    area = _dot_area(n_cells) if style.size is None else style.size
    sc.pl.embedding(
        AnnData(obs=obs, obsm={panel.axis: panel.points}, uns=uns),
        panel.axis,
        color=name,
        ax=axes,
        show=False,
        **{
            "size": area,
            "linewidths": EDGE * float(np.sqrt(np.mean(np.asarray(area, dtype=float)))),
            "edgecolor": "white",
            "marker": "o",
            "colorbar_loc": None,
            "legend_loc": "none",
            "legend_fontsize": "small",
            **options,
            **style.more,
        },
    )
    for drawn in axes.collections:
        drawn.set_rasterized(True)
    axes.spines[:].set(linewidth=0.6, color=GUIDE_COLOUR)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set(fontsize="small", color=GUIDE_COLOUR)


def _dot_area(n_cells: int) -> float:
    """Share out a part of the panel among the cells, in square points."""
    width, height = PANEL
    part = COVERED * width * height * POINTS_PER_INCH**2
    return float(np.clip(part / max(n_cells, 1), *DOT_AREAS))


def _draw_numbers(axes: Axes, panel: Panel, values: Values, style: Style) -> None:
    column = values.column.astype(float).where(lambda numbers: np.isfinite(numbers))
    low, high = panel.limits
    options = {"vmin": bound_of(low, "vmin"), "vmax": bound_of(high, "vmax"), "cmap": style.cmap}
    _scatter(axes, panel, style, column, na_color=MISSING_COLOUR, **options)
    if not panel.has_legend:
        return
    mappable = axes.collections[-1]
    least, most = mappable.get_clim()
    beyond = ["min"] * bool(column.min() < least) + ["max"] * bool(column.max() > most)
    extend = "both" if len(beyond) == 2 else (beyond or ["neither"])[0]
    named = [values.title] * panel.is_named_beside + [values.unit] * bool(values.unit)
    named += [f"grey: {MISSING}"] * bool(column.isna().any())
    scale = axes.inset_axes((1.04, 0.1, 0.04, 0.8))
    axes.figure.colorbar(mappable, cax=scale, label=", ".join(named), extend=extend)


def bound_of(bound: Any, argument: str) -> Any:
    """Return what scanpy takes for an end of a scale: numbers and functions as they are."""
    if bound is None:
        bound = "p0" if argument == "vmin" else "p100"
    if not isinstance(bound, str):
        return bound
    try:
        share = float(bound.removeprefix("p"))
    except ValueError:
        share = -1.0
    if not (bound.startswith("p") and 0 <= share <= 100):
        raise ValueError(f"{argument}={bound!r}: a number, or a percentile such as 'p99'")
    return partial(_percentile, share=share)


def _percentile(values: ArrayLike, share: float) -> float:
    """Percentile of what is known or, where it is that of most cells, the extreme."""
    known = np.asarray(values, dtype=float)
    known = known[np.isfinite(known)]
    if not known.size:
        return share / 100
    found = np.percentile(known, share)
    opposite, extreme = (known.min(), known.max()) if share > 50 else (known.max(), known.min())
    return float(extreme if found == opposite else found)


def _draw_categories(axes: Axes, panel: Panel, values: Values, style: Style) -> None:
    column = as_categories(values.column)
    names = list(column.cat.categories)
    beside = style.legend in ("right", "numbered") and panel.has_legend
    _scatter(
        axes,
        panel,
        style,
        column,
        colours=_stored_or_distinct(values.colours, names),
        palette=_by_name(style.palette, names),
        na_color=MISSING_COLOUR,
        legend_loc="right margin" if beside else "none",
    )
    groups = style.more.get("groups")
    chosen = names if groups is None else list(np.atleast_1d(groups))
    numbers = {name: str(number) for number, name in enumerate(names, start=1)}
    is_numbered = style.legend == "numbered" and not all(name.isdigit() for name in names)
    if style.legend in ("numbered", "on data"):
        labels = {name: numbers[name] if is_numbered else name for name in names if name in chosen}
        _label(axes, panel.points, column, labels)
    if beside and (legend := axes.get_legend()) is not None:
        legend.set_title(values.title if panel.is_named_beside else "")
        legend.set_alignment("left")
        for text in legend.get_texts():
            name = text.get_text()
            if is_numbered and name in numbers:
                text.set_text(f"{numbers[name]}  {name}")
            elif groups is not None and name not in chosen:
                text.set_text(OTHERS)  # scanpy says "NA" of all that are not in groups
            text.set_parse_math(False)  # dollars in a name are no mathematics


def _stored_or_distinct(stored: Mapping[str, str], names: Sequence[str]) -> list[str]:
    """Take the colours stored with the data, or as many as the categories need."""
    if all(name in stored for name in names):
        return [str(stored[name]) for name in names]
    from matplotlib.colors import to_rgb
    from scanpy.plotting import palettes

    def is_seen(colour: str) -> bool:
        luminance = np.dot(to_rgb(colour), (0.2126, 0.7152, 0.0722))
        return bool(LUMINANCE[0] < luminance < LUMINANCE[1])

    many = palettes.default_102
    for colours in (COLOURS, MORE_COLOURS, [c for c in many if is_seen(c)], many):
        if len(names) <= len(colours):
            return list(colours[: len(names)])
    return [many[i % len(many)] for i in range(len(names))]


def _by_name(palette: Any, names: Sequence[str]) -> Any:
    """Check that a dictionary of colours has all categories; other palettes are scanpy's."""
    if not isinstance(palette, Mapping):
        return palette
    palette = {str(name): colour for name, colour in palette.items()}
    if missing := [name for name in names if name not in palette]:
        raise KeyError(f"palette has no colour for {', '.join(map(repr, missing))}")
    return palette


def _label(axes: Axes, points: NDArray[Any], column: pd.Series, labels: Mapping[str, str]) -> None:
    """Write on the cell of each category that is nearest to the middle of its cells."""
    from matplotlib.patheffects import withStroke

    for name, label in labels.items():
        cells = points[(column == name).to_numpy(), :2]
        nearest = np.argmin(np.square(cells - np.median(cells, axis=0)).sum(1))
        text = axes.annotate(
            label,
            cells[nearest],
            (0, 0),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize="small",
            parse_math=False,
            arrowprops={"arrowstyle": "-", "linewidth": 0.5, "shrinkA": 0, "shrinkB": 0},
        )
        text.set(zorder=3, path_effects=[withStroke(linewidth=3, foreground="white")])
        text.set_label(name)
        text.set_in_layout(False)  # it stays in the axes


def spread_labels(axes: Axes, panel: Panel) -> None:
    """Move labels off small clusters, into the axes and off each other, in a figure laid out."""
    if not axes.texts or panel.values is None:
        return
    column = as_categories(panel.values.column)
    frame, pixels = axes.get_window_extent(), axes.figure.dpi / POINTS_PER_INCH
    placed: list[Any] = []
    labels = []
    for text in axes.texts:
        box = text.get_window_extent()
        cells = axes.transData.transform(panel.points[(column == text.get_label()).to_numpy(), :2])
        labels.append((text, box, _off_cells(box, cells, frame, GAP * pixels)))
    for text, start, box in sorted(labels, key=lambda label: -label[2].y0):
        placed.append(_free(box, placed, frame))
        shift = (placed[-1].min - start.min) / pixels
        text.set_position(tuple(shift))


def _free(box: Any, placed: Sequence[Any], frame: Any) -> Any:
    """Find the nearest place in a frame, in steps of half a label, where no other label is."""
    steps = [
        (across / 2, up / 2)
        for across in range(-STEPS, STEPS + 1)
        for up in range(-STEPS, STEPS + 1)
    ]
    shifts = np.array(steps) * (box.width + 1, box.height + 1)
    for shift in shifts[np.argsort(np.hypot(*shifts.T), kind="stable")]:
        moved = box.translated(*shift)
        is_inside = np.all((moved.min >= frame.min) & (moved.max <= frame.max))
        if (is_inside or not shift.any()) and not moved.count_overlaps(placed):
            return moved
    return box


def _off_cells(box: Any, cells: NDArray[Any], frame: Any, gap: float) -> Any:
    """Put a label that hides its cells above or, at the edge, below them; and all into a frame."""
    is_hidden = np.all((cells >= box.min) & (cells <= box.max), axis=1)
    if is_hidden.mean() > HIDDEN:
        highest = cells[is_hidden, 1].max() + gap
        lowest = cells[is_hidden, 1].min() - gap
        is_room = highest + box.height < frame.y1
        box = box.translated(0, highest - box.y0 if is_room else lowest - box.y1)
    return box.translated(max(frame.x0 - box.x0, min(frame.x1 - box.x1, 0)), 0)
