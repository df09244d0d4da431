"""What the command line reads and writes: inputs named by kind, outputs whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import uuid
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dra_scvi._hdf5_probe import check_10x, check_hdf5
from dra_scvi._validation import check_structure, closest, named_layers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from anndata import AnnData

__all__ = [
    "append_line",
    "atomic_folder",
    "atomic_path",
    "check_output",
    "is_zarr",
    "read_input",
    "write_h5ad",
    "write_json",
    "write_text",
]

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


def check_output(path: str | Path, force: bool = False) -> None:
    """Check, before any work, that an output can be written.

    Parameters
    ----------
    path
        File or folder to be written.
    force
        Whether an existing one may be replaced.

    Raises
    ------
    FileExistsError
        When it exists and may not be replaced.
    FileNotFoundError
        When its parent folder does not exist.

    Examples
    --------
    >>> check_output("no/such/out.h5ad", force=False)
    Traceback (most recent call last):
    ...
    FileNotFoundError: cannot write no/such/out.h5ad: the folder no/such does not exist; ...
    """
    path = Path(path)
    _check_parent(path)
    if os.path.lexists(path) and not force:
        raise FileExistsError(f"{path} exists; pass --force to replace it, or choose another name")


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a hidden sibling to write to, which takes the place of `path` once it is complete.

    The sibling has the suffix of `path`, from which writers tell the format. It is flushed to
    disk and renamed when the block ends, and removed when the block fails: `path` is then as it
    was before.

    Parameters
    ----------
    path
        File to be written or replaced.

    Raises
    ------
    FileNotFoundError
        When the parent folder does not exist.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> with atomic_path(folder / "a.txt") as temporary:
    ...     _ = temporary.write_text("whole")
    >>> [file.name for file in folder.iterdir()]
    ['a.txt']
    """
    path = Path(path)
    _check_parent(path)
    temporary = _hidden_sibling(path)
    try:
        yield temporary
        _flush_to_disk(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield a hidden sibling folder whose files take their place once all of them are complete.

    Files of the same name in a folder that exists are replaced, others left alone. The sibling is
    removed when the block fails.

    Parameters
    ----------
    path
        Folder to be written or added to.

    Raises
    ------
    FileNotFoundError
        When the parent folder does not exist.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp()) / "model"
    >>> with atomic_folder(folder) as temporary:
    ...     _ = (temporary / "a.txt").write_text("whole")
    >>> [file.name for file in folder.iterdir()]
    ['a.txt']
    """
    path = Path(path).resolve()
    _check_parent(path)
    temporary = _hidden_sibling(path)
    temporary.mkdir()
    try:
        yield temporary
        if path.exists():
            for file in sorted(temporary.iterdir()):
                file.replace(path / file.name)
        else:
            temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_h5ad(adata: AnnData, path: str | Path) -> None:
    """Write an AnnData whole or not at all; equal content gives equal bytes.

    Parameters
    ----------
    adata
        What to write. It is not changed: text columns become categories in the file only.
    path
        The ``.h5ad`` to write or replace.

    Raises
    ------
    FileNotFoundError
        When the parent folder does not exist.
    """
    shallow = adata.to_memory() if adata.isbacked else _shallow_copy(adata)
    with atomic_path(path) as temporary:
        shallow.write_h5ad(temporary)


def write_json(payload: Any, path: str | Path) -> None:
    """Write JSON with sorted keys, to a file (whole or not at all) or to standard output.

    Parameters
    ----------
    payload
        What ``json`` accepts; NumPy scalars and arrays and paths are converted.
    path
        File to write or replace, or ``"-"`` for standard output.

    Raises
    ------
    ValueError
        For NaN and infinite numbers, which JSON does not have.
    TypeError
        For objects that have no JSON counterpart.

    Examples
    --------
    >>> write_json({"nmi": np.float32(0.5), "k": np.int64(3)}, "-")
    {
      "k": 3,
      "nmi": 0.5
    }
    """
    text = json.dumps(payload, sort_keys=True, indent=2, allow_nan=False, default=_plain) + "\n"
    if str(path) == "-":
        sys.stdout.write(text)
        sys.stdout.flush()
    else:
        write_text(text, path)


def write_text(text: str, path: str | Path) -> None:
    """Write text as UTF-8, whole or not at all.

    Parameters
    ----------
    text
        Written as it is, on every system with the same line ends.
    path
        File to write or replace.

    Raises
    ------
    FileNotFoundError
        When the parent folder does not exist.
    """
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def append_line(path: str | Path, line: str) -> None:
    r"""Append one line to a log, which is created when missing.

    Parameters
    ----------
    path
        The log.
    line
        Without a line end.

    Raises
    ------
    ValueError
        When `line` holds a line end.

    Examples
    --------
    >>> append_line("log.jsonl", "one\ntwo")
    Traceback (most recent call last):
    ...
    ValueError: a log line must not hold line ends: 'one\ntwo'
    """
    if "\n" in line or "\r" in line:
        raise ValueError(f"a log line must not hold line ends: {line!r}")
    with Path(path).open("a", encoding="utf-8", newline="\n") as log:
        log.write(line + "\n")


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


def _check_parent(path: Path) -> None:
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"cannot write {path}: the folder {path.parent} does not exist; create it first"
        )


def _hidden_sibling(path: Path) -> Path:
    unique = f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
    return path.with_name(f".{unique}-{path.name}")


def _flush_to_disk(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _shallow_copy(adata: AnnData) -> AnnData:
    """Share the matrices but not the tables, which anndata changes while it writes."""
    import anndata

    return anndata.AnnData(
        X=adata.X,
        obs=adata.obs.copy(),
        var=adata.var.copy(),
        uns=dict(adata.uns),
        obsm=dict(adata.obsm),
        varm=dict(adata.varm),
        obsp=dict(adata.obsp),
        varp=dict(adata.varp),
        layers={key: adata.layers[key] for key in named_layers(adata)},
        raw=adata.raw,
    )


def _plain(value: Any) -> Any:
    """Convert what ``json`` does not know."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"{type(value).__name__} has no counterpart in JSON: {value!r}")
