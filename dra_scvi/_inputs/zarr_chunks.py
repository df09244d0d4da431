"""Chunks that a zarr store declares and does not have, where zeros in their place are no answer.

zarr writes no chunk that holds zeros only, and reads every chunk that is not there as zeros: a
file that got lost on the way cannot be told from one that was never written, but for what the
zeros would mean.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from scipy import sparse

from dra_scvi._data.matrices import check_structure
from dra_scvi._exceptions import InputError, InvalidCountsError

if TYPE_CHECKING:
    from collections.abc import Iterator

MATRICES = ("X", "raw/X")
SPARSE = ("data", "indices", "indptr")
CATEGORICAL = ("codes", "categories")


class _Array(NamedTuple):
    """An array that is declared, and the numbers of those of its chunks that are there."""

    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    present: set[tuple[int, ...]]

    @property
    def grid(self) -> tuple[int, ...]:
        return tuple(-(-n // size) for n, size in zip(self.shape, self.chunks, strict=True))

    @property
    def n_absent(self) -> int:
        return math.prod(self.grid) - len(self.present)


def check_chunks(path: Path) -> None:
    """Check that what a store lacks can be chunks of zeros, which zarr does not write.

    Refused are arrays that cannot be zero where a chunk is absent: names, the categories of a
    column, codes where categories are then without cells, values and indices of a sparse matrix,
    and all counts of a block of cells. Of other chunks of dense matrices a warning says that they
    may be zeros, or lost.
    """
    declared = dict(_arrays(path))
    incomplete = {name: array for name, array in declared.items() if array.n_absent > 0}
    indices = _indices(path) if incomplete else set()
    for name, array in incomplete.items():
        parent, _, own = name.rpartition("/")
        beside = {part for part in (*SPARSE, *CATEGORICAL) if f"{parent}/{part}" in declared}
        is_column = "/" in parent and beside.issuperset(CATEGORICAL)
        fault: str | None = None
        if own in SPARSE and beside.issuperset(SPARSE):
            fault = _fault_of_sparse(path, parent, own)
        elif own == "codes" and is_column:
            fault = _fault_of_codes(path, parent)
        elif name in indices or (own == "categories" and is_column):
            # one name may be empty, and others may not be the same
            fault = (
                "and its names are not there" if min(array.chunks[0], array.shape[0]) > 1 else ""
            )
        elif len(array.shape) == 2 and (name in MATRICES or parent in ("layers", "obsm")):
            fault = _fault_of_dense(path, name, array)
        if fault:
            raise InputError(
                f"{path} is incomplete: {name} lacks {_count(array)}, {fault}. "
                "Copy it again from where it came."
            )


def _count(array: _Array) -> str:
    return f"{array.n_absent} of its {math.prod(array.grid)} chunks"


def _fault_of_codes(path: Path, column: str) -> str | None:
    codes, categories = _read(path, f"{column}/codes"), _read(path, f"{column}/categories")
    unused = set(range(len(categories))) - set(np.unique(codes).tolist())
    if not unused:
        return None
    return (
        f"so that {len(unused)} of {len(categories)} categories would be without cells (if they "
        "are meant to be, write the store without those categories)"
    )


def _fault_of_sparse(path: Path, name: str, own: str) -> str | None:
    """Values that are stored are no zeros, and a row has no index twice."""
    if own == "data":
        return (
            "and values that are stored are no zeros (if they are, write the store without them)"
        )
    indices, starts = _read(path, f"{name}/indices"), _read(path, f"{name}/indptr")
    matrix = sparse.csr_matrix((len(starts) - 1, int(indices.max(initial=0)) + 1), dtype=bool)
    matrix.data, matrix.indices, matrix.indptr = np.ones(len(indices), bool), indices, starts
    with contextlib.suppress(InvalidCountsError):
        check_structure(matrix, name)
        distinct = matrix.copy()
        distinct.sum_duplicates()
        if distinct.nnz == len(indices):
            return None
    return "without which its indices do not hang together"


def _fault_of_dense(path: Path, name: str, array: _Array) -> str | None:
    """Blocks of zeros are usual; cells without a count are not, side by side."""
    cells = {chunk[0] for chunk in array.present}
    size = min(array.chunks[0], array.shape[0])
    if not name.startswith("obsm") and size > 1 and 0 < len(cells) < array.grid[0]:
        return f"so that {size} cells or more would have no counts (leave empty cells out)"
    warnings.warn(
        f"{path}: {name} lacks {_count(array)}, which are read as zeros. zarr writes no chunk of "
        "zeros; if there were others, they got lost.",
        UserWarning,
        stacklevel=2,
    )
    return None


def _open(path: Path) -> Any:
    import zarr

    return zarr.open(str(path), mode="r")


def _read(path: Path, name: str) -> Any:
    return _open(path)[name][:]


def _indices(path: Path) -> set[str]:
    """Arrays of the names of cells and genes."""
    store = _open(path)
    found = set()
    for table in ("obs", "var", "raw/var"):
        if table in store:
            index = f"{table}/{store[table].attrs.get('_index', '_index')}"
            found |= {index, f"{index}/values"}
    return found


def _arrays(path: Path) -> Iterator[tuple[str, _Array]]:
    """All arrays, whether their own declarations are there or lost, by their names."""
    found: dict[str, Any] = {}
    for folder, _, files in os.walk(path):
        for file in sorted({".zarray", ".zmetadata", "zarr.json"}.intersection(files)):
            content = json.loads((Path(folder) / file).read_bytes())
            name = Path(folder).relative_to(path).as_posix()
            if file != ".zmetadata":
                found[name] = content
                content = content.get("consolidated_metadata") or {}
            for key, inner in (content.get("metadata") or {}).items():
                found.setdefault((Path(name) / key.removesuffix(".zarray")).as_posix(), inner)
    for name, content in sorted(found.items()):
        array = _array(path / name, content)
        if array is not None:
            yield name, array


def _array(folder: Path, declared: dict[str, Any]) -> _Array | None:
    """Describe an array, unless it is none, or has no regular grid."""
    grid, keys = (declared.get(key) or {} for key in ("chunk_grid", "chunk_key_encoding"))
    shape = declared.get("shape")
    chunks = declared.get("chunks") or (grid.get("configuration") or {}).get("chunk_shape")
    if not shape or not chunks or len(shape) != len(chunks) or min(chunks) < 1:
        return None
    pattern = re.compile(r"[./]".join(r"(\d+)" for _ in shape))
    prefix = "c" if keys.get("name") == "default" else ""
    present = set()
    for file in folder.rglob("*"):
        key = file.relative_to(folder).as_posix().removeprefix(prefix).lstrip("./")
        match = pattern.fullmatch(key)
        if match and file.is_file():
            present.add(tuple(map(int, match.groups())))
    return _Array(tuple(shape), tuple(chunks), present)
