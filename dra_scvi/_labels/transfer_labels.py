"""Types of the cells of a query, from a reference model whose cells have theirs."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from dra_scvi._argument_kinds import (
    check_adata,
    check_given_once,
    check_kinds,
    check_number,
    check_seed,
)
from dra_scvi._data.columns import counted
from dra_scvi._labels.calibration import temper
from dra_scvi._labels.classifier import Classifier, Prediction
from dra_scvi._labels.query import encode_query
from dra_scvi._labels.types import Types, known_types
from dra_scvi._model.arguments import check_shares, check_training_names
from dra_scvi._model.dra import DRA
from dra_scvi._outputs.h5ad_content import check_key
from dra_scvi._training.runner import seeded
from dra_scvi.metrics._calibration import calibration

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray


LEAST_RECOGNISED = 0.5
SHOWN = 5


def transfer_labels(
    reference_model: DRA,
    query: AnnData,
    labels_key: str,
    *,
    key_added: str | None = None,
    n_neighbors: int = 15,
    threshold: float = 0.5,
    far_quantile: float | None = 0.99,
    balanced: bool = False,
    unknown: str = "unknown",
    embedding_key: str = "X_dra",
    max_epochs: int | None = None,
    accelerator: str = "auto",
    train_kwargs: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> None:
    """Give the cells of `query` the types that cells of a reference have around them.

    The nearest cells of the reference vote, nearer ones with more weight, on the means of q(z|x).
    Votes become probabilities by one temperature (Guo et al. 2017), fitted to reference cells that
    are held out: batch by batch where there are several, for a query is such a batch, else tenth
    by tenth. A cell is called unknown where no type is probable enough, or where its neighbours
    are farther away than those of reference cells of that type are when they are held out. The
    probabilities are those of the types of the reference: that a cell is of none of them is told
    by distance alone, and a new type that lies among known ones is not noticed.

    Types vote with all their cells, so that among several the common one is the more probable, as
    it is among the cells of the reference; a type of fewer than half of `n_neighbors` cells can be
    outvoted wherever it is. Types of which most cells that were held out are taken for others, or
    none could be held out as all are of one batch, are named in a warning. ``balanced=True`` gives
    types equal weight, as if a query had as many cells of each: rare ones are found more often,
    and more cells are taken for rare ones in error.

    Parameters
    ----------
    reference_model
        Trained, with its cells.
    query
        New cells, raw counts as in the training, with all genes of the model. Cells of a batch
        that the model does not know are encoded as they are, unless its encoder is told of batches
        (``encode_covariates=True``): then the weights of theirs are trained first
        (:meth:`DRA.load_query_data <dra_scvi.DRA.load_query_data>`).
    labels_key
        Column of ``reference_model.adata.obs`` with types. Cells without one, or whose type is
        `unknown`, take no part.
    key_added
        What the results are called; ``f"{labels_key}_transferred"`` unless given. Those of an
        earlier call are replaced.
    n_neighbors
        How many cells vote.
    threshold
        Probability below which a cell is `unknown`, from 0 to 1.
    far_quantile
        Share of reference cells of a type, above 0 and up to 1, that lie within the distance
        beyond which a cell is `unknown`; where fewer than 20 cells of a type were held out, at
        least the distance of all types. `None` to leave distances out.
    balanced
        Whether types weigh the same, however many cells they have.
    unknown
        What cells of no type are called.
    embedding_key
        Where in ``query.obsm`` the codes are written.
    max_epochs
        Epochs of a training on new batches; 0 for none, `None` for what suits the number of cells.
    accelerator
        Of that training: `"auto"`, `"cpu"`, `"gpu"`, ..., as in Lightning.
    train_kwargs
        Further arguments of that training.
    seed
        Seed of everything random.

    Returns
    -------
    Nothing. In `query`, with `key` for `key_added`:

    - ``obs[key]``: type or `unknown`, categorical;
    - ``obs[key + "_probability"]``: of the most probable type, also where that is not called;
    - ``obs[key + "_distance"]``: mean distance to the neighbours, 1 being the limit of that type;
    - ``obsm[key + "_probabilities"]``: of all types, ``(n_cells, n_types)``, in the order of
      ``uns[key]["types"].index``;
    - ``uns[key]``: settings and ``"temperature"``; of the cells that were held out ``"accuracy"``,
      ``"ece"`` and ``"reliability"`` (:func:`dra_scvi.metrics.calibration`); and by type, in
      ``"types"``, how many there were and which share was recognised;
    - ``obsm[embedding_key]``: codes.

    Raises
    ------
    GeneMismatchError
        When `query` lacks genes of the model; :meth:`DRA.prepare_query_anndata
        <dra_scvi.DRA.prepare_query_anndata>` adds them as zeros.
    InvalidCountsError
        When it does not hold raw counts.
    KeyError
        When a column is not there.
    RuntimeError
        When the model is not trained.
    TypeError, ValueError
        When an argument is not what it may be, the model has no cells, these have fewer than two
        types, or `query` has no cells, or a column of that name already.

    References
    ----------
    Lotfollahi, M. et al. (2022). Mapping single-cell data to reference atlases by transfer
    learning. Nat. Biotechnol. 40, 121-130.

    Guo, C., Pleiss, G., Sun, Y. & Weinberger, K. Q. (2017). On calibration of modern neural
    networks. ICML.

    Examples
    --------
    >>> import dra_scvi
    >>> cells = dra_scvi.datasets.synthetic(n_cells=300, n_genes=100, n_types=3)
    >>> reference, query = cells[:200].copy(), cells[200:].copy()
    >>> del query.obs["cell_type"]
    >>> quiet = {"enable_progress_bar": False}
    >>> model = dra_scvi.tl.dra(reference, max_epochs=20, accelerator="cpu", train_kwargs=quiet)
    >>> dra_scvi.tl.transfer_labels(model, query, "cell_type")
    >>> query.obs["cell_type_transferred"].cat.categories.tolist()
    ['type_0', 'type_1', 'type_2', 'unknown']
    >>> query.obsm["cell_type_transferred_probabilities"].shape
    (100, 3)
    """
    key = f"{labels_key}_transferred" if key_added is None else key_added
    numbers = {
        "n_neighbors": n_neighbors,
        "threshold": threshold,
        "far_quantile": far_quantile,
        "max_epochs": max_epochs,
        "seed": seed,
    }
    _check(reference_model, query, key, embedding_key, unknown, numbers)
    check_kinds(transfer_labels, locals())
    check_given_once(transfer_labels, locals(), train_kwargs or {}, "train_kwargs")
    types = known_types(reference_model.adata, labels_key, unknown)
    train = {"accelerator": accelerator, **(train_kwargs or {})}
    check_training_names(type(reference_model), train, "train_kwargs")
    max_epochs = train.pop("max_epochs", max_epochs)
    with seeded(seed):
        codes = encode_query(reference_model, query, max_epochs, train)
        classifier = Classifier.fit(
            np.asarray(reference_model.get_latent_representation())[types.cells],
            types.labels,
            reference_model._batch_numbers()[types.cells],
            n_neighbors,
            1.0 if far_quantile is None else far_quantile,
            balanced,
            seed,
        )
    settings = {
        "labels_key": labels_key,
        "n_neighbors": int(n_neighbors),
        "threshold": float(threshold),
        "far_quantile": "" if far_quantile is None else float(far_quantile),
        "balanced": bool(balanced),
        "unknown": unknown,
    }
    found = classifier.predict(codes)
    called = _called(found, threshold, far_quantile is not None)
    query.obsm[embedding_key] = codes
    _write(query, key, found, called, [*types.names, unknown])
    query.uns[key] = {**settings, **_report(classifier, types)}
    query.uns.pop(f"{key}_colors", None)  # of types that were there before
    _remark(query.uns[key]["types"], found, far_quantile is not None)


def _check(
    model: Any, query: Any, key: Any, embedding_key: Any, unknown: Any, numbers: Mapping[str, Any]
) -> None:
    """Check all that can be checked before any work."""
    check_number(numbers["n_neighbors"], "n_neighbors", least=1)
    check_seed(numbers["seed"])
    if numbers["max_epochs"] is not None:
        check_number(numbers["max_epochs"], "max_epochs", least=0)
    check_shares({name: value for name, value in numbers.items() if value is not None})
    if not isinstance(unknown, str) or not unknown.strip():
        raise ValueError(f"unknown={unknown!r}: a word is needed.")
    if not isinstance(model, DRA):
        raise TypeError(f"reference_model must be a trained DRA, not {type(model).__name__}.")
    model._check_if_trained(warn=False, message="Train the reference model first.")
    if model.adata is None:
        raise ValueError(
            "reference_model has no cells: load it with those of the reference, as in "
            "DRA.load(folder, adata=reference)."
        )
    check_key(key, "key_added")
    check_key(embedding_key, "embedding_key")
    if embedding_key == f"{key}_probabilities":
        raise ValueError(
            f"embedding_key={embedding_key!r}: probabilities are written there; choose another "
            "name."
        )
    _check_query(query, key)


def _check_query(query: Any, key: str) -> None:
    check_adata(query)
    if query.n_obs == 0:
        raise ValueError("query has no cells.")
    if query.is_view:
        raise ValueError("query is a view of another AnnData: pass a copy, `query.copy()`.")
    before = query.uns.get(key)
    if isinstance(before, Mapping) and "labels_key" in before:
        return  # what an earlier call has left is replaced
    taken = {
        "obs": [key, f"{key}_probability", f"{key}_distance"],
        "obsm": [f"{key}_probabilities"],
        "uns": [key],
    }
    for place, names in taken.items():
        for name in names:
            if name in getattr(query, place):
                raise ValueError(
                    f"key_added={key!r}: adata.{place} has {name!r} already; choose another name, "
                    "or delete it."
                )


def _called(found: Prediction, threshold: float, by_distance: bool) -> NDArray[np.int64]:
    """Return the number of each cell's type; of none, one more than there are."""
    called = found.probabilities.argmax(axis=1)
    is_unknown = found.probabilities.max(axis=1) < threshold
    if by_distance:
        is_unknown |= found.distance > 1
    return np.where(is_unknown, found.probabilities.shape[1], called)


