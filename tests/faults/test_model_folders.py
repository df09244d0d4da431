"""Folders of saved models: what other people put into them, and what a save must not lose."""

from __future__ import annotations

import hashlib
import json
import os
import pickletools
import signal
import socket
import struct
import warnings
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata
import h5py
import numpy as np
import pandas as pd
import pyro
import pytest
import torch
from click.testing import CliRunner
from huggingface_hub import ModelCard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scvi.hub import HubMetadata, HubModel
from scvi.model.base import BaseModelClass

from dra_scvi import DRA, GeneMismatchError, PublishedDRA, UntrustedModelError
from dra_scvi._folder.read import read_values
from dra_scvi._model.saving import in_gene_order
from dra_scvi.cli import exit_code, program
from tests.helpers import cells, equal, fit, tree, weights

if TYPE_CHECKING:
    from collections.abc import Callable

    from anndata import AnnData

SECONDS = 60
MARK = "ANYTHING"


@pytest.fixture(scope="module")
def model() -> DRA:
    return fit(cells(), "batch", max_epochs=1)


@pytest.fixture(scope="module")
def other() -> DRA:
    return fit(cells(), "batch", max_epochs=1)


@pytest.fixture
def folder(model: DRA, tmp_path: Path) -> Path:
    model.save(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def marked(model: DRA, tmp_path: Path) -> Path:
    """Return a folder one of whose attributes is a string that is replaced by other opcodes."""
    model.marked_ = MARK
    try:
        model.save(tmp_path / "model")
    finally:
        del model.marked_
    return tmp_path / "model"


def load(folder: Path, **options: Any) -> DRA:
    return DRA.load(folder, **{"adata": cells(), "accelerator": "cpu", **options})


def code_of(*args: object) -> int:
    return CliRunner().invoke(program, [str(arg) for arg in args]).exit_code


# -- forging ------------------------------------------------------------------------------------


def records(file: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(file) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write_records(file: Path, content: dict[str, bytes], **options: Any) -> None:
    with zipfile.ZipFile(file, "w", **options) as archive:
        for name, data in content.items():
            archive.writestr(name, data)


def agree(folder: Path) -> None:
    """Make the manifest say of the files what they are now: its author is who forged them."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for name in manifest["files"]:
        data = (folder / name).read_bytes()
        manifest["files"][name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def forge(folder: Path, opcodes: bytes, **extra: bytes) -> None:
    """Put opcodes in the place of the marked attribute, with a manifest that agrees."""
    content = records(folder / "model.pt")
    (name,) = [name for name in content if name.endswith("data.pkl")]
    place = text(MARK)
    assert content[name].count(place) == 1
    content[name] = content[name].replace(place, opcodes)
    root = name.removesuffix("data.pkl")
    content |= {root + "data/" + key: data for key, data in extra.items()}
    write_records(folder / "model.pt", content)
    agree(folder)


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def integer(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def raw(data: bytes) -> bytes:
    return b"c_codecs\nencode\n" + text(data.decode("latin1")) + text("latin1") + b"\x86R"


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def reduce(function: bytes, *args: bytes) -> bytes:
    return function + b"(" + b"".join(args) + b"tR"


def dtype(code: str, flags: int = 63, order: str = "|") -> bytes:
    made = reduce(name("numpy", "dtype"), text(code), b"\x89", b"\x88")
    state = [b"K\x03", text(order), b"NNN", integer(-1), integer(-1), integer(flags)]
    return made + b"(" + b"".join(state) + b"tb"


def array(kind: bytes, data: bytes, shape: bytes = b"K\x01\x85") -> bytes:
    empty = [name("numpy", "ndarray"), b"K\x00\x85", raw(b"b")]
    made = reduce(name("numpy._core.multiarray", "_reconstruct"), *empty)
    return made + b"(K\x01" + shape + kind + b"\x89" + data + b"tb"


def storage(key: str = "ours", size: int = 4, kind: str = "FloatStorage") -> bytes:
    parts = text("storage") + name("torch", kind) + text(key) + text("cpu") + integer(size)
    return b"(" + parts + b"tQ"


def ordered() -> bytes:
    return reduce(name("collections", "OrderedDict"))


def tensor(offset: int = 0, size: int = 4, stride: int = 1, **options: Any) -> bytes:
    where = [integer(offset), integer(size) + b"\x85", integer(stride) + b"\x85"]
    rest = [b"\x89", ordered()]
    function = name("torch._utils", "_rebuild_tensor_v2")
    return reduce(function, storage(**options), *where, *rest)


def laughs(pair: bytes) -> bytes:
    """Return forty levels of a pair of what is below it: 2^40 values, in a few bytes."""
    made = text("ha") + b"q\xf0"
    for _ in range(40):
        made += pair + b"q\xf0"
    return made


FLOATS = np.ones(4, np.float32).tobytes()
POINTER = struct.pack("<Q", 0x4141414141414141)
SYSTEM = name("posix", "system")

HOSTILE = {
    "a call of the system": reduce(SYSTEM, text("true")),
    "a name of Python 2": reduce(name("__builtin__", "eval"), text("1")),
    "a name that is not called": name("os", "system"),
    "a method by its name": reduce(name("builtins", "getattr"), text("a"), text("upper")),
    "a partial": reduce(name("functools", "partial"), name("builtins", "print")),
    "objects from bytes": array(dtype("O8"), raw(POINTER)),
    "objects from bytes, flags cleared": array(dtype("O8", flags=0), raw(POINTER)),
    "an object from bytes": reduce(
        name("numpy._core.multiarray", "scalar"), dtype("O8"), raw(POINTER)
    ),
    "an array in an array of objects": array(
        dtype("O8"), b"](" + array(dtype("O8"), raw(POINTER)) + b"e"
    ),
    "another class of array": reduce(
        name("numpy._core.multiarray", "_reconstruct"),
        name("numpy", "memmap"),
        b"K\x00\x85",
        raw(b"b"),
    ),
    "an array over a buffer": reduce(
        name("numpy", "ndarray"), b"K\x01\x85", dtype("O8"), raw(POINTER)
    ),
    "fields of objects": array(
        reduce(name("numpy", "dtype"), text("V8"), b"\x89", b"\x88")
        + b"(K\x03"
        + text("|")
        + b"N("
        + text("a")
        + b"t}"
        + text("a")
        + dtype("O8")
        + b"K\x00\x86s"
        + integer(8)
        + integer(1)
        + integer(0)
        + b"tb",
        raw(POINTER),
    ),
    "fewer bytes than a shape": array(dtype("f8", 0, "<"), raw(b"1234")),
    "a shape below zero": array(dtype("f8", 0, "<"), raw(b"12345678"), integer(-1) + b"\x85"),
    "a tensor of a class": reduce(
        name("torch._tensor", "_rebuild_from_type_v2"),
        name("torch._utils", "_rebuild_tensor_v2"),
        name("torch", "Tensor"),
        b")}",
    ),
    "slots of a class": name("collections", "Counter") + b"N}" + text("update") + b"]s\x86b",
    "slots of a dictionary": ordered() + b"N}" + text("update") + b"]s\x86b",
    "the dictionary of an object": ordered() + b"}" + text("__class__") + b"Nsb",
    "another storage for a tensor": tensor() + b"(" + storage() + b"K\x00)ttb",
    "a tensor beyond its storage": tensor(size=5),
    "a tensor far beyond its storage": tensor(offset=2**30),
    "a tensor before its storage": tensor(offset=-1),
    "a stride backwards": tensor(stride=-1),
    "a tensor that repeats one element for ever": tensor(size=2**30, stride=0),
    "a storage larger than its record": tensor(size=8),
    "a storage that is not there": storage(key="nowhere"),
    "a storage in another folder": storage(key="../data.pkl"),
    "something else beside the pickle": text("anything") + b"Q",
    "an extension": b"\x82\x01",
    "an instance as in Python 2": b"(" + text("true") + b"iposix\nsystem\n",
    "an object as in Python 2": b"(" + SYSTEM + text("true") + b"o",
    "names from the stack": text("posix") + text("system") + b"\x93" + text("true") + b"\x85R",
    "a name from numbers": b"K\x01K\x02\x93",
    "a call with keywords": SYSTEM + b")}\x92",
    "the call of a call": reduce(reduce(name("builtins", "slice"), b"NNN"), b"K\x01"),
    "a number of a million digits": b"\x8b" + struct.pack("<i", 400_000) + b"\x7f" * 400_000,
    "keys that are never hashed": b"}" + laughs(b"h\xf0\x86") + b"Ns",
    "lists of lists": laughs(b"](h\xf0h\xf0e"),
    "a list of itself": b"]q\xf0h\xf0a",
    "ten thousand levels": b"]" * 10_000 + b"a" * 9_999,
    "items of a list": b"]" + text("a") + b"Ns",
    "half a character": b"X\x03\x00\x00\x00\xed\xa0\x80",
    "a table of text": name("pandas.core.frame", "DataFrame")
    + b")\x81}"
    + text("_mgr")
    + text("text")
    + b"sb",
    "a table without its values": reduce(
        name("pandas.core.internals.managers", "BlockManager"), b")", b"](]]e"
    ),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_no_hostile_file_is_run_or_crashes_anything(
    marked: Path, kind: str, in_child: Callable[[Callable], int]
) -> None:
    """A model.pt that asks for more than values is refused in Python and by every command."""
    forge(marked, HOSTILE[kind], ours=FLOATS)

    def refuse() -> None:
        signal.alarm(SECONDS)
        for adata in (cells(), None, False):
            with pytest.raises(ValueError, match=r"model\.pt (holds more|is corrupt)"):
                load(marked, adata=adata)
        with pytest.raises(ValueError, match=r"model\.pt (holds more|is corrupt)"):
            DRA.load_registry(marked)
        assert code_of("info", marked) == 65

    child = in_child(refuse)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_what_the_forged_files_are_made_of_is_read(marked: Path) -> None:
    """The parts of the hostile files, put together as a save does, are taken: no test is vain."""
    parts = [
        tensor(),
        tensor(offset=2, size=2),
        array(dtype("f8", 0, "<"), raw(np.array([1.5]).tobytes())),
        array(dtype("O8"), b"](" + text("a") + b"e"),
    ]
    forge(marked, b"](" + b"".join(parts) + b"e", ours=FLOATS)
    all_four, last_two, number, word = load(marked).marked_
    assert all_four.tolist() == [1] * 4
    assert last_two.tolist() == [1] * 2
    assert number.tolist() == [1.5]
    assert word.tolist() == ["a"]


@pytest.mark.parametrize(
    "kind",
    ["compressed", "twice", "second pickle", "byte order", "larger than the file", "before it"],
)
def test_archives_that_torch_does_not_write_are_refused(folder: Path, kind: str) -> None:
    """An archive with compressed, repeated or impossible records is refused, exit code 65."""
    content = records(folder / "model.pt")
    root = next(iter(content)).split("/")[0]
    options: dict[str, Any] = {}
    if kind == "compressed":
        options = {"compression": zipfile.ZIP_DEFLATED}
    if kind == "second pickle":
        content["other/data.pkl"] = content[f"{root}/data.pkl"]
    if kind == "byte order":
        content[f"{root}/byteorder"] = b"big"
    write_records(folder / "model.pt", content, **options)
    if kind == "twice":
        with warnings.catch_warnings(), zipfile.ZipFile(folder / "model.pt", "a") as archive:
            warnings.simplefilter("ignore")
            archive.writestr(f"{root}/data.pkl", content[f"{root}/data.pkl"])
    if kind == "larger than the file":
        data = bytearray((folder / "model.pt").read_bytes())
        place = data.index(b"PK\x01\x02") + 20
        data[place : place + 8] = struct.pack("<II", 2**31, 2**31)
        (folder / "model.pt").write_bytes(data)
    if kind == "before it":  # all records, where their directory is said to begin later
        data = bytearray((folder / "model.pt").read_bytes())
        place = data.rindex(b"PK\x05\x06") + 16
        data[place : place + 4] = struct.pack("<I", 2**31)
        (folder / "model.pt").write_bytes(data)
    agree(folder)
    with pytest.raises(ValueError, match=r"model\.pt is corrupt"):
        load(folder)
    assert code_of("info", folder) == 65


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("attr_dict", "__class__", "x"),
        ("attr_dict", "_module_cls", "x"),
        ("attr_dict", "train", "x"),
        ("attr_dict", "get_normalized_function_name_", "save"),
        ("registry_", "setup_method_name", "save"),
        ("registry_", "setup_method_name", ["save"]),
        ("attr_dict", "registry_", None),
        ("attr_dict", "init_params_", "x"),
        ("init_params_", "non_kwargs", {"n_hiddne": 3}),
        ("model_state_dict", "decoder.weight", "x"),
        ("model_state_dict", "unknown", torch.ones(1)),
    ],
)
def test_values_steer_nothing_but_how_a_model_is_built(
    folder: Path, part: str, key: str, value: Any
) -> None:
    """Plain values that would replace methods or call them are refused, like those of no model."""
    content = torch.load(folder / "model.pt", weights_only=False)
    parts = {**content, **content["attr_dict"]}
    parts[part][key] = value
    torch.save(content, folder / "model.pt")
    agree(folder)
    with pytest.raises(ValueError, match=r"model\.pt|holds no model"):
        load(folder)


def test_the_store_of_pyro_belongs_to_the_process(model: DRA, tmp_path: Path) -> None:
    """Parameters of other models in the process are neither saved with this one nor replaced."""
    store = pyro.get_param_store()
    with store.scope():
        pyro.param("mine", torch.ones(2), constraint=torch.distributions.constraints.positive)
        model.save(tmp_path / "model")
        load(tmp_path / "model")
        assert list(store.keys()) == ["mine"]


# -- damage at random ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(model: DRA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "model"
    model.save(folder)
    return folder / "model.pt"


RANDOM = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@RANDOM
@given(flips=st.lists(st.tuples(st.integers(0, 2**30), st.integers(0, 7)), min_size=1, max_size=3))
def test_flipped_bits_of_a_file_are_told_or_change_nothing(
    whole: Path, tmp_path_factory: pytest.TempPathFactory, flips: list[tuple[int, int]]
) -> None:
    """Whatever bits of model.pt flip, without a manifest, its values are the same or refused."""
    data = bytearray(whole.read_bytes())
    for place, bit in flips:
        data[place % len(data)] ^= 1 << bit
    file = whole.with_name("flipped.pt")
    file.write_bytes(data)
    try:
        values = read_values(file, file)
    except ValueError:
        return
    assert_same(values, read_values(whole, whole))


@RANDOM
@given(data=st.data())
def test_random_pickles_are_values_or_refused(whole: Path, data: st.DataObject) -> None:
    """Opcodes removed, repeated, swapped and flipped give values or one of two errors."""
    content = records(whole)
    (entry,) = [entry for entry in content if entry.endswith("data.pkl")]
    pickle = content[entry]
    starts = [place for _, _, place in pickletools.genops(pickle)]
    opcodes = [pickle[a:b] for a, b in zip(starts, [*starts[1:], len(pickle)], strict=True)]
    places = st.integers(0, len(opcodes) - 1)
    for _ in range(data.draw(st.integers(1, 3))):
        one, two = data.draw(places), data.draw(places)
        change = data.draw(st.sampled_from(["remove", "repeat", "swap", "flip", "hostile"]))
        if change == "remove":
            opcodes[one] = b""
        elif change == "repeat":
            opcodes[one] += opcodes[two]
        elif change == "swap":
            opcodes[one], opcodes[two] = opcodes[two], opcodes[one]
        elif change == "hostile":
            opcodes[one] += HOSTILE[data.draw(st.sampled_from(sorted(HOSTILE)))]
        elif opcodes[one]:
            flipped = bytearray(opcodes[one])
            flipped[two % len(flipped)] ^= 1 << (two % 8)
            opcodes[one] = bytes(flipped)
    content[entry] = b"".join(opcodes)
    file = whole.with_name("spliced.pt")
    write_records(file, content)
    try:
        values = read_values(file, file)
    except ValueError:
        return
    assert_plain(values)


PLAIN = (type(None), bool, int, float, str, bytes, slice, torch.Tensor, np.ndarray, np.generic)


def assert_plain(value: Any) -> None:
    if isinstance(value, dict):
        assert_plain(list(value.values()))
    elif isinstance(value, list | tuple | set | frozenset):
        for part in value:
            assert_plain(part)
    else:
        assert isinstance(value, (*PLAIN, pd.DataFrame, pd.Index, np.dtype))


def assert_same(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert list(one) == list(other)
        assert_same(list(one.values()), list(other.values()))
        assert getattr(one, "_metadata", None) == getattr(other, "_metadata", None)
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    elif isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype
        assert one.stride() == other.stride()
        assert torch.equal(one, other)
    elif isinstance(one, np.ndarray):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    elif isinstance(one, pd.DataFrame):
        pd.testing.assert_frame_equal(one, other)
    else:
        assert one == other or one != one


# -- what saves hold ----------------------------------------------------------------------------

SETUPS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"batch_key": "string", "labels_key": "date"}, {}),
    ({"batch_key": "whole", "size_factor_key": "real"}, {"gene_likelihood": "nb"}),
    ({"batch_key": "nullable"}, {"dispersion": "gene-batch", "gene_likelihood": "poisson"}),
    (
        {
            "categorical_covariate_keys": ["category", "truth"],
            "continuous_covariate_keys": ["real"],
        },
        {"encode_covariates": True},
    ),
    ({"layer": "counts", "batch_key": "unicode"}, {"batch_representation": "embedding"}),
    ({"labels_key": "whole"}, {"dispersion": "gene-label", "use_observed_lib_size": False}),
    ({}, {"prior": "uniform", "n_hidden": [16, 8], "n_hidden_discriminator": (16,)}),
    ({}, {"latent_distribution": "ln", "use_layer_norm": "both", "use_batch_norm": "none"}),
]


def rich_cells() -> AnnData:
    adata = cells()
    codes = np.arange(adata.n_obs) % 3
    adata.obs["string"] = pd.array(np.array(list("abc"))[codes], dtype="string")
    adata.obs["unicode"] = np.array(["é", "日本", "c"])[codes]
    adata.obs["whole"], adata.obs["truth"] = codes, codes == 0
    adata.obs["nullable"] = pd.array(codes, dtype="Int64")
    adata.obs["category"] = pd.Categorical(codes.astype("int32"))
    days = pd.Series(pd.to_datetime("2020-01-01") + pd.to_timedelta(codes, "D"))
    adata.obs["date"] = pd.Categorical(days)
    adata.obs["real"] = np.linspace(1, 2, adata.n_obs)
    adata.layers["counts"] = adata.X.copy()
    return adata


@pytest.mark.parametrize(("setup", "options"), SETUPS)
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_saves_of_plain_scvi_tools_are_read_with_every_option(
    setup: dict[str, Any], options: dict[str, Any], protocol: int, tmp_path: Path
) -> None:
    """What scvi-tools' own save wrote is read, value by value as torch reads it, and loads."""
    keeps = "date" not in setup.values()  # which anndata cannot write
    adata = rich_cells()
    if keeps:
        del adata.obs["date"]
    DRA.setup_anndata(adata, **setup)
    model = DRA(adata, **{"n_hidden": 16, "n_latent": 4, **options})
    model.history_ = {"elbo": pd.DataFrame({"elbo": [1.5, 2.0]}, index=pd.Index([0, 1], name="e"))}
    model.is_trained_ = True
    options = {"save_kwargs": {"pickle_protocol": protocol}}
    BaseModelClass.save(model, str(tmp_path / "model"), save_anndata=keeps, **options)
    file = tmp_path / "model" / "model.pt"
    expected = torch.load(file, weights_only=False)
    del expected["model_state_dict"]["pyro_param_store"]
    assert_same(read_values(file, file), expected)
    for data in (rich_cells(), None if keeps else False):
        assert equal(weights(load(tmp_path / "model", adata=data)), weights(model))


def test_a_save_that_others_could_not_load_is_told_at_once(model: DRA, tmp_path: Path) -> None:
    """An attribute that is no plain value is saved with a warning, and loads when trusted."""
    model.path_ = Path("here")
    try:
        with pytest.warns(UserWarning, match="pathlib.*trusted=True alone"):
            model.save(tmp_path / "model")
    finally:
        del model.path_
    with pytest.raises(UntrustedModelError, match="pathlib"):
        load(tmp_path / "model")
    assert load(tmp_path / "model", trusted=True).path_ == Path("here")


# -- every way in -------------------------------------------------------------------------------


def old_save(folder: Path, attributes: bytes) -> Path:
    folder.mkdir()
    torch.save({}, folder / "model_params.pt")
    (folder / "var_names.csv").write_text("gene_0\n")
    (folder / "attr.pkl").write_bytes(attributes)
    return folder


def test_no_way_in_goes_round_the_check(marked: Path, tmp_path: Path) -> None:
    """Registries, references, hub and conversion of old saves refuse what loading refuses."""
    forge(marked, HOSTILE["a call of the system"])
    metadata = HubMetadata("1.4", "0.12", "DRA", model_parent_module="dra_scvi")
    card = ModelCard("---\nlicense: cc-by-4.0\n---\nA model.")
    hub = HubModel(str(marked), metadata=metadata, model_card=card)
    old = old_save(tmp_path / "old", b"\x80\x02" + HOSTILE["a call of the system"] + b".")
    ways: dict[str, Callable[[], Any]] = {
        "load": lambda: load(marked),
        "load without cells": lambda: load(marked, adata=False),
        "the published model": lambda: PublishedDRA.load(marked, adata=False),
        "registry": lambda: DRA.load_registry(str(marked)),
        "arguments of its setup": lambda: DRA.view_setup_args(str(marked)),
        "query": lambda: DRA.load_query_data(cells(), str(marked)),
        "query of a path": lambda: DRA.load_query_data(cells(), marked),
        "genes of a query": lambda: DRA.prepare_query_anndata(cells(), str(marked)),
        "hub": lambda: hub.load_model(cells(), accelerator="cpu"),
        "an old save": lambda: DRA.convert_legacy_save(str(old), str(tmp_path / "new")),
    }
    for enter in ways.values():
        with pytest.raises(UntrustedModelError, match=r"posix\.system"):
            enter()
    cells().write_h5ad(tmp_path / "cells.h5ad")
    given = ["--model", marked, "--output", tmp_path / "out.h5ad"]
    assert code_of("embed", tmp_path / "cells.h5ad", *given) == 65


def test_cells_beside_a_model_do_not_spare_the_check(model: DRA, tmp_path: Path) -> None:
    """A hostile model saved along with its cells is refused with and without them."""
    model.marked_ = MARK
    try:
        model.save(tmp_path / "model", save_anndata=True)
    finally:
        del model.marked_
    forge(tmp_path / "model", HOSTILE["a call of the system"])
    for adata in (None, False, cells()):
        with pytest.raises(UntrustedModelError):
            load(tmp_path / "model", adata=adata)
    found = load(tmp_path / "model", adata=None, trusted=True)
    assert equal(weights(found), weights(model))
    assert found.adata.n_obs == cells().n_obs


def test_cells_beside_a_model_lie_in_their_own_file(
    model: DRA, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    """A link to another file in adata.h5ad is refused: nothing of that file is read."""
    model.save(tmp_path / "model", save_anndata=True)
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["values"] = np.arange(60.0)
    with h5py.File(tmp_path / "model" / "adata.h5ad", "r+") as file:
        file["obsm/more"] = h5py.ExternalLink(str(tmp_path / "secret.h5"), "values")
    agree(tmp_path / "model")
    with pytest.raises(ValueError, match=r"model/adata\.h5ad.*/obsm/more.*another file") as caught:
        load(tmp_path / "model", adata=None)
    assert "/dra_scvi-" not in str(caught.value)
    assert load(tmp_path / "model").is_trained_
    assert load(tmp_path / "model", adata=None, trusted=True).adata.obsm["more"].size == 60


def test_damaged_cells_are_refused_and_stay_so_when_the_model_is_overwritten(
    model: DRA, tmp_path: Path
) -> None:
    """A flipped byte in adata.h5ad is told even after the model beside it was saved anew."""
    folder = tmp_path / "model"
    model.save(folder, save_anndata=True)
    data = bytearray((folder / "adata.h5ad").read_bytes())
    data[-9] ^= 1
    (folder / "adata.h5ad").write_bytes(data)
    model.save(folder, overwrite=True)
    with pytest.raises(ValueError, match=r"adata\.h5ad is corrupt or truncated"):
        load(folder, adata=None)
    assert load(folder).is_trained_


# -- names and files ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "entry",
    [
        {"size": 3, "sha256": 5},
        {"size": 3, "sha256": None},
        {"size": 3, "sha256": ["a"]},
        {"size": 3, "sha256": "../../../etc"},
        {"size": 3, "sha256": "A" * 64},
        {"size": 3, "sha256": "a" * 64 + "\n"},
        {"size": "3", "sha256": "a" * 64},
        {"size": -1, "sha256": "a" * 64},
        {"size": True, "sha256": "a" * 64},
        {"size": 3},
        5,
        None,
    ],
)
def test_a_manifest_of_other_values_is_corrupt(model: DRA, folder: Path, entry: Any) -> None:
    """Checksums that are none, or parts of a path, are told, and a save over them succeeds."""
    for name in ("model.pt", "adata.h5ad"):
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["files"][name] = entry
        (folder / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(ValueError, match=r"manifest\.json is corrupt or truncated"):
            load(folder)
        assert code_of("info", folder) == 65
        model.save(folder, overwrite=True)
        assert load(folder).is_trained_


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"format": ' + b"9" * 5_000 + b"}"])
def test_a_manifest_without_an_end_is_corrupt(folder: Path, content: bytes) -> None:
    """A manifest of a hundred thousand brackets, or digits, is told like any other damage."""
    (folder / "manifest.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"manifest\.json is corrupt or truncated"):
        load(folder)


@pytest.mark.parametrize("prefix", ["../x", "/tmp/x", "sub/x", "..", ".staged-", "a\0", "a\\b"])
def test_a_prefix_does_not_lead_out_of_the_folder(
    model: DRA, folder: Path, tmp_path: Path, prefix: str
) -> None:
    """Save and load with a prefix that is a path are refused, and nothing is written."""
    before = tree(tmp_path)
    for act in (
        lambda: model.save(folder, prefix=prefix, overwrite=True),
        lambda: model.save(tmp_path / "new" / "model", prefix=prefix),
        lambda: load(folder, prefix=prefix),
        lambda: load(folder, prefix=prefix, backup_url="file:///nowhere"),
        lambda: DRA.load_registry(folder, prefix=prefix),
    ):
        with pytest.raises(ValueError, match="beginning of a file name"):
            act()
    assert tree(tmp_path) == before


STRAY = (".staged-1", ".staged-0123456789abcdef", ".draft-1-01234567", ".draft-notes")


@pytest.mark.parametrize("name", STRAY)
@pytest.mark.parametrize("kind", ["file", "folder", "link to a file", "link to a folder", "pipe"])
def test_what_lies_about_does_not_stop_a_save(
    model: DRA, other: DRA, folder: Path, tmp_path: Path, name: str, kind: str
) -> None:
    """Stray hidden files and links neither block save(overwrite=True) nor lose what they mean."""
    elsewhere = tmp_path / "elsewhere"
    other.save(elsewhere)
    (elsewhere / "mine.txt").write_text("mine")
    (elsewhere / "manifest.json").write_bytes((folder / "manifest.json").read_bytes())
    before = tree(elsewhere)
    stray = folder / name
    if kind == "file":
        stray.write_text("stray")
    elif kind == "folder":
        stray.mkdir()
        (stray / "file").write_text("stray")
    elif kind == "pipe":
        os.mkfifo(stray)
    else:
        stray.symlink_to(elsewhere / "model.pt" if kind == "link to a file" else elsewhere)
    for saved in (model, other):
        saved.save(folder, overwrite=True)
        assert equal(weights(load(folder)), weights(saved))
    assert tree(elsewhere) == before
    if name in (".staged-1", ".draft-notes"):  # not of a name that a save gives
        assert stray.exists()
    assert {path.name for path in folder.iterdir()} - {name} == {"model.pt", "manifest.json"}


def test_a_stage_moves_no_other_files_than_those_of_its_model(model: DRA, folder: Path) -> None:
    """Files that were put beside staged ones do not become part of the model's folder."""
    manifest = json.loads((folder / "manifest.json").read_text())
    stage = folder / (".staged-" + manifest["files"]["model.pt"]["sha256"][:16])
    stage.mkdir()
    (stage / "manifest.json").write_bytes((folder / "manifest.json").read_bytes())
    (stage / "README.md").write_text("theirs")
    (folder / "README.md").write_text("mine")
    model.save(folder, overwrite=True)
    assert (folder / "README.md").read_text() == "mine"
    assert not stage.exists()


def test_a_home_is_the_home_of_the_user(
    model: DRA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """save("~/model") writes into the home folder, where every way of loading finds it."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    model.save("~/model")
    model.save(Path("~/model"), overwrite=True)
    assert os.listdir(tmp_path) == ["home"]
    assert equal(weights(load("~/model")), weights(model))  # type: ignore[arg-type]
    assert DRA.load_registry("~/model")["model_name"] == "DRA"
    assert DRA.prepare_query_anndata(cells(), "~/model", inplace=False).n_vars == cells().n_vars
    assert DRA.load_query_data(cells(), "~/model", accelerator="cpu").module.n_batch == 2


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "socket"])
@pytest.mark.parametrize("name", ["model.pt", "manifest.json", "adata.h5ad"])
def test_what_is_no_file_is_refused_at_once(
    model: DRA, tmp_path: Path, name: str, kind: str, in_child: Callable[[Callable], int]
) -> None:
    """A pipe or a device in the place of a file is refused, and nobody waits for it."""
    folder = tmp_path / "m"
    model.save(folder, save_anndata=True)
    (folder / name).unlink()
    if kind == "pipe":
        os.mkfifo(folder / name)
    elif kind == "folder":
        (folder / name).mkdir()
    elif kind == "device":
        (folder / name).symlink_to("/dev/zero")
    else:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(os.path.relpath(folder / name))

    def refuse() -> None:
        signal.alarm(SECONDS)
        with pytest.raises((ValueError, FileNotFoundError), match="no "):
            load(folder, adata=None)
        assert code_of("info", folder) in ((65, 66) if name != "adata.h5ad" else (0,))

    child = in_child(refuse)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("given", [["a", "b", "a"], ["a", "a", "b"], ["b", "a", "a"]])
def test_repeated_gene_names_are_not_put_in_order(given: list[str]) -> None:
    """Genes of the same name on both sides, in another order, are refused."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adata = anndata.AnnData(np.eye(3, dtype=np.float32), var=pd.DataFrame(index=given))
        if given == ["a", "a", "b"]:
            assert in_gene_order(adata, ["a", "a", "b"]) is adata
            return
        with pytest.raises(GeneMismatchError, match="order"):
            in_gene_order(adata, ["a", "a", "b"])


def test_hostile_files_end_a_command_with_65_in_one_line(marked: Path) -> None:
    """The command names the file, what it asks for and what to do, and exits with 65."""
    forge(marked, HOSTILE["objects from bytes"])
    result = CliRunner().invoke(program, ["info", str(marked)])
    assert result.exit_code == 65
    for part in ("model.pt", "an array of objects", "trusted=True"):
        assert part in " ".join(result.output.split())
    assert exit_code(UntrustedModelError("x")) == 65
