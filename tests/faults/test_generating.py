"""Generated cells: what cannot be generated, or compared, is refused in a sentence."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from dra_scvi import DRA, metrics
from tests.helpers import SMALL, cells, fit

if TYPE_CHECKING:
    from anndata import AnnData

ARCHIVE = Path(__file__).parents[1] / "archive"


@pytest.fixture(scope="module")
def model() -> DRA:
    return fit(cells(), batch_key="batch")


def untrained(adata: AnnData, made_with: dict[str, Any] | None = None, **setup: Any) -> DRA:
    DRA.setup_anndata(adata, **setup)
    made = DRA(adata, **{**SMALL, **(made_with or {})})
    made.is_trained_ = True
    return made


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"n_cells": 0}, ValueError, "n_cells must be at least 1, not 0"),
        ({"n_cells": 2.5}, TypeError, "n_cells must be a whole number, not 2.5"),
        ({"n_cells": "many"}, TypeError, "n_cells must be a whole number, not 'many'"),
        ({"n_cells": 5, "seed": -1}, ValueError, "seed must be at least 0, not -1"),
        ({"n_cells": 5, "seed": None}, TypeError, "seed must be a whole number, not None"),
        ({"n_cells": 5, "seed": 2**32}, ValueError, "seed must be at most 4294967295"),
    ],
    ids=str,
)
def test_numbers_that_make_no_cells(
    model: DRA, arguments: dict[str, Any], error: type[Exception], words: str
) -> None:
    """A number of cells, or a seed, that is none is refused by its name."""
    with pytest.raises(error, match=words):
        model.generate(**arguments)


@pytest.mark.parametrize("batch", ["batch_9", 0, ["batch_0", "batch_9"], []])
def test_a_batch_that_the_model_does_not_know(model: DRA, batch: Any) -> None:
    """A batch that was not trained on is refused, and those that were are named."""
    with pytest.raises(KeyError, match=r"the model was last trained on; choose from 'batch_0'"):
        model.generate(5, batch)


def test_a_batch_of_a_model_without_batches() -> None:
    """A batch of a model without batches is refused, since all cells are of none."""
    with pytest.raises(ValueError, match="the model was set up without a batch_key"):
        fit(cells(), max_epochs=1).generate(5, "batch_0")


def test_a_model_that_was_not_trained() -> None:
    """A model that was not trained makes no cells."""
    adata = cells()
    DRA.setup_anndata(adata)
    with pytest.raises(RuntimeError, match="rain"):
        DRA(adata, **SMALL).generate(5)


def test_a_query_that_was_not_trained(model: DRA) -> None:
    """A query makes no cells of its reference under its own name, before it is trained itself."""
    adata = cells()
    adata.obs["batch"] = "new"
    query = DRA.load_query_data(adata, model, accelerator="cpu")
    with pytest.raises(RuntimeError, match="rain"):
        query.generate(5)


def test_a_model_of_an_earlier_version() -> None:
    """A model saved before cells could be made loads, and says why it makes none."""
    loaded = DRA.load(str(ARCHIVE / "0.1.0-DRA"), accelerator="cpu")
    with pytest.raises(ValueError, match=r"saved by an earlier version.* Train it again"):
        loaded.generate(5)


@pytest.mark.parametrize(
    ("made_with", "words"),
    [
        ({"gene_likelihood": "normal"}, "gene_likelihood='normal' makes no counts"),
        ({"dispersion": "gene-label"}, "dispersion='gene-label' needs the label of every cell"),
    ],
    ids=str,
)
def test_models_that_lack_what_counts_are_made_of(made_with: dict[str, Any], words: str) -> None:
    """A model that gives no counts, or needs labels for them, says so."""
    with pytest.raises(ValueError, match=words):
        untrained(cells(), made_with, labels_key="cell_type").generate(5)


def test_covariates_without_cells_to_take_them_from(tmp_path: Path) -> None:
    """A model with covariates that is loaded without cells asks for them."""
    adata = cells()
    adata.obs["stress"] = np.arange(adata.n_obs, dtype=float)
    trained = fit(adata, setup={"continuous_covariate_keys": ["stress"]}, max_epochs=1)
    trained.save(str(tmp_path / "model"))
    loaded = DRA.load(str(tmp_path / "model"), adata=False, accelerator="cpu")
    with pytest.raises(ValueError, match=r"covariates \('stress'\).*adata=adata"):
        loaded.generate(5)


COUNTS = np.random.default_rng(0).poisson(2, (30, 6))


@pytest.mark.parametrize(
    ("sides", "error", "words"),
    [
        ((COUNTS, COUNTS[:, :5]), ValueError, "generated has 5 genes and real has 6"),
        ((COUNTS, COUNTS, COUNTS[:, :5]), ValueError, "reference has 5 genes and real has 6"),
        ((COUNTS, -COUNTS), ValueError, "generated holds values that are negative"),
        (
            (COUNTS * np.nan, COUNTS),
            ValueError,
            "real holds values that are .* not finite",
        ),
        ((COUNTS, COUNTS[:5]), ValueError, "5 cells of generated are too few"),
        ((COUNTS[:12], COUNTS), ValueError, "6 cells of real are too few"),
        (("X", COUNTS), TypeError, "real must be an AnnData or a matrix of counts, not str"),
        ((COUNTS, [["a"]]), TypeError, "generated must be an AnnData or a matrix of counts"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_cells_that_cannot_be_compared(
    sides: tuple[Any, ...], error: type[Exception], words: str
) -> None:
    """Counts that are none, of other genes or of too few cells, get no score of realism."""
    with pytest.raises(error, match=words):
        metrics.realism(*sides)


def test_genes_in_another_order() -> None:
    """Generated cells whose genes are in another order are not compared gene against gene."""
    real = cells()
    with pytest.raises(ValueError, match=r"generated does not have the genes of real in their"):
        metrics.realism(real, real[:, ::-1].copy())
