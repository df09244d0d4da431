"""Counts that stay in their file: when they do, how it is opened, and how it is written again."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from anndata.abc import CSCDataset

from dra_scvi._files import atomic_path
from dra_scvi._h5ad_content import writable
from dra_scvi._hdf5_probe import check_hdf5
from dra_scvi._io import is_zarr, read_input
from dra_scvi._patient_file import open_hdf5
from dra_scvi._stored import is_stored, read_rows

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["available_memory", "open_stored", "stays_in_file", "write_copy", "write_stored"]

# reading takes room for more than what is read, and training for its own
MEMORY_SHARE = 0.5
ROWS_PER_BLOCK = 8_192
NOT_COPIED = ("X", "layers", "raw")


def stays_in_file(path: Path, wanted: bool | None = None) -> bool:
    """Decide whether counts are left in their file.

    Parameters
    ----------
    path
        What is to be worked on.
    wanted
        What was asked for; `None` for what suits the size of the file.

    Raises
    ------
    ValueError
        When it was asked for, and `path` is neither an ``.h5ad`` nor a zarr store.
    """
    is_possible = path.exists() and (path.suffix == ".h5ad" or is_zarr(path))
    if wanted and not is_possible and path.exists():
        raise ValueError(f"{path} has to be an .h5ad or a zarr store for --out-of-core.")
    if wanted is not None:
        return wanted
    # what is smaller compressed than a hundredth of the memory need not be looked into
    room = MEMORY_SHARE * available_memory()
    if not is_possible or (path.is_file() and path.stat().st_size < room / 100):
        return False
    return _size_in_memory(path) > room


def available_memory() -> float:
    """Bytes that this process may still take: of the machine, and of its container."""
    limits = [np.inf]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(line for line in lines if line.startswith("MemAvailable:"))
        limits.append(1024 * float(free.split()[1]))
        group = Path("/sys/fs/cgroup")
        used = float((group / "memory.current").read_text())
        limits.append(float((group / "memory.max").read_text().replace("max", "inf")) - used)
    except (OSError, StopIteration, ValueError):
        pass  # a system without one of these files
    return max(min(limits), 0.0)


def open_stored(path: Path, layer: str | None = None) -> AnnData:
    """Open the cells of a file, whose matrices are read when, and as far as, they are needed.

    Parameters
    ----------
    path
        An ``.h5ad`` or a zarr store of an AnnData.
    layer
        Layer that holds the counts; `None` for X.

    Raises
    ------
    FileNotFoundError
        When nothing is there.
    ValueError
        When the file cannot be read, or stores its counts by column.
    """
    adata = read_input(path, _read_lazily)
    if layer is None or layer in adata.layers:
        counts = adata.X if layer is None else adata.layers[layer]
        if isinstance(counts, CSCDataset):
            raise ValueError(
                f"the counts of {path} are stored by column (CSC), out of which cells cannot be "
                "read one by one: store them as CSR, or use --in-memory."
            )
    return adata


def _read_lazily(path: Path) -> AnnData:
    import anndata
    from anndata.io import read_elem

    store = _open(path)
    return anndata.AnnData(
        _stored_matrix(store["X"]) if "X" in store else None,
        obs=read_elem(store["obs"]),
        var=read_elem(store["var"]),
        layers={name: _stored_matrix(element) for name, element in _items(store, "layers")},
    )


def write_copy(source: Path, adata: AnnData, path: Path, replace: bool = True) -> None:
    """Write a file again with what was added to it, whole or not at all, its matrices in blocks.

    Parameters
    ----------
    source
        The ``.h5ad`` or zarr store that `adata` was opened from.
    adata
        Its ``obsm`` and ``uns`` are added.
    path
        The ``.h5ad`` to write or replace.
    replace
        Whether one that is there by then may be replaced.
    """
    from anndata.io import write_elem

    with atomic_path(path, replace) as temporary:
        if source.suffix == ".h5ad":
            shutil.copyfile(source, temporary)
        else:
            _convert(source, temporary)
        with open_hdf5(temporary, "r+") as file:
            for name in ("obsm", "uns"):
                if name not in file:
                    write_elem(file, name, {})
                for key, value in getattr(adata, name).items():
                    write_elem(file, f"{name}/{key}", value)


def write_stored(file: Any, key: str, matrix: Any) -> None:
    """Write a stored matrix into an HDF5 file, block by block.

    Parameters
    ----------
    file
        An open ``h5py.File``.
    key
        Where.
    matrix
        CSR or dense, of any store.
    """
    from anndata.io import sparse_dataset, write_elem

    starts = range(0, matrix.shape[0], ROWS_PER_BLOCK)
    for start in starts:
        block = read_rows(matrix, np.arange(start, min(start + ROWS_PER_BLOCK, matrix.shape[0])))
        if start and isinstance(block, np.ndarray):
            file[key].resize(start + len(block), axis=0)
            file[key][start:] = block
        elif start:
            sparse_dataset(file[key]).append(block)
        elif isinstance(block, np.ndarray):
            options = {"maxshape": matrix.shape, "chunks": True}
            write_elem(file, key, block, dataset_kwargs=options)
        else:  # more values than 32 bits can count may follow
            write_elem(file, key, block, dataset_kwargs={"indptr_dtype": np.int64})


def _convert(source: Path, path: Path) -> None:
    """Write a zarr store as an ``.h5ad``."""
    from anndata.io import read_elem, write_elem

    store = _open(source)
    with open_hdf5(path) as file:
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        for name in store:
            if name not in NOT_COPIED:
                write_elem(file, name, writable(read_elem(store[name]), name))
        write_elem(file, "layers", {})
        matrices = {f"layers/{name}": element for name, element in _items(store, "layers")}
        if "X" in store:
            matrices["X"] = store["X"]
        for key, element in matrices.items():
            matrix = _stored_matrix(element)
            if is_stored(matrix):
                write_stored(file, key, matrix)
            else:
                write_elem(file, key, read_elem(element))


def _items(store: Any, name: str) -> list[tuple[str, Any]]:
    return [(key, store[name][key]) for key in store[name]] if name in store else []


def _open(path: Path) -> Any:
    if path.suffix == ".h5ad":
        import h5py

        check_hdf5(path)
        return h5py.File(path, "r")
    import zarr

    return zarr.open(str(path), mode="r")


def _stored_matrix(element: Any) -> Any:
    """Return a sparse or dense matrix, whose values stay where they are."""
    from anndata.io import sparse_dataset

    return element if hasattr(element, "ndim") else sparse_dataset(element)


def _size_in_memory(path: Path) -> float:
    """Bytes of the matrices of a file, once they are read."""
    store = _open(path)
    matrices = [element for name in ("layers", "raw") for _, element in _items(store, name)]
    return float(sum(map(_n_bytes, [store[name] for name in ("X",) if name in store] + matrices)))


def _n_bytes(element: Any) -> int:
    if hasattr(element, "ndim"):
        return int(np.prod(element.shape)) * element.dtype.itemsize
    return sum(_n_bytes(element[key]) for key in element)
