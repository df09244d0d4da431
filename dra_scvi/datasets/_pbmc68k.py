"""The 700 blood cells that ship with scanpy, as counts."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

if TYPE_CHECKING:
    from numpy.typing import NDArray

_PBMC_SCALE = 1e4
_PBMC_MAX_DISTANCE = 0.1
_PBMC_MAX_ERROR = 5.1e-4


def pbmc68k() -> AnnData:
    """Peripheral blood cells with their exact counts, from the file that ships with scanpy.

    scanpy's reduced data set stores ``log1p(1e4 * count / n_counts)`` rounded to three decimals.
    That is precise enough to get every integer count back. Nothing is downloaded.

    Returns
    -------
    Counts of 700 cells and 765 genes. ``obs`` holds ``cell_type`` (10 types, also as
    ``bulk_labels``) and ``n_counts``, the depth of the cell over *all* genes, about five times the
    row sum.

    Raises
    ------
    ValueError
        The shipped file does not hold what is expected, so counts cannot be recovered.

    References
    ----------
    Zheng, G. X. Y. et al. (2017). Massively parallel digital transcriptional profiling of single
    cells. Nat. Commun. 8, 14049.

    Examples
    --------
    >>> from dra_scvi import datasets
    >>> adata = datasets.pbmc68k()
    >>> adata.shape, adata.X.dtype.name, int(adata.X.max())
    ((700, 765), 'float32', 259)
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import scanpy as sc

        shipped = sc.datasets.pbmc68k_reduced()
    depth = shipped.obs["n_counts"].to_numpy(dtype=np.float64)
    counts = _invert_log_normalisation(sparse.csr_matrix(shipped.raw.X), depth)
    obs = pd.DataFrame(
        {
            "cell_type": shipped.obs["bulk_labels"],
            "bulk_labels": shipped.obs["bulk_labels"],
            "n_counts": depth,
        },
        index=shipped.obs_names.copy(),
    )
    return AnnData(counts, obs=obs, var=pd.DataFrame(index=shipped.raw.var_names.copy()))


def _invert_log_normalisation(
    logs: sparse.csr_matrix, depth: NDArray[np.float64]
) -> sparse.csr_matrix:
    """Recover c from log1p(1e4 c / depth) rounded to three decimals; refuse anything ambiguous."""
    scale = np.repeat(depth / _PBMC_SCALE, np.diff(logs.indptr))
    stored = logs.data.astype(np.float64)
    exact = np.expm1(stored) * scale
    rounded = np.rint(exact)
    distance = np.abs(exact - rounded).max(initial=0.0)
    error = np.abs(np.log1p(rounded / scale) - stored).max(initial=0.0)
    if not (distance < _PBMC_MAX_DISTANCE and error <= _PBMC_MAX_ERROR):
        raise ValueError(
            "scanpy's pbmc68k_reduced is not the file that counts can be recovered from: largest "
            f"distance from an integer {distance:.3g} (allowed {_PBMC_MAX_DISTANCE}), round trip "
            f"error {error:.3g} (allowed {_PBMC_MAX_ERROR}); use scanpy 1.11 or 1.12."
        )
    counts = sparse.csr_matrix(
        (rounded.astype(np.float32), logs.indices, logs.indptr), shape=logs.shape
    )
    counts.eliminate_zeros()
    counts.sort_indices()
    return counts
