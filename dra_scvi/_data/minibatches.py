"""Minibatches from counts that stay where they are: in memory, on the accelerator, or in a file.

The split into training, validation and test cells is scvi-tools' own, as are the order of the
minibatches under a seed and the meaning of `drop_last`. Counts in a file are shuffled otherwise:
blocks of neighbouring cells first, then the cells of as many blocks as are held at a time.
"""

from __future__ import annotations

import itertools
import logging
import math
import warnings
from abc import ABC, abstractmethod
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp
import torch
from scvi import REGISTRY_KEYS, settings
from scvi.dataloaders import DataSplitter as UpstreamDataSplitter
from torch.utils.data import RandomSampler

from dra_scvi._data.casting import cast
from dra_scvi._data.shares import Share
from dra_scvi._data.stored import is_stored, read_rows
from dra_scvi._data.validation import check_structure
from dra_scvi._kernels.compiled import gather_rows, project_rows
from dra_scvi._kernels.likelihood import log_counts
from dra_scvi._threads import kernel_threads

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from scvi.data import AnnDataManager
    from torch import Tensor

logger = logging.getLogger("dra_scvi")

# share of an accelerator's free memory that the counts may take: networks and workspace need some
_DEVICE_SHARE = 0.6
_ROWS_PER_COPY = 8_192
# neighbours in a file are read together; as many cells as are held come from 128 places in it
_ROWS_PER_BLOCK = 128
_ROWS_HELD = 128 * _ROWS_PER_BLOCK


class Rows(ABC):
    """A matrix with one row per cell, from which minibatches are taken."""

    @abstractmethod
    def take(self, index: Tensor) -> Tensor:
        """Rows at `index`, shape ``(n_cells,)``, as a dense tensor."""

    @property
    @abstractmethod
    def description(self) -> str:
        """How the matrix is held, and in how much memory."""

    def hold(self, index: Tensor) -> tuple[Rows, Tensor]:
        """Return what to take rows at `index` from, part by part, and where they are there."""
        return self, index

    def project(self, index: Tensor, weight: Tensor, log1p: bool) -> Tensor:
        """Rows at `index`, or their log1p, times `weight`, shape ``(n_genes, n_hidden)``."""
        rows = self.take(index).to(weight)
        return (log_counts(rows) if log1p else rows) @ weight


class DenseRows(Rows):
    """A dense matrix, which may hold integers narrower than the minibatches it gives.

    Examples
    --------
    >>> rows = DenseRows(torch.tensor([[0, 1], [2, 3]], dtype=torch.uint8), torch.float32)
    >>> rows.take(torch.tensor([1, 1]))
    tensor([[2., 3.],
            [2., 3.]])
    """

    def __init__(self, matrix: Tensor, dtype: torch.dtype) -> None:
        self.matrix = matrix
        self.dtype = dtype

    @property
    def description(self) -> str:
        """How the matrix is held, and in how much memory."""
        kind = str(self.matrix.dtype).removeprefix("torch.")
        return f"dense {kind}, {_megabytes(self.matrix)}"

    def take(self, index: Tensor) -> Tensor:
        """Rows at `index` as a dense tensor."""
        index = index.to(self.matrix.device, non_blocking=True)
        return self.matrix.index_select(0, index).to(self.dtype)


