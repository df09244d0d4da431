"""Rows of registered counts, wherever they lie: in memory, on a device, or in a file."""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp
import torch

from dra_scvi._data.matrices import cast, check_structure
from dra_scvi._data.stored_rows import is_stored, read_rows
from dra_scvi._kernels.likelihood import log_counts
from dra_scvi._kernels.rows import gather_rows, project_rows
from dra_scvi._threads import kernel_threads

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from scvi.data import AnnDataManager
    from torch import Tensor


# share of an accelerator's free memory that the counts may take: networks and workspace need some
_DEVICE_SHARE = 0.6
_ROWS_PER_COPY = 8_192


class Rows(ABC):
    """A matrix with one row per cell, from which minibatches are taken."""

    description: str  # how the matrix is held, and in how much memory

    @abstractmethod
    def take(self, index: Tensor) -> Tensor:
        """Rows at `index`, shape ``(n_cells,)``, as a dense tensor."""

    def hold(self, index: Tensor) -> tuple[Rows, Tensor]:
        """Return what to take rows at `index` from, part by part, and where they are there."""
        return self, index

    def project(self, index: Tensor, weight: Tensor, log1p: bool) -> Tensor:
        """Rows at `index`, or their log1p, times `weight`, shape ``(n_genes, n_hidden)``."""
        rows = self.take(index).to(weight)
        return (log_counts(rows) if log1p else rows) @ weight


class DenseRows(Rows):
    """A dense matrix, which may hold integers narrower than the minibatches it gives."""

    def __init__(self, matrix: Tensor, dtype: torch.dtype) -> None:
        self.matrix = matrix
        self.dtype = dtype
        kind = str(matrix.dtype).removeprefix("torch.")
        self.description = f"dense {kind}, {_megabytes(matrix)}"

    def take(self, index: Tensor) -> Tensor:
        """Rows at `index` as a dense tensor."""
        index = index.to(self.matrix.device, non_blocking=True)
        return self.matrix.index_select(0, index).to(self.dtype)


class SparseRows(Rows):
    """A CSR matrix in memory, used as it is."""

    def __init__(self, matrix: sp.csr_matrix) -> None:
        self.matrix = matrix
        self.description = f"CSR, {_megabytes(matrix.data, matrix.indices, matrix.indptr)}"

    def take(self, index: Tensor) -> Tensor:
        """Rows at `index` as a dense tensor."""
        return torch.from_numpy(gather_rows(self.matrix, index.numpy()))

    def project(self, index: Tensor, weight: Tensor, log1p: bool) -> Tensor:
        """Rows at `index`, or their log1p, times `weight`; zeros are not touched."""
        if weight.device.type != "cpu" or weight.dtype != torch.float32:
            return super().project(index, weight, log1p)
        product = project_rows(
            self.matrix,
            index.numpy(),
            weight.detach().contiguous().numpy(),
            log1p,
            kernel_threads(),
        )
        return torch.from_numpy(product)


class StoredRows(Rows):
    """A matrix in a file or in chunks, of which some stretches of rows are in memory at a time."""

    def __init__(self, matrix: Any) -> None:
        self.matrix = matrix
        self.description = type(matrix).__name__

    def take(self, index: Tensor) -> Tensor:
        """Rows at `index` as a dense tensor."""
        rows, index = self.hold(index)
        return rows.take(index)

    def hold(self, index: Tensor) -> tuple[Rows, Tensor]:
        """Read rows into memory."""
        read = read_rows(self.matrix, index.numpy())
        place = torch.arange(len(index))
        if isinstance(read, np.ndarray):
            return DenseRows(torch.from_numpy(read.astype(np.float32)), torch.float32), place
        read = cast(read, np.float32)
        read.sum_duplicates()
        return SparseRows(read), place

    def project(self, index: Tensor, weight: Tensor, log1p: bool) -> Tensor:
        """Rows at `index`, or their log1p, times `weight`."""
        rows, index = self.hold(index)
        return rows.project(index, weight, log1p)


