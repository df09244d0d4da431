"""The evaluate command: scores of an embedding."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

import click

from dra_scvi.cli._command import Common, command
from dra_scvi.cli._options import KEY_ADDED, path_argument
from dra_scvi.cli._result import Result
from dra_scvi.cli._scores import check_labels, clustering, clustering_rows, integration_rows

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData


@command("evaluate")
@path_argument("input_path", "INPUT")
@click.option("--label-key", required=True, help="Column of obs with cell types.")
@click.option("--use-rep", default=KEY_ADDED, help="Key of obsm with the embedding.")
@click.option("--batch-key", help="Column of obs with batches, to score how well they mix.")
def evaluate(
    common: Common, input_path: Path, label_key: str, use_rep: str, batch_key: str | None
) -> Result:
    """Compare clusters in an embedding of INPUT with known cell types.

    Clusters are found by k-means, with as many clusters as labels, and by Leiden. Scores of
    integration, with --batch-key, need scib-metrics; "pcr", which needs the cells before
    integration, is null, and left out of the means.

    Example: dra-scvi evaluate embedded.h5ad --label-key cell_type --json -
    """
    from dra_scvi._data.columns import unknown_key, validate_keys
    from dra_scvi._inputs.read import read_input

    if batch_key is not None and importlib.util.find_spec("scib_metrics") is None:
        raise click.UsageError('--batch-key needs scib-metrics: pip install "dra_scvi[scib]".')
    common.rehearse({"INPUT": input_path})
    adata = read_input(input_path)
    if use_rep not in adata.obsm:
        raise KeyError(unknown_key("use_rep", use_rep, "a key of adata.obsm", adata.obsm.keys()))
    validate_keys(adata, obs_keys={"batch_key": batch_key})
    check_labels(adata, label_key)
    figures = _evaluate(adata, label_key, use_rep, batch_key, common.seed)
    mixing = integration_rows(figures["integration"]) if batch_key is not None else []
    title = f"{use_rep} of {input_path.name}"
    return Result(
        figures, title, clustering_rows(figures), [(f"Integration of {batch_key}", mixing)]
    )


def _evaluate(
    adata: AnnData, label_key: str, use_rep: str, batch_key: str | None, seed: int
) -> dict[str, Any]:
    from dra_scvi import metrics

    embedding, labels = adata.obsm[use_rep], adata.obs[label_key]
    scores: dict[str, Any] = dict(clustering(embedding, labels, seed))
    if batch_key is not None:
        scores["integration"] = metrics.integration(embedding, labels, adata.obs[batch_key])
    return {
        "input": {
            "n_cells": adata.n_obs,
            "n_genes": adata.n_vars,
            "label_key": label_key,
            "batch_key": batch_key,
        },
        "settings": {"use_rep": use_rep, "seed": seed},
        **scores,
    }
