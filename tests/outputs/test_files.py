"""Outputs whole or not at all: what takes which place, and what is said where it cannot."""

from __future__ import annotations

import errno
import os
import re
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from dra_scvi._outputs.drafts import TakenError, name_draft
from dra_scvi._outputs.files import (
    append_line,
    atomic_folder,
    atomic_path,
    check_parent,
    write_h5ad,
    write_json,
    write_text,
)

if TYPE_CHECKING:
    from collections.abc import Callable

MISSING = "does not exist; create it first$"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "out.txt"


def full(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOSPC, "full")


def cells() -> AnnData:
    return AnnData(
        np.ones((2, 3), np.float32),
        obs=pd.DataFrame({"a": ["x", "x"]}, index=["1", "2"]),
        var=pd.DataFrame({"b": ["x", "x", "y"]}, index=list("abc")),
        uns={"k": 2},
        layers={"l": np.ones((2, 3))},
        obsm={"m": np.ones((2, 1))},
        varm={"n": np.ones((3, 1))},
        obsp={"o": np.ones((2, 2))},
        varp={"p": np.ones((3, 3))},
    )


WRITERS: dict[str, Callable[..., Any]] = {
    "text": lambda path, *replace: write_text("new", path, *replace),
    "json": lambda path, *replace: write_json({"a": 1}, path, *replace),
    "cells": lambda path, *replace: write_h5ad(cells(), path, *replace),
}


def test_a_place_is_looked_at_beforehand(path: Path) -> None:
    check_parent(path)
    for act in (check_parent, *WRITERS.values()):
        with pytest.raises(FileNotFoundError, match=f"the output folder .*none {MISSING}"):
            act(path.parent / "none" / "a")


@pytest.mark.parametrize("kind", WRITERS)
def test_every_writer_replaces_unless_it_may_not(path: Path, kind: str) -> None:
    WRITERS[kind](str(path))
    first = path.read_bytes()
    path.write_text("old")
    with pytest.raises(TakenError, match="is left as it is; the result of this one is in") as e:
        WRITERS[kind](path, False)
    assert path.read_text() == "old"
    assert e.value.kept == path.with_name("out.1.txt")
    assert e.value.kept.read_bytes() == first
    WRITERS[kind](path)
    assert path.read_bytes() == first
    assert sorted(os.listdir(path.parent)) == ["out.1.txt", "out.txt"]


def test_a_draft_of_what_is_private_is_so_at_once(path: Path) -> None:
    path.write_text("old")
    path.chmod(0o600)
    with atomic_path(str(path)) as draft:
        assert stat.S_IMODE(draft.stat().st_mode) == 0o600
        draft.write_text("new")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_text() == "new"
    path.unlink()
    with atomic_path(path) as draft:
        assert not draft.exists()
        draft.touch()


def test_a_link_is_written_through(path: Path) -> None:
    link = path.with_name("link")
    link.symlink_to(path)
    write_text("new", link)
    assert link.is_symlink()
    assert path.read_text() == "new"


def test_leavings_of_killed_processes_go(path: Path) -> None:
    left = name_draft(path)
    dead = left.with_name(left.name.replace(f".{os.getpid()}-", f".{2**22 + 1}-"))
    folder = path.with_name("folder")
    of_folder = dead.with_name(dead.name.replace("out.txt", "folder"))
    of_folder.mkdir()
    dead.touch()
    write_text("new", path)
    assert not dead.exists()
    with atomic_folder(folder):
        assert not of_folder.exists()


def test_all_is_on_disk_before_it_takes_its_place(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.write_text("old")
    flushed: list[str] = []

    def fsync(descriptor: int) -> None:
        assert path.read_text() == "old"
        flushed.append(os.pread(descriptor, 9, 0).decode())

    monkeypatch.setattr(os, "fsync", fsync)
    write_text("new", path)
    assert flushed == ["new"]
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=re.escape(f"No space left on device: '{path}'")) as caught:
        write_text("newer", path)
    assert isinstance(caught.value.__cause__, OSError)
    assert path.read_text() == "new"
    assert os.listdir(path.parent) == ["out.txt"]


