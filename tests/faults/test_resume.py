"""Training that is stopped goes on exactly from there, or says why it cannot; nothing is lost."""

from __future__ import annotations

import gc
import os
import pickle
import random
import shutil
import signal
import sys
import threading
import warnings
import weakref
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import scvi
import torch
from click.testing import CliRunner
from lightning.pytorch.callbacks import Callback

from dra_scvi import DRA, TrainingDivergedError, TrainingInterruptedError, tl
from dra_scvi._training.checkpoint import (
    CheckpointFile,
    read_checkpoint,
    read_content,
    write_checkpoint,
)
from dra_scvi.cli import _train as _cli_train
from dra_scvi.cli import program
from tests.helpers import QUIET, SMALL, cells, embed, fit

if TYPE_CHECKING:
    from collections.abc import Callable

    from anndata import AnnData

EPOCHS = 4


class At(Callback):
    """Do something once, in the first minibatch of some epoch; count the epochs."""

    def __init__(self, epoch: int, act: Callable[[Any], Any]) -> None:
        self.epoch, self.act, self.epochs = epoch, act, 0

    def on_train_epoch_start(self, trainer: Any, *_: Any) -> None:
        self.epochs += 1

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        if trainer.current_epoch == self.epoch:
            self.epoch = -1
            self.act(trainer)


def kill(signum: int = signal.SIGINT) -> Callable[[Any], None]:
    return lambda *_: os.kill(os.getpid(), signum)


def data() -> AnnData:
    adata = cells()
    adata.layers["same"] = adata.X.copy()
    adata.obs["column"] = [f"c{i % 3}" for i in range(adata.n_obs)]
    return adata


def run(adata: AnnData, path: Path | None, *callbacks: Callback, **changes: Any) -> np.ndarray:
    train = {"callbacks": list(callbacks), **changes.pop("train_kwargs", {})}
    options = {"max_epochs": EPOCHS, "batch_key": "batch", **changes}
    return embed(adata, checkpoint=path, train_kwargs=train, **options)


@pytest.fixture(scope="module")
def whole() -> np.ndarray:
    return run(data(), None)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the checkpoint of a training that was stopped in its second epoch."""
    path = tmp_path_factory.mktemp("stopped") / "state.ckpt"
    with pytest.raises(TrainingInterruptedError):
        run(data(), path, At(1, kill()))
    return path


@pytest.fixture
def checkpoint(stopped: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(stopped, tmp_path))


def refused(path: Path, *differences: str, adata: AnnData | None = None, **changes: Any) -> None:
    """Go on with something changed; the error names that, and the checkpoint stays as it was."""
    before = path.read_bytes()
    with pytest.raises(ValueError, match="is of another training") as error:
        run(data() if adata is None else adata, path, resume=True, **changes)
    for difference in differences:
        assert difference in str(error.value)
    assert "or delete it to start from the beginning" in str(error.value)
    assert path.read_bytes() == before


# -- the identity of a training ----------------------------------------------------------------


def test_the_same_call_goes_on_to_the_same_result(checkpoint: Path, whole: np.ndarray) -> None:
    """The same call with resume=True ends where a training without a stop ends."""
    watch = At(-1, kill())
    np.testing.assert_array_equal(run(data(), checkpoint, watch, resume=True), whole)
    assert watch.epochs == EPOCHS - 2
    assert not checkpoint.exists()


def test_the_same_settings_in_other_words_go_on(checkpoint: Path, whole: np.ndarray) -> None:
    """Defaults that are given, and a list in place of a tuple, are the same training."""
    model = {"n_hidden": 16, "dropout_rate": 0.1, "n_hidden_discriminator": [64]}
    train = {"plan_kwargs": {"lr": 1e-3, "latent_weight": 10}, "train_size": 0.9}
    adata = data()
    adata.obs["unrelated"] = 1
    found = run(adata, checkpoint, resume=True, model_kwargs=model, train_kwargs=train)
    np.testing.assert_array_equal(found, whole)


def test_another_seed(checkpoint: Path) -> None:
    """Going on with another seed is refused, and nothing but the seed is named."""
    with pytest.raises(ValueError, match=r"training \(seed: 0 in the checkpoint, 1 now\): go on"):
        run(data(), checkpoint, resume=True, seed=1)


def one_count(adata: AnnData) -> AnnData:
    adata.X.data[5] += 1
    return adata


def batches_swapped(adata: AnnData) -> AnnData:
    adata.obs["batch"] = adata.obs["batch"].to_numpy()[::-1].copy()
    return adata


def batch_renamed(adata: AnnData) -> AnnData:
    adata.obs["batch"] = [f"new {name}" for name in adata.obs["batch"]]
    return adata


def gene_renamed(adata: AnnData) -> AnnData:
    adata.var_names = ["other", *adata.var_names[1:]]
    return adata


def renamed(adata: AnnData) -> AnnData:
    adata.obs_names = [f"other {name}" for name in adata.obs_names]
    return adata


def permuted(adata: AnnData) -> AnnData:
    return adata[np.random.default_rng(0).permutation(adata.n_obs)].copy()


def dense(adata: AnnData) -> AnnData:
    adata.X = adata.X.toarray()
    return adata


CELLS = {
    "one count": (one_count, "counts: others than in the checkpoint"),
    "cells in another order": (permuted, "cells: in another order"),
    "other cells": (renamed, "cells: others than in the checkpoint"),
    "fewer cells": (lambda a: a[:-1].copy(), "cells: 60 in the checkpoint, 59 now"),
    "genes in another order": (lambda a: a[:, ::-1].copy(), "genes: in another order"),
    "another gene": (gene_renamed, "genes: others than in the checkpoint"),
    "other batches of cells": (batches_swapped, "values of batch: others than in the checkpoint"),
    "names of batches": (batch_renamed, "values of batch: others than in the checkpoint"),
    "dense": (dense, "kind of counts: 'csr of float32 in memory' in the checkpoint"),
}


@pytest.mark.parametrize("name", CELLS)
def test_other_cells(checkpoint: Path, name: str) -> None:
    """Going on with other counts, cells, genes or batches is refused, and says which."""
    change, difference = CELLS[name]
    refused(checkpoint, difference, adata=change(data()))


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"layer": "same"}, "layer: None in the checkpoint, 'same' now"),
        ({"batch_key": "column"}, "batch_key: 'batch' in the checkpoint, 'column' now"),
        ({"batch_key": None}, "batch_key: 'batch' in the checkpoint, None now"),
        ({"max_epochs": EPOCHS + 1}, "max_epochs: 4 in the checkpoint, 5 now"),
        ({"preset": "published"}, "model: 'DRA' in the checkpoint, 'PublishedDRA' now"),
        ({"n_latent": 5}, "n_latent: 10 in the checkpoint, 5 now"),
    ],
)
def test_other_arguments(checkpoint: Path, changes: dict[str, Any], difference: str) -> None:
    """Another layer, batch column or number of epochs is another training."""
    if "preset" in changes:
        changes |= {"model_kwargs": {}}
    refused(checkpoint, difference, **changes)


@pytest.mark.parametrize(
    ("name", "value", "was"),
    [
        ("n_hidden", 15, 16),
        ("gene_likelihood", "nb", "zinb"),
        ("dropout_rate", 0.2, 0.1),
        ("prior", "normal", None),
        ("prior_anchor", 0.3, 0.5),
        ("n_components", 5, 20),
        ("divergence", "jensen-shannon", "bhattacharyya"),
        ("n_neighbors", 3, 0),
        ("dispersion", "gene-batch", "gene"),
        ("n_hidden_discriminator", [63], (64,)),
        ("use_observed_lib_size", False, True),
        ("encode_covariates", True, None),
    ],
)
def test_other_settings_of_the_model(checkpoint: Path, name: str, value: Any, was: Any) -> None:
    """Every argument of the model belongs to the training, those of scVI's network included."""
    shown = "not set" if was is None and name != "prior" else repr(was).replace("(64,)", "[64]")
    model = {"n_hidden": 16, name: value}
    refused(checkpoint, f"{name}: {shown} in the checkpoint, {value!r} now", model_kwargs=model)


