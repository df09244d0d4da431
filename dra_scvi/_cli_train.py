"""The train command: its options, what they forbid each other, and what it writes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from dra_scvi._cli_common import (
    KEY_ADDED,
    PATH,
    Common,
    Result,
    bare,
    check_labels,
    clustering,
    clustering_rows,
    command,
    effective_prior,
    input_argument,
    one_line,
    out_of_core_option,
    output_option,
    read_or_open,
    warn,
    write_cells,
)
from dra_scvi._cli_config import Numbers

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from anndata import AnnData

    from dra_scvi._model import DRA

__all__ = ["train"]

PUBLISHED_DIMENSIONS = (2, 10, 20)
MANY_GENES, ENOUGH_GENES = 5_000, 2_000


class Widths(Numbers):
    """Widths of hidden layers: ``128``, or ``512,512``."""

    name = "widths"
    example = "128 or 512,512"


@dataclass(frozen=True)
class TrainRequest:
    """Options of ``train``; `None` leaves a setting to the model."""

    input_path: Path
    output: Path
    model_dir: Path | None
    layer: str | None
    batch_key: str | None
    label_key: str | None
    n_genes: int | None
    n_latent: int
    preset: str | None
    max_epochs: int | None
    batch_size: int | None
    learning_rate: float | None
    beta1: float | None
    n_hidden: list[int] | None
    n_hidden_discriminator: list[int] | None
    dropout_rate: float | None
    leak: float | None
    batch_norm: bool | None
    prior: str | None
    divergence: str | None
    metrics_log: Path | None
    resume: bool
    devices: int
    nodes: int
    out_of_core: bool | None

    MODEL = (
        "n_hidden",
        "n_hidden_discriminator",
        "dropout_rate",
        "leak",
        "batch_norm",
        "prior",
        "divergence",
    )
    PUBLISHED_ONLY = ("beta1", "leak", "batch_norm")

    def check_usage(self) -> None:
        """Refuse options that contradict each other."""
        if self.metrics_log is not None and self.label_key is None:
            raise click.UsageError("--metrics-log needs --label-key.")
        if self.preset is None:
            for name in self.PUBLISHED_ONLY:
                if getattr(self, name) is not None:
                    option = name.replace("_", "-")
                    raise click.UsageError(f"--{option} needs --preset published.")
            return
        if self.devices * self.nodes > 1:
            raise click.UsageError("--preset published runs on one device.")
        if self.out_of_core:
            raise click.UsageError("--out-of-core cannot be chosen with --preset published.")
        if self.n_latent not in PUBLISHED_DIMENSIONS:
            raise click.UsageError(
                f"--preset published takes --n-latent 2, 10 or 20, not {self.n_latent}."
            )
        if self.divergence is not None:
            raise click.UsageError("--divergence cannot be chosen with --preset published.")
        if self.prior == "mixture":
            raise click.UsageError("--prior mixture cannot be chosen with --preset published.")

    def check_outputs(self, common: Common) -> None:
        """Check that everything can be written."""
        from dra_scvi._files import check_output

        common.check_output(self.output)
        common.check_output(self.model_dir)
        if self.metrics_log is not None:
            check_output(self.metrics_log, force=True)  # it is appended to

    @property
    def checkpoint(self) -> Path:
        """File in which the state of training is kept."""
        return self.output.with_name(f".{self.output.name}.ckpt")

    @property
    def model_kwargs(self) -> dict[str, Any]:
        """Arguments of the model, those that were given."""
        values = {name: getattr(self, name) for name in self.MODEL}
        return {name: value for name, value in values.items() if value is not None}

    @property
    def plan_kwargs(self) -> dict[str, Any]:
        """Arguments of the training plan; those of a preset are kept unless given."""
        from dra_scvi import presets

        preset = presets.published(self.n_latent).train["plan_kwargs"] if self.preset else {}
        given = {"lr": self.learning_rate, "beta1": self.beta1}
        return preset | {name: value for name, value in given.items() if value is not None}

    def train_kwargs(self, common: Common) -> dict[str, Any]:
        """Arguments of training, those that were given."""
        kwargs: dict[str, Any] = {"enable_progress_bar": common.shows_bar}
        if self.plan_kwargs:
            kwargs["plan_kwargs"] = self.plan_kwargs
        if self.batch_size is not None:
            kwargs["batch_size"] = self.batch_size
        if self.devices * self.nodes > 1:
            kwargs |= {"devices": self.devices, "num_nodes": self.nodes}
        return kwargs


@command("train")
@input_argument()
@output_option()
@click.option("--model-dir", type=PATH, metavar="DIR", help="Save the trained model here.")
@click.option("--layer", help="Layer that holds the counts; X without it.")
@click.option("--batch-key", help="Column of obs with batches to integrate.")
@click.option("--label-key", help="Column of obs with cell types, to score the embedding.")
@click.option(
    "--n-genes",
    type=click.IntRange(min=2),
    help="Train on this number of the most variable genes only.",
)
@click.option(
    "--n-latent",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    help="Dimensions of the embedding.",
)
@click.option(
    "--preset", type=click.Choice(["published"]), help="Run the released program's settings."
)
@click.option("--max-epochs", type=click.IntRange(min=1), help="Passes over the cells.")
@click.option("--batch-size", type=click.IntRange(min=2), help="Cells in a minibatch.")
@click.option(
    "--learning-rate", type=click.FloatRange(min=0, min_open=True), help="Step size of Adam."
)
@click.option(
    "--beta1",
    type=click.FloatRange(0, 1, max_open=True),
    help="Momentum of Adam; with --preset published.",
)
@click.option("--n-hidden", type=Widths(), help="Widths of the encoder's hidden layers.")
@click.option(
    "--n-hidden-discriminator", type=Widths(), help="Widths of the discriminators' hidden layers."
)
@click.option(
    "--dropout-rate", type=click.FloatRange(0, 1, max_open=True), help="Share of units dropped."
)
@click.option(
    "--leak", type=float, help="Slope of the leaky ReLU below 0; with --preset published."
)
@click.option(
    "--batch-norm/--no-batch-norm",
    default=None,
    help="The released flag as it acts (affine maps, no dropout); with --preset published.",
)
@click.option(
    "--prior",
    type=click.Choice(["normal", "uniform", "mixture"]),
    help="Distribution that the codes are matched to; default: mixture, with --preset normal.",
)
@click.option(
    "--divergence",
    type=click.Choice(["bhattacharyya", "jensen-shannon"]),
    help="Distance that the discriminators estimate.",
)
@click.option(
    "--metrics-log", type=PATH, metavar="FILE", help="Append settings and NMI to this text file."
)
@click.option(
    "--devices",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Devices, or processes on a CPU, that share the cells.",
)
@click.option(
    "--nodes",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Machines with so many devices each, under torchrun or Slurm.",
)
@out_of_core_option()
@click.option("--resume", is_flag=True, help="Go on from where an interrupted run stopped.")
def train(common: Common, **options: Any) -> Result | None:
    """Train DR-A on INPUT and write its cells with their embedding.

    OUT.h5ad is INPUT with the embedding in obsm["X_dra"] and the settings in uns["dra"]. With
    --label-key, clusters found in the embedding are compared with the labels.

    A run that is stopped by SIGINT or SIGTERM leaves a checkpoint beside OUT.h5ad; the same
    command with --resume goes on from there.

    Counts that do not fit in memory stay in INPUT, an .h5ad or zarr store with cells in rows
    (CSR). With --devices 2 two processes train on half of the cells each.

    Example: dra-scvi train cells.h5ad --output out.h5ad --label-key cell_type
    """
    request = TrainRequest(**options)
    request.check_usage()
    request.check_outputs(common)
    wanted = False if request.preset else request.out_of_core
    adata, is_stored = read_or_open(request.input_path, request.layer, wanted, common)
    _check_trainable(adata, request)
    model = _fit(adata, request, common)
    if not model.trainer.is_global_zero:
        return None  # of several processes the first one writes
    scores, cells = _score_training(adata, request, common)
    figures: dict[str, Any] = {
        "input": {
            "n_cells": adata.n_obs,
            "n_genes": adata.n_vars,
            "layer": request.layer,
            "batch_key": request.batch_key,
            "label_key": request.label_key,
        },
        "settings": _effective_settings(model, request, common),
        "training": {name: float(h.iloc[-1, 0]) for name, h in model.history.items()},
        **scores,
    }
    if scores:
        figures["cells"] = cells
    if request.model_dir is not None:
        model.save(str(request.model_dir), overwrite=common.force)
        common.say(f"wrote {request.model_dir}")
    write_cells(adata, request.output, request.input_path if is_stored else None, common)
    _log_metrics(figures, request)
    title = f"{cells} cells of {request.input_path.name}"
    return Result(figures, title, clustering_rows(scores) if scores else ())


def _check_trainable(adata: AnnData, request: TrainRequest) -> None:
    """Check all of INPUT before the first line about training."""
    from dra_scvi._validation import validate_counts, validate_keys

    validate_keys(adata, request.layer, {"batch_key": request.batch_key})
    check_labels(adata, request.label_key)
    validate_counts(adata, request.layer, request.batch_key)
    if request.preset and request.batch_key:
        warn("--batch-key has no effect with --preset published.")


def _fit(adata: AnnData, request: TrainRequest, common: Common) -> DRA:
    """Train on the counts of `adata`, and add what came of it."""
    from dra_scvi import tl
    from dra_scvi._genes import variable_genes

    _announce(adata, request, common)
    work = bare(adata, request.layer, [request.batch_key] if request.batch_key else [])
    if request.n_genes is not None:
        genes = variable_genes(work, request.n_genes, request.batch_key, request.layer)
        work = work[:, genes].copy()
    model = tl.dra(
        work,
        layer=request.layer,
        batch_key=request.batch_key,
        n_latent=request.n_latent,
        key_added=KEY_ADDED,
        seed=common.seed,
        preset="published" if request.preset else None,
        max_epochs=request.max_epochs,
        accelerator=common.accelerator,
        model_kwargs=request.model_kwargs,
        train_kwargs=request.train_kwargs(common),
        checkpoint=request.checkpoint,
        resume=request.resume,
    )
    adata.obsm[KEY_ADDED] = work.obsm[KEY_ADDED]
    adata.uns["dra"] = work.uns["dra"]
    if "dra_split" in work.obs:
        adata.obs["dra_split"] = work.obs["dra_split"]
    return model


def _announce(adata: AnnData, request: TrainRequest, common: Common) -> None:
    found = request.checkpoint.exists()
    if request.resume and found:
        common.say(f"going on from {request.checkpoint}")
    elif request.resume:
        common.say(f"no checkpoint at {request.checkpoint}: starting from the beginning")
    elif found:
        common.say(f"not going on from {request.checkpoint}, which takes --resume")
    n_genes = min(adata.n_vars, request.n_genes or adata.n_vars)
    common.say(f"training on {adata.n_obs} cells and {n_genes} genes")
    if n_genes > MANY_GENES:
        common.say(f"with so many genes this takes long; --n-genes {ENOUGH_GENES} is faster")


def _score_training(
    adata: AnnData, request: TrainRequest, common: Common
) -> tuple[dict[str, dict[str, Any]], str]:
    """Score all cells or, as the released program, the test cells; say which."""
    import numpy as np

    cells = "test" if request.preset else "all"
    if request.label_key is None:
        return {}, cells
    rows = np.ones(adata.n_obs, dtype=bool)
    if request.preset:
        rows = (adata.obs["dra_split"] == "test").to_numpy()
    labels = adata.obs[request.label_key][rows]
    seed = 0 if request.preset else common.seed
    return clustering(adata.obsm[KEY_ADDED][rows], labels, seed), cells


def _effective_settings(model: DRA, request: TrainRequest, common: Common) -> dict[str, Any]:
    """Name the settings that held, given or not."""
    from dra_scvi import presets

    chosen = model.init_params_["non_kwargs"]
    plan = model.trainer.lightning_module
    preset = presets.published(request.n_latent).train if request.preset else {}
    settings = {
        "n_latent": request.n_latent,
        "n_genes": request.n_genes,
        "preset": request.preset,
        "seed": common.seed,
        "max_epochs": model.trainer.max_epochs,
        "learning_rate": getattr(plan, "lr", None),
        "beta1": getattr(plan, "beta1", None),
        "batch_size": request.batch_size or preset.get("batch_size"),
        **{name: chosen[name] for name in TrainRequest.MODEL if name in chosen},
        "prior": effective_prior(chosen),
    }
    return {name: list(v) if isinstance(v, tuple) else v for name, v in settings.items()}


def _log_metrics(figures: Mapping[str, Any], request: TrainRequest) -> None:
    """Append one line, as the released program did."""
    from datetime import UTC, datetime

    from dra_scvi._files import append_line

    if request.metrics_log is None:
        return
    words = [datetime.now(UTC).isoformat(timespec="seconds"), request.input_path.name]
    for name, value in figures["settings"].items():
        if value is not None:
            shown = ",".join(map(str, value)) if isinstance(value, list) else value
            words.append(f"{name}={shown}")
    words.append(f"NMI={figures['kmeans']['nmi']:.4f}")
    append_line(request.metrics_log, one_line(" ".join(words)))
