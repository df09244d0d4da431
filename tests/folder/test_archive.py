"""Files of ``torch.save``: tensors as torch reads them, and archives that it does not write."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from dra_scvi._folder import archive
from dra_scvi._folder.archive import read_archive, read_pickle
from dra_scvi._folder.pickles import Built, Name, RefusedPickleError, Storage

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TENSORS = [
    torch.arange(6.0).reshape(2, 3),
    torch.arange(6).reshape(2, 3).T,
    torch.arange(10)[3:9:2],
    torch.tensor(3.5, dtype=torch.float64),
    torch.zeros(0, 4),
    torch.ones(1).expand(1, 1),
    torch.nn.Parameter(torch.ones(2)),
    torch.tensor([True, False]),
    *(torch.tensor([1, 2]).to(dtype) for dtype in archive.DTYPES.values()),
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "model.pt"


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("tensor", TENSORS, ids=range(len(TENSORS)))
def test_tensors_are_what_torch_reads(file: Path, tensor: torch.Tensor, protocol: int) -> None:
    torch.save({"a": tensor, "b": OrderedDict(c=tensor)}, file, pickle_protocol=protocol)
    found = read_archive(file)
    assert found["a"].dtype == tensor.dtype
    assert found["a"].shape == tensor.shape
    assert torch.equal(found["a"], tensor.detach())
    if tensor.numel():
        assert found["a"].stride() == tensor.stride()
    found["b"]["c"].zero_()  # it is the same one
    assert not found["a"].any()


def test_views_share_what_they_share_in_the_file(file: Path) -> None:
    whole = torch.arange(4.0)
    torch.save([whole, whole[1:3], torch.arange(4.0)], file)
    one, part, other = read_archive(file)
    part.fill_(9)
    assert one.tolist() == [0, 9, 9, 3]
    assert other.tolist() == [0, 1, 2, 3]


def records(content: Any = 7) -> dict[str, bytes]:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with zipfile.ZipFile(buffer) as found:
        return {name: found.read(name) for name in found.namelist()}


def write(file: Path, content: dict[str, bytes], **options: Any) -> Path:
    with zipfile.ZipFile(file, "w", **options) as made:
        for name, data in content.items():
            made.writestr(name, data)
    return file


def test_an_archive_of_another_hand_is_read(file: Path) -> None:
    content = records(torch.arange(3))
    assert read_archive(write(file, content)).tolist() == [0, 1, 2]
    content = {f"other/{name.partition('/')[2]}": data for name, data in content.items()}
    assert read_archive(write(file, content)).tolist() == [0, 1, 2]
    assert content.pop("other/byteorder") == b"little"  # which older ones do not have
    assert read_archive(write(file, content)).tolist() == [0, 1, 2]


def test_archives_that_torch_does_not_write(file: Path) -> None:
    content = records()
    (root,) = {name.partition("/")[0] for name in content}

    def refused(change: Callable[[], Any]) -> None:
        write(file, content)
        assert read_archive(file) == 7
        change()
        with pytest.raises(ValueError, match=r"^corrupt or truncated \(ValueError\)$"):
            read_archive(file)

    def twice() -> None:
        with zipfile.ZipFile(file, "a") as made, pytest.warns(UserWarning, match="Duplicate"):
            made.writestr(f"{root}/version", b"3\n")

    def patch(offset: int, value: bytes, mark: bytes = b"PK\x01\x02") -> None:
        data = bytearray(file.read_bytes())
        place = data.index(mark) + offset
        data[place : place + len(value)] = value
        file.write_bytes(data)

    without = {name: data for name, data in content.items() if not name.endswith("data.pkl")}
    for change in (
        lambda: write(file, content, compression=zipfile.ZIP_DEFLATED),
        lambda: write(file, {**content, "other/data.pkl": content[f"{root}/data.pkl"]}),
        lambda: write(file, without),
        lambda: write(file, {**without, f"{root}data.pkl": content[f"{root}/data.pkl"]}),
        lambda: write(file, {**content, f"{root}/byteorder": b"big"}),
        twice,
        lambda: patch(8, struct.pack("<H", 1)),  # encrypted
        lambda: patch(20, struct.pack("<II", 2**31, 2**31)),  # larger than the file
    ):
        refused(change)


def test_an_archive_may_fill_its_file(file: Path) -> None:
    with zipfile.ZipFile(write(file, records())) as made:
        whole = sum(entry.file_size for entry in made.infolist())
        archive._Records(made, whole)
        with pytest.raises(ValueError, match="larger than the file"):
            archive._Records(made, whole - 1)


DAMAGE = [zipfile.BadZipFile, EOFError, OverflowError, NotImplementedError, RuntimeError]


@pytest.mark.parametrize("kind", DAMAGE)
def test_whatever_damage_is_told(
    file: Path, kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise kind

    monkeypatch.setattr(archive, "describe", fail)
    write(file, records())
    for read in (lambda: read_archive(file), lambda: read_pickle(b"")):
        with pytest.raises(ValueError, match=rf"^corrupt or truncated \({kind.__name__}\)$"):
            read()


def test_what_asks_for_more(file: Path) -> None:
    torch.save([print, {"a": len}], file)
    with pytest.raises(RefusedPickleError, match="^it would import what no saved model") as caught:
        read_archive(file)
    assert caught.value.names == ("builtins.len", "builtins.print")
    torch.save(7, file, _use_new_zipfile_serialization=False)
    with pytest.raises(RefusedPickleError, match="the format that torch had before archives"):
        read_archive(file)
    tensor = records(torch.ones(1))
    (content,) = [data for name, data in tensor.items() if name.endswith("data.pkl")]
    with pytest.raises(RefusedPickleError, match="would import") as caught:
        read_pickle(content)
    assert caught.value.names == ("torch._utils._rebuild_tensor_v2",)
    with pytest.raises(RefusedPickleError, match=r"something outside of it: \('a',\)$"):
        read_pickle(b"X\x01\x00\x00\x00aK\x01\x86Q.")
    with pytest.raises(ValueError, match="corrupt or truncated"):
        read_pickle(b"text")
    assert read_pickle(pickle.dumps({"a": np.float32(1)})) == {"a": 1}


# -- storages and tensors -----------------------------------------------------------------------

FLOATS = "storage", Name("torch.FloatStorage"), "0", "cpu", 4


@pytest.fixture
def stored(file: Path) -> Any:
    data = {"m/data.pkl": b"", "m/data/0": np.arange(4, dtype=np.float32).tobytes()}
    data |= {"m/data/1": b"\0\1\1", "m/data/2": b"\0\2", "m/data/3": b"", "outside": b"1234"}
    with zipfile.ZipFile(write(file, data)) as made:
        yield archive._Records(made, file.stat().st_size)


def test_storages_are_read_once(stored: Any) -> None:
    found = stored.open(Storage(FLOATS))
    assert found.tolist() == [0, 1, 2, 3]
    assert stored.open(Storage(FLOATS)).data_ptr() == found.data_ptr()
    flags = "storage", Name("torch.BoolStorage"), "1", "cuda:0", 3
    assert stored.open(Storage(flags)).tolist() == [False, True, True]
    for kind in ("LongStorage", "BoolStorage"):
        empty = stored.open(Storage(("storage", Name(f"torch.{kind}"), "3", "cpu", 0)))
        assert (empty.numel(), empty.dtype) == (0, archive.DTYPES[f"torch.{kind}"])


@pytest.mark.parametrize(
    "args",
    [
        FLOATS[:4],
        (*FLOATS, None),
        ("module", *FLOATS[1:]),
        (FLOATS[0], "torch.FloatStorage", *FLOATS[2:]),
        (FLOATS[0], Name("torch.Tensor"), *FLOATS[2:]),
        (*FLOATS[:2], 0, *FLOATS[3:]),
        (*FLOATS[:2], "../outside", "cpu", 1),
        (*FLOATS[:2], "4", *FLOATS[3:]),
        (*FLOATS[:3], None, 4),
        (*FLOATS[:4], 3),
        (*FLOATS[:4], 5),
        (*FLOATS[:4], 4.0),
        ("storage", Name("torch.BoolStorage"), "2", "cpu", 2),
    ],
)
def test_storages_that_are_none(stored: Any, args: tuple[Any, ...]) -> None:
    with pytest.raises(RefusedPickleError, match="^a storage is not as in a saved model$"):
        stored.open(Storage(args))


FOUR = torch.arange(4.0)


def tensor(*args: Any, **more: Any) -> Any:
    return archive._tensor(Built("f", args, **more))


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ((FOUR, 0, (4,), (1,), False, {}), [0, 1, 2, 3]),
        ((FOUR, 1, (3,), (1,), True, OrderedDict()), [1, 2, 3]),
        ((FOUR, 3, (1,), (9,), False, {}), [3]),
        ((FOUR, 0, (2, 2), (1, 2), False, {}), [[0, 2], [1, 3]]),
        ((FOUR, 0, (4,), (0,), False, {}), [0] * 4),
        ((FOUR, 2, (), (), False, {}), 2),
        ((FOUR, 9, (0,), (1,), False, {}), []),
    ],
)
def test_elements_are_chosen(args: tuple[Any, ...], expected: Any) -> None:
    assert tensor(*args).tolist() == expected
    assert archive._parameter(Built("f", (FOUR, True, {}))) is FOUR


@pytest.mark.parametrize(
    "args",
    [
        (FOUR, 0, (4,), (1,), False),
        (FOUR, 0, (4,), (1,), False, {}, {}),
        ([0.0] * 4, 0, (4,), (1,), False, {}),
        (torch.ones(2, 2), 0, (4,), (1,), False, {}),
        (FOUR, 0, (4,), (1,), 0, {}),
        (FOUR, 0, (4,), (1,), False, {"a": 1}),
        (FOUR, 0, [4], (1,), False, {}),
        (FOUR, 0, (4,), [1], False, {}),
        (FOUR, 0, (4,), (-1,), False, {}),
        (FOUR, 0, (2,), (1, 1), False, {}),
        (FOUR, -1, (2,), (1,), False, {}),
        (FOUR, 0.0, (2,), (1,), False, {}),
        (FOUR, 1, (4,), (1,), False, {}),
        (FOUR, 4, (1,), (1,), False, {}),
        (FOUR, 0, (3,), (2,), False, {}),
        (FOUR, 0, (5,), (0,), False, {}),
        (FOUR, 0, (2, 2), (1, 3), False, {}),
    ],
)
def test_elements_that_are_not_there(args: tuple[Any, ...]) -> None:
    with pytest.raises(RefusedPickleError, match="^a tensor is not as in a saved model$"):
        tensor(*args)


def test_nothing_is_done_to_a_tensor_afterwards() -> None:
    args = FOUR, 0, (4,), (1,), False, {}
    for more in ({"items": [("a", 1)]}, {"state": {}}):
        with pytest.raises(RefusedPickleError, match="^a tensor is not"):
            tensor(*args, **more)
        with pytest.raises(RefusedPickleError, match="^a parameter is not"):
            archive._parameter(Built("f", (FOUR, True, {}), **more))
    for given in ((FOUR, True), (FOUR, 1, {}), ([1], True, {}), (FOUR, True, {"a": 1})):
        with pytest.raises(RefusedPickleError, match="^a parameter is not"):
            archive._parameter(Built("f", given))
