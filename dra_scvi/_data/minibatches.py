"""Minibatches from counts that stay where they are: in memory, on the accelerator, or in a file.

The split into training, validation and test cells is scvi-tools' own, as are the order of the
minibatches under a seed and the meaning of `drop_last`. Counts in a file are shuffled otherwise:
blocks of neighbouring cells first, then the cells of as many blocks as are held at a time.
"""

from __future__ import annotations

import itertools
import logging
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scvi import REGISTRY_KEYS, settings
from scvi.dataloaders import DataSplitter as UpstreamDataSplitter
from torch.utils.data import RandomSampler

from dra_scvi._data.rows import Rows, StoredRows, registered_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lightning.pytorch import Trainer
    from numpy.typing import NDArray
    from torch import Tensor


logger = logging.getLogger("dra_scvi")
# neighbours in a file are read together; as many cells as are held come from 128 places in it
_ROWS_PER_BLOCK = 128
_ROWS_HELD = 128 * _ROWS_PER_BLOCK


@dataclass(frozen=True)
class Share:
    """The part of the cells that one of several processes goes through.

    `agree` turns a number of this process into that of the first.
    """

    rank: int = 0
    world_size: int = 1
    agree: Callable[[int], int] = int

    @classmethod
    def of_trainer(cls, trainer: Trainer | None) -> Share:
        """Return the share of the process that a trainer runs in."""
        if trainer is None or trainer.world_size == 1:
            return cls()
        return cls(trainer.global_rank, trainer.world_size, trainer.strategy.broadcast)

    def size(self, n_cells: int) -> int:
        """Cells of this process: as many as of every other, or some would wait for ever."""
        return -(-n_cells // self.world_size)

    def of(self, cells: Tensor) -> Tensor:
        """Cells of this process, of all in an order that is the same everywhere.

        To make shares equal a few cells come twice.
        """
        size = self.size(len(cells))
        padding = cells[: size * self.world_size - len(cells)]
        return torch.cat([cells, padding])[self.rank * size : (self.rank + 1) * size]


class Minibatches:
    """Minibatches of chosen cells, in the order that scvi-tools' loader takes them in.

    A last minibatch of one cell, from which batch normalisation cannot learn, joins the one
    before it where the minibatches are shuffled for training. Cells in a file come in ascending
    order where they are not shuffled; each shuffle draws from torch's global random state.

    >>> from dra_scvi._data.rows import DenseRows
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
        if len(self.train_idx) == 1:
            raise ValueError(
                f"1 of {self.adata_manager.adata.n_obs} cells would be trained on, and no "
                "distribution is learned from one: give a larger train_size, or more cells."
            )
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
            place = f"in {accelerator or 'memory'}"
            if any(isinstance(row, StoredRows) for row in rows.values()):
                place = "where they are stored"
            source = f"counts {place} ({rows[REGISTRY_KEYS.X_KEY].description})"
        logger.info("Minibatches of %d cells come from %s.", self._batch_size, source)
        return rows

    @property
    def _may_be_resident(self) -> bool:
        """Whether nothing was asked for that takes scvi-tools' loader."""
        options = dict(self.data_loader_kwargs)
        for known in ("batch_size", "distributed_sampler"):
            options.pop(known, None)
        return not options and not self.load_sparse_tensor and not settings.dl_num_workers
