"""The rooms of the package: nothing used from above or in a circle, nothing too large."""

from __future__ import annotations

import graphlib
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from types import ModuleType

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def rooms() -> ModuleType:
    spec = importlib.util.spec_from_file_location("rooms", ROOT / ".docs" / "rooms.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["rooms"] = module
    spec.loader.exec_module(module)
    return module


def test_every_file_is_in_a_room(rooms: ModuleType) -> None:
    known = {*rooms.ROOMS, "", "__main__"}
    assert {file.room for file in rooms.files()} == known


def test_no_room_uses_one_above_it(rooms: ModuleType) -> None:
    assert rooms.upward(rooms.files()) == []


def test_an_import_from_above_would_be_seen(rooms: ModuleType) -> None:
    file = rooms.File(rooms.PACKAGE / "_kernels" / "a.py", "", 1, frozenset({"cli._train"}))
    assert rooms.upward([file]) == ["_kernels.a uses cli._train"]


def test_no_files_use_each_other_in_a_circle(rooms: ModuleType) -> None:
    found = rooms.files()
    modules = {file.module for file in found} - {""}
    graph = {file.module: (file.uses & modules) - {file.module} for file in found}
    list(graphlib.TopologicalSorter(graph).static_order())  # raises for a circle


def test_every_file_says_in_a_sentence_what_it_owns(rooms: ModuleType) -> None:
    for file in rooms.files():
        assert file.sentence.endswith((".", "...")), file.module
        assert len(file.sentence) < 130, file.module


def test_classes_and_files_stay_small(rooms: ModuleType) -> None:
    found = rooms.files()
    large = {file.module: file.n_lines for file in found if file.n_lines > 400}
    assert large == {}
    assert {name: n for name, n in rooms.classes(found).items() if n > 300} == {}
