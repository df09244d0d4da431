"""Embeddings and labels as scores take them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from dra_scvi._argument_kinds import matrix, one_per_cell

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


def checked_embedding(embedding: ArrayLike, argument: str = "embedding") -> NDArray[np.floating]:
    points = matrix(embedding, argument)
    if points.ndim != 2 or 0 in points.shape:
        raise ValueError(
            "The embedding must be a dense matrix of shape (n_cells, n_latent), neither of them "
            f"zero; got shape {points.shape}."
        )
    if points.dtype != np.float32:
        points = points.astype(np.float64)
    n_bad = int((~np.isfinite(points).all(axis=1)).sum())
    if n_bad:
        raise ValueError(
            f"The embedding has NaN or infinite values in {n_bad} of {len(points)} cells; "
            "remove these cells, or train the model again with a lower learning rate."
        )
    return points


def label_codes(labels: ArrayLike, n_cells: int, name: str) -> NDArray[np.int64]:
    values = pd.Series(one_per_cell(labels, n_cells, name))
    codes, _ = pd.factorize(values)
    n_missing = int((codes < 0).sum())
    if n_missing:
        raise ValueError(
            f"{name} is missing (NaN) in {n_missing} of {n_cells} cells; drop these cells, or "
            "give them a value of their own such as 'unknown'."
        )
    return codes.astype(np.int64)


def n_distinct(codes: NDArray[np.int64]) -> int:
    return len(np.unique(codes))
