"""Blood cells with and without interferon of Kang et al. (2018): downloaded, parsed, verified."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from dra_scvi._inputs.mtx_labels import named_rows
from dra_scvi._inputs.zarr_store import is_h5ad
from dra_scvi.datasets._source import Source

_COMMIT = "ec6b742f9f42dc4f1a40a392ddfe8d3610ab9e63"
_COPY = "kang_ifnb_2800x14053.h5ad"
_SOURCE = Source(
    "Kang",
    f"https://raw.githubusercontent.com/Wang-Cankun/iris3api/{_COMMIT}/data/ifnb_2800.rda",
    {
        "n_cells": 2_800,
        "n_genes": 14_053,
        "batch": (1_310, 1_490),
        "cell_type": (8, 23, 46, 66, 89, 107, 130, 148, 178, 225, 333, 535, 912),
        "n_values": 1_971_641,
        "total": 5_799_413,
    },
)


def kang(path: str | os.PathLike[str] | None = None) -> AnnData:
    """2,800 blood cells, unstimulated and after interferon beta, of Kang et al. (GSE96583).

    Every fifth cell of the data set `ifnb` of SeuratData, as the R package iris3api keeps it. The
    file (about 3 MB) is downloaded once, at a fixed commit, and kept in the user's cache folder.
    Where the environment variable `DRA_SCVI_DATA` names a folder with a copy of the data as
    `kang_ifnb_2800x14053.h5ad`, that is read instead. The content is checked: cells, genes,
    integer counts and their sum, and the sizes of conditions and types.

    Parameters
    ----------
    path
        Local copy of ``ifnb_2800.rda``, or of the same data as ``.h5ad``; None for `DRA_SCVI_DATA`
        or a download.

    Returns
    -------
    Counts of 2,800 cells and 14,053 genes. ``obs`` holds ``cell_type`` (13 types, annotated with
    Seurat) and ``batch``: ``"CTRL"`` or ``"STIM"``, a biological effect rather than a technical
    one.

    Raises
    ------
    ConnectionError
        The file is not in the cache and cannot be downloaded.
    FileNotFoundError
        There is no file at ``path``.
    ValueError
        The file holds other data; a bad download is removed from the cache.

    References
    ----------
    Kang, H. M. et al. (2018). Multiplexed droplet single-cell RNA-sequencing using natural genetic
    variation. Nat. Biotechnol. 36, 89-94.

    Examples
    --------
    >>> from dra_scvi import datasets
    >>> adata = datasets.kang()  # doctest: +SKIP
    >>> adata.shape, adata.obs["batch"].value_counts().to_dict()  # doctest: +SKIP
    ((2800, 14053), {'STIM': 1490, 'CTRL': 1310})
    """
    copy = Path(os.environ.get("DRA_SCVI_DATA", "")) / _COPY
    return _SOURCE.read(copy if path is None and copy.is_file() else path, _parse)


def _parse(path: Path) -> AnnData:
    if is_h5ad(path):
        adata = anndata.read_h5ad(path)
        counts, genes, obs = (
            sparse.csr_matrix(adata.X, dtype=np.float32),
            adata.var_names,
            adata.obs,
        )
    else:
        counts, genes, obs = _read_rda(path)
    counts.eliminate_zeros()
    counts.sort_indices()
    annotation = pd.DataFrame(
        {name: pd.Categorical(obs[name].astype(str)) for name in ("cell_type", "batch")},
        index=pd.Index(obs.index.astype(str)),
    )
    return AnnData(counts, obs=annotation, var=named_rows(genes))


def _read_rda(path: Path) -> tuple[sparse.csr_matrix, list[str], pd.DataFrame]:
    """Read a list of `expr`, genes by cells with their names, and `meta`, a row per cell."""
    import rdata

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (content,) = rdata.read_rda(path).values()
    expression, meta = content["expr"], content["meta"]
    genes, cells = (expression.coords[dim].to_numpy() for dim in expression.dims)
    if list(cells) != list(meta.index):
        raise ValueError("its matrix and its annotation are of different cells")
    counts = sparse.csr_matrix(expression.to_numpy().T, dtype=np.float32)
    return counts, [str(gene) for gene in genes], meta.rename(columns={"sample": "batch"})
