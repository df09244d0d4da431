"""Checks of what a user hands over, made in full before any work is done.

Every entry of the count matrix is looked at, in blocks, so that one bad value among millions is
found, named and counted here rather than in the middle of training.
"""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import sparse

from dra_scvi._data.columns import NAMES_SHOWN, counted, named_layers, validate_keys
from dra_scvi._data.matrices import blocks, check_structure, check_type, place_of, stored_values
from dra_scvi._exceptions import InvalidCountsError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anndata import AnnData
    from numpy.typing import NDArray


logger = logging.getLogger("dra_scvi")
FLOAT32_LIMIT = 2**24
LOG_CEILING = 20.0
LEAST_CELLS = 3

# In the order in which they are reported: the first one present makes the message.
FAULTS = {
    "nan": ("NaN value", "NaN values"),
    "infinite": ("infinite value", "infinite values"),
    "negative": ("negative value", "negative values"),
    "non-integer": ("non-integer value", "non-integer values"),
}


class _Fault(NamedTuple):
    """How often a fault occurs, and its first place in row-major order."""

    number: int
    row: int
    column: int
    value: float

    def merge(self, other: _Fault | None) -> _Fault:
        """Add the counts and keep the place that comes first."""
        if other is None:
            return self
        first = min(self, other, key=lambda fault: (fault.row, fault.column))
        return first._replace(number=self.number + other.number)


@dataclass
class _Scan:
    """What one pass over the matrix has seen."""

    occupied: NDArray[np.bool_]
    expressed: NDArray[np.bool_]
    maximum: float = 0.0
    faults: dict[str, _Fault] = field(default_factory=dict)


def validate_counts(
    adata: AnnData,
    layer: str | None = None,
    batch_key: str | None = None,
    *,
    allow_noninteger: bool = False,
    to_train: bool = True,
) -> None:
    """Check that a matrix holds raw counts, looking at every stored value, block by block.

    The :class:`InvalidCountsError` names the layer, the first cell and gene, the number of values
    and the remedy; ``error.report`` has the same as data. Where a model is to learn from the cells
    (`to_train`), there must be three of them or more, and counts in every batch; cells to be
    embedded may be few, or empty. `allow_noninteger` turns the error about such values into a
    warning. Warned of are cells without counts, repeated cell names, and counts that float32 would
    round.

    >>> from anndata import AnnData
    >>> validate_counts(AnnData(np.array([[1.0, 0.0], [-2.0, 5.0], [0.0, 3.0]])))
    Traceback (most recent call last):
    ...
    dra_scvi._exceptions.InvalidCountsError: adata.X holds 1 negative value (first: cell '1', ...
    """
    validate_keys(adata, layer, {"batch_key": batch_key})
    _check_shape(adata, LEAST_CELLS if to_train else 1)
    _check_gene_names(adata)
    matrix = adata.X if layer is None else adata.layers[layer]
    where = place_of(layer)
    check_type(matrix, where, to_train)
    check_structure(matrix, where)
    scan = _scan(matrix, where)
    _raise_faults(adata, layer, scan, allow_noninteger, to_train)
    if to_train:
        _check_occupied(adata, where, scan, batch_key)
    silent = int((~scan.expressed).sum())
    if silent:
        logger.info("%s: %s no counts.", where, counted(silent, "gene has", "genes have"))
    for message in _remarks(adata, layer, scan, to_train):
        warnings.warn(message, stacklevel=2)


def _check_shape(adata: AnnData, least_cells: int) -> None:
    for number, what in ((adata.n_obs, "cells"), (adata.n_vars, "genes")):
        if number == 0:
            raise InvalidCountsError(
                f"adata has no {what}: nothing to work on. Check earlier filters."
            )
    if adata.n_obs < least_cells:
        number = counted(adata.n_obs, "cell", "cells")
        raise InvalidCountsError(
            f"adata has only {number}; at least {least_cells} are needed to train a model."
        )


