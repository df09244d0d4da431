"""Paired differences between models, their means and intervals, as pure functions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from dra_scvi._data.columns import unknown_key
from dra_scvi.benchmark._pairs import BASELINES, CELL, MEANS, MEASURES, check_table, pairs
from dra_scvi.benchmark._ranks import ranks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


QUANTILES = (0.025, 0.975)
N_RESAMPLES = 2_000
TIE = 1e-9  # scores that differ by less are equal but for rounding


def summary(
    table: pd.DataFrame,
    baseline: str | None = None,
    metric: str | Sequence[str] | None = "nmi",
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """Compare models that ran on the same data sets, dimensions and seeds.

    Rows of two models are paired by data set, dimensions (k) and seed; runs that failed have no
    partner. Every cell, that is every data set × k, weighs the same, however many seeds it has.

    Parameters
    ----------
    table
        Rows as :func:`dra_scvi.benchmark.compare` returns them, of any number of data sets.
    baseline
        Model that the others are compared with. By default the built-in one whose mean of `metric`
        is highest over the cells that all of them have, DRA and scANVI, which sees labels, left
        out.
    metric
        Column that is compared; higher is better. Or several, or `None` for all measures that the
        table has, for a row per column and model.
    n_resamples
        Resamples of the bootstrap.
    seed
        Seed of the bootstrap.

    Returns
    -------
    One row per model, in the order of the table, with

    - ``metric``, where there may be several;
    - ``n_runs``, ``n_failed``: rows, and those among them without a finite `metric`;
    - ``nmi``, ``ari``, ``leiden_nmi``, ``leiden_ari``, ``leiden1_nmi``, ``purity``: means over
      cells;
    - ``silhouette``, ``integration_total``, ``leiden1_n_clusters``, ``seconds``, and `metric`:
      means as well;
    - ``sd``: standard deviation of `metric` over seeds, mean over the cells with several;
    - ``rank``, ``n_first``, ``n_ranked``: over measures, see :func:`ranks`;
    - ``baseline``, ``n_pairs``: what it is compared with, and on how many pairs;
    - ``difference``: model minus baseline, mean over cells;
    - ``low``, ``high``: its 95% interval, from a bootstrap that draws data sets and then, within
      each cell, seeds. NaN where there is one data set and one seed; with one data set it speaks
      of seeds only, and with one seed of data sets only;
    - ``ahead``: share of cells in which the model's mean is higher;
    - ``worst``: difference in the cell where it is lowest.

    The five columns from ``n_pairs`` on are empty in the row of the baseline itself.

    Raises
    ------
    KeyError
        When `baseline` or `metric` is not in the table.
    ValueError
        When a column is missing, or two rows are of the same model, data set, k and seed.

    Examples
    --------
    >>> import pandas as pd
    >>> from dra_scvi import benchmark
    >>> table = pd.DataFrame(
    ...     {
    ...         "dataset": "pbmc",
    ...         "n_latent": 10,
    ...         "seed": [0, 1, 0, 1],
    ...         "model": ["scvi", "scvi", "dra", "dra"],
    ...         "nmi": [0.70, 0.72, 0.75, 0.75],
    ...     }
    ... )
    >>> dra = benchmark.summary(table).set_index("model").loc["dra"]
    >>> [round(float(dra[name]), 3) for name in ("difference", "low", "high", "ahead")]
    [0.04, 0.03, 0.05, 1.0]
    """
    if not isinstance(metric, str):
        names = _measured(table) if metric is None else metric
        parts = [summary(table, baseline, name, n_resamples, seed) for name in names]
        return pd.concat(parts, keys=names, names=["metric", None]).reset_index("metric")
    check_table(table, metric)
    models = list(dict.fromkeys(table["model"]))
    if not models:
        raise ValueError("the table has no rows: nothing to compare.")
    ranked = ranks(table).set_index("model")[["rank", "n_first", "n_ranked"]].to_dict("index")
    if baseline is None:
        baseline = strongest_baseline(table, metric)
    elif baseline not in models:
        raise KeyError(unknown_key("baseline", baseline, "a model of the table", models))
    rows = []
    for model in models:
        row = {"model": model, **_means(table[table["model"] == model], metric)}
        row |= {**ranked[model], "baseline": baseline}
        if model != baseline:
            row |= _difference(pairs(table, model, baseline, metric), n_resamples, seed)._asdict()
        rows.append(row)
    columns = [*rows[0], *(name for name in _Difference._fields if name not in rows[0])]
    return pd.DataFrame(rows, columns=columns).astype({"n_pairs": "Int64"})


def _measured(table: pd.DataFrame) -> list[str]:
    """Name the measures that the table has; k-means' where all runs failed."""
    return [name for name in MEASURES if name in table and table[name].notna().any()] or ["nmi"]


