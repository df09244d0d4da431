"""The cells and genes that models are compared on: checked, chosen, and told apart by content."""

from __future__ import annotations

import hashlib
import logging
import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from dra_scvi._data.columns import validate_keys
from dra_scvi._data.validation import validate_counts
from dra_scvi._data.variable_genes import bare_counts, log_normalised, select_genes
from dra_scvi.metrics import _input

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray
    from scipy import sparse


logger = logging.getLogger("dra_scvi")

MIN_CELLS = 3
N_COMPONENTS = 50
SUBSAMPLE_SEED = 0
DIGEST_BYTES = 8


@dataclass(frozen=True)
class Cells:
    """What every model is given, and what it is scored against.

    Counts are CSR of float32, and their ``obs`` has the batches only; labels and batches are
    numbers from 0. The fingerprint is a digest of all three.
    """

    counts: AnnData
    labels: NDArray[np.int64]
    batches: NDArray[np.int64] | None
    gene_selection: str
    fingerprint: str

    @property
    def n_types(self) -> int:
        """Number of known types."""
        return len(np.unique(self.labels))

    @property
    def n_batches(self) -> int:
        """Number of batches that models are told of."""
        return 1 if self.batches is None else len(np.unique(self.batches))

    @cached_property
    def components(self) -> NDArray[np.floating]:
        """Principal components before any integration, at most 50, ``(n_cells, n_components)``."""
        import scanpy as sc

        logs = log_normalised(self.counts)
        sc.pp.pca(logs, n_comps=min(N_COMPONENTS, min(logs.shape) - 1), random_state=0)
        return logs.obsm["X_pca"]


def check_input(
    adata: AnnData, label_key: str, batch_key: str | None = None, layer: str | None = None
) -> None:
    """Check all that a comparison reads, before any work."""
    validate_keys(adata, layer, {"label_key": label_key, "batch_key": batch_key})
    _labels_to_score(adata.obs[label_key])
    validate_counts(adata, layer, batch_key)


def prepare(
    adata: AnnData,
    label_key: str,
    batch_key: str | None = None,
    layer: str | None = None,
    n_genes: int | None = None,
    max_cells: int | None = None,
    name: str = "data",
) -> Cells:
    """Copy the counts, labels and batches of an AnnData that :func:`check_input` has passed.

    Where there are more than `max_cells`, always the same are drawn; `n_genes` variable genes are
    kept, all when None, ranked within batches. `name` is that of the data set, for messages.

    >>> import dra_scvi
    >>> adata = dra_scvi.datasets.synthetic(n_cells=90, n_genes=30)
    >>> cells = prepare(adata, "cell_type", n_genes=9)
    >>> cells.counts.shape, cells.gene_selection
    ((90, 9), 'seurat_v3')
    """
    counts = bare_counts(adata, [label_key, batch_key], layer)
    if max_cells is not None and counts.n_obs > max_cells:
        rng = np.random.default_rng(SUBSAMPLE_SEED)
        chosen = np.sort(rng.choice(counts.n_obs, max_cells, replace=False))
        counts = counts[chosen].copy()
    counts = _without_empty(counts, name)
    counts, gene_selection = select_genes(counts, n_genes, batch_key, name)
    counts = _without_empty(counts, name)
    labels = _labels_to_score(counts.obs[label_key])
    batches = None
    if batch_key is not None:
        batches = pd.factorize(counts.obs[batch_key])[0].astype(np.int64)
    counts.obs = counts.obs[[] if batch_key is None else [batch_key]].copy()
    fingerprint = _fingerprint(counts.X, labels, batches)
    return Cells(counts, labels, batches, gene_selection, fingerprint)


def told_half(labels: NDArray[np.int64], seed: int) -> NDArray[np.bool_]:
    """Draw half of the cells of each type, rounded down: of a type of one none, of two one.

    >>> told = told_half(np.array([0, 0, 0, 0, 1, 1, 1, 2]), seed=0)
    >>> [int(told[:4].sum()), int(told[4:7].sum()), int(told[7])]
    [2, 1, 0]
    """
    drawn = pd.Series(labels).sample(frac=1, random_state=seed)
    types = drawn.groupby(drawn)
    return (types.cumcount() < types.transform("size") // 2).sort_index().to_numpy()


def _without_empty(counts: AnnData, name: str) -> AnnData:
    occupied = np.asarray(counts.X.sum(axis=1)).ravel() > 0
    n_empty = int((~occupied).sum())
    if not n_empty:
        return counts
    warnings.warn(
        f"{name}: {n_empty} of {counts.n_obs} cells have no counts in the {counts.n_vars} genes, "
        "and are left out of the comparison.",
        UserWarning,
        stacklevel=1,
    )
    return counts[occupied].copy()


def _labels_to_score(column: pd.Series) -> NDArray[np.int64]:
    """Return the number of each label, and refuse labels that nothing can be scored against."""
    name = f"label_key={column.name!r}"
    codes = _input.label_codes(column, len(column), name)
    n_types = len(np.unique(codes))
    if n_types < 2:
        raise ValueError(
            f"{name}: the {len(column)} cells have {n_types} distinct label; at least 2 are "
            "needed to score an embedding."
        )
    if len(column) < MIN_CELLS:
        raise ValueError(
            f"{len(column)} cells cannot be clustered; at least {MIN_CELLS} are needed."
        )
    return codes


def _fingerprint(
    counts: sparse.csr_matrix, labels: NDArray[np.int64], batches: NDArray[np.int64] | None
) -> str:
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    digest.update(repr((counts.shape, batches is None)).encode())
    for part in (counts.indptr, counts.indices, labels, batches):
        if part is not None:
            digest.update(part.astype(np.int64).tobytes())
    digest.update(counts.data.tobytes())
    return digest.hexdigest()