def _check_gene_names(adata: AnnData) -> None:
    repeated = adata.var_names[adata.var_names.duplicated()].unique()
    if len(repeated):
        raise ValueError(
            f"{counted(len(repeated), 'gene name is', 'gene names are')} not unique (first: "
            f"{repeated[0]!r}). Call adata.var_names_make_unique() first."
        )


def holds_counts(matrix: Any) -> bool:
    """Whether every value of a matrix is a count."""
    return all(_is_clean(stored_values(block)) for _, _, block in blocks(matrix))


def _is_clean(values: NDArray[Any]) -> bool:
    """Whether all values are counts; NaN fails every comparison."""
    if values.size == 0 or values.dtype.kind in "bu":
        return True
    if not values.min() >= 0:
        return False
    return values.dtype.kind == "i" or bool(
        np.isfinite(values.max()) and np.array_equal(values, np.rint(values))
    )


def _masks(values: NDArray[Any]) -> dict[str, NDArray[np.bool_]]:
    """Mark the values of each fault; no value has two."""
    finite = np.isfinite(values)
    negative = finite & (values < 0)
    return {
        "nan": np.isnan(values),
        "infinite": np.isinf(values),
        "negative": negative,
        "non-integer": finite & ~negative & (values != np.rint(values)),
    }


def _fault(block: Any, mask: NDArray[np.bool_], row: int, column: int) -> _Fault:
    """Describe the marked values of a block that begins at a row and a column."""
    if sparse.issparse(block):
        entries = block.tocoo()
        rows, columns = entries.row[mask], entries.col[mask]
    else:
        rows, columns = np.nonzero(mask)
    values = stored_values(block)[mask]
    top = np.flatnonzero(rows == rows.min())
    first = top[columns[top].argmin()]
    place = row + int(rows[first]), column + int(columns[first])
    return _Fault(len(values), *place, float(values[first]))


def _scan(matrix: Any, where: str) -> _Scan:
    """Pass over the whole matrix once."""
    n_rows, n_columns = matrix.shape
    scan = _Scan(np.zeros(n_rows, dtype=bool), np.zeros(n_columns, dtype=bool))
    for row, column, block in blocks(matrix):
        if not sparse.issparse(matrix):  # what comes from a file has not been looked at
            check_structure(block, where)
        values = stored_values(block)
        if values.size == 0:
            continue
        scan.maximum = max(scan.maximum, float(values.max()))
        with np.errstate(invalid="ignore"):
            of_cells, of_genes = (
                np.asarray(block.sum(axis=axis, dtype=np.float64)).ravel() for axis in (1, 0)
            )
        scan.occupied[row : row + len(of_cells)] |= of_cells > 0
        scan.expressed[column : column + len(of_genes)] |= of_genes > 0
        if _is_clean(values):
            continue
        for name, mask in _masks(values).items():
            if mask.any():
                found = _fault(block, mask, row, column)
                scan.faults[name] = found.merge(scan.faults.get(name))
    return scan


def _raise_faults(
    adata: AnnData, layer: str | None, scan: _Scan, allow_noninteger: bool, to_train: bool
) -> None:
    tolerated = {"non-integer"} if allow_noninteger else set()
    for name in FAULTS:
        if name in scan.faults and name not in tolerated:
            message = _fault_message(adata, layer, scan, name, to_train)
            raise InvalidCountsError(message, _report(adata, scan))


def _report(adata: AnnData, scan: _Scan) -> dict[str, dict[str, Any]]:
    return {
        name: {
            "count": fault.number,
            "cell": str(adata.obs_names[fault.row]),
            "gene": str(adata.var_names[fault.column]),
            "value": fault.value,
        }
        for name, fault in scan.faults.items()
    }


def _fault_message(
    adata: AnnData, layer: str | None, scan: _Scan, name: str, to_train: bool
) -> str:
    fault = scan.faults[name]
    cell, gene = str(adata.obs_names[fault.row]), str(adata.var_names[fault.column])
    place = f"first: cell {cell!r}, gene {gene!r}"
    if name not in ("nan", "infinite"):
        place += f", value {fault.value:g}"
    remedy = _remedy(adata, layer, scan, name, to_train)
    return f"{place_of(layer)} holds {counted(fault.number, *FAULTS[name])} ({place}). {remedy}"