def strongest_baseline(table: pd.DataFrame, metric: str = "nmi") -> str:
    """Name the baseline with the highest mean, or of all models where there is no baseline."""
    is_baseline = table["model"].isin(BASELINES)
    chosen = table[is_baseline] if is_baseline.any() else table
    scores = chosen.pivot_table(index=CELL, columns="model", values=metric, dropna=False)
    means = scores.dropna().mean() if len(scores.dropna()) else scores.mean()
    return str(means.idxmax()) if means.notna().any() else str(chosen["model"].iloc[0])


def interval(
    differences: pd.DataFrame, n_resamples: int = N_RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Bootstrap the mean over cells of paired differences: data sets first, then seeds.

    Return the ends of the 95% interval; NaN where nothing could be drawn differently.
    """
    data_sets = [
        [cell["difference"].to_numpy() for _, cell in rows.groupby("n_latent")]
        for _, rows in differences.groupby("dataset")
    ]
    if len(data_sets) < 2 and all(len(seeds) < 2 for cells in data_sets for seeds in cells):
        return float("nan"), float("nan")
    means = _resampled_means(data_sets, n_resamples, np.random.default_rng(seed))
    low, high = np.quantile(means, QUANTILES)
    return float(low), float(high)


class _Difference(NamedTuple):
    n_pairs: int
    difference: float
    low: float
    high: float
    ahead: float
    worst: float


def _difference(differences: pd.DataFrame, n_resamples: int, seed: int) -> _Difference:
    if differences.empty:
        return _Difference(0, *[float("nan")] * 5)
    cells = differences.groupby(CELL)["difference"].mean()
    return _Difference(
        len(differences),
        float(cells.mean()),
        *interval(differences, n_resamples, seed),
        ahead=float((cells > TIE).mean()),
        worst=float(cells.min()),
    )


def _means(rows: pd.DataFrame, metric: str) -> dict[str, Any]:
    """Summarise the rows of one model."""
    names = [name for name in dict.fromkeys((*MEANS, metric)) if name in rows]
    rows = rows.astype(
        dict.fromkeys(names, float)
    )  # whole numbers that may be missing have no NaN
    cells = rows.groupby(CELL)[names]
    spread = rows.groupby(CELL)[metric].std()
    return {
        "n_runs": len(rows),
        "n_failed": int(rows[metric].isna().sum()),
        **{str(name): float(value) for name, value in cells.mean().mean().items()},
        "sd": float(spread.mean()),
    }


def _resampled_means(
    data_sets: Sequence[Sequence[NDArray[np.floating]]], n_resamples: int, rng: np.random.Generator
) -> NDArray[np.floating]:
    """Draw data sets, and within each cell of a drawn one seeds; return the mean over cells."""
    drawn = rng.integers(len(data_sets), size=(n_resamples, len(data_sets)))
    totals, numbers = np.zeros(n_resamples), np.zeros(n_resamples)
    for index, cells in enumerate(data_sets):
        is_drawn = drawn == index
        numbers += len(cells) * is_drawn.sum(axis=1)
        for seeds in cells:
            means = seeds[rng.integers(len(seeds), size=(*drawn.shape, len(seeds)))].mean(axis=-1)
            totals += np.where(is_drawn, means, 0.0).sum(axis=1)
    return totals / numbers
