"""What cells are coloured by: a column of `obs`, or a gene, log-normalised where it is counts."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from dra_scvi._argument_kinds import check_distinguishable
from dra_scvi._data.keys import unknown_key, validate_keys
from dra_scvi._data.structure import blocks
from dra_scvi._data.validation import holds_counts

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anndata import AnnData
    from numpy.typing import NDArray

TARGET_SUM = 1e4
LOG_NORMALISED = "log-normalised"
MISSING = "NA"  # what scanpy calls it


class Values(NamedTuple):
    """What one name stands for.

    Parameters
    ----------
    title
        The name, as readers are shown it.
    column
        Values, one for each cell.
    unit
        What they are measured in.
    colours
        Those that are stored with the data, by category.
    """

    title: str
    column: pd.Series
    unit: str = ""
    colours: Mapping[str, str] = {}


def values_of(
    adata: AnnData,
    name: str,
    layer: str | None = None,
    use_raw: bool | None = None,
    gene_symbols: str | None = None,
) -> Values:
    """Look a name up among the columns of `obs`, then among the genes.

    Counts of a gene, which are whole numbers, become ln(1 + counts per 10,000); other values are
    taken as they are.

    Parameters
    ----------
    adata
        Where to look.
    name
        Column or gene.
    layer, use_raw, gene_symbols
        Where values and names of genes are, as in :func:`scanpy.pl.embedding`: in ``adata.raw``
        where there is one, unless a layer is named or `use_raw` is `False`.

    Raises
    ------
    KeyError
        When there is no such column or gene, or no such layer or column of symbols.
    ValueError
        When a name stands for several genes, or `use_raw` does not fit.

    Examples
    --------
    >>> from anndata import AnnData
    >>> adata = AnnData(np.array([[1.0, 3.0]]), var=pd.DataFrame(index=["a", "b"]))
    >>> values_of(adata, "b").column.round(2).tolist(), values_of(adata, "b").unit
    ([8.92], 'log-normalised')
    """
    if name in adata.obs:
        check_distinguishable(adata.obs[name], f"color={name!r}: adata.obs[{name!r}]")
        column = adata.obs[name]
        names = () if is_numeric(column) else map(str, column.astype("category").cat.categories)
        colours = dict(zip(names, adata.uns.get(f"{name}_colors", ()), strict=False))
        return Values(name.replace("_", " "), column, colours=colours)
    validate_keys(adata, layer)
    source = _source(adata, layer, use_raw)
    position = _position(adata, source, name, gene_symbols)
    gene = source.var_names[position]
    is_raw = source is not adata
    values = source.obs_vector(gene) if is_raw else adata.obs_vector(gene, layer=layer)
    values = np.asarray(values, dtype=np.float64).ravel()
    unit = layer or ""
    if holds_counts(values[:, None]):
        totals = _totals(source.X if layer is None else adata.layers[layer])
        values = np.log1p(TARGET_SUM * values / np.where(totals > 0, totals, 1))
        unit = LOG_NORMALISED
    return Values(name, pd.Series(values, index=adata.obs_names, name=name), unit)


def _source(adata: AnnData, layer: str | None, use_raw: bool | None) -> Any:
    """Return what holds the genes: the data, or their ``raw``."""
    if use_raw and layer is not None:
        raise ValueError(f"use_raw=True and layer={layer!r}: genes can be read from one alone.")
    if use_raw and adata.raw is None:
        raise ValueError("use_raw=True, but there is no adata.raw: leave use_raw out.")
    is_raw = use_raw or (use_raw is None and layer is None and adata.raw is not None)
    return adata.raw if is_raw else adata


def _position(adata: AnnData, source: Any, name: str, gene_symbols: str | None) -> int:
    if gene_symbols is not None and gene_symbols not in source.var:
        place = "a column of adata.var"
        raise KeyError(unknown_key("gene_symbols", gene_symbols, place, source.var.columns))
    genes = source.var_names if gene_symbols is None else source.var[gene_symbols]
    found = np.flatnonzero(np.asarray(genes) == name)
    if not len(found):
        names = [*adata.obs.columns, *genes]
        raise KeyError(unknown_key("color", name, "a column of adata.obs or a gene", names))
    if len(found) > 1 or not source.var_names.is_unique:
        raise ValueError(
            f"color={name!r} stands for {len(found)} genes, or other names repeat: call "
            "adata.var_names_make_unique(), or name the gene by what is unique."
        )
    return int(found[0])


def _totals(matrix: Any) -> NDArray[np.float64]:
    totals = np.zeros(matrix.shape[0])
    for row, _, block in blocks(matrix):
        totals[row : row + block.shape[0]] += np.asarray(block.sum(axis=1)).ravel()
    return totals


def is_numeric(column: pd.Series) -> bool:
    """Whether a column is drawn on a scale, and not as categories."""
    return pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)


def as_categories(column: pd.Series) -> pd.Series:
    """Name every cell's category, in an order that readers expect.

    Categories that are merely in the order of their letters, which is what pandas makes of names,
    are sorted by the numbers in them; any other order is somebody's choice, and stays.

    Examples
    --------
    >>> as_categories(pd.Series(["10", "2", None, "1"])).cat.categories.tolist()
    ['1', '2', '10']
    """
    column = column.astype("category").cat.remove_unused_categories()
    column = column.cat.rename_categories([str(name) for name in column.cat.categories])
    names = list(column.cat.categories)
    if names == sorted(names) and not column.cat.ordered:
        column = column.cat.reorder_categories(sorted(names, key=natural))
    return column.fillna(MISSING) if MISSING in names else column


def natural(name: str) -> list[str | int]:
    """Key to sort by, in which numbers count as such.

    Examples
    --------
    >>> sorted(["10", "T 2", "2", "t 10"], key=natural)
    ['2', '10', 'T 2', 't 10']
    """
    parts = re.split(r"(\d+)", name)
    return [int(part) if i % 2 else part.casefold() for i, part in enumerate(parts)]
