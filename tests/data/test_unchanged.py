"""What is compared with what was registered, how often, and in which words a change is told."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

from dra_scvi._data import unchanged
from dra_scvi._data.unchanged import Snapshot
from dra_scvi._exceptions import GeneMismatchError, InvalidCountsError
from tests.helpers import cells, fit

REMEDY = r"\. Put back what was registered and work on a copy .*new model on them\.$"


def test_compared_in_every_getter_once(monkeypatch: pytest.MonkeyPatch) -> None:
    adata = cells()
    model = fit(adata)
    compared, digest = [], unchanged._digest

    def counted(matrix: Any) -> Any:
        compared.append(matrix)
        return digest(matrix)

    monkeypatch.setattr(unchanged, "_digest", counted)
    for number in (1, 2):
        model.get_aggregated_posterior()
        assert len(compared) == number


def test_a_block_that_ended_is_no_excuse() -> None:
    adata = cells()
    snapshot, other = Snapshot(adata, None), Snapshot(adata, None)
    with unchanged.comparing_once():
        snapshot.check(adata)
        with unchanged.comparing_once():
            snapshot.check(adata)
        adata.X.data[3] += 1
        snapshot.check(adata)
        with pytest.raises(InvalidCountsError):  # which was not asked in this block
            other.check(adata)
    with pytest.raises(InvalidCountsError), unchanged.comparing_once():
        snapshot.check(adata)
    for _ in range(2):
        with pytest.raises(InvalidCountsError):
            snapshot.check(adata)


# -- names, counts and columns -------------------------------------------------------------------

COUNTS = np.arange(1.0, 13.0, dtype=np.float32).reshape(4, 3)


def data(counts: Any = COUNTS, obs: str = "wxyz", var: str = "abc", **columns: Any) -> AnnData:
    table = pd.DataFrame(columns, index=list(obs))
    return AnnData(counts, obs=table, var=pd.DataFrame(index=list(var)))


def with_one(row: int, column: int, value: float) -> np.ndarray:
    counts = COUNTS.copy()
    counts[row, column] = value
    return counts


CHANGES: list[tuple[AnnData, type[ValueError], str]] = [
    (data(var="abd"), GeneMismatchError, "1 gene has another name (first: 'd', which was 'c')"),
    (data(var="xbz"), GeneMismatchError, "2 genes have another name (first: 'x', which was 'a')"),
    (
        data(var="acb"),
        GeneMismatchError,
        "the genes are in another order (gene 1 is 'c', and was 'b')",
    ),
    (
        data(COUNTS[:, :2], var="ac"),
        GeneMismatchError,
        "2 genes in place of 3 (first one gone: 'b'",
    ),
    (
        data(COUNTS[:, :1], var="a"),
        GeneMismatchError,
        "1 gene in place of 3 (first one gone: 'b')",
    ),
    (data(np.ones((4, 4)), var="abcd"), GeneMismatchError, "4 genes in place of 3"),
    (data(obs="wxzy"), ValueError, "the cells are in another order (cell 2 is 'z', and was 'y')"),
    (data(COUNTS[:3], obs="wxy"), ValueError, "3 cells in place of 4 (first one gone: 'z')"),
    (data(COUNTS[:1], obs="w"), ValueError, "1 cell in place of 4 (first one gone: 'x')"),
    (
        data(COUNTS[:1], obs="w", var="acb"),
        GeneMismatchError,
        "the genes are in another order (gene 1 is 'c', and was 'b'); 1 cell in place of 4 (first "
        "one gone: 'x')",
    ),
    (
        data(with_one(2, 1, 99)),
        InvalidCountsError,
        "the values in adata.X changed in 1 cell (first: 'y'), they are other counts",
    ),
    (
        data(COUNTS * [[1], [0.5], [1], [0.5]]),
        InvalidCountsError,
        "the values in adata.X changed in 2 cells (first: 'x'), no longer counts",
    ),
    (
        data(COUNTS[:, [0, 2, 1]]),
        InvalidCountsError,
        "the values in adata.X changed in 4 cells (first: 'w'), they are other counts",
    ),
    (data(None), InvalidCountsError, "adata.X, which held its counts, is gone"),
]


@pytest.mark.parametrize(("now", "kind", "words"), CHANGES, ids=range(len(CHANGES)))
def test_a_change_is_told(now: AnnData, kind: type[ValueError], words: str) -> None:
    for counts in (COUNTS, sparse.csr_matrix(COUNTS)):
        with pytest.raises(
            ValueError, match=rf"^adata is not what was registered: .*{REMEDY}"
        ) as e:
            Snapshot(data(counts), None).check(now)
        assert type(e.value) is kind
        said = str(e.value).removeprefix("adata is not what was registered: ")
        assert said.partition(". Put back")[0].startswith(words)
        if not words.endswith("'b'"):
            assert said.partition(". Put back")[0] == words


SAME: list[AnnData] = [
    data(),
    data(COUNTS.astype(np.int64)),
    data(np.asfortranarray(COUNTS)),
    data(sparse.csr_matrix(COUNTS)),
    data(sparse.csc_matrix(COUNTS)),
    data(obs="1234"),
    data(obs="wx34"),
]


@pytest.mark.parametrize("now", SAME, ids=range(len(SAME)))
def test_what_has_not_changed(now: AnnData, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = Snapshot(data(), None)
    snapshot.check(now)
    sums: list[Any] = []
    monkeypatch.setattr(unchanged, "_sums", lambda matrix: sums.append(matrix))
    snapshot.check(now)  # the new form is known now
    assert sums == []


def test_layers_and_shapes() -> None:
    adata = data()
    adata.layers["a"] = COUNTS.copy()
    snapshot = Snapshot(adata, "a")
    adata.X[0, 0] += 1
    snapshot.check(adata)
    adata.layers["a"][0, 0] += 1
    with pytest.raises(
        InvalidCountsError, match=r"the values in adata.layers\['a'\] changed in 1"
    ):
        snapshot.check(adata)
    del adata.layers["a"]
    with pytest.raises(InvalidCountsError, match=r"adata.layers\['a'\], which held its counts, i"):
        snapshot.check(adata)
    names = {"obs_names": adata.obs_names, "var_names": adata.var_names, "n_obs": 4, "n_vars": 3}
    other: Any = SimpleNamespace(X=COUNTS.T, **names)
    with pytest.raises(InvalidCountsError, match=r"adata.X has the shape \(3, 4\)"):
        Snapshot(data(), None).check(other)


def test_counts_elsewhere_are_compared_by_their_shape() -> None:
    import dask.array

    adata = data()
    adata.X = dask.array.from_array(COUNTS)
    snapshot = Snapshot(adata, None)
    assert (snapshot.digest, snapshot.sums) == (None, None)
    adata.X = dask.array.from_array(COUNTS + 1)
    snapshot.check(adata)
    names = {"obs_names": adata.obs_names, "var_names": adata.var_names, "n_obs": 4, "n_vars": 3}
    collection: Any = SimpleNamespace(X=object(), **names)  # whose matrix has no shape
    snapshot.check(collection)


def test_a_digest_is_of_every_array() -> None:
    whole = sparse.csr_matrix(COUNTS)
    digests = {unchanged._digest(COUNTS), unchanged._digest(COUNTS.T), unchanged._digest(whole)}
    for name in ("indptr", "indices", "data"):
        changed = whole.copy()
        getattr(changed, name)[1] += 1
        digests.add(unchanged._digest(changed))
    digests.add(unchanged._digest(COUNTS.astype(np.float64)))
    digests.add(unchanged._digest(COUNTS.view(np.int32)))
    digests.add(unchanged._digest(sparse.csc_matrix(whole.T)))  # of the same arrays
    assert len(digests) == 9
    assert unchanged._digest([1]) is None


def test_sums_do_not_depend_on_the_form(monkeypatch: pytest.MonkeyPatch) -> None:
    from dra_scvi._data import matrices

    monkeypatch.setattr(matrices, "BLOCK_ROWS", 5)
    monkeypatch.setattr(unchanged, "_ROWS_AT_A_TIME", 2)
    counts = np.random.default_rng(0).poisson(3, (13, 7)).astype(np.float32)
    weights = 1.0 + np.random.default_rng(1).random(7)
    for form in (np.asarray, sparse.csr_matrix, sparse.csc_matrix):
        np.testing.assert_allclose(unchanged._sums(form(counts)), counts @ weights, rtol=1e-12)


# -- columns -------------------------------------------------------------------------------------

CATEGORIES = pd.Categorical(list("abab"))
COLUMNS: list[tuple[Any, Any, int]] = [
    # before, now, how many differ
    ([1, 2, 3, 4], [1, 2, 3, 5], 1),
    ([1, 2, 3, 4], [1.0, 2.0, 3.0, 4.0], 0),
    ([1, 2, 3, 4], [1.0, 2.0, 3.5, 4.5], 2),
    ([1.0, np.nan, 3, 4], [1.0, np.nan, 3, 4], 0),
    ([1.0, np.nan, 3, 4], [1.0, 2, 3, 4], 1),
    ([1, 2, 3, 4], ["1", "2", "3", "4"], 0),
    (list("abab"), CATEGORIES, 0),
    (CATEGORIES, list("abab"), 0),
    (CATEGORIES, CATEGORIES.reorder_categories(["b", "a"]), 0),
    (CATEGORIES, CATEGORIES.rename_categories(["b", "a"]), 4),
    (CATEGORIES, pd.Categorical(list("abaa"), ["a", "b"]), 1),
    (CATEGORIES, pd.Categorical(list("abac")), 1),
    (list("abab"), list("abcb"), 1),
    (["a", None, "a", "b"], ["a", None, "a", "b"], 0),
    (["a", None, "a", "b"], ["a", "None", "a", "b"], 1),
    ([True, False, True, False], [1, 0, 1, 0], 0),
]


@pytest.mark.parametrize(("before", "now", "n"), COLUMNS, ids=range(len(COLUMNS)))
def test_columns_are_compared_by_their_values(before: Any, now: Any, n: int) -> None:
    for make in (pd.Series, lambda values: pd.Series(values).astype(object)):
        found = unchanged._n_different(pd.Series(before), make(now))
        assert found == n
        assert type(found) is int


TABLE = np.array([[1.0, np.nan], [3.0, 4.0], [5.0, 6.0]])


@pytest.mark.parametrize(
    ("now", "n"),
    [
        (TABLE, 0),
        (pd.DataFrame(TABLE), 0),
        (np.where(TABLE == 6, 7, TABLE), 1),
        (np.where(TABLE > 3, 0, TABLE), 2),
        (np.nan_to_num(TABLE), 1),
        (TABLE[:, :1], 3),
        (TABLE[:2], 3),
    ],
)
def test_tables_are_compared_by_their_rows(now: Any, n: int) -> None:
    for before in (TABLE, pd.DataFrame(TABLE)):
        assert unchanged._n_different(unchanged._kept(before), now) == n


def test_columns_of_the_user_and_of_scvi_tools() -> None:
    adata = data(a=[1, 2, 3, 4], b=list("wxyz"))
    adata.obsm["t"] = TABLE[[0, 1, 2, 2]].copy()
    snapshot = Snapshot(adata, None, ["a"], [("obs", "b"), ("obsm", "t")])
    snapshot.check_read(adata)
    adata.obs.loc["w", "a"] = 7
    with pytest.raises(ValueError, match=rf": adata.obs\['a'\] changed for 1 cell{REMEDY}"):
        snapshot.check(adata)
    snapshot.check_read(adata)
    adata.obs["b"] = "w"
    adata.obsm["t"][2:] = 0
    with pytest.raises(
        ValueError, match=r"\['b'\] changed for 3 cells; adata.obsm\['t'\] changed f"
    ):
        snapshot.check_read(adata)
    del adata.obs["a"], adata.obs["b"]
    snapshot.check(adata)  # a column that is gone is not read
    with pytest.raises(ValueError, match=rf"registered: adata.obs\['b'\] is gone{REMEDY}"):
        snapshot.check_read(adata)
    del adata.obsm["t"]
    with pytest.raises(ValueError, match=r"\['b'\] is gone; adata.obsm\['t'\] is gone"):
        snapshot.check_read(adata)


def test_what_is_kept_is_a_copy_and_of_the_present_type() -> None:
    adata = data(a=[1, 2, 3, 4])
    snapshot = Snapshot(adata, None, ["a"])
    assert snapshot.sources["obs", "a"].dtype == np.int64
    adata.obs["a"] = adata.obs["a"].astype(float)
    snapshot.check(adata)
    assert snapshot.sources["obs", "a"].dtype == np.float64
    adata.obs.loc["w", "a"] = 5
    with pytest.raises(ValueError, match="changed for 1 cell"):
        snapshot.check(adata)


def test_counts_and_columns_are_told_together() -> None:
    adata = data(COUNTS.copy(), a=[1, 2, 3, 4])
    snapshot = Snapshot(adata, None, ["a"])
    adata.X[0, 0] += 1
    adata.obs["a"] = 0
    with pytest.raises(
        InvalidCountsError, match=r"other counts; adata.obs\['a'\] changed for 4 c"
    ):
        snapshot.check(adata)
