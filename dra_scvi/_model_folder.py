"""The folder of a saved model: written whole or not at all, checked before anything is opened.

A save is what scvi-tools writes and a manifest with checksums. A new folder is written beside its
place and renamed. In a folder that exists, the files are staged in a hidden subfolder; replacing
the manifest by theirs, one rename, makes them the model, and they are then moved to where
scvi-tools looks for them. A reader takes whatever matches the manifest, so that a process that
dies, at any moment, leaves the old model or the new one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pickle
import shutil
import struct
import tempfile
import time
import uuid
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.serialization import get_unsafe_globals_in_checkpoint

from dra_scvi._exceptions import UntrustedModelError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["MODEL", "atomic_save", "checked_copy", "read_model"]

MODEL = "model.pt"
DATA = "adata.h5ad"
MANIFEST = "manifest.json"
FORMAT = 1
PACKAGES = ("dra_scvi", "scvi-tools", "torch", "lightning", "anndata", "numpy", "pandas")

_STAGE = ".staged-"
_DRAFT = ".draft-"
_CHUNK = 2**20
_ATTEMPTS = 200
_PAUSE = 0.01
_SETTLED = 3

# What saved models import, in addition to what torch itself holds for safe: the builders of plain
# containers and of NumPy's and pandas' objects, under the names of several versions.
_ALLOWED = frozenset(
    f"{module}.{name}"
    for module, names in {
        "builtins": "bytes dict frozenset list slice tuple",
        "collections": "defaultdict",
        "numpy": "dtype ndarray",
        "numpy.core.multiarray": "_reconstruct scalar",
        "numpy._core.multiarray": "_reconstruct scalar",
        "pandas": "Categorical CategoricalDtype CategoricalIndex DataFrame Index RangeIndex "
        "Series StringDtype",
        "pandas.arrays": "ArrowStringArray StringArray",
        "pandas.core.arrays.categorical": "Categorical",
        "pandas.core.arrays.string_": "StringArray StringDtype",
        "pandas.core.arrays.string_arrow": "ArrowStringArray",
        "pandas.core.dtypes.dtypes": "CategoricalDtype",
        "pandas.core.frame": "DataFrame",
        "pandas.core.indexes.base": "Index _new_Index",
        "pandas.core.indexes.category": "CategoricalIndex",
        "pandas.core.indexes.range": "RangeIndex",
        "pandas.core.internals.managers": "BlockManager SingleBlockManager",
        "pandas.core.series": "Series",
        "pandas._libs.arrays": "__pyx_unpickle_NDArrayBacked",
        "pandas._libs.internals": "_unpickle_block",
        "pyarrow.lib": "_restore_array chunked_array py_buffer type_for_alias",
    }.items()
    for name in names.split()
)


# -- writing -----------------------------------------------------------------------------------


@contextlib.contextmanager
def atomic_save(
    path: str | os.PathLike[str],
    prefix: str = "",
    overwrite: bool = False,
    facts: Mapping[str, Any] | None = None,
) -> Iterator[Path]:
    """Yield an empty folder whose files become the model at `path` when the block ends.

    When the block fails, or the process dies, `path` holds what it held before; from the moment
    when all files are complete and on disk, it holds the new model. Files of other names in a
    folder that exists are left alone. Processes that save to one folder take turns.

    Parameters
    ----------
    path
        Folder of the model; its parents are created.
    prefix
        What the names of its files begin with.
    overwrite
        Whether the folder may exist.
    facts
        What the manifest says in addition to checksums and versions.

    Raises
    ------
    FileExistsError
        When the folder exists and may not be overwritten.

    Examples
    --------
    >>> folder = Path(tempfile.mkdtemp()) / "model"
    >>> with atomic_save(folder) as draft:
    ...     _ = (draft / "model.pt").write_bytes(b"weights")
    >>> sorted(file.name for file in folder.iterdir())
    ['manifest.json', 'model.pt']
    """
    path = Path(path).resolve()
    if path.exists() and not (overwrite and path.is_dir()):
        raise FileExistsError(f"{path} exists; pass overwrite=True, or choose another folder.")
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        is_new = not path.exists()
        if not is_new:
            stack.enter_context(_turn(path))
        draft = _name_draft(path, is_new)
        stack.callback(shutil.rmtree, draft, ignore_errors=True)
        draft.mkdir()
        yield draft
        _write_manifest(draft, path, prefix, facts or {})
        if is_new:
            if _take_place(draft, path, overwrite):
                return
            stack.enter_context(_turn(path))
        _replace(draft, path, prefix)


def _name_draft(path: Path, is_new: bool) -> Path:
    """Name a draft on the file system of the model: in its folder, or beside a new one."""
    unique = f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
    return path.with_name(f".{unique}-{path.name}") if is_new else path / f"{_DRAFT}{unique}"


def _take_place(draft: Path, path: Path, overwrite: bool) -> bool:
    """Make the draft the folder that did not exist; return whether it still did not."""
    try:
        draft.rename(path)
    except OSError:
        if not (overwrite and path.is_dir()):
            raise
        return False
    _flush_folder(path.parent)
    return True


def _replace(draft: Path, path: Path, prefix: str) -> None:
    """Make the draft the model in a folder that exists."""
    name = prefix + MANIFEST
    text = (draft / name).read_bytes()
    stage = path / _stage_name(json.loads(text), prefix)
    draft.rename(stage)
    _flush_folder(path)
    manifest = _name_draft(path, is_new=False)
    _write_flushed(manifest, text)
    manifest.replace(path / name)  # from here on the folder holds the new model
    _flush_folder(path)
    _move(stage, path)


def _stage_name(manifest: Mapping[str, Any], prefix: str) -> str:
    """Name the folder of staged files after what they hold, so that the manifest points to it."""
    return _STAGE + manifest["files"][prefix + MODEL]["sha256"][:16]


def _move(stage: Path, path: Path) -> None:
    for file in sorted(stage.iterdir()):
        if not file.name.endswith(MANIFEST):
            file.replace(path / file.name)
    shutil.rmtree(stage)
    _flush_folder(path)


@contextlib.contextmanager
def _turn(path: Path) -> Iterator[None]:
    """Wait until no other process saves to a folder, and finish what one that died has begun."""
    with _lock(path) as is_alone:
        for stage in sorted(path.glob(f"{_STAGE}*")):
            manifests = [file.name for file in stage.glob(f"*{MANIFEST}")]
            if any(_same(stage / name, path / name) for name in manifests):
                _move(stage, path)
            else:
                shutil.rmtree(stage)
        if is_alone:
            for draft in path.glob(f"{_DRAFT}*"):
                if draft.is_dir():
                    shutil.rmtree(draft)
                else:
                    draft.unlink()
        yield


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[bool]:
    """Lock a folder, which leaves no trace and ends with the process; yield whether it is ours."""
    if fcntl is None:
        yield False
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            is_ours = True
        except OSError:  # some network file systems have no locks
            is_ours = False
        yield is_ours
    finally:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def _same(one: Path, other: Path) -> bool:
    return other.exists() and one.read_bytes() == other.read_bytes()


def _write_manifest(draft: Path, path: Path, prefix: str, facts: Mapping[str, Any]) -> None:
    """Describe the files of a draft, and flush all to disk."""
    files = {file.name: _describe(file) for file in sorted(draft.iterdir())}
    data = prefix + DATA
    if data not in files and (path / data).exists():  # it stays, as with scvi-tools
        files[data] = _described_before(path, prefix, data) or _describe(path / data)
    manifest = {
        "format": FORMAT,
        **facts,
        "versions": {name: version(name) for name in PACKAGES},
        "files": files,
    }
    for file in draft.iterdir():
        with file.open("rb+") as content:
            os.fsync(content.fileno())
    _write_flushed(draft / (prefix + MANIFEST), (json.dumps(manifest, indent=1) + "\n").encode())
    _flush_folder(draft)


def _write_flushed(file: Path, content: bytes) -> None:
    with file.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _described_before(path: Path, prefix: str, name: str) -> dict[str, Any] | None:
    """Return what the manifest to be replaced says of a file; a damaged one says nothing."""
    with contextlib.suppress(ValueError):
        return _expected(_read_manifest(path, prefix), name)
    return None


def _describe(file: Path) -> dict[str, Any]:
    with file.open("rb") as content:
        sha256 = hashlib.file_digest(content, "sha256").hexdigest()
    return {"size": file.stat().st_size, "sha256": sha256}


def _flush_folder(folder: Path) -> None:
    """Flush the names in a folder to disk, where the system can do that."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