@pytest.mark.parametrize(
    ("name", "value", "was"),
    [
        ("lr", 2e-3, 1e-3),
        ("discriminator_lr", 1e-3, 1e-4),
        ("latent_weight", 2.0, 10.0),
        ("data_weight", 2.0, 1.0),
        ("weight_decay", 0.0, 1e-6),
        ("eps", 1e-3, 1e-2),
        ("prior_start", 0.5, 0.25),
        ("gradient_clip_val", 1.0, None),
        ("n_epochs_kl_warmup", 2, None),
        ("max_kl_weight", 0.5, 1.0),
        ("reduce_lr_on_plateau", True, False),
        ("optimizer", "AdamW", "Adam"),
    ],
)
def test_other_settings_of_the_plan(checkpoint: Path, name: str, value: Any, was: Any) -> None:
    """Every argument of the training plan belongs to the training; a rate is the one reported."""
    train = {"plan_kwargs": {name: value}}
    if name == "reduce_lr_on_plateau":
        train["check_val_every_n_epoch"] = 1
    shown = {"optimizer": "optimizer_name"}.get(name, name)
    difference = f"{shown}: {was!r} in the checkpoint, {value!r} now"
    refused(checkpoint, difference, train_kwargs=train)


@pytest.mark.parametrize(
    ("train", "difference"),
    [
        ({"batch_size": 16}, "batch_size: 32 in the checkpoint, 16 now"),
        ({"train_size": 0.5}, "train_size: 0.9 in the checkpoint, 0.5 now"),
        ({"shuffle_set_split": False}, "shuffle_set_split: True in the checkpoint, False now"),
        ({"accumulate_grad_batches": 2}, "accumulate_grad_batches: 1 in the checkpoint, 2 now"),
        ({"gradient_clip_val": 1.0}, "gradient_clip_val of the trainer: None in the checkpoint"),
        ({"precision": "bf16-mixed"}, "precision: '32-true' in the checkpoint, 'bf16-mixed' now"),
        ({"early_stopping": True}, "early_stopping: None in the checkpoint, ['elbo_validation'"),
        ({"check_val_every_n_epoch": 1}, "check_val_every_n_epoch: "),
        ({"limit_train_batches": 0.5}, "limit_train_batches: 1.0 in the checkpoint, 0.5 now"),
        ({"datasplitter_kwargs": {"drop_last": True}}, "drop_last: False in the checkpoint, True"),
    ],
)
def test_other_settings_of_training(
    checkpoint: Path, train: dict[str, Any], difference: str
) -> None:
    """Size of minibatches, split, precision and early stopping belong to the training."""
    refused(checkpoint, difference, train_kwargs=train)


def test_another_split(checkpoint: Path) -> None:
    """Cells that are split otherwise are told even where every setting is the same."""
    content = read_checkpoint(checkpoint)
    content["identity"]["split"]["cells trained on"]["digest"] = "0" * 64
    write_checkpoint(content, checkpoint)
    refused(checkpoint, "cells trained on: others than in the checkpoint")


