"""Embeddings and labels as scores take them: arrays, or an AnnData and names in it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
import pandas as pd

from dra_scvi._argument_kinds import matrix, one_per_cell
from dra_scvi._data.columns import unknown_key, validate_keys

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import ArrayLike, NDArray

DEFAULT_REP = "X_dra"


def _is_adata(value: Any) -> TypeGuard[AnnData]:
    return hasattr(value, "obsm")


def points_of(embedding: ArrayLike | AnnData, use_rep: str | None) -> NDArray[np.floating]:
    """Return coordinates: those given or, of an AnnData, those that a key names."""
    if _is_adata(embedding):
        return _stored(embedding, DEFAULT_REP if use_rep is None else use_rep, "use_rep")
    if use_rep is not None:
        raise TypeError(
            f"use_rep={use_rep!r} names a key of adata.obsm: pass adata in place of the "
            "embedding, or leave use_rep out."
        )
    return checked_embedding(embedding)


def other_points_of(
    embedding: ArrayLike | AnnData, other: ArrayLike | str, argument: str
) -> NDArray[np.floating]:
    """Return further coordinates of the same cells, or those that a key names."""
    if _is_adata(embedding) and isinstance(other, str):
        return _stored(embedding, other, argument)
    return checked_embedding(other, argument)


def _stored(adata: AnnData, key: str, argument: str) -> NDArray[np.floating]:
    if not isinstance(key, str):
        raise TypeError(f"{argument} takes the name of a key of adata.obsm, not {key!r}.")
    if key not in adata.obsm:
        raise KeyError(unknown_key(argument, key, "a key of adata.obsm", adata.obsm.keys()))
    return checked_embedding(adata.obsm[key], f"adata.obsm[{key!r}]")


def codes_of(
    embedding: ArrayLike | AnnData, values: ArrayLike | str, n_cells: int, name: str
) -> NDArray[np.int64]:
    """Replace values, those given or of a column of an AnnData, by numbers from 0."""
    if _is_adata(embedding) and isinstance(values, str):
        validate_keys(embedding, obs_keys={name: values})
        return label_codes(embedding.obs[values], n_cells, f"{name}={values!r}")
    if _is_adata(embedding) and isinstance(values, pd.Series | pd.DataFrame):
        _check_order(values.index, embedding.obs_names, name)
    return label_codes(values, n_cells, name)


def _check_order(index: pd.Index, cells: pd.Index, name: str) -> None:
    """Refuse values of the same cells in another order, which would be taken by their place."""
    if len(index) == len(cells) and not index.equals(cells) and set(index) == set(cells):
        raise ValueError(
            f"{name} has the cells in another order than adata: pass {name}.loc[adata.obs_names]."
        )


def checked_embedding(embedding: Any, argument: str = "embedding") -> NDArray[np.floating]:
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
