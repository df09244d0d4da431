"""The scanpy steps: variable genes; register, train and embed in one call; types of new cells."""

from __future__ import annotations

import contextlib
import hashlib
import json
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from dra_scvi import presets
from dra_scvi._argument_kinds import check_given_once, check_kinds, check_seed
from dra_scvi._clusters import Suggestion, cluster, suggest_resolution
from dra_scvi._data.registration import forget_with
from dra_scvi._data.variable_genes import variable_genes
from dra_scvi._labels.transfer_labels import transfer_labels
from dra_scvi._model.arguments import check_model_names, check_training, check_training_names
from dra_scvi._model.dra import DRA
from dra_scvi._module.priors import effective_prior
from dra_scvi._published.model import PublishedDRA
from dra_scvi._training.checkpoint import read_checkpoint
from dra_scvi._training.identity import held_settings
from dra_scvi._training.interrupts import InterruptCheckpoint, check_place
from dra_scvi._training.runner import seeded

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from anndata import AnnData

__all__ = [
    "Suggestion",
    "cluster",
    "dra",
    "suggest_resolution",
    "transfer_labels",
    "variable_genes",
]


def dra(
    adata: AnnData,
    layer: str | None = None,
    batch_key: str | None = None,
    n_latent: int = 10,
    key_added: str = "X_dra",
    seed: int = 0,
    *,
    categorical_covariate_keys: Sequence[str] | None = None,
    continuous_covariate_keys: Sequence[str] | None = None,
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
        Where in ``adata.obsm`` the embedding is written: a name without ``/``.
    seed
        Seed of everything random; the global generators are left as they were. On a CPU the same
        seed, data and number of threads give the same embedding. Calls in several threads take
        turns.
    categorical_covariate_keys
        Columns of ``adata.obs`` with further categories whose effect is taken out, as donors.
    continuous_covariate_keys
        Columns of ``adata.obs`` with numbers whose effect is taken out.
    preset
        `"published"` runs the published program's settings (2, 10 or 20 dimensions) with
        :class:`~dra_scvi.PublishedDRA`: it ignores `batch_key`, takes no covariates, embeds with
        one sample of the latents, and marks its training and test cells in
        ``adata.obs["dra_split"]``.
    max_epochs
        Passes over the data; `None` for a number that suits the number of cells.
    accelerator
        `"auto"`, `"cpu"`, `"gpu"`, ..., as in Lightning.
    model_kwargs
        Further arguments of :class:`~dra_scvi.DRA`.
    train_kwargs
        Further arguments of its `train`.
    checkpoint
        File in which the state of training is kept: written about once a minute, when SIGINT or
        SIGTERM asks to stop, and after the last epoch; removed at the end. A checksum tells a
        damaged one, and nothing in it can run code.
    resume
        Whether to go on from `checkpoint` where it exists. On a CPU the result is that of a run
        without a stop. Counts, names, batches, covariates, seed, settings, device, number of
        threads and versions must be those that training began with; of other packages' versions
        the last number may differ, with a warning. More epochs are another training: the
        schedules of the terms go by their number.

    Returns
    -------
    The trained model. ``adata.obsm[key_added]``, shape ``(n_cells, n_latent)``, holds what
    :meth:`DRA.get_latent_representation <dra_scvi.DRA.get_latent_representation>` returns: the
    means of q(z|x). ``adata.uns["dra"]`` says where it comes from: ``"params"`` of this call,
    ``"version"`` of dra_scvi, ``"prior"``, ``"genes"`` (their number ``"n"`` and the ``"sha256"``
    of their names, one a line), and ``"settings"``, all that held in training, given or not.

    Raises
    ------
    KeyError
        When `layer`, `batch_key` or a covariate does not exist.
    InvalidCountsError
        When the matrix does not hold raw counts.
    OSError
        When `checkpoint` cannot be written.
    TypeError, ValueError
        When an argument is not what it may be, or training cannot go on from `checkpoint`: it is
        damaged, or of another training; the message names what differs.
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
    model = _dra(**locals())  # needs nothing else in scope
    if checkpoint is not None:
        Path(checkpoint).expanduser().unlink(missing_ok=True)
    return model


def _dra(
    adata: AnnData,
    layer: str | None = None,
    batch_key: str | None = None,
    n_latent: int = 10,
    key_added: str = "X_dra",
    seed: int = 0,
    *,
    categorical_covariate_keys: Sequence[str] | None = None,
    continuous_covariate_keys: Sequence[str] | None = None,
    preset: Literal["published"] | None = None,
    max_epochs: int | None = None,
    accelerator: str = "auto",
    model_kwargs: Mapping[str, Any] | None = None,
    train_kwargs: Mapping[str, Any] | None = None,
    checkpoint: str | Path | None = None,
    resume: bool = False,
) -> DRA:
    """Embed like :func:`dra`, and leave the checkpoint to a caller who has more to write."""
    check_kinds(dra, locals())
    model_cls = DRA if preset is None else PublishedDRA
    _check_passed_on(locals())
    _check_names(adata, key_added, seed)
    _check_checkpoint(checkpoint, resume)
    covariates = {
        "categorical_covariate_keys": categorical_covariate_keys,
        "continuous_covariate_keys": continuous_covariate_keys,
    }
    settings = _settings(preset, (model_kwargs or {}).get("n_latent", n_latent))
    train = {**settings.train, "accelerator": accelerator, **(train_kwargs or {})}
    if max_epochs is not None:
        train["max_epochs"] = max_epochs
    if plan := {**settings.train.get("plan_kwargs", {}), **(train.get("plan_kwargs") or {})}:
        train["plan_kwargs"] = plan
    with seeded(seed):
        model_cls.setup_anndata(adata, layer=layer, batch_key=batch_key, **covariates)
        model = model_cls(adata, **{**settings.model, **(model_kwargs or {})})
        forget_with(model)
        _try_obsm(adata, key_added, model.module.n_latent)
        with _kept(model, train, seed, checkpoint, resume) as train:
            model.train(**train)
            codes = model.get_latent_representation(give_mean=preset is None)
            adata.obsm[key_added] = codes
    if preset is not None:
        split = np.full(adata.n_obs, "train", dtype=object)
        split[model.test_indices] = "test"
        adata.obs["dra_split"] = split
    params = {
        "layer": layer or "X",
        "batch_key": batch_key or "",
        **{name: _storable(None if k is None else list(k)) for name, k in covariates.items()},
        "n_latent": model.module.n_latent,  # which model_kwargs may set as well
        "key_added": key_added,
        "seed": int(seed),
        "preset": preset or "",
        "max_epochs": model.trainer.max_epochs,
    }
    adata.uns["dra"] = {"params": params, **_origin(model, int(seed))}
    return model


def _origin(model: DRA, seed: int) -> dict[str, Any]:
    """Describe where an embedding comes from, by what every file can hold."""
    genes = model.adata.var_names.astype(str)
    names = "\n".join(genes).encode("utf-8", "surrogatepass")
    plan = model.trainer.lightning_module
    settings = held_settings(model, plan, model.trainer, seed)
    return {
        "version": version("dra_scvi"),
        "prior": effective_prior(model.init_arguments),
        "genes": {"n": len(genes), "sha256": hashlib.sha256(names).hexdigest()},
        "settings": {name: _storable(value) for name, value in settings.items()},
    }


def _storable(value: Any) -> bool | int | float | str:
    """Write lists and descriptions of functions as JSON, and `None` as no text."""
    if value is None or isinstance(value, bool | int | float | str):
        return "" if value is None else value
    return json.dumps(value)


def _settings(preset: str | None, n_latent: int) -> presets.Preset:
    if preset is None:
        return presets.Preset(model={"n_latent": n_latent})
    if preset != "published":
        raise ValueError(f"preset must be None or 'published', not {preset!r}.")
    return presets.published(n_latent)


def _check_passed_on(given: Mapping[str, Any]) -> None:
    """Check what is passed on: names, kinds, and that nothing is given twice."""
    train, model_cls = given["train_kwargs"] or {}, given["model_cls"]
    for name in ("categorical_covariate_keys", "continuous_covariate_keys"):
        if given["preset"] is not None and given[name] is not None:
            raise ValueError(f"{name}: the released program, preset={given['preset']!r}, has none")
    check_model_names(model_cls, given["model_kwargs"] or {}, "model_kwargs")
    check_training(train)
    check_training_names(model_cls, train, "train_kwargs")
    check_given_once(dra, given, given["model_kwargs"] or {}, "model_kwargs")
    check_given_once(dra, given, train, "train_kwargs")
    check_given_once(dra, given, train.get("plan_kwargs") or {}, "plan_kwargs")
    if given["checkpoint"] is not None and train.get("ckpt_path") is not None:
        raise ValueError(
            "checkpoint is what training goes on from: leave ckpt_path out of train_kwargs"
        )


def _check_names(adata: AnnData, key_added: Any, seed: Any) -> None:
    """Check what is written, and where, before any work."""
    if not isinstance(key_added, str):
        raise TypeError(f"key_added={key_added!r} must be a name, as text.")
    if key_added in ("", ".", "..") or "/" in key_added or "\0" in key_added:
        raise ValueError(
            f"key_added={key_added!r} cannot be stored in a file: choose a name without '/', "
            "such as 'X_dra'."
        )
    check_seed(seed)
    if getattr(adata, "is_view", False):
        raise ValueError("adata is a view of another AnnData: pass a copy, `adata.copy()`.")


def _check_checkpoint(checkpoint: str | Path | None, resume: bool) -> None:
    """Check that a checkpoint can be written and, to go on from it, read."""
    if checkpoint is None:
        if resume:
            raise ValueError("resume=True needs checkpoint=, the file to go on from.")
        return
    path = Path(checkpoint).expanduser()
    check_place(path)
    if resume and path.exists():
        read_checkpoint(path)


def _try_obsm(adata: AnnData, key_added: str, n_latent: int) -> None:
    """Write to where the embedding will be, and put back what was there."""
    before = adata.obsm[key_added] if key_added in adata.obsm else None  # noqa: SIM401
    adata.obsm[key_added] = np.zeros((adata.n_obs, n_latent), dtype=np.float32)
    if before is None:
        del adata.obsm[key_added]
    else:
        adata.obsm[key_added] = before


@contextlib.contextmanager
def _kept(
    model: DRA, train: Mapping[str, Any], seed: int, checkpoint: str | Path | None, resume: bool
) -> Iterator[dict[str, Any]]:
    """Yield arguments of a training whose state is kept until the end of the block."""
    if checkpoint is None:
        yield dict(train)
        return
    callback = InterruptCheckpoint(checkpoint)
    callback.owner = model, int(seed)
    plugins = train.get("plugins") or ()
    given = plugins if isinstance(plugins, list | tuple) else [plugins]
    with callback.signals(), callback.file.naming_itself():
        yield {
            **train,
            "plan_kwargs": {**(train.get("plan_kwargs") or {}), "checkpoint": callback},
            "plugins": [*given, callback.file],
            "ckpt_path": str(callback.path) if resume and callback.path.exists() else None,
        }
