"""Labelled count matrices: data shipped with scanpy, downloads, folders in the DR-A layout, fakes.

Every function returns an :class:`anndata.AnnData` whose ``X`` holds raw counts, as integers in a
float32 CSR matrix, and whose ``obs["cell_type"]`` is categorical.
"""

from __future__ import annotations

import gzip
import lzma
import os
import struct
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal, get_args

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from dra_scvi._inputs.mtx_labels import (
    assemble,
    check_counts,
    named_rows,
    numbered,
    read_mtx_labels,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

__all__ = ["kang", "pbmc68k", "read_mtx_labels", "synthetic", "zeisel"]

ZeiselLabels = Literal["level1class", "group"]

_ZEISEL_FILE = "expression_mRNA_17-Aug-2014.txt"
_ZEISEL_URL = (
    f"https://storage.googleapis.com/linnarsson-lab-www-blobs/blobs/cortex/{_ZEISEL_FILE}"
)
_ZEISEL_NUMERIC = ("total_mRNA_mol", "well", "age", "diameter")
_ZEISEL_CHUNK = 1_000

_KANG_FILE = "ifnb_2800.rda"
_KANG_COMMIT = "ec6b742f9f42dc4f1a40a392ddfe8d3610ab9e63"
_KANG_URL = (
    f"https://raw.githubusercontent.com/Wang-Cankun/iris3api/{_KANG_COMMIT}/data/{_KANG_FILE}"
)
_KANG_COPY = "kang_ifnb_2800x14053.h5ad"

# what reading such a file raises that was cut off, or is another
_CORRUPT = (
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    IndexError,
    NotImplementedError,
    EOFError,
    OSError,
    lzma.LZMAError,
    zlib.error,
    struct.error,
)

_PBMC_SCALE = 1e4
_PBMC_MAX_DISTANCE = 0.1
_PBMC_MAX_ERROR = 5.1e-4


@dataclass(frozen=True)
class _ZeiselFacts:
    """What the published matrix contains; label sizes are sorted."""

    n_cells: int
    n_genes: int
    level1class: tuple[int, ...]
    group: tuple[int, ...]


_ZEISEL = _ZeiselFacts(
    n_cells=3_005,
    n_genes=19_972,
    level1class=(98, 224, 235, 290, 399, 820, 939),
    group=(26, 60, 98, 175, 198, 290, 390, 820, 948),
)


@dataclass(frozen=True)
class _KangFacts:
    """What the subset contains; sizes of batches and types are sorted."""

    n_cells: int
    n_genes: int
    batch: tuple[int, ...]
    cell_type: tuple[int, ...]
    n_values: int
    total: int


_KANG = _KangFacts(
    n_cells=2_800,
    n_genes=14_053,
    batch=(1_310, 1_490),
    cell_type=(8, 23, 46, 66, 89, 107, 130, 148, 178, 225, 333, 535, 912),
    n_values=1_971_641,
    total=5_799_413,
)


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


def zeisel(
    path: str | os.PathLike[str] | None = None,
    labels: ZeiselLabels = "level1class",
    n_genes: int | None = 720,
) -> AnnData:
    """All 3,005 cells of mouse cortex and hippocampus of Zeisel et al. (GSE60361).

    The authors' text file (about 120 MB) is downloaded once and kept in the user's cache folder.
    Its content is checked: cells, genes, integer counts, and the sizes of both sets of labels.
    The tests read small files of the same layout, and tutorial 02 reads this one only where it
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
    if labels not in get_args(ZeiselLabels):
        raise ValueError(f"Unknown labels {labels!r}; choose 'level1class' or 'group'.")
    source = _download_zeisel() if path is None else Path(path).expanduser()
    try:
        adata = _parse_zeisel(source)
        _verify_zeisel(adata, _ZEISEL)
    except ValueError:
        if path is None:
            source.unlink(missing_ok=True)
        raise
    adata.obs["n_counts"] = np.asarray(adata.X.sum(axis=1, dtype=np.float64)).ravel()
    adata.obs.insert(0, "cell_type", adata.obs[labels])
    return adata if n_genes is None else _highly_variable_by_variance(adata, n_genes)


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
    copy = Path(os.environ.get("DRA_SCVI_DATA", "")) / _KANG_COPY
    local = copy if path is None and copy.is_file() else path
    source = _download_kang() if local is None else Path(local).expanduser()
    try:
        adata = _parse_kang(source)
        _verify_kang(adata, _KANG)
    except ValueError:
        if local is None:
            source.unlink(missing_ok=True)
        raise
    return adata


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


def _download_zeisel() -> Path:
    return _download("Zeisel", _ZEISEL_URL, _ZEISEL_FILE)


def _download_kang() -> Path:
    return _download("Kang", _KANG_URL, _KANG_FILE)


def _download(name: str, url: str, file: str) -> Path:
    import pooch

    try:
        saved = pooch.retrieve(url, known_hash=None, fname=file, path=pooch.os_cache("dra_scvi"))
    except OSError as error:
        raise ConnectionError(
            f"Could not download the {name} data ({type(error).__name__}); download {url} "
            "elsewhere and pass it as path=."
        ) from error
    return Path(saved)


def _parse_zeisel(path: Path) -> AnnData:
    """Read the authors' layout: rows of cell annotation, then one row per gene."""
    if not path.is_file():
        raise FileNotFoundError(f"No file at {path}; download {_ZEISEL_URL} and pass it as path=.")
    try:
        with _open_text(path) as handle:
            annotation, n_skip = _read_annotation(handle)
        obs = _zeisel_obs(annotation)
        with _open_text(path) as handle:
            counts, genes = _read_gene_rows(handle, n_skip, n_cells=len(obs))
    except (ValueError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(
            f"{path} cannot be read as {_ZEISEL_FILE}: {error}; get it from {_ZEISEL_URL}."
        ) from error
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


def _zeisel_obs(annotation: dict[str, list[str]]) -> pd.DataFrame:
    missing = [name for name in ("cell_id", *get_args(ZeiselLabels)) if name not in annotation]
    if missing:
        raise ValueError(f"it has no annotation row {', '.join(missing)}")
    lengths = {name: len(values) for name, values in annotation.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"its annotation rows differ in length: {lengths}")
    obs = named_rows(annotation["cell_id"])
    for name, values in annotation.items():
        if name in _ZEISEL_NUMERIC:
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
        chunksize=_ZEISEL_CHUNK,
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


def _verify_zeisel(adata: AnnData, expected: _ZeiselFacts) -> None:
    """Raise unless the parsed file has the cells, genes, counts and label sizes that are known."""
    found = _ZeiselFacts(
        n_cells=adata.n_obs,
        n_genes=adata.n_vars,
        level1class=tuple(sorted(adata.obs["level1class"].value_counts())),
        group=tuple(sorted(adata.obs["group"].value_counts())),
    )
    if found != expected:
        raise ValueError(
            f"The Zeisel file is not the published one: expected {expected}, found {found}; "
            f"get it from {_ZEISEL_URL}."
        )
    check_counts(adata.X, where="The Zeisel file")


def _parse_kang(path: Path) -> AnnData:
    if not path.is_file():
        raise FileNotFoundError(f"No file at {path}; download {_KANG_URL} and pass it as path=.")
    try:
        counts, genes, obs = _read_h5ad(path) if path.suffix == ".h5ad" else _read_rda(path)
    except _CORRUPT as error:
        detail = f"{type(error).__name__}: {error}"
        raise ValueError(
            f"{path} cannot be read as {_KANG_FILE} ({detail}); get it from {_KANG_URL}."
        ) from error
    counts.eliminate_zeros()
    counts.sort_indices()
    annotation = pd.DataFrame(
        {name: pd.Categorical(obs[name].astype(str)) for name in ("cell_type", "batch")},
        index=pd.Index(obs.index.astype(str)),
    )
    return AnnData(counts, obs=annotation, var=named_rows(genes))


def _read_h5ad(path: Path) -> tuple[sparse.csr_matrix, list[str], pd.DataFrame]:
    import anndata

    adata = anndata.read_h5ad(path)
    return sparse.csr_matrix(adata.X, dtype=np.float32), list(adata.var_names), adata.obs


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


def _verify_kang(adata: AnnData, expected: _KangFacts) -> None:
    """Raise unless the parsed file has the cells, genes, counts and labels that are known."""
    check_counts(adata.X, where="The Kang file")
    found = _KangFacts(
        n_cells=adata.n_obs,
        n_genes=adata.n_vars,
        batch=tuple(sorted(adata.obs["batch"].value_counts())),
        cell_type=tuple(sorted(adata.obs["cell_type"].value_counts())),
        n_values=adata.X.nnz,
        total=int(adata.X.sum(dtype=np.float64)),
    )
    if found != expected:
        raise ValueError(
            f"The Kang file is not the published one: expected {expected}, found {found}; "
            f"get it from {_KANG_URL}."
        )
