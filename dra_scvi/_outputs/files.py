"""Outputs: whole or not at all, never over what was there before unless that was asked for."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dra_scvi._data.columns import named_layers
from dra_scvi._outputs.drafts import (
    clear_dead_drafts,
    destination,
    keep_beside,
    name_draft,
    plain_error,
    publish,
    take_mode,
)
from dra_scvi._outputs.full_disk import open_hdf5
from dra_scvi._outputs.h5ad_content import writable_copy

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anndata import AnnData


def check_parent(path: Path) -> None:
    """Check that the folder in which an output is to lie exists."""
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"cannot write {path}: the output folder {path.parent} does not exist; create it first"
        )


@contextlib.contextmanager
def atomic_path(path: str | Path, replace: bool = True) -> Iterator[Path]:
    """Yield a hidden sibling to write to, which takes the place of `path` once it is complete.

    The sibling has the suffix of `path`, from which writers tell the format. It is flushed to disk
    and renamed when the block ends, and removed when the block fails: `path` is then as it was
    before. A file that is there by then and may not be replaced stays, and the new one is kept
    beside it. A link is written through, and a file that is replaced keeps its mode.
    """
    path = destination(Path(path))
    check_parent(path)
    clear_dead_drafts(path)
    temporary = name_draft(path)
    try:
        if replace and path.exists():
            temporary.touch(0o600)  # what only its owner may read is so from the first byte on
            take_mode(temporary, path)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        publish(temporary, path, replace)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        plain = plain_error(error, path)
        if plain is None:
            raise
        raise plain from error


@contextlib.contextmanager
def atomic_folder(path: str | Path, replace: bool = True) -> Iterator[Path]:
    """Yield a hidden sibling folder whose files take their place once all of them are complete.

    Files of the same name in a folder that exists are replaced, others left alone. Where nothing
    may be replaced, and something is there by then, the new folder is kept beside it. The sibling
    is removed when the block fails.
    """
    path = Path(path).resolve()
    check_parent(path)
    clear_dead_drafts(path)
    temporary = name_draft(path)
    try:
        temporary.mkdir()
        yield temporary
        if replace and path.exists():
            for file in sorted(temporary.iterdir()):
                publish(file, path / file.name, replace=True)
        else:
            _take_place(temporary, path)
    except OSError as error:
        if error.filename is None or str(temporary) not in str(error.filename):
            raise
        name = str(error.filename).replace(str(temporary), str(path))
        raise OSError(error.errno, error.strerror, name) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _take_place(draft: Path, path: Path) -> None:
    """Rename a folder, which the system does where there is none or an empty one."""
    try:
        draft.rename(path)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        raise keep_beside(draft, path) from error


def write_h5ad(adata: AnnData, path: str | Path, replace: bool = True) -> None:
    """Write an AnnData whole or not at all; equal content gives equal bytes.

    It is not changed: text columns become categories in the file only, and what else a file holds
    in another form (:func:`~dra_scvi._outputs.h5ad_content.writable_copy`).
    """
    from anndata.io import write_elem

    copy = writable_copy(adata.to_memory() if adata.isbacked else adata)
    copy.strings_to_categoricals()
    if copy.raw is not None:
        copy.strings_to_categoricals(copy.raw.var)
    parts = {"X": copy.X, "raw": copy.raw, "obs": copy.obs, "var": copy.var, "uns": dict(copy.uns)}
    parts |= {name: dict(getattr(copy, name)) for name in ("obsm", "varm", "obsp", "varp")}
    parts["layers"] = {key: copy.layers[key] for key in named_layers(copy)}
    with atomic_path(path, replace) as temporary, open_hdf5(temporary) as file:
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        for name, part in parts.items():
            if part is not None:
                write_elem(file, name, part)


def write_json(payload: Any, path: str | Path, replace: bool = True) -> None:
    """Write JSON with sorted keys, to a file (whole or not at all) or, as ``"-"``, to stdout.

    NumPy scalars and arrays and paths are converted; NaN, which JSON does not have, is an error.
    """
    text = json.dumps(payload, sort_keys=True, indent=2, allow_nan=False, default=_plain) + "\n"
    if str(path) == "-":
        sys.stdout.write(text)
        sys.stdout.flush()
    else:
        write_text(text, path, replace)


def write_text(text: str, path: str | Path, replace: bool = True) -> None:
    """Write text as UTF-8, whole or not at all, with the same line ends on every system."""
    with atomic_path(path, replace) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def append_line(path: str | Path, line: str) -> None:
    """Append one line to a log, which is created when missing."""
    with Path(path).open("a", encoding="utf-8", newline="\n") as log:
        log.write(line + "\n")


def _plain(value: Any) -> Any:
    """Convert what ``json`` does not know."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"{type(value).__name__} has no counterpart in JSON: {value!r}")
