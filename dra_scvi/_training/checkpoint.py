"""The file of a checkpoint: plain data and tensors behind a checksum, read without any pickle."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning.pytorch.plugins.io import CheckpointIO, TorchCheckpointIO

from dra_scvi._outputs.files import atomic_path
from dra_scvi._training.checkpoint_check import check_content, check_form
from dra_scvi._training.identity import check_identity

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from dra_scvi._training.identity import Identity


MAGIC = b"dra_scvi checkpoint 2\n"
REMEDY = "delete it to start from the beginning"
_LENGTH = 8
_DIGEST = hashlib.sha256().digest_size
_DTYPES = {
    str(dtype): dtype
    for dtype in vars(torch).values()
    if isinstance(dtype, torch.dtype) and not str(dtype).startswith(("torch.q", "torch.bits"))
}


class PlainCheckpoints(TorchCheckpointIO):
    """Lightning's own checkpoints, of which nothing but tensors and plain data is read."""

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read what Lightning wrote; what would import more is refused."""
        return torch.load(path, map_location=map_location, weights_only=True)


def with_plain_checkpoints(plugins: Any) -> list[Any]:
    """Add :class:`PlainCheckpoints` to the plugins of a trainer that have no such part."""
    given = list(plugins) if isinstance(plugins, list | tuple) else [plugins] if plugins else []
    has_one = any(isinstance(plugin, CheckpointIO) for plugin in given)
    return given if has_one else [*given, PlainCheckpoints()]


class CheckpointFile(PlainCheckpoints):
    """Where Lightning keeps the state of a training: one file, whole or not at all, verified.

    What Lightning goes on from has been read by :func:`read_checkpoint`, and its identity compared
    with that of the training at hand. Files at other places, of callbacks of the caller's own, are
    Lightning's.

    A file that cannot be written is noted in `problem` and not raised: a training does not end for
    want of a copy of its state, and of several processes only the first one would know.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        self.identity: Identity = {}
        self.form: dict[str, Any] = {}  # of what is read, as the training at hand has it
        self.is_restoring = False
        self.problem: Exception | None = None

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write the state of training, with what training it is of."""
        if Path(path) != self.path:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        try:
            write_checkpoint({**checkpoint, "identity": self.identity}, self.path)
        except (OSError, TypeError) as error:
            self.problem = error
        else:
            self.problem = None

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read the state of this training; one that is damaged, or of another, is refused."""
        if Path(path) != self.path:
            return super().load_checkpoint(path, map_location)
        checkpoint = read_checkpoint(self.path)
        check_identity(self.path, checkpoint.pop("identity"), self.identity)
        with _naming(self.path):
            for name, own in self.form.items():
                check_form(checkpoint[name], own, name)
        self.is_restoring = True
        return checkpoint

    @contextlib.contextmanager
    def naming_itself(self) -> Iterator[None]:
        """Name the file where Lightning, or an optimizer, fails over a state that was read."""
        try:
            yield
        except Exception as error:
            if not self.is_restoring:
                raise
            with _naming(self.path):
                raise ValueError(f"{type(error).__name__}: {error}") from error


def write_checkpoint(content: dict[str, Any], path: Path) -> None:
    """Write plain data and tensors, in any nesting, whole or not at all.

    After :data:`MAGIC` come the length of a JSON text, that text, the values of the tensors in the
    order in which it names them, and a SHA-256 of all of this.
    """
    tensors: list[Tensor] = []
    text = json.dumps(_to_json(content, tensors)).encode()
    checksum = hashlib.sha256()
    with atomic_path(path) as partial, partial.open("wb") as file:
        for part in (MAGIC, len(text).to_bytes(_LENGTH, "little"), text, *_values(tensors)):
            checksum.update(part)
            file.write(part)
        file.write(checksum.digest())


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read what :func:`write_checkpoint` wrote, if it can be of a training.

    The checksum tells accidents. Who makes it for content of their own can mislead a training, and
    no more: nothing that is read here can name code.
    """
    found = read_content(path)
    with _naming(path):
        check_content(found)
    return found


def read_content(path: Path) -> Any:
    """Read an unharmed file of :func:`write_checkpoint`, whatever it holds."""
    if not path.is_file():
        raise ValueError(f"{path} is not a file, and so no checkpoint.")
    content = path.read_bytes()
    body = memoryview(content)[:-_DIGEST]
    if not content.startswith(MAGIC) or hashlib.sha256(body).digest() != content[-_DIGEST:]:
        raise ValueError(
            f"{path} is corrupt or truncated, or no checkpoint of this version of dra_scvi; "
            f"{REMEDY}."
        )
    with _naming(path):
        start = len(MAGIC) + _LENGTH
        stop = start + int.from_bytes(body[len(MAGIC) : start], "little")
        return _from_json(json.loads(bytes(body[start:stop])), _Buffer(body[stop:]))


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Name a file, and what to do, where its content is refused."""
    try:
        yield
    except Exception as error:
        problem = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"{path} does not hold the state of a training ({problem}); {REMEDY}."
        ) from error


def is_checkpoint(path: Path) -> bool:
    """Tell whether a file is a checkpoint, whole or not, or empty."""
    with path.open("rb") as file:
        beginning = file.read(len(MAGIC))
    return not beginning or beginning.startswith(MAGIC[: -len(b" 2\n")])


def _values(tensors: Sequence[Tensor]) -> Iterator[bytes]:
    for tensor in tensors:
        if tensor.numel():
            yield tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


def _to_json(value: Any, tensors: list[Tensor]) -> Any:
    """Describe a value in JSON; what is neither plain nor a list is marked by its kind."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, torch.Tensor):
        tensors.append(value.detach().cpu().contiguous())
        return {"tensor": [str(value.dtype), list(value.shape)]}
    if isinstance(value, list):
        return [_to_json(part, tensors) for part in value]
    if isinstance(value, tuple):
        return {"tuple": [_to_json(part, tensors) for part in value]}
    if isinstance(value, dict):
        return {"dict": [[_to_json(part, tensors) for part in item] for item in value.items()]}
    raise TypeError(f"a {type(value).__name__} cannot be kept in a checkpoint")


def _from_json(value: Any, buffer: _Buffer) -> Any:
    if isinstance(value, list):
        return [_from_json(part, buffer) for part in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return buffer.take(*content)
    parts = [_from_json(part, buffer) for part in content]
    return {"tuple": tuple, "dict": dict}[kind](parts)


class _Buffer:
    """Values of tensors, one after the other."""

    def __init__(self, values: memoryview) -> None:
        self._values, self._start = values, 0

    def take(self, name: str, shape: list[int]) -> Tensor:
        """Return the next tensor, which shares no memory with others."""
        dtype = _DTYPES[name]
        stop = self._start + math.prod(shape) * dtype.itemsize
        values = bytearray(self._values[self._start : stop])
        self._start = stop
        if not values:
            return torch.empty(shape, dtype=dtype)
        return torch.frombuffer(values, dtype=dtype).reshape(shape)
