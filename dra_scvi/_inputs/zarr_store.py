"""What a zarr store declares and consists of, looked at before a library opens it.

A codec of version 2 of the format may build any Python object, and a link may lead anywhere.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dra_scvi._exceptions import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

# those of anndata and zarr that turn bytes into numbers and text, and nothing else
CODECS = frozenset(
    "adler32 astype bitround blosc bytes bz2 crc32 crc32c delta endian fixedscaleoffset "  # noqa: SIM905
    "fletcher32 gzip jenkins_lookup3 lz4 lzma packbits pcodec quantize sharding_indexed shuffle "
    "transpose vlen-bytes vlen-utf8 zfpy zlib zstd".split()
)
CODECS_OF_TEXT = ("vlen-utf8", "vlen-bytes")
DECLARATIONS = (".zarray", ".zmetadata", "zarr.json")
LARGEST_DECLARATION = 2**26
ANEW = "If you trust it, read it in Python and write it anew"


def is_zarr(path: Path) -> bool:
    """Whether a path is a folder that zarr has marked as a store."""
    return path.is_dir() and any((path / name).exists() for name in (".zgroup", "zarr.json"))


def is_h5ad(path: Path) -> bool:
    """Whether a path is named as a file of an AnnData, in any case."""
    return path.suffix.lower() == ".h5ad"


def check_store(path: Path) -> None:
    """Check that all of a store lies in it, and that its arrays hold numbers and text.

    Refused by their declaration, whichever version of zarr is installed, are links that lead out
    of the store, what is neither file nor folder, and codecs that may make objects.
    """
    for entry in _entries(path):
        if entry.is_symlink() and not _leads_into(Path(entry.path), path):
            raise InputError(
                f"{entry.path} is a link that leads out of the zarr store. If you trust it, copy "
                "the store with what it links to: cp -rL."
            )
        if not entry.is_dir() and not entry.is_file():
            raise InputError(f"{entry.path} is neither a file nor a folder, but part of a store.")
        if entry.name in DECLARATIONS:
            _check_declaration(Path(entry.path))


def store_state(path: Path) -> tuple[tuple[str, int, int, int], ...]:
    """Tell from all files of a store, and without their content, whether one has changed."""
    found = []
    for entry in _entries(path):
        state = entry.stat()
        if stat.S_ISREG(state.st_mode):
            found.append((entry.path, state.st_ino, state.st_size, state.st_mtime_ns))
    return tuple(sorted(found))


def _entries(path: Path) -> Iterator[os.DirEntry[str]]:
    """All files and folders; linked folders are named, and not entered."""
    with os.scandir(path) as entries:
        for entry in entries:
            yield entry
            if entry.is_dir(follow_symlinks=False):
                yield from _entries(Path(entry.path))


def _leads_into(link: Path, store: Path) -> bool:
    """Whether a link leads to a file of the store; one to a folder may make a circle."""
    target = link.resolve()
    return target.is_relative_to(store.resolve()) and target.is_file()


def _check_declaration(path: Path) -> None:
    if path.stat().st_size > LARGEST_DECLARATION:
        raise InputError(f"{path} is too large to declare arrays.")
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.name} is not JSON ({error})") from error
    for name, codec in _codecs(content, path):
        if str(codec).removeprefix("numcodecs.") not in CODECS:
            raise InputError(
                f"{name} is stored with the codec {codec!r}, which may build objects and run "
                f"code, or is unknown here. {ANEW}."
            )


def _codecs(content: Any, path: Path) -> Iterator[tuple[str, Any]]:
    """Names of all codecs that a file declares, each with what it is for."""
    if not isinstance(content, dict):
        return
    for key in ("compressor", "filters", "codecs", "object_codec", "storage_transformers"):
        for codec in _named(content.get(key)):
            yield str(path.parent), codec
    is_text = next(_named(content.get("filters")), None) in CODECS_OF_TEXT
    if _holds_objects(content.get("dtype")) and not is_text:
        raise InputError(f"{path.parent} is an array of objects that are no text. {ANEW}.")
    several = content if path.name == ".zmetadata" else content.get("consolidated_metadata")
    several = several.get("metadata") if isinstance(several, dict) else None
    for name, inner in (several if isinstance(several, dict) else {}).items():
        if ".." in str(name).split("/"):
            raise InputError(f"{path} names {name!r}, which leads out of the store.")
        yield from _codecs(inner, path.parent / str(name) / "consolidated")


def _holds_objects(dtype: Any) -> bool:
    """Whether a type of values of version 2 is, or has a field, of objects."""
    if isinstance(dtype, list):
        return any(map(_holds_objects, dtype))
    return isinstance(dtype, str) and dtype.lstrip("<>|=") == "O"


def _named(codec: Any) -> Iterator[Any]:
    """Names of a codec and of those that it is made of."""
    if isinstance(codec, list):
        for part in codec:
            yield from _named(part)
    elif isinstance(codec, str):
        yield codec
    elif isinstance(codec, dict):
        yield codec.get("id", codec.get("name"))
        inner = codec.get("configuration")
        for part in (codec, inner if isinstance(inner, dict) else {}):
            for key in ("codecs", "index_codecs", "compressor_config"):
                yield from _named(part.get(key))
