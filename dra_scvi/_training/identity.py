"""What makes a training the one it is: cells, seed, settings, device and versions, compared."""

from __future__ import annotations

import hashlib
import json
import warnings
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from scipy import sparse
from scvi import REGISTRY_KEYS, settings

from dra_scvi._data.matrices import blocks
from dra_scvi._data.stored_rows import is_stored
from dra_scvi._training.plain_settings import as_plain, not_comparable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from lightning.pytorch import LightningModule
    from scvi.data import AnnDataManager

    from dra_scvi._model.dra import DRA

Identity = dict[str, dict[str, Any]]


# what must be the same to the last digit, and what but for its last number
OWN_VERSION, OTHER_VERSIONS = "dra_scvi", ("scvi-tools", "torch", "lightning", "numpy", "numba")
TRAINER = (
    "max_epochs",
    "max_steps",
    "min_epochs",
    "min_steps",
    "accumulate_grad_batches",
    "gradient_clip_algorithm",
    "check_val_every_n_epoch",
    "limit_train_batches",
    "limit_val_batches",
    "overfit_batches",
    "val_check_interval",
    "num_sanity_val_steps",
    "precision",
)
# of which 1 is one minibatch, 1.0 all of them, and False neither 0 nor 0.0
KIND_MATTERS = (
    "limit_train_batches",
    "limit_val_batches",
    "overfit_batches",
    "val_check_interval",
    "drop_last",
)
SPLITTER = (
    "n_train",
    "n_val",
    "train_size",
    "validation_size",
    "shuffle_set_split",
    "load_sparse_tensor",
    "drop_last",
)
EARLY_STOPPING = ("monitor", "mode", "patience", "min_delta", "warmup_epochs")
NOT_OF_THE_PLAN = {"training", "prepare_data_per_node", "n_obs_training", "n_obs_validation"}


def training_identity(
    model: DRA, plan: LightningModule, trainer: Any, seed: int | None
) -> Identity:
    """Describe a training by everything that its result depends on.

    Counts are hashed whole, block by block where they are in a file or in chunks. Of settings,
    those count that hold, given or not. The data module of the trainer is set up. In ``"split"``
    is what follows from ``"settings"`` and ``"versions"``.
    """
    data = trainer.datamodule
    split = [np.asarray(getattr(data, f"{part}_idx", ())) for part in ("train", "val", "test")]
    cells = {name: as_plain(value) for name, value in _cells(model.adata_manager).items()}
    return {
        "settings": cells | held_settings(model, plan, trainer, seed),
        "versions": {name: version(name) for name in (OWN_VERSION, *OTHER_VERSIONS)},
        "split": {"cells trained on": {"digest": _digest(split)}},
    }


def held_settings(
    model: DRA, plan: LightningModule, trainer: Any, seed: int | None
) -> dict[str, Any]:
    """Return every setting that held in a training, given or not, as plain data."""
    data, device = trainer.datamodule, trainer.strategy.root_device.type
    found = {
        "seed": seed,
        "model": type(model).__name__,
        **model.registry["setup_args"],
        **model.init_arguments,
        **{name: getattr(trainer, name, None) for name in TRAINER},
        **_plan_settings(plan),
        "early_stopping": _early_stopping(trainer),
        "gradient_clip_val of the trainer": trainer.gradient_clip_val,
        **{name: getattr(data, name, None) for name in SPLITTER},
        "batch_size": settings.batch_size,
        **getattr(data, "data_loader_kwargs", {}),
        "device": device,
        "processes": trainer.world_size,
        "threads": torch.get_num_threads() if device == "cpu" else None,
    }
    return {name: as_plain(value) for name, value in found.items()}


def check_identity(path: Path, saved: Identity, now: Identity) -> None:
    """Check that a checkpoint is of the training at hand; the error names every difference.

    A version that differs in its last number only is warned of: results may differ then, in their
    last digits. So are settings that cannot be compared.
    """
    versions = _differences(saved["versions"], now["versions"])
    patches = [name for name in versions if _is_patch(name, saved["versions"], now["versions"])]
    different = _differences(saved["settings"], now["settings"])
    different |= {name: text for name, text in versions.items() if name not in patches}
    # another seed leads to another split: what follows is no news
    different = different or _differences(saved["split"], now["split"])
    if different:
        raise ValueError(
            f"{path} is of another training ({'; '.join(different.values())}): go on with what "
            "it was begun with, or delete it to start from the beginning."
        )
    unknown = {name: [*not_comparable(value)] for name, value in now["settings"].items()}
    kinds = [f"{name} ({', '.join(found)})" for name, found in unknown.items() if found]
    if kinds:
        warnings.warn(
            f"going on from {path}: whether {' and '.join(kinds)} did not change cannot be told",
            stacklevel=2,
        )
    if patches:
        warnings.warn(
            f"going on from {path} with other versions "
            f"({'; '.join(versions[name] for name in patches)}): results may differ from those "
            "of a run without a stop in their last digits",
            stacklevel=2,
        )