def _remedy(adata: AnnData, layer: str | None, scan: _Scan, name: str, to_train: bool) -> str:
    if name in ("nan", "infinite"):
        return "Repair them, or drop those cells or genes."
    looks = ""
    if "non-integer" in scan.faults and scan.maximum < LOG_CEILING:
        looks = "It looks scaled" if name == "negative" else "It looks log-normalised"
        looks += ", and raw counts are needed: "
    choices = _matrices_of_counts(adata, layer)
    if not to_train:
        advice = f"put counts into {place_of(layer)}, which the model reads."
    elif choices:
        shown = ", ".join(choices[:NAMES_SHOWN]) + (", ..." if len(choices) > NAMES_SHOWN else "")
        advice = f"pass the raw counts (integers are in: {shown})."
    else:
        advice = "pass the layer of raw counts as layer=...; no other matrix here holds integers."
    return looks + advice if looks else advice[0].upper() + advice[1:]


def _matrices_of_counts(adata: AnnData, layer: str | None) -> list[str]:
    """Name the other matrices that hold counts, judged by their first block."""
    others: dict[str, Any] = {f"layer={key!r}": adata.layers[key] for key in named_layers(adata)}
    others.pop(f"layer={layer!r}", None)
    if layer is not None:
        others["layer=None, that is adata.X"] = adata.X
    raw = getattr(adata, "raw", None)
    if raw is not None:
        place = "adata.raw" if raw.n_vars == adata.n_vars else f"adata.raw, of {raw.n_vars} genes"
        others[f"{place}; adata.raw.to_adata() makes an AnnData of it"] = raw.X
    return [name for name, matrix in others.items() if _begins_with_counts(matrix)]


def _begins_with_counts(matrix: Any) -> bool:
    if matrix is None or np.dtype(matrix.dtype).kind not in "buif":
        return False
    values = stored_values(next(blocks(matrix))[2])
    return bool(_is_clean(values) and values.any())


def _check_occupied(adata: AnnData, where: str, scan: _Scan, batch_key: str | None) -> None:
    """Refuse a matrix, or a batch, without a single count."""
    if not scan.occupied.any():
        raise InvalidCountsError(f"{where} holds no counts: every value is zero.")
    if batch_key is None:
        return
    codes, names = pd.factorize(adata.obs[batch_key])
    hollow = np.flatnonzero(np.bincount(codes, weights=scan.occupied) == 0)
    if len(hollow):
        raise InvalidCountsError(
            f"{where} holds no counts for any of the {int((codes == hollow[0]).sum())} cells of "
            f"batch {str(names[hollow[0]])!r} (adata.obs[{batch_key!r}]). Drop that batch, or "
            "restore its counts."
        )


def _remarks(adata: AnnData, layer: str | None, scan: _Scan, to_train: bool) -> Iterator[str]:
    """Say what is odd and yet can be trained on."""
    if "non-integer" in scan.faults:
        yield _fault_message(adata, layer, scan, "non-integer", to_train)
    empty = np.flatnonzero(~scan.occupied)
    if len(empty):
        yield (
            f"{place_of(layer)}: {counted(len(empty), 'cell has', 'cells have')} no counts "
            f"(first: {str(adata.obs_names[empty[0]])!r}). Their embedding carries no "
            "information; sc.pp.filter_cells(adata, min_counts=1) drops them."
        )
    repeated = int(adata.obs_names.duplicated().sum())
    if repeated:
        yield (
            f"{counted(repeated, 'cell name repeats', 'cell names repeat')} an earlier one; "
            "adata.obs_names_make_unique() tells them apart."
        )
    if scan.maximum > FLOAT32_LIMIT:
        yield (
            f"{place_of(layer)} holds counts up to {scan.maximum:.0f}; above 2**24 = "
            f"{FLOAT32_LIMIT} float32, in which models are trained, rounds them."
        )
