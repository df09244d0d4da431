"""Files of ``torch.save`` from other people, read without PyTorch's own loader.

Such a file is a ZIP archive: a pickle, which is only described here, and the bytes of every
storage, out of which tensors are made whose elements all lie within.
"""

from __future__ import annotations

import contextlib
import math
import struct
import zipfile
from typing import TYPE_CHECKING, Any

import torch

from dra_scvi._folder.pickles import Built, Name, RefusedPickleError, Storage, assemble, describe
from dra_scvi._folder.values import BUILDERS, NAMES, check_shape, demand

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DTYPES = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}

_BEFORE_ARCHIVES = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46"

# What ZIP's reader and the descriptions of damaged pickles raise.
_DAMAGE = (
    zipfile.BadZipFile,
    struct.error,
    ValueError,
    LookupError,
    TypeError,
    ArithmeticError,
    NotImplementedError,
    RuntimeError,
    EOFError,
)


def read_archive(path: Path) -> Any:
    """Return what a file of ``torch.save`` holds, of plain values, arrays and tensors alone.

    A :class:`RefusedPickleError` where it holds, or asks for, anything else; another ValueError
    where it is damaged or of another kind. Nobody else may write to the file.
    """
    with path.open("rb") as content:
        if content.read(len(_BEFORE_ARCHIVES)) == _BEFORE_ARCHIVES:
            raise RefusedPickleError("it is of the format that torch had before archives")
    with _damage_told(), zipfile.ZipFile(path) as archive:
        records = _Records(archive, path.stat().st_size)
        return _read(records.pickle(), records)


def read_pickle(content: bytes) -> Any:
    """Return what a plain pickle holds, as :func:`read_archive` does."""
    with _damage_told():
        return _read(content, None)


@contextlib.contextmanager
def _damage_told() -> Iterator[None]:
    """Say in two words what any error but a refusal means."""
    try:
        yield
    except RefusedPickleError:
        raise
    except _DAMAGE as error:
        raise ValueError(f"corrupt or truncated ({type(error).__name__})") from error


def _read(content: bytes, records: _Records | None) -> Any:
    description, names = describe(content)
    tensors = {
        "torch._utils._rebuild_tensor_v2": _tensor,
        "torch._utils._rebuild_parameter": _parameter,
    }
    builders = {**BUILDERS, **tensors} if records else BUILDERS
    foreign = tuple(sorted(names - builders.keys() - NAMES - DTYPES.keys()))
    if foreign:
        raise RefusedPickleError("it would import what no saved model needs", foreign)
    open_storage = records.open if records else _no_storage
    return assemble(description, builders, open_storage)


def _no_storage(storage: Storage) -> Any:
    raise RefusedPickleError(f"it asks for something outside of it: {storage.args[:1]}")


class _Records:
    """The records of an archive: stored as they are, each once, none beyond the file."""

    def __init__(self, archive: zipfile.ZipFile, size: int) -> None:
        self.archive = archive
        entries = archive.infolist()
        self.entries = {entry.filename: entry for entry in entries}
        pickles = [name for name in self.entries if name.endswith("/data.pkl")]
        if len(self.entries) != len(entries) or len(pickles) != 1:
            raise ValueError("records that torch.save does not write")
        if any(e.compress_type != zipfile.ZIP_STORED or e.flag_bits & 1 for e in entries):
            raise ValueError("compressed records")
        if any(entry.header_offset < 0 for entry in entries):
            raise ValueError("records before the beginning of the file")
        if sum(entry.file_size for entry in entries) > size:
            raise ValueError("records that are larger than the file")
        self.root = pickles[0].removesuffix("data.pkl")
        self.storages: dict[str, torch.Tensor] = {}

    def pickle(self) -> bytes:
        order = f"{self.root}byteorder"
        if order in self.entries and self.archive.read(order) != b"little":
            raise ValueError("numbers of a machine with another order of bytes")
        return self.archive.read(f"{self.root}data.pkl")

    def open(self, storage: Storage) -> torch.Tensor:
        """Return all elements of a storage; those that share one in the file share it here."""
        what = "a storage"
        demand(len(storage.args) == 5 and storage.args[0] == "storage", what)
        _, kind, key, device, size = storage.args
        demand(isinstance(kind, Name) and kind.text in DTYPES, what)
        demand(type(key) is str and type(device) is str and type(size) is int, what)
        dtype = DTYPES[kind.text]
        record = f"{self.root}data/{key}"
        demand(record in self.entries, what)
        demand(self.entries[record].file_size == size * dtype.itemsize, what)
        if key not in self.storages:
            content = bytearray(self.archive.read(record))
            self.storages[key] = (
                torch.frombuffer(content, dtype=torch.uint8) if content else torch.empty(0)
            )
        if size == 0:
            return torch.empty(0, dtype=dtype)
        elements = self.storages[key]
        demand(dtype != torch.bool or not bool((elements > 1).any()), what)
        return elements.view(dtype)


def _tensor(built: Built) -> torch.Tensor:
    """Return the elements of a storage that a size, a stride and an offset choose."""
    what = "a tensor"
    demand(len(built.args) == 6 and not built.items and built.state is None, what)
    elements, offset, size, stride, needs_gradient, hooks = built.args
    demand(isinstance(elements, torch.Tensor) and elements.ndim == 1, what)
    demand(type(needs_gradient) is bool and hooks == {}, what)
    check_shape(size, what)
    check_shape(stride, what)
    demand(type(offset) is int and offset >= 0 and len(size) == len(stride), what)
    number = math.prod(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    demand(number <= len(elements), what)
    demand(number == 0 or last < len(elements), what)
    if number == 0:
        return torch.empty(size, dtype=elements.dtype)
    return elements.as_strided(size, stride, offset)


def _parameter(built: Built) -> torch.Tensor:
    demand(len(built.args) == 3 and not built.items and built.state is None, "a parameter")
    tensor, needs_gradient, hooks = built.args
    is_known = isinstance(tensor, torch.Tensor) and type(needs_gradient) is bool and hooks == {}
    demand(is_known, "a parameter")
    return tensor
