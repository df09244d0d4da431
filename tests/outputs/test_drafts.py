"""Drafts beside their output: their names, what is cleared, and how they take their place."""

from __future__ import annotations

import errno
import os
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from dra_scvi._outputs import drafts
from dra_scvi._outputs.drafts import (
    TakenError,
    clear_dead_drafts,
    destination,
    free_name,
    keep_beside,
    name_draft,
    plain_error,
    publish,
    take_mode,
)

if TYPE_CHECKING:
    from collections.abc import Callable

DEAD = 2**22 + 1  # above the numbers that Linux gives


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "out.h5ad"


def test_a_draft_tells_process_machine_and_output(path: Path) -> None:
    name = rf"\.{os.getpid()}-{drafts._place()}-[0-9a-f]{{8}}-out\.h5ad"
    one, other = name_draft(path), name_draft(path)
    assert one != other
    assert one.parent == path.parent
    assert re.fullmatch(name, one.name)
    assert re.fullmatch("[0-9a-f]{8}", drafts._place())


@pytest.mark.parametrize("length", [100, 101, 255])
def test_long_names_are_shortened(tmp_path: Path, length: int) -> None:
    stem = "é" + "n" * (length - 7)
    name = name_draft(tmp_path / f"{stem}.h5ad").name
    rest = name.split("-", 3)[3]
    if length == 100:
        assert rest == f"{stem}.h5ad"
    else:
        assert re.fullmatch(r"[0-9a-f]{16}\.h5ad", rest)
        other = name_draft(tmp_path / f"{stem[1:]}e.h5ad").name
        assert other.split("-", 3)[3] != rest or length == 101
    of_long_suffix = name_draft(tmp_path / f"a.{'s' * 200}").name.split("-", 3)[3]
    assert of_long_suffix[16:] == "." + "s" * 24