def test_another_number_of_threads(checkpoint: Path) -> None:
    """Sums come out otherwise with another number of threads, which is refused on a CPU."""
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        refused(checkpoint, f"threads: {before} in the checkpoint, {before + 1} now")
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("package", "version"),
    [("dra_scvi", "0.0.1"), ("scvi-tools", "1.3.9"), ("torch", "1.13.1"), ("numpy", "1.26.0")],
)
def test_another_version(checkpoint: Path, package: str, version: str) -> None:
    """A checkpoint of another version is refused, naming package and both versions."""
    content = read_checkpoint(checkpoint)
    content["identity"]["versions"][package] = version
    write_checkpoint(content, checkpoint)
    refused(checkpoint, f"{package}: '{version}' in the checkpoint, ")


def test_another_patch(checkpoint: Path, whole: np.ndarray) -> None:
    """Where the last number of another package's version differs, training goes on and says so."""
    content = read_checkpoint(checkpoint)
    now = content["identity"]["versions"]["torch"]
    content["identity"]["versions"]["torch"] = ".".join([*now.split(".")[:2], "99"])
    write_checkpoint(content, checkpoint)
    with pytest.warns(UserWarning, match=r"other versions \(torch: '.*99' in the checkpoint"):
        found = run(data(), checkpoint, resume=True)
    np.testing.assert_array_equal(found, whole)


def test_another_patch_of_our_own(checkpoint: Path) -> None:
    """A checkpoint of another version of dra_scvi is refused, whatever number differs."""
    content = read_checkpoint(checkpoint)
    content["identity"]["versions"]["dra_scvi"] += ".1"
    write_checkpoint(content, checkpoint)
    refused(checkpoint, "dra_scvi: ")


def test_every_difference_is_named(checkpoint: Path) -> None:
    """Several differences are named one by one, not only the first."""
    differences = "seed: 0 in", "counts: others", "n_neighbors: 0 in", "lr: 0.001 in"
    model = {"n_hidden": 16, "n_neighbors": 3}
    train = {"plan_kwargs": {"lr": 0.01}}
    changes = {"seed": 3, "model_kwargs": model, "train_kwargs": train}
    refused(checkpoint, *differences, adata=one_count(data()), **changes)


@pytest.mark.parametrize("form", ["sparse", "dense"])
def test_cells_in_a_file_are_told_apart(tmp_path: Path, form: str) -> None:
    """Counts that stay in their file: a count changed in one of 600 is another training."""
    import anndata

    def backed(name: str, more: int = 0) -> AnnData:
        adata = cells(n_cells=600)
        adata.X.data[adata.X.indptr[1]] += more
        adata.X = adata.X.toarray() if form == "dense" else adata.X
        adata.write_h5ad(tmp_path / name)
        return anndata.read_h5ad(tmp_path / name, backed="r")

    path = tmp_path / "state.ckpt"
    with pytest.raises(TrainingInterruptedError):
        run(backed("one.h5ad"), path, At(1, kill()))
    refused(path, "counts: others", adata=backed("two.h5ad", more=1))
    refused(path, "kind of counts: ", adata=cells(n_cells=600))
    assert np.isfinite(run(backed("three.h5ad"), path, resume=True)).all()


@pytest.mark.parametrize(
    ("train", "difference"),
    [
        ({"limit_train_batches": 1}, "limit_train_batches: 1.0 in the checkpoint, 1 now"),
        ({"limit_val_batches": 1}, "limit_val_batches: 1.0 in the checkpoint, 1 now"),
        ({"val_check_interval": 1}, "val_check_interval: 1.0 in the checkpoint, 1 now"),
        ({"datasplitter_kwargs": {"drop_last": 0}}, "drop_last: False in the checkpoint, 0 now"),
    ],
)
def test_one_is_not_all(checkpoint: Path, train: dict[str, Any], difference: str) -> None:
    """One minibatch (1) in place of all of them (1.0) is another training, as False is not 0."""
    refused(checkpoint, difference, train_kwargs=train)


RATE = 0.01


def adam(parameters: Any, lr: float = 0.01) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=lr)


def adam_of(rate: float) -> Callable[[Any], torch.optim.Optimizer]:
    return lambda parameters: adam(parameters, lr=rate)


class Creator:
    def __init__(self, rate: float) -> None:
        self.rate = rate

    def __call__(self, parameters: Any) -> torch.optim.Optimizer:
        return adam(parameters, self.rate)


CREATORS: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "partial": (lambda: partial(adam, lr=0.01), lambda: partial(adam, lr=0.02)),
    "positions": (lambda: partial(adam_of(0.01)), lambda: partial(adam_of(0.02))),
    "lambda": (lambda: lambda p: adam(p, lr=0.01), lambda: lambda p: adam(p, lr=0.02)),
    "closure": (lambda: adam_of(0.01), lambda: adam_of(0.02)),
    "default": (lambda: lambda p, lr=0.01: adam(p, lr), lambda: lambda p, lr=0.02: adam(p, lr)),
    "nested": (
        lambda: lambda p: (lambda: adam(p, 0.01))(),
        lambda: lambda p: (lambda: adam(p, 0.02))(),
    ),
}


@pytest.mark.parametrize("kind", CREATORS)
def test_another_rate_inside_of_a_function(tmp_path: Path, kind: str) -> None:
    """An optimizer_creator with another rate in it is another training; the same goes on."""
    path = tmp_path / "state.ckpt"

    def plan(create: Callable[[], Any]) -> dict[str, Any]:
        return {"plan_kwargs": {"optimizer": "Custom", "optimizer_creator": create()}}

    first, second = CREATORS[kind]
    with pytest.raises(TrainingInterruptedError):
        run(data(), path, At(1, kill()), train_kwargs=plan(first))
    refused(path, "optimizer_creator: ", train_kwargs=plan(second))
    assert np.isfinite(run(data(), path, resume=True, train_kwargs=plan(first))).all()


