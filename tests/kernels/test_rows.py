"""Tests of the compiled passes over rows of a CSR matrix."""

from __future__ import annotations

import numba
import numpy as np
import pytest
from numba.core import event
from scipy import sparse

from dra_scvi._kernels import rows


@pytest.mark.parametrize("log1p", [False, True])
def test_rows_times_weights_are_those_of_the_dense_matrix(log1p: bool) -> None:
    rng = np.random.default_rng(0)
    matrix = sparse.random(20, 9, 0.4, "csr", np.float32, rng)
    weight = rng.normal(size=(9, 5)).astype(np.float32)
    index = np.array([3, 3, 19, 0])
    dense = matrix.toarray()[index]
    expected = (np.log1p(dense) if log1p else dense) @ weight
    found = rows.project_rows(matrix, index, weight, log1p, n_threads=1)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


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
