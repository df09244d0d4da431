"""Rows of a matrix that stays where it is stored: in an HDF5 file, a zarr store, or chunks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
from anndata.abc import CSRDataset
from scipy import sparse

from dra_scvi._exceptions import InvalidCountsError

if TYPE_CHECKING:
    from numpy.typing import NDArray


# reading a gap of so many rows takes less time than going to the row after it
LONGEST_GAP = 64
# so that rows that are wanted here and there do not make the whole matrix one stretch
LONGEST_STRETCH = 8_192


def is_stored(matrix: Any) -> bool:
    """Whether a matrix has rows that can be read in stretches, and is not in memory.

    It is so for CSR and dense matrices in ``.h5ad`` files and zarr stores, for arrays of dask, and
    for a layer of an AnnCollection.
    """
    library = type(matrix).__module__.partition(".")[0]
    return (
        isinstance(matrix, CSRDataset | h5py.Dataset)
        or library in ("dask", "zarr")
        or hasattr(matrix, "collection")  # how scvi-tools shows a layer of an AnnCollection
    )


def read_rows(matrix: Any, index: NDArray[np.int64]) -> sparse.csr_matrix | NDArray[Any]:
    """Read rows, some maybe twice, in the order asked for.

    Those that lie near each other are read in one go, along with what lies between them.

    >>> read_rows(np.arange(10)[:, None], np.array([7, 2, 2])).ravel()
    array([7, 2, 2])
    """
    rows, position = np.unique(index, return_inverse=True)
    far = np.diff(rows) > LONGEST_GAP
    long = np.diff(rows // LONGEST_STRETCH) > 0
    stretches = np.split(rows, np.flatnonzero(far | long) + 1)
    parts = [_read_stretch(matrix, rows) for rows in stretches]
    if sparse.issparse(parts[0]):
        found = sparse.vstack(parts, format="csr") if len(parts) > 1 else parts[0]
    else:
        found = np.concatenate(parts)
    is_in_order = np.array_equal(position, np.arange(len(rows)))
    return found if is_in_order else found[position]


def _read_stretch(matrix: Any, rows: NDArray[np.int64]) -> sparse.csr_matrix | NDArray[Any]:
    """Read ascending rows with what lies between them, and keep those."""
    first, last = int(rows[0]), int(rows[-1])
    if isinstance(matrix, CSRDataset):
        stretch = _read_csr(matrix, first, last + 1)
    else:
        stretch = matrix[first : last + 1]
    if hasattr(stretch, "compute"):
        stretch = stretch.compute()
    if sparse.issparse(stretch):
        stretch = sparse.csr_matrix(stretch)
    return stretch if len(rows) == last + 1 - first else stretch[rows - first]


def _read_csr(matrix: CSRDataset, start: int, stop: int) -> sparse.csr_matrix:
    """Read neighbouring rows; anndata's own slice takes ten times as long over so few."""
    group = matrix.group
    starts = group["indptr"][start : stop + 1].astype(np.int64)
    values = slice(int(starts[0]), int(starts[-1]))
    data, indices = group["data"][values], group["indices"][values]
    if indices.dtype == np.uint64:  # which SciPy does not know
        indices = indices.astype(np.int64)
    n_genes = matrix.shape[1]
    is_sound = (
        len(starts) == stop + 1 - start
        and bool((np.diff(starts, prepend=0) >= 0).all())
        and len(data) == len(indices) == starts[-1] - starts[0]
        and (len(indices) == 0 or (indices.min() >= 0 and indices.max() < n_genes))
    )
    if not is_sound:  # which compiled code would follow
        raise InvalidCountsError(
            f"the counts in {group.file.filename} are damaged: indices of {group.name} point "
            "outside of the matrix. Take the file from where it came again."
        )
    return sparse.csr_matrix((data, indices, starts - starts[0]), shape=(stop - start, n_genes))