def _differences(saved: dict[str, Any], now: dict[str, Any]) -> dict[str, str]:
    """Say of everything that differs what it was and what it is."""
    found = {}
    for name in dict.fromkeys([*now, *saved]):
        was, is_now = (facts.get(name, "not set") for facts in (saved, now))
        if was != is_now or (name in KIND_MATTERS and type(was) is not type(is_now)):
            found[name] = _difference(name, was, is_now)
    return found


def _difference(name: str, was: Any, is_now: Any) -> str:
    if not all(isinstance(value, dict) and "digest" in value for value in (was, is_now)):
        return f"{name}: {_shown(was)} in the checkpoint, {_shown(is_now)} now"
    if "sum" in was and was["sum"] == is_now.get("sum"):
        return f"{name}: in another order"
    if was.get("n") != is_now.get("n"):
        return f"{name}: {was.get('n')} in the checkpoint, {is_now.get('n')} now"
    return f"{name}: others than in the checkpoint"


def _shown(value: Any) -> str:
    if isinstance(value, dict) and "digest" in value:
        return "set"
    return value if value == "not set" else repr(value)


def _is_patch(name: str, saved: dict[str, Any], now: dict[str, Any]) -> bool:
    """Tell whether two versions differ in no more than their last number."""
    first, second = (str(facts.get(name)).split(".")[:2] for facts in (saved, now))
    return name in OTHER_VERSIONS and first == second


def _cells(manager: AnnDataManager) -> dict[str, Any]:
    """Describe what is registered: names, counts, batches, covariates."""
    fields = manager.registry["field_registries"]
    counts = manager.get_from_registry(REGISTRY_KEYS.X_KEY)
    found: dict[str, Any] = {
        "cells": _of_names(manager.adata.obs_names),
        "genes": _of_names(manager.adata.var_names),
        "kind of counts": _kind(counts),
        "counts": {"digest": _digest(_parts(counts))},
    }
    for key in manager.data_registry:
        if key != REGISTRY_KEYS.X_KEY:
            values = manager.get_from_registry(key)
            names = json.dumps(as_plain(fields[key]["state_registry"])).encode()
            digest = _digest([_hashes(values), np.frombuffer(names, np.uint8)])
            found[f"values of {key}"] = {"digest": digest}
    return found


def _of_names(names: pd.Index) -> dict[str, Any]:
    hashes = _hashes(names.astype(str))
    # the sum is that of any order
    return {"n": len(hashes), "sum": str(hashes.sum()), "digest": _digest([hashes])}


def _hashes(values: Any) -> np.ndarray:
    """Hash the rows of a table, or the entries of an array, of any type."""
    table = pd.DataFrame(np.asarray(values))
    return pd.util.hash_pandas_object(table, index=False).to_numpy()


def _kind(counts: Any) -> str:
    held = "in a file or in chunks" if is_stored(counts) else "in memory"
    form = counts.format if sparse.issparse(counts) else type(counts).__name__
    return f"{form} of {getattr(counts, 'dtype', '?')} {held}"


def _parts(counts: Any) -> Iterator[np.ndarray]:
    """Yield arrays that a matrix of counts consists of, one block of rows after the other."""
    yield np.array(counts.shape, dtype=np.int64)
    if isinstance(counts, pd.DataFrame):
        counts = counts.to_numpy()
    is_in_memory = isinstance(counts, np.ndarray) or hasattr(counts, "indptr")
    for block in [counts] if is_in_memory else (block for _, _, block in blocks(counts)):
        is_sparse = hasattr(block, "indptr")  # a collection only looks like a sparse matrix
        yield from (block.data, block.indices, block.indptr) if is_sparse else (block,)


def _digest(arrays: Iterable[np.ndarray]) -> str:
    """Hash arrays, their types and shapes, one after the other."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(f"{array.dtype} {array.shape}".encode())
        found.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return found.hexdigest()


def _plan_settings(plan: LightningModule) -> dict[str, Any]:
    """Return what a plan was given, or chose, of the kinds that settings are of."""
    own = {n: v for n, v in vars(plan).items() if n[0] != "_" and n not in NOT_OF_THE_PLAN}
    own |= {f"{n} of the loss": v for n, v in own.pop("loss_kwargs", {}).items()}
    own.pop("kl_weight of the loss", None)  # it changes as training goes on
    return {name: value for name, value in own.items() if _is_setting(value)}


def _is_setting(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_setting, value))
    is_plain = value is None or isinstance(value, bool | int | float | str | np.generic)
    return is_plain or (callable(value) and not isinstance(value, torch.nn.Module))


def _early_stopping(trainer: Any) -> list[Any] | None:
    watch = trainer.early_stopping_callback
    return None if watch is None else [getattr(watch, name, None) for name in EARLY_STOPPING]
