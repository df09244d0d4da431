"""Types that cells of a reference have, and those cells that have none."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dra_scvi._argument_kinds import check_distinguishable
from dra_scvi._data.columns import counted, unknown_key

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray


class Types(NamedTuple):
    """Cells that have a type, by position; which, from 0; and what types are called."""

    cells: NDArray[np.int64]
    labels: NDArray[np.int64]
    names: list[str]


def known_types(adata: AnnData, labels_key: str, unknown: str = "unknown") -> Types:
    """Find the types of a reference's cells, two or more, and say how many cells have none.

    >>> from anndata import AnnData
    >>> adata = AnnData(np.ones((3, 1)), obs={"type": list("bab")})
    >>> known_types(adata, "type")
    Types(cells=array([0, 1, 2]), labels=array([1, 0, 1]), names=['a', 'b'])
    """
    if not isinstance(labels_key, str):
        raise TypeError(f"labels_key={labels_key!r} must be a name, as text.")
    if labels_key not in adata.obs:
        place = "a column of the reference's obs"
        raise KeyError(unknown_key("labels_key", labels_key, place, adata.obs.columns))
    check_distinguishable(adata.obs[labels_key], f"obs[{labels_key!r}] of the reference")
    column = adata.obs[labels_key].astype("category").cat
    texts = column.categories.astype(str)
    codes = column.codes.to_numpy()
    if not texts.is_unique:
        twice = texts[texts.duplicated()][0]
        raise ValueError(
            f"labels_key={labels_key!r}: {twice!r} is there as text and as a number; name "
            "each type in one way."
        )
    has_type = (codes >= 0) & (np.append(texts, unknown)[codes] != unknown)
    cells = np.flatnonzero(has_type)
    present, labels = np.unique(codes[cells], return_inverse=True)
    names = [str(texts[code]) for code in present]
    if len(names) < 2:
        held = f"one type alone ({names[0]!r})" if names else "no type"
        raise ValueError(
            f"labels_key={labels_key!r} has {held} among the cells of the reference: there is "
            "nothing to tell apart."
        )
    n_without = adata.n_obs - len(cells)
    if n_without:
        number = f"{n_without} of {counted(adata.n_obs, 'cell', 'cells')}"
        warnings.warn(
            f"{number} of the reference without a type in obs[{labels_key!r}] take no part.",
            UserWarning,
            stacklevel=2,
        )
    return Types(cells, labels, names)
