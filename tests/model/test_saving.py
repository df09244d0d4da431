"""Saved models: what is in the folder, who can read it, and what happens at every wrong moment."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import shutil
import warnings
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from huggingface_hub import ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st
from scvi.hub import HubMetadata, HubModel
from scvi.model import SCVI
from scvi.model.base import BaseModelClass

from dra_scvi import (
    DRA,
    GeneMismatchError,
    PublishedDRA,
    UntrustedModelError,
    datasets,
    presets,
)
from dra_scvi._folder import write
from dra_scvi._folder.manifest import describe
from dra_scvi._folder.read import checked_copy, read_model
from dra_scvi._folder.write import atomic_save
from dra_scvi._model.saving import in_gene_order
from tests.helpers import QUIET

if TYPE_CHECKING:
    from collections.abc import Callable

    from anndata import AnnData

GENES = [f"gene_{i}" for i in range(12)]


def cells() -> AnnData:
    return datasets.synthetic(n_cells=60, n_genes=12, n_types=2, n_batches=2)


def fit(adata: AnnData, cls: type[DRA] = DRA, **setup: Any) -> DRA:
    cls.setup_anndata(adata, **{"batch_key": "batch", **setup})
    options = {"n_hidden": 16, "n_latent": 4} if cls is DRA else {"n_latent": 2}
    model = cls(adata, **options)
    model.train(max_epochs=1, batch_size=30, **QUIET)
    return model


@pytest.fixture(scope="module")
def model() -> DRA:
    return fit(cells())


@pytest.fixture(scope="module")
def other() -> DRA:
    return fit(cells())


@pytest.fixture
def folder(model: DRA, tmp_path: Path) -> Path:
    model.save(tmp_path / "model")
    return tmp_path / "model"


def is_same(one: DRA, other: DRA) -> bool:
    states = (one.module.state_dict().values(), other.module.state_dict().values())
    return all(torch.equal(a, b) for a, b in zip(*states, strict=True))


def load(folder: Path, **options: Any) -> DRA:
    return DRA.load(folder, **{"adata": cells(), "accelerator": "cpu", **options})


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_folder_that_exists_is_kept_unless_asked(folder: Path, other: DRA) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(FileExistsError):
        other.save(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_arguments_by_position_reach_scvi_tools(folder: Path) -> None:
    assert list(DRA.prepare_query_anndata(cells(), str(folder), True)) == GENES


# -- what is in the folder ---------------------------------------------------------------------


def test_the_manifest_says_what_was_saved_in_what_order_with_which_versions(folder: Path) -> None:
    assert names(folder) == {"model.pt", "manifest.json"}
    manifest = json.loads((folder / "manifest.json").read_text())
    content = (folder / "model.pt").read_bytes()
    assert manifest["files"] == {
        "model.pt": {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    }
    assert (manifest["format"], manifest["class"], manifest["genes"]) == (1, "DRA", GENES)
    assert {"dra_scvi", "scvi-tools", "torch"} <= manifest["versions"].keys()


def test_two_prefixes_and_files_of_others_share_a_folder(
    model: DRA, other: DRA, tmp_path: Path
) -> None:
    folder = tmp_path / "new" / "folder"
    model.save(folder, prefix="one_")
    (folder / "README.md").write_text("mine")
    (folder / "sub").mkdir()
    (folder / "sub" / "file").write_text("mine too")
    for prefix in ("two_", "two_"):
        other.save(folder, prefix=prefix, overwrite=True)
    assert is_same(load(folder, prefix="one_"), model)
    assert is_same(load(folder, prefix="two_"), other)
    assert DRA.load_registry(folder, prefix="two_").keys() == other.registry.keys()
    assert (folder / "README.md").read_text() == "mine"
    assert (folder / "sub" / "file").read_text() == "mine too"
    saved = {f"{prefix}_{name}" for prefix in ("one", "two") for name in _SAVED}
    assert names(folder) == {"README.md", "sub", *saved}
    with pytest.raises(FileNotFoundError, match=r"holds no model\.pt"):
        load(folder)


_SAVED = ("model.pt", "manifest.json")


def test_cells_saved_with_a_model_are_checked_and_stay_when_it_is_overwritten(
    model: DRA, other: DRA, folder: Path
) -> None:
    with pytest.warns(UserWarning, match="contains no saved anndata"):
        assert load(folder, adata=None).adata is None
    model.save(folder, overwrite=True, save_anndata=True)
    np.testing.assert_array_equal(
        load(folder, adata=None).get_latent_representation(), model.get_latent_representation()
    )
    other.save(folder, overwrite=True)
    assert is_same(load(folder, adata=None), other)
    with (folder / "adata.h5ad").open("r+b") as file:
        file.seek(5000)
        file.write(b"damage")
    with pytest.raises(ValueError, match=r"adata\.h5ad is corrupt or truncated"):
        load(folder, adata=None)
    assert is_same(load(folder), other)
    (folder / "adata.h5ad").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no adata\.h5ad"):
        load(folder, adata=None)


def test_cells_written_into_the_folder_by_hand_are_found(model: DRA, folder: Path) -> None:
    cells().write_h5ad(folder / "adata.h5ad")
    assert is_same(load(folder, adata=None), model)


def test_the_published_model_is_saved_and_loaded(tmp_path: Path) -> None:
    adata = cells()
    PublishedDRA.setup_anndata(adata)
    model = PublishedDRA(adata, n_latent=10)
    settings = presets.published(10).train | {"max_epochs": 1, "batch_size": 16}
    model.train(**settings, **QUIET)
    model.save(tmp_path / "model")
    loaded = PublishedDRA.load(tmp_path / "model", adata=cells(), accelerator="cpu")
    assert is_same(loaded, model)
    with pytest.raises(ValueError, match="different class"):
        load(tmp_path / "model")


# -- who can read it ---------------------------------------------------------------------------


def test_a_save_is_one_of_scvi_tools(model: DRA, folder: Path) -> None:
    for cls in (SCVI, DRA):
        found = cls.load_registry(str(folder))
        assert found["_scvi_uuid"] == model.registry["_scvi_uuid"]
    plain = BaseModelClass.load.__func__
    assert is_same(plain(DRA, str(folder), adata=cells(), accelerator="cpu"), model)
    content = torch.load(folder / "model.pt", weights_only=False)
    assert set(content) == {"model_state_dict", "var_names", "attr_dict"}


def test_scvi_hub_loads_it(model: DRA, folder: Path) -> None:
    model.save(folder, overwrite=True, save_anndata=True)
    metadata = HubMetadata(
        scvi_version="1.4",
        anndata_version="0.12",
        model_cls_name="DRA",
        model_parent_module="dra_scvi",
    )
    card = ModelCard("---\nlicense: cc-by-4.0\n---\nA model.")
    hub = HubModel(str(folder), metadata=metadata, model_card=card)
    hub.save(overwrite=True)
    hub.load_model(accelerator="cpu")
    assert is_same(hub.model, model)
    model.save(folder, overwrite=True)
    assert is_same(HubModel(str(folder)).model, model)


def test_a_save_of_plain_scvi_tools_is_read(model: DRA, tmp_path: Path) -> None:
    BaseModelClass.save(model, str(tmp_path / "model"))
    assert names(tmp_path / "model") == {"model.pt"}
    assert is_same(load(tmp_path / "model"), model)
    whole = (tmp_path / "model" / "model.pt").read_bytes()
    for share in (0.1, 0.5, 0.9, 0.999):
        (tmp_path / "model" / "model.pt").write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(ValueError, match="corrupt or truncated"):
            load(tmp_path / "model")
    model.save(tmp_path / "model", overwrite=True)
    assert names(tmp_path / "model") == {"model.pt", "manifest.json"}


def test_a_reference_is_read_from_its_folder(model: DRA, folder: Path) -> None:
    query = cells()[:, ::-1].copy()
    for reference in (folder, str(folder), model):
        prepared = DRA.prepare_query_anndata(query.copy(), reference, inplace=False)
        assert list(prepared.var_names) == GENES
        mapped = DRA.load_query_data(prepared, reference, accelerator="cpu")
        assert mapped.module.n_batch == model.module.n_batch


def test_a_path_may_be_a_link(model: DRA, other: DRA, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    other.save(tmp_path / "link", overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert is_same(load(folder), other)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b'{"format": 1}', b'{"format": "x", "files": {"model.pt": {}}}', b"\xff"],
)
def test_a_damaged_manifest_is_told(folder: Path, content: bytes) -> None:
    (folder / "manifest.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"manifest\.json is corrupt or truncated"):
        load(folder)


def test_a_damaged_model_can_be_overwritten(model: DRA, folder: Path) -> None:
    for name in ("manifest.json", "model.pt"):
        (folder / name).write_bytes(b"damaged")
        model.save(folder, overwrite=True)
        assert is_same(load(folder), model)


def test_a_later_format_asks_for_an_update(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "format": 2}))
    with pytest.raises(ValueError, match="later version of dra_scvi"):
        load(folder)


# -- foreign code ------------------------------------------------------------------------------


class Call:
    """What is pickled as the call of a function."""

    def __init__(self, function: Callable, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> tuple[Callable, tuple[Any, ...]]:
        return self.call


def hidden(folder: Path, thing: Any, **options: Any) -> None:
    """Hide something in a model, with a manifest that agrees."""
    content = torch.load(folder / "model.pt", weights_only=False)
    content["attr_dict"]["hidden_"] = thing
    torch.save(content, folder / "model.pt", **options)
    agree(folder)


def agree(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["model.pt"] = describe(folder / "model.pt")
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_foreign_code_is_refused_however_it_is_called(folder: Path, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    whole = (folder / "model.pt").read_bytes()
    for thing in (
        Call(os.system, f"touch {mark}"),
        Call(eval, f"open({str(mark)!r}, 'w')"),
        Call(Path.touch, mark),
        Call(getattr, mark, "touch"),
        [{"deep": (Call(os.mkdir, str(mark)),)}],
        np.array([Call(os.mkdir, str(mark))], dtype=object),
        pd.DataFrame({"a": [Call(os.mkdir, str(mark))]}),
    ):
        for options in (
            {},
            {"pickle_protocol": 4},
            {"_use_new_zipfile_serialization": False},
        ):
            (folder / "model.pt").write_bytes(whole)
            hidden(folder, thing, **options)
            with pytest.raises(UntrustedModelError, match="trusted=True"):
                load(folder)
            assert not mark.exists()


def test_what_a_file_would_import_is_listed(folder: Path) -> None:
    hidden(folder, [Call(os.system, "true"), Call(eval, "1")])
    with pytest.raises(UntrustedModelError, match="builtins.eval, posix.system") as caught:
        load(folder)
    assert caught.value.names == ("builtins.eval", "posix.system")
    assert is_same(load(folder, trusted=True), load(folder, trusted=True))


def test_other_kinds_of_files_are_refused(folder: Path) -> None:
    script = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), script)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("data.pkl", pickle.dumps(Call(os.system, "true")))
    for content in (script.getvalue(), archive.getvalue(), b"text", pickle.dumps({})):
        (folder / "model.pt").write_bytes(content)
        agree(folder)
        with pytest.raises(ValueError, match=r"model\.pt is (corrupt|not a model)"):
            load(folder)


def test_other_content_is_refused(folder: Path) -> None:
    for content in ({"weights": 1}, [1], {}):
        torch.save(content, folder / "model.pt")
        agree(folder)
        with pytest.raises(ValueError, match=r"model\.pt is (corrupt|not a model)"):
            load(folder)


@pytest.mark.parametrize(
    "setup",
    [
        {"batch_key": "text", "categorical_covariate_keys": ["number", "truth"]},
        {"batch_key": "number", "continuous_covariate_keys": ["real"]},
        {"batch_key": "truth", "labels_key": "text", "size_factor_key": "real"},
        {"batch_key": "category", "labels_key": "string"},
    ],
)
def test_what_models_themselves_hold_is_known(setup: dict[str, Any], tmp_path: Path) -> None:
    adata = cells()
    codes = np.arange(60) % 3
    adata.obs["text"] = np.array(list("abc"))[codes]
    adata.obs["string"] = pd.array(adata.obs["text"], dtype="string")
    adata.obs["number"], adata.obs["truth"] = codes, codes == 0
    adata.obs["category"] = pd.Categorical(codes.astype("int32"))
    adata.obs["real"] = np.linspace(1, 2, 60)
    model = fit(adata.copy(), **setup)
    model.save(tmp_path / "model")
    assert is_same(load(tmp_path / "model", adata=adata), model)


# -- genes -------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(order=st.permutations(GENES), kept=st.integers(0, 12), extra=st.booleans())
def test_genes_are_put_in_order_or_refused(order: list[str], kept: int, extra: bool) -> None:
    given_names = order[:kept] + (["extra"] if extra else [])
    adata = anndata.AnnData(
        np.arange(len(given_names), dtype=np.float32)[None].repeat(2, 0),
        var=pd.DataFrame(index=pd.Index(given_names, dtype=object)),
    )
    if kept < 12 or extra:
        with pytest.raises(GeneMismatchError) as caught:
            in_gene_order(adata, GENES)
        assert set(caught.value.missing) == set(order[kept:])
        assert caught.value.unknown == (("extra",) if extra else ())
        return
    found = in_gene_order(adata, GENES)
    assert list(found.var_names) == GENES
    assert found.X[0].tolist() == [order.index(gene) for gene in GENES]
    assert list(adata.var_names) == order
    assert (found is adata) == (order == GENES)


def test_genes_of_a_backed_file_are_put_in_order(model: DRA, folder: Path, tmp_path: Path) -> None:
    cells()[:, ::-1].copy().write_h5ad(tmp_path / "cells.h5ad")
    backed = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    found = load(folder, adata=backed).get_latent_representation()
    backed.file.close()
    np.testing.assert_array_equal(found, model.get_latent_representation())


# -- wrong moments -----------------------------------------------------------------------------


def save_half(path: Path) -> None:
    with atomic_save(path, overwrite=True) as draft:
        (draft / "model.pt").write_text("half")
        raise RuntimeError("failed")


def test_a_failed_block_leaves_nothing(tmp_path: Path) -> None:
    for path in (tmp_path / "new", tmp_path / "old"):
        if path.name == "old":
            path.mkdir()
            (path / "model.pt").write_text("old")
        with pytest.raises(RuntimeError, match="failed"):
            save_half(path)
    assert names(tmp_path) == {"old"}
    assert names(tmp_path / "old") == {"model.pt"}
    assert (tmp_path / "old" / "model.pt").read_text() == "old"


def test_a_file_is_no_folder(model: DRA, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileExistsError, match="choose another folder"):
        model.save(tmp_path / "file", overwrite=True)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load(tmp_path / "file")


def test_a_folder_that_appears_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "model"
    for overwrite, expected in ((True, "ours"), (False, "theirs")):
        shutil.rmtree(path, ignore_errors=True)
        try:
            with atomic_save(path, overwrite=overwrite) as draft:
                (draft / "model.pt").write_text("ours")
                with atomic_save(path) as faster:
                    (faster / "model.pt").write_text("theirs")
        except OSError:
            assert not overwrite
        with checked_copy(path, trusted=True) as copy:
            assert (copy / "model.pt").read_text() == expected
        assert names(tmp_path) == {"model"}
        assert names(path) == {"model.pt", "manifest.json"}


STEPS = ("rename", "replace", "fsync", "mkdir", "unlink", "rmdir", "scandir", "open")


def die_at(step: int) -> None:
    """End this process, as a kill does, at a later call of the system."""
    calls = 0

    def dying(function: Callable) -> Callable:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == step:
                os._exit(9)
            return function(*args, **kwargs)

        return call

    for name in STEPS:
        setattr(os, name, dying(getattr(os, name)))


@pytest.mark.parametrize("exists", [True, False])
def test_a_process_that_dies_at_any_step_leaves_the_old_or_the_new(
    tmp_path: Path, exists: bool, in_child: Callable[[Callable], int]
) -> None:
    def write(path: Path, text: str) -> None:
        with atomic_save(path, overwrite=True) as draft:
            (draft / "model.pt").write_text(text)
            (draft / "adata.h5ad").write_text(text)

    def read(path: Path) -> set[str]:
        with checked_copy(path, trusted=True, with_data=True) as copy:
            return {(copy / name).read_text() for name in ("model.pt", "adata.h5ad")}

    def job(path: Path, step: int) -> None:
        die_at(step)
        write(path, "new")

    seen = set()
    for step in range(1, 200):
        path = tmp_path / str(step) / "model"
        path.parent.mkdir()
        if exists:
            write(path, "old")
        code = os.waitstatus_to_exitcode(os.waitpid(in_child(lambda: job(path, step)), 0)[1])  # noqa: B023
        if exists or path.exists():
            found = read(path)
            assert found in ({"old"}, {"new"}), step
            seen |= found
        assert code in (0, 9)
        write(path, "next")
        assert read(path) == {"next"}
        assert names(path) == {"model.pt", "adata.h5ad", "manifest.json"}, step
        if code == 0:
            break
    assert step > 10
    assert seen == ({"old", "new"} if exists else {"new"})


def test_eight_readers_while_a_ninth_process_overwrites_see_whole_models(
    model: DRA, other: DRA, tmp_path: Path, in_child: Callable[[Callable], int]
) -> None:
    folder = tmp_path / "model"
    model.save(folder, save_anndata=True)
    adata = cells()

    def overwrite() -> None:
        for _ in range(10):
            other.save(folder, overwrite=True, save_anndata=True)
            model.save(folder, overwrite=True, save_anndata=True)
        (tmp_path / "done").touch()

    def read() -> None:
        while not (tmp_path / "done").exists():
            for data in (adata, None):
                found = DRA.load(folder, adata=data, accelerator="cpu")
                if not (is_same(found, model) or is_same(found, other)):
                    os._exit(2)

    children = [in_child(job) for job in (*[read] * 8, overwrite)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 9
    assert is_same(load(folder), model)


def test_without_locks_models_are_saved_too(
    model: DRA, other: DRA, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write, "fcntl", None)
    other.save(folder, overwrite=True)
    assert is_same(load(folder), other)


def test_reading_needs_no_right_to_write(model: DRA, folder: Path) -> None:
    folder.chmod(0o500)
    try:
        assert is_same(load(folder), model)
        with checked_copy(folder) as copy:
            assert list(read_model(copy)["var_names"]) == GENES
        assert not copy.exists()
    finally:
        folder.chmod(0o700)
