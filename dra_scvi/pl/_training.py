"""Curves of training: every term of the objective, epoch by epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from dra_scvi._argument_kinds import check_kinds
from dra_scvi._data.columns import unknown_key
from dra_scvi.pl._figures import COLOURS, GUIDE_COLOUR, finish, is_shown, make_axes

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


CURVES_PANEL = (4.2, 3.2)  # width and height in inches
GUIDE_LINE = 0.18  # inches for each line below a panel
SUFFIXES = {"_train": "", "_validation": ", held-out cells"}
MOST = 5  # curves that share a panel with their names
DASHES = (0, (3, 1.5))  # of held-out cells
START = 0.03  # share of the epochs whose heights do not set the scale

# What a term says, and its own name.
NAMES = {
    "elbo": "all errors (negative ELBO)",
    "reconstruction_loss": "error of the counts (reconstruction)",
    "latent_divergence": "embedding against prior (codes)",
    "data_divergence": "decoded against real cells (data)",
    "kl_local": "information in the embedding (KL)",
    "kl_weight": "weight of the information (KL)",
}
# Title, y label, how the keys of a panel begin, and what a training that went well looks like.
PANELS = (
    (
        "How well counts are explained (loss)",
        "nats per cell",
        ("elbo", "reconstruction_loss"),
        "Lower is better: falls, then levels off.",
    ),
    (
        "What discriminators tell apart (divergence)",
        "nats",
        ("latent_divergence", "data_divergence"),
        "A rise is no failure: discriminators get better at telling\n"
        "decoded cells, which have no noise, from real ones (2 at\n"
        "most). The embedding should stay near 0.",
    ),
    (
        "What the embedding holds (Kullback-Leibler)",
        "nats per cell",
        ("kl_local",),
        "Rises as the embedding takes up what sets cells apart, may\n"
        "drop where the prior starts, then steady. At 0 it holds nothing.",
    ),
)
HELD_OUT = "Dashed: close to training. If it rises, train for fewer epochs."
NOT_HELD_OUT = "For cells that are held out: train(check_val_every_n_epoch=1)."


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

    A colour for each term, dashes for held-out cells, which a training with
    ``check_val_every_n_epoch=1`` or ``early_stopping=True`` records. The first epochs, far above
    the rest, do not set the scale.

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
        Write below each panel what a training that went well looks like, and why a curve rises.

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
    'How well counts are explained (loss)'
    """
    check_kinds(training, locals())
    history = _history(model_or_history)
    panels = _panels(history, [keys] if isinstance(keys, str) else keys)
    if ax is not None and len(panels) > 1:
        panels = [_Panel("Training", "value", [key for panel in panels for key in panel.keys])]
    show = is_shown(show, ax, save)
    width, height = CURVES_PANEL
    lines = [len(panel.guide.splitlines()) for panel in panels]
    height += GUIDE_LINE * max(lines) * guide
    figure, grid = make_axes(len(panels), len(panels), (width, height), ax, show)
    for panel, axes in zip(panels, grid[0], strict=True):
        _draw_curves(axes, history, panel)
        if guide and panel.guide:
            _write_below(axes, panel.guide)
    return finish(figure, grid, show, save)


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
    history = {}
    for name, table in tables.items():
        column = table.iloc[:, 0] if isinstance(table, pd.DataFrame) else pd.Series(table)
        history[str(name)] = pd.Series(np.asarray(column, dtype=float), index=column.index)
    return history


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
        # how to read held-out cells, or how to come by them
        is_drawn = any(key.endswith("_validation") for key in panels[0].keys)
        guide = f"{panels[0].guide}\n{HELD_OUT if is_drawn else NOT_HELD_OUT}"
        panels[0] = panels[0]._replace(guide=guide)
    panels = [panel for panel in panels if panel.keys]
    if not panels:
        names = ", ".join(history)
        raise ValueError(f"nothing to draw; pass keys=..., the history has: {names}")
    return panels


def _terms_first(history: Mapping[str, pd.Series], prefixes: tuple[str, ...]) -> list[str]:
    """Keys of a panel by term, in the order of the panel; training before held-out cells."""
    keys = [key for prefix in prefixes for key in history if key.startswith(prefix)]
    terms = list(map(_term, keys))
    return sorted(keys, key=lambda key: (terms.index(_term(key)), "_valid" in key))


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
            linestyle=DASHES if key.endswith("_validation") else "-",
            linewidth=1.5,
            marker="o" if len(curve) == 1 else None,
            label=_label(key),
        )
    axes.set(title=panel.title, xlabel="epoch", ylabel=panel.ylabel)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
    axes.spines[["top", "right"]].set_visible(False)
    _leave_out_start(axes, [history[key] for key in panel.keys])
    legend = axes.legend(handles=_legend_lines(axes), frameon=False, fontsize="small")
    if len(panel.keys) > MOST:  # there is no room left among the curves
        legend.set(loc="center left", bbox_to_anchor=(1.0, 0.5))


def _legend_lines(axes: Axes) -> list[Any]:
    """Name a term once, and dashes once where its curve for other cells is drawn as well."""
    from matplotlib.lines import Line2D

    lines, names = axes.get_legend_handles_labels()
    suffix = SUFFIXES["_validation"]
    twins = [name.endswith(suffix) and name.removesuffix(suffix) in names for name in names]
    if not any(twins):
        return lines
    dashes = Line2D([], [], color=GUIDE_COLOUR, linestyle=DASHES, label=suffix.lstrip(", "))
    return [line for line, is_twin in zip(lines, twins, strict=True) if not is_twin] + [dashes]


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
