"""Ranks over measures against scipy, by hand, and where runs or measures are missing."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import rankdata

from dra_scvi import benchmark
from dra_scvi.benchmark._ranks import RANKED

MODELS = ["pca", "scvi", "dra", "mine"]


def table(n_sets: int = 3, n_seeds: int = 2, decimals: int = 1) -> pd.DataFrame:
    """Return random scores, many of them equal, models in the order of each run."""
    rng = np.random.default_rng(0)
    runs = [
        {"dataset": f"set {i}", "n_latent": k, "seed": seed, "model": model}
        for i in range(n_sets)
        for seed in range(n_seeds)
        for k in (2, 10)
        for model in MODELS
    ]
    scores = {name: rng.random(len(runs)).round(decimals) for name in RANKED}
    return pd.DataFrame(runs).assign(**scores)


def by_scipy(rows: pd.DataFrame, measures: tuple[str, ...]) -> np.ndarray:
    """Return the ranks of models in the order of the rows, ``(run, measure, model)``."""
    runs = [run for _, run in rows.groupby(["dataset", "n_latent", "seed"])]
    return np.array([[rankdata(-run[name]) for name in measures] for run in runs])


def test_ranks_are_those_of_scipy() -> None:
    rows = table()
    ranks = by_scipy(rows, RANKED)
    found = benchmark.ranks(rows.sample(frac=1, random_state=1)).set_index("model").loc[MODELS]
    assert found["rank"].to_numpy() == pytest.approx(ranks.mean(axis=(0, 1)))
    means = ranks.mean(axis=0)
    for i, name in enumerate(RANKED):
        assert found[f"rank_{name}"].to_numpy() == pytest.approx(means[i])
    assert found["n_first"].tolist() == (means == means.min(axis=1, keepdims=True)).sum(0).tolist()
    assert (found["n_ranked"] == 12).all()


def test_models_come_in_the_order_of_the_table() -> None:
    assert benchmark.ranks(table())["model"].tolist() == MODELS


def test_runs_that_one_model_did_not_finish_count_for_none() -> None:
    rows = table()
    expected = benchmark.ranks(rows[~((rows["dataset"] == "set 1") & (rows["seed"] == 0))])
    failed = rows.copy()
    is_failed = (rows["dataset"] == "set 1") & (rows["seed"] == 0) & (rows["model"] == "dra")
    failed.loc[is_failed, list(RANKED)] = np.nan
    pd.testing.assert_frame_equal(benchmark.ranks(failed), expected)
    pd.testing.assert_frame_equal(benchmark.ranks(rows[~is_failed]), expected)
    assert (expected["n_ranked"] == 10).all()


def test_sets_without_batches_are_ranked_by_the_other_measures() -> None:
    rows = table(n_sets=2)
    rows.loc[rows["dataset"] == "set 0", "integration_total"] = np.nan
    one = by_scipy(rows[rows["dataset"] == "set 0"], RANKED[:-1]).mean(axis=1)
    other = by_scipy(rows[rows["dataset"] == "set 1"], RANKED).mean(axis=1)
    found = benchmark.ranks(rows)
    assert found["rank"].to_numpy() == pytest.approx(np.concatenate([one, other]).mean(axis=0))
    assert (found["n_ranked"] == 8).all()


def test_higher_is_better_and_rounding_makes_no_rank() -> None:
    rows = pd.DataFrame({"model": MODELS, "nmi": [0.3, 0.1 + 0.2, 0.9, 0.1]})
    found = benchmark.ranks(rows.assign(dataset="a", n_latent=2, seed=0))
    assert found["rank"].tolist() == [2.5, 2.5, 1.0, 4.0]
    assert found["n_first"].tolist() == [0, 0, 1, 0]


def test_equal_models_share_the_first_place() -> None:
    rows = table().assign(**dict.fromkeys(RANKED, 0.5))
    found = benchmark.ranks(rows)
    assert found["n_first"].tolist() == [6] * 4
    assert found["rank"].tolist() == [2.5] * 4


def test_ranks_by_other_measures() -> None:
    rows = table().assign(ari=lambda rows: rows["nmi"])
    found = benchmark.ranks(rows, ["ari"])
    expected = by_scipy(rows, ("ari",)).mean(axis=(0, 1))
    assert found["rank"].to_numpy() == pytest.approx(expected)
    assert list(found) == ["model", "rank", "n_first", "n_ranked", "rank_ari"]


def test_nothing_to_rank_by_gives_no_rank() -> None:
    rows = table()
    for nothing in (rows.drop(columns=list(RANKED)), rows.assign(**dict.fromkeys(RANKED, np.nan))):
        found = benchmark.ranks(nothing)
        assert found["rank"].isna().all()
        assert (found[["n_first", "n_ranked"]] == 0).all(axis=None)


def test_ranks_refuse_what_they_cannot_pair() -> None:
    with pytest.raises(KeyError, match="did you mean 'purity'"):
        benchmark.ranks(table(), ["puriti"])
    with pytest.raises(ValueError, match="several rows for pca"):
        benchmark.ranks(pd.concat([table(), table()]))
    with pytest.raises(ValueError, match="columns seed are missing"):
        benchmark.ranks(table().drop(columns="seed"))
    with pytest.raises(TypeError, match="read it first"):
        benchmark.ranks("table.csv")  # type: ignore[arg-type]
