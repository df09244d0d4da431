"""Marker genes of clusters, by scanpy's t-test on normalised logarithms of counts."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import sparse

from dra_scvi._data.stored_rows import read_rows
from dra_scvi._threads import own_threads

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

MOST_CELLS = 20_000
MOST_CLUSTERS = 60
GENES_SHOWN = 8
SIGNIFICANT = 0.05
LEAST_CELLS = 3
TARGET_SUM = 1e4


class Marker(NamedTuple):
    """A gene that is higher in a cluster than elsewhere."""

    gene: str
    fold_change: float  # log2
    here: float  # share of the cells of the cluster that have any
    elsewhere: float


def find_markers(
    counts: Any, genes: Sequence[str], clusters: pd.Series, seed: int
) -> dict[str, list[Marker]]:
    """Find genes that mark clusters, at most eight for each, the clearest first.

    Counts are raw, in memory or stored; of more than 20,000 cells so many are drawn. Of many
    clusters the 60 largest are looked at. A cluster of fewer than three cells is left out; where
    all cells are in one, there is nothing.
    """
    rows = np.arange(len(clusters))
    if len(rows) > MOST_CELLS:
        drawn = np.random.default_rng(seed).choice(rows, MOST_CELLS, replace=False)
        rows = np.sort(drawn)
    codes, names = pd.factorize(clusters.astype(str).to_numpy()[rows], sort=True)
    sizes = pd.Series(codes).value_counts()
    groups = [str(code) for code in sizes.index[sizes >= LEAST_CELLS][:MOST_CLUSTERS]]
    if len(sizes) < 2 or not groups:
        return {}
    with warnings.catch_warnings():  # of genes that are the same in all cells
        warnings.simplefilter("ignore")
        tables = _rank(sparse.csr_matrix(read_rows(counts, rows)), codes, groups)
    return {str(names[int(group)]): _markers(table, genes) for group, table in tables.items()}


def _rank(
    counts: sparse.csr_matrix, codes: NDArray[np.int64], groups: list[str]
) -> dict[str, pd.DataFrame]:
    """Rank genes; numbers stand for their names, which may be anything and not unique."""
    import scanpy as sc
    from anndata import AnnData

    obs = pd.DataFrame({"cluster": pd.Categorical(codes.astype(str))})
    obs.index = obs.index.astype(str)
    var = pd.DataFrame(index=np.arange(counts.shape[1]).astype(str))
    logs = AnnData(counts.astype(np.float32), obs=obs, var=var)
    with own_threads():
        sc.pp.normalize_total(logs, target_sum=TARGET_SUM)
        sc.pp.log1p(logs)
        sc.tl.rank_genes_groups(
            logs, "cluster", groups=groups, method="t-test", n_genes=GENES_SHOWN, pts=True
        )
    return {group: sc.get.rank_genes_groups_df(logs, group) for group in groups}


def _markers(table: pd.DataFrame, genes: Sequence[str]) -> list[Marker]:
    kept = table[(table["scores"] > 0) & (table["pvals_adj"] < SIGNIFICANT)]
    columns = ("logfoldchanges", "pct_nz_group", "pct_nz_reference")
    numbers = kept[list(columns)].to_numpy(dtype=float)
    names = [str(genes[int(name)]) for name in kept["names"]]
    return [Marker(name, *row) for name, row in zip(names, numbers.tolist(), strict=True)]