def test_a_global_that_a_function_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rate that optimizer_creator reads from its module was changed: another training."""
    path = tmp_path / "state.ckpt"
    plan = {"optimizer": "Custom", "optimizer_creator": lambda p: adam(p, RATE)}
    with pytest.raises(TrainingInterruptedError):
        run(data(), path, At(1, kill()), train_kwargs={"plan_kwargs": plan})
    monkeypatch.setitem(globals(), "RATE", 0.02)
    refused(path, "optimizer_creator: ", train_kwargs={"plan_kwargs": plan})


def test_what_cannot_be_compared_is_said(tmp_path: Path) -> None:
    """An optimizer_creator that is an object of a class: a warning that it cannot be compared."""
    path = tmp_path / "state.ckpt"
    plan = {"optimizer": "Custom", "optimizer_creator": Creator(0.01)}
    with pytest.raises(TrainingInterruptedError):
        run(data(), path, At(1, kill()), train_kwargs={"plan_kwargs": plan})
    with pytest.warns(UserWarning, match=r"optimizer_creator \(.*Creator\) did not change cannot"):
        run(data(), path, resume=True, train_kwargs={"plan_kwargs": plan})


# -- the file ----------------------------------------------------------------------------------


def test_a_flipped_bit(checkpoint: Path) -> None:
    """A checkpoint of which any bit has changed is refused."""
    whole = checkpoint.read_bytes()
    rng = np.random.default_rng(0)
    edges = [0, 21, 22, 29, 30, len(whole) - 33, len(whole) - 32, len(whole) - 1]
    for place in [*edges, *rng.integers(0, len(whole), 200).tolist()]:
        flipped = bytearray(whole)
        flipped[place] ^= 1 << int(rng.integers(8))
        checkpoint.write_bytes(flipped)
        with pytest.raises(ValueError, match="is corrupt or truncated"):
            read_checkpoint(checkpoint)
    with pytest.raises(ValueError, match="is corrupt or truncated"):
        run(data(), checkpoint, resume=True)


class Attack:
    """Makes a file, where somebody unpickles it."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


def test_a_hostile_checkpoint(tmp_path: Path) -> None:
    """Code in a file at the place of the checkpoint is never run: not by us, nor by Lightning."""
    path, marker = tmp_path / "state.ckpt", tmp_path / "marker"
    hostile = {"state_dict": {}, "loops": Attack(marker), "pytorch-lightning_version": "2.0"}
    torch.save(hostile, path)
    with pytest.raises(ValueError, match="is a file of another kind, or of an earlier version"):
        run(data(), path, resume=True)
    with pytest.raises(ValueError, match="no checkpoint of this version"):
        CheckpointFile(path).load_checkpoint(path)
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        CheckpointFile(tmp_path / "other").load_checkpoint(path, weights_only=False)
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        fit(data(), ckpt_path=str(path))
    assert not marker.exists()


def test_a_checkpoint_that_is_exchanged_after_the_check(checkpoint: Path) -> None:
    """What training goes on from is what was checked, should the file change in between."""
    other = read_checkpoint(checkpoint)
    other["identity"]["settings"]["seed"] = 7

    class Exchange(Callback):
        def setup(self, *_: Any, **__: Any) -> None:
            write_checkpoint(other, checkpoint)

    with pytest.raises(ValueError, match="seed: 7 in the checkpoint, 0 now"):
        run(data(), checkpoint, Exchange(), resume=True)


@pytest.mark.parametrize(
    "content", [{}, {"identity": 3}, {"state_dict": {}, "identity": {"settings": {}}}]
)
def test_a_checkpoint_without_a_training(content: dict[str, Any], tmp_path: Path) -> None:
    """A file with a right checksum that holds no training is refused in one sentence."""
    write_checkpoint(content, tmp_path / "state.ckpt")
    with pytest.raises(ValueError, match="does not hold the state of a training .*; delete it"):
        run(data(), tmp_path / "state.ckpt", resume=True)


