"""Figures of the page: drawn by `pl`, kept in the page itself, each told in words as well."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any, NamedTuple

from dra_scvi import pl
from dra_scvi._data.columns import counted
from dra_scvi.pl._training import PANELS
from dra_scvi.pl._values import Lookup

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd
    from anndata import AnnData

    from dra_scvi.pl._scatter import Legend

DOTS_PER_INCH = 150
MOST_CATEGORIES = 48
NAMES_TOLD = 12


class Figure(NamedTuple):
    """A figure, or why there is none."""

    title: str
    sentence: str
    alt: str = ""
    source: str = ""


def draw_curves(history: Mapping[str, pd.DataFrame]) -> list[Figure]:
    """Draw each part of the objective by epoch, with what it looks like where all went well."""
    figures = []
    for title, _, prefixes, guide in PANELS:
        part = {name: table for name, table in history.items() if name.startswith(prefixes)}
        if part:
            figures.append(_curves(title, part, None, " ".join(guide.split())))
    if not figures and history:  # of the released program
        figures.append(_curves("Losses", history, list(history), "They should level off."))
    return figures


def _curves(
    title: str, history: Mapping[str, pd.DataFrame], keys: list[str] | None, sentence: str
) -> Figure:
    drawn = pl.training(history, keys, show=False, guide=False)
    return Figure(title, sentence, _tell(title, history), _embed(drawn))


def draw_umap(
    adata: AnnData,
    basis: str,
    column: pd.Series,
    title: str,
    sentence: str,
    legend: Legend = "numbered",
) -> Figure:
    """Draw cells in two dimensions, coloured by categories."""
    import anndata

    key, names = str(column.name), [str(name) for name in column.cat.categories]
    if len(names) > MOST_CATEGORIES:
        return Figure(title, f"Not drawn: {len(names)} names cannot be told apart by colour.")
    stored = Lookup(adata)(column.name).colours  # of categories that no cell has as well
    colours = [stored[name] for name in names if name in stored]
    cells = anndata.AnnData(
        obs=column.to_frame(key), obsm={basis: adata.obsm[basis]}, uns={f"{key}_colors": colours}
    )
    drawn = pl.embedding(cells, basis, color=key, legend=legend, show=False)
    shown = ", ".join(names[:NAMES_TOLD]) + ", ..." * (len(names) > NAMES_TOLD)
    told = counted(adata.n_obs, "cell", "cells")
    alt = f"{basis.removeprefix('X_').upper()} of {told} coloured by {key}: {shown}"
    return Figure(title, sentence, alt, _embed(drawn))


def _tell(title: str, history: Mapping[str, pd.DataFrame]) -> str:
    """Tell curves in words, for those who do not see them."""
    ends = [
        f"{name.removesuffix('_train').replace('_', ' ')} from {table.iloc[0, 0]:.3g} to "
        f"{table.iloc[-1, 0]:.3g}"
        for name, table in history.items()
    ]
    n_epochs = max(len(table) for table in history.values())
    return f"{title} over {counted(n_epochs, 'epoch', 'epochs')}: {'; '.join(ends)}"


def _embed(drawn: Any) -> str:
    """Turn a figure, or its axes, into the address of an image that holds it."""
    figure = getattr(drawn, "figure", None) or drawn
    for axes in figure.axes:
        axes.set_title("")  # it is the heading on the page
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DOTS_PER_INCH, bbox_inches="tight")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
