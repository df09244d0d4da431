"""Ranks of models over measures, so that none is best by the one measure it was chosen by."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from dra_scvi.benchmark._pairs import PAIR, check_table

if TYPE_CHECKING:
    from collections.abc import Sequence


# One for each question: ARI would count the same clusters twice.
RANKED = ("nmi", "leiden_nmi", "leiden1_nmi", "purity", "silhouette", "integration_total")
DECIMALS = 9  # scores that differ by less are equal but for rounding


def ranks(table: pd.DataFrame, measures: Sequence[str] | None = None) -> pd.DataFrame:
    """Rank models by several measures, 1 for the best, wherever all of them have finished.

    Models are ranked by each measure on each data set, dimensions (k) and seed; equal ones share
    the mean of their ranks. Runs of which any model lacks the measure do not count for it.

    Parameters
    ----------
    table
        Rows as :func:`dra_scvi.benchmark.compare` returns them, of any number of data sets.
    measures
        Columns to rank by, higher being better. By default those there are of ``nmi``,
        ``leiden_nmi``, ``leiden1_nmi``, ``purity``, ``silhouette`` and ``integration_total``.

    Returns
    -------
    One row per model, in the order of the table, with

    - ``rank``: mean over measures, and then over data sets, dimensions and seeds;
    - ``n_first``: number of measures by which its mean rank is the best, or shares that;
    - ``n_ranked``: number of data sets × dimensions × seeds that count;
    - ``rank_...``: mean rank by each measure, NaN where no run counts.

    Raises
    ------
    KeyError
        When a measure is not in the table.
    ValueError
        When a column is missing, or two rows are of the same model, data set, k and seed.

    Examples
    --------
    >>> table = pd.DataFrame({"model": ["pca", "scvi", "dra"], "nmi": [0.5, 0.6, 0.7]})
    >>> table = table.assign(dataset="pbmc", n_latent=10, seed=0, purity=[0.7, 0.9, 0.8])
    >>> ranks(table)[["model", "rank", "n_first"]].to_numpy().tolist()
    [['pca', 3.0, 0], ['scvi', 1.5, 1], ['dra', 1.5, 1]]
    """
    check_table(table, "model")
    names = [name for name in RANKED if name in table] if measures is None else list(measures)
    for name in names:
        check_table(table, name)
    models = list(dict.fromkeys(table["model"]))
    by_measure = {f"rank_{name}": _ranked(table, name)[models] for name in names}
    whole = pd.DataFrame({"rank": float("nan"), "n_first": 0, "n_ranked": 0}, index=models)
    if names:
        means = pd.DataFrame({name: ranked.mean() for name, ranked in by_measure.items()})
        cells = pd.concat(by_measure.values()).groupby(level=PAIR).mean()
        is_best = means.round(DECIMALS) == means.min().round(DECIMALS)
        whole["rank"], whole["n_first"] = cells.mean(), is_best.sum(axis=1)
        whole = whole.assign(n_ranked=len(cells)).join(means)
    return whole.rename_axis("model").reset_index()


def _ranked(table: pd.DataFrame, measure: str) -> pd.DataFrame:
    """Rank the models wherever all of them have the measure."""
    scores = table.pivot(index=PAIR, columns="model", values=measure).astype(float).dropna()
    return scores.round(DECIMALS).rank(axis=1, ascending=False)
