"""What is beside a saved model: names, sizes and checksums, and files that are opened."""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
from typing import TYPE_CHECKING, Any

import pytest

from dra_scvi._folder import manifest
from dra_scvi._folder.manifest import (
    check_prefix,
    describe,
    describe_files,
    expected,
    open_file,
    read_manifest,
    stage_name,
)

if TYPE_CHECKING:
    from pathlib import Path

SUM = "0123456789abcdef" * 4
ENTRY = {"size": 0, "sha256": SUM}
SOUND = {"format": 1, "files": {"model.pt": ENTRY, "adata.h5ad": ENTRY}}


def write(folder: Path, content: Any, name: str = "manifest.json") -> None:
    (folder / name).write_bytes(
        content if isinstance(content, bytes) else json.dumps(content).encode()
    )


def test_names_are_those_of_scvi_tools_and_of_earlier_saves() -> None:
    names = manifest.MODEL, manifest.DATA, manifest.MANIFEST, manifest.STAGE, manifest.FORMAT
    assert names == ("model.pt", "adata.h5ad", "manifest.json", ".staged-", 1)


@pytest.mark.parametrize("prefix", ["", "a", "a_", "a.b", "é"])
def test_a_prefix(prefix: str) -> None:
    assert check_prefix(prefix) == prefix
    assert check_prefix(None) == ""


@pytest.mark.parametrize("prefix", ["a/", "/a", "../a", "./", ".", ".a", "a\\", "a\0", 3, b"a"])
def test_what_is_no_prefix(prefix: Any) -> None:
    with pytest.raises(ValueError, match=rf"^prefix={re.escape(repr(prefix))} must be the begin"):
        check_prefix(prefix)


def test_files_are_opened_and_nothing_else(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    (tmp_path / "file").write_bytes(b"a\r\nb")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    for name in ("file", "link"):
        with open_file(tmp_path / name) as content:
            assert content.read() == b"a\r\nb"
    with pytest.raises(FileNotFoundError):
        open_file(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="/file/none is no file.$"):
        open_file(tmp_path / "file" / "none")
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
    descriptors = len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else None
    for path in (tmp_path / "pipe", tmp_path / "socket", tmp_path):
        with pytest.raises(ValueError, match=f"^{path} is no file but a folder, a pipe or a de"):
            open_file(path)
    if descriptors is not None:
        assert len(os.listdir("/proc/self/fd")) == descriptors
    (tmp_path / "link").unlink()
    (tmp_path / "link").symlink_to(tmp_path / "link")
    with pytest.raises(OSError, match="symbolic links") as caught:
        open_file(tmp_path / "link")
    assert not isinstance(caught.value, FileNotFoundError)


def test_flags_that_a_system_does_not_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    flags: list[int] = []
    open_descriptor = os.open

    def noting(path: Any, given: int) -> int:
        flags.append(given)
        return open_descriptor(path, os.O_RDONLY)

    monkeypatch.setattr(os, "open", noting)
    monkeypatch.setattr(os, "O_NONBLOCK", 2**20)
    open_file(tmp_path / "file").close()
    monkeypatch.delattr(os, "O_NONBLOCK")  # as on Windows, which would change line ends
    monkeypatch.setattr(os, "O_BINARY", 2**21, raising=False)
    open_file(tmp_path / "file").close()
    assert flags == [os.O_RDONLY | 2**20, os.O_RDONLY | 2**21]


def test_a_file_is_described(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    found = describe(tmp_path / "file")
    assert found == {"size": 3, "sha256": hashlib.sha256(b"abc").hexdigest()}
    whole = describe_files({"a": found}, {"class": "DRA"})
    assert whole.keys() == {"format", "class", "versions", "files"}
    assert (whole["format"], whole["class"], whole["files"]) == (1, "DRA", {"a": found})
    assert set(manifest.PACKAGES) == whole["versions"].keys()


def test_a_manifest_is_read(tmp_path: Path) -> None:
    assert read_manifest(tmp_path, "") is None
    write(tmp_path, SOUND)
    assert read_manifest(tmp_path, "") == SOUND
    assert read_manifest(tmp_path, "a_") is None
    (tmp_path / "manifest.json").rename(tmp_path / "a_manifest.json")
    with pytest.raises(ValueError, match="a_manifest.json is corrupt or truncated.$"):
        read_manifest(tmp_path, "a_")
    assert expected(SOUND, "model.pt") is ENTRY
    assert expected(SOUND, "other") is None
    assert expected(None, "model.pt") is None
    assert stage_name({"files": {"a_model.pt": ENTRY}}, "a_") == ".staged-0123456789abcdef"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"3",
        b"\xff",
        {"files": SOUND["files"]},
        {"format": 1},
        {"format": 1.0, "files": SOUND["files"]},
        {"format": True, "files": SOUND["files"]},
        {"format": 1, "files": {"adata.h5ad": ENTRY}},
        {"format": 1, "files": ["model.pt"]},
        {"format": 1, "files": 3},
        *(
            {"format": 1, "files": {"model.pt": ENTRY, "more": entry}}
            for entry in (
                None,
                {"size": 1},
                {"sha256": SUM},
                {"size": "1", "sha256": SUM},
                {"size": True, "sha256": SUM},
                {"size": -1, "sha256": SUM},
                {"size": 1, "sha256": 7},
                {"size": 1, "sha256": SUM[:-1]},
                {"size": 1, "sha256": SUM + "0"},
                {"size": 1, "sha256": SUM.upper()},
                {"size": 1, "sha256": SUM[:-1] + "\n"},
            )
        ),
    ],
)
def test_a_damaged_manifest(tmp_path: Path, content: Any) -> None:
    write(tmp_path, content)
    words = f"^{tmp_path / 'manifest.json'} is corrupt or truncated.$"
    with pytest.raises(ValueError, match=words):
        read_manifest(tmp_path, "")


def test_a_manifest_of_a_later_version(tmp_path: Path) -> None:
    write(tmp_path, {**SOUND, "format": 2})
    with pytest.raises(ValueError, match="was written by a later version of dra_scvi; update"):
        read_manifest(tmp_path, "")


def test_a_manifest_without_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert manifest._MAX_SIZE == 2**26
    text = json.dumps(SOUND).encode()
    write(tmp_path, text)
    monkeypatch.setattr(manifest, "_MAX_SIZE", len(text) - 1)
    assert read_manifest(tmp_path, "") == SOUND
    monkeypatch.setattr(manifest, "_MAX_SIZE", len(text) - 2)
    with pytest.raises(ValueError, match="is corrupt or truncated"):
        read_manifest(tmp_path, "")
