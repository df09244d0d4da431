"""Scores on the command line: what they need, how they are computed, and the rows shown."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anndata import AnnData
    from numpy.typing import NDArray

MIN_CELLS_TO_SCORE = 3
INTEGRATION_TITLES = {
    "total": "total",
    "bio_conservation": "bio conservation",
    "batch_correction": "batch correction",
    "isolated_labels": "isolated labels",
    "nmi": "NMI",
    "ari": "ARI",
    "silhouette_label": "silhouette of labels",
    "clisi": "cLISI",
    "bras": "BRAS",
    "ilisi": "iLISI",
    "kbet": "kBET",
    "graph_connectivity": "graph connectivity",
    "pcr": "PCR comparison",
}


def check_labels(adata: AnnData, label_key: str | None) -> None:
    """Check that cells can be scored against a column of labels."""
    if label_key is None:
        return
    from dra_scvi._data.columns import validate_keys

    validate_keys(adata, obs_keys={"label_key": label_key})
    missing = int(adata.obs[label_key].isna().sum())
    if missing:
        raise ValueError(
            f"label_key={label_key!r}: {missing} of {adata.n_obs} cells have no label; drop these "
            "cells, or give them a label of their own such as 'unknown'."
        )
    if adata.n_obs < MIN_CELLS_TO_SCORE:
        raise ValueError(
            f"{adata.n_obs} cells cannot be clustered; at least {MIN_CELLS_TO_SCORE} are needed."
        )


def clustering(embedding: NDArray[Any], labels: Any, seed: int) -> dict[str, dict[str, Any]]:
    """Score k-means, which is told the number of labels, and Leiden, which is not."""
    from dra_scvi import metrics

    return {
        "kmeans": metrics.clustering(embedding, labels, "kmeans", seed=seed),
        "leiden": metrics.clustering(embedding, labels, "leiden", seed=seed),
    }


def clustering_rows(scores: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    titles = {"kmeans": "k-means", "leiden": "Leiden"}
    return [
        {
            "clustering": title,
            "NMI": scores[method]["nmi"],
            "ARI": scores[method]["ari"],
            "silhouette": scores[method].get("silhouette"),
            "clusters": scores[method]["n_clusters"],
        }
        for method, title in titles.items()
    ]


def integration_rows(scores: Mapping[str, float]) -> list[dict[str, Any]]:
    """Show scores of integration, means first; a dash for those that cannot be computed."""
    return [
        {"score": title, "value": "-" if math.isnan(scores[name]) else f"{scores[name]:.3f}"}
        for name, title in INTEGRATION_TITLES.items()
    ]
