"""Drafts beside their output: how they are named, cleared after a kill, and put in its place."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import itertools
import os
import platform
import re
import shutil
import stat
import uuid
from pathlib import Path

LONGEST_NAME = 100
# what file systems say that have no hard links
NO_LINKS = frozenset(
    getattr(errno, name)
    for name in ("EPERM", "ENOSYS", "ENOTSUP", "EOPNOTSUPP", "EMLINK", "EINVAL", "EXDEV")
    if hasattr(errno, name)
)
# drafts that threads of this process are writing
_live: set[str] = set()


class TakenError(FileExistsError):
    """The place of an output was taken while it was made, which is in `kept` instead."""

    def __init__(self, message: str, kept: Path) -> None:
        super().__init__(message)
        self.kept = kept


def destination(path: Path) -> Path:
    """Return where an output is written: through symbolic links, which stay what they are."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def name_draft(path: Path) -> Path:
    """Name a hidden sibling with the suffix of `path`, which tells its process."""
    name = f".{os.getpid()}-{_place()}-{uuid.uuid4().hex[:8]}-{_short(path.name)}"
    _live.add(name)
    return path.with_name(name)


def clear_dead_drafts(path: Path) -> None:
    """Remove what killed processes of this machine have left of an output."""
    name = re.escape(_short(path.name))
    pattern = re.compile(rf"\.(\d+)-{_place()}-[0-9a-f]{{8}}-{name}")
    with contextlib.suppress(OSError):
        for entry in list(os.scandir(path.parent)):
            match = pattern.fullmatch(entry.name)
            if match and _is_dead(int(match[1]), entry.name):
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path, ignore_errors=True)
                else:
                    Path(entry.path).unlink(missing_ok=True)


def publish(draft: Path, path: Path, replace: bool) -> None:
    """Let a finished draft take its place; a file that is replaced keeps its mode and owner.

    Where there is one that may not be replaced, the draft is kept under another name, which a
    :class:`TakenError` tells.
    """
    try:
        if replace:
            take_mode(draft, path)
            draft.replace(path)
        else:
            _place_without_replacing(draft, path)
    except FileExistsError as error:
        raise keep_beside(draft, path) from error
    finally:
        _live.discard(draft.name)


def keep_beside(draft: Path, path: Path) -> TakenError:
    """Give a draft that has lost its place a name of its own; return the error that says so."""
    while True:
        kept = free_name(path)
        try:
            if draft.is_dir():
                draft.rename(kept)
            else:
                _place_without_replacing(draft, kept)
        except FileExistsError:
            continue
        return TakenError(
            f"{path} was written by another process meanwhile and is left as it is; the result "
            f"of this one is in {kept}",
            kept,
        )


def free_name(path: Path) -> Path:
    """Return the first of ``out.1.h5ad``, ``out.2.h5ad``, ... that does not exist."""
    names = (path.with_name(f"{path.stem}.{n}{path.suffix}") for n in itertools.count(1))
    return next(name for name in names if not os.path.lexists(name))


def take_mode(draft: Path, path: Path) -> None:
    """Give a draft the mode and owner of the file it is to replace, if there is one."""
    with contextlib.suppress(FileNotFoundError):
        old = path.stat()
        if hasattr(os, "chown"):
            with contextlib.suppress(OSError):
                os.chown(draft, old.st_uid, old.st_gid)
        draft.chmod(stat.S_IMODE(old.st_mode))


def plain_error(error: BaseException, path: Path) -> OSError | None:
    """Say what the system said, of the output rather than of its draft.

    `None` for errors that do not come from the system, or say themselves which file is there. HDF5
    hides the number of an error in its text.
    """
    seen: BaseException | None = error
    while isinstance(seen, OSError | RuntimeError) and not isinstance(seen, FileExistsError):
        number = seen.errno if isinstance(seen, OSError) else None
        match = re.search(r"errno = (\d+)", str(seen))
        number = number or (int(match[1]) if match else None)
        if number is not None:
            return OSError(number, os.strerror(number), str(path))
        seen = seen.__cause__ or seen.__context__
    return None


def _place_without_replacing(draft: Path, path: Path) -> None:
    try:
        os.link(draft, path)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))  # the name is ours now
        draft.replace(path)
    else:
        draft.unlink()


def _is_dead(pid: int, name: str) -> bool:
    if pid == os.getpid():
        return name not in _live
    if os.name == "nt":  # there a signal of 0 is none
        return False
    try:
        os.kill(pid, 0)
    except OSError as error:
        return isinstance(error, ProcessLookupError)
    return False


def _short(name: str) -> str:
    """Shorten a name, since a draft's is longer."""
    if len(os.fsencode(name)) <= LONGEST_NAME:
        return name
    digest = hashlib.blake2b(os.fsencode(name), digest_size=8).hexdigest()
    return digest + Path(name).suffix[: LONGEST_NAME // 4]


@functools.cache
def _place() -> str:
    """Tell the machine, and in it the processes among which a number names one."""
    space: int | str = ""
    with contextlib.suppress(OSError):
        space = os.stat("/proc/self/ns/pid").st_ino
    return hashlib.blake2b(f"{platform.node()} {space}".encode(), digest_size=4).hexdigest()
