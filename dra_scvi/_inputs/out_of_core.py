"""Counts that stay in their file: when they do, how it is opened, and how it is written again."""

from __future__ import annotations

import contextlib
import itertools
import shutil
from typing import TYPE_CHECKING, Any

import anndata
import h5py
import numpy as np
from anndata.abc import CSCDataset
from anndata.io import read_elem, sparse_dataset, write_elem

from dra_scvi._data.stored_rows import is_stored, read_rows
from dra_scvi._exceptions import InputError
from dra_scvi._inputs.hdf5_links import check_links
from dra_scvi._inputs.hdf5_probe import check_hdf5
from dra_scvi._inputs.memory import available_memory, check_room, n_bytes
from dra_scvi._inputs.read import check_anndata, check_kind, read_input
from dra_scvi._inputs.zarr_chunks import check_chunks
from dra_scvi._inputs.zarr_store import check_store, is_h5ad, is_zarr, store_state
from dra_scvi._outputs.files import atomic_path, write_h5ad
from dra_scvi._outputs.full_disk import open_hdf5
from dra_scvi._outputs.h5ad_content import writable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from anndata import AnnData

# reading takes room for more than what is read, and training for its own
MEMORY_SHARE = 0.5
ROWS_PER_BLOCK = 8_192
MATRICES = ("X", "layers", "raw")
# where the state of a file at its opening is kept with what was opened
STATE = "_dra_state"


def stays_in_file(path: Path, wanted: bool | None = None) -> bool:
    """Decide whether counts are left in their file, as :func:`stay_in_files` does for several."""
    return stay_in_files([path], wanted)


def stay_in_files(paths: Sequence[Path], wanted: bool | None = None) -> bool:
    """Decide whether counts are left in their files.

    `wanted` is what was asked for; `None` leaves it to the size of all files together.
    """
    others = [p for p in paths if not (p.is_file() and is_h5ad(p) or is_zarr(p))]
    for path in others if wanted else ():
        if path.exists():
            check_kind(path)
            raise ValueError(f"{path} has to be an .h5ad or a zarr store for --out-of-core.")
    if wanted is not None:
        return wanted
    # what is smaller compressed than a hundredth of the memory need not be looked into
    room = MEMORY_SHARE * available_memory()
    is_small = all(path.is_file() for path in paths) and (
        sum(path.stat().st_size for path in paths) < room / 100
    )
    if others or is_small:
        return False
    with contextlib.suppress(OSError, RuntimeError, KeyError, ValueError, TypeError):
        return sum(_size_in_memory(path) for path in paths) > room
    return False  # so that who reads it says what is wrong


def open_stored(path: Path, layer: str | None = None) -> AnnData:
    """Open the cells of a file, whose matrices are read when, and as far as, they are needed.

    A file whose counts, X or those of `layer`, are stored by column is refused.
    """
    check_kind(path)
    state = _state(path)
    adata = read_input(path, _read_lazily)
    setattr(adata, STATE, state)
    if layer is None or layer in adata.layers:
        counts = adata.X if layer is None else adata.layers[layer]
        if isinstance(counts, CSCDataset):
            raise ValueError(
                f"the counts of {path} are stored by column (CSC), out of which cells cannot be "
                "read one by one: store them as CSR, or use --in-memory."
            )
    return adata


def _read_lazily(path: Path) -> AnnData:
    store = _open(path)
    if path.is_dir():
        check_chunks(path)
    _check_layout(store, path)
    check_room(path, [store[name] for name in store if name not in MATRICES])
    raw = dict(_items(store, "raw"))
    has_raw = {"X", "var"} <= raw.keys()
    return anndata.AnnData(
        _stored_matrix(store["X"]) if "X" in store else None,
        obs=read_elem(store["obs"]),
        var=read_elem(store["var"]),
        layers={name: _stored_matrix(element) for name, element in _items(store, "layers")},
        # shown, so that counts are found there, and left where it is
        raw={"X": _stored_matrix(raw["X"]), "var": read_elem(raw["var"])} if has_raw else None,
    )


def _check_layout(store: Any, path: Path) -> None:
    """Refuse what anndata wrote before version 0.7, with tables that are one array each."""
    check_anndata(store, path)
    for name in ("obs", "var", "obsm", "uns"):
        if name in store and hasattr(store[name], "ndim"):
            raise InputError(
                f"{path} has the layout of anndata before version 0.7 ({name} is one array), out "
                "of which cells cannot be read one by one: use --in-memory, or read it in Python "
                "and write it anew."
            )


