"""Whether registered data are still what was registered: names, shapes, columns and counts."""

from __future__ import annotations

import contextlib
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from dra_scvi._data.columns import counted, named_layers
from dra_scvi._data.matrices import blocks, place_of
from dra_scvi._data.validation import holds_counts
from dra_scvi._exceptions import GeneMismatchError, InvalidCountsError
from dra_scvi._kernels.checksum import checksum
from dra_scvi._threads import kernel_threads

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from anndata import AnnData
    from numpy.typing import NDArray

    Change = tuple[type[ValueError], str]


# whose counts were compared in the call that is under way
_compared: ContextVar[set[Snapshot] | None] = ContextVar("compared", default=None)

_ROWS_AT_A_TIME = 64
_TOLERANCE = 1e-9
_REMEDY = (
    "Put back what was registered and work on a copy (adata.copy()), or register these data anew "
    "with setup_anndata and train a new model on them."
)


@contextlib.contextmanager
def comparing_once() -> Iterator[None]:
    """Compare the counts of an AnnData once in a block, however often it is asked for.

    >>> with comparing_once(), comparing_once():
    ...     len(_compared.get())
    0
    """
    token = _compared.set(set() if _compared.get() is None else _compared.get())
    try:
        yield
    finally:
        _compared.reset(token)


class Snapshot:
    """What data were when they were registered.

    Names, shapes and columns are compared in full. Counts in memory are compared by a checksum of
    every byte of the arrays that hold them. Only where that differs are the counts themselves
    looked at: the same counts in another form, as after ``adata.X = adata.X.tocsc()``, have not
    changed. Of counts in a file, in chunks, or in an AnnCollection, the shape is compared.

    `sources` are the columns of ``adata.obs`` that what is read was made from, `read` what a model
    reads besides the counts: attributes of `adata`, and keys there.
    """

    def __init__(
        self,
        adata: AnnData,
        layer: str | None,
        sources: Iterable[str] = (),
        read: Iterable[tuple[str, str]] = (),
    ) -> None:
        self.layer = layer
        self.genes, self.cells = adata.var_names, adata.obs_names
        self.sources = {("obs", key): _kept(adata.obs[key]) for key in sources}
        self.read = {place: _kept(getattr(adata, place[0])[place[1]]) for place in read}
        matrix = _counts(adata, layer)
        self.digest = _digest(matrix)
        self.sums = _sums(matrix) if self.digest is not None else None

    def check(self, adata: AnnData) -> None:
        """Refuse data whose genes, cells, counts, or columns given by the user changed."""
        changes = [*self._genes(adata), *self._cells(adata)]
        _refuse(changes or [*self._matrix(adata), *_columns(adata, self.sources)])

    def check_read(self, adata: AnnData) -> None:
        """Refuse data where what scvi-tools made of columns changed."""
        missing = [
            (ValueError, f"{_name(*place)} is gone")
            for place in self.read
            if place[1] not in getattr(adata, place[0])
        ]
        _refuse(missing or [*_columns(adata, self.read)])

    def _genes(self, adata: AnnData) -> Iterator[Change]:
        change = _renamed(self.genes, adata.var_names, "gene", "genes")
        if change or adata.n_vars != len(self.genes):
            yield GeneMismatchError, str(change)

    def _cells(self, adata: AnnData) -> Iterator[Change]:
        """Cells may have new names; their number and order must be the same."""
        change = _renamed(self.cells, adata.obs_names, "cell", "cells")
        is_renamed = adata.n_obs == len(self.cells) and len(_gone(self.cells, adata.obs_names)) > 0
        if change and not is_renamed:
            yield ValueError, change

    def _matrix(self, adata: AnnData) -> Iterator[Change]:
        name = place_of(self.layer)
        matrix = _counts(adata, self.layer)
        whole = (len(self.cells), len(self.genes))
        shape = getattr(matrix, "shape", whole)  # the matrix of a collection has none
        if matrix is None:
            yield InvalidCountsError, f"{name}, which held its counts, is gone"
        elif tuple(shape) != whole:
            yield InvalidCountsError, f"{name} has the shape {tuple(shape)}"
        elif self.sums is not None and not self._was_compared():
            yield from self._values(matrix, name, self.sums)

    def _was_compared(self) -> bool:
        """Tell whether this call looked at the counts before, and note that it did."""
        compared = _compared.get()
        if compared is None:
            return False
        was_there = self in compared
        compared.add(self)
        return was_there

    def _values(self, matrix: Any, name: str, sums: NDArray[np.float64]) -> Iterator[Change]:
        if (digest := _digest(matrix)) == self.digest:
            return
        is_same = np.isclose(_sums(matrix), sums, rtol=_TOLERANCE, atol=0)
        differ = np.flatnonzero(~is_same)
        if not len(differ):
            self.digest = digest
            return
        state = "they are other counts" if holds_counts(matrix) else "no longer counts"
        first, number = str(self.cells[differ[0]]), counted(len(differ), "cell", "cells")
        text = f"the values in {name} changed in {number} (first: {first!r}), {state}"
        yield InvalidCountsError, text


