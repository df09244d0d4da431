"""Rows of a CSR matrix, gathered or multiplied by weights without being made dense."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dra_scvi._exceptions import InvalidCountsError
from dra_scvi._kernels.parts import check_array, share_out
from dra_scvi._kernels.series import fast_log1p, jit

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from scipy.sparse import csr_matrix


@jit
def _row_fault(indptr: Any, indices: Any, data: Any, row: Any, n_columns: Any) -> Any:
    """Whether reading a row would lead out of the arrays, or writing it out of its columns."""
    if row < 0 or row >= indptr.shape[0] - 1:
        return True
    start, end = indptr[row], indptr[row + 1]
    if start < 0 or end < start or end > indices.shape[0] or end > data.shape[0]:
        return True
    if end - start > n_columns:
        return True
    outside = False
    for j in range(start, end):
        outside |= (indices[j] < 0) | (indices[j] >= n_columns)
    return outside


@jit
def _gather(indptr: Any, indices: Any, data: Any, rows: Any, out: Any) -> Any:
    """Write rows; return the position of the first one that is damaged, or -1."""
    for i in range(rows.shape[0]):
        if _row_fault(indptr, indices, data, rows[i], out.shape[1]):
            return i
        for j in range(indptr[rows[i]], indptr[rows[i] + 1]):
            out[i, indices[j]] = np.float32(data[j])
    return -1


def gather_rows(matrix: csr_matrix, rows: NDArray[np.integer]) -> NDArray[np.float32]:
    """Return rows of a CSR matrix without duplicate entries as a dense matrix."""
    _check_csr(matrix, rows)
    out = np.zeros((len(rows), matrix.shape[1]), np.float32)
    _refuse_fault(_gather(matrix.indptr, matrix.indices, matrix.data, rows, out), rows, matrix)
    return out


@jit
def _project(
    indptr: Any, indices: Any, data: Any, rows: Any, log1p: Any, weight: Any, out: Any
) -> Any:
    """Write products; return the position of the first row that is damaged, or -1."""
    values = np.empty(weight.shape[0] + 3, np.float32)
    genes = np.empty(weight.shape[0] + 3, np.int64)
    total = np.empty(weight.shape[1], np.float32)
    for i in range(rows.shape[0]):
        if _row_fault(indptr, indices, data, rows[i], weight.shape[0]):
            return i
        start, n = indptr[rows[i]], indptr[rows[i] + 1] - indptr[rows[i]]
        for j in range(n):
            values[j] = data[start + j]
            genes[j] = indices[start + j]
        if log1p:
            for j in range(n):
                values[j] = fast_log1p(values[j])
        values[n : n + 3] = 0.0
        genes[n : n + 3] = 0
        total[:] = 0.0
        for j in range(0, n, 4):  # four at a time: the sum is loaded and stored less often
            a, b, c, d = values[j], values[j + 1], values[j + 2], values[j + 3]
            of_a, of_b, of_c, of_d = genes[j], genes[j + 1], genes[j + 2], genes[j + 3]
            for h in range(total.shape[0]):
                total[h] += (
                    a * weight[of_a, h]
                    + b * weight[of_b, h]
                    + c * weight[of_c, h]
                    + d * weight[of_d, h]
                )
        for h in range(total.shape[0]):  # as an array it would take seconds to compile
            out[i, h] = total[h]
    return -1


def project_rows(
    matrix: csr_matrix,
    rows: NDArray[np.integer],
    weight: NDArray[np.float32],
    log1p: bool,
    n_threads: int,
) -> NDArray[np.float32]:
    """Rows of a CSR matrix, or their log1p, times a dense matrix, ``(n_genes, n_hidden)``.

    Where `log1p` is asked for, the CSR matrix must not be negative.
    """
    _check_csr(matrix, rows)
    check_array("weight", weight, (matrix.shape[1], *weight.shape[1:]), n_dimensions=2)
    out = np.zeros((len(rows), weight.shape[1]), np.float32)
    arrays = matrix.indptr, matrix.indices, matrix.data

    def run(part: slice) -> None:
        fault = _project(*arrays, rows[part], log1p, weight, out[part])
        _refuse_fault(fault, rows[part], matrix)

    share_out(run, (len(rows), len(weight)), n_threads)
    return out


def _check_csr(matrix: csr_matrix, rows: NDArray[np.integer]) -> None:
    """Refuse a matrix that is no CSR matrix; its entries are looked at as they are read."""
    if matrix.format != "csr" or len(matrix.indptr) != matrix.shape[0] + 1:
        raise ValueError("The rows of a CSR matrix, with one start for each row, are needed.")
    kinds = matrix.indptr.dtype.kind + matrix.indices.dtype.kind + rows.dtype.kind
    if rows.ndim != 1 or not set(kinds) <= {"i", "u"}:
        raise TypeError("Rows, and the indices of a CSR matrix, have to be whole numbers.")


def _refuse_fault(position: int, rows: NDArray[np.integer], matrix: csr_matrix) -> None:
    if position < 0:
        return
    row, n_rows = int(rows[position]), matrix.shape[0]
    if not 0 <= row < n_rows:
        raise IndexError(f"Row {row} was asked for, and there are {n_rows} rows, from 0.")
    raise InvalidCountsError(
        f"Row {row} of the counts is damaged: its indices point outside of the matrix. Read it "
        "again, or from a copy."
    )
