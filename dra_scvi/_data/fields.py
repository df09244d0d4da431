"""What scvi-tools registers of the data, each field checked in full: counts, batches, covariates.

Fields are checked whenever an AnnData is registered: for a new model, for one that is loaded, and
for each getter that is handed other cells.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scvi import REGISTRY_KEYS
from scvi.data.fields import (
    CategoricalJointObsField,
    CategoricalObsField,
    LayerField,
    NumericalJointObsField,
    NumericalObsField,
)

from dra_scvi._compat import is_minified
from dra_scvi._data.columns import NAMES_SHOWN, counted, validate_keys
from dra_scvi._data.query import check_genes
from dra_scvi._data.stored_rows import is_stored
from dra_scvi._data.validation import validate_counts
from dra_scvi._exceptions import GeneMismatchError

if TYPE_CHECKING:
    from collections.abc import Callable

    from anndata import AnnData
    from numpy.typing import NDArray

ARGUMENTS = {
    REGISTRY_KEYS.BATCH_KEY: "batch_key",
    REGISTRY_KEYS.LABELS_KEY: "labels_key",
    REGISTRY_KEYS.CAT_COVS_KEY: "categorical_covariate_keys",
    REGISTRY_KEYS.CONT_COVS_KEY: "continuous_covariate_keys",
    REGISTRY_KEYS.SIZE_FACTOR_KEY: "size_factor_key",
}


class CountsField(LayerField):
    """The matrix of counts, of which scvi-tools' own field checks a sample of 20 values.

    Here every value is checked. Other cells must have the genes of the model, in its order.
    `allow_noninteger` turns the error about such values into a warning; it is kept with what is
    registered, for scvi-tools hands arguments of `setup_anndata` to other classes.
    """

    ALLOW_NONINTEGER_KEY = "allow_noninteger"

    def __init__(
        self, layer: str | None, batch_key: str | None = None, allow_noninteger: bool = False
    ) -> None:
        super().__init__(REGISTRY_KEYS.X_KEY, layer, is_count_data=False)
        self.batch_key = batch_key
        self.allow_noninteger = allow_noninteger

    def register_field(self, adata: AnnData) -> dict[str, Any]:
        """Check the counts that a model is to learn from, and register them."""
        self._check_counts(adata, self.batch_key, to_train=True)
        return self._register(adata)

    def transfer_field(
        self, state_registry: dict[str, Any], adata_target: AnnData, **kwargs: Any
    ) -> dict[str, Any]:
        """Check genes and counts of cells that a model is used on, and register them."""
        genes = adata_target.var_names.astype(str)
        check_genes(list(genes), list(state_registry[self.COLUMN_NAMES_KEY].astype(str)))
        self.allow_noninteger |= bool(state_registry.get(self.ALLOW_NONINTEGER_KEY))
        self._check_counts(adata_target, None, to_train=False)
        return self._register(adata_target)

    def _register(self, adata: AnnData) -> dict[str, Any]:
        registered = super().register_field(adata)
        if self.allow_noninteger:
            registered[self.ALLOW_NONINTEGER_KEY] = True
        return registered

    def _check_counts(self, adata: AnnData, batch_key: str | None, *, to_train: bool) -> None:
        if is_minified(adata):
            return  # there are none
        if self.attr_key is None and hasattr(adata, "adatas"):
            raise ValueError(
                "layer=None: an AnnCollection has no X of its own. Open each file with its counts "
                "in a layer, and name that with layer=."
            )
        for part in getattr(adata, "adatas", [adata]):  # an AnnCollection has several
            _check_part(part, adata, self.attr_key)
            validate_counts(
                part,
                self.attr_key,
                batch_key if part is adata else None,
                allow_noninteger=self.allow_noninteger,
                to_train=to_train,
            )


def _check_part(part: AnnData, whole: AnnData, layer: str | None) -> None:
    """Check that counts in a file need no other genes or order: AnnCollection fails at that."""
    if part is whole or layer not in part.layers or not is_stored(part.layers[layer]):
        return
    if not part.var_names.equals(whole.var_names):
        raise GeneMismatchError(
            "of files in an AnnCollection counts can stay where they are only if all have the "
            "same genes in the same order; read these into memory, or make one file of them "
            "(anndata.experimental.concat_on_disk)."
        )


class CategoryField(CategoricalObsField):
    """A column of categories; of cells that a model is used on, one clear error about each."""

    def validate_field(self, adata: AnnData) -> None:
        """Check that the column is there, and complete."""
        if not self.is_default:
            _check_column(adata, self.registry_key, self._original_attr_key)
        super().validate_field(adata)

    def transfer_field(
        self,
        state_registry: dict[str, Any],
        adata_target: AnnData,
        extend_categories: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Check that the model knows the categories, and register them."""
        if not self.is_default:
            key = self._original_attr_key
            column = _check_column(adata_target, self.registry_key, key)
            known = state_registry[self.CATEGORICAL_MAPPING_KEY]
            _check_categories(column, known, key, extend_categories)
        return super().transfer_field(state_registry, adata_target, extend_categories, **kwargs)


