"""Rows of registered data as tensors, in the order asked for, whatever holds them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse
from scvi.data import AnnTorchDataset

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

__all__ = ["CountsDataset"]


class CountsDataset(AnnTorchDataset):
    """scvi-tools' data set, without two faults of it.

    From a file it reads rows in ascending order, which leaves the results of getters out of step
    with the `indices` they were asked for; and it cannot read sparse blocks of a dask array.
    """

    def __getitem__(
        self, indexes: int | list[int] | NDArray[np.int64] | slice
    ) -> dict[str, NDArray | torch.Tensor]:
        """Fetch the data of cells, shape ``(n_cells, ...)`` each."""
        rows = super().__getitem__(indexes)
        for key, values in rows.items():
            if not self.load_sparse_tensor:
                dense = values.toarray() if sparse.issparse(values) else values
                rows[key] = dense.astype(self.keys_and_dtypes[key], copy=False)
        in_file = self.adata_manager.adata.isbacked
        if not in_file or self.load_sparse_tensor or not isinstance(indexes, list | np.ndarray):
            return rows
        rank = np.argsort(np.argsort(indexes))
        return {key: values[rank] for key, values in rows.items()}