class SparseRows(Rows):
    """A CSR matrix in memory, used as it is.

    Examples
    --------
    >>> rows = SparseRows(sp.csr_matrix([[0, 1], [2, 0]]))
    >>> rows.take(torch.tensor([1, 0]))
    tensor([[2., 0.],
            [0., 1.]])
    """

    def __init__(self, matrix: sp.csr_matrix) -> None:
        self.matrix = matrix

    @property
    def description(self) -> str:
        """How the matrix is held, and in how much memory."""
        arrays = self.matrix.data, self.matrix.indices, self.matrix.indptr
        return f"CSR, {_megabytes(*arrays)}"

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
    """A matrix in a file or in chunks, of which a few stretches of rows are in memory at a time.

    Examples
    --------
    >>> rows = StoredRows(np.array([[0, 1], [2, 0]]))
    >>> rows.take(torch.tensor([1, 0]))
    tensor([[2., 0.],
            [0., 1.]])
    """

    def __init__(self, matrix: Any) -> None:
        self.matrix = matrix

    @property
    def description(self) -> str:
        """What the matrix is stored as."""
        return type(self.matrix).__name__

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

    Examples
    --------
    >>> rows = DeviceSparseRows(sp.csr_matrix([[0, 1], [2, 0]]), torch.device("cpu"))
    >>> rows.take(torch.tensor([1, 0]))
    tensor([[2., 0.],
            [0., 1.]])
    """

    def __init__(self, matrix: sp.csr_matrix, device: torch.device) -> None:
        check_structure(matrix, "The matrix of counts")  # the device would not
        self.n_columns = matrix.shape[1]
        self.lengths = torch.from_numpy(np.diff(matrix.indptr).astype(np.int64))
        self.start = torch.from_numpy(matrix.indptr[:-1].astype(np.int64)).to(device)
        self.columns = torch.from_numpy(matrix.indices.astype(np.int32)).to(device)
        self.values = torch.from_numpy(narrow(matrix.data)).to(device)

    @property
    def description(self) -> str:
        """How the matrix is held, and in how much memory."""
        return f"CSR, {_megabytes(self.start, self.columns, self.values)}"

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
        row = torch.repeat_interleave(
            torch.arange(len(index), device=device), lengths, output_size=n_values
        )
        position = torch.arange(n_values, device=device) + first[row]
        rows = torch.zeros(len(index), self.n_columns, device=device)
        rows.view(-1)[row * self.n_columns + self.columns[position]] = self.values[
            position
        ].float()
        return rows


def _megabytes(*arrays: Tensor | NDArray[Any]) -> str:
    return f"{sum(array.nbytes for array in arrays) / 1e6:,.1f} MB"


def narrow(values: NDArray[Any]) -> NDArray[Any]:
    """Return `values` in the narrowest type that holds them all, or as single precision.

    Examples
    --------
    >>> [narrow(np.array(v)).dtype.name for v in ([0.0, 7.0], [0.0, 300.0], [0.5], [-1.0])]
    ['uint8', 'int16', 'float32', 'float32']
    """
    if values.size and values.min() >= 0 and np.array_equal(values, np.rint(values)):
        for dtype in (np.uint8, np.int16):
            if values.max() <= np.iinfo(dtype).max:
                return values.astype(dtype)
    return values.astype(np.float32)


def registered_rows(
    manager: AnnDataManager, device: torch.device | None = None
) -> dict[str, Rows] | None:
    """Return what is registered as rows to take minibatches from, or `None` if that cannot be.

    Parameters
    ----------
    manager
        Manager of the registered AnnData.
    device
        Accelerator to hold the matrices; `None` for the memory of the host, where nothing is
        copied but a CSC matrix, or one with duplicate entries.

    Returns
    -------
    One entry per key of the registry; `None` for matrices stored by column, arrays of other
    libraries, and matrices that do not fit on the device.
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
        warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
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


