"""Whether probabilities are what they say: of cells called with 0.8, eight in ten are right."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from dra_scvi._argument_kinds import check_kinds, check_number, matrix, one_per_cell
from dra_scvi.metrics._input import label_codes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

TOLERANCE = 1e-3


def calibration(
    probabilities: pd.DataFrame | ArrayLike,
    labels: ArrayLike,
    n_bins: int = 10,
    *,
    types: Sequence[Any] | None = None,
) -> dict[str, Any]:
    """Compare how sure a classifier is with how often it is right.

    Of each cell the most probable type counts, and its probability. A cell whose true type is not
    among the types is taken for another one, which is wrong.

    Parameters
    ----------
    probabilities
        Probability of each type, ``(n_cells, n_types)``: a table whose columns are the types, or
        an array, as :func:`dra_scvi.tl.transfer_labels` leaves it in ``obsm``.
    labels
        Known type of every cell, ``(n_cells,)``.
    n_bins
        Bins of equal width, between 0 and 1, that cells are sorted into by their probability.
    types
        What the columns of an array stand for.

    Returns
    -------
    Dictionary with

    - ``"ece"``: expected calibration error, the mean over cells of the absolute difference of
      both in the bin of the cell, in [0, 1], lower is better;
    - ``"accuracy"``: share of cells whose most probable type is the true one;
    - ``"confidence"``: mean probability of that type; above ``"accuracy"`` it boasts;
    - ``"bins"``: the reliability curve, a table with a row for each bin that has cells: its
      ``"lower"`` and ``"upper"`` end (an upper end belongs to the next bin, 1 to the last), the
      number of cells ``"n_cells"``, their mean ``"confidence"`` and their ``"accuracy"``.

    Raises
    ------
    TypeError
        An argument is of another kind.
    ValueError
        Rows are no probabilities, a label is missing, or numbers do not match.

    References
    ----------
    Guo, C., Pleiss, G., Sun, Y. & Weinberger, K. Q. (2017). On calibration of modern neural
    networks. ICML.

    Examples
    --------
    >>> from dra_scvi import metrics
    >>> probabilities = [[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.4, 0.6]]
    >>> found = metrics.calibration(probabilities, ["B", "B", "T", "T"], 2, types=["B", "T"])
    >>> found["accuracy"], round(found["confidence"], 6), round(found["ece"], 6)
    (0.75, 0.75, 0.0)
    """
    check_kinds(calibration, locals())
    check_number(n_bins, "n_bins", least=1)
    shares, names = _checked(probabilities, types)
    values = one_per_cell(labels, len(shares), "labels")
    label_codes(values, len(shares), "labels")  # none is missing
    called = np.asarray(names, dtype=object)[shares.argmax(axis=1)]
    true = np.asarray(values, dtype=object)
    is_right = called == true
    is_other_kind = ~is_right.astype(bool) & (called.astype(str) == true.astype(str))
    if is_other_kind.any():
        first = int(is_other_kind.argmax())
        raise ValueError(
            f"labels has {true[first]!r} where types has {called[first]!r}: name each type in one "
            "way, as by labels.astype(str)."
        )
    bins = reliability(shares.max(axis=1), is_right.astype(bool), n_bins)
    weight = bins["n_cells"] / len(shares)
    return {
        "ece": float((weight * (bins["accuracy"] - bins["confidence"]).abs()).sum()),
        "accuracy": float(is_right.mean()),
        "confidence": float(shares.max(axis=1).mean()),
        "bins": bins,
    }


def reliability(
    confidence: NDArray[np.floating], is_right: NDArray[np.bool_], n_bins: int
) -> pd.DataFrame:
    """Mean probability and share of right answers, by bins of the former; empty ones left out."""
    place = np.minimum((confidence * n_bins).astype(np.int64), n_bins - 1)
    n_cells = np.bincount(place, minlength=n_bins)
    used = np.flatnonzero(n_cells)
    sums = [np.bincount(place, weights=w, minlength=n_bins) for w in (confidence, is_right)]
    return pd.DataFrame(
        {
            "lower": used / n_bins,
            "upper": (used + 1) / n_bins,
            "n_cells": n_cells[used],
            "confidence": sums[0][used] / n_cells[used],
            "accuracy": sums[1][used] / n_cells[used],
        }
    )


def _checked(
    probabilities: pd.DataFrame | ArrayLike, types: Sequence[Any] | None
) -> tuple[NDArray[np.float64], Sequence[Any]]:
    """Return probabilities, and what their columns stand for."""
    shares = matrix(probabilities, "probabilities")
    if shares.ndim != 2 or 0 in shares.shape:
        raise ValueError(
            "probabilities must be of shape (n_cells, n_types), neither of them zero; got "
            f"{shares.shape}."
        )
    shares = shares.astype(np.float64)
    names = list(getattr(probabilities, "columns", ()) if types is None else types)
    if len(names) != shares.shape[1]:
        raise ValueError(
            f"probabilities has {shares.shape[1]} columns, and {len(names)} types are named; pass "
            "types, one for each column."
        )
    is_fair = np.isfinite(shares).all(axis=1) & (shares >= 0).all(axis=1)
    is_fair &= np.abs(shares.sum(axis=1) - 1) <= TOLERANCE
    if not is_fair.all():
        raise ValueError(
            f"probabilities of {int((~is_fair).sum())} of {len(shares)} cells are negative, not "
            f"finite, or do not sum to 1 (first: row {int(np.argmin(is_fair))})."
        )
    return shares, names
