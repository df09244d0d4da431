"""Genes that vary: ranked by `seurat_v3` where its regression can be fitted, else by variance."""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from dra_scvi._argument_kinds import check_kinds
from dra_scvi._data.columns import validate_keys
from dra_scvi._exceptions import first_line

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray


logger = logging.getLogger("dra_scvi")

TARGET_SUM = 1e4
# with fewer points than coefficients the Fortran code behind loess writes where it must not, and
# the process dies; with fewer than these it has no solution for the share of points that is used
LEAST_POINTS = 16
NAMED = 3


def variable_genes(
    adata: AnnData, n_genes: int, batch_key: str | None = None, layer: str | None = None
) -> list[str]:
    """Name the genes that vary most, in their order.

    Ranked by `seurat_v3` of scanpy, whose regression ends the process, without a word, in batches
    of one cell or of next to no genes that vary. Those are left out of the ranking; genes are
    ranked by the variance of their log-normalised counts where no cells are left or the
    regression fails. A warning tells of both.

    Parameters
    ----------
    adata
        Raw counts of ``(n_cells, n_genes)``.
    n_genes
        Number of genes to name.
    batch_key
        Column of ``adata.obs`` with batches, within which genes are ranked.
    layer
        Layer that holds the counts; `None` for ``adata.X``.

    Raises
    ------
    KeyError
        When the layer or the column does not exist.
    ValueError
        When `n_genes` is less than 1.

    Examples
    --------
    >>> import dra_scvi
    >>> adata = dra_scvi.datasets.synthetic(n_cells=90, n_genes=30)
    >>> adata = adata[:, dra_scvi.tl.variable_genes(adata, n_genes=9)].copy()
    >>> adata.n_vars
    9
    """
    check_kinds(variable_genes, locals())
    if n_genes < 1:
        raise ValueError(f"n_genes must be at least 1, not {n_genes}.")
    validate_keys(adata, layer, {"batch_key": batch_key})
    counts = bare_counts(adata, [batch_key], layer)
    return list(select_genes(counts, n_genes, batch_key, "input")[0].var_names)


def select_genes(
    counts: AnnData, n_genes: int | None, batch_key: str | None, name: str
) -> tuple[AnnData, str]:
    """Keep so many variable genes of canonical CSR counts, ranked within batches, or all for None.

    Return the counts of those genes, and how they were found: ``"all"``, ``"seurat_v3"`` or
    ``"variance"``. `name` is that of the data set, for messages.
    """
    if n_genes is None or n_genes >= counts.n_vars:
        return counts, "all"
    try:
        chosen, how = _by_seurat(counts, n_genes, batch_key, name), "seurat_v3"
    except (ImportError, ValueError) as error:
        warnings.warn(
            f"{name}: seurat_v3 cannot rank the genes ({first_line(error)}); the {n_genes} of "
            "highest variance in log-normalised counts are taken instead.",
            stacklevel=1,
        )
        chosen, how = most_variable(log_normalised(counts).X, n_genes), "variance"
    logger.info("%s: kept %d of %d genes, by %s", name, chosen.sum(), counts.n_vars, how)
    return counts[:, chosen].copy(), how


def _by_seurat(
    counts: AnnData, n_genes: int, batch_key: str | None, name: str
) -> NDArray[np.bool_]:
    import scanpy as sc

    ranked = sc.pp.highly_variable_genes(
        _rankable(counts, batch_key, name),
        flavor="seurat_v3",
        n_top_genes=n_genes,
        batch_key=batch_key,
        inplace=False,
    )
    return ranked.loc[counts.var_names, "highly_variable"].to_numpy(dtype=bool)


def _rankable(counts: AnnData, batch_key: str | None, name: str) -> AnnData:
    """Leave out batches in which the regression of `seurat_v3` has too few points."""
    import pandas as pd

    batches = np.zeros(counts.n_obs) if batch_key is None else counts.obs[batch_key].to_numpy()
    codes, names = pd.factorize(batches)
    n_varying = [_n_varying(counts.X[codes == code]) for code in range(len(names))]
    few = [code for code, n in enumerate(n_varying) if n < LEAST_POINTS]
    kept = ~np.isin(codes, few)
    if not kept.any():
        raise ValueError(f"fewer than {LEAST_POINTS} genes vary among the cells of a batch")
    if few:
        shown = ", ".join(repr(str(names[code])) for code in few[:NAMED])
        warnings.warn(
            f"{name}: genes are ranked without the {int((~kept).sum())} cells of "
            f"{len(few)} of {len(names)} batches ({shown}{', ...' if len(few) > NAMED else ''}), "
            f"in each of which fewer than {LEAST_POINTS} genes vary.",
            stacklevel=1,
        )
    return counts if kept.all() else counts[kept].copy()


def _n_varying(matrix: sparse.csr_matrix) -> int:
    """Count the genes that do not have one value in all cells."""
    if matrix.shape[0] < 2:
        return 0
    spread = matrix.max(axis=0).toarray() - matrix.min(axis=0).toarray()
    return int((spread > 0).sum())


def most_variable(matrix: sparse.csr_matrix, n_genes: int) -> NDArray[np.bool_]:
    """Tell which columns have the highest variance, the first ones among equals.

    >>> most_variable(sparse.csr_matrix([[0.0, 1.0, 4.0], [0.0, 2.0, 0.0]]), 2).tolist()
    [False, True, True]
    """
    from sklearn.utils.sparsefuncs import mean_variance_axis

    _, variance = mean_variance_axis(matrix.astype(np.float64), axis=0)
    chosen = np.zeros(matrix.shape[1], dtype=bool)
    chosen[np.argsort(-variance, kind="stable")[:n_genes]] = True
    return chosen


def log_normalised(counts: AnnData) -> AnnData:
    """Return ln(1 + counts per 10,000), in a copy."""
    import scanpy as sc

    logs = counts.copy()
    sc.pp.normalize_total(logs, target_sum=TARGET_SUM)
    sc.pp.log1p(logs)
    return logs


def bare_counts(adata: AnnData, columns: list[str | None], layer: str | None) -> AnnData:
    """Copy the counts, as canonical CSR, and columns of `obs`; `None` stands for no column."""
    import anndata
    import pandas as pd

    matrix = adata.X if layer is None else adata.layers[layer]
    names = list(dict.fromkeys(name for name in columns if name is not None))
    return anndata.AnnData(
        X=_csr(matrix), obs=adata.obs[names].copy(), var=pd.DataFrame(index=adata.var_names)
    )


def _csr(matrix: Any) -> sparse.csr_matrix:
    """Copy a matrix of any kind to canonical CSR."""
    for read in ("compute", "to_memory"):
        if hasattr(matrix, read):
            matrix = getattr(matrix, read)()
    if not sparse.issparse(matrix):
        matrix = np.asarray(matrix)
    copied = sparse.csr_matrix(matrix, dtype=np.float32, copy=True)
    copied.sum_duplicates()
    copied.eliminate_zeros()
    return copied