class Minibatches:
    """Minibatches of chosen cells, in the order that scvi-tools' loader takes them in.

    A last minibatch of one cell, from which batch normalisation cannot learn, joins the one
    before it where the minibatches are shuffled for training. Cells in a file come in ascending
    order where they are not shuffled.

    Parameters
    ----------
    rows
        What a minibatch consists of.
    indices
        Cells to go through, shape ``(n_cells,)``.
    batch_size
        Cells in a minibatch.
    shuffle
        Whether to draw a new order for each pass, from the global random state of torch.
    drop_last
        Whether to leave out a last minibatch that is not full.
    share
        Which part of the cells is this process'.

    Examples
    --------
    >>> rows = {"X": DenseRows(torch.arange(5.0)[:, None], torch.float32)}
    >>> [len(batch["X"]) for batch in Minibatches(rows, np.arange(5), batch_size=2)]
    [2, 2, 1]
    >>> [len(batch["X"]) for batch in Minibatches(rows, np.arange(5), batch_size=2, shuffle=True)]
    [2, 3]
    """

    def __init__(
        self,
        rows: dict[str, Rows],
        indices: NDArray[np.integer],
        batch_size: int,
        shuffle: bool = False,
        drop_last: bool = False,
        share: Share | None = None,
    ) -> None:
        self.rows = rows
        self.indices = torch.as_tensor(np.asarray(indices), dtype=torch.int64)
        self.shuffle = shuffle
        self.share = share or Share()
        is_stored = any(isinstance(row, StoredRows) for row in rows.values())
        # what can be held at a time comes in the same order as from memory
        self.in_blocks = is_stored and len(self.indices) > _ROWS_HELD
        if self.in_blocks:
            self.indices = self.indices.sort().values
        n_cells = self.share.size(len(self.indices))
        edges = list(range(0, n_cells, batch_size)) + [n_cells]
        if drop_last and n_cells % batch_size:
            del edges[-1]
        elif shuffle and n_cells % batch_size == 1 and n_cells > 1:
            del edges[-2]
        self._edges = edges
        self._n_held = max(1, _ROWS_HELD // batch_size if self.in_blocks else len(self))

    def __len__(self) -> int:
        return max(len(self._edges) - 1, 0)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        torch.empty((), dtype=torch.int64).random_()  # torch's loader draws a seed for its workers
        order = self._order()
        if torch.cuda.is_available():
            order = order.pin_memory()  # a copy from here does not wait for the device
        for first in range(0, len(self), self._n_held):
            edges = self._edges[first : first + self._n_held + 1]
            held = order[edges[0] : edges[-1]]
            rows = {key: row.hold(held) for key, row in self.rows.items()}
            for start, end in itertools.pairwise(edge - edges[0] for edge in edges):
                yield {key: row.take(index[start:end]) for key, (row, index) in rows.items()}

    def _order(self) -> Tensor:
        """Cells of this process, in the order of this pass."""
        if not self.shuffle:
            return self.share.of(self.indices)
        if not self.in_blocks and self.share.world_size == 1:
            return self.indices[list(RandomSampler(range(len(self.indices))))]
        seed = int(torch.empty((), dtype=torch.int64).random_())
        generator = torch.Generator().manual_seed(self.share.agree(seed))
        if not self.in_blocks:
            return self.share.of(self.indices[_permutation(len(self.indices), generator)])
        order = self.share.of(_in_random_blocks(self.indices, generator))
        n_cells = self._edges[min(self._n_held, len(self))]  # what is held at a time
        parts = order.split(max(n_cells, 1))
        return torch.cat([part[_permutation(len(part), generator)] for part in parts])


def _permutation(number: int, generator: torch.Generator) -> Tensor:
    return torch.randperm(number, generator=generator)


def _in_random_blocks(cells: Tensor, generator: torch.Generator) -> Tensor:
    """Ascending cells, the blocks of a file that they lie in shuffled."""
    block = cells // _ROWS_PER_BLOCK
    place = _permutation(int(block[-1]) + 1, generator)
    return cells[place[block].argsort(stable=True)]


class DataSplitter(UpstreamDataSplitter):
    """scvi-tools' data splitter, with minibatches of our own where that is possible.

    It is possible for dense, CSR and CSC matrices in memory, and for what :func:`is_stored` knows.
    Loading in workers and sparse tensors keep scvi-tools' own loader. The name is upstream's
    because its check of early stopping goes by it.
    """

    train_idx: NDArray[np.integer]
    val_idx: NDArray[np.integer]
    test_idx: NDArray[np.integer]

    def setup(self, stage: str | None = None) -> None:
        """Split the cells, in several processes as the first one does."""
        super().setup(stage)
        if self._share.world_size > 1:
            split = self.train_idx, self.val_idx, self.test_idx
            self.train_idx, self.val_idx, self.test_idx = self.trainer.strategy.broadcast(split)

    @property
    def _share(self) -> Share:
        return Share.of_trainer(self.trainer)

    def train_dataloader(self) -> Any:
        """Return shuffled minibatches of the training cells."""
        minibatches = self._minibatches(self.train_idx, shuffle=True)
        if minibatches is not None:
            return minibatches
        if len(self.train_idx) > self._batch_size and len(self.train_idx) % self._batch_size == 1:
            self.drop_last = True  # batch normalisation cannot learn from one cell
        return super().train_dataloader()

    def val_dataloader(self) -> Any:
        """Return minibatches of the validation cells."""
        return self._minibatches(self.val_idx) or super().val_dataloader()

    def test_dataloader(self) -> Any:
        """Return minibatches of the test cells."""
        return self._minibatches(self.test_idx) or super().test_dataloader()

    def _minibatches(
        self, indices: NDArray[np.integer], shuffle: bool = False
    ) -> Minibatches | None:
        if len(indices) == 0 or self._rows is None:
            return None
        drop_last = shuffle and self.drop_last
        share = self._share
        return Minibatches(self._rows, indices, self._batch_size, shuffle, drop_last, share)

    @property
    def _batch_size(self) -> int:
        return self.data_loader_kwargs.get("batch_size") or settings.batch_size

    @cached_property
    def _rows(self) -> dict[str, Rows] | None:
        device = self.trainer.strategy.root_device if self.trainer is not None else None
        accelerator = device if device is not None and device.type == "cuda" else None
        rows = registered_rows(self.adata_manager, accelerator) if self._may_be_resident else None
        source = "scvi-tools' loader"
        if rows is not None:
            place = accelerator or "memory"
            if any(isinstance(row, StoredRows) for row in rows.values()):
                place = "where they are stored"
            source = f"counts in {place} ({rows[REGISTRY_KEYS.X_KEY].description})"
        logger.info("Minibatches of %d cells come from %s.", self._batch_size, source)
        return rows

    @property
    def _may_be_resident(self) -> bool:
        """Whether nothing was asked for that takes scvi-tools' loader."""
        options = dict(self.data_loader_kwargs)
        for known in ("batch_size", "distributed_sampler"):
            options.pop(known, None)
        return not options and not self.load_sparse_tensor and not settings.dl_num_workers
