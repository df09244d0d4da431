"""Cells for a model that was trained on others: its genes, in its order, and what it reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anndata
import pandas as pd

from dra_scvi._data.gene_names import check_genes_present
from dra_scvi._data.keys import validate_keys
from dra_scvi._data.stored import is_stored
from dra_scvi._exceptions import GeneMismatchError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anndata import AnnData

__all__ = ["bare", "query_for"]


def bare(adata: AnnData, layer: str | None, columns: Sequence[str]) -> AnnData:
    """Share the counts and copy some columns, so that a model leaves no trace in `adata`."""
    return anndata.AnnData(
        X=None if layer else adata.X,
        obs=adata.obs[list(columns)].copy(),
        var=pd.DataFrame(index=adata.var_names),
        layers={layer: adata.layers[layer]} if layer else {},
    )


def query_for(adata: AnnData, genes: Sequence[str], setup: Mapping[str, Any]) -> AnnData:
    """Take the genes of a model, in its order, and check the columns that it reads.

    Parameters
    ----------
    adata
        Cells with all genes of the model, in any order, and maybe others. They are left alone;
        counts are shared where the genes are those of the model.
    genes
        Genes of the model.
    setup
        Arguments that its cells were registered with.

    Raises
    ------
    GeneMismatchError
        When genes are missing.
    KeyError, ValueError
        When a layer or a column is missing, or a column has gaps.
    """
    if not adata.var_names.is_unique:
        first = adata.var_names[adata.var_names.duplicated()][0]
        raise ValueError(f"gene names of the input are not unique (first: {str(first)!r}).")
    check_genes_present(list(adata.var_names), genes)
    layer = setup["layer"]
    keys = {name: value for name, value in setup.items() if name.endswith(("_key", "_keys"))}
    validate_keys(adata, layer, keys)
    if list(adata.var_names) != list(genes):
        if is_stored(adata.X if layer is None else adata.layers[layer]):
            raise GeneMismatchError(
                "counts that stay in their file must have the genes of the model alone, in its "
                "order; read them into memory (adata.to_memory()), or write them so."
            )
        adata = adata[:, genes].copy()
    return bare(adata, layer, list(adata.obs.columns))
