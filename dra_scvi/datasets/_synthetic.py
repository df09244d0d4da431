"""Counts drawn from known types and batches."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import sparse

from dra_scvi._argument_kinds import check_kinds
from dra_scvi._inputs.mtx_labels import assemble, numbered

if TYPE_CHECKING:
    from anndata import AnnData


def synthetic(
    n_cells: int = 500, n_genes: int = 200, n_types: int = 4, n_batches: int = 1, seed: int = 0
) -> AnnData:
    """Draw gamma-Poisson counts of cells whose types, and batches, are known.

    Each type shifts the log expression of every gene by its own normal draw, each batch by a
    weaker one. Types and batches are of equal size, up to one cell, and independent of each other.

    Parameters
    ----------
    n_cells, n_genes
        Size of the matrix.
    n_types
        Number of cell types, at most ``n_cells``.
    n_batches
        Number of batches, at most ``n_cells``; with one there is no ``batch`` column.
    seed
        Seed of all draws; equal arguments give equal data.

    Returns
    -------
    Counts ``(n_cells, n_genes)``, about one per gene and cell, with ``obs["cell_type"]`` and, for
    two batches or more, ``obs["batch"]``.

    Raises
    ------
    ValueError
        A size is below 1, or there are more types or batches than cells.

    Examples
    --------
    >>> from dra_scvi import datasets
    >>> adata = datasets.synthetic(n_cells=60, n_genes=20, n_types=3, n_batches=2)
    >>> adata.shape, adata.obs["cell_type"].value_counts().tolist()
    ((60, 20), [20, 20, 20])
    """
    check_kinds(synthetic, locals())
    _check_sizes(n_cells=n_cells, n_genes=n_genes, n_types=n_types, n_batches=n_batches)
    rng = np.random.default_rng(seed)
    types = rng.permutation(np.arange(n_cells) % n_types)
    batch = rng.permutation(np.arange(n_cells) % n_batches)
    log_mean = (
        rng.normal(scale=0.8, size=n_genes)
        + rng.normal(scale=0.8, size=(n_types, n_genes))[types]
        + rng.normal(scale=0.3, size=(n_batches, n_genes))[batch]
    )
    share = np.exp(log_mean)
    share /= share.sum(axis=1, keepdims=True)
    depth = n_genes * rng.lognormal(sigma=0.3, size=(n_cells, 1))
    dispersion = 5.0
    rate = rng.gamma(shape=dispersion, scale=share * depth / dispersion)
    counts = sparse.csr_matrix(rng.poisson(rate), dtype=np.float32)
    adata = assemble(counts, [f"type_{code}" for code in types], numbered("gene", n_genes))
    if n_batches > 1:
        adata.obs["batch"] = pd.Categorical([f"batch_{code}" for code in batch])
    return adata


def _check_sizes(n_cells: int, **sizes: int) -> None:
    for name, size in {"n_cells": n_cells, **sizes}.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}.")
    for name in ("n_types", "n_batches"):
        if sizes[name] > n_cells:
            raise ValueError(f"{name} = {sizes[name]} is more than n_cells = {n_cells}.")
