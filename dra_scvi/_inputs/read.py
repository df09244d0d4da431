"""Inputs of the command line: which kind a path is, how it is read, what is said if it fails."""

from __future__ import annotations

import contextlib
import lzma
import struct
import warnings
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata
import h5py

from dra_scvi._data.columns import closest, named_layers
from dra_scvi._data.matrices import check_structure, sign_indices
from dra_scvi._exceptions import InputError, first_line, message_of
from dra_scvi._inputs.hdf5_probe import check_hdf5
from dra_scvi._inputs.memory import check_room
from dra_scvi._inputs.zarr_chunks import check_chunks
from dra_scvi._inputs.zarr_store import check_store, is_h5ad, is_zarr

if TYPE_CHECKING:
    from collections.abc import Callable

    from anndata import AnnData

ACCEPTED = (
    "an .h5ad file, a zarr store of an AnnData, a 10x .h5 file, "
    "or a folder with one .mtx and labels.txt"
)
DAMAGE = (OSError, RuntimeError, EOFError, lzma.LZMAError, zlib.error, struct.error)
# how the errors of the HDF5 library begin, whichever their type
OF_HDF5 = (
    "unable to",
    "can't",
    "file signature not found",
    "the hdf5 library",
    "its links cannot",
)
UNKNOWN_TO_ANNDATA = ("IORegistryError", "NotImplementedError")


def read_input(path: str | Path, reader: Callable[[Path], AnnData] | None = None) -> AnnData:
    """Read cells by genes from any of the accepted kinds.

    `reader` is what reads it; `None` for that of its kind. Whatever goes wrong becomes one line
    that names the file; what is missing names the closest sibling.
    """
    path = Path(path)
    check_kind(path)
    kind, usual_reader = _reader(path)
    reader = reader or usual_reader
    try:
        adata = reader(path)
    except (ImportError, PermissionError, InputError):
        raise
    except Exception as error:
        raise InputError(_explain(path, kind, error)) from error
    _check_matrices(adata, path)
    if adata.shape == (0, 0):
        raise InputError(f"{path} could not be read as {kind}: it holds neither cells nor genes.")
    return adata


def check_kind(path: Path) -> None:
    """Check, before anything is opened, that a path is a folder or a file with something in it.

    To open a pipe would mean to wait for who writes to it.
    """
    if not path.exists():
        raise FileNotFoundError(_missing(path))
    if path.is_dir():
        return
    if not path.is_file():
        raise InputError(f"{path} is a pipe or a device; write its content to a file first.")
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty (0 bytes); expected {ACCEPTED}.")


def _check_matrices(adata: AnnData, path: Path) -> None:
    """Check that the indices of every sparse matrix point into it, wherever it lies."""
    matrices = {"X": adata.X} | {f"layer {k!r}": adata.layers[k] for k in named_layers(adata)}
    for name in ("obsm", "varm", "obsp", "varp"):
        matrices |= {f"{name} {key!r}": matrix for key, matrix in getattr(adata, name).items()}
    if adata.raw is not None:
        matrices["raw"] = adata.raw.X
    for name, matrix in matrices.items():
        check_structure(sign_indices(matrix), f"{name} of {path}")


def _explain(path: Path, kind: str, error: BaseException) -> str:
    """Say in one sentence why a file was not read; damage is named only where there is some."""
    text = f"{type(error).__name__} {error}".lower()
    if "unable to lock file" in text or "already open for" in text:
        return (
            f"{path} is open for writing in another program, or was when that was killed; close "
            "it there, or take a copy of the file."
        )
    start = f"{path} could not be read as {kind}: "
    if isinstance(error, MemoryError):
        return f"{start}it needs more memory than there is. --out-of-core leaves counts in a file."
    if isinstance(error, RecursionError):
        return f"{start}its groups lie too deep in each other."
    detail = first_line(error).replace(f"{path}: ", "")
    if type(error).__name__ in UNKNOWN_TO_ANNDATA:
        return (
            f"{start}it holds something that anndata {anndata.__version__} does not know, and was "
            f"written by a newer version or another program ({detail})."
        )
    said = message_of(error).removeprefix(f"{path}: ").lower()
    if isinstance(error, DAMAGE) or said.startswith(OF_HDF5):
        detail = f"it is corrupt, truncated or of another kind ({detail})"
    return f"{start}{detail}. Accepted: {ACCEPTED}."


def _missing(path: Path) -> str:
    match = None
    with contextlib.suppress(OSError):
        match = closest(path.name, sorted(sibling.name for sibling in path.parent.iterdir()))
    hint = f"; did you mean {path.with_name(match)}?" if match else ""
    return f"{path} does not exist{hint}"


def _reader(path: Path) -> tuple[str, Callable[[Path], AnnData]]:
    """Tell the kind of an input from its name and, for a folder, from what lies in it."""
    suffix = path.suffix.lower()
    if path.is_dir():
        if is_zarr(path) or suffix == ".zarr":
            return "a zarr store of an AnnData", _read_zarr
        if (path / "labels.txt").exists() and any(path.glob("*.mtx")):
            return "a folder with one .mtx and labels.txt", _read_folder
        if (path / "model.pt").exists():
            raise InputError(
                f"{path} is a saved model and holds no cells to work on: name a file of cells "
                f"as INPUT. 'dra-scvi embed CELLS.h5ad --model {path.name}' embeds them with it."
            )
    elif is_h5ad(path):
        return "an .h5ad file", _read_h5ad
    elif suffix == ".h5":
        return "a 10x .h5 file", _read_10x
    raise InputError(f"{path} is not a known kind of input; accepted: {ACCEPTED}.")


def _read_h5ad(path: Path) -> AnnData:
    check_hdf5(path)
    with h5py.File(path, "r") as file:
        check_anndata(file, path)
        check_room(path, [file])
    adata = anndata.read_h5ad(path)
    _remark_on_features(adata, path)
    return adata


def check_anndata(file: Any, path: Path) -> None:
    """Check that an open file has the tables of an AnnData, and name what else it may be."""
    missing = [name for name in ("obs", "var") if name not in file]
    if not missing:
        return
    hint = f"it has no {missing[0]}, which every AnnData has"
    if "mod" in file:
        hint = "it is a MuData; write one of its modalities as an .h5ad"
    elif "matrix" in file:
        hint = "it looks like a 10x file or a loom; name a 10x file .h5"
    raise InputError(f"{path} could not be read as an .h5ad file: {hint}. Accepted: {ACCEPTED}.")


def _remark_on_features(adata: AnnData, path: Path) -> None:
    """Say what is trained on that is no gene, as of antibodies in a file of scanpy's."""
    if "feature_types" not in adata.var:
        return
    from dra_scvi._inputs.tenx import describe_others

    others = describe_others(adata.var["feature_types"])
    if others:
        warnings.warn(
            f"{path} holds features that are not Gene Expression ({others}), which are taken for "
            "genes; write the file without them to leave them out.",
            stacklevel=2,
        )


def _read_zarr(path: Path) -> AnnData:
    import zarr

    check_store(path)
    check_chunks(path)
    check_room(path, [zarr.open(str(path), mode="r")])
    adata = anndata.read_zarr(path)
    _remark_on_features(adata, path)
    return adata


def _read_10x(path: Path) -> AnnData:
    from dra_scvi._inputs.tenx import read_10x

    check_hdf5(path)
    return read_10x(path)


def _read_folder(path: Path) -> AnnData:
    from dra_scvi._inputs.mtx_labels import read_mtx_labels

    try:
        return read_mtx_labels(path)
    except FileNotFoundError as error:  # as of a .mtx that is a folder
        raise InputError(str(error)) from error
