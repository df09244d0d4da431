"""Rows of a CSR matrix, gathered and multiplied: exact, and never outside of the arrays."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import pytest
from numba.core import event
from scipy import sparse

from dra_scvi._exceptions import InvalidCountsError
from dra_scvi._kernels import parts, rows
from dra_scvi._kernels.rows import gather_rows, project_rows

GENERATOR = np.random.default_rng(0)
DENSE = GENERATOR.poisson(0.7, (11, 9)).astype(np.float32)
DENSE[3] = 0
DENSE[4] = np.arange(1, 10)
ROWS = np.array([4, 0, 3, 4, 10])


@pytest.mark.parametrize("dtype", ["f4", "f8", "i8", "u2"])
@pytest.mark.parametrize("index", ["i4", "i8", "u4"])
def test_rows_of_every_type(dtype: str, index: str) -> None:
    matrix = sparse.csr_matrix(DENSE.astype(dtype))
    matrix.indices, matrix.indptr = matrix.indices.astype(index), matrix.indptr.astype(index)
    found = gather_rows(matrix, ROWS)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, DENSE[ROWS])


@pytest.mark.parametrize("log1p", [False, True])
@pytest.mark.parametrize("n_genes", [1, 2, 3, 4, 5, 9])
@pytest.mark.parametrize("n_hidden", [1, 3])
def test_products_are_those_of_the_dense_matrix(log1p: bool, n_genes: int, n_hidden: int) -> None:
    dense = DENSE[:, -n_genes:].astype(np.float64)
    weight = GENERATOR.normal(size=(n_genes, n_hidden)).astype(np.float32)
    expected = (np.log1p(dense) if log1p else dense)[ROWS] @ weight
    found = project_rows(sparse.csr_matrix(dense), ROWS, weight, log1p, 1)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("n_genes", [1, 2, 3, 4, 5, 9])
def test_loops_stay_inside_of_their_arrays(n_genes: int) -> None:
    """As they are before compilation, where NumPy refuses what lies outside."""
    matrix = sparse.csr_matrix(DENSE[:, -n_genes:])
    arrays = matrix.indptr, matrix.indices, matrix.data, ROWS
    weight = GENERATOR.normal(size=(n_genes, 2)).astype(np.float32)
    product, gathered = np.zeros((5, 2), np.float32), np.zeros((5, n_genes), np.float32)
    assert rows._project.py_func(*arrays, False, weight, product) == -1
    assert rows._gather.py_func(*arrays, gathered) == -1
    np.testing.assert_allclose(product, matrix[ROWS] @ weight, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(gathered, matrix[ROWS].toarray())


def test_products_in_threads_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "_MIN_ENTRIES_PER_THREAD", 1)
    dense = GENERATOR.poisson(0.9, (40, 9)).astype(np.float32) + 1
    weight = GENERATOR.normal(size=(9, 3)).astype(np.float32)
    matrix, rows = sparse.csr_matrix(dense), GENERATOR.permutation(40)
    one = project_rows(matrix, rows, weight, False, 1)
    np.testing.assert_array_equal(project_rows(matrix, rows, weight, False, 2), one)
    np.testing.assert_allclose(one, dense[rows] @ weight, rtol=1e-5, atol=1e-5)
    # a fault in the part of any thread comes out, with the row that was asked for
    matrix.indices[matrix.indptr[rows[30]]] = 9
    with pytest.raises(InvalidCountsError, match=f"^Row {rows[30]} of the counts is damaged"):
        project_rows(matrix, rows, weight, False, 2)


def change(name: str, place: int, value: int) -> Any:
    matrix = sparse.csr_matrix(np.arange(1.0, 13.0, dtype=np.float32).reshape(3, 4))
    getattr(matrix, name)[place] = value
    return matrix


def shortened(name: str) -> Any:
    matrix = change("data", 0, 1)
    setattr(matrix, name, getattr(matrix, name)[:11])
    return matrix


def both(matrix: Any, rows: list[int], error: type[Exception], words: str) -> None:
    index = np.array(rows)
    for act in (
        lambda: gather_rows(matrix, index),
        lambda: project_rows(matrix, index, np.ones((4, 2), np.float32), False, 1),
    ):
        with pytest.raises(error, match=words):
            act()


@pytest.mark.parametrize(
    ("matrix", "sound", "row"),
    [
        (change("indices", 4, -1), 0, 1),
        (change("indices", 7, 4), 0, 1),
        (change("indptr", 1, -1), 2, 1),
        (change("indptr", 2, 3), 0, 1),
        (change("indptr", 3, 13), 0, 2),
        (change("indptr", 1, 3), 0, 1),  # longer than a row can be
        (shortened("indices"), 0, 2),
        (shortened("data"), 0, 2),
    ],
    ids=range(8),
)
def test_damage_is_told_by_its_row(matrix: Any, sound: int, row: int) -> None:
    both(
        matrix,
        [sound, row],
        InvalidCountsError,
        f"^Row {row} of the counts is damaged: its indice",
    )


@pytest.mark.parametrize("row", [-1, 3, 7])
def test_rows_that_are_not_there(row: int) -> None:
    words = f"^Row {row} was asked for, and there are 3 rows, from 0.$"
    both(change("data", 0, 1), [2, 0, row], IndexError, words)


def test_what_is_no_csr_matrix() -> None:
    sound = change("data", 0, 1)
    both(sound.tocsc(), [0], ValueError, "^The rows of a CSR matrix, with one start for each row")
    short = change("data", 0, 1)
    short.indptr = short.indptr[:-1]
    both(short, [0], ValueError, "^The rows of a CSR matrix")
    both(sound, [[0]], TypeError, "^Rows, and the indices of a CSR matrix, have to be whole")  # type: ignore[list-item]
    both(sound, [0.0], TypeError, "^Rows, and the indices")  # type: ignore[list-item]
    for name in ("indices", "indptr"):
        other = change("data", 0, 1)
        setattr(other, name, getattr(other, name).astype(np.float64))
        both(other, [0], TypeError, "^Rows, and the indices")


def test_weights_that_do_not_fit() -> None:
    matrix, rows = change("data", 0, 1), np.array([0])
    for shape in ((3, 2), (5, 2), (4,), (4, 2, 1)):
        with pytest.raises(ValueError, match="^weight has "):
            project_rows(matrix, rows, np.ones(shape, np.float32), False, 1)
    with pytest.raises(TypeError, match="^weight holds float64, not float32.$"):
        project_rows(matrix, rows, np.ones((4, 2)), False, 1)


@pytest.mark.parametrize("kernel", ["_project", "_gather"])
def test_nothing_is_compiled_that_writes_messages(kernel: str) -> None:
    """To set an array to another one brings along text that is longer to compile than all else."""
    matrix = sparse.csr_matrix(np.eye(3, dtype=np.float32))
    arrays = matrix.indptr, matrix.indices, matrix.data, np.arange(3)
    out = np.zeros((3, 3), np.float32)
    rest = (False, np.eye(3, dtype=np.float32), out) if kernel == "_project" else (out,)
    function = numba.njit(error_model="numpy")(getattr(rows, kernel).py_func)
    with event.install_recorder("numba:compile") as compiled:
        function(*arrays, *rest)
    np.testing.assert_array_equal(out, np.eye(3))
    assert compiled.buffer
    assert not [e.data["args"] for _, e in compiled.buffer if "unicode" in str(e.data["args"])]