def put(*path: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    """Return what changes one part of a checkpoint, however deep; `None` deletes it."""

    def change(content: Any) -> None:
        for name in path[:-1]:
            content = content[name]
        if value is None:
            del content[path[-1]]
        else:
            content[path[-1]] = value

    return change


STEPS = "epoch_loop.batch_progress"
JUNK: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "no weights": (put("state_dict", value=None), "its state_dict is missing"),
    "empty weights": (put("state_dict", value={}), "its state_dict is empty"),
    "weights of text": (put("state_dict", "module.px_r", value="a"), "is no tensor"),
    "weights gone": (put("state_dict", "module.px_r", value=None), "px_r is missing"),
    "weights of another shape": (
        put("state_dict", "module.px_r", value=torch.ones(3)),
        "module.px_r is no torch.float32 of the shape (12,)",
    ),
    "weights of another type": (
        put("state_dict", "module.px_r", value=torch.ones(12, dtype=torch.int64)),
        "module.px_r is no torch.float32 of the shape (12,)",
    ),
    "identity of text": (put("identity", "settings", value="abc"), "identity['settings'] is no"),
    "versions of numbers": (put("identity", "versions", "torch", value=3), "['torch'] is no text"),
    "split of a list": (put("identity", "split", value=[1]), "identity['split'] is no table"),
    "epoch below 0": (put("epoch", value=-5), "its epoch is no whole number"),
    "epoch of a flag": (put("epoch", value=True), "its epoch is no whole number"),
    "another epoch": (put("epoch", value=3), "its epoch is another one than in its loops"),
    "loops of a number": (put("loops", value=3), "its loops is no table"),
    "loops without steps": (put("loops", "fit_loop", STEPS, value=None), f"{STEPS} is missing"),
    "steps below 0": (
        put("loops", "fit_loop", STEPS, "total", "ready", value=-1),
        "['ready'] is no whole number",
    ),
    "history of a number": (put("history", value={"a": 1}), "history['a'] is no unit with"),
    "history too short": (
        put("history", "train_loss", value=("epoch", [0, 1], [1.0])),
        "history['train_loss'] is no unit with places and as many numbers",
    ),
    "short torch state": (
        put("random_state", "torch", value=torch.zeros(7, dtype=torch.uint8)),
        "its random_state is no state of random generators",
    ),
    "short numpy state": (
        put("random_state", "numpy", value=("MT19937", [1, 2], 3, 0, 0.0)),
        "its random_state is no state",
    ),
    "short python state": (
        put("random_state", "python", value=(3, [1], None)),
        "its random_state is no state",
    ),
    "others of text": (put("random_states_of_others", value=["a"]), "random_states_of_others[0]"),
    "complete of text": (put("is_complete", value="no"), "its is_complete is neither true nor"),
    "optimizers of text": (
        put("optimizer_states", value=["a"]),
        "optimizer_states[0] is no table",
    ),
    "no optimizer": (put("optimizer_states", value=[]), "number of optimizers is 0, not 1"),
    "means of another shape": (
        put("optimizer_states", 0, "state", 0, "exp_avg", value=torch.ones(2)),
        "its optimizer_states is of parameters of other shapes",
    ),
    "optimizer of others": (
        put("optimizer_states", 0, "param_groups", value=[]),
        "optimizer_states[0]['state'] is of unknown parameters",
    ),
    "fewer groups": (
        put("optimizer_states", 0, value={"state": {}, "param_groups": [{"params": [0]}]}),
        "different number of parameter groups",
    ),
    "callbacks of a list": (put("callbacks", value=[1]), "callbacks[0] is no table"),
    "no lightning": (put("pytorch-lightning_version", value=3), "version is no text"),
}


@pytest.mark.parametrize("name", JUNK)
def test_a_checkpoint_with_junk_inside(checkpoint: Path, name: str) -> None:
    """A checkpoint with a right checksum, of which one part cannot be of a training: named."""
    change, words = JUNK[name]
    content = read_checkpoint(checkpoint)
    change(content)
    write_checkpoint(content, checkpoint)
    before = checkpoint.read_bytes()
    with pytest.raises(ValueError, match="does not hold the state of a training") as error:
        run(data(), checkpoint, resume=True)
    assert words in str(error.value)
    assert str(error.value).endswith("; delete it to start from the beginning.")
    assert checkpoint.read_bytes() == before


@pytest.mark.parametrize("text", [b"{", b"[[[", b"[" * 100_000, b'{"code": 1}', b"3"])
def test_a_checkpoint_of_nonsense(text: bytes, tmp_path: Path) -> None:
    """A file that was made to look like a checkpoint is refused in one sentence."""
    import hashlib

    body = b"dra_scvi checkpoint 2\n" + len(text).to_bytes(8, "little") + text
    path = tmp_path / "state.ckpt"
    path.write_bytes(body + hashlib.sha256(body).digest())
    with pytest.raises(ValueError, match="does not hold the state of a training .*; delete it"):
        read_checkpoint(path)


def test_every_kind_of_content_comes_back(tmp_path: Path) -> None:
    """Tensors of every type and plain data come back as they were written."""
    content = {
        "identity": dict.fromkeys(
            ("settings", "versions", "split"), {"a": (1, 2.5, float("inf"), None, True, "t")}
        ),
        "state_dict": {
            str(dtype): torch.arange(3).to(dtype)
            for dtype in (torch.float64, torch.bfloat16, torch.uint8, torch.bool, torch.int64)
        },
        3: [torch.zeros(()), torch.zeros(0, 2), torch.arange(6).reshape(2, 3).T],
    }
    write_checkpoint(content, tmp_path / "state.ckpt")
    found = read_content(tmp_path / "state.ckpt")
    assert found["identity"] == content["identity"]
    for name, value in content["state_dict"].items():
        assert found["state_dict"][name].dtype == value.dtype
        assert torch.equal(found["state_dict"][name], value)
    for one, other in zip(found[3], content[3], strict=True):
        assert one.shape == other.shape
        assert torch.equal(one, other)


# -- places ------------------------------------------------------------------------------------


def test_resume_without_a_checkpoint() -> None:
    """resume=True without checkpoint= is an error, not a training from the beginning."""
    with pytest.raises(ValueError, match=r"resume=True needs checkpoint="):
        run(data(), None, resume=True)


def test_a_checkpoint_in_no_folder(tmp_path: Path) -> None:
    """A folder that does not exist is told before training, by name."""
    with pytest.raises(FileNotFoundError, match=r"folder .*nowhere does not exist"):
        run(data(), tmp_path / "nowhere" / "state.ckpt", At(0, pytest.fail))


def test_a_checkpoint_that_cannot_be_written(tmp_path: Path) -> None:
    """A place that cannot be written to is told before training, by the name that was given."""
    path = tmp_path / ("n" * 256)
    with pytest.raises(OSError, match="n" * 256) as error:
        run(data(), path, At(0, pytest.fail))
    assert error.value.filename == str(path)


def test_a_checkpoint_that_is_a_folder(tmp_path: Path) -> None:
    """A folder given for the checkpoint is told before training."""
    with pytest.raises(IsADirectoryError, match="is a folder; name a file in it"):
        run(data(), tmp_path, At(0, pytest.fail))