def _refuse(changes: Sequence[Change]) -> None:
    if changes:
        texts = "; ".join(text for _, text in changes)
        raise changes[0][0](f"adata is not what was registered: {texts}. {_REMEDY}")


def _columns(adata: AnnData, kept: dict[tuple[str, str], Any]) -> Iterator[Change]:
    """Say which columns changed; one that is gone is not read."""
    for (place, key), before in kept.items():
        if key not in getattr(adata, place):
            continue
        now = getattr(adata, place)[key]
        n_changed = _n_different(before, now)
        if n_changed:
            number = counted(n_changed, "cell", "cells")
            yield ValueError, f"{_name(place, key)} changed for {number}"
        elif before.dtype != getattr(now, "dtype", before.dtype):
            kept[place, key] = _kept(now)  # compared faster the next time


def _name(place: str, key: str) -> str:
    return f"adata.{place}[{key!r}]"


def _counts(adata: AnnData, layer: str | None) -> Any:
    if layer is None:
        return getattr(adata, "X", None)
    return adata.layers[layer] if layer in named_layers(adata) else None


def _renamed(before: pd.Index, now: pd.Index, one: str, many: str) -> str | None:
    """Say how names differ from what they were, or `None` if they do not."""
    if before is now or before.equals(now):
        return None
    gone = _gone(before, now)
    if len(now) != len(before):
        text = f"{counted(len(now), one, many)} in place of {len(before)}"
        return f"{text} (first one gone: {str(gone[0])!r})" if len(gone) else text
    place = int(np.flatnonzero(np.asarray(before != now))[0])
    if len(gone) == 0:
        return (
            f"the {many} are in another order ({one} {place} is {str(now[place])!r}, and was "
            f"{str(before[place])!r})"
        )
    number = counted(int((before != now).sum()), f"{one} has", f"{many} have")
    return f"{number} another name (first: {str(now[place])!r}, which was {str(before[place])!r})"


def _gone(before: pd.Index, now: pd.Index) -> pd.Index:
    return before[~before.isin(now)]


def _digest(matrix: Any) -> tuple[Any, ...] | None:
    """Condense the arrays of a matrix in memory; `None` for what is not in memory."""
    if isinstance(matrix, np.ndarray):
        form, parts = "dense", [matrix]
    elif sparse.issparse(matrix) and hasattr(matrix, "indptr"):  # a collection only looks like one
        form, parts = matrix.format, [matrix.indptr, matrix.indices, matrix.data]
    else:
        return None
    threads = kernel_threads()
    return form, *((part.shape, part.dtype.str, checksum(part, threads)) for part in parts)


def _sums(matrix: Any) -> NDArray[np.float64]:
    """Sum the counts of each cell, every gene with a weight of its own, however they are held."""
    weights = 1.0 + np.random.default_rng(1).random(matrix.shape[1])
    sums = np.zeros(matrix.shape[0])
    for row, column, block in blocks(matrix):
        # rows of a CSC matrix lie all over it
        step = len(sums) if getattr(block, "format", "") == "csc" else _ROWS_AT_A_TIME
        for start in range(0, block.shape[0], step):
            part = block[start : start + step].astype(np.float64, copy=False)
            of_cells = part @ weights[column : column + part.shape[1]]
            sums[row + start : row + start + len(of_cells)] += of_cells
    return sums


def _kept(values: Any) -> Any:
    """Keep a column, or a table as one array of numbers."""
    return values.copy() if isinstance(values, pd.Series) else _numbers(values).copy()


def _numbers(table: Any) -> NDArray[Any]:
    return np.asarray(table.astype(np.float64) if isinstance(table, pd.DataFrame) else table)


def _n_different(before: Any, now: Any) -> int:
    """Count the cells whose values differ, whatever types hold them."""
    if not isinstance(before, pd.Series):
        now = _numbers(now)
        if before.shape != now.shape:
            return len(before)
        equal = (before == now) | ((before != before) & (now != now))
        return int((~equal).reshape(len(before), -1).any(axis=1).sum())
    if before.dtype == now.dtype and isinstance(before.dtype, pd.CategoricalDtype):
        if before.dtype.categories.equals(now.dtype.categories):
            return int((before.cat.codes.to_numpy() != now.cat.codes.to_numpy()).sum())
    elif before.dtype == now.dtype and before.array.equals(now.array):
        return 0
    return int(_differ(before, now).sum())


def _differ(before: pd.Series, now: pd.Series) -> NDArray[np.bool_]:
    """Compare as numbers where both are, else as text; two missing values are the same."""
    one, other = (column.to_numpy(dtype=object, na_value=None) for column in (before, now))
    was_missing, is_missing = pd.isna(one), pd.isna(other)
    try:
        differ = one.astype(np.float64) != other.astype(np.float64)
    except (TypeError, ValueError):
        differ = one.astype(str) != other.astype(str)
    return np.where(was_missing | is_missing, was_missing != is_missing, differ)
