"""The rooms of the package: nothing used from above or in a circle, nothing too large."""

from __future__ import annotations

import ast
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


def test_what_files_use_of_each_other_is_public(rooms: ModuleType) -> None:
    private = []
    for file in rooms.files():
        tree = ast.parse(file.path.read_text())
        known = {module for module in file.uses if (ROOT / "dra_scvi" / _path(module)).exists()}
        shared = {module.rsplit(".")[-1] for module in known}
        private += [
            f"{file.module}: {name}"
            for name in file.uses - known
            if name.rsplit(".")[-1].startswith("_")
        ]
        private += [
            f"{file.module}: {node.value.id}.{node.attr}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id in shared
            and node.attr.startswith("_")
        ]
    # what is public in `tl` is for users
    assert [name for name in private if ": tl." not in name] == []


def _path(module: str) -> str:
    path = module.replace(".", "/")
    return path if (ROOT / "dra_scvi" / path).is_dir() else f"{path}.py"