@pytest.mark.parametrize("kind", ["cells", "pipe", "zip"])
def test_a_checkpoint_over_another_file(tmp_path: Path, kind: str) -> None:
    """A file of another kind at the place of the checkpoint is never replaced."""
    path = tmp_path / "cells.h5ad"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "zip":
        torch.save({}, path)
    else:
        data().write_h5ad(path)
    for resume in (False, True):
        with pytest.raises(ValueError, match="is a file of another kind, .*would be replaced"):
            run(data(), path, At(0, pytest.fail), resume=resume)
    assert os.listdir(tmp_path) == ["cells.h5ad"]


def test_a_checkpoint_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``~`` in the path of a checkpoint is the home folder, for writing and for removing."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    path = Path("~/state.ckpt")
    with pytest.raises(TrainingInterruptedError):
        run(data(), path, At(1, kill()))
    assert os.listdir(tmp_path) == ["state.ckpt"]
    run(data(), path, resume=True)
    assert os.listdir(tmp_path) == []


def without_folder(trainer: Any) -> None:
    shutil.rmtree(next(p for p in trainer.callbacks if hasattr(p, "file")).path.parent)


def test_a_save_that_fails(tmp_path: Path, whole: np.ndarray) -> None:
    """A checkpoint that cannot be written any more, as on a full disk, does not end training."""
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.warns(UserWarning, match=r"could not be written to .*; training goes on without"):
        found = run(data(), folder / "state.ckpt", At(1, without_folder))
    np.testing.assert_array_equal(found, whole)


def test_a_save_that_fails_at_an_interrupt(tmp_path: Path) -> None:
    """A training that is interrupted when its state cannot be written says that it is lost."""
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(TrainingInterruptedError, match="could not be written to .* is lost") as e:
        run(data(), folder / "state.ckpt", At(1, without_folder), At(1, kill()))
    assert "holds its state" not in str(e.value)
    assert "goes on from there" not in str(e.value)