def test_what_killed_processes_left_is_cleared(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, own = drafts._place(), os.getpid()

    def leave(name: str) -> Path:
        left = path.with_name(name)
        left.write_text("half")
        return left

    gone = [
        leave(f".{DEAD}-{place}-01234567-out.h5ad"),
        leave(f".{own}-{place}-01234567-out.h5ad"),  # of a process that had this number
        path.with_name(f".{DEAD}-{place}-89abcdef-out.h5ad"),
        path.with_name(f".{DEAD}-{place}-00000000-out.h5ad"),
    ]
    gone[2].mkdir()
    (gone[2] / "file").touch()
    mine = path.with_name("mine")
    mine.mkdir()
    (mine / "file").touch()
    gone[3].symlink_to(mine)
    live = name_draft(path)
    live.touch()
    kept = [
        live,
        leave(f".{DEAD}-{place}-01234567-other.h5ad"),
        leave(f".{DEAD}-{place}-01234567-outxh5ad"),
        leave(f".{DEAD}-00000000-01234567-out.h5ad"),
        leave(f".{DEAD}-{place}-0123456-out.h5ad"),
        leave(f".{DEAD}-{place}-01234567-out.h5ad.bak"),
        leave(f".{os.getppid()}-{place}-01234567-out.h5ad"),
        mine / "file",
    ]
    clear_dead_drafts(path)
    assert [left for left in gone if os.path.lexists(left)] == []
    assert [left for left in kept if not left.exists()] == []
    clear_dead_drafts(path / "nowhere" / "out.h5ad")  # says nothing

    def forbidden(*_: int) -> None:
        raise PermissionError

    left = leave(gone[0].name)
    monkeypatch.setattr(os, "kill", forbidden)  # as for a process of somebody else
    clear_dead_drafts(path)
    assert left.exists()
    monkeypatch.undo()
    monkeypatch.setattr(drafts.os, "name", "nt")
    assert not drafts._is_dead(DEAD, "name")
    assert drafts._is_dead(own, "name")


def test_what_another_process_clears_first_is_no_hindrance(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f".{DEAD}-{drafts._place()}-0123456{n}-out.h5ad" for n in range(3)]
    folder, file, left = (path.with_name(name) for name in names)
    folder.mkdir()
    file.touch()
    left.touch()
    seen = sorted(os.scandir(path.parent), key=lambda entry: entry.name)
    assert [entry.is_dir() for entry in seen] == [True, False, False]
    folder.rmdir()
    file.unlink()
    monkeypatch.setattr(os, "scandir", lambda _: seen)
    clear_dead_drafts(path)
    assert not left.exists()


def test_links_are_written_through(path: Path, tmp_path: Path) -> None:
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to(path)
    assert destination(tmp_path / "one") == path
    assert destination(path) is path


def draft_of(path: Path, text: str = "new") -> Path:
    draft = name_draft(path)
    draft.write_text(text)
    return draft


@pytest.mark.parametrize("replace", [True, False])
def test_a_draft_takes_a_free_place(path: Path, replace: bool) -> None:
    draft = draft_of(path)
    assert draft.name in drafts._live
    publish(draft, path, replace)
    assert path.read_text() == "new"
    assert os.listdir(path.parent) == ["out.h5ad"]
    assert draft.name not in drafts._live


def test_a_file_that_is_replaced_keeps_its_mode(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owners: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "chown", lambda _, user, group: owners.append((user, group)))
    path.write_text("old")
    path.chmod(0o640)
    publish(draft_of(path), path, True)
    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert owners == [(path.stat().st_uid, path.stat().st_gid)]

    def forbidden(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "chown", forbidden)
    draft = draft_of(path)
    take_mode(draft, path)
    assert stat.S_IMODE(draft.stat().st_mode) == 0o640
    take_mode(draft, path.with_name("none"))
    monkeypatch.delattr(os, "chown")
    draft.chmod(0o600)
    take_mode(draft, path)
    assert stat.S_IMODE(draft.stat().st_mode) == 0o640


@pytest.mark.parametrize("has_links", [True, False])
def test_a_place_that_is_taken(
    path: Path, has_links: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: object) -> None:
        raise OSError(errno.EPERM, "no links")

    if not has_links:
        monkeypatch.setattr(os, "link", no_links)
    publish(draft_of(path, "first"), path, False)
    path.with_name("out.1.h5ad").symlink_to("nowhere")
    kept = path.with_name("out.2.h5ad")
    words = f"^{path} was written by another process meanwhile and is left as it is; .* {kept}$"
    with pytest.raises(TakenError, match=words) as caught:
        publish(draft_of(path), path, False)
    assert caught.value.kept == kept
    assert (path.read_text(), kept.read_text()) == ("first", "new")
    assert sorted(os.listdir(path.parent)) == ["out.1.h5ad", "out.2.h5ad", "out.h5ad"]


@pytest.mark.parametrize("code", sorted(drafts.NO_LINKS))
def test_file_systems_without_links(
    path: Path, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(code, "no links")

    monkeypatch.setattr(os, "link", fail)
    publish(draft_of(path), path, False)
    assert path.read_text() == "new"
    assert os.listdir(path.parent) == ["out.h5ad"]


def test_what_stops_a_link_otherwise_is_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = "EPERM", "ENOSYS", "ENOTSUP", "EOPNOTSUPP", "EMLINK", "EINVAL", "EXDEV"
    assert {getattr(errno, name) for name in names if hasattr(errno, name)} == drafts.NO_LINKS

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "link", fail)
    draft = draft_of(path)
    with pytest.raises(OSError, match="full"):
        publish(draft, path, False)
    assert not path.exists()
    assert draft.name not in drafts._live


def test_a_name_that_is_taken_in_between(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = drafts.free_name

    def raced(given: Path) -> Path:
        found = free(given)
        if found.name == "out.1.h5ad":
            found.write_text("faster")
        return found

    monkeypatch.setattr(drafts, "free_name", raced)
    error = keep_beside(draft_of(path), path)
    assert error.kept == path.with_name("out.2.h5ad")
    assert error.kept.read_text() == "new"
    assert path.with_name("out.1.h5ad").read_text() == "faster"


def test_folders_are_kept_beside(path: Path) -> None:
    folder = name_draft(path)
    folder.mkdir()
    (folder / "file").touch()
    assert free_name(path) == path.with_name("out.1.h5ad")
    kept = keep_beside(folder, path).kept
    assert (kept / "file").exists()
    assert not folder.exists()


# -- what the system says ------------------------------------------------------------------------


def caused(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


def within(error: BaseException, context: BaseException) -> BaseException:
    error.__context__ = context
    return error


FULL = OSError(errno.ENOSPC, "full")
ERRORS: list[tuple[Callable[[], BaseException], int | None]] = [
    (lambda: FULL, errno.ENOSPC),
    (lambda: OSError("Can't write (errno = 28, error message"), 28),
    (lambda: RuntimeError("Can't write (errno = 13, error message"), 13),
    (lambda: RuntimeError("no number"), None),
    (lambda: caused(RuntimeError("no number"), FULL), errno.ENOSPC),
    (lambda: within(OSError("no number"), FULL), errno.ENOSPC),
    (lambda: caused(within(RuntimeError(), OSError(1, "a")), FULL), errno.ENOSPC),
    (lambda: caused(RuntimeError(), caused(RuntimeError(), FULL)), errno.ENOSPC),
    (lambda: ValueError("errno = 28"), None),
    (lambda: caused(ValueError(), FULL), None),
    (lambda: FileExistsError(errno.EEXIST, "there"), None),
    (lambda: TakenError("there", Path("a")), None),
    (lambda: KeyboardInterrupt(), None),
]


@pytest.mark.parametrize(("make", "number"), ERRORS, ids=range(len(ERRORS)))
def test_errors_of_the_system_name_the_output(
    make: Callable[[], BaseException], number: int | None
) -> None:
    found = plain_error(make(), Path("out.h5ad"))
    if number is None:
        assert found is None
    else:
        assert found is not None
        assert (found.errno, found.filename) == (number, "out.h5ad")
        assert found.strerror == os.strerror(number)
