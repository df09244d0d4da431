"""Inputs of the command line: which kind a path is, how it is read, what is said if it fails."""

from __future__ import annotations

import contextlib
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dra_scvi._data.keys import closest, named_layers
from dra_scvi._data.structure import check_structure, sign_indices
from dra_scvi._exceptions import InputError
from dra_scvi._inputs.errors import explain
from dra_scvi._inputs.hdf5_probe import check_hdf5
from dra_scvi._inputs.memory import check_room
from dra_scvi._inputs.zarr_chunks import check_chunks
from dra_scvi._inputs.zarr_store import check_store

if TYPE_CHECKING:
    from collections.abc import Callable

    from anndata import AnnData

__all__ = ["check_anndata", "check_kind", "is_zarr", "read_input"]

ACCEPTED = (
    "an .h5ad file, a zarr store of an AnnData, a 10x .h5 file, "
    "or a folder with one .mtx and labels.txt"
)


def read_input(path: str | Path, reader: Callable[[Path], AnnData] | None = None) -> AnnData:
    """Read cells by genes from any of the accepted kinds.

    Parameters
    ----------
    path
        An ``.h5ad``, a zarr store of an AnnData, a 10x ``.h5`` (gene names are made unique), or a
        folder with an ``.mtx`` and ``labels.txt``.
    reader
        What reads it; `None` for the one of its kind.

    Raises
    ------
    FileNotFoundError
        When nothing is there; names the closest sibling.
    ValueError
        When it is empty, truncated, corrupt, or of another kind, when it refers to other files,
        or needs more memory than there is; one line that names the file.

    Warns
    -----
    UserWarning
        When some of its features are not genes.
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
        raise InputError(explain(path, kind, error, ACCEPTED)) from error
    _check_matrices(adata, path)
    if adata.shape == (0, 0):
        raise InputError(f"{path} could not be read as {kind}: it holds neither cells nor genes.")
    return adata


def check_kind(path: Path) -> None:
    """Check, before anything is opened, that a path is a folder or a file with something in it.

    Parameters
    ----------
    path
        An input. To open a pipe would mean to wait for who writes to it.

    Raises
    ------
    FileNotFoundError
        When nothing is there; names the closest sibling.
    ValueError
        For a pipe, a socket, a device, and a file of no bytes.
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


def _missing(path: Path) -> str:
    match = None
    with contextlib.suppress(OSError):
        match = closest(path.name, sorted(sibling.name for sibling in path.parent.iterdir()))
    hint = f"; did you mean {path.with_name(match)}?" if match else ""
    return f"{path} does not exist{hint}"


def is_zarr(path: Path) -> bool:
    """Whether a path is a folder that zarr has marked as a store."""
    return path.is_dir() and any((path / name).exists() for name in (".zgroup", "zarr.json"))


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
    elif suffix == ".h5ad":
        return "an .h5ad file", _read_h5ad
    elif suffix == ".h5":
        return "a 10x .h5 file", _read_10x
    raise InputError(f"{path} is not a known kind of input; accepted: {ACCEPTED}.")


def _read_h5ad(path: Path) -> AnnData:
    import anndata
    import h5py

    check_hdf5(path)
    with h5py.File(path, "r") as file:
        check_anndata(file, path)
        check_room(path, [file])
    adata = anndata.read_h5ad(path)
    _remark_on_features(adata, path)
    return adata


def check_anndata(file: Any, path: Path) -> None:
    """Check that an HDF5 file is that of an AnnData, and name what else it may be.

    Parameters
    ----------
    file
        The open file.
    path
        Its name.

    Raises
    ------
    InputError
        When it lacks the tables that every AnnData has.
    """
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
    import anndata
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