# -- stopping ----------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["end of training", "_calibrate", "get_latent_representation"])
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_after_the_last_epoch(
    when: str,
    signum: int,
    tmp_path: Path,
    whole: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A signal in what follows the last epoch loses nothing: resume=True finishes at once."""

    class Ends(Callback):
        def on_train_end(self, *_: Any) -> None:
            kill(signum)()

    def killed(*args: Any, **kwargs: Any) -> Any:
        kill(signum)()
        return work(*args, **kwargs)

    path, callbacks = tmp_path / "state.ckpt", [Ends()] if when == "end of training" else []
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    with monkeypatch.context() as patch:
        if not callbacks:
            work = getattr(DRA, when)
            patch.setattr(DRA, when, killed)
        with pytest.raises(TrainingInterruptedError, match="after 4 epochs; .* holds") as error:
            run(data(), path, *callbacks)
    assert error.value.signum == signum
    assert handlers == [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    watch = At(-1, kill())
    np.testing.assert_array_equal(run(data(), path, watch, resume=True), whole)
    assert watch.epochs == 0


def test_a_failure_after_the_last_epoch(
    tmp_path: Path, whole: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error after training, as for want of memory, leaves the checkpoint to go on from."""
    path = tmp_path / "state.ckpt"

    def fail(*_: Any, **__: Any) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(DRA, "get_latent_representation", fail)
        with pytest.raises(MemoryError):
            run(data(), path)
    np.testing.assert_array_equal(run(data(), path, resume=True), whole)


@pytest.mark.parametrize("preset", [None, "published"])
def test_a_signal_in_the_last_epoch(tmp_path: Path, preset: str | None) -> None:
    """After a stop in the last epoch only the embedding is left to do, a sample of codes alike."""
    options = {"preset": preset, "model_kwargs": {}, "batch_key": None}
    path, watch = tmp_path / "state.ckpt", At(-1, kill())
    expected = run(data(), None, **options)
    with pytest.raises(TrainingInterruptedError, match="after 4 epochs"):
        run(data(), path, At(EPOCHS - 1, kill()), **options)
    np.testing.assert_array_equal(run(data(), path, watch, resume=True, **options), expected)
    assert watch.epochs == 0


def test_a_sample_of_codes_after_a_failure_at_the_end(tmp_path: Path) -> None:
    """The published program's sample of codes is the same where a later step has failed."""
    options = {"preset": "published", "model_kwargs": {}, "batch_key": None}
    expected = run(data(), None, **options)
    path, settings = tmp_path / "state.ckpt", {"batch_size": 32, "enable_progress_bar": False}
    tl._dra(
        data(),
        max_epochs=EPOCHS,
        accelerator="cpu",
        preset="published",
        train_kwargs=settings,
        checkpoint=path,
    )
    np.testing.assert_array_equal(run(data(), path, resume=True, **options), expected)


def test_early_stopping_stays_stopped(tmp_path: Path) -> None:
    """A training that ended early, and was stopped then, is not trained further."""
    early = {"early_stopping": True, "early_stopping_patience": 1, "max_epochs": 40}
    early |= {"early_stopping_min_delta": 1e6}
    path, watch = tmp_path / "state.ckpt", At(-1, kill())
    options = {"accelerator": "cpu", "batch_key": "batch", "model_kwargs": {"n_hidden": 16}}
    settings = {"batch_size": 32, "enable_progress_bar": False, **early}
    one, other = data(), data()
    tl._dra(one, **options, train_kwargs=settings, checkpoint=path)
    settings |= {"callbacks": [watch]}
    tl.dra(other, **options, train_kwargs=settings, checkpoint=path, resume=True)
    assert watch.epochs == 0
    np.testing.assert_array_equal(one.obsm["X_dra"], other.obsm["X_dra"])


def test_the_history_is_whole(checkpoint: Path) -> None:
    """model.history of a training that went on holds the epochs before the stop as well."""
    options = {"max_epochs": EPOCHS, "accelerator": "cpu", "batch_key": "batch"}
    options["model_kwargs"] = {"n_hidden": 16}
    train = {"batch_size": 32, "enable_progress_bar": False}
    expected = tl.dra(data(), **options, train_kwargs=train).history
    found = tl.dra(data(), **options, train_kwargs=train, checkpoint=checkpoint, resume=True)
    assert found.history.keys() == expected.keys()
    for name, frame in expected.items():
        assert len(frame) == EPOCHS
        assert frame.equals(found.history[name]), name
        assert frame.index.equals(found.history[name].index), name


def test_a_second_signal(tmp_path: Path) -> None:
    """A second Ctrl-C does not wait for the end of the epoch."""
    steps: list[int] = []

    class Twice(Callback):
        def on_train_batch_start(self, trainer: Any, plan: Any, batch: Any, step: int) -> None:
            steps.append(trainer.current_epoch)
            if trainer.current_epoch == 1:
                kill()()

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run(data(), tmp_path / "state.ckpt", Twice(), train_kwargs={"batch_size": 8})
    assert steps.count(1) == 2
    assert signal.getsignal(signal.SIGINT) is handler


def test_the_other_generators_go_on(tmp_path: Path) -> None:
    """Python's and NumPy's generators go on after a stop where they were, as torch's do."""

    class Draws(Callback):
        def __init__(self) -> None:
            self.drawn: list[tuple[float, float, float]] = []

        def on_train_epoch_start(self, *_: Any) -> None:
            numbers = random.random(), np.random.rand(), float(torch.rand(1))  # noqa: NPY002
            self.drawn.append(numbers)

    expected, before, after = Draws(), Draws(), Draws()
    run(data(), None, expected)
    path = tmp_path / "state.ckpt"
    with pytest.raises(TrainingInterruptedError):
        run(data(), path, before, At(1, kill()))
    run(data(), path, after, resume=True)
    assert before.drawn + after.drawn == expected.drawn


def test_the_rates_of_all_players_go_on(checkpoint: Path) -> None:
    """The discriminators have a learning rate and an epsilon of their own, after a stop too."""
    groups: list[list[tuple[float, float]]] = []

    class Look(Callback):
        def on_train_epoch_start(self, trainer: Any, *_: Any) -> None:
            parts = trainer.optimizers[0].param_groups
            groups.append([(group["lr"], group["eps"]) for group in parts])

    run(data(), None, Look(), max_epochs=1)
    run(data(), checkpoint, Look(), resume=True)
    assert groups == [[(1e-3, 1e-2), (1e-4, 1e-8), (1e-4, 1e-8)]] * (1 + EPOCHS - 2)


def test_which_of_two_bad_terms_is_named() -> None:
    """Of terms that are not finite a part is named, not the sums that it spoils."""
    adata = data()
    DRA.setup_anndata(adata)
    plan = DRA._training_plan_cls(DRA(adata, **SMALL).module)
    good = torch.zeros(1, 9)
    for bad, named in (
        ([0, 1, 2], "reconstruction_loss_train"),
        ([0, 1, 3], "kl_local_train"),
        ([0, 6], "data_divergence_train"),
        ([0, 2, 5], "latent_divergence_train"),
        ([0], "train_loss"),
    ):
        steps = good.clone()
        steps[0, bad] = float("nan")
        with pytest.raises(TrainingDivergedError) as error:
            plan._check_finite(steps)
        assert error.value.term == named


def test_an_error_has_a_line_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    """What is said after a stop does not stick to the progress bar."""

    def fail(_: Any) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(data(), None, At(2, fail), train_kwargs={"enable_progress_bar": True})
    shown = capsys.readouterr()
    assert "Epoch 3/4" in shown.out + shown.err
    assert (shown.out + shown.err).endswith("\n")


def train_command(folder: Path, *options: object) -> Any:
    source = folder / "cells.h5ad"
    if not source.exists():
        data().write_h5ad(source)
    outputs = "--output", folder / "out.h5ad", "--json", folder / "out.json"
    settings = "--batch-key", "batch", "--batch-size", 32, "--max-epochs", EPOCHS, "--quiet"
    args = ("train", source, *outputs, *settings, "--accelerator", "cpu", "--threads", 1, *options)
    return CliRunner().invoke(program, [str(arg) for arg in args])


@pytest.mark.parametrize("when", ["_calibrate", "get_latent_representation", "write_cells"])
def test_sigterm_after_the_last_epoch_of_a_command(
    when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGTERM between the last epoch and the outputs ends with 143, and --resume finishes."""
    place: Any = _cli_train if when == "write_cells" else DRA
    work = getattr(place, when)

    def killed(*args: Any, **kwargs: Any) -> Any:
        kill(signal.SIGTERM)()
        return work(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(place, when, killed)
        result = train_command(tmp_path)
    assert result.exit_code == 143, result.stderr
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [".out.h5ad.ckpt", "cells.h5ad"]
    other = tmp_path / "other"
    other.mkdir()
    assert train_command(tmp_path, "--resume").exit_code == 0
    assert train_command(other).exit_code == 0
    for name in ("out.h5ad", "out.json"):
        assert (tmp_path / name).read_bytes() == (other / name).read_bytes()
    assert not (tmp_path / ".out.h5ad.ckpt").exists()


def test_a_command_with_another_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--resume with another --learning-rate ends with 65, naming both rates."""

    def killed(*_: Any, **__: Any) -> None:
        kill(signal.SIGTERM)()

    with monkeypatch.context() as patch:
        patch.setattr(DRA, "_calibrate", killed)
        assert train_command(tmp_path).exit_code == 143
    result = train_command(tmp_path, "--resume", "--learning-rate", 0.01)
    assert result.exit_code == 65
    assert "lr: 0.001 in the checkpoint, 0.01 now" in result.stderr
    assert not (tmp_path / "out.h5ad").exists()


# -- what is written ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "a/b", "/X", "X/", ".", "..", "a\0b"])
def test_names_that_no_file_can_hold(name: str) -> None:
    """A key_added that cannot be stored in a file is refused before training."""
    adata = data()
    with pytest.raises(ValueError, match="key_added=.* cannot be stored in a file"):
        run(adata, None, At(0, pytest.fail), key_added=name)
    assert list(adata.obsm) == []


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"key_added": None}, TypeError, "key_added=None must be a name"),
        ({"key_added": 3}, TypeError, "key_added=3 must be a name"),
        ({"seed": "0"}, TypeError, "seed must be a whole number, not '0'"),
        ({"seed": 1.5}, TypeError, "seed must be a whole number, not 1.5"),
        ({"seed": True}, TypeError, "seed must be a whole number, not True"),
        ({"seed": -1}, ValueError, "seed must be at least 0, not -1"),
        ({"seed": 2**32}, ValueError, "seed must be at most 4294967295, not 4294967296"),
    ],
)
def test_arguments_of_another_kind(changes: dict[str, Any], error: type, message: str) -> None:
    """A key or a seed that is none is refused before training."""
    with pytest.raises(error, match=message):
        run(data(), None, At(0, pytest.fail), **changes)


