"""The train command: its options, the order of its work, and what it tells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from dra_scvi.cli._cells import read_or_open_all, remark, write_cells
from dra_scvi.cli._clusters import add_clusters, check_free
from dra_scvi.cli._command import Common, command, warn
from dra_scvi.cli._errors import one_line
from dra_scvi.cli._options import (
    COUNT,
    KEY_ADDED,
    Columns,
    FileName,
    FolderName,
    Numbers,
    batch_key_option,
    check_file_key,
    file_key_option,
    finite,
    layer_option,
    out_of_core_option,
    output_option,
    paths_argument,
)
from dra_scvi.cli._result import Result
from dra_scvi.cli._saving import Saving, write_report
from dra_scvi.cli._scores import check_labels, clustering, clustering_rows
from dra_scvi.cli._train_request import TrainRequest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anndata import AnnData

    from dra_scvi._model.dra import DRA

WIDTHS = Numbers("widths", "128 or 512,512")
NEXT = "next: --leiden and --umap add clusters and a map, --report FILE.html a page of all"


@command("train")
@paths_argument()
@output_option()
@click.option("--model-dir", type=FolderName(), metavar="DIR", help="Save the trained model here.")
@layer_option
@file_key_option()
@batch_key_option
@click.option("--label-key", help="Column of obs with cell types, to score the embedding.")
@click.option(
    "--categorical-covariate-keys",
    type=Columns(),
    help="Columns of obs with further categories to integrate.",
)
@click.option(
    "--continuous-covariate-keys",
    type=Columns(),
    help="Columns of obs with numbers whose effect is taken out.",
)
@click.option(
    "--n-genes",
    type=click.IntRange(min=2),
    show_default="all",
    help="Train on this number of the most variable genes only.",
)
@click.option("--n-latent", type=COUNT, default=10, help="Dimensions of the embedding.")
@click.option(
    "--preset", type=click.Choice(["published"]), help="Run the released program's settings."
)
@click.option(
    "--max-epochs", type=COUNT, show_default="fewer, the more cells", help="Passes over the cells."
)
@click.option(
    "--early-stopping",
    is_flag=True,
    help="Stop where the ELBO of cells that are not trained on has not risen for 45 epochs.",
)
@click.option(
    "--batch-size", type=click.IntRange(min=2), show_default="128", help="Cells in a minibatch."
)
@click.option(
    "--learning-rate",
    type=click.FloatRange(min=0, min_open=True),
    callback=finite,
    show_default="0.001",
    help="Step size of Adam.",
)
@click.option(
    "--beta1",
    type=click.FloatRange(0, 1, max_open=True),
    callback=finite,
    help="Momentum of Adam; with --preset published.",
)
@click.option(
    "--n-hidden", type=WIDTHS, show_default="128", help="Widths of the encoder's hidden layers."
)
@click.option(
    "--n-hidden-discriminator",
    type=WIDTHS,
    show_default="64",
    help="Widths of the discriminators' hidden layers.",
)
@click.option(
    "--dropout-rate",
    type=click.FloatRange(0, 1, max_open=True),
    callback=finite,
    show_default="0.1",
    help="Share of units dropped.",
)
@click.option(
    "--leak",
    type=float,
    callback=finite,
    help="Slope of the leaky ReLU below 0; with --preset published.",
)
@click.option(
    "--batch-norm/--no-batch-norm",
    default=None,
    help="The released flag as it acts (affine maps, no dropout); with --preset published.",
)
@click.option(
    "--prior",
    type=click.Choice(["normal", "uniform", "mixture"]),
    show_default="mixture",
    help="Distribution that latents are matched to.",
)
@click.option(
    "--divergence",
    type=click.Choice(["bhattacharyya", "jensen-shannon"]),
    show_default="bhattacharyya",
    help="Distance that the discriminators estimate.",
)
@click.option(
    "--gene-likelihood",
    type=click.Choice(["zinb", "nb", "poisson"]),
    show_default="zinb",
    help="Distribution of the counts.",
)
@click.option(
    "--dispersion",
    type=click.Choice(["gene", "gene-batch", "gene-cell"]),
    show_default="gene",
    help="What dispersions of the counts are of.",
)
@click.option("--leiden", is_flag=True, help='Write clusters of the embedding to obs["leiden"].')
@click.option(
    "--resolution",
    type=click.FloatRange(min=0, min_open=True),
    callback=finite,
    show_default="suggested: the finest whose clusters are stable",
    help="Resolution of --leiden.",
)
@click.option("--umap", is_flag=True, help='Write the UMAP of the embedding to obsm["X_umap"].')
@click.option(
    "--report",
    type=FileName(".html", ".htm"),
    metavar="FILE.html",
    help="Write a page with figures, markers and settings; with --leiden and --umap.",
)
@click.option(
    "--metrics-log",
    type=FileName(),
    metavar="FILE",
    help="Append settings and NMI to this text file.",
)
@click.option(
    "--devices",
    type=COUNT,
    default=1,
    help="Devices, or processes on a CPU, that share the cells.",
)
@click.option(
    "--nodes",
    type=COUNT,
    default=1,
    help="Machines with so many devices each, under torchrun or Slurm.",
)
@out_of_core_option()
@click.option("--resume", is_flag=True, help="Go on from where an interrupted run stopped.")
def train(common: Common, **options: Any) -> Result | None:
    """Train DR-A on INPUT and write its cells with their embedding.

    OUT.h5ad is INPUT with the embedding in obsm["X_dra"] and, in uns["dra"], version, prior, genes
    and settings. With --label-key, clusters found in the embedding are compared with the labels.
    --leiden and --umap add clusters and a UMAP; --report shows them in a page, with markers.

    Several INPUTs are trained on together, on the genes that all of them have; --batch-key file
    integrates them.

    A run that is stopped by SIGINT or SIGTERM leaves a checkpoint beside OUT.h5ad; the same
    command with --resume goes on from there.

    Counts that do not fit in memory stay in INPUT, an .h5ad or zarr store with cells in rows
    (CSR). With --devices 2 two processes train on half of the cells each.

    Defaults are those without --preset published, which has its own, normal prior included.

    Example: dra-scvi train cells.h5ad --output out.h5ad --label-key cell_type
    """
    request = TrainRequest(**options)
    request.check_usage()
    request.rehearse(common)
    wanted = False if request.preset else request.out_of_core
    adata, source = read_or_open_all(
        request.input_paths,
        request.layer,
        wanted,
        common,
        output=request.output,
        file_key=check_file_key(request.file_key, request.input_paths),
        columns={
            "batch_key": request.batch_key,
            "label_key": request.label_key,
            **request.covariate_keys,
        },
    )
    _check_trainable(adata, request)
    check_free(adata, request, source, common)
    categories = request.categorical_covariate_keys or ()
    remark(adata, request.batch_key, request.n_genes, common, categories)
    model = _fit(adata, request, common)
    if not model.trainer.is_global_zero:
        return None  # of several processes the first one writes
    saving = Saving(model, request, common)
    with saving.told():
        saving.save_model()
        clusters = saving.compute(lambda: add_clusters(adata, request, common))
        has_column = bool(clusters)
        saving.save_cells(
            lambda: write_cells(adata, request.output, source, common, with_obs=has_column)
        )
        scores = saving.compute(lambda: _score_training(adata, request, common))
        figures = _figures(adata, model, request, common, scores) | clusters
        saving.log(lambda: write_report(model, adata, figures, request, common))
        saving.log(lambda: _log_metrics(figures, request))

    def finish() -> None:
        saving.finish()
        if not clusters and saving.failure is None:
            common.say(NEXT)

    title = f"{_scored_cells(request)} cells of {request.input_name}"
    rows = clustering_rows(scores) if scores else ()
    return Result(figures, title, rows, failure=saving.failure, at_end=finish)


def _check_trainable(adata: AnnData, request: TrainRequest) -> None:
    """Check all of INPUT before the first line about training."""
    from scvi import REGISTRY_KEYS

    from dra_scvi._data.columns import validate_keys
    from dra_scvi._data.fields import NumbersField
    from dra_scvi._data.validation import validate_counts
    from dra_scvi._outputs.h5ad_content import check_writable

    validate_keys(adata, request.layer, {"batch_key": request.batch_key, **request.covariate_keys})
    numbers = request.continuous_covariate_keys
    NumbersField(REGISTRY_KEYS.CONT_COVS_KEY, numbers).validate_field(adata)
    check_labels(adata, request.label_key)
    validate_counts(adata, request.layer, request.batch_key)
    check_writable(adata)
    if request.preset and request.batch_key:
        warn("--batch-key has no effect with --preset published.")


def _fit(adata: AnnData, request: TrainRequest, common: Common) -> DRA:
    """Train on the counts of `adata`, and add what came of it."""
    from dra_scvi import tl
    from dra_scvi._data.query import bare
    from dra_scvi._data.variable_genes import variable_genes

    _announce(adata, request, common)
    work = bare(adata, request.layer, request.columns)
    if request.n_genes is not None:
        genes = variable_genes(work, request.n_genes, request.batch_key, request.layer)
        work = work[:, genes].copy()
    model = tl._dra(
        work,
        layer=request.layer,
        batch_key=request.batch_key,
        **request.covariate_keys,
        n_latent=request.n_latent,
        key_added=KEY_ADDED,
        seed=common.seed,
        preset=request.preset,
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


def _figures(
    adata: AnnData, model: DRA, request: TrainRequest, common: Common, scores: dict[str, Any]
) -> dict[str, Any]:
    from dra_scvi._training.progress import has_stopped_early

    figures: dict[str, Any] = {
        "input": {
            "n_cells": adata.n_obs,
            "n_genes": adata.n_vars,
            "layer": request.layer,
            "batch_key": request.batch_key,
            "label_key": request.label_key,
            **request.covariate_keys,
        },
        "settings": _effective_settings(model, request, common),
        "training": {
            **{name: float(h.iloc[-1, 0]) for name, h in model.history.items()},
            "epochs": model.trainer.current_epoch,
            "stopped_early": has_stopped_early(model.trainer),
        },
        **scores,
    }
    return {**figures, "cells": _scored_cells(request)} if scores else figures


def _scored_cells(request: TrainRequest) -> str:
    """Which cells are scored: all or, as by the released program, the test cells."""
    return "test" if request.preset else "all"


def _score_training(
    adata: AnnData, request: TrainRequest, common: Common
) -> dict[str, dict[str, Any]]:
    import numpy as np

    if request.label_key is None:
        return {}
    rows = np.ones(adata.n_obs, dtype=bool)
    if request.preset:
        rows = (adata.obs["dra_split"] == "test").to_numpy()
    labels = adata.obs[request.label_key][rows]
    seed = 0 if request.preset else common.seed
    return clustering(adata.obsm[KEY_ADDED][rows], labels, seed)


def _effective_settings(model: DRA, request: TrainRequest, common: Common) -> dict[str, Any]:
    """Name the settings that held, given or not."""
    from dra_scvi import presets
    from dra_scvi._module.priors import effective_prior

    chosen = model.init_arguments
    plan = model.trainer.lightning_module
    preset = presets.published(request.n_latent).train if request.preset else {}
    settings = {
        "n_latent": request.n_latent,
        "n_genes": request.n_genes,
        "preset": request.preset,
        "seed": common.seed,
        "max_epochs": model.trainer.max_epochs,
        "early_stopping": request.early_stopping,
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

    from dra_scvi._outputs.files import append_line

    if request.metrics_log is None or "kmeans" not in figures:
        return
    words = [datetime.now(UTC).isoformat(timespec="seconds"), request.input_name]
    for name, value in figures["settings"].items():
        if value is not None:
            shown = ",".join(map(str, value)) if isinstance(value, list) else value
            words.append(f"{name}={shown}")
    words.append(f"NMI={figures['kmeans']['nmi']:.4f}")
    append_line(request.metrics_log, one_line(" ".join(words)))
