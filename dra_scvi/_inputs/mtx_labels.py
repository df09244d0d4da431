"""Folders in the layout of the original DR-A: one .mtx beside labels.txt and, maybe, genes.txt."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from anndata import AnnData
from anndata.utils import make_index_unique
from scipy import sparse

from dra_scvi._exceptions import InputError
from dra_scvi._inputs.memory import available_memory

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable

MTX_FILE = "sub_set-720.mtx"
LABEL_FILE = "labels.txt"
GENE_FILE = "genes.txt"

WRITTEN_AS_FLOAT = re.compile(r"[+-]?\d+\.\d*(e[+-]?\d+)?", re.IGNORECASE)
NUMBERED_LINE = re.compile(r"\"?(\d+)\"?[\t,; ]\s*(.+)")
LEAST_BYTES = {"array": 2, "coordinate": 6}  # of a value in the file, with its place and line end
BYTES_PER_NAME = 200  # in memory, of a row or a column
MANY_LABELS = 20


def read_mtx_labels(folder: str | os.PathLike[str]) -> AnnData:
    r"""Read a folder in the layout of the original DR-A: one ``.mtx`` beside ``labels.txt``.

    The matrix is cells x genes, as in DR-A, with as many rows as there are labels. One of genes x
    cells is turned where ``genes.txt`` has a name for each of its rows; without that it is
    refused, as it would look the same with the labels of a part of the cells.

    Parameters
    ----------
    folder
        Folder with ``sub_set-720.mtx`` (or any single ``.mtx``), ``labels.txt`` (one label per
        line, with or without a running number before it, or all separated by white space) and, if
        wanted, ``genes.txt`` (one name per line).

    Returns
    -------
    Counts ``(n_cells, n_genes)``, labels as text in ``obs["cell_type"]``. Whole numbers written as
    floats, as in the label files of DR-A, lose their decimals: ``1.000e+00`` becomes ``"1"``.

    Raises
    ------
    FileNotFoundError
        The folder, its matrix or its labels are missing.
    ValueError
        There are several matrices and none is ``sub_set-720.mtx``, the matrix cannot be read or
        does not hold counts, or labels or genes do not fit it.

    Warns
    -----
    UserWarning
        When every cell has a label of its own.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from scipy import io, sparse
    >>> from dra_scvi import datasets
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     io.mmwrite(Path(folder, "sub_set-720.mtx"), sparse.coo_matrix([[0, 3, 1], [2, 0, 0]]))
    ...     _ = Path(folder, "labels.txt").write_text("T\nB\n")
    ...     adata = datasets.read_mtx_labels(folder)
    >>> adata.shape, adata.obs["cell_type"].tolist()
    ((2, 3), ['T', 'B'])
    """
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(f"No folder at {root}; pass a folder with a .mtx and labels.txt.")
    matrix_file, label_file, gene_file = _find_mtx(root), root / LABEL_FILE, root / GENE_FILE
    if not label_file.is_file():
        raise FileNotFoundError(
            f"No {LABEL_FILE} in {root}; add one with one label per line, in the order of cells."
        )
    shape = _read_shape(matrix_file)
    labels = _read_labels(label_file, shape)
    genes = _read_genes(gene_file) if gene_file.exists() else None
    by_gene = _has_cells_in_columns(shape, labels, genes, root)
    n_genes = shape[0 if by_gene else 1]
    if genes is not None and len(genes) != n_genes:
        text = f"{gene_file} names {len(genes)} genes, but the matrix has {n_genes}."
        if len(genes) == n_genes + 1:
            text += f" Is the first line, {genes[0][:40]!r}, a header? Then remove it."
        raise InputError(text)
    counts = _read_mtx(matrix_file)
    if by_gene:
        counts = counts.T.tocsr()
    return assemble(counts, labels, numbered("gene", n_genes) if genes is None else genes)


def assemble(counts: sparse.csr_matrix, labels: list[str], genes: Iterable[str]) -> AnnData:
    obs = pd.DataFrame(
        {"cell_type": pd.Categorical(labels)}, index=pd.Index(numbered("cell", counts.shape[0]))
    )
    return AnnData(counts, obs=obs, var=named_rows(genes))


def named_rows(names: Iterable[str]) -> pd.DataFrame:
    return pd.DataFrame(index=make_index_unique(pd.Index(names)))


def numbered(prefix: str, n: int) -> list[str]:
    return [f"{prefix}_{i}" for i in range(n)]


def check_counts(counts: sparse.csr_matrix, where: str) -> None:
    bad = ~np.isfinite(counts.data) | (counts.data < 0) | (counts.data != np.rint(counts.data))
    if bad.any():
        first = counts.data[np.argmax(bad)]
        raise InputError(
            f"{where} must hold raw counts, but {int(bad.sum())} of {counts.nnz} stored values "
            f"are negative, fractional or not finite (first: {first:g}); pass unnormalised counts."
        )


def _find_mtx(root: Path) -> Path:
    if (root / MTX_FILE).is_file():
        return root / MTX_FILE
    found = sorted(file for file in root.glob("*.mtx") if file.is_file())
    if not found:
        raise FileNotFoundError(f"No .mtx file in {root}; add the counts as {MTX_FILE}.")
    if len(found) > 1:
        names = ", ".join(file.name for file in found)
        raise InputError(f"{root} has {len(found)} .mtx files ({names}); leave one of them there.")
    return found[0]


def _read_shape(path: Path) -> tuple[int, int]:
    """Read the size of a matrix, and check that the file can hold, and memory take, as much."""
    from scipy.io import mminfo

    try:
        n_rows, n_columns, n_stored, layout, field, symmetry = mminfo(path)
    except (ValueError, OverflowError) as error:
        raise InputError(f"{path} is not a Matrix Market file: {error}") from error
    if field in ("pattern", "complex"):
        raise InputError(f"{path} holds values of type {field}, and raw counts are needed.")
    n_least = n_stored // 2 if symmetry != "general" else n_stored
    if n_least * LEAST_BYTES[layout] > path.stat().st_size:
        raise InputError(
            f"{path} is truncated or damaged: it is too short for the {n_stored} values that its "
            "first lines speak of."
        )
    needed = BYTES_PER_NAME * (n_rows + n_columns)
    if needed > available_memory():
        raise InputError(
            f"{path} is a matrix of {n_rows} x {n_columns}, whose names alone fill "
            f"{needed / 1e9:.0f} GB: more memory than there is here."
        )
    return n_rows, n_columns


def _read_mtx(path: Path) -> sparse.csr_matrix:
    from scipy.io import mmread

    try:
        counts = sparse.csr_matrix(mmread(path, spmatrix=True), dtype=np.float32)
    except (ValueError, TypeError, OverflowError) as error:
        raise InputError(f"{path} is not a Matrix Market file: {error}") from error
    check_counts(counts, where=str(path))
    counts.eliminate_zeros()
    return counts


def _read_lines(path: Path) -> list[str]:
    """Read lines of any system without the empty ones at the end."""
    if not path.is_file():
        raise InputError(f"{path} is not a file.")
    try:
        text = path.read_text(encoding="utf-8-sig")  # which also makes "\n" of all line ends
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not text in UTF-8 ({error.reason} at byte {error.start}); save it so."
        ) from error
    lines = [line.strip() for line in text.rstrip().split("\n")]
    return lines if any(lines) else []


def _read_labels(path: Path, shape: tuple[int, int]) -> list[str]:
    """Read as many labels as a matrix has rows or columns, one per line or all by white space."""
    lines = _read_lines(path)
    full = [line for line in lines if line]
    words = " ".join(full).split()
    in_words = len(full) == 1 or all(map(_is_number, words))
    if len(full) in shape:
        labels = _without_quotes(_without_numbers(full, path))
    elif len(words) in shape and in_words:
        labels = words
    else:
        raise InputError(_wrong_number_of_labels(path, lines, shape))
    if len(labels) >= MANY_LABELS and len(set(labels)) == len(labels):
        warnings.warn(
            f"{path}: every cell has a label of its own (first: {labels[0]!r}); are these the "
            "names of cells rather than of their types?",
            UserWarning,
            stacklevel=2,
        )
    return _without_decimals(labels)


def _wrong_number_of_labels(path: Path, lines: list[str], shape: tuple[int, int]) -> str:
    full = [line for line in lines if line]
    n_empty, n_words = len(lines) - len(full), len(" ".join(full).split())
    if len(full) - 1 in shape:
        remedy = f"is the first, {full[0][:40]!r}, a header? Then remove it"
    elif n_empty and len(lines) in shape:
        remedy = f"{n_empty} of these are empty: write a word such as 'unknown' for such cells"
    else:
        remedy = "neither dimension fits; give one label per cell, each in a line of its own"
    return (
        f"{path} has {len(lines)} lines ({n_words} words), but the matrix beside it is "
        f"{shape[0]} x {shape[1]}: {remedy}."
    )


def _has_cells_in_columns(
    shape: tuple[int, int], labels: list[str], genes: list[str] | None, root: Path
) -> bool:
    """Whether a matrix has to be turned; refuse it where only the number of labels says so."""
    if len(labels) == shape[0]:
        return False
    if genes is not None and len(genes) == shape[0]:
        return True
    raise InputError(
        f"{root} has {len(labels)} labels, but its matrix {shape[0]} rows and {shape[1]} columns: "
        f"{LABEL_FILE} needs a label for each row, as rows are cells. If rows are genes, add "
        f"{GENE_FILE} with their {shape[0]} names, or write the matrix transposed."
    )


def _without_numbers(lines: list[str], path: Path) -> list[str]:
    """Drop running numbers before labels; refuse lines of several columns."""
    found = [NUMBERED_LINE.fullmatch(line) for line in lines]
    numbers = [int(match[1]) for match in found if match]
    if numbers and numbers in (list(range(len(lines))), list(range(1, len(lines) + 1))):
        lines = [match[2] for match in found if match]
    _check_one_column(lines, path, "labels")
    return lines


def _check_one_column(lines: list[str], path: Path, what: str) -> None:
    split = [line for line in lines if "\t" in line]
    if split:
        raise InputError(
            f"{path} has lines of several columns (first: {split[0][:60]!r}); keep that of the "
            f"{what} alone, as 'cut -f 2' does with the second."
        )


def _without_quotes(labels: list[str]) -> list[str]:
    for quote in ('"', "'"):
        if all(len(label) > 1 and label[0] == label[-1] == quote for label in labels):
            return [label[1:-1] for label in labels]
    return labels


def _without_decimals(labels: list[str]) -> list[str]:
    if all(WRITTEN_AS_FLOAT.fullmatch(label) and float(label).is_integer() for label in labels):
        return [str(int(float(label))) for label in labels]
    return labels


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _read_genes(path: Path) -> list[str]:
    genes = [line for line in _read_lines(path) if line]
    _check_one_column(genes, path, "names")
    return _without_quotes(genes)
