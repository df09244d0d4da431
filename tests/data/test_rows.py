"""Rows of counts, wherever they lie: the same ones, and held as they are said to be."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from dra_scvi._data import rows as rows_module
from dra_scvi._data.rows import (
    DenseRows,
    DeviceSparseRows,
    SparseRows,
    StoredRows,
    narrow,
    registered_rows,
)
from dra_scvi._exceptions import InvalidCountsError

CPU = torch.device("cpu")
GENERATOR = np.random.default_rng(0)
DENSE = GENERATOR.poisson(0.8, (8, 5)).astype(np.float32)
DENSE[2] = 0
INDEX = torch.tensor([6, 2, 0, 6])
WEIGHT = torch.from_numpy(GENERATOR.normal(size=(5, 3)).astype(np.float32))
CSR = sparse.csr_matrix(DENSE)

HELD: dict[str, Any] = {
    "dense": lambda: DenseRows(torch.from_numpy(DENSE).to(torch.uint8), torch.float32),
    "sparse": lambda: SparseRows(CSR),
    "stored dense": lambda: StoredRows(DENSE.astype(np.int32)),
    "stored sparse": lambda: StoredRows(CSR),
    "on a device": lambda: DeviceSparseRows(CSR, CPU),
}


@pytest.mark.parametrize("kind", HELD)
def test_rows_in_the_order_asked_for(kind: str) -> None:
    held = HELD[kind]()
    found = held.take(INDEX)
    assert found.dtype == torch.float32
    np.testing.assert_array_equal(found.numpy(), DENSE[INDEX])
    part, place = held.hold(INDEX)
    np.testing.assert_array_equal(part.take(place).numpy(), DENSE[INDEX])
    if kind.startswith("stored"):
        assert place.tolist() == [0, 1, 2, 3]
        assert isinstance(part, DenseRows if kind == "stored dense" else SparseRows)
    else:
        assert part is held
        assert place is INDEX


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("log1p", [True, False])
@pytest.mark.parametrize("kind", HELD)
def test_products_of_rows(kind: str, log1p: bool, dtype: torch.dtype) -> None:
    weight = WEIGHT.to(dtype, copy=True).requires_grad_()
    found = HELD[kind]().project(INDEX, weight, log1p)
    assert found.dtype == dtype
    values = (np.log1p(DENSE) if log1p else DENSE)[INDEX]
    np.testing.assert_allclose(found.detach(), values @ WEIGHT.numpy(), rtol=1e-5, atol=1e-6)


def test_zeros_are_not_touched_where_a_kernel_can(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise ZeroDivisionError

    held = SparseRows(CSR)
    transposed = WEIGHT.T.contiguous().T  # in another order of memory
    with monkeypatch.context() as patch:
        patch.setattr(rows_module, "gather_rows", fail)
        held.project(INDEX, WEIGHT, True)
        found = held.project(INDEX, transposed, False)
        np.testing.assert_allclose(found, DENSE[INDEX] @ WEIGHT.numpy(), rtol=1e-5, atol=1e-6)
        with pytest.raises(ZeroDivisionError):
            held.project(INDEX, WEIGHT.double(), True)
    monkeypatch.setattr(rows_module, "project_rows", fail)
    with pytest.raises(ZeroDivisionError):
        held.project(INDEX, WEIGHT, True)
    assert held.project(INDEX, WEIGHT.to("meta"), False).device.type == "meta"


def test_rows_lie_where_the_counts_do() -> None:
    elsewhere = torch.device("meta")
    dense = DenseRows(torch.from_numpy(DENSE).to(elsewhere), torch.float32)
    for held in (dense, DeviceSparseRows(CSR, elsewhere)):
        found = held.take(INDEX)
        assert found.device == elsewhere
        assert found.shape == (4, 5)


def test_how_rows_are_held_is_said() -> None:
    wide = np.ones((1_000, 1_500), np.float32)
    assert DenseRows(torch.from_numpy(wide), torch.float32).description == "dense float32, 6.0 MB"
    csr = sparse.csr_matrix(wide)  # 8 bytes an entry, and 4 a row
    assert SparseRows(csr).description == "CSR, 12.0 MB"
    # 4 bytes of a column, one of a count, and 8 a row
    assert DeviceSparseRows(csr, CPU).description == "CSR, 7.5 MB"
    assert StoredRows(csr).description == "csr_matrix"


def test_duplicates_in_a_file_are_summed() -> None:
    parts = np.array([2.0, 3.0, 1.0]), np.array([0, 0, 1]), np.array([0, 2, 3])
    held, place = StoredRows(sparse.csr_matrix(parts, shape=(2, 2))).hold(torch.tensor([0, 1]))
    np.testing.assert_array_equal(held.take(place).numpy(), [[5, 0], [0, 1]])


def test_damage_is_told_before_a_device_follows_it() -> None:
    damaged = sparse.csr_matrix(DENSE)
    damaged.indices[0] = 5
    with pytest.raises(InvalidCountsError, match="^The matrix of counts is a damaged sparse"):
        DeviceSparseRows(damaged, CPU)


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([0, 255], "uint8"),
        ([0, 256], "int16"),
        ([32_767], "int16"),
        ([32_768], "float32"),
        ([-1, 3], "float32"),
        ([0.5], "float32"),
        ([], "float32"),
        ([0], "uint8"),
    ],
)
def test_the_narrowest_type(values: list[float], dtype: str) -> None:
    found = narrow(np.array(values, np.float64))
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, values)


# -- what is registered --------------------------------------------------------------------------


def registered(device: torch.device | None = None, **data: Any) -> Any:
    dtypes = {name: np.int64 if name == "batch" else np.float32 for name in data}
    dataset = SimpleNamespace(keys_and_dtypes=dtypes, data=data)
    return registered_rows(SimpleNamespace(create_torch_dataset=lambda: dataset), device)  # type: ignore[arg-type]


def test_what_is_registered_is_held_by_its_kind() -> None:
    import dask.array

    table = pd.DataFrame({"a": np.arange(8), "b": np.arange(8)})
    found = registered(
        csr=CSR,
        csc=sparse.csc_matrix(DENSE),
        dense=DENSE,
        batch=np.arange(8)[:, None].astype(np.int32),
        table=table,
        lazy=dask.array.from_array(DENSE),
        kind="a word",
    )
    kinds = {name: type(rows) for name, rows in found.items()}
    assert kinds == {
        "csr": SparseRows,
        "csc": SparseRows,
        "dense": DenseRows,
        "batch": DenseRows,
        "table": DenseRows,
        "lazy": StoredRows,
    }
    for name, dtype in (("csr", torch.float32), ("dense", torch.float32), ("batch", torch.int64)):
        assert found[name].take(INDEX).dtype == dtype
    assert found["csr"].matrix is CSR
    np.testing.assert_array_equal(found["csc"].take(INDEX).numpy(), DENSE[INDEX])
    np.testing.assert_array_equal(found["table"].take(INDEX).numpy(), table.to_numpy()[INDEX])
    assert registered(list=[1, 2]) is None


def test_duplicates_in_memory_are_summed_in_a_copy() -> None:
    parts = np.array([2.0, 3.0, 1.0]), np.array([0, 0, 1]), np.array([0, 2, 3])
    matrix = sparse.csr_matrix(parts, shape=(2, 2))
    found = registered(csr=matrix)["csr"]
    np.testing.assert_array_equal(found.take(torch.tensor([0, 1])).numpy(), [[5, 0], [0, 1]])
    assert matrix.nnz == 3


def test_a_column_that_may_not_be_written_is_read_without_a_word() -> None:
    column = np.arange(8.0, dtype=np.float32)[:, None]
    column.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = registered(x=column)["x"]
    assert found.take(INDEX).ravel().tolist() == [6, 2, 0, 6]


def test_counts_on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_module, "_ROWS_PER_COPY", 3)
    for counts in (CSR, DENSE):
        held = registered(CPU, X=counts, batch=np.arange(8)[:, None])
        assert held["X"].description == "dense uint8, 0.0 MB"
        assert held["batch"].matrix.dtype == torch.int64
        np.testing.assert_array_equal(held["X"].take(INDEX).numpy(), DENSE[INDEX])
        assert held["X"].take(INDEX).dtype == torch.float32
    vector = registered(CPU, X=np.arange(8, dtype=np.float32))["X"]
    assert vector.take(INDEX).tolist() == [6, 2, 0, 6]
    odd = registered(CPU, X=DENSE + 0.5)["X"]
    np.testing.assert_array_equal(odd.take(INDEX).numpy(), DENSE[INDEX] + np.float32(0.5))
    assert registered(torch.device("meta"), X=DENSE)["X"].matrix.device.type == "meta"
    integers = registered(torch.device("meta"), batch=np.arange(8)[:, None])["batch"]
    assert integers.matrix.device.type == "meta"


@pytest.mark.parametrize(("free", "kind"), [(0, DenseRows), (-1, DeviceSparseRows)])
def test_counts_lie_on_a_device_as_they_fit(
    free: int, kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert rows_module._free_memory(CPU) == float("inf")
    wide = sparse.csr_matrix(300 * np.eye(50, 40, dtype=np.float32))  # of two bytes each
    of_csr = 40 * (2 + 4) + 8 * 50
    monkeypatch.setattr(rows_module, "_free_memory", lambda _: (4_000 + free) / 0.6 + 1e-6)
    assert type(rows_module._rows(wide, np.float32, CPU)) is kind
    for more, expected in ((0, DeviceSparseRows), (-1, type(None))):
        room = (of_csr + more) / 0.6 + 1e-6
        monkeypatch.setattr(rows_module, "_free_memory", lambda _, room=room: room)
        assert type(rows_module._rows(wide, np.float32, CPU)) is expected
        assert (registered(CPU, X=wide) is None) == (more == -1)


def test_room_on_an_accelerator_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (7, 9))
    assert rows_module._free_memory(torch.device("cuda")) == 7
