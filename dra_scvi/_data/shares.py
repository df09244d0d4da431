"""The part of the cells that one of several processes goes through."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from lightning.pytorch import Trainer
    from torch import Tensor


@dataclass(frozen=True)
class Share:
    """The part of the cells that one of several processes goes through.

    Parameters
    ----------
    rank
        Number of the process, from 0.
    world_size
        Number of processes.
    agree
        From a number of this process to that of the first.

    Examples
    --------
    >>> Share(1, 2).of(torch.arange(5))
    tensor([3, 4, 0])
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
