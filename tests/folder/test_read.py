"""Saved models that are read: copied, compared with their manifest, checked for what they are."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest
import torch

from dra_scvi import UntrustedModelError
from dra_scvi._folder import read
from dra_scvi._folder.manifest import describe, stage_name
from dra_scvi._folder.read import checked_copy, legacy_copy, read_model, read_values

if TYPE_CHECKING:
    from collections.abc import Callable

GENES = np.array(["a", "b"])


def content(**changes: Any) -> dict[str, Any]:
    """Return a model with changes: of its parts, its attributes, its weights or its registry."""
    registry = {"setup_method_name": "setup_anndata", **changes.pop("registry", {})}
    attributes = {"registry_": registry, "init_params_": {}, **changes.pop("attributes", {})}
    weights = {"w": torch.ones(2), **changes.pop("weights", {})}
    whole = {"attr_dict": attributes, "model_state_dict": weights, "var_names": GENES, **changes}
    return {name: value for name, value in whole.items() if value is not None}


def save(folder: Path, model: Any, prefix: str = "", **files: bytes) -> Path:
    """Write a folder with a manifest that agrees."""
    folder.mkdir(exist_ok=True)
    torch.save(model, folder / f"{prefix}model.pt")
    for name, data in files.items():
        (folder / f"{prefix}{name}.h5ad").write_bytes(data)
    return agree(folder, prefix)


def agree(folder: Path, prefix: str = "") -> Path:
    names = [f.name for f in folder.iterdir() if f.suffix in (".pt", ".h5ad") and f.is_file()]
    files = {name: describe(folder / name) for name in names if name.startswith(prefix)}
    manifest = {"format": 1, "files": files}
    (folder / f"{prefix}manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save(tmp_path / "model", content())


def cells(file: Path) -> bytes:
    with h5py.File(file, "w") as made:
        made["x"] = np.arange(3)
    return file.read_bytes()


# -- copies -------------------------------------------------------------------------------------


def test_a_copy_is_private_and_goes(folder: Path) -> None:
    with checked_copy(str(folder)) as copy:
        assert copy != folder
        assert copy.name.startswith("dra_scvi-")
        assert [file.name for file in copy.iterdir()] == ["model.pt"]
        found = read_model(copy)
        assert found["var_names"].tolist() == ["a", "b"]
        assert torch.equal(found["model_state_dict"]["w"], torch.ones(2))
    assert not copy.exists()


def test_a_home_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    with checked_copy("~/model") as copy:
        assert read_model(copy)
    for path in ("~/none", "~/model/model.pt"):
        with (
            pytest.raises(FileNotFoundError, match=f"^{folder.parent / path[2:]} does not exist"),
            checked_copy(path),
        ):
            pass


def test_prefixes_are_models_of_their_own(folder: Path) -> None:
    save(folder, content(weights={"w": torch.zeros(2)}), "a_")
    for prefix, value in (("", 1), (None, 1), ("a_", 0)):
        with checked_copy(folder, prefix) as copy:
            assert read_model(copy, prefix)["model_state_dict"]["w"].tolist() == [value] * 2
    with pytest.raises(FileNotFoundError, match="holds no b_model.pt: it is not"):
        checked_copy(folder, "b_").__enter__()
    with pytest.raises(ValueError, match="without folders"):
        checked_copy(folder, "../").__enter__()
    with pytest.raises(ValueError, match="without folders"):
        read_model(folder, "../")


def test_cells_are_copied_where_they_are_asked_for(tmp_path: Path) -> None:
    data = cells(tmp_path / "cells")
    folder = save(tmp_path / "model", content(), adata=data)
    with checked_copy(folder) as copy:
        assert not (copy / "adata.h5ad").exists()
    for trusted in (True, False):
        with checked_copy(folder, with_data=True, trusted=trusted) as copy:
            assert (copy / "adata.h5ad").read_bytes() == data
    (folder / "adata.h5ad").unlink()
    with pytest.raises(FileNotFoundError, match="holds no adata.h5ad"):
        checked_copy(folder, with_data=True).__enter__()
    agree(folder)
    with checked_copy(folder, with_data=True) as copy:
        assert not (copy / "adata.h5ad").exists()
    (folder / "adata.h5ad").write_bytes(data)  # beside the manifest, by hand
    (folder / "manifest.json").unlink()
    with checked_copy(folder, with_data=True) as copy:
        assert (copy / "adata.h5ad").read_bytes() == data


def test_cells_that_lead_elsewhere(tmp_path: Path) -> None:
    cells(tmp_path / "cells")
    with h5py.File(tmp_path / "cells", "r+") as file:
        file["more"] = h5py.ExternalLink("secret.h5", "x")
    folder = save(tmp_path / "model", content(), adata=(tmp_path / "cells").read_bytes())
    shown = re.escape(str(folder / "adata.h5ad"))
    with pytest.raises(ValueError, match=rf"^{shown} is refused: .*[^.]\. If you know") as caught:
        checked_copy(folder, with_data=True).__enter__()
    assert "/dra_scvi-" not in str(caught.value)
    save(folder, content(), adata=b"text")
    with pytest.raises(ValueError, match=rf"^{shown} is refused: "):
        checked_copy(folder, with_data=True).__enter__()
    with checked_copy(folder, with_data=True, trusted=True) as copy:
        assert (copy / "adata.h5ad").read_bytes() == b"text"


def test_what_is_opened_holds_plain_values_alone(folder: Path) -> None:
    save(folder, content(attributes={"thing_": print}))
    with pytest.raises(UntrustedModelError, match=r"model/model.pt holds .*: builtins.print"):
        checked_copy(folder).__enter__()
    with checked_copy(folder, trusted=True) as copy:
        assert read_model(copy)["attr_dict"]["thing_"] is print
        assert (copy / "model.pt").read_bytes() == (folder / "model.pt").read_bytes()
    save(folder, content())
    with checked_copy(folder) as copy:  # it was written anew
        assert read_values(copy / "model.pt", copy).keys() == content().keys()


def test_a_file_that_is_not_the_one_of_the_manifest(folder: Path) -> None:
    size = (folder / "model.pt").stat().st_size
    with (folder / "model.pt").open("ab") as file:
        file.write(b"1")
    words = f"^{folder / 'model.pt'} is corrupt or truncated: .*now {size + 1} bytes, then {size})"
    with pytest.raises(ValueError, match=words.replace("(now", r"\(now").replace(")", r"\)")):
        checked_copy(folder, trusted=True).__enter__()


def test_a_file_is_taken_from_its_stage(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    stage = folder / stage_name(manifest, "")
    stage.mkdir()
    whole = (folder / "model.pt").read_bytes()
    (folder / "model.pt").rename(stage / "model.pt")
    for old in (None, b"old"):
        if old is not None:
            (folder / "model.pt").write_bytes(old)
        with checked_copy(folder, trusted=True) as copy:
            assert (copy / "model.pt").read_bytes() == whole


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    found: list[float] = []
    monkeypatch.setattr(read.time, "sleep", found.append)
    return found


def test_damage_is_told_after_three_looks(folder: Path, pauses: list[float]) -> None:
    (folder / "model.pt").write_bytes(b"damage")
    with pytest.raises(ValueError, match="is corrupt or truncated"):
        checked_copy(folder).__enter__()
    assert pauses == [0.01] * 2


def test_three_looks_in_a_row_tell_damage(
    folder: Path, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = json.loads((folder / "manifest.json").read_text())
    looks = iter("aaab" + "b" * 20)  # another manifest at the fourth look
    monkeypatch.setattr(read, "read_manifest", lambda *_: {**found, "look": next(looks)})
    (folder / "model.pt").write_bytes(b"damage")
    with pytest.raises(ValueError, match="is corrupt or truncated"):
        checked_copy(folder).__enter__()
    assert pauses == [0.01] * 4


def test_large_files_are_copied_piece_by_piece(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read, "_CHUNK", 100)
    with checked_copy(folder, trusted=True) as copy:
        assert (copy / "model.pt").read_bytes() == (folder / "model.pt").read_bytes()


def test_a_model_that_is_being_replaced_is_waited_for(
    folder: Path, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = (folder / "model.pt").read_bytes()
    text = json.loads((folder / "manifest.json").read_text())
    (folder / "model.pt").write_bytes(b"half")
    looks = [0]

    def changing(path: Path, prefix: str) -> Any:
        looks[0] += 1
        if looks[0] == 300:
            (folder / "model.pt").write_bytes(whole)
        return {**text, "look": looks[0] // 4}

    monkeypatch.setattr(read, "read_manifest", changing)
    with checked_copy(folder, trusted=True) as copy:
        assert (copy / "model.pt").read_bytes() == whole
    assert len(pauses) == 150
    (folder / "model.pt").write_bytes(b"half")
    looks[0] = 1_000
    pauses.clear()
    with pytest.raises(ValueError, match="is corrupt"):
        checked_copy(folder, trusted=True).__enter__()
    assert len(pauses) == 200


# -- values -------------------------------------------------------------------------------------


def values(tmp_path: Path, model: Any) -> Any:
    torch.save(model, tmp_path / "model.pt")
    return read_values(tmp_path / "model.pt", Path("shown"))


# what scvi-tools saves of a model that was set up with a data module
OF_DATA_MODULES = (
    "batch_labels label_keys n_batch n_extra_categorical_covs n_extra_continuous_covs n_labels "
    "n_sample n_vars"
)
ABSENT = {"pyro_param_store": {"params": {}}}


@pytest.mark.parametrize(
    "model",
    [
        content(),
        content(registry={"setup_method_name": "setup_datamodule"}),
        content(attributes={"registry_": {}}),
        content(attributes={"a_": 1, **dict.fromkeys(OF_DATA_MODULES.split(), 1)}),
        content(attributes={"get_normalized_function_name_": "get_normalized_expression"}),
        content(weights=ABSENT),
        content(var_names=GENES.astype(object)),
        content(var_names=np.array([], dtype=object)),
    ],
    ids=range(8),
)
def test_a_model(tmp_path: Path, model: dict[str, Any]) -> None:
    found = values(tmp_path, model)
    assert found["attr_dict"] == model["attr_dict"]
    assert found["model_state_dict"].keys() == {"w"}
    assert found["var_names"].dtype == model["var_names"].dtype


@pytest.mark.parametrize(
    "model",
    [
        [1],
        {},
        content(attr_dict=None),
        content(attr_dict=[1]),
        content(model_state_dict=None),
        content(model_state_dict=[1]),
        content(var_names=None),
        content(var_names=["a"]),
        content(var_names=np.array([["a"]])),
        content(var_names=np.array([1])),
        content(attributes={"registry_": None}),
        content(attributes={"init_params_": []}),
        content(weights={"w": 1}),
    ],
    ids=range(13),
)
def test_what_is_no_model(tmp_path: Path, model: Any) -> None:
    with pytest.raises(ValueError, match="^shown is not a model saved by scvi-tools.$"):
        values(tmp_path, model)


@pytest.mark.parametrize("name", ["_private_", "__class__", "train", "a b_", 3])
def test_attributes_that_no_model_has(tmp_path: Path, name: Any) -> None:
    words = f"^shown would change {name!r} of a model, .*trusted"
    with pytest.raises(UntrustedModelError, match=words):
        values(tmp_path, content(attributes={name: 1}))


def test_methods_that_no_model_calls(tmp_path: Path) -> None:
    with pytest.raises(UntrustedModelError, match="^shown would change 'save' of a model"):
        values(tmp_path, content(attributes={"get_normalized_function_name_": "save"}))
    with pytest.raises(ValueError, match="^shown is a model that is set up with 'save'; DRA"):
        values(tmp_path, content(registry={"setup_method_name": "save"}))


def test_weights_of_earlier_names_get_the_present_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(read, "with_present_names", seen.append)
    found = values(tmp_path, content())
    assert seen[0] is found["model_state_dict"]


def test_damage_is_told_by_the_name_that_is_shown(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"text")
    words = "^shown is corrupt or truncated .*, or not a model saved by scvi-tools.$"
    with pytest.raises(ValueError, match=words):
        read_values(tmp_path / "model.pt", Path("shown"))
    with pytest.raises(UntrustedModelError, match="^shown holds more .*: it would import") as e:
        values(tmp_path, content(attributes={"a_": [print, len]}))
    assert e.value.names == ("builtins.len", "builtins.print")
    assert ": builtins.len, builtins.print. Nothing of it was run. If you know" in str(e.value)
    torch.save(content(), tmp_path / "model.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(UntrustedModelError, match=r"before archives\. Nothing of it was run") as e:
        read_values(tmp_path / "model.pt", Path("shown"))
    assert e.value.names == ()


def fail_with(error: BaseException) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


def test_what_a_copy_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"attr_dict": {}, "model_state_dict": {}}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match="^model.pt is not a model saved by scvi-tools.$"):
        read_model(tmp_path)
    for broken in (b"text", None):
        if broken is None:
            torch.save([1], tmp_path / "model.pt")
        else:
            (tmp_path / "model.pt").write_bytes(broken)
        with pytest.raises(ValueError, match=r"^model.pt is corrupt or truncated \(\w+\).$"):
            read_model(tmp_path)
    for error in (ImportError, MemoryError):  # which are no damage
        monkeypatch.setattr(torch, "load", fail_with(error()))
        with pytest.raises(error):
            read_model(tmp_path)


# -- saves of scvi-tools before 0.15 ------------------------------------------------------------


def test_an_old_save(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2)}, tmp_path / "a_model_params.pt")
    (tmp_path / "a_var_names.csv").write_text("a\nb\n")
    (tmp_path / "a_attr.pkl").write_bytes(pickle.dumps({"x": 1}))
    with legacy_copy(tmp_path, "a_") as copy:
        names = sorted(file.name for file in copy.iterdir())
        assert names == ["a_attr.pkl", "a_model_params.pt", "a_var_names.csv"]
        assert torch.load(copy / "a_model_params.pt")["w"].tolist() == [1, 1]
        assert (copy / "a_var_names.csv").read_text() == "a\nb\n"
        assert pickle.loads((copy / "a_attr.pkl").read_bytes()) == {"x": 1}
    assert not copy.exists()
    for name, write in (
        ("a_attr.pkl", lambda path: path.write_bytes(pickle.dumps(print))),
        ("a_model_params.pt", lambda path: torch.save(print, path)),
    ):
        whole = (tmp_path / name).read_bytes()
        write(tmp_path / name)
        with pytest.raises(UntrustedModelError, match=f"^{tmp_path / name} holds more than the"):
            legacy_copy(tmp_path, "a_").__enter__()
        (tmp_path / name).write_bytes(whole)
    with pytest.raises(FileNotFoundError):
        legacy_copy(tmp_path).__enter__()
    with pytest.raises(FileNotFoundError, match="it should be the folder"):
        legacy_copy(tmp_path / "none").__enter__()
