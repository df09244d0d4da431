"""Damaged HDF5 files over which libraries crash or never come back, found before they are read.

HDF5 follows the addresses that a file gives it. Where damage turns them into a circle no signal
and no thread can stop it, so that a copy of this process, with little time, goes first.
"""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["check_10x", "check_hdf5"]

SECONDS = 30  # of the processor's time: a slow disk does not count
SMALL = 2**20
BLOCK = 2**24


def check_hdf5(path: Path) -> None:
    """Check that the structure of a file can be walked through; errors are left to its reader.

    Parameters
    ----------
    path
        An HDF5 file. Systems without ``fork`` take it as it is.

    Raises
    ------
    ValueError
        When the library crashes over it, or goes round in circles.
    """
    if not hasattr(os, "fork"):
        return
    import h5py  # noqa: F401 - now, as an import in a fork can wait for a lock for ever

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of threads, which are not needed there
        child = os.fork()
    if child == 0:
        try:
            _walk(path)
        finally:
            os._exit(0)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0:
        raise ValueError("the HDF5 library crashes over it, or never comes to an end")


def check_10x(path: Path) -> None:
    """Check the indices of the matrices of a 10x file, which scanpy follows wherever they point.

    Parameters
    ----------
    path
        A 10x ``.h5`` of any version of Cell Ranger.

    Raises
    ------
    ValueError
        When they point outside of the matrix.
    """
    import h5py

    with h5py.File(path, "r") as file:
        for group in file.values():
            if isinstance(group, h5py.Group) and {"indptr", "indices", "shape"} <= group.keys():
                _check_indices(group)


def _check_indices(group: Any) -> None:
    starts, indices, n_genes = group["indptr"][:], group["indices"], group["shape"][0]
    is_sound = (
        len(starts) > 0
        and starts[0] == 0
        and starts[-1] <= min(len(indices), len(group["data"]))
        and (starts[1:] >= starts[:-1]).all()
    )
    for start in range(0, len(indices), BLOCK):
        block = indices[start : start + BLOCK]
        is_sound = is_sound and block.min() >= 0 and block.max() < n_genes
    if not is_sound:
        raise ValueError(f"the indices of {group.name} point outside of the matrix")


def _walk(path: Path) -> None:
    import resource

    import h5py

    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    with h5py.File(path, "r") as file:
        _look("/", file)
        file.visititems(_look)


def _look(name: str, item: Any) -> None:
    """Read what the library finds by following addresses: attributes, chunks, small data."""
    import h5py

    dict(item.attrs)
    if not isinstance(item, h5py.Dataset):
        return
    if item.chunks is not None:
        item.id.get_num_chunks()
    if item.size is not None and item.size * item.dtype.itemsize <= SMALL:
        item[()]
