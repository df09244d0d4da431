"""Saved models of other people: copied, checked against their manifest, read without running them.

A ``model.pt`` is a pickle, which can run any code. Here it is only described, the values in it are
written anew, and scvi-tools' own functions open what was written. Cells saved with a model are
opened only where all that is in their file is in it.
"""

from __future__ import annotations

import contextlib
import hashlib
import pickle
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dra_scvi._exceptions import UntrustedModelError
from dra_scvi._folder.archive import read_archive, read_pickle
from dra_scvi._folder.manifest import (
    DATA,
    MODEL,
    check_prefix,
    expected,
    find_model_folder,
    open_file,
    read_manifest,
    stage_name,
)
from dra_scvi._folder.pickles import RefusedPickleError
from dra_scvi._inputs.hdf5_probe import check_hdf5
from dra_scvi._module.embedding import with_present_names

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping

_CHUNK = 2**20
_ATTEMPTS = 200
_PAUSE = 0.01
_SETTLED = 3

_TRUST = "If you know where it comes from, DRA.load(..., trusted=True) loads it."

# What scvi-tools saves of a model that was set up with a data module, beside names that end in _.
_OF_DATA_MODULES = frozenset(
    [
        "batch_labels",
        "label_keys",
        "n_batch",
        "n_extra_categorical_covs",
        "n_extra_continuous_covs",
        "n_labels",
        "n_sample",
        "n_vars",
    ]
)
_METHODS = ("setup_anndata", "setup_datamodule")


@contextlib.contextmanager
def checked_copy(
    path: str | os.PathLike[str],
    prefix: str | None = None,
    *,
    trusted: bool = False,
    with_data: bool = False,
) -> Iterator[Path]:
    """Yield a private copy of a saved model: all of one save, undamaged, of plain values alone.

    What is checked is what is then opened, whatever happens to the original in the meantime. A
    model that another process is replacing is copied as it was before or as it is afterwards. One
    that is `trusted` may import anything, and so run any code, when it is opened. Cells that were
    saved with a model are copied where `with_data` asks for them.
    """
    prefix = check_prefix(prefix)
    path = find_model_folder(path)
    names = [prefix + MODEL, prefix + DATA] if with_data else [prefix + MODEL]
    with tempfile.TemporaryDirectory(prefix="dra_scvi-") as folder:
        copy = Path(folder)
        _copy_save(path, copy, prefix, names)
        if not trusted:
            torch.save(read_values(copy / names[0], path / names[0]), copy / names[0])
            if (copy / (prefix + DATA)).exists():
                _check_data(copy / (prefix + DATA), path / (prefix + DATA))
        yield copy


# -- files -------------------------------------------------------------------------------------


def _copy_save(path: Path, copy: Path, prefix: str, names: list[str]) -> None:
    """Copy files that agree with one manifest, again where another process is replacing them."""
    settled = 0
    for _ in range(_ATTEMPTS):
        manifest = read_manifest(path, prefix)
        found = [_copy_file(path, copy, name, manifest, prefix) for name in names]
        faults = [fault for fault in found if fault is not None]
        if not faults:
            return
        settled = settled + 1 if read_manifest(path, prefix) == manifest else 0
        if settled == _SETTLED:
            break
        time.sleep(_PAUSE)
    raise faults[0]


def _copy_file(
    path: Path, copy: Path, name: str, manifest: Mapping[str, Any] | None, prefix: str
) -> Exception | None:
    """Copy a file from its place, or from where it is staged; return what is wrong with it."""
    wanted = expected(manifest, name)
    if name == prefix + DATA and wanted is None and not (path / name).exists():
        return None
    fault: Exception = FileNotFoundError(f"{path} holds no {name}: it is not a saved model.")
    places = [path / name]
    if manifest is not None:
        places.append(path / stage_name(manifest, prefix) / name)
    for place in places:
        try:
            found = _copied(place, copy / name)
        except FileNotFoundError:
            continue
        if wanted is None or found == wanted:
            return None
        fault = ValueError(
            f"{path / name} is corrupt or truncated: it is not the file that was saved (now "
            f"{found['size']} bytes, then {wanted['size']}). Restore it from a copy."
        )
    return fault


def _copied(source: Path, target: Path) -> dict[str, Any]:
    """Copy a file, and describe what was copied."""
    sha256, size = hashlib.sha256(), 0
    with open_file(source) as content, target.open("wb") as copy:
        while chunk := content.read(_CHUNK):
            sha256.update(chunk)
            size += copy.write(chunk)
    return {"size": size, "sha256": sha256.hexdigest()}


# -- values ------------------------------------------------------------------------------------


def read_values(file: Path, shown: Path) -> dict[str, Any]:
    """Return the values of a model, out of a file that nobody else writes to.

    `shown` is what it is called in messages.
    """
    content = _read_plain(file, shown)
    _check_model(content, shown)
    return content