class DeviceSparseRows(Rows):
    """A CSR matrix on an accelerator, with its row lengths on the host as well.

    A gather whose size the host did not know would have to wait for the device.
    """

    def __init__(self, matrix: sp.csr_matrix, device: torch.device) -> None:
        check_structure(matrix, "The matrix of counts")  # the device would not
        self.n_columns = matrix.shape[1]
        self.lengths = torch.from_numpy(np.diff(matrix.indptr).astype(np.int64))
        self.start = torch.from_numpy(matrix.indptr[:-1].astype(np.int64)).to(device)
        self.columns = torch.from_numpy(matrix.indices.astype(np.int32)).to(device)
        self.values = torch.from_numpy(narrow(matrix.data)).to(device)
        self.description = f"CSR, {_megabytes(self.start, self.columns, self.values)}"

    def take(self, index: Tensor) -> Tensor:
        """Rows at `index`, which lies on the host, as a dense tensor on the device."""
        device = self.values.device
        lengths = self.lengths[index]
        ends = lengths.cumsum(0)
        n_values = int(ends[-1])
        start, offset, lengths = (
            part.to(device, non_blocking=True) for part in (index, ends - lengths, lengths)
        )
        first = self.start[start] - offset
        row = torch.repeat_interleave(lengths, output_size=n_values)
        position = torch.arange(n_values, device=device) + first[row]
        rows = torch.zeros(len(index), self.n_columns, device=device)
        rows.view(-1)[row * self.n_columns + self.columns[position]] = self.values[
            position
        ].float()
        return rows


def _megabytes(*arrays: Tensor | NDArray[Any]) -> str:
    return f"{sum(array.nbytes for array in arrays) / 1e6:,.1f} MB"


def narrow(values: NDArray[Any]) -> NDArray[Any]:
    """Return `values` in the narrowest type that holds them all, or as single precision."""
    if values.size and values.min() >= 0 and np.array_equal(values, np.rint(values)):
        for dtype in (np.uint8, np.int16):
            if values.max() <= np.iinfo(dtype).max:
                return values.astype(dtype)
    return values.astype(np.float32)


def registered_rows(
    manager: AnnDataManager, device: torch.device | None = None
) -> dict[str, Rows] | None:
    """Return each key of the registry as rows to take minibatches from, held on `device` if given.

    In the memory of the host nothing is copied but a CSC matrix, or one with duplicate entries.
    `None` for arrays of other libraries, and for matrices that do not fit on the device.
    """
    dataset = manager.create_torch_dataset()
    matrices = {}
    for key, dtype in dataset.keys_and_dtypes.items():
        matrix = dataset.data[key]
        if isinstance(matrix, str):  # the type of minification, which is no matrix
            continue
        rows = _rows(matrix, dtype, device)
        if rows is None:
            return None
        matrices[key] = rows
    return matrices


def _rows(matrix: Any, dtype: type, device: torch.device | None) -> Rows | None:
    if is_stored(matrix):
        return StoredRows(matrix)
    if hasattr(matrix, "to_numpy"):
        matrix = matrix.to_numpy()
    if sp.issparse(matrix):
        matrix = matrix.tocsr()
        if not matrix.has_canonical_format:
            matrix = matrix.copy()  # the caller's own stays as it is
            matrix.sum_duplicates()
        return SparseRows(matrix) if device is None else _on_device(matrix, device)
    if not isinstance(matrix, np.ndarray):
        return None
    torch_dtype = torch.from_numpy(np.empty(0, dtype)).dtype
    if device is not None and torch_dtype.is_floating_point and matrix.ndim == 2:
        return _on_device(matrix, device)
    held = cast(matrix, dtype)
    with warnings.catch_warnings():  # columns of a table are read-only, and only read here
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return DenseRows(torch.as_tensor(held, device=device), torch_dtype)


def _on_device(matrix: NDArray[Any] | sp.csr_matrix, device: torch.device) -> Rows | None:
    """Hold counts dense where there is room, else as CSR, else not at all."""
    room = _DEVICE_SHARE * _free_memory(device)
    csr = sp.csr_matrix(matrix)
    dtype = torch.from_numpy(narrow(csr.data)).dtype
    if csr.shape[0] * csr.shape[1] * dtype.itemsize <= room:
        held = torch.empty(csr.shape, dtype=dtype, device=device)
        for start in range(0, csr.shape[0], _ROWS_PER_COPY):
            part = torch.from_numpy(csr[start : start + _ROWS_PER_COPY].toarray())
            held[start : start + _ROWS_PER_COPY] = part.to(device, dtype)
        return DenseRows(held, torch.float32)
    if csr.nnz * (dtype.itemsize + 4) + 8 * csr.shape[0] <= room:
        return DeviceSparseRows(csr, device)
    return None


def _free_memory(device: torch.device) -> float:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else math.inf