# -- reading -----------------------------------------------------------------------------------


@contextlib.contextmanager
def checked_copy(
    path: str | os.PathLike[str],
    prefix: str = "",
    *,
    trusted: bool = False,
    with_data: bool = False,
) -> Iterator[Path]:
    """Yield a private copy of a saved model: all of one save, undamaged, without foreign code.

    What is checked is what is then opened, whatever happens to the original in the meantime. A
    model that another process is replacing is copied as it was before or as it is afterwards.

    Parameters
    ----------
    path
        Folder of the model.
    prefix
        What the names of its files begin with.
    trusted
        Whether the model may import anything, and so run any code, when it is opened.
    with_data
        Whether to copy cells that were saved with the model.

    Raises
    ------
    FileNotFoundError
        When there is no model.
    ValueError
        When a file is not what the manifest says; saves of plain scvi-tools have none.
    UntrustedModelError
        When the model would import what no model needs, or hides what it would import.
    """
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(
            f"{path} does not exist; it should be the folder of a saved model."
        )
    names = [prefix + MODEL, prefix + DATA] if with_data else [prefix + MODEL]
    with tempfile.TemporaryDirectory(prefix="dra_scvi-") as name:
        copy = Path(name)
        _copy_save(path, copy, prefix, names)
        if not trusted:
            _refuse_foreign_code(copy / names[0], path / names[0])
        yield copy


