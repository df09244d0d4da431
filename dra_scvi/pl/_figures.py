"""What all plots share: axes to draw on, and what becomes of a figure."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dra_scvi._argument_kinds import check_kinds
from dra_scvi._outputs.drafts import destination
from dra_scvi._outputs.files import atomic_path, check_parent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray


# Okabe and Ito's colours, which colour-blind readers can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DOTS_PER_INCH = 150
POINTS_PER_INCH = 72
SIDE = 1.0  # inches at the right, at least
GUIDE_COLOUR = "#595959"


def check_names(argument: str, names: Any) -> None:
    """Refuse values where names are wanted."""
    listed = [names] if isinstance(names, str) else names
    if not hasattr(listed, "__iter__") or not all(
        key is None or isinstance(key, str) for key in listed
    ):
        raise TypeError(f"{argument} takes a name or a list of names, not {type(names).__name__}")


def literal(name: object) -> str:
    """Keep matplotlib from reading a name with dollars as mathematics."""
    return str(name).replace("$", r"\$")


def is_shown(show: bool | None, ax: Axes | None, save: str | Path | None) -> bool:
    """Tell whether a figure is to be shown, as scanpy would where nobody says so.

    Where it cannot be saved, that is said before it is drawn.
    """
    check_kinds(is_shown, locals())
    if save is not None:
        _check_kind(Path(save))
        check_parent(destination(Path(save)))
    if show is not None:
        return show
    if ax is not None or save is not None:
        return False
    import scanpy

    return bool(scanpy.settings.autoshow)


def _check_kind(path: Path) -> None:
    """Check that matplotlib writes files of a suffix."""
    from matplotlib.backend_bases import FigureCanvasBase

    kinds = sorted(FigureCanvasBase.get_supported_filetypes())
    kind = path.suffix.lstrip(".").lower()
    if kind and kind not in kinds:
        raise ValueError(
            f"save={str(path)!r}: figures are not written as .{kind}; the name may end in "
            f"{', '.join(f'.{known}' for known in kinds)}"
        )


def make_axes(
    n_panels: int, n_columns: int, size: tuple[float, float], ax: Axes | None, show: bool
) -> tuple[Figure, NDArray[Any]]:
    """Make axes in a grid; only a figure that will be shown is known to pyplot."""
    if ax is not None:
        return ax.figure.figure, np.array([[ax]])
    n_columns = min(n_columns, n_panels)
    n_rows = -(-n_panels // n_columns)
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
    grid = figure.subplots(n_rows, n_columns, squeeze=False)
    for surplus in grid.flat[n_panels:]:
        surplus.remove()
    return figure, grid


def finish(
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
