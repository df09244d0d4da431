"""A rehearsal before any work: every output is opened, and is neither another one nor an input."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from dra_scvi._outputs.drafts import clear_dead_drafts, destination, name_draft, plain_error

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

Kind = Literal["file", "folder", "results", "log", "table"]
FOLDERS = ("folder", "results")

BLOCK = 4096
# the files of an input folder that a command reads; others may lie beside them
READ_FROM_FOLDERS = (
    *(".mtx", ".mtx.gz", "labels.txt", "genes.txt"),
    *("model.pt", "manifest.json", "adata.h5ad"),
)
ZARR_MARKS = (".zgroup", "zarr.json")


class Output(NamedTuple):
    """Something that a command is going to write, and the option by which the user named it.

    ``"file"`` and ``"folder"`` are new unless they may be replaced, ``"results"`` are a folder
    that may be there without files; a ``"log"`` is added to, and a ``"table"`` as well, by a
    command that looks itself at what is there.
    """

    option: str
    path: Path
    kind: Kind = "file"


def rehearse(outputs: Sequence[Output], inputs: Mapping[str, Path], force: bool) -> list[Path]:
    """Try to write every output, in a draft that is removed again; make missing folders.

    Refused are outputs that exist unless `force`, a folder in place of a file and the reverse, and
    an output that is another one, an input (by how the user named it), or where an input lies,
    also through links. Returns the folders that were made, the innermost last.
    """
    for output in outputs:
        _look_up(output.path)
    _check_distinct(outputs)
    for output in outputs:
        _check_not_read(output, inputs)
        _check_free(output, force)
    made: list[Path] = []
    try:
        for output in outputs:
            made += _make_folders(output.path)
            _try_writing(output)
    except BaseException:
        remove_empty(made)
        raise
    return made


def _make_folders(path: Path) -> list[Path]:
    """Make the folders in which an output is to lie, and return those that were missing."""
    folder = destination(path).parent
    missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    existing = missing[-1].parent if missing else folder
    if not existing.is_dir():
        raise FileExistsError(
            f"cannot write {path}: the output folder {existing} is a file; choose another folder"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        text = f"the output folder cannot be made ({os.strerror(error.errno or 0)})"
        raise OSError(error.errno, text, str(folder)) from error
    return missing[::-1]


def remove_empty(folders: Sequence[Path]) -> None:
    """Remove folders that were made, the innermost last, unless something lies in them."""
    for folder in reversed(folders):
        with contextlib.suppress(OSError):
            folder.rmdir()


def _check_distinct(outputs: Sequence[Output]) -> None:
    for position, output in enumerate(outputs):
        for other in outputs[:position]:
            if _is_same(output.path, other.path):
                raise FileExistsError(
                    f"{output.option} {output.path}: the same file as {other.option}; choose "
                    "another name"
                )
            for inner, outer in ((output, other), (other, output)):
                if outer.kind in FOLDERS and _is_within(inner.path, outer.path):
                    raise FileExistsError(
                        f"{inner.option} {inner.path}: lies in the folder of {outer.option}; "
                        "choose another folder"
                    )


def _check_not_read(output: Output, inputs: Mapping[str, Path]) -> None:
    never = "which is never written to; choose another"
    start = f"{output.option} {output.path}:"
    for name, path in inputs.items():
        if _is_same(output.path, path):
            raise FileExistsError(f"{start} the same as {name}, {never} name")
        if output.kind == "folder" and _lies_in(path, output.path):
            raise FileExistsError(f"{start} the folder in which {name} lies, {never} folder")
        if not path.is_dir():
            continue
        is_store = any((path / mark).exists() for mark in ZARR_MARKS)
        is_part = is_store or output.path.name.endswith(READ_FROM_FOLDERS)
        if is_part and _is_within(output.path, path):
            raise FileExistsError(f"{start} a file of {name}, {never} folder")
        if not is_store and any(_is_same(output.path, file) for file in _read_from(path)):
            raise FileExistsError(f"{start} what a file of {name} is a link to, {never} name")


def _read_from(folder: Path) -> Iterator[Path]:
    """Files of an input folder that a command reads, and which may be links."""
    with contextlib.suppress(OSError):  # of a folder that may not be read, which is said later
        for file in folder.iterdir():
            if file.name.endswith(READ_FROM_FOLDERS):
                yield file


def _lies_in(path: Path, folder: Path) -> bool:
    """Whether a file, or a link to it, lies in a folder itself."""
    return any(_is_same(Path(parent), folder) for parent in (path.parent, path.resolve().parent))


def _is_same(one: Path, other: Path) -> bool:
    """Whether two names are of one file: one inode, or, where there is none yet, one place."""
    with contextlib.suppress(OSError):
        return os.path.samestat(one.stat(), other.stat())
    real, other_real = (os.path.realpath(path) for path in (one, other))
    # on some file systems names that differ in case only are the same
    return real == other_real or (
        real.casefold() == other_real.casefold() and not (one.exists() or other.exists())
    )


def _is_within(inner: Path, outer: Path) -> bool:
    return Path(os.path.realpath(outer)) in Path(os.path.realpath(inner)).parents


def _check_free(output: Output, force: bool) -> None:
    option, path, kind = output
    wanted_folder = kind in FOLDERS
    is_kept = kind in ("log", "table") or (
        kind == "results" and path.is_dir() and not any(path.iterdir())
    )
    if os.path.lexists(path) and not force and not is_kept:
        raise FileExistsError(f"{path} exists; pass --force to replace it, or choose another name")
    if path.exists() and path.is_dir() != wanted_folder:
        found, wanted = ("file", "folder") if wanted_folder else ("folder", "file")
        raise FileExistsError(
            f"{option} {path}: there is a {found} of this name, where a {wanted} is to be "
            "written; choose another name"
        )
    if path.exists() and not wanted_folder and not path.is_file():
        raise FileExistsError(f"{option} {path}: not a plain file; choose another name")


def _try_writing(output: Output) -> None:
    """Write a little on the file system of an output, so that no refusal comes at the end."""
    path = destination(output.path)
    draft = name_draft(path)
    if output.kind in FOLDERS and path.is_dir():
        draft = name_draft(path / path.name)
    _look_up(path)
    try:
        clear_dead_drafts(path)
        with draft.open("xb") as file:
            file.write(bytes(BLOCK))
            file.flush()
            os.fsync(file.fileno())
        if output.kind == "log" and path.exists():
            path.open("ab").close()
    except OSError as error:
        raise _refusal(error, path) from error
    finally:
        draft.unlink(missing_ok=True)


def _look_up(path: Path) -> None:
    """Refuse a name that the file system does not take, such as one that is too long."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise _refusal(error, path) from error


def _refusal(error: OSError, path: Path) -> OSError:
    """Say of the output what the system said of its draft."""
    plain = plain_error(error, path)
    if isinstance(plain, PermissionError) and not os.access(path.parent, os.W_OK):
        text = "the output folder may not be written to"
        return OSError(plain.errno, text, str(path.parent))
    return plain or error