def test_other_errors_come_out_as_they_are(path: Path) -> None:
    error = ZeroDivisionError("own")
    with pytest.raises(ZeroDivisionError) as caught, atomic_path(path):
        raise error
    assert caught.value is error


# -- folders -------------------------------------------------------------------------------------


def fill(folder: Path, **options: Any) -> None:
    with atomic_folder(folder, **options) as draft:
        for name in "ab":
            (draft / name).write_text("new")


def test_a_folder_takes_its_place(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    fill(folder, replace=False)
    assert sorted(os.listdir(folder)) == ["a", "b"]
    (folder / "a").write_text("old")
    (folder / "c").touch()
    fill(folder)
    assert (folder / "a").read_text() == "new"
    assert sorted(os.listdir(folder)) == ["a", "b", "c"]
    kept = tmp_path / "folder.1"
    with pytest.raises(TakenError, match="is left as it is") as caught:
        fill(folder, replace=False)
    assert caught.value.kept == kept
    assert sorted(os.listdir(kept)) == ["a", "b"]
    (tmp_path / "empty").mkdir()
    fill(tmp_path / "empty", replace=False)
    assert sorted(os.listdir(tmp_path / "empty")) == ["a", "b"]
    (tmp_path / "file").write_text("old")
    with pytest.raises(TakenError):
        fill(tmp_path / "file", replace=False)
    assert (tmp_path / "file").read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["empty", "file", "file.1", "folder", "folder.1"]


def test_a_folder_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    fill(tmp_path / "link")
    assert sorted(os.listdir(tmp_path / "folder")) == ["a", "b"]
    assert (tmp_path / "link").is_symlink()
    with pytest.raises(FileNotFoundError, match=MISSING):
        fill(tmp_path / "none" / "folder")


def test_errors_of_the_system_name_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "folder"

    def write(draft_name: bool) -> None:
        with atomic_folder(folder) as draft:
            place = str(draft / "a") if draft_name else "elsewhere"
            raise OSError(errno.ENOSPC, "full", place)

    with pytest.raises(OSError, match=re.escape(f"full: '{folder}/a'")) as caught:
        write(True)
    assert caught.value.errno == errno.ENOSPC
    with pytest.raises(OSError, match="full: 'elsewhere'"):
        write(False)
    with pytest.raises(OSError, match="nameless"), atomic_folder(folder):
        raise OSError("nameless")
    assert os.listdir(tmp_path) == []
    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(OSError, match="full") as caught:
        fill(folder)
    assert not isinstance(caught.value, TakenError)
    assert os.listdir(tmp_path) == []


# -- content -------------------------------------------------------------------------------------


def test_all_of_an_anndata_is_written(path: Path) -> None:
    adata = cells()
    adata.raw = adata.copy()
    write_h5ad(adata, path)
    found = anndata.io.read_h5ad(path)
    assert found.raw is not None
    np.testing.assert_array_equal(found.X, adata.X)
    for name, key in (("obsm", "m"), ("varm", "n"), ("obsp", "o"), ("varp", "p"), ("layers", "l")):
        np.testing.assert_array_equal(getattr(found, name)[key], getattr(adata, name)[key])
    assert found.uns == {"k": 2}
    for frame in (found.obs, found.var, found.raw.var):
        assert isinstance(frame.iloc[:, 0].dtype, pd.CategoricalDtype)
    assert not isinstance(adata.obs["a"].dtype, pd.CategoricalDtype)
    with h5py.File(path) as file:
        assert dict(file.attrs) == {"encoding-type": "anndata", "encoding-version": "0.1.0"}
        parts = {"X", "raw", "obs", "var", "uns", "obsm", "varm", "obsp", "varp", "layers"}
        assert set(file) == parts
    write_h5ad(AnnData(obs=pd.DataFrame(index=["1"]), var=pd.DataFrame(index=["a"])), path)
    with h5py.File(path) as file:
        assert not {"X", "raw"} & set(file)


def test_json_is_sorted_and_plain(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    payload = {"b": np.float64(0.5), "a": [np.int64(2), np.arange(2)], "é": Path("p")}
    text = '{\n  "a": [\n    2,\n    [\n      0,\n      1\n    ]\n  ],\n  "b": 0.5,\n'
    write_json(payload, path)
    assert path.read_text() == text + '  "\\u00e9": "p"\n}\n'
    write_json({}, "-")
    write_json({}, Path("-"))
    assert capsys.readouterr().out == "{}\n{}\n"
    for value in (float("nan"), np.float32("inf")):
        with pytest.raises(ValueError, match="JSON"):
            write_json({"a": value}, "-")
    with pytest.raises(TypeError, match=r"^set has no counterpart in JSON: \{1\}$"):
        write_json({1}, "-")


def test_standard_output_is_flushed(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    class Stream:
        def write(self, text: str) -> None:
            done.append(text)

        def flush(self) -> None:
            done.append("flushed")

    monkeypatch.setattr(sys, "stdout", Stream())
    write_json([], "-")
    assert done == ["[]\n", "flushed"]


def test_text_and_lines_are_utf8_with_their_own_line_ends(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[dict[str, Any]] = []
    open_path = Path.open

    def noting(self: Path, mode: str = "r", *args: Any, **options: Any) -> Any:
        if "b" not in mode:
            opened.append({"mode": mode, **options})
        return open_path(self, mode, *args, **options)

    monkeypatch.setattr(Path, "open", noting)
    append_line(str(path), "é")
    append_line(path, "b")
    assert path.read_bytes() == "é\nb\n".encode()
    assert opened == [{"mode": "a", "encoding": "utf-8", "newline": "\n"}] * 2
    monkeypatch.undo()
    told: list[dict[str, Any]] = []
    write = Path.write_text

    def noting_text(self: Path, text: str, **options: Any) -> int:
        told.append(options)
        return write(self, text, **options)

    monkeypatch.setattr(Path, "write_text", noting_text)
    write_text("é\r\n", path)
    assert path.read_bytes() == "é\r\n".encode()
    assert told == [{"encoding": "utf-8", "newline": "\n"}]


# -- the same bytes, nothing changed --------------------------------------------------------------


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_atomic_path_failure_keeps_the_old_file(
    tmp_path: Path, error: type[BaseException]
) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")

    def write_half() -> None:
        with atomic_path(target) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        write_half()
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_atomic_path_nothing_written(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "a.txt"):
        pass
    assert os.listdir(tmp_path) == []


def test_write_h5ad_same_content_same_bytes(tmp_path: Path) -> None:
    adata = cells()
    write_h5ad(adata, tmp_path / "a.h5ad")
    write_h5ad(adata.copy(), tmp_path / "b.h5ad")
    first = (tmp_path / "a.h5ad").read_bytes()
    assert first == (tmp_path / "b.h5ad").read_bytes()
    adata.obsm["m"][0, 0] += 1
    write_h5ad(adata, tmp_path / "b.h5ad")
    assert first != (tmp_path / "b.h5ad").read_bytes()


def test_write_h5ad_object_is_not_changed(tmp_path: Path) -> None:
    adata = cells()
    before = adata.obs.dtypes.to_dict()
    write_h5ad(adata, tmp_path / "a.h5ad")
    assert adata.obs.dtypes.to_dict() == before
    assert adata.filename is None


def test_write_h5ad_view_and_backed(tmp_path: Path) -> None:
    write_h5ad(cells()[1:], tmp_path / "view.h5ad")
    backed = anndata.read_h5ad(tmp_path / "view.h5ad", backed="r")
    write_h5ad(backed, tmp_path / "copy.h5ad")
    assert Path(backed.filename) == tmp_path / "view.h5ad"
    backed.file.close()
    read = anndata.read_h5ad(tmp_path / "copy.h5ad")
    assert list(read.obs_names) == ["2"]


def test_write_h5ad_failure_keeps_the_old_file(tmp_path: Path) -> None:
    adata = cells()
    write_h5ad(adata, tmp_path / "a.h5ad")
    before = (tmp_path / "a.h5ad").read_bytes()
    adata.uns["bad"] = object()
    with pytest.raises(Exception, match="object"):
        write_h5ad(adata, tmp_path / "a.h5ad")
    assert (tmp_path / "a.h5ad").read_bytes() == before
    assert os.listdir(tmp_path) == ["a.h5ad"]
