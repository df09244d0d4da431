"""What every compiled loop needs: arrays that fit, and parts of the cells for threads."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from torch import Tensor


# less work than this takes no longer than waking a thread for it
_MIN_ENTRIES_PER_THREAD = 32_768


def as_array(tensor: Tensor) -> NDArray[Any]:
    """Return what a tensor on a CPU holds, row by row."""
    return tensor.detach().contiguous().numpy()


def check_array(
    name: str, array: NDArray[Any], shape: tuple[int, ...], n_dimensions: int | None = None
) -> None:
    """Refuse what compiled code, which trusts its arguments, would read past."""
    if n_dimensions is not None and array.ndim != n_dimensions:
        raise ValueError(f"{name} has {array.ndim} dimensions, not {n_dimensions}.")
    if array.shape != shape:
        raise ValueError(f"{name} has the shape {array.shape}, not {shape}.")
    if array.dtype != np.float32:
        raise TypeError(f"{name} holds {array.dtype}, not float32.")


def share_out(run: Callable[[slice], None], shape: tuple[int, ...], n_threads: int) -> None:
    """Run over all cells of a matrix, in several threads where it is large enough."""
    n_cells, n_genes = shape
    n_parts = max(1, min(n_threads, n_cells, n_cells * n_genes // _MIN_ENTRIES_PER_THREAD))
    if n_parts == 1:
        run(slice(0, n_cells))
        return
    edges = np.linspace(0, n_cells, n_parts + 1).astype(int)
    parts = [slice(*edge) for edge in itertools.pairwise(edges)]
    others = [_workers(n_parts - 1).submit(run, part) for part in parts[1:]]
    run(parts[0])
    for other in others:
        other.result()


@cache
def _workers(n_threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(n_threads, thread_name_prefix="dra_scvi")
