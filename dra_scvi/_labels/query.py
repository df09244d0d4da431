"""Codes of new cells under a trained model, those of batches included that it does not know."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scvi import REGISTRY_KEYS

from dra_scvi._compat import is_minified
from dra_scvi._data.query import query_for
from dra_scvi._data.registration import forget_with, registered

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd
    from anndata import AnnData
    from numpy.typing import NDArray

    from dra_scvi._model.dra import DRA


def encode_query(
    model: DRA, query: AnnData, max_epochs: int | None, train: Mapping[str, Any]
) -> NDArray[np.float32]:
    """Return codes of new cells that compare with those of the model's own; neither is changed.

    An encoder that is not told of batches has no weights of theirs, and encodes a new one as it
    is. One that is told is trained on it (scArches), unless `max_epochs` is 0: the cells are then
    encoded as if they were of the batch that most cells of the reference are of.
    """
    setup = dict(model.registry["setup_args"])
    labels_key = setup.pop("labels_key", None)
    cells = query_for(query, [str(gene) for gene in model.get_var_names()], setup)
    known = _known_categories(model)
    if labels_key is not None:  # codes do not depend on it, and a query has none, or others
        cells.obs[labels_key] = known.pop(labels_key)[0]
    is_trained_on = False
    if any(_is_new(cells.obs[key], names).any() for key, names in known.items()):
        is_trained_on = model.module.encode_covariates and max_epochs != 0
        if is_trained_on and model.module.dispersion == "gene-label":
            raise ValueError(
                "A model with dispersion='gene-label' cannot be trained on new batches of cells "
                "whose types are not known; max_epochs=0 encodes them without."
            )
        if not is_trained_on:
            _rename_new(cells.obs, known, model.adata.obs)
    if not is_trained_on and not is_minified(model.adata):
        with registered(model, cells):
            return np.asarray(model.get_latent_representation(cells))
    # a model of minified cells encodes no others
    own: DRA = type(model).load_query_data(
        cells, model, accelerator=train.get("accelerator", "auto")
    )
    forget_with(own)
    if is_trained_on:
        own.train(max_epochs, **train)
    own.is_trained_ = True
    return np.asarray(own.get_latent_representation())


def _known_categories(model: DRA) -> dict[str, NDArray[Any]]:
    """Categories that a model knows, by the column that has them."""
    setup, fields = model.registry["setup_args"], model.registry["field_registries"]
    known = {
        setup[argument]: fields[key]["state_registry"]["categorical_mapping"]
        for argument, key in (
            ("batch_key", REGISTRY_KEYS.BATCH_KEY),
            ("labels_key", REGISTRY_KEYS.LABELS_KEY),
        )
        if setup.get(argument) is not None
    }
    if setup.get("categorical_covariate_keys"):
        known |= fields[REGISTRY_KEYS.CAT_COVS_KEY]["state_registry"]["mappings"]
    return known


def _is_new(column: pd.Series, known: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether values are unknown in every type: 1 for '1' is a mistake, named where it is read."""
    return ~np.isin(column.astype(str).to_numpy(), np.asarray(known).astype(str))


def _rename_new(
    columns: pd.DataFrame, known: Mapping[str, NDArray[Any]], reference: pd.DataFrame
) -> None:
    """Put the most common category of the reference in place of those that are new, in place."""
    for key, names in known.items():
        is_new = _is_new(columns[key], names)
        if is_new.any():
            values = columns[key].astype(object)
            values[is_new] = reference[key].mode()[0]
            columns[key] = values
