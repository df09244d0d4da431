"""What is said of an input that was not read: damage is named only where there is some."""

from __future__ import annotations

import lzma
import os
import struct
import zlib
from pathlib import Path

from dra_scvi._exceptions import InputError, first_line, message_of

__all__ = ["check_model_folder", "explain", "find_model_folder"]

DAMAGE = (OSError, RuntimeError, EOFError, lzma.LZMAError, zlib.error, struct.error)
# how the errors of the HDF5 library begin, whichever their type
OF_HDF5 = (
    "unable to",
    "can't",
    "file signature not found",
    "the hdf5 library",
    "its links cannot",
)
UNKNOWN_KIND = ("IORegistryError", "NotImplementedError")


def explain(path: Path, kind: str, error: BaseException, accepted: str) -> str:
    """Say in one sentence why a file was not read.

    Parameters
    ----------
    path
        The file.
    kind
        What it was read as.
    error
        Of the library.
    accepted
        The kinds that there are.
    """
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
    if type(error).__name__ in UNKNOWN_KIND:
        import anndata

        return (
            f"{start}it holds something that anndata {anndata.__version__} does not know, and was "
            f"written by a newer version or another program ({detail})."
        )
    if isinstance(error, DAMAGE) or message_of(error).removeprefix(f"{path}: ").lower().startswith(
        OF_HDF5
    ):
        why = "it is corrupt, truncated or of another kind"
        return f"{start}{why} ({detail}). Accepted: {accepted}."
    return f"{start}{detail}. Accepted: {accepted}."


def check_model_folder(path: Path) -> None:
    """Refuse what cannot be the folder of a saved model, by saying what it is.

    Parameters
    ----------
    path
        What was named as one.

    Raises
    ------
    FileNotFoundError
        Where nothing is.
    InputError
        For a file, and for a zarr store.
    """
    is_store = any((path / name).exists() for name in (".zgroup", "zarr.json"))
    wanted = "what is wanted here is the folder of a saved model, as of train --model-dir"
    if path.name == "model.pt" and path.is_file():
        raise InputError(f"{path} is a file of a saved model; name its folder, {path.parent}.")
    if is_store or (path.suffix == ".h5ad" and path.exists()):
        raise InputError(f"{path} is an AnnData, and {wanted}.")
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is a file, and {wanted}.")
    find_model_folder(path)


def find_model_folder(path: str | os.PathLike[str]) -> Path:
    """Return the folder of a saved model, "~" in its name expanded.

    Parameters
    ----------
    path
        What was named as one.

    Raises
    ------
    FileNotFoundError
        When there is no folder.
    """
    folder = Path(os.path.expanduser(path))
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} does not exist; it should be the folder of a saved model."
        )
    return folder
