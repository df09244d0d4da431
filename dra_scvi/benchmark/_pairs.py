"""Rows of a comparison, checked and paired, and what models and measures are called."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dra_scvi._argument_kinds import check_table as check_kind
from dra_scvi._data.columns import unknown_key

if TYPE_CHECKING:
    import pandas as pd


TITLES = {
    "pca": "PCA",
    "fa": "FA",
    "harmony": "Harmony",
    "scvi": "scVI",
    "scvi-short": "short scVI",
    "ldvae": "LDVAE",
    "drvi": "DRVI",
    "jointembedding": "JointEmbedding",
    "scanvi": "scANVI",
    "dra": "DRA",
}
# those that are told what they are scored by are none
BASELINES = tuple(name for name in TITLES if name not in ("dra", "scanvi"))
CELL = ["dataset", "n_latent"]
PAIR = [*CELL, "seed"]
# Scores of which more is better, as they are called in figures and tables.
MEASURES = {
    "nmi": "NMI (k-means)",
    "ari": "ARI (k-means)",
    "leiden_nmi": "NMI (Leiden)",
    "leiden_ari": "ARI (Leiden)",
    "leiden1_nmi": "NMI (Leiden 1)",
    "purity": "purity",
    "silhouette": "silhouette",
    "integration_total": "integration score",
}
MEANS = (*MEASURES, "leiden1_n_clusters", "seconds")


def title(model: str) -> str:
    """Say what a model is called and, where it saw some labels, that it did.

    >>> title("fa"), title("scanvi"), title("my own")
    ('FA', 'scANVI (half labelled)', 'my own')
    """
    return TITLES.get(model, model) + " (half labelled)" * (model == "scanvi")


def pairs(table: pd.DataFrame, model: str, baseline: str, metric: str = "nmi") -> pd.DataFrame:
    """Subtract a baseline from a model, pair by pair, where both have a finite score.

    Return ``dataset``, ``n_latent``, ``seed`` and ``difference``.
    """
    one, other = (
        table.loc[table["model"] == name, [*PAIR, metric]].set_index(PAIR)[metric]
        for name in (model, baseline)
    )
    difference = one.astype(float).sub(other.astype(float)).dropna()
    return difference.rename("difference").reset_index()


def check_table(table: pd.DataFrame, metric: str) -> None:
    """Check that rows can be paired: no column is missing, and no model repeats within a pair."""
    check_kind(table)
    missing = [name for name in ("model", *PAIR) if name not in table]
    if missing:
        raise ValueError(
            f"not a table of benchmark.compare: the columns {', '.join(missing)} are missing."
        )
    if metric not in table:
        raise KeyError(unknown_key("metric", metric, "a column of the table", table.columns))
    repeated = table.duplicated(["model", *PAIR])
    if repeated.any():
        row = table[repeated].iloc[0]
        raise ValueError(
            f"the table has several rows for {row['model']} on {row['dataset']!r}, "
            f"k={row['n_latent']}, seed {row['seed']}: other data, epochs or versions of the same "
            "name. Select those that belong together, such as table[table['fingerprint'] == ...]."
        )