def _write(
    query: AnnData, key: str, found: Prediction, called: NDArray[np.int64], names: list[str]
) -> None:
    shares = found.probabilities.astype(np.float32)
    query.obs[key] = pd.Categorical.from_codes(called, names)
    query.obs[f"{key}_probability"] = shares.max(axis=1)
    query.obs[f"{key}_distance"] = found.distance.astype(np.float32)
    query.obsm[f"{key}_probabilities"] = shares  # of a table, files refuse names with a '/'


def _report(classifier: Classifier, types: Types) -> dict[str, Any]:
    """Describe what was learnt from cells that were held out, by what every file can hold."""
    held_out = classifier.held_out
    shares = temper(held_out.votes, classifier.temperature)
    score = calibration(shares, held_out.labels, types=range(len(types.names)))
    n_held_out, recognised = classifier.recovered()
    table = pd.DataFrame(
        {
            "n_reference": np.bincount(types.labels),
            "n_held_out": n_held_out,
            "recognised": recognised,
            "limit": classifier.limits,
        },
        index=types.names,
    )
    bins = score["bins"].set_axis(score["bins"].index.astype(str))
    return {
        "temperature": classifier.temperature,
        "held_out": "batches" if classifier.by_batch else "cells",
        "accuracy": score["accuracy"],
        "ece": score["ece"],
        "reliability": bins,
        "types": table,
    }