def _copy_save(path: Path, copy: Path, prefix: str, names: list[str]) -> None:
    """Copy files that agree with one manifest, again where another process is replacing them."""
    settled = 0
    for _ in range(_ATTEMPTS):
        manifest = _read_manifest(path, prefix)
        found = [_copy_file(path, copy, name, manifest, prefix) for name in names]
        faults = [fault for fault in found if fault is not None]
        if not faults:
            return
        settled = settled + 1 if _read_manifest(path, prefix) == manifest else 0
        if settled == _SETTLED:
            break
        time.sleep(_PAUSE)
    raise faults[0]


def _copy_file(
    path: Path, copy: Path, name: str, manifest: dict[str, Any] | None, prefix: str
) -> Exception | None:
    """Copy a file from its place, or from where it is staged; return what is wrong with it."""
    expected = _expected(manifest, name)
    if name == prefix + DATA and expected is None and not (path / name).exists():
        return None
    fault: Exception = FileNotFoundError(f"{path} holds no {name}: it is not a saved model.")
    places = [path / name]
    if manifest is not None:
        places.append(path / _stage_name(manifest, prefix) / name)
    for place in places:
        try:
            found = _copied(place, copy / name)
        except FileNotFoundError:
            continue
        if expected is None or found == expected:
            return None
        fault = ValueError(
            f"{path / name} is corrupt or truncated: it is not the file that was saved (now "
            f"{found['size']} bytes, then {expected['size']}). Restore it from a copy."
        )
    return fault


def _copied(source: Path, target: Path) -> dict[str, Any]:
    """Copy a file, and describe what was copied."""
    sha256, size = hashlib.sha256(), 0
    with source.open("rb") as content, target.open("wb") as copy:
        while chunk := content.read(_CHUNK):
            sha256.update(chunk)
            size += copy.write(chunk)
    return {"size": size, "sha256": sha256.hexdigest()}


def _expected(manifest: dict[str, Any] | None, name: str) -> dict[str, Any] | None:
    return None if manifest is None else manifest["files"].get(name)


def _read_manifest(path: Path, prefix: str) -> dict[str, Any] | None:
    """Return the manifest of a model, or `None` where it was saved without."""
    file = path / (prefix + MANIFEST)
    try:
        manifest = json.loads(file.read_bytes())
        made_by, model = manifest["format"], manifest["files"][prefix + MODEL]
        is_sound = isinstance(made_by, int) and {"size", "sha256"} <= model.keys()
    except FileNotFoundError:
        return None
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is corrupt or truncated.") from error
    if not is_sound:
        raise ValueError(f"{file} is corrupt or truncated.")
    if made_by > FORMAT:
        raise ValueError(f"{file} was written by a later version of dra_scvi; update dra_scvi.")
    return manifest


def _refuse_foreign_code(file: Path, shown: Path) -> None:
    """Look at what a file would import, without importing it."""
    trust = "If you know where it comes from, DRA.load(..., trusted=True) loads it."
    try:
        names = sorted(set(get_unsafe_globals_in_checkpoint(file)) - _ALLOWED)
    except (RuntimeError, OSError, EOFError, LookupError, struct.error) as error:
        raise ValueError(f"{shown} is corrupt or truncated.") from error
    except (ValueError, pickle.UnpicklingError) as error:
        raise UntrustedModelError(
            f"{shown} is not a model saved by scvi-tools, or damaged: it cannot be told what code "
            f"it would run. {trust}"
        ) from error
    if names:
        raise UntrustedModelError(
            f"{shown} would import what no saved model needs: {', '.join(names)}. Nothing of it "
            f"was run. {trust}",
            names,
        )


def read_model(folder: Path, prefix: str = "") -> dict[str, Any]:
    """Return what a model consists of, out of a :func:`checked_copy`.

    Parameters
    ----------
    folder
        The copy.
    prefix
        What the names of its files begin with.

    Raises
    ------
    ValueError
        When it is damaged, or not a model of scvi-tools.
    """
    try:
        content = torch.load(folder / (prefix + MODEL), map_location="cpu", weights_only=False)
        missing = {"attr_dict", "model_state_dict", "var_names"} - content.keys()
    except (ImportError, MemoryError):
        raise
    except Exception as error:
        raise ValueError(
            f"{prefix + MODEL} is corrupt or truncated ({type(error).__name__})."
        ) from error
    if missing:
        raise ValueError(f"{prefix + MODEL} is not a model saved by scvi-tools.")
    return content
