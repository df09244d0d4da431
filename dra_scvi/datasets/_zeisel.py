"""Mouse cortex cells of Zeisel et al. (2015): downloaded, parsed, verified."""

from __future__ import annotations

import gzip
from typing import IO, TYPE_CHECKING, Literal, get_args

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from dra_scvi._argument_kinds import check_kinds
from dra_scvi._inputs.mtx_labels import named_rows
from dra_scvi.datasets._source import Source

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable
    from pathlib import Path

ZeiselLabels = Literal["level1class", "group"]

_SOURCE = Source(
    "Zeisel",
    "https://storage.googleapis.com/linnarsson-lab-www-blobs/blobs/cortex/"
    "expression_mRNA_17-Aug-2014.txt",
    {
        "n_cells": 3_005,
        "n_genes": 19_972,
        "level1class": (98, 224, 235, 290, 399, 820, 939),
        "group": (26, 60, 98, 175, 198, 290, 390, 820, 948),
    },
)
_NUMBERS = ("total_mRNA_mol", "well", "age", "diameter")
_CHUNK = 1_000


def zeisel(
    path: str | os.PathLike[str] | None = None,
    labels: ZeiselLabels = "level1class",
    n_genes: int | None = 720,
) -> AnnData:
    """All 3,005 cells of mouse cortex and hippocampus of Zeisel et al. (GSE60361).

    The authors' text file (about 120 MB) is downloaded once and kept in the user's cache folder.
    Its content is checked: cells, genes, integer counts, and the sizes of both sets of labels.
    The tests read small files of the same layout, and tutorial 09 reads this one only where it
    is on the machine already: its stored output was made without, and shows no score.

    Parameters
    ----------
    path
        Local copy of ``expression_mRNA_17-Aug-2014.txt``, plain or gzipped; None downloads it.
    labels
        Which annotation becomes ``cell_type``: ``"level1class"`` (7 types) or ``"group"`` (9,
        those of the label file that came with DR-A).
    n_genes
        How many genes of highest variance of the raw counts to keep, in the order of the file;
        None keeps all 19,972.

    Returns
    -------
    Counts of 3,005 cells and ``n_genes`` genes. ``obs`` holds ``cell_type``, the annotation of the
    authors (``level1class``, ``group``, ``level2class``, ``tissue``, ...) and ``n_counts``, the
    depth over all genes of the file.

    Raises
    ------
    ConnectionError
        The file is not in the cache and cannot be downloaded.
    FileNotFoundError
        There is no file at ``path``.
    ValueError
        The file is not the published one (a bad download is removed from the cache), or an
        argument is out of range.

    References
    ----------
    Zeisel, A. et al. (2015). Cell types in the mouse cortex and hippocampus revealed by
    single-cell RNA-seq. Science 347, 1138-1142.

    Examples
    --------
    >>> from dra_scvi import datasets
    >>> adata = datasets.zeisel(labels="group")  # doctest: +SKIP
    >>> adata.shape, adata.obs["cell_type"].nunique()  # doctest: +SKIP
    ((3005, 720), 9)
    """
    check_kinds(zeisel, locals())
    if labels not in get_args(ZeiselLabels):
        raise ValueError(f"Unknown labels {labels!r}; choose 'level1class' or 'group'.")
    adata = _SOURCE.read(path, _parse)
    adata.obs["n_counts"] = np.asarray(adata.X.sum(axis=1, dtype=np.float64)).ravel()
    adata.obs.insert(0, "cell_type", adata.obs[labels])
    return adata if n_genes is None else _highly_variable_by_variance(adata, n_genes)


def _highly_variable_by_variance(adata: AnnData, n_genes: int) -> AnnData:
    """Keep the genes of highest variance of X, in their order; ties go to the earlier gene."""
    if not 1 <= n_genes <= adata.n_vars:
        raise ValueError(f"n_genes must be between 1 and {adata.n_vars}, got {n_genes}.")
    counts = sparse.csr_matrix(adata.X, dtype=np.float64)
    total = np.asarray(counts.sum(axis=0)).ravel()
    squares = np.asarray(counts.multiply(counts).sum(axis=0)).ravel()
    spread = adata.n_obs * squares - total**2
    kept = np.sort(np.argsort(-spread, kind="stable")[:n_genes])
    return adata[:, kept].copy()


def _parse(path: Path) -> AnnData:
    """Read the authors' layout: rows of cell annotation, then one row per gene."""
    with _open_text(path) as handle:
        annotation, n_skip = _read_annotation(handle)
    obs = _obs(annotation)
    with _open_text(path) as handle:
        counts, genes = _read_gene_rows(handle, n_skip, n_cells=len(obs))
    return AnnData(counts, obs=obs, var=named_rows(genes))


def _open_text(path: Path) -> IO[str]:
    with path.open("rb") as handle:
        zipped = handle.read(2) == b"\x1f\x8b"
    if zipped:
        return gzip.open(path, "rt", encoding="utf-8", errors="replace")
    return path.open(encoding="utf-8", errors="replace")


def _read_annotation(handle: Iterable[str]) -> tuple[dict[str, list[str]], int]:
    """Annotation rows by name, and the number of lines before the first gene."""
    annotation: dict[str, list[str]] = {}
    for n_lines, line in enumerate(handle):
        fields = [field.strip().strip('"') for field in line.split("\t")]
        if fields[0]:
            return annotation, n_lines
        if any(fields[2:]) and fields[1]:
            annotation[fields[1].replace(" #", "").replace(" ", "_")] = fields[2:]
    raise ValueError("it has no row with a gene symbol in the first column")


def _obs(annotation: dict[str, list[str]]) -> pd.DataFrame:
    missing = [name for name in ("cell_id", *get_args(ZeiselLabels)) if name not in annotation]
    if missing:
        raise ValueError(f"it has no annotation row {', '.join(missing)}")
    lengths = {name: len(values) for name, values in annotation.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"its annotation rows differ in length: {lengths}")
    obs = named_rows(annotation["cell_id"])
    for name, values in annotation.items():
        if name in _NUMBERS:
            obs[name] = pd.to_numeric(np.array(values))
        elif name != "cell_id":
            obs[name] = pd.Categorical(values)
    return obs


def _read_gene_rows(
    handle: IO[str], n_skip: int, n_cells: int
) -> tuple[sparse.csr_matrix, list[str]]:
    genes: list[str] = []
    blocks: list[sparse.csr_matrix] = []
    dtypes = {0: object, 1: object} | dict.fromkeys(range(2, n_cells + 2), np.float32)
    chunks = pd.read_csv(
        handle,
        sep="\t",
        header=None,
        skiprows=n_skip,
        dtype=dtypes,
        na_values=[""],
        keep_default_na=False,
        chunksize=_CHUNK,
    )
    for chunk in chunks:
        rows = chunk[chunk[0].notna()]
        symbols = rows[0].astype(str).str.strip().tolist()
        values = rows.iloc[:, 2:].to_numpy(dtype=np.float32)
        if values.shape[1] != n_cells or np.isnan(values).any():
            raise ValueError(f"not all rows from gene {symbols[0]} on have {n_cells} counts")
        genes.extend(symbols)
        blocks.append(sparse.csr_matrix(values))
    return sparse.vstack(blocks).T.tocsr(), genes
