"""What cells are coloured by: a column of `obs`, or a gene, log-normalised where it is counts."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.sparse import issparse

from dra_scvi._argument_kinds import check_distinguishable
from dra_scvi._data.columns import unknown_key, validate_keys
from dra_scvi._data.matrices import blocks
from dra_scvi._data.validation import holds_counts

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anndata import AnnData
    from numpy.typing import NDArray

TARGET_SUM = 1e4
LOG_NORMALISED = "log-normalised"
MISSING = "NA"  # what scanpy calls it


class Values(NamedTuple):
    """What one name stands for: values of cells in a unit, and stored colours by category."""

    title: str
    column: pd.Series
    unit: str = ""
    colours: Mapping[str, str] = {}


@dataclass
class Lookup:
    """Finds names among the columns of `obs`, then among the genes.

    Counts of a gene, which are whole numbers, become ln(1 + counts per 10,000); other values are
    taken as they are, from where :func:`scanpy.pl.embedding` would take them: in ``adata.raw``
    where there is one, unless a layer is named or `use_raw` is `False`.

    >>> from anndata import AnnData
    >>> adata = AnnData(np.array([[1.0, 3.0]]), var=pd.DataFrame(index=["a", "b"]))
    >>> found = Lookup(adata)("b")
    >>> found.column.round(2).tolist(), found.unit
    ([8.92], 'log-normalised')
    """

    adata: AnnData
    layer: str | None = None
    use_raw: bool | None = None
    gene_symbols: str | None = None

    def __call__(self, name: str) -> Values:
        """Look a name up."""
        obs = self.adata.obs
        if name not in obs:
            return self._expression(name)
        check_distinguishable(obs[name], f"color={name!r}: adata.obs[{name!r}]")
        names = () if is_numeric(obs[name]) else obs[name].astype("category").cat.categories
        stored = self.adata.uns.get(f"{name}_colors", ())
        colours = dict(zip(map(str, names), stored, strict=False))
        return Values(name.replace("_", " "), obs[name], colours=colours)

    def _expression(self, name: str) -> Values:
        column = self._source[:, [self._source.var_names[self._position(name)]]]
        matrix = column.X if self.layer is None else column.layers[self.layer]
        dense = [part.toarray() if issparse(part) else part for *_, part in blocks(matrix)]
        values = np.concatenate(dense).ravel().astype(np.float64)
        is_counted = holds_counts(values[:, None])
        if is_counted:
            values = np.log1p(TARGET_SUM * values / self._totals)
        named = pd.Series(values, index=self.adata.obs_names, name=name)
        return Values(name, named, LOG_NORMALISED if is_counted else self.layer or "")

    @cached_property
    def _source(self) -> Any:
        """What holds the genes: the data, or their ``raw``."""
        raw, layer = self.adata.raw, self.layer
        validate_keys(self.adata, layer)
        if self.use_raw and layer is not None:
            raise ValueError(
                f"use_raw=True and layer={layer!r}: genes can be read from one alone."
            )
        if self.use_raw and raw is None:
            raise ValueError("use_raw=True, but there is no adata.raw: leave use_raw out.")
        is_raw = self.use_raw or (self.use_raw is None and layer is None and raw is not None)
        return raw if is_raw else self.adata

    def _position(self, name: str) -> int:
        var, key = self._source.var, self.gene_symbols
        if key is not None and key not in var:
            raise KeyError(unknown_key("gene_symbols", key, "a column of adata.var", var.columns))
        genes = var.index if key is None else var[key]
        found = np.flatnonzero(np.asarray(genes) == name)
        if not len(found):
            names = [*self.adata.obs.columns, *genes]
            raise KeyError(unknown_key("color", name, "a column of adata.obs or a gene", names))
        if len(found) > 1 or not var.index.is_unique:
            raise ValueError(
                f"color={name!r} stands for {len(found)} genes, or other names repeat: call "
                "adata.var_names_make_unique(), or name the gene by what is unique."
            )
        return int(found[0])

    @cached_property
    def _totals(self) -> NDArray[np.float64]:
        """Counts of each cell, 1 where it has none."""
        matrix = self._source.X if self.layer is None else self.adata.layers[self.layer]
        totals = np.zeros(matrix.shape[0])
        for row, _, block in blocks(matrix):
            totals[row : row + block.shape[0]] += np.asarray(block.sum(axis=1)).ravel()
        return np.where(totals > 0, totals, 1)


def is_numeric(column: pd.Series) -> bool:
    """Whether a column is drawn on a scale, and not as categories."""
    return pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)


def as_categories(column: pd.Series) -> pd.Series:
    """Name every cell's category, in an order that readers expect.

    Categories that are merely in the order of their letters, which is what pandas makes of names,
    are sorted by the numbers in them; any other order is somebody's choice, and stays.
    """
    column = column.astype("category").cat.remove_unused_categories()
    column = column.cat.rename_categories([str(name) for name in column.cat.categories])
    names = list(column.cat.categories)
    if names == sorted(names) and not column.cat.ordered:
        column = column.cat.reorder_categories(sorted(names, key=natural))
    return column.fillna(MISSING) if MISSING in names else column


def natural(name: str) -> list[str | int]:
    """Key to sort by, in which numbers count as such.

    >>> sorted(["10", "T 2", "2", "t 10"], key=natural)
    ['2', '10', 'T 2', 't 10']
    """
    parts = re.split(r"(\d+)", name)
    return [int(part) if i % 2 else part.casefold() for i, part in enumerate(parts)]
