"""Types that cannot be transferred: refused in a sentence, or done with a word."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest

from dra_scvi import DRA, GeneMismatchError, InvalidCountsError, PublishedDRA, tl
from tests.helpers import SMALL, cells, fit

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData

KEY = "cell_type_transferred"


@pytest.fixture(scope="module")
def trained() -> DRA:
    return fit(cells(), batch_key="batch")


@pytest.fixture
def model(trained: DRA) -> DRA:
    trained.adata.obs["cell_type"] = cells().obs["cell_type"]
    return trained


@pytest.fixture
def query() -> AnnData:
    made = cells(seed=1)
    del made.obs["cell_type"]
    return made


def transfer(model: Any, query: Any, labels_key: Any = "cell_type", **options: Any) -> None:
    tl.transfer_labels(model, query, labels_key, **options)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"threshold": 1.5}, ValueError, "threshold=1.5: a number from 0 to 1 is needed"),
        ({"threshold": -0.1}, ValueError, "threshold=-0.1: a number from 0 to 1"),
        ({"threshold": "0.5"}, ValueError, "threshold='0.5': a number from 0 to 1"),
        ({"threshold": float("nan")}, ValueError, "threshold=nan"),
        ({"far_quantile": 0}, ValueError, "far_quantile=0: a number from above 0 to 1"),
        ({"far_quantile": 99}, ValueError, "far_quantile=99: a number from above 0 to 1"),
        ({"n_neighbors": 0}, ValueError, "n_neighbors must be at least 1, not 0"),
        ({"n_neighbors": 1.5}, TypeError, "n_neighbors must be a whole number"),
        ({"max_epochs": -1}, ValueError, "max_epochs must be at least 0, not -1"),
        ({"seed": None}, TypeError, "seed must be a whole number"),
        ({"unknown": ""}, ValueError, "unknown='': a word is needed"),
        ({"key_added": "a/b"}, ValueError, "key_added='a/b' cannot be a name in an .h5ad"),
        ({"embedding_key": f"{KEY}_probabilities"}, ValueError, "probabilities are written there"),
        ({"embedding_key": "a/b"}, ValueError, "embedding_key='a/b' cannot be a name"),
    ],
    ids=str,
)
def test_numbers_and_names_of_a_transfer(
    model: DRA, query: AnnData, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    """A threshold, a quantile, a number or a name that is none is refused before any work."""
    with pytest.raises(error, match=words):
        transfer(model, query, **options)
    assert list(query.obs) == ["batch"]


def test_types_that_are_not_there(model: DRA, query: AnnData) -> None:
    """A column that the reference has not is refused, with the closest one that it has."""
    with pytest.raises(KeyError, match=r"'celltype' is not .* did you mean 'cell_type'\?"):
        transfer(model, query, "celltype")
    with pytest.raises(TypeError, match="labels_key=None must be a name"):
        transfer(model, query, None)


@pytest.mark.parametrize("without", [None, "unknown"])
def test_reference_cells_without_a_type(model: DRA, query: AnnData, without: Any) -> None:
    """Reference cells whose type is missing, or unknown, take no part, with a word."""
    column = model.adata.obs["cell_type"].astype(object)
    column[::3] = without
    model.adata.obs["some"] = column
    words = r"20 of 60 cells of the reference without a type in obs\['some'\] take no part"
    with pytest.warns(UserWarning, match=words):
        transfer(model, query, "some")
    found = query.uns["some_transferred"]["types"]
    assert found.index.tolist() == ["type_0", "type_1"]
    assert found["n_reference"].sum() == 40


def test_reference_with_one_type(model: DRA, query: AnnData) -> None:
    """A reference with one type, or none at all, is refused: there is nothing to tell apart."""
    model.adata.obs["one"] = "B"
    with pytest.raises(ValueError, match=r"labels_key='one' has one type alone \('B'\)"):
        transfer(model, query, "one")
    model.adata.obs["one"] = np.nan
    with pytest.raises(ValueError, match="labels_key='one' has no type among the cells"):
        transfer(model, query, "one")


def test_types_named_in_two_ways(model: DRA, query: AnnData) -> None:
    """Types 1 and '1' are refused: in a table of types they would be one."""
    model.adata.obs["mixed"] = pd.Series([1, "1"] * 30, index=model.adata.obs_names, dtype=object)
    with pytest.raises(ValueError, match="'1' is there as text and as a number"):
        transfer(model, query, "mixed")


def test_types_of_a_cell_each(model: DRA, query: AnnData) -> None:
    """Types of one cell each are refused: nothing can be held out to learn from."""
    model.adata.obs["each"] = model.adata.obs_names
    with pytest.raises(ValueError, match="no type has two cells"):
        transfer(model, query, "each")


def test_query_with_other_genes(model: DRA, query: AnnData) -> None:
    """A query that lacks genes of the model is refused, with the first of them."""
    with pytest.raises(GeneMismatchError, match="2 of the model's 12 genes are missing"):
        transfer(model, query[:, 2:].copy())
    twice = query.copy()
    twice.var_names = ["gene"] * twice.n_vars
    with pytest.raises(ValueError, match="gene names of the input are not unique"):
        transfer(model, twice)


def test_query_without_cells_or_counts(model: DRA, query: AnnData) -> None:
    """A query without cells, a view, normalised counts, and what is no AnnData are refused."""
    with pytest.raises(ValueError, match="query has no cells"):
        transfer(model, query[:0].copy())
    with pytest.raises(ValueError, match=r"query is a view .* pass a copy"):
        transfer(model, query[:5])
    with pytest.raises(TypeError, match="must be an AnnData"):
        transfer(model, "query.h5ad")
    query.X = query.X * 0.5
    with pytest.raises(InvalidCountsError):
        transfer(model, query)
    assert list(query.obs) == ["batch"]


def test_query_without_its_batches(model: DRA, query: AnnData) -> None:
    """A query without the column of batches, or with gaps in it, is refused by its name."""
    gaps = query.copy()
    gaps.obs["batch"] = gaps.obs["batch"].cat.set_categories(["batch_0"])
    with pytest.raises(ValueError, match="batch_key='batch': 30 of 60 cells"):
        transfer(model, gaps)
    del query.obs["batch"]
    with pytest.raises(KeyError, match="batch_key='batch' is not a column"):
        transfer(model, query)


def test_results_that_would_take_the_place_of_others(model: DRA, query: AnnData) -> None:
    """A column of the results' name that is the user's own is kept; an earlier result is not."""
    query.obs[f"{KEY}_probability"] = 1.0
    words = f"key_added='{KEY}': adata.obs has '{KEY}_probability' already; choose another name"
    with pytest.raises(ValueError, match=words):
        transfer(model, query)
    assert (query.obs[f"{KEY}_probability"] == 1.0).all()
    transfer(model, query, key_added="type")
    transfer(model, query, key_added="type", threshold=1.0)
    assert set(query.obs["type"]) == {"unknown"}


def test_reference_that_is_no_trained_model_with_cells(
    model: DRA, query: AnnData, tmp_path: Path
) -> None:
    """A model without cells, one that is not trained, and another kind are refused."""
    model.save(str(tmp_path / "model"))
    empty = DRA.load(str(tmp_path / "model"), adata=False, accelerator="cpu")
    with pytest.raises(ValueError, match="reference_model has no cells: load it with those of"):
        transfer(empty, query)
    adata = cells()
    DRA.setup_anndata(adata)
    with pytest.raises(RuntimeError, match="Train the reference model first"):
        transfer(DRA(adata, **SMALL), query)
    PublishedDRA.setup_anndata(adata)
    with pytest.raises(TypeError, match="must be a trained DRA, not PublishedDRA"):
        transfer(PublishedDRA(adata), query)
    with pytest.raises(TypeError, match="must be a trained DRA, not str"):
        transfer("model", query)


@pytest.mark.parametrize(("n_each", "told"), [(2, "0 of 4"), (0, "0 of 0")])
def test_types_that_are_mostly_missed(n_each: int, told: str, model: DRA, query: AnnData) -> None:
    """A rare type that others outvote, or that is in one batch alone, is named."""
    rare = pd.Series("common", index=model.adata.obs_names)
    for batch, n_cells in (("batch_0", n_each or 4), ("batch_1", n_each)):
        rare[model.adata.obs_names[model.adata.obs["batch"] == batch][:n_cells]] = "rare"
    model.adata.obs["rare"] = rare
    words = rf"1 type is recognised in few, or none, .* 'rare' \({told}\)\. balanced=True"
    with pytest.warns(UserWarning, match=words):
        transfer(model, query, "rare")
    assert not query.uns["rare_transferred"]["types"].loc["rare", "recognised"] > 0


def test_query_that_lies_apart_as_a_whole(model: DRA, query: AnnData) -> None:
    """A query most of whose cells are far from the reference is unknown, with a word on why."""
    with pytest.warns(
        UserWarning, match="of 60 cells lie farther from the reference than its own"
    ):
        transfer(model, query, far_quantile=0.01)
    assert (query.obs[KEY] == "unknown").mean() > 0.5


def test_batches_that_are_known_as_another_type(query: AnnData) -> None:
    """Batch 1, where the model knows '1', is refused rather than taken for a new batch."""
    reference = cells()
    reference.obs["batch"] = reference.obs["batch"].astype(str).str[-1]
    model = fit(reference, batch_key="batch")
    query.obs["batch"] = [0, 1] * 30
    with pytest.raises(ValueError, match="convert the column to str"):
        transfer(model, query)


def test_new_batches_of_a_model_with_dispersions_by_type(query: AnnData) -> None:
    """A model with a dispersion for each type is not trained on cells without types."""
    made_with = {"dispersion": "gene-label", "encode_covariates": True}
    setup = {"labels_key": "cell_type"}
    model = fit(cells(), batch_key="batch", model=made_with, setup=setup, max_epochs=1)
    query.obs["batch"] = "new"
    with pytest.raises(ValueError, match="max_epochs=0 encodes them without"):
        transfer(model, query)
    transfer(model, query, max_epochs=0)
    assert query.obsm["X_dra"].shape == (60, 4)


def test_two_columns_of_one_name(model: DRA, query: AnnData) -> None:
    """A query with two columns of the name of the batches is refused by that name."""
    query.obs = pd.concat([query.obs, query.obs[["batch"]]], axis=1)
    with pytest.raises(ValueError, match="batch_key='batch': adata.obs has several columns"):
        transfer(model, query)
