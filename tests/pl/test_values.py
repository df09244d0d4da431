"""What cells are coloured by: genes where scanpy looks for them, on the scale it draws them on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anndata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

from dra_scvi import pl
from dra_scvi.pl._values import Lookup, as_categories

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dra_scvi.pl._values import Values

COUNTS = np.array([[1, 3, 0], [0, 2, 8], [0, 0, 0]])
LOGS = np.log1p(1e4 * COUNTS / np.array([[4], [10], [1]]))


@pytest.fixture
def adata() -> AnnData:
    var = pd.DataFrame({"symbol": ["CD3E", "LYZ", "ISG15"]}, index=["g0", "g1", "g2"])
    obs = pd.DataFrame({"kind": ["a", "b", "a"]}, index=["x", "y", "z"])
    return AnnData(COUNTS.astype(np.float32), obs=obs, var=var, obsm={"X_umap": np.eye(3)[:, :2]})


def values_of(adata: AnnData, name: str, **given: Any) -> Values:
    return Lookup(adata, **given)(name)


@pytest.mark.parametrize(
    "form",
    [np.asarray, sparse.csr_matrix, sparse.csc_matrix, sparse.csr_array, np.int64],
    ids=["dense", "csr", "csc", "array", "integers"],
)
def test_counts_are_log_normalised(adata: AnnData, form: Callable[[Any], Any]) -> None:
    adata.X = form(adata.X)
    for i, gene in enumerate(adata.var_names):
        values = values_of(adata, gene)
        np.testing.assert_allclose(values.column, LOGS[:, i], rtol=1e-6)
        assert (values.title, values.unit) == (gene, "log-normalised")
    assert adata.X.sum() == COUNTS.sum()


def test_counts_in_a_file(adata: AnnData, tmp_path: Path) -> None:
    adata.X = sparse.csr_matrix(adata.X)
    adata.write_h5ad(tmp_path / "a.h5ad")
    stored = anndata.read_h5ad(tmp_path / "a.h5ad", backed="r")
    np.testing.assert_allclose(values_of(stored, "g1").column, LOGS[:, 1], rtol=1e-6)
    stored.file.close()


def test_what_is_normalised_stays_as_it_is(adata: AnnData) -> None:
    adata.layers["scaled"] = LOGS - 1
    values = values_of(adata, "g1", layer="scaled")
    np.testing.assert_allclose(values.column, LOGS[:, 1] - 1)
    assert values.unit == "scaled"
    adata.layers["counts"] = COUNTS * 2
    adata.X = LOGS
    assert values_of(adata, "g1").unit == ""
    np.testing.assert_allclose(values_of(adata, "g1", layer="counts").column, LOGS[:, 1])


def test_genes_are_those_of_raw_where_there_is_one(adata: AnnData) -> None:
    adata.raw = adata.copy()
    adata = adata[:, ["g0"]].copy()
    np.testing.assert_allclose(values_of(adata, "g2").column, LOGS[:, 2], rtol=1e-6)
    # of one gene alone, all counts are its own
    assert values_of(adata, "g0", use_raw=False).column.max() == pytest.approx(np.log1p(1e4))
    with pytest.raises(KeyError, match="color='g2' is not a column of adata.obs or a gene"):
        values_of(adata, "g2", use_raw=False)
    adata.layers["x"] = adata.X
    with pytest.raises(ValueError, match="use_raw=True and layer='x'"):
        values_of(adata, "g0", layer="x", use_raw=True)


def test_raw_that_is_not_there(adata: AnnData) -> None:
    with pytest.raises(ValueError, match="use_raw=True, but there is no adata.raw"):
        values_of(adata, "g0", use_raw=True)


def test_genes_by_their_symbols(adata: AnnData) -> None:
    values = values_of(adata, "ISG15", gene_symbols="symbol")
    np.testing.assert_allclose(values.column, LOGS[:, 2], rtol=1e-6)
    with pytest.raises(KeyError, match="gene_symbols='symbols' is not a column of adata.var"):
        values_of(adata, "ISG15", gene_symbols="symbols")
    adata.var["symbol"] = "ISG15"
    with pytest.raises(ValueError, match="'ISG15' stands for 3 genes"):
        values_of(adata, "ISG15", gene_symbols="symbol")


def test_layers_and_columns_that_are_not_there(adata: AnnData) -> None:
    with pytest.raises(KeyError, match="did you mean 'kind'"):
        values_of(adata, "Kind")
    with pytest.raises(KeyError, match="layer='counts' is not a key"):
        values_of(adata, "g1", layer="counts")


def test_a_gene_on_its_panel(adata: AnnData) -> None:
    axes = pl.embedding(adata, color="g1", show=False, vmax="p100")
    assert axes.get_title() == "g1"
    [scale] = axes.child_axes
    assert scale.get_ylabel() == "log-normalised"
    np.testing.assert_allclose(np.sort(axes.collections[0].get_array()), np.sort(LOGS[:, 1]))
    assert axes.collections[0].get_clim() == pytest.approx((0, LOGS[:, 1].max()))


def test_a_column_comes_before_a_gene_of_the_same_name(adata: AnnData) -> None:
    adata.obs["g0"] = ["p", "q", "p"]
    assert values_of(adata, "g0").column.tolist() == ["p", "q", "p"]


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (["10", "2", "1"], ["1", "2", "10"]),
        (["T 10", "T 9", "B"], ["B", "T 9", "T 10"]),
        (pd.Categorical(["10", "2", "1"]), ["1", "2", "10"]),
        (pd.Categorical(["10", "2"], ["10", "2"], ordered=True), ["10", "2"]),
        (pd.Categorical(["b", "a"], ["b", "a"]), ["b", "a"]),
        (pd.Categorical([10, 2, 1]), ["1", "2", "10"]),
        ([True, False, True], ["False", "True"]),
    ],
    ids=["names", "words", "sorted", "ordered", "chosen", "numbers", "flags"],
)
def test_order_of_categories(column: Any, expected: list[str]) -> None:
    named = as_categories(pd.Series(column))
    assert named.cat.categories.tolist() == expected
    assert named.tolist() == [str(value) for value in column]
