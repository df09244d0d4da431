"""The file of a checkpoint: its bytes, what comes back from them, and what is refused."""

from __future__ import annotations

import hashlib
import json
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from dra_scvi._training.checkpoint import (
    CheckpointFile,
    PlainCheckpoints,
    is_checkpoint,
    read_checkpoint,
    read_content,
    with_plain_checkpoints,
    write_checkpoint,
)
from tests.training.test_checkpoint_check import CONTENT

if TYPE_CHECKING:
    from pathlib import Path

REMEDY = "delete it to start from the beginning."


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.ckpt"


def forge(path: Path, content: Any, values: bytes = b"") -> None:
    """Write a checkpoint as its format says, by other code than ours."""
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    body = b"dra_scvi checkpoint 2\n" + len(text).to_bytes(8, "little") + text + values
    path.write_bytes(body + hashlib.sha256(body).digest())


def test_the_bytes_are_those_that_the_format_says(path: Path) -> None:
    first, second = torch.arange(6, dtype=torch.int16), torch.ones(2, dtype=torch.bfloat16)
    written = {"a": [1, None, True, 0.5, "é"], 2: (first.reshape(2, 3), torch.empty(0, 3), second)}
    write_checkpoint(written, path)
    tensors = [["torch.int16", [2, 3]], ["torch.float32", [0, 3]], ["torch.bfloat16", [2]]]
    items = [
        ["a", [1, None, True, 0.5, "é"]],
        [2, {"tuple": [{"tensor": tensor} for tensor in tensors]}],
    ]
    values = first.numpy().tobytes() + second.view(torch.uint8).numpy().tobytes()
    found = path.read_bytes()
    forge(path, {"dict": items}, values)
    assert path.read_bytes() == found
    back = read_content(path)
    assert back["a"] == written["a"]
    assert [tensor.tolist() for tensor in back[2]] == [[[0, 1, 2], [3, 4, 5]], [], [1.0, 1.0]]
    assert [tensor.dtype for tensor in back[2]] == [torch.int16, torch.float32, torch.bfloat16]
    assert back[2][1].shape == (0, 3)


def test_numbers_of_numpy_and_tensors_in_any_order_of_memory(path: Path) -> None:
    weight = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3).T)
    write_checkpoint({"n": np.float64(0.5), "is": np.bool_(True), "w": weight}, path)
    found = read_content(path)
    assert (found["n"], found["is"]) == (0.5, True)
    assert torch.equal(found["w"], weight.detach())
    found["w"][0, 0] = 7  # it is nobody else's


@pytest.mark.parametrize("value", [{1, 2}, object(), b"bytes", np.ones(2)])
def test_what_is_not_plain_is_not_written(path: Path, value: Any) -> None:
    kind = type(value).__name__
    with pytest.raises(TypeError, match=f"^a {kind} cannot be kept in a checkpoint$"):
        write_checkpoint({"a": [value]}, path)
    assert not path.exists()


@pytest.mark.parametrize(
    ("content", "values"),
    [
        ({"tensor": ["torch.float32", [2]]}, b"1234"),
        # over which torch may crash
        ({"tensor": ["torch.qint8", [4]]}, b"1234"),
        ({"tensor": ["torch.bits8", [4]]}, b"1234"),
        ({"tensor": ["float32", [1]]}, b"1234"),
        ({"tensor": ["torch.float32", [1]], "more": 1}, b"1234"),
        ({"set": [1]}, b""),
        (b"{", b""),
    ],
)
def test_what_the_format_does_not_have(path: Path, content: Any, values: bytes) -> None:
    forge(path, content, values)
    words = rf"^{re.escape(str(path))} does not hold the state of a training \(.+\); {REMEDY}"
    with pytest.raises(ValueError, match=words):
        read_content(path)


def test_what_is_wrong_is_said_once(path: Path) -> None:
    with pytest.raises(ValueError, match=f"^{path} is not a file, and so no checkpoint.$"):
        read_checkpoint(path)
    path.write_bytes(b"text")
    with pytest.raises(ValueError, match=rf"^{path} is corrupt or truncated, or no .*; {REMEDY}$"):
        read_checkpoint(path)
    forge(path, {"dict": []})
    with pytest.raises(ValueError, match=r"^.* the state of a training \(its identity is miss"):
        read_checkpoint(path)


def test_damage_anywhere(path: Path) -> None:
    write_checkpoint(CONTENT, path)
    whole = path.read_bytes()
    assert read_checkpoint(path).keys() == CONTENT.keys()
    for place in (0, 20, 22, 29, 30, len(whole) // 2, len(whole) - 33, len(whole) - 32, -1):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        for content in (damaged, whole[:place]):
            path.write_bytes(content)
            with pytest.raises(ValueError, match="is corrupt or truncated"):
                read_content(path)
    # with a right checksum, but of another version
    body = whole[:-32].replace(b"checkpoint 2", b"checkpoint 1", 1)
    path.write_bytes(body + hashlib.sha256(body).digest())
    with pytest.raises(ValueError, match="no checkpoint of this version"):
        read_content(path)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", True),
        (b"dra_scvi checkpoint 2\n...", True),
        (b"dra_scvi checkpoint 1\n", True),
        (b"dra_scvi checkpoint", True),
        (b"dra_scvi checkpoin", False),
        (b"\ndra_scvi checkpoint", False),
        (b"PK", False),
    ],
)
def test_what_may_be_replaced(path: Path, content: bytes, expected: bool) -> None:
    path.write_bytes(content)
    assert is_checkpoint(path) is expected


