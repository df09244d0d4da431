"""What is beside a saved model: its files by name, size and checksum, and how they are opened."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dra_scvi._exceptions import InputError
from dra_scvi._inputs.zarr_store import is_h5ad, is_zarr

if TYPE_CHECKING:
    from collections.abc import Mapping
    from io import BufferedReader

MODEL = "model.pt"
DATA = "adata.h5ad"
MANIFEST = "manifest.json"
STAGE = ".staged-"
FORMAT = 1
PACKAGES = ("dra_scvi", "scvi-tools", "torch", "lightning", "anndata", "numpy", "pandas")

_SHA256 = re.compile(r"[0-9a-f]{64}")
_MAX_SIZE = 2**26


def check_prefix(prefix: str | None) -> str:
    """Return what the names of a model's files begin with, which stay in its folder.

    Refused is what makes a name that is none of a file in the folder, or that is one of ours.
    """
    if prefix is None:
        return ""
    is_name = isinstance(prefix, str) and Path(prefix + MODEL).name == prefix + MODEL
    if not is_name or "\\" in prefix or "\0" in prefix or prefix.startswith("."):
        raise ValueError(
            f"prefix={prefix!r} must be the beginning of a file name, without folders or a dot in "
            "front; name the folder of the model where its path is given."
        )
    return prefix


def find_model_folder(path: str | os.PathLike[str]) -> Path:
    """Return the folder of a saved model, "~" in its name expanded."""
    folder = Path(os.path.expanduser(path))
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} does not exist; it should be the folder of a saved model."
        )
    return folder


def check_model_folder(path: Path) -> None:
    """Refuse what cannot be the folder of a saved model, by saying what it is."""
    wanted = "what is wanted here is the folder of a saved model, as of train --model-dir"
    if path.name == MODEL and path.is_file():
        raise InputError(f"{path} is a file of a saved model; name its folder, {path.parent}.")
    if is_zarr(path) or (is_h5ad(path) and path.exists()):
        raise InputError(f"{path} is an AnnData, and {wanted}.")
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is a file, and {wanted}.")
    find_model_folder(path)


def open_file(path: Path) -> BufferedReader:
    """Open a file for reading, and never wait: what is no file of a disk is refused."""
    try:
        descriptor = os.open(
            path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        )
    except (IsADirectoryError, NotADirectoryError) as error:
        raise FileNotFoundError(f"{path} is no file.") from error
    except OSError as error:
        if path.is_socket():
            raise ValueError(_no_file(path)) from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError(_no_file(path))
    return os.fdopen(descriptor, "rb")


def _no_file(path: Path) -> str:
    return f"{path} is no file but a folder, a pipe or a device: it is not part of a saved model."


def describe_files(files: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return a manifest, as data: facts, versions, and of each file its size and checksum."""
    versions = {name: version(name) for name in PACKAGES}
    return {"format": FORMAT, **facts, "versions": versions, "files": dict(files)}


def describe(file: Path) -> dict[str, Any]:
    """Return size and checksum of a file."""
    with open_file(file) as content:
        sha256 = hashlib.file_digest(content, "sha256").hexdigest()
    return {"size": file.stat().st_size, "sha256": sha256}


def read_manifest(path: Path, prefix: str) -> dict[str, Any] | None:
    """Return the manifest of a model, or `None` where it was saved without."""
    file = path / (prefix + MANIFEST)
    try:
        with open_file(file) as content:
            text = content.read(_MAX_SIZE + 1)
    except FileNotFoundError:
        return None
    try:
        manifest = json.loads(text)
        made_by, files = manifest["format"], manifest["files"]
        is_sound = type(made_by) is int and prefix + MODEL in files
        is_sound = is_sound and all(_is_description(entry) for entry in files.values())
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{file} is corrupt or truncated.") from error
    if not is_sound:
        raise ValueError(f"{file} is corrupt or truncated.")
    if made_by > FORMAT:
        raise ValueError(f"{file} was written by a later version of dra_scvi; update dra_scvi.")
    return manifest


def _is_description(entry: Any) -> bool:
    """Whether an entry is a size and a checksum: part of the latter becomes one of a path."""
    size, sha256 = entry["size"], entry["sha256"]
    is_sum = isinstance(sha256, str) and _SHA256.fullmatch(sha256) is not None
    return is_sum and type(size) is int and size >= 0


def expected(manifest: Mapping[str, Any] | None, name: str) -> dict[str, Any] | None:
    """Return what a manifest says of a file, or `None` for nothing."""
    return None if manifest is None else manifest["files"].get(name)


def stage_name(manifest: Mapping[str, Any], prefix: str) -> str:
    """Name the folder of staged files after what they hold, so that the manifest points to it."""
    return STAGE + manifest["files"][prefix + MODEL]["sha256"][:16]