class CategoriesField(CategoricalJointObsField):
    """Columns of categorical covariates, checked as :class:`CategoryField` is."""

    def validate_field(self, adata: AnnData) -> None:
        """Check that the columns are there, and complete."""
        for key in self.attr_keys:
            _check_column(adata, self.registry_key, key)
        super().validate_field(adata)

    def transfer_field(
        self,
        state_registry: dict[str, Any],
        adata_target: AnnData,
        extend_categories: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any] | None:
        """Check that the model knows the categories, and register them."""
        for key in self.attr_keys:
            column = _check_column(adata_target, self.registry_key, key)
            known = state_registry[self.MAPPINGS_KEY][key]
            _check_categories(column, known, key, extend_categories)
        return super().transfer_field(state_registry, adata_target, extend_categories, **kwargs)


class SizeFactorField(NumericalObsField):
    """A column of size factors: positive, finite numbers."""

    def validate_field(self, adata: AnnData) -> None:
        """Check every value."""
        _check_numbers(adata, self.registry_key, self.attr_key, positive=True)
        super().validate_field(adata)


class NumbersField(NumericalJointObsField):
    """Columns of continuous covariates: finite numbers."""

    def validate_field(self, adata: AnnData) -> None:
        """Check every value."""
        for key in self.attr_keys:
            _check_numbers(adata, self.registry_key, key)
        super().validate_field(adata)

    def _combine_fields(self, adata: AnnData) -> None:
        """Gather the columns; pandas cannot take those of foreign byte order."""
        foreign = [k for k in self.attr_keys if not getattr(adata.obs[k].dtype, "isnative", True)]
        if not foreign:
            super()._combine_fields(adata)
            return
        columns = {key: adata.obs[key].astype(np.float64) for key in self.attr_keys}
        adata.obsm[self.attr_key] = pd.DataFrame(columns, index=adata.obs_names)


def _check_column(adata: AnnData, registry_key: str, key: str) -> pd.Series:
    """Return a column, once it is there and complete."""
    for part in getattr(adata, "adatas", [adata]):
        if part is not adata and key not in part.obs:
            continue  # a column of the collection itself, which says what each part is
        validate_keys(part, obs_keys={ARGUMENTS[registry_key]: key})
    return pd.Series(np.asarray(adata.obs[key]), name=key)


def _check_categories(
    column: pd.Series, known: NDArray[Any], key: str, extend_categories: bool
) -> None:
    """Refuse categories that a model does not know, or knows in another type."""
    values = pd.unique(column)
    unknown = [value for value in values if value not in set(known)]
    texts = {str(value) for value in known}
    others = [value for value in unknown if str(value) in texts]
    place = f"adata.obs[{key!r}]"
    if others:
        have, need = type(others[0]).__name__, type(known[0]).__name__
        raise ValueError(
            f"{place} holds values of type {have} (first: {others[0]!r}), which the model knows "
            f"as {need}: convert the column to {need}."
        )
    if unknown and not extend_categories:
        number = int(column.isin(unknown).sum())
        shown = ", ".join(repr(str(value)) for value in known[:NAMES_SHOWN])
        more = ", ..." if len(known) > NAMES_SHOWN else ""
        error = ValueError(
            f"{place} holds {counted(len(unknown), 'category', 'categories')} that the model does "
            f"not know (first: {str(unknown[0])!r}), in {counted(number, 'cell', 'cells')}. It "
            f"knows {shown}{more}: correct the names, leave those cells out, or let a model learn "
            "them first."
        )
        error.add_note(
            "DRA.load_query_data(adata, model), and training, makes a model that knows them too."
        )
        raise error


def _check_numbers(adata: AnnData, registry_key: str, key: str, *, positive: bool = False) -> None:
    """Refuse values that are no finite numbers, once they are the floats that models read."""
    column = _check_column(adata, registry_key, key)
    where = f"{ARGUMENTS[registry_key]}={key!r}: adata.obs[{key!r}]"
    try:
        with np.errstate(over="ignore"):
            values = column.astype(np.float64).to_numpy().astype(np.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{where} holds values that are no numbers (first: {_first_text(column)!r}). Convert "
            "the column to numbers, or name it among the categorical covariates."
        ) from error
    faults: list[tuple[str, Callable[[Any], Any]]] = [
        ("NaN", np.isnan),
        ("infinite, or too large for float32,", np.isinf),
    ]
    if positive:
        faults += [("negative", lambda x: x < 0), ("zero", lambda x: x == 0)]
    for name, test in faults:
        cells = np.flatnonzero(test(values))
        if len(cells):
            need = "positive, finite numbers" if positive else "finite numbers"
            verb = "is" if len(cells) == 1 else "are"
            raise ValueError(
                f"{where} holds {counted(len(cells), 'value', 'values')} that {verb} {name} "
                f"(first: cell {str(adata.obs_names[cells[0]])!r}); {need} are needed. Repair "
                "them, or leave those cells out."
            )


def _first_text(column: pd.Series) -> str:
    numbers = pd.to_numeric(column.astype(str), errors="coerce")
    return str(column[numbers.isna()].iloc[0]) if numbers.isna().any() else str(column.iloc[0])
