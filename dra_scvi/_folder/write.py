"""The folder of a saved model, written whole or not at all.

A save is what scvi-tools writes and a manifest with checksums. A new folder is written beside its
place and renamed. In a folder that exists, the files are staged in a hidden subfolder; replacing
the manifest by theirs, one rename, makes them the model, and they are then moved to where
scvi-tools looks for them. A reader takes whatever matches the manifest, so that a process that
dies, at any moment, leaves the old model or the new one.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dra_scvi._folder.manifest import (
    DATA,
    MANIFEST,
    STAGE,
    check_prefix,
    describe,
    describe_files,
    expected,
    read_manifest,
    stage_name,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_DRAFT = ".draft-"

# What a process that died may have left; other hidden files are somebody else's.
_STAGES = re.compile(re.escape(STAGE) + r"[0-9a-f]{16}")
_DRAFTS = re.compile(re.escape(_DRAFT) + r"\d+-[0-9a-f]{8}")


@contextlib.contextmanager
def atomic_save(
    path: str | os.PathLike[str],
    prefix: str = "",
    overwrite: bool = False,
    facts: Mapping[str, Any] | None = None,
) -> Iterator[Path]:
    """Yield an empty folder whose files become the model at `path` when the block ends.

    When the block fails, or the process dies, `path` holds what it held before; from the moment
    when all files are complete and on disk, it holds the new model. Files of other names in a
    folder that exists are left alone. Processes that save to one folder take turns. The manifest
    says `facts` in addition to checksums and versions.
    """
    check_prefix(prefix)
    path = Path(os.path.expanduser(path)).resolve()
    if path.exists() and not (overwrite and path.is_dir()):
        raise FileExistsError(f"{path} exists; pass overwrite=True, or choose another folder.")
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        is_new = not path.exists()
        if not is_new:
            stack.enter_context(_turn(path))
        draft = _name_draft(path, is_new)
        stack.callback(shutil.rmtree, draft, ignore_errors=True)
        draft.mkdir()
        yield draft
        _write_manifest(draft, path, prefix, facts or {})
        if is_new:
            if _take_place(draft, path, overwrite):
                return
            stack.enter_context(_turn(path))
        _replace(draft, path, prefix)


def _name_draft(path: Path, is_new: bool) -> Path:
    """Name a draft on the file system of the model: in its folder, or beside a new one."""
    unique = f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
    return path.with_name(f".{unique}-{path.name}") if is_new else path / f"{_DRAFT}{unique}"


def _take_place(draft: Path, path: Path, overwrite: bool) -> bool:
    """Make the draft the folder that did not exist; return whether it still did not."""
    try:
        draft.rename(path)
    except OSError:
        if not (overwrite and path.is_dir()):
            raise
        return False
    _flush_folder(path.parent)
    return True


def _replace(draft: Path, path: Path, prefix: str) -> None:
    """Make the draft the model in a folder that exists."""
    name = prefix + MANIFEST
    text = (draft / name).read_bytes()
    stage = path / stage_name(json.loads(text), prefix)
    draft.rename(stage)
    _flush_folder(path)
    manifest = _name_draft(path, is_new=False)
    _write_flushed(manifest, text)
    manifest.replace(path / name)  # from here on the folder holds the new model
    _flush_folder(path)
    _move(stage, path, prefix)


def _move(stage: Path, path: Path, prefix: str) -> None:
    """Move the files that a manifest lists out of their stage, which goes."""
    for name in json.loads((stage / (prefix + MANIFEST)).read_bytes())["files"]:
        file = stage / name
        if file.parent == stage and file.is_file() and not file.is_symlink():
            file.replace(path / name)
    shutil.rmtree(stage)
    _flush_folder(path)


@contextlib.contextmanager
def _turn(path: Path) -> Iterator[None]:
    """Wait until no other process saves to a folder, and finish what one that died has begun."""
    with _lock(path) as is_alone:
        for stage in _left(path, _STAGES):
            prefix = _prefix_of(stage, path)
            if prefix is None:
                _remove(stage)
            else:
                _move(stage, path, prefix)
        if is_alone:
            for draft in _left(path, _DRAFTS):
                _remove(draft)
        yield


def _left(path: Path, names: re.Pattern[str]) -> list[Path]:
    return sorted(left for left in path.iterdir() if names.fullmatch(left.name))


def _prefix_of(stage: Path, path: Path) -> str | None:
    """Return the prefix of the model that staged files have become, or `None` for none."""
    if stage.is_symlink() or not stage.is_dir():
        return None
    for file in stage.glob(f"*{MANIFEST}"):
        prefix = file.name.removesuffix(MANIFEST)
        with contextlib.suppress(ValueError):
            manifest = read_manifest(stage, prefix)
            if manifest is not None and manifest == read_manifest(path, prefix):
                return prefix
    return None


def _remove(left: Path) -> None:
    """Remove a folder with all that is in it, a file, or a link and not what it points to."""
    if left.is_dir() and not left.is_symlink():
        shutil.rmtree(left)
    else:
        left.unlink()


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[bool]:
    """Lock a folder, which leaves no trace and ends with the process; yield whether it is ours."""
    if fcntl is None:
        yield False
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            is_ours = True
        except OSError:  # some network file systems have no locks
            is_ours = False
        yield is_ours
    finally:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def _write_manifest(draft: Path, path: Path, prefix: str, facts: Mapping[str, Any]) -> None:
    """Describe the files of a draft, and flush all to disk."""
    files = {file.name: describe(file) for file in sorted(draft.iterdir())}
    data = prefix + DATA
    if data not in files and (path / data).is_file():  # it stays, as with scvi-tools
        files[data] = _described_before(path, prefix, data) or describe(path / data)
    manifest = describe_files(files, facts)
    for file in draft.iterdir():
        with file.open("rb+") as content:
            os.fsync(content.fileno())
    _write_flushed(draft / (prefix + MANIFEST), (json.dumps(manifest, indent=1) + "\n").encode())
    _flush_folder(draft)


def _write_flushed(file: Path, content: bytes) -> None:
    with file.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _described_before(path: Path, prefix: str, name: str) -> dict[str, Any] | None:
    """Return what the manifest to be replaced says of a file; a damaged one says nothing."""
    with contextlib.suppress(ValueError):
        return expected(read_manifest(path, prefix), name)
    return None


def _flush_folder(folder: Path) -> None:
    """Flush the names in a folder to disk, where the system can do that."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
