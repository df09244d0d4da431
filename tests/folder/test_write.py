"""The folder of a saved model: what is in it, in what order it gets there, what is left alone."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from dra_scvi._folder import write
from dra_scvi._folder.manifest import describe, read_manifest, stage_name
from dra_scvi._folder.write import atomic_save

if TYPE_CHECKING:
    from collections.abc import Callable

NEW, OLD = b"new", b"old"
DRAFT = ".draft-1-0123abcd"


def save(path: Path | str, content: bytes = NEW, prefix: str = "", **options: Any) -> None:
    with atomic_save(path, prefix, **options) as draft:
        (draft / f"{prefix}model.pt").write_bytes(content)


def found(path: Path) -> dict[str, bytes | None]:
    """Return what is in a folder, but for manifests."""
    names = sorted(part for part in path.iterdir() if not part.name.endswith("manifest.json"))
    return {part.name: part.read_bytes() if part.is_file() else None for part in names}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model"


@pytest.fixture
def old(path: Path) -> Path:
    save(path, OLD)
    return path


def test_a_new_folder_with_its_parents(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "model"
    with atomic_save(str(path), facts={"class": "DRA"}) as draft:
        assert draft.parent == path.parent
        assert draft.name.startswith(f".{os.getpid()}-")
        assert draft.name.endswith("-model")
        assert list(draft.iterdir()) == []
        (draft / "model.pt").write_bytes(NEW)
        assert not path.exists()
    assert os.listdir(path.parent) == ["model"]
    assert found(path) == {"model.pt": NEW}
    manifest = read_manifest(path, "")
    assert manifest is not None
    assert manifest["files"] == {"model.pt": describe(path / "model.pt")}
    assert manifest["class"] == "DRA"
    assert (path / "manifest.json").read_text() == json.dumps(manifest, indent=1) + "\n"


def test_what_is_in_the_way(old: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(OLD)
    for path, options in (
        (old, {}),
        (old, {"overwrite": False}),
        (tmp_path / "file", {}),
        (tmp_path / "file", {"overwrite": True}),
    ):
        with pytest.raises(FileExistsError, match=f"^{path} exists; pass overwrite=True, or cho"):
            save(path, **options)
    with pytest.raises(ValueError, match="without folders"):
        save(tmp_path / "a" / "model", prefix="../")
    assert found(tmp_path) == {"file": OLD, "model": None}
    assert found(old) == {"model.pt": OLD}


def test_homes_and_links(tmp_path: Path, old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    save("~/other")
    (tmp_path / "link").symlink_to(old)
    save("link", overwrite=True)
    assert found(old) == {"model.pt": NEW}
    assert (tmp_path / "link").is_symlink()
    assert sorted(os.listdir()) == ["link", "model", "other"]


def test_a_model_in_a_folder_that_exists(path: Path) -> None:
    path.mkdir()
    (path / "mine").write_bytes(OLD)
    save(path, overwrite=True)
    with atomic_save(path, overwrite=True) as draft:
        assert draft.parent == path
        assert write._DRAFTS.fullmatch(draft.name)
        (draft / "model.pt").write_bytes(b"newer")
        assert found(path) == {"mine": OLD, "model.pt": NEW, draft.name: None}
    assert found(path) == {"mine": OLD, "model.pt": b"newer"}
    save(path, NEW, "a_", overwrite=True)
    assert found(path) == {"a_model.pt": NEW, "mine": OLD, "model.pt": b"newer"}
    for prefix in ("", "a_"):
        manifest = read_manifest(path, prefix)
        assert manifest is not None
        names = f"{prefix}model.pt"
        assert manifest["files"] == {names: describe(path / names)}


@pytest.mark.parametrize("exists", [True, False])
def test_a_block_that_fails_leaves_nothing(tmp_path: Path, exists: bool) -> None:
    path = tmp_path / "model"
    if exists:
        save(path, OLD)

    def fail() -> None:
        with atomic_save(path, overwrite=True) as draft:
            (draft / "model.pt").write_bytes(NEW)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert found(tmp_path) == ({"model": None} if exists else {})
    assert not exists or found(path) == {"model.pt": OLD}


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_folder_that_appears_meanwhile(path: Path, overwrite: bool) -> None:
    def race() -> None:
        with atomic_save(path, overwrite=overwrite) as draft:
            (draft / "model.pt").write_bytes(NEW)
            save(path, OLD)

    if overwrite:
        race()
    else:
        with pytest.raises(OSError, match="not empty"):
            race()
    assert found(path) == {"model.pt": NEW if overwrite else OLD}
    assert os.listdir(path.parent) == ["model"]


def test_a_file_that_appears_meanwhile_is_kept(path: Path) -> None:
    def race() -> None:
        with atomic_save(path, overwrite=True) as draft:
            (draft / "model.pt").write_bytes(NEW)
            path.write_bytes(OLD)

    with pytest.raises(NotADirectoryError):
        race()
    assert path.read_bytes() == OLD


def test_cells_of_before_stay_and_are_described(old: Path) -> None:
    with atomic_save(old, overwrite=True) as draft:
        for name in ("model.pt", "adata.h5ad"):
            (draft / name).write_bytes(OLD)
    manifest = read_manifest(old, "")
    assert manifest is not None
    before = manifest["files"]["adata.h5ad"]
    (old / "adata.h5ad").write_bytes(b"damaged")
    save(old, overwrite=True)
    manifest = read_manifest(old, "")
    assert manifest is not None
    assert manifest["files"] == {"model.pt": describe(old / "model.pt"), "adata.h5ad": before}
    (old / "manifest.json").write_bytes(b"damaged")
    save(old, overwrite=True)
    manifest = read_manifest(old, "")
    assert manifest is not None
    assert manifest["files"]["adata.h5ad"] == describe(old / "adata.h5ad")
    (old / "a_adata.h5ad").mkdir()
    save(old, prefix="a_", overwrite=True)
    manifest = read_manifest(old, "a_")
    assert manifest is not None
    assert manifest["files"].keys() == {"a_model.pt"}


# -- what a process that died has left -----------------------------------------------------------


def stage_of(path: Path, content: bytes, prefix: str = "") -> Path:
    """Stage a model in a folder as a save does that dies before the files are moved."""
    elsewhere = path.with_name("elsewhere")
    save(elsewhere, content, prefix)
    manifest = read_manifest(elsewhere, prefix)
    assert manifest is not None
    stage = path / stage_name(manifest, prefix)
    elsewhere.rename(stage)
    return stage


@pytest.mark.parametrize("prefix", ["", "a_"])
def test_what_was_begun_is_finished(old: Path, prefix: str) -> None:
    stage = stage_of(old, b"begun", prefix)
    shutil.copy(stage / f"{prefix}manifest.json", old)
    with atomic_save(old, "other_", overwrite=True) as draft:
        assert not stage.exists()
        assert (old / f"{prefix}model.pt").read_bytes() == b"begun"
        (draft / "other_model.pt").write_bytes(NEW)


def test_what_was_not_begun_goes(old: Path) -> None:
    stage, draft = stage_of(old, b"staged"), old / DRAFT
    draft.mkdir()
    (draft / "model.pt").write_bytes(b"draft")
    broken = old / ".staged-0123456789abcdef"
    broken.mkdir()
    (broken / "manifest.json").write_bytes(b"damaged")
    for name in (".staged-01234567", ".draft-1", ".draft-a-01234567", "a.staged-0123456789abcdef"):
        (old / name).mkdir()
    kept = {name for name in os.listdir(old) if name not in (stage.name, DRAFT, broken.name)}
    with atomic_save(old, overwrite=True) as own:
        assert set(os.listdir(old)) - {own.name} == kept
        assert (old / "model.pt").read_bytes() == OLD
        (own / "model.pt").write_bytes(NEW)


def test_links_in_the_place_of_leavings(old: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    save(mine, b"mine")
    shutil.copy(mine / "manifest.json", old)
    for name in (".staged-0123456789abcdef", DRAFT):
        (old / name).symlink_to(mine)
    (old / ".draft-2-0123abcd").write_bytes(b"file")
    (old / ".staged-0123456789abcde0").symlink_to(mine / "model.pt")
    save(old, overwrite=True)
    assert found(old) == {"model.pt": NEW}
    assert found(mine) == {"model.pt": b"mine"}


def test_only_files_of_the_manifest_are_moved(old: Path, tmp_path: Path) -> None:
    stage = stage_of(old, b"begun")
    manifest = json.loads((stage / "manifest.json").read_text())
    entry = manifest["files"]["model.pt"]
    for name in ("../outside", "folder", "link", "missing"):
        manifest["files"][name] = entry
    for folder in (stage, old):
        (folder / "manifest.json").write_text(json.dumps(manifest))
    (old / "outside").write_bytes(OLD)
    (stage / "folder").mkdir()
    (stage / "link").symlink_to(tmp_path)
    (stage / "README.md").write_bytes(b"theirs")
    with atomic_save(old, "b_", overwrite=True) as draft:
        assert found(old) == {"model.pt": b"begun", "outside": OLD, draft.name: None}
        (draft / "b_model.pt").write_bytes(NEW)


# -- order ---------------------------------------------------------------------------------------


def test_all_is_on_disk_before_it_is_the_model(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []

    def noting(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(first: Any, *args: Any, **more: Any) -> Any:
            if name == "fsync":
                synced = Path(os.readlink(f"/proc/self/fd/{first}"))
                steps.append(f"fsync {kind(synced)}")
            else:
                steps.append(f"{name} {kind(Path(first))} {kind(Path(args[0]))}")
            return function(first, *args, **more)

        return call

    def kind(place: Path) -> str:
        marks = ".draft-", ".staged-", f".{os.getpid()}-"
        parts = place.relative_to(path.parent).parts
        return "/".join(next((m for m in marks if part.startswith(m)), part) for part in parts)

    if not os.path.exists("/proc/self/fd"):
        pytest.skip("names of open files are looked up in /proc")
    own = f".{os.getpid()}-"
    for name in ("fsync", "rename", "replace"):
        monkeypatch.setattr(os, name, noting(name, getattr(os, name)))
    save(path)
    assert steps == [
        f"fsync {own}/model.pt",
        f"fsync {own}/manifest.json",
        f"fsync {own}",
        f"rename {own} model",
        "fsync ",
    ]
    steps.clear()
    save(path, overwrite=True)
    assert steps == [
        "fsync model/.draft-/model.pt",
        "fsync model/.draft-/manifest.json",
        "fsync model/.draft-",
        "rename model/.draft- model/.staged-",
        "fsync model",
        "fsync model/.draft-",
        "replace model/.draft- model/manifest.json",
        "fsync model",
        "replace model/.staged-/model.pt model/model.pt",
        "fsync model",
    ]


def test_turns_are_taken_and_given_back(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    locks: list[int] = []
    flock = write.fcntl.flock

    def noting(descriptor: int, kind: int) -> None:
        locks.append(kind)
        flock(descriptor, kind)

    monkeypatch.setattr(write.fcntl, "flock", noting)
    descriptors = len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else None
    with write._lock(old) as is_ours:
        assert is_ours
        assert locks == [write.fcntl.LOCK_EX]
    assert locks == [write.fcntl.LOCK_EX, write.fcntl.LOCK_UN]
    assert descriptors in (None, len(os.listdir("/proc/self/fd")))


@pytest.mark.parametrize("kind", ["no locks here", "no locks at all"])
def test_without_locks_drafts_of_others_stay(
    old: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(kind)

    if kind == "no locks here":
        monkeypatch.setattr(write.fcntl, "flock", fail)
    else:
        monkeypatch.setattr(write, "fcntl", None)
    (old / DRAFT).mkdir()
    stage = stage_of(old, b"staged")
    save(old, overwrite=True)
    assert found(old) == {DRAFT: None, "model.pt": NEW}
    assert not stage.exists()