# -- as Lightning uses it -----------------------------------------------------------------------


def test_a_state_that_was_kept_comes_back(path: Path) -> None:
    file = CheckpointFile(str(path))
    assert (file.path, file.identity, file.form) == (path, {}, {})
    file.identity = CONTENT["identity"]
    rest = {name: value for name, value in CONTENT.items() if name != "identity"}
    file.save_checkpoint(rest, str(path))
    assert read_checkpoint(path)["identity"] == CONTENT["identity"]
    assert file.problem is None
    other = CheckpointFile(path)
    other.identity = CONTENT["identity"]
    other.form = {"state_dict": {"w": torch.zeros(2)}}
    assert not other.is_restoring
    assert other.load_checkpoint(path).keys() == rest.keys()
    assert other.is_restoring


def test_a_state_of_another_form_or_training(path: Path) -> None:
    write_checkpoint(CONTENT, path)
    file = CheckpointFile(path)
    file.identity = {**CONTENT["identity"], "settings": {"seed": 1}}
    with pytest.raises(ValueError, match="is of another training"):
        file.load_checkpoint(path)
    file.identity = CONTENT["identity"]
    file.form = {"state_dict": {"w": torch.zeros(3)}}
    with pytest.raises(ValueError, match=rf"training \(its state_dict: w is no .*\); {REMEDY}$"):
        file.load_checkpoint(path)
    assert not file.is_restoring


def test_a_problem_is_noted_until_it_is_gone(path: Path) -> None:
    file = CheckpointFile(path)
    file.save_checkpoint({"a": {1}}, path)
    assert isinstance(file.problem, TypeError)
    file.save_checkpoint({"a": 1}, path)
    assert file.problem is None
    path.unlink()
    path.mkdir()
    file.save_checkpoint({"a": 1}, path)
    assert isinstance(file.problem, OSError)


def test_a_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert CheckpointFile("~/a").path == tmp_path / "a"


class Foreign:
    """What is no plain data."""


def test_files_at_other_places_are_those_of_lightning(path: Path, tmp_path: Path) -> None:
    file, other = CheckpointFile(path), tmp_path / "other.ckpt"
    file.save_checkpoint({"a": torch.ones(2)}, other)
    assert torch.equal(torch.load(other, weights_only=True)["a"], torch.ones(2))
    with pytest.raises(TypeError, match="storage_options"):
        file.save_checkpoint({}, other, storage_options={})
    for plugin in (file, PlainCheckpoints()):
        assert plugin.load_checkpoint(other)["a"].device.type == "cpu"
        assert plugin.load_checkpoint(other, "meta")["a"].device.type == "meta"
        assert plugin.load_checkpoint(other, map_location="meta")["a"].device.type == "meta"
    torch.save(Foreign(), other)
    for plugin in (file, PlainCheckpoints()):
        with pytest.raises(Exception, match="Weights only load failed"):
            plugin.load_checkpoint(other, weights_only=False)
    assert not file.is_restoring


def test_an_error_names_the_file_while_a_state_is_taken_over(path: Path) -> None:
    file = CheckpointFile(path)
    with pytest.raises(KeyError, match="^'name'$"), file.naming_itself():
        raise KeyError("name")
    file.is_restoring = True
    words = rf"^{re.escape(str(path))} does not .* \(KeyError: 'name'\); {REMEDY}$"
    with pytest.raises(ValueError, match=words), file.naming_itself():
        raise KeyError("name")
    with pytest.raises(ValueError, match=r"\(MemoryError:\)"), file.naming_itself():
        raise MemoryError


def test_an_error_without_a_word_is_told_by_its_kind(path: Path, monkeypatch: Any) -> None:
    def fail(_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("dra_scvi._training.checkpoint.check_content", fail)
    forge(path, {"dict": []})
    with pytest.raises(ValueError, match=r"\(MemoryError\)"):
        read_checkpoint(path)


def test_plugins_get_a_reader_unless_they_have_one() -> None:
    own, more = TorchCheckpointIO(), object()
    for given in (None, [], ()):
        (added,) = with_plain_checkpoints(given)
        assert isinstance(added, PlainCheckpoints)
    for given in (more, [more], (more,)):
        first, added = with_plain_checkpoints(given)
        assert first is more
        assert isinstance(added, PlainCheckpoints)
    assert with_plain_checkpoints(own) == [own]
    assert with_plain_checkpoints((more, own)) == [more, own]