def _remark(types: pd.DataFrame, found: Prediction, by_distance: bool) -> None:
    """Say which types are mostly missed, and whether the query lies apart as a whole."""
    missed = types[~(types["recognised"] >= LEAST_RECOGNISED)]  # those never held out as well
    if len(missed):
        shown = ", ".join(
            f"{name!r} ({np.nan_to_num(row['recognised'] * row['n_held_out']):.0f} of "
            f"{row['n_held_out']:.0f})"
            for name, row in missed.head(SHOWN).iterrows()
        )
        more = ", ..." if len(missed) > SHOWN else ""
        warnings.warn(
            f"{counted(len(missed), 'type is', 'types are')} recognised in few, or none, of the "
            f"reference cells that were held out: {shown}{more}. balanced=True finds rare ones "
            "more often.",
            UserWarning,
            stacklevel=3,
        )
    n_far = int((found.distance > 1).sum())
    if by_distance and 2 * n_far > len(found.distance):
        warnings.warn(
            f"{n_far} of {counted(len(found.distance), 'cell', 'cells')} lie farther from the "
            "reference than its own cells do, and are unknown. Where the query differs as a "
            "whole, as by an effect of its batch, far_quantile=None goes by probabilities alone.",
            UserWarning,
            stacklevel=3,
        )
