"""Cells for a model that was trained on others: its genes, in its order, and what it reads."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import anndata
import numpy as np
import pandas as pd

from dra_scvi._data.columns import counted, validate_keys
from dra_scvi._data.stored_rows import is_stored
from dra_scvi._exceptions import GeneMismatchError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from anndata import AnnData

# an Ensembl identifier ends in its version: ENSG00000141510.18
VERSION = re.compile(r"(?<=\d)\.\d+$")
# below this share of known names, zeros for the others are no remedy
LEAST_SHARE = 0.5


def bare(adata: AnnData, layer: str | None, columns: Sequence[str]) -> AnnData:
    """Share the counts and copy some columns, so that a model leaves no trace in `adata`."""
    return anndata.AnnData(
        X=None if layer else adata.X,
        obs=adata.obs[list(columns)].copy(),
        var=pd.DataFrame(index=adata.var_names),
        layers={layer: adata.layers[layer]} if layer else {},
    )


def query_for(adata: AnnData, genes: Sequence[str], setup: Mapping[str, Any]) -> AnnData:
    """Take the genes of a model, in its order, and check the columns named in its `setup`.

    The cells are left alone; counts are shared where the genes are those of the model.
    """
    if not adata.var_names.is_unique:
        first = adata.var_names[adata.var_names.duplicated()][0]
        raise ValueError(f"gene names of the input are not unique (first: {str(first)!r}).")
    check_genes_present(list(adata.var_names), genes)
    layer = setup["layer"]
    keys = {name: value for name, value in setup.items() if name.endswith(("_key", "_keys"))}
    try:
        validate_keys(adata, layer, keys)
    except KeyError as error:
        text = f"{error.args[0]} The model was trained with it, and reads it of these cells too."
        raise KeyError(text) from error
    if list(adata.var_names) != list(genes):
        if is_stored(adata.X if layer is None else adata.layers[layer]):
            raise GeneMismatchError(
                "counts that stay in their file must have the genes of the model alone, in its "
                "order; read them into memory (adata.to_memory()), or write them so."
            )
        adata = adata[:, genes].copy()
    return bare(adata, layer, list(adata.obs.columns))


def check_genes(given: Sequence[str], needed: Sequence[str]) -> None:
    """Check that data have the genes that a model needs, in its order.

    The :class:`GeneMismatchError` says how they differ: genes are missing (the first is named),
    unknown to the model, or in another order; ``error.missing`` and ``error.unknown`` list them.
    """
    if np.array_equal(given, needed):
        return
    check_genes_present(given, needed)
    unknown = _without(given, needed)
    take = "take its genes, in its order: adata[:, model.get_var_names()].copy()."
    if unknown:
        number = counted(len(unknown), "gene", "genes")
        message = f"The model does not know {number} of the data (first: {unknown[0]!r}); {take}"
    else:
        message = f"The genes are those of the model, but not in the model's order; {take}"
    raise GeneMismatchError(message, (), unknown)


def check_genes_present(given: Sequence[str], needed: Sequence[str]) -> None:
    """Check that data have all genes that a model needs, whatever their order, and others besides.

    Where names of another kind are the likely reason why some are missing (symbols for
    identifiers, versions, case), the message says so, with an example of each.
    """
    missing = _without(needed, given)
    if not missing:
        return
    n_missing, n_needed = len(missing), len(needed)
    if n_missing == n_needed:
        number = counted(n_needed, "gene", "genes")
        message = f"None of the model's {number} is in the data"
    else:
        verb = "is" if n_missing == 1 else "are"
        message = (
            f"{n_missing} of the model's {n_needed} genes {verb} missing from the data "
            f"(first: {missing[0]!r})"
        )
    unknown = _without(given, needed)
    raise GeneMismatchError(f"{message}{_remedy(missing, unknown, n_needed)}", missing, unknown)


def _remedy(missing: Sequence[str], unknown: Sequence[str], n_needed: int) -> str:
    """Say what to do about missing genes, from what the names look like."""
    for strip, difference in (
        (lambda name: VERSION.sub("", name), "version suffix"),
        (str.casefold, "case"),
        (lambda name: VERSION.sub("", name).casefold(), "version suffix and case"),
    ):
        pairs = _alike(missing, unknown, strip)
        if pairs:
            own, theirs = pairs[0]
            return (
                f", but {len(pairs)} differ in {difference} alone ({own!r} in the model, "
                f"{theirs!r} in the data). Give the data the names that the model has."
            )
    if len(missing) == n_needed and unknown:
        return (
            f": no name matches. Identifiers against symbols, or another species? The model has "
            f"names such as {missing[0]!r}, the data such as {unknown[0]!r}. Give the data the "
            "names that the model has, from a column of adata.var or from an annotation."
        )
    if 1 - len(missing) / n_needed < LEAST_SHARE:
        only = f"; only {n_needed - len(missing)} match"
        if not unknown:
            return f"{only}, and the data hold no other genes. Take the data with all their genes."
        return (
            f"{only}. Were the data annotated as those of the training? They have names such as "
            f"{unknown[0]!r}."
        )
    return "; add them, with 0 where they were not detected."


def _alike(
    missing: Iterable[str], unknown: Iterable[str], strip: Callable[[str], str]
) -> list[tuple[str, str]]:
    """Pairs of names that are the same but for what is stripped of them."""
    theirs = {strip(name): name for name in unknown}
    return [(name, theirs[strip(name)]) for name in missing if strip(name) in theirs]


def _without(names: Iterable[str], others: Iterable[str]) -> list[str]:
    excluded = set(others)
    return [str(name) for name in names if name not in excluded]
