"""Matrices that hang together: types, shapes, sparse indices, blocks of rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata.abc import CSCDataset, CSRDataset
from scipy import sparse

from dra_scvi._exceptions import InvalidCountsError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray


BLOCK_ROWS = 4096
BLOCK_ENTRIES = 2**24
# types that torch and the compiled kernels can read
READABLE = frozenset(
    map(np.dtype, ("bool", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "float32", "float64"))
)


def check_structure(matrix: Any, where: str) -> None:
    """Check that the indices of a CSR or CSC matrix are whole numbers and point into it.

    SciPy trusts them, and compiled code that follows them out of the matrix crashes. Of a matrix
    in a file, only types are looked at.
    """
    if isinstance(matrix, CSCDataset | CSRDataset):
        _check_index_types(matrix.group["indices"], matrix.group["indptr"], where)
    if not sparse.issparse(matrix) or matrix.format not in ("csr", "csc"):
        return
    _check_index_types(matrix.indices, matrix.indptr, where)
    n_rows, n_columns = matrix.shape
    length, width = (n_rows, n_columns) if matrix.format == "csr" else (n_columns, n_rows)
    starts, indices = matrix.indptr, matrix.indices
    is_sound = (
        len(starts) == length + 1
        and starts[0] == 0
        and starts[-1] <= min(len(indices), len(matrix.data))
        and bool((starts[1:] >= starts[:-1]).all())
        and (indices.size == 0 or (indices.min() >= 0 and indices.max() < width))
    )
    if not is_sound:
        raise InvalidCountsError(
            f"{where} is a damaged sparse matrix: its indices point outside of it. Read it again, "
            "or from a copy."
        )


def _check_index_types(indices: Any, starts: Any, where: str) -> None:
    for name, array in (("indices", indices), ("indptr", starts)):
        is_stored = not isinstance(array, np.ndarray)  # and is cast once it is read
        if array.dtype.kind not in "iu" or not (is_stored or np.can_cast(array.dtype, np.int64)):
            raise InvalidCountsError(
                f"{where} is a sparse matrix whose {name} are of type {array.dtype}; they have to "
                "be whole numbers, of type int32 or int64. Write it anew with such."
            )


def sign_indices(matrix: Any) -> Any:
    """Give a sparse matrix of one's own indices that SciPy knows, in place of unsigned ones."""
    if sparse.issparse(matrix) and matrix.format in ("csr", "csc"):
        for name in ("indices", "indptr"):
            if getattr(matrix, name).dtype == np.uint64:
                setattr(matrix, name, getattr(matrix, name).astype(np.int64))
    return matrix


def place_of(layer: str | None) -> str:
    return "adata.X" if layer is None else f"adata.layers[{layer!r}]"


def check_type(matrix: Any, where: str, to_train: bool) -> None:
    if matrix is None:
        advice = "pass the layer of raw counts as layer=..." if to_train else "the model reads it"
        raise InvalidCountsError(f"{where} holds nothing; {advice}")
    if isinstance(matrix, np.ma.MaskedArray):
        raise InvalidCountsError(
            f"{where} is a masked array, whose masked values are no counts; fill them in, or "
            "leave those cells or genes out, and make it a plain array."
        )
    if np.dtype(matrix.dtype).kind not in "buif":
        raise InvalidCountsError(
            f"{where} holds values of type {matrix.dtype}, not numbers; convert it to counts."
        )


def blocks(matrix: Any) -> Iterator[tuple[int, int, Any]]:
    """Cut a matrix along the axis it is stored by into (first row, first column, block)."""
    n_rows, n_columns = matrix.shape
    by_column = getattr(matrix, "format", None) == "csc"
    length, width = (n_columns, n_rows) if by_column else (n_rows, n_columns)
    step = min(BLOCK_ROWS, max(1, BLOCK_ENTRIES // max(1, width)))
    for start in range(0, length, step):
        part = slice(start, start + step)
        if by_column:
            yield 0, start, _in_memory(matrix[:, part])
        else:
            yield start, 0, _in_memory(matrix[part])


def _in_memory(block: Any) -> Any:
    """Turn a slice of any matrix into an array or a compressed sparse matrix."""
    if hasattr(block, "compute"):
        block = block.compute()
    if not sparse.issparse(block):
        return np.asarray(block)
    return sign_indices(block if block.format in ("csr", "csc") else block.tocsr())


def stored_values(block: Any) -> NDArray[Any]:
    return block.data if sparse.issparse(block) else block


def cast(data: Any, dtype: Any) -> Any:
    """Return a table, or an array or sparse matrix in memory, in a type that readers of rows know.

    `dtype` takes the place of objects, of half, long and foreign-endian numbers, and of columns
    that pandas would gather into objects (a float beside a boolean). Anything else stays.

    >>> cast(np.array([[1.5], [True]], dtype=object), np.float32).ravel().tolist()
    [1.5, 1.0]
    >>> frame = pd.DataFrame({"a": [0.5], "b": pd.array([True], dtype="boolean")})
    >>> cast(frame, np.float32).to_numpy().tolist()
    [[0.5, 1.0]]
    >>> cast(np.array([[3]], dtype=">i4"), np.float32).dtype.name
    'float32'
    """
    if isinstance(data, pd.DataFrame):
        return data.astype(dtype)
    if isinstance(data, np.ndarray) or sparse.issparse(data):
        return data if data.dtype in READABLE else data.astype(dtype)
    return data
