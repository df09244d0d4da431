"""The scanpy steps: variable genes; register, train and embed in one call."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from dra_scvi import presets
from dra_scvi._checkpoint import InterruptCheckpoint, check_checkpoint
from dra_scvi._genes import variable_genes
from dra_scvi._model import DRA
from dra_scvi._published import PublishedDRA

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from anndata import AnnData

__all__ = ["dra", "variable_genes"]


def dra(
    adata: AnnData,
    layer: str | None = None,
    batch_key: str | None = None,
    n_latent: int = 10,
    key_added: str = "X_dra",
    seed: int = 0,
    *,
    preset: Literal["published"] | None = None,
    max_epochs: int | None = None,
    accelerator: str = "auto",
    model_kwargs: Mapping[str, Any] | None = None,
    train_kwargs: Mapping[str, Any] | None = None,
    checkpoint: str | Path | None = None,
    resume: bool = False,
) -> DRA:
    """Embed the cells of `adata` with DR-A.

    Parameters
    ----------
    adata
        Raw counts of ``(n_cells, n_genes)``, dense or sparse.
    layer
        Layer that holds the counts; `None` for ``adata.X``.
    batch_key
        Column of ``adata.obs`` with batches to integrate.
    n_latent
        Dimensions of the embedding.
    key_added
        Where in ``adata.obsm`` the embedding is written.
    seed
        Seed of everything random; the global generators are left as they were. On a CPU the same
        seed, data and number of threads give the same embedding.
    preset
        `"published"` runs the published program's settings (2, 10 or 20 dimensions) with
        :class:`~dra_scvi.PublishedDRA`: it ignores `batch_key`, embeds with one sample of the
        codes, and marks its training and test cells in ``adata.obs["dra_split"]``.
    max_epochs
        Passes over the data; `None` for a number that suits the number of cells.
    accelerator
        `"auto"`, `"cpu"`, `"gpu"`, ..., as in Lightning.
    model_kwargs
        Further arguments of :class:`~dra_scvi.DRA`.
    train_kwargs
        Further arguments of its `train`.
    checkpoint
        File in which the state of training is kept: written about once a minute, and when SIGINT
        or SIGTERM asks to stop; removed at the end.
    resume
        Whether to go on from `checkpoint` where it exists. On a CPU the result is that of a run
        without a stop, given the same data and arguments.

    Returns
    -------
    The trained model. ``adata.obsm[key_added]``, shape ``(n_cells, n_latent)``, holds the
    posterior means, ``adata.uns["dra"]`` the settings.

    Raises
    ------
    KeyError
        When `layer` or `batch_key` does not exist.
    InvalidCountsError
        When the matrix does not hold raw counts.
    ValueError
        When training cannot go on from `checkpoint`: it is damaged, or of another training.
    TrainingDivergedError
        When a term of the objective is not finite.
    TrainingInterruptedError
        When a signal stopped training, after `checkpoint` was written.

    Examples
    --------
    >>> import dra_scvi
    >>> adata = dra_scvi.datasets.synthetic(n_cells=200, n_genes=50)
    >>> quiet = {"enable_progress_bar": False}
    >>> model = dra_scvi.tl.dra(adata, max_epochs=2, accelerator="cpu", train_kwargs=quiet)
    >>> adata.obsm["X_dra"].shape
    (200, 10)
    """
    settings = _settings(preset, n_latent)
    model_cls = DRA if preset is None else PublishedDRA
    train = {**settings.train, "accelerator": accelerator, **(train_kwargs or {})}
    if max_epochs is not None:
        train["max_epochs"] = max_epochs
    with _seeded(seed):
        model_cls.setup_anndata(adata, layer=layer, batch_key=batch_key)
        model = model_cls(adata, **{**settings.model, **(model_kwargs or {})})
        _train(model, train, checkpoint, resume)
        adata.obsm[key_added] = model.get_latent_representation(give_mean=preset is None)
    if preset is not None:
        split = np.full(adata.n_obs, "train", dtype=object)
        split[model.test_indices] = "test"
        adata.obs["dra_split"] = split
    adata.uns["dra"] = {
        "params": {
            "layer": layer or "X",
            "batch_key": batch_key or "",
            "n_latent": n_latent,
            "key_added": key_added,
            "seed": seed,
            "preset": preset or "",
            "max_epochs": model.trainer.max_epochs,
        }
    }
    return model


def _settings(preset: str | None, n_latent: int) -> presets.Preset:
    if preset is None:
        return presets.Preset(model={"n_latent": n_latent})
    if preset != "published":
        raise ValueError(f"preset must be None or 'published', not {preset!r}.")
    return presets.published(n_latent)


def _train(model: DRA, train: dict[str, Any], checkpoint: str | Path | None, resume: bool) -> None:
    if checkpoint is None:
        model.train(**train)
        return
    path = Path(checkpoint)
    plan = {**train.pop("plan_kwargs", {}), "checkpoint": InterruptCheckpoint(path)}
    ckpt_path = None
    if resume and path.exists():
        check_checkpoint(path, model.module)
        ckpt_path = str(path)
    model.train(**train, plan_kwargs=plan, ckpt_path=ckpt_path)
    path.unlink(missing_ok=True)


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed all generators, and scvi-tools' split, for the time of a block."""
    from scvi import settings

    before = settings.seed
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(enabled=True):
        settings.seed = seed
        try:
            yield
        finally:
            settings.seed = before
            random.setstate(python_state)
            np.random.set_state(numpy_state)  # noqa: NPY002
