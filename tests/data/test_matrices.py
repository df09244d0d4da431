"""Matrices that hang together: what is refused, and how they are cut into blocks."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import anndata
import h5py
import numpy as np
import pytest
from scipy import sparse

from dra_scvi._data import matrices
from dra_scvi._data.matrices import (
    blocks,
    check_structure,
    check_type,
    place_of,
    sign_indices,
    stored_values,
)
from dra_scvi._exceptions import InvalidCountsError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

DENSE = np.arange(1.0, 13.0, dtype=np.float32).reshape(3, 4)
OUTSIDE = "^it is a damaged sparse matrix: its indices point outside of it. Read it again, or "


def put(name: str, place: int | slice, value: Any) -> Callable[[Any], None]:
    def change(matrix: Any) -> None:
        getattr(matrix, name)[place] = value

    return change


def cut(name: str, n: int) -> Callable[[Any], None]:
    def change(matrix: Any) -> None:
        setattr(matrix, name, getattr(matrix, name)[:n])

    return change


@pytest.mark.parametrize("form", ["csr", "csc"])
@pytest.mark.parametrize(
    "change",
    [
        put("indices", 5, -1),
        put("indices", 5, 4),
        put("indptr", 0, 1),
        put("indptr", -1, 13),
        put("indptr", 1, 9),
        put("indptr", 1, -1),
        cut("indptr", -1),
        cut("indices", 11),
        cut("data", 11),
    ],
    ids=range(9),
)
def test_indices_that_point_outside(form: str, change: Callable[[Any], None]) -> None:
    whole = DENSE if form == "csr" else DENSE.T
    matrix = sparse.csr_matrix(whole).asformat(form)
    check_structure(matrix, "it")
    change(matrix)
    with pytest.raises(InvalidCountsError, match=OUTSIDE):
        check_structure(matrix, "it")


@pytest.mark.parametrize("form", ["csr", "csc", "coo", "bsr"])
def test_what_hangs_together(form: str) -> None:
    for shape in ((3, 4), (4, 3), (0, 4), (3, 0)):
        check_structure(sparse.csr_matrix(shape).asformat(form), "it")
        check_structure(np.ones(shape), "it")
    matrix = sparse.csr_matrix(DENSE)
    matrix.data = np.append(matrix.data, 1)  # room that is not used
    matrix.indices = np.append(matrix.indices, 0).astype(np.int32)
    check_structure(matrix, "it")
    with_last = sparse.csr_matrix(([1.0], [3], [0, 0, 0, 1]), shape=(3, 4))
    check_structure(with_last.asformat(form), "it")


@pytest.mark.parametrize("name", ["indices", "indptr"])
def test_indices_of_other_types(name: str, tmp_path: Path) -> None:
    matrix = sparse.csr_matrix(DENSE)
    for dtype, is_known in (
        ("i8", True),
        ("u4", True),
        ("u8", False),
        ("f8", False),
        ("?", False),
    ):
        setattr(matrix, name, getattr(matrix, name).astype(dtype))
        if is_known:
            check_structure(matrix, "it")
            continue
        words = f"^it is a sparse matrix whose {name} are of type {np.dtype(dtype)}; they have"
        with pytest.raises(InvalidCountsError, match=words):
            check_structure(matrix, "it")
    anndata.AnnData(sparse.csr_matrix(DENSE)).write_h5ad(tmp_path / "a.h5ad")
    for dtype, is_known in (("u8", True), ("f8", False)):
        with h5py.File(tmp_path / "a.h5ad", "r+") as file:
            values = file[f"X/{name}"][:]
            del file[f"X/{name}"]
            file[f"X/{name}"] = values.astype(dtype)
        with h5py.File(tmp_path / "a.h5ad") as file:
            stored = anndata.io.sparse_dataset(file["X"])
            if is_known:
                check_structure(stored, "it")
            else:
                with pytest.raises(InvalidCountsError, match=f"whose {name} are of type float64"):
                    check_structure(stored, "it")


def test_unsigned_indices_are_signed() -> None:
    for form in ("csr", "csc"):
        matrix = sparse.csr_matrix(DENSE).asformat(form)
        for name in ("indices", "indptr"):
            setattr(matrix, name, getattr(matrix, name).astype(np.uint64))
        assert sign_indices(matrix) is matrix
        assert (matrix.indices.dtype, matrix.indptr.dtype) == (np.int64, np.int64)
        np.testing.assert_array_equal(matrix.toarray(), DENSE)
        matrix.indices = matrix.indices.astype(np.int32)
        assert sign_indices(matrix).indices.dtype == np.int32
    other = sparse.coo_matrix(DENSE)
    assert sign_indices(other) is other
    assert sign_indices(DENSE) is DENSE


def test_places_have_names() -> None:
    assert place_of(None) == "adata.X"
    assert place_of("a") == "adata.layers['a']"


@pytest.mark.parametrize(
    ("matrix", "to_train", "words"),
    [
        (None, True, "^it holds nothing; pass the layer of raw counts as layer=...$"),
        (None, False, "^it holds nothing; the model reads it$"),
        (np.ma.ones((2, 2)), True, "^it is a masked array, whose masked values are no counts"),
        (np.ones((2, 2), complex), True, "^it holds values of type complex128, not numbers"),
        (np.array([["a"]]), True, "^it holds values of type <U1, not numbers; convert it"),
    ],
)
def test_what_are_no_counts(matrix: Any, to_train: bool, words: str) -> None:
    with pytest.raises(InvalidCountsError, match=words):
        check_type(matrix, "it", to_train)


@pytest.mark.parametrize("dtype", ["?", "u1", "i8", "f2", "f8"])
def test_types_of_counts(dtype: str) -> None:
    check_type(np.ones((2, 2), dtype), "it", True)
    check_type(SimpleNamespace(dtype=dtype), "it", False)


FORMS: dict[str, Callable[[Any], Any]] = {
    "dense": np.asarray,
    "csr": sparse.csr_matrix,
    "csc": sparse.csc_matrix,
    "lil": sparse.lil_matrix,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("rows", "entries", "steps"), [(2, 2**24, 2), (4, 8, 2), (9, 0, 1)])
def test_blocks_put_together_are_the_matrix(
    form: str, rows: int, entries: int, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = np.arange(20.0).reshape(5, 4) if form != "csc" else np.arange(20.0).reshape(4, 5)
    monkeypatch.setattr(matrices, "BLOCK_ROWS", rows)
    monkeypatch.setattr(matrices, "BLOCK_ENTRIES", entries)
    found = np.full(whole.shape, -1.0)
    lengths = []
    for row, column, block in blocks(FORMS[form](whole)):
        dense = block.toarray() if sparse.issparse(block) else block
        assert getattr(block, "format", "dense") in ("dense", "csr", "csc")
        found[row : row + dense.shape[0], column : column + dense.shape[1]] = dense
        lengths.append(dense.shape[1 if form == "csc" else 0])
    np.testing.assert_array_equal(found, whole)
    assert max(lengths) == steps
    assert len(lengths) == -(-5 // steps)


def test_blocks_of_what_is_elsewhere() -> None:
    import dask.array

    stored = dask.array.from_array(DENSE, chunks=(2, 4))
    ((row, column, block),) = blocks(stored)
    assert (row, column, type(block)) == (0, 0, np.ndarray)
    np.testing.assert_array_equal(block, DENSE)
    assert list(blocks(np.ones((0, 3)))) == []
    ((_, _, block),) = blocks(np.ones((3, 0)))
    assert block.shape == (3, 0)
    unsigned = sparse.csr_matrix(DENSE)
    unsigned.indptr = unsigned.indptr.astype(np.uint64)
    lazy = SimpleNamespace(compute=lambda: unsigned)
    assert matrices._in_memory(lazy).indptr.dtype == np.int64
    assert (matrices.BLOCK_ROWS, matrices.BLOCK_ENTRIES) == (4096, 2**24)


def test_values_that_are_stored() -> None:
    matrix = sparse.csr_matrix(DENSE)
    assert stored_values(matrix) is matrix.data
    assert stored_values(DENSE) is DENSE