def test_a_view() -> None:
    """A view is refused before training, and stays one."""
    view = data()[:30]
    with pytest.raises(ValueError, match=r"is a view of another AnnData: pass a copy"):
        run(view, None, At(0, pytest.fail))
    assert view.is_view


def test_an_embedding_that_is_there_outlives_a_failure() -> None:
    """An embedding under the same key is replaced by a new one, never by a failure."""
    adata = data()
    before = np.ones((adata.n_obs, 2))
    adata.obsm["X_dra"] = before

    def fail(_: Any) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(adata, None, At(1, fail))
    np.testing.assert_array_equal(adata.obsm["X_dra"], before)
    assert run(adata, None).shape == (adata.n_obs, 10)


def test_the_docstring_says_what_is_written() -> None:
    """tl.dra's docstring says what the embedding is, and it is that."""
    assert tl.dra.__doc__ is not None
    assert "posterior means" not in tl.dra.__doc__
    assert "returns: the means of q(z|x)." in " ".join(tl.dra.__doc__.split())


# -- one process -------------------------------------------------------------------------------


def in_threads(*jobs: Callable[[], Any]) -> list[Any]:
    found: list[Any] = [None] * len(jobs)

    def call(place: int) -> None:
        try:
            found[place] = jobs[place]()
        except Exception as error:  # noqa: BLE001
            found[place] = error

    threads = [threading.Thread(target=call, args=(place,)) for place in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_two_threads_in_tl_dra(whole: np.ndarray, tmp_path: Path) -> None:
    """Two calls at a time give the results of each alone, and leave the process as it was."""
    other = run(data(), None, seed=1)
    scvi.settings.seed = 11
    streams, filters = (sys.stdout, sys.stderr), list(warnings.filters)
    environment, generator = dict(os.environ), torch.get_rng_state()
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    try:
        first, second, third = in_threads(
            lambda: run(data(), None),
            lambda: run(data(), tmp_path / "state.ckpt", seed=1),
            lambda: run(data(), None),
        )
        np.testing.assert_array_equal(first, whole)
        np.testing.assert_array_equal(second, other)
        np.testing.assert_array_equal(third, whole)
        assert (sys.stdout, sys.stderr) == streams
        assert list(warnings.filters) == filters
        assert scvi.settings.seed == 11
        assert dict(os.environ) == environment
        assert torch.equal(torch.get_rng_state(), generator)
        assert handlers == [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    finally:
        scvi.settings.seed = None


def test_two_threads_that_fail(capsys: pytest.CaptureFixture[str]) -> None:
    """Errors of trainings in threads leave standard output alone, and nothing on it."""

    def fail(_: Any) -> None:
        raise ZeroDivisionError("why")

    def train() -> None:
        adata = data()
        DRA.setup_anndata(adata)
        DRA(adata, **SMALL).train(max_epochs=2, callbacks=[At(1, fail)], **QUIET)

    stream = sys.stdout
    found = in_threads(train, train)
    assert [type(error) for error in found] == [ZeroDivisionError] * 2
    assert sys.stdout is stream
    assert capsys.readouterr().out == ""


def test_training_in_the_handler_of_an_error() -> None:
    """Training that follows an error, as a second try does, is not taken for that error."""
    try:
        raise ZeroDivisionError
    except ZeroDivisionError:
        assert fit(data()).is_trained_


def test_nothing_is_kept_of_a_training() -> None:
    """Cells and model are let go of when the caller lets go of them."""
    adata = data()
    quiet = {"enable_progress_bar": False}
    model = tl.dra(adata, max_epochs=1, accelerator="cpu", train_kwargs=quiet)
    assert model.get_latent_representation().shape == (adata.n_obs, 10)
    gone = weakref.ref(adata), weakref.ref(model)
    del adata, model
    gc.collect()
    assert [each() for each in gone] == [None, None]


def test_a_registration_of_the_callers_own_stays() -> None:
    """A registration that was made after tl.dra outlives the model that tl.dra returned."""
    adata = data()
    run(adata, None)
    DRA.setup_anndata(adata)
    gc.collect()
    assert DRA(adata, **SMALL).adata is adata
