"""Names of layers and columns that a user gives: they exist, and columns are complete."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from dra_scvi._argument_kinds import check_distinguishable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import pandas as pd
    from anndata import AnnData


NAMES_SHOWN = 10

# The arguments whose columns a model reads for every cell.
COMPLETE_COLUMNS = frozenset(
    {
        "batch_key",
        "labels_key",
        "size_factor_key",
        "categorical_covariate_keys",
        "continuous_covariate_keys",
    }
)


def validate_keys(
    adata: AnnData,
    layer: str | None = None,
    obs_keys: Mapping[str, str | Sequence[str] | None] | None = None,
) -> None:
    """Check that a layer exists, and columns of ``adata.obs``, by the arguments that name them.

    Those that a model reads (:data:`COMPLETE_COLUMNS`) must have a value for every cell.
    """
    if layer is not None and layer not in named_layers(adata):
        raise KeyError(unknown_key("layer", layer, "a key of adata.layers", named_layers(adata)))
    for argument, keys in (obs_keys or {}).items():
        for key in [keys] if isinstance(keys, str) else keys or ():
            if key not in adata.obs:
                place = "a column of adata.obs"
                raise KeyError(unknown_key(argument, key, place, adata.obs.columns))
            if getattr(adata.obs[key], "ndim", 1) > 1:
                raise ValueError(
                    f"{argument}={key!r}: adata.obs has several columns of this name."
                )
            check_distinguishable(adata.obs[key], f"{argument}={key!r}: adata.obs[{key!r}]")
            if argument in COMPLETE_COLUMNS:
                check_complete(adata.obs[key], argument)


def unknown_key(argument: str, key: str, place: str, available: Iterable[object]) -> str:
    """Say that a key does not exist, which one may be meant, and which ones there are.

    >>> unknown_key("layer", "count", "a key of adata.layers", ["counts"])
    "layer='count' is not a key of adata.layers; did you mean 'counts'? Available: 'counts'."
    """
    names = [str(name) for name in available]
    match = closest(key, names)
    hint = f"; did you mean {match!r}?" if match else "."
    shown = ", ".join(repr(name) for name in names[:NAMES_SHOWN])
    more = ", ..." if len(names) > NAMES_SHOWN else "."
    listing = f"Available: {shown}{more}" if names else "There are none."
    return f"{argument}={key!r} is not {place}{hint} {listing}"


def closest(name: str, names: Iterable[str]) -> str | None:
    """Return the most similar of some names, whatever their case, or None.

    >>> closest("Doner", ["donor", "age"]), closest("batch", ["donor", "age"])
    ('donor', None)
    """
    originals = {candidate.casefold(): candidate for candidate in names}
    matches = difflib.get_close_matches(str(name).casefold(), originals, n=1)
    return originals[matches[0]] if matches else None


def named_layers(adata: AnnData) -> list[str]:
    """Keys of ``adata.layers``; from version 0.13 on anndata lists ``X`` there too, as `None`."""
    keys = adata.layers.keys()  # of an AnnCollection one can ask nothing else
    return [key for key in keys if key is not None]


def check_complete(column: pd.Series, argument: str) -> None:
    missing = int(column.isna().sum())
    if missing:
        place = f"adata.obs[{column.name!r}]"
        error = ValueError(
            f"{argument}={column.name!r}: {missing} of {counted(len(column), 'cell', 'cells')} "
            f"without a value in {place}. Fill them in, or drop those cells."
        )
        error.add_note(f"adata[{place}.notna()].copy() drops them.")
        raise error


def counted(number: int, singular: str, plural: str) -> str:
    return f"{number} {singular if number == 1 else plural}"