def _read_plain(file: Path, shown: Path) -> Any:
    """Return the values of a file of ``torch.save``, or of a pickle; nothing in it is run."""
    try:
        return read_archive(file) if file.suffix == ".pt" else read_pickle(file.read_bytes())
    except RefusedPickleError as error:
        raise _untrusted(shown, error) from error
    except ValueError as error:
        raise ValueError(f"{shown} is {error}, or not a model saved by scvi-tools.") from error


def _untrusted(shown: Path, error: RefusedPickleError) -> UntrustedModelError:
    found = f"{error}: {', '.join(error.names)}" if error.names else str(error)
    return UntrustedModelError(
        f"{shown} holds more than the values of a model: {found}. Nothing of it was run. {_TRUST}",
        error.names,
    )


def _check_model(content: Any, shown: Path) -> None:
    """Check that values are those of a model, and steer nothing but how one is built.

    scvi-tools calls a method that the file names, and sets what attributes it names. The store of
    Pyro, which belongs to the whole process, is left out: this model has nothing in it.
    """
    fault = ValueError(f"{shown} is not a model saved by scvi-tools.")
    if not _is_model(content):
        raise fault
    attributes, weights = content["attr_dict"], content["model_state_dict"]
    registry = attributes["registry_"]
    weights.pop("pyro_param_store", None)
    if not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise fault
    with_present_names(weights)
    method = registry.get("setup_method_name", "setup_anndata")
    if method not in _METHODS:
        raise ValueError(
            f"{shown} is a model that is set up with {method!r}; DRA takes those of AnnData."
        )
    strange = [name for name in attributes if not _is_attribute(name)]
    getter = attributes.get("get_normalized_function_name_", "get_normalized_expression")
    if strange or getter != "get_normalized_expression":
        raise UntrustedModelError(
            f"{shown} would change {strange[0] if strange else getter!r} of a model, which no "
            f"saved model needs. {_TRUST}"
        )


def _is_model(content: Any) -> bool:
    if not isinstance(content, dict):
        return False
    attributes, weights = content.get("attr_dict"), content.get("model_state_dict")
    genes = content.get("var_names")
    if not (isinstance(attributes, dict) and isinstance(weights, dict)):
        return False
    is_named = isinstance(genes, np.ndarray) and genes.ndim == 1 and genes.dtype.kind in "OU"
    parts = [attributes.get(name) for name in ("registry_", "init_params_")]
    return is_named and all(isinstance(part, dict) for part in parts)


def _is_attribute(name: Any) -> bool:
    is_public = isinstance(name, str) and name.isidentifier() and not name.startswith("_")
    return is_public and (name.endswith("_") or name in _OF_DATA_MODULES)


def _check_data(file: Path, shown: Path) -> None:
    """Check that cells saved with a model are in their own file, and that it can be walked."""
    try:
        check_hdf5(file)
    except (OSError, ValueError) as error:
        found = str(error).replace(str(file), str(shown)).rstrip(".")
        raise ValueError(f"{shown} is refused: {found}. {_TRUST}") from error


def read_model(folder: Path, prefix: str | None = None) -> dict[str, Any]:
    """Return what a model consists of, out of a :func:`checked_copy`."""
    name = check_prefix(prefix) + MODEL
    try:
        content = torch.load(folder / name, map_location="cpu", weights_only=False)
        missing = {"attr_dict", "model_state_dict", "var_names"} - content.keys()
    except (ImportError, MemoryError):
        raise
    except Exception as error:
        raise ValueError(f"{name} is corrupt or truncated ({type(error).__name__}).") from error
    if missing:
        raise ValueError(f"{name} is not a model saved by scvi-tools.")
    return content


# -- saves of scvi-tools before 0.15 -----------------------------------------------------------


@contextlib.contextmanager
def legacy_copy(path: str | os.PathLike[str], prefix: str | None = None) -> Iterator[Path]:
    """Yield a private copy of a save as scvi-tools wrote it before 0.15, of plain values alone."""
    prefix, path = check_prefix(prefix), find_model_folder(path)
    weights, genes, attributes = (
        prefix + name for name in ("model_params.pt", "var_names.csv", "attr.pkl")
    )
    with tempfile.TemporaryDirectory(prefix="dra_scvi-") as folder:
        copy = Path(folder)
        for name in (weights, genes, attributes):
            with open_file(path / name) as content, (copy / name).open("wb") as target:
                shutil.copyfileobj(content, target)
        torch.save(_read_plain(copy / weights, path / weights), copy / weights)
        values = _read_plain(copy / attributes, path / attributes)
        (copy / attributes).write_bytes(pickle.dumps(values))
        yield copy