def write_copy(
    source: Path, adata: AnnData, path: Path, replace: bool = True, *, with_obs: bool = False
) -> None:
    """Write a file again with what was added to it, whole or not at all, its matrices in blocks.

    Added are ``obsm`` and ``uns`` of `adata` and, with `with_obs`, its ``obs``. A source that is
    no longer what it was when `adata` was opened from it is refused.
    """
    with atomic_path(path, replace) as temporary:
        _check_state(source, adata, path)
        if is_h5ad(source):
            shutil.copyfile(source, temporary)
        else:
            _convert(source, temporary)
        _check_state(source, adata, path)
        check_links(temporary)
        with open_hdf5(temporary, "r+") as file:
            for name in ("obsm", "uns"):
                _give_own_group(file, name)
                if name not in file:
                    write_elem(file, name, {})
                for key, value in getattr(adata, name).items():
                    write_elem(file[name], key, value)
                    if name == "uns" and f"{key}_colors" in file[name]:
                        del file[name][f"{key}_colors"]  # of clusters or types there were before
            if with_obs:
                _give_own_group(file, "obs")
                del file["obs"]
                write_elem(file, "obs", writable(adata.obs, "obs"))


def _state(path: Path) -> Any:
    """Tell a file, or those of a store, from what may take its place later."""
    if path.is_dir():
        return store_state(path)
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _check_state(source: Path, adata: AnnData, path: Path) -> None:
    """Refuse to write cells that came later beside what was computed from those before."""
    before = getattr(adata, STATE, None)
    try:
        is_same = before is None or _state(source) == before
    except OSError:
        is_same = False
    if not is_same:
        raise InputError(
            f"{source} was changed, replaced or removed while it was worked on: what was computed "
            "belongs to the cells that it held before. It is not written beside others, but alone "
            f"to {_keep(adata, path)}."
        )


def _keep(adata: AnnData, path: Path) -> Path:
    """Write what was computed, and the tables of the cells that it is of, without counts."""
    names = (path.with_name(f"{path.stem}.kept{number}.h5ad") for number in itertools.count(1))
    kept = next(name for name in names if not name.exists())
    parts = {"obs": adata.obs, "obsm": dict(adata.obsm), "uns": dict(adata.uns)}
    write_h5ad(anndata.AnnData(**parts), kept)
    return kept


def _give_own_group(file: Any, name: str) -> None:
    """Copy a group to which other names lead: what is added to it would appear there as well."""
    if name not in file:
        return
    is_link = not isinstance(file.get(name, getlink=True), h5py.HardLink)
    if is_link or h5py.h5o.get_info(file[name].id).rc > 1:
        file.copy(file[name], "_dra_own")
        del file[name]
        file.move("_dra_own", name)


def write_stored(file: Any, key: str, matrix: Any) -> None:
    """Write a stored matrix, CSR or dense, into an HDF5 file, block by block."""
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
    store = _open(source)
    with open_hdf5(path) as file:
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        for name in store:
            if name not in MATRICES:
                write_elem(file, name, writable(read_elem(store[name]), name))
        write_elem(file, "layers", {})
        matrices = {f"layers/{name}": element for name, element in _items(store, "layers")}
        if "X" in store:
            matrices["X"] = store["X"]
        if _items(store, "raw"):  # where there is none, zarr has a note of that
            file.create_group("raw").attrs.update(dict(store["raw"].attrs))
        for name, element in _items(store, "raw"):
            matrices[f"raw/{name}"] = element
        for place, element in matrices.items():
            is_matrix = not place.startswith("raw/") or place == "raw/X"
            matrix = _stored_matrix(element) if is_matrix else None
            parent, _, key = place.rpartition("/")
            group = file[parent] if parent else file
            if is_matrix and is_stored(matrix):
                write_stored(group, key, matrix)
            else:
                write_elem(group, key, read_elem(element))


def stored_keys(path: Path, name: str) -> set[str]:
    """Return the keys of a group that :func:`open_stored` leaves in the file, such as obsm."""
    return {key for key, _ in _items(_open(path), name)}


def read_obsm(path: Path) -> dict[str, Any]:
    """Read what :func:`open_stored` leaves in the file of ``obsm``."""
    return {key: read_elem(element) for key, element in _items(_open(path), "obsm")}


def _items(store: Any, name: str) -> list[tuple[str, Any]]:
    group = store.get(name, {})  # zarr has an array there that says that there is nothing
    return [] if hasattr(group, "ndim") else [(key, group[key]) for key in group]


def _open(path: Path) -> Any:
    if is_h5ad(path):
        check_hdf5(path)
        return h5py.File(path, "r")
    import zarr

    check_store(path)
    return zarr.open(str(path), mode="r")


def _stored_matrix(element: Any) -> Any:
    """Return a sparse or dense matrix, whose values stay where they are."""
    return element if hasattr(element, "ndim") else sparse_dataset(element)


def _size_in_memory(path: Path) -> float:
    """Bytes of the matrices of a file, once they are read."""
    store = _open(path)
    return float(sum(n_bytes(store[name]) for name in MATRICES if name in store))
