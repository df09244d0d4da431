"""Inputs of the command line: which kind a path is, how it is read, what is said if it fails."""

from __future__ import annotations

import contextlib
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from dra_scvi._hdf5_probe import check_10x, check_hdf5
from dra_scvi._validation import check_structure, closest, named_layers

if TYPE_CHECKING:
    from collections.abc import Callable

    from anndata import AnnData

__all__ = ["is_zarr", "read_input"]

ACCEPTED = (
    "an .h5ad file, a zarr store of an AnnData, a 10x .h5 file, "
    "or a folder with one .mtx and labels.txt"
)
DETAIL_LENGTH = 160


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
        When it is empty, truncated, corrupt, or of another kind; one line that names the file.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(_missing(path))
    if path.is_file() and path.stat().st_size == 0:
        raise ValueError(f"{path} is empty (0 bytes); expected {ACCEPTED}.")
    kind, usual_reader = _reader(path)
    reader = reader or usual_reader
    try:
        adata = reader(path)
    except (ImportError, MemoryError, PermissionError):
        raise
    except Exception as error:
        raise ValueError(
            f"{path} could not be read as {kind}: it is corrupt, truncated or of another kind "
            f"({_first_line(error)}). Accepted: {ACCEPTED}."
        ) from error
    check_structure(adata.X, f"X of {path}")
    for key in named_layers(adata):
        check_structure(adata.layers[key], f"layer {key!r} of {path}")
    if adata.shape == (0, 0):
        raise ValueError(f"{path} could not be read as {kind}: it holds neither cells nor genes.")
    return adata


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
    elif suffix == ".h5ad":
        return "an .h5ad file", _read_h5ad
    elif suffix == ".h5":
        return "a 10x .h5 file", _read_10x
    raise ValueError(f"{path} is not a known kind of input; accepted: {ACCEPTED}.")


def _read_h5ad(path: Path) -> AnnData:
    import anndata

    check_hdf5(path)
    return anndata.read_h5ad(path)


def _read_zarr(path: Path) -> AnnData:
    import anndata

    return anndata.read_zarr(path)


def _read_10x(path: Path) -> AnnData:
    import scanpy

    check_hdf5(path)
    check_10x(path)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Variable names are not unique", UserWarning)
        adata = scanpy.read_10x_h5(path)
    adata.var_names_make_unique()
    return adata


def _read_folder(path: Path) -> AnnData:
    from dra_scvi.datasets import read_mtx_labels

    return read_mtx_labels(path)


def _first_line(error: BaseException) -> str:
    """Shorten an error to its kind and the beginning of its first line."""
    lines = str(error.args[0] if error.args else error).strip().splitlines()
    text = lines[0] if lines else ""
    short = text if len(text) <= DETAIL_LENGTH else text[:DETAIL_LENGTH] + "..."
    return f"{type(error).__name__}: {short}" if short else type(error).__name__
