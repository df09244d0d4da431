"""Split and minibatches of the released program."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from scvi.dataloaders import DataSplitter
from torch.utils.data import DataLoader, Sampler

if TYPE_CHECKING:
    from collections.abc import Iterator


TRAIN_SHARE = 0.8


class _Windows(Sampler[list[int]]):
    """Contiguous windows of the training cells at random starts; the last cell is in none."""

    def __init__(self, n_train: int, batch_size: int, n_windows: int) -> None:
        self.n_train, self.batch_size, self.n_windows = n_train, batch_size, n_windows

    def __len__(self) -> int:
        return self.n_windows

    def __iter__(self) -> Iterator[list[int]]:
        for _ in range(self.n_windows):
            start = int(torch.randint(0, self.n_train - self.batch_size, ()))
            yield list(range(start, start + self.batch_size))


def published_split(n_obs: int) -> tuple[np.ndarray, np.ndarray]:
    """Split cells into training and test: a permutation seeded with 0, cut at 80 %.

    Examples
    --------
    >>> train, test = published_split(3005)
    >>> len(train), len(test)
    (2404, 601)
    """
    order = np.random.RandomState(0).permutation(n_obs)
    n_train = int(TRAIN_SHARE * n_obs)
    return order[:n_train], order[n_train:]


class PublishedSplitter(DataSplitter):
    """The released split and minibatches: an epoch is ``n_obs // batch_size`` windows."""

    def setup(self, stage: str | None = None) -> None:
        """Split the cells; the last fifth is for testing, none for validation."""
        self.train_idx, self.test_idx = published_split(self.adata_manager.adata.n_obs)
        self.val_idx = np.array([], dtype=int)
        self.n_train, self.n_val = len(self.train_idx), 0

    def train_dataloader(self) -> DataLoader:
        """Return a loader of random windows over the permuted training cells."""
        n_obs = self.adata_manager.adata.n_obs
        batch_size = self.data_loader_kwargs["batch_size"]
        if self.n_train <= batch_size:
            raise ValueError(
                f"The published minibatches need more training cells than `batch_size`: there are "
                f"{self.n_train} (80 % of {n_obs} cells) for {batch_size}. Lower batch_size."
            )
        dataset = self.adata_manager.create_torch_dataset(indices=self.train_idx)
        windows = _Windows(self.n_train, batch_size, n_obs // batch_size)
        return DataLoader(dataset, sampler=windows, batch_size=None)
