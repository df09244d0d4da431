"""Paired differences: the summary by hand, its interval against the exact distribution."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pandas as pd
import pytest

from dra_scvi import benchmark
from dra_scvi.benchmark._models import BUILT_IN
from dra_scvi.benchmark._pairs import TITLES, check_table, pairs
from dra_scvi.benchmark._statistics import (
    N_RESAMPLES,
    _resampled_means,
    interval,
    strongest_baseline,
)


def rows(scores: dict[str, dict[tuple[str, int], list[float]]]) -> pd.DataFrame:
    """Make a table from the scores of each model by (data set, k), one per seed."""
    return pd.DataFrame(
        [
            {"model": model, "dataset": name, "n_latent": k, "seed": seed, "nmi": nmi, "ari": 0.5}
            for model, cells in scores.items()
            for (name, k), values in cells.items()
            for seed, nmi in enumerate(values)
        ]
    )


BY_HAND = rows(
    {
        "pca": {("a", 2): [0.50, 0.50], ("a", 10): [0.60, 0.60], ("b", 2): [0.30]},
        "scvi": {("a", 2): [0.54, 0.50], ("a", 10): [0.64, 0.70], ("b", 2): [0.20]},
        "dra": {("a", 2): [0.60, 0.64], ("a", 10): [0.66, 0.62], ("b", 2): [0.29]},
    }
)


def test_summary_by_hand() -> None:
    found = benchmark.summary(BY_HAND).set_index("model")
    assert list(found.index) == ["pca", "scvi", "dra"]
    # cells: pca .50 .60 .30, scvi .52 .67 .20, dra .62 .64 .29
    assert found["nmi"].to_dict() == pytest.approx(
        {"pca": 1.40 / 3, "scvi": 1.39 / 3, "dra": 1.55 / 3}
    )
    assert (found["baseline"] == "pca").all()
    dra, pca = found.loc["dra"], found.loc["pca"]
    assert dra["difference"] == pytest.approx((0.12 + 0.04 - 0.01) / 3)
    assert dra["worst"] == pytest.approx(-0.01)
    assert dra["ahead"] == pytest.approx(2 / 3)
    assert (dra["n_pairs"], dra["n_runs"], dra["n_failed"]) == (5, 5, 0)
    # two cells have two seeds that lie 0.04 apart
    assert dra["sd"] == pytest.approx(0.04 / np.sqrt(2))
    assert pca["sd"] == 0
    assert pca[["n_pairs", "difference", "low", "high", "ahead", "worst"]].isna().all()
    assert dra["ari"] == 0.5


def test_summary_against_another_baseline() -> None:
    dra = benchmark.summary(BY_HAND, "scvi").set_index("model").loc["dra"]
    assert dra["difference"] == pytest.approx((0.10 - 0.03 + 0.09) / 3)
    assert dra["ahead"] == pytest.approx(2 / 3)
    assert dra["worst"] == pytest.approx(-0.03)


def test_interval_draws_data_sets_then_seeds() -> None:
    seeds = rows({"pca": {("a", 2): [0.0, 0.0]}, "dra": {("a", 2): [0.1, 0.3]}})
    sets = rows(
        {"pca": {("a", 2): [0.0], ("b", 2): [0.0]}, "dra": {("a", 2): [0.1], ("b", 2): [0.3]}}
    )
    for table in (seeds, sets):
        dra = benchmark.summary(table).set_index("model").loc["dra"]
        # the mean of two draws is 0.1 in a quarter of the cases, and 0.3 in a quarter
        assert (dra["low"], dra["high"]) == pytest.approx((0.1, 0.3))


def test_interval_of_a_wide_table_is_that_of_the_normal_distribution() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=400)
    table = rows({"pca": {("a", 2): [0.0] * 400}, "dra": {("a", 2): values.tolist()}})
    dra = benchmark.summary(table).set_index("model").loc["dra"]
    half = 1.96 * values.std() / np.sqrt(400)
    assert dra["low"] == pytest.approx(values.mean() - half, abs=0.01)
    assert dra["high"] == pytest.approx(values.mean() + half, abs=0.01)


def test_data_sets_weigh_more_than_seeds() -> None:
    """Seeds that agree within data sets that do not must not narrow the interval."""
    sets = {f"set {i}": [0.01 * i] * 50 for i in range(5)}
    table = rows(
        {
            "pca": {(name, 2): [0.0] * 50 for name in sets},
            "dra": {(name, 2): values for name, values in sets.items()},
        }
    )
    dra = benchmark.summary(table).set_index("model").loc["dra"]
    assert dra["high"] - dra["low"] > 0.02


def test_no_interval_where_nothing_varies() -> None:
    table = rows({"pca": {("a", 2): [0.1], ("a", 3): [0.2]}, "dra": {("a", 2): [0.3]}})
    dra = benchmark.summary(table).set_index("model").loc["dra"]
    assert dra["difference"] == pytest.approx(0.2)
    assert np.isnan(dra["low"])
    assert np.isnan(dra["high"])


def test_failed_runs_have_no_partner() -> None:
    table = BY_HAND.copy()
    table.loc[(table["model"] == "dra") & (table["dataset"] == "b"), "nmi"] = np.nan
    dra = benchmark.summary(table, "pca").set_index("model").loc["dra"]
    assert (dra["n_pairs"], dra["n_failed"]) == (4, 1)
    assert dra["difference"] == pytest.approx(0.08)
    table.loc[table["model"] == "dra", "nmi"] = np.nan
    dra = benchmark.summary(table, "pca").set_index("model").loc["dra"]
    assert dra["n_pairs"] == 0
    assert np.isnan(dra["difference"])
    table["nmi"] = np.nan
    assert benchmark.summary(table)["nmi"].isna().all()


def test_strongest_baseline_is_judged_on_common_cells() -> None:
    easy = rows(
        {
            "pca": {("a", 2): [0.5], ("easy", 2): [0.99]},
            "fa": {("a", 2): [0.6]},
            "dra": {("a", 2): [0.9], ("easy", 2): [0.99]},
        }
    )
    assert set(benchmark.summary(easy)["baseline"]) == {"fa"}
    own = rows({"mine": {("a", 2): [0.5]}, "yours": {("a", 2): [0.6]}})
    assert set(benchmark.summary(own)["baseline"]) == {"yours"}


def test_summary_of_another_metric() -> None:
    table = BY_HAND.assign(integration_total=1 - BY_HAND["nmi"])
    found = benchmark.summary(table, "pca", metric="integration_total").set_index("model")
    assert found.loc["dra", "difference"] == pytest.approx(-0.05)
    assert found.loc["pca", "integration_total"] == pytest.approx(1 - 1.40 / 3)


def test_summary_refuses_what_it_cannot_pair() -> None:
    with pytest.raises(ValueError, match="several rows for pca on 'a', k=2, seed 0"):
        benchmark.summary(pd.concat([BY_HAND, BY_HAND]))
    with pytest.raises(ValueError, match="columns n_latent, seed are missing"):
        benchmark.summary(BY_HAND.drop(columns=["n_latent", "seed"]))
    with pytest.raises(KeyError, match="did you mean 'scvi'"):
        benchmark.summary(BY_HAND, "scvii")
    with pytest.raises(KeyError, match="metric='nmm' is not a column"):
        benchmark.summary(BY_HAND, metric="nmm")
    with pytest.raises(ValueError, match="no rows"):
        benchmark.summary(BY_HAND.iloc[:0])


# -- what is easily overlooked -----------------------------------------------------------------


def test_a_tie_is_not_ahead() -> None:
    """Equal but for rounding is a tie; a difference in the seventh decimal is not."""
    tie = rows(
        {
            "pca": {("a", 2): [0.3], ("b", 2): [0.3], ("c", 2): [0.3]},
            "dra": {("a", 2): [0.1 + 0.2], ("b", 2): [0.3], ("c", 2): [0.3 + 1e-7]},
        }
    )
    assert tie.loc[tie["model"] == "dra", "nmi"].iloc[0] > 0.3
    dra = benchmark.summary(tie).set_index("model").loc["dra"]
    assert dra["ahead"] == pytest.approx(1 / 3)


def test_resampled_means_over_sets_of_unequal_size_weigh_every_cell_alike() -> None:
    """Two sets, of one cell and of three: all means that can be drawn, as often as they should."""
    sets = [[np.array([0.0])], [np.array([1.0]), np.array([1.0]), np.array([1.0])]]
    means = _resampled_means(sets, 4_000, np.random.default_rng(0))
    found = Counter(np.round(means, 9).tolist())
    assert set(found) == {0.0, 0.75, 1.0}
    assert [found[mean] / 4_000 for mean in (0.0, 0.75, 1.0)] == pytest.approx(
        [0.25, 0.5, 0.25], abs=0.03
    )


def test_resampled_means_are_all_those_that_data_sets_and_seeds_allow() -> None:
    """Against every combination of drawn sets and, within the cells of each, drawn seeds."""
    sets = [[np.array([0.0, 0.1])], [np.array([0.5, 0.7]), np.array([0.2])]]
    cell = {0: [[0.0], [0.05], [0.05], [0.1]], 1: [[0.5, 0.2], [0.6, 0.2], [0.6, 0.2], [0.7, 0.2]]}
    exact: Counter[float] = Counter()
    for drawn in itertools.product((0, 1), repeat=2):
        for one, other in itertools.product(cell[drawn[0]], cell[drawn[1]]):
            exact[round(float(np.mean([*one, *other])), 9)] += 1 / 64
    means = np.round(_resampled_means(sets, 40_000, np.random.default_rng(0)), 9)
    found = Counter(means.tolist())
    assert set(found) == set(exact)
    for mean, share in exact.items():
        assert found[mean] / 40_000 == pytest.approx(share, abs=0.01), mean


def test_interval_is_the_middle_95_percent_of_the_resampled_means() -> None:
    values = np.random.default_rng(1).normal(size=30)
    table = pd.DataFrame({"dataset": "a", "n_latent": 2, "seed": range(30), "difference": values})
    means = _resampled_means([[values]], 500, np.random.default_rng(7))
    expected = np.percentile(means, [2.5, 97.5])
    assert interval(table, n_resamples=500, seed=7) == pytest.approx(tuple(expected))
    default = _resampled_means([[values]], N_RESAMPLES, np.random.default_rng(0))
    assert interval(table) == pytest.approx(tuple(np.percentile(default, [2.5, 97.5])))
    assert N_RESAMPLES == 2_000


def test_summary_passes_resamples_and_seed_on() -> None:
    difference = pairs(BY_HAND, "dra", "pca")
    for options in ({}, {"n_resamples": 50}, {"seed": 3}, {"n_resamples": 50, "seed": 3}):
        dra = benchmark.summary(BY_HAND, **options).set_index("model").loc["dra"]
        assert (dra["low"], dra["high"]) == interval(difference, **options)


def test_one_set_of_several_seeds_and_several_sets_of_one_seed_have_an_interval() -> None:
    seeds = {"dataset": "a", "n_latent": [2, 3, 3], "seed": [0, 0, 1]}
    sets = {"dataset": ["a", "b", "b"], "n_latent": [2, 2, 3], "seed": 0}
    for cells in (seeds, sets):
        low, high = interval(pd.DataFrame({**cells, "difference": [0.1, 0.2, 0.4]}))
        assert low < high
    for cells in ({"dataset": "a", "n_latent": [2, 3, 4], "seed": 0},):
        assert np.isnan(interval(pd.DataFrame({**cells, "difference": [0.1, 0.2, 0.4]}))).all()


def test_pairs_are_of_the_same_set_dimensions_and_seed_in_any_order() -> None:
    shuffled = BY_HAND.sample(frac=1, random_state=0)
    found = pairs(shuffled, "dra", "scvi").set_index(["dataset", "n_latent", "seed"])
    expected = {
        ("a", 2, 0): 0.06, ("a", 2, 1): 0.14, ("a", 10, 0): 0.02, ("a", 10, 1): -0.08,
        ("b", 2, 0): 0.09,
    }  # fmt: skip
    assert found["difference"].to_dict() == pytest.approx(expected)
    assert list(found.columns) == ["difference"]
    other = pairs(BY_HAND.assign(ari=BY_HAND["nmi"] * 2), "dra", "scvi", "ari")
    assert other["difference"].sum() == pytest.approx(2 * sum(expected.values()))


def test_pairs_of_whole_numbers_are_those_of_floats() -> None:
    table = rows({"pca": {("a", 2): [1, 2]}, "dra": {("a", 2): [3, 3]}})
    table["nmi"] = table["nmi"].astype(object)
    assert pairs(table, "dra", "pca")["difference"].tolist() == [2.0, 1.0]


def test_strongest_baseline_leaves_other_models_aside() -> None:
    table = rows({"dra": {("a", 2): [0.9]}, "pca": {("a", 2): [0.5]}, "scvi": {("a", 2): [0.6]}})
    assert strongest_baseline(table) == "scvi"
    assert strongest_baseline(table.assign(ari=1 - table["nmi"]), "ari") == "pca"


def test_the_baseline_of_a_summary_is_the_strongest_by_its_metric() -> None:
    table = rows({"pca": {("a", 2): [0.5]}, "scvi": {("a", 2): [0.6]}, "dra": {("a", 2): [0.7]}})
    table["ari"] = 1 - table["nmi"]
    assert set(benchmark.summary(table)["baseline"]) == {"scvi"}
    assert set(benchmark.summary(table, metric="ari")["baseline"]) == {"pca"}


def test_a_baseline_that_failed_everywhere_leaves_no_common_cell() -> None:
    table = rows(
        {
            "pca": {("a", 2): [0.0]},
            "fa": {("a", 2): [0.6]},
            "scvi": {("a", 2): [0.5], ("b", 2): [0.9]},
        }
    )
    table.loc[table["model"] == "pca", "nmi"] = np.nan
    assert strongest_baseline(table) == "scvi"


def test_titles_are_the_names_of_the_methods() -> None:
    expected = {"pca": "PCA", "fa": "FA", "scvi": "scVI", "ldvae": "LDVAE", "dra": "DRA"}
    expected |= {"harmony": "Harmony", "scvi-short": "short scVI", "drvi": "DRVI"}
    expected |= {"jointembedding": "JointEmbedding", "scanvi": "scANVI"}
    assert expected == TITLES
    assert set(TITLES) == set(BUILT_IN)


def test_a_model_that_saw_labels_is_no_baseline_unless_it_is_named() -> None:
    table = rows({name: {("a", 2): [n]} for name, n in (("scanvi", 0.9), ("scvi", 0.5))})
    assert strongest_baseline(table) == "scvi"
    named = benchmark.summary(table, "scanvi").set_index("model")
    assert named.loc["scvi", "difference"] == pytest.approx(-0.4)


def test_strongest_baseline_without_a_common_cell_has_the_highest_mean_of_its_own() -> None:
    table = rows({"pca": {("a", 2): [0.5]}, "fa": {("b", 2): [0.6]}})
    assert strongest_baseline(table) == "fa"
    assert strongest_baseline(table.assign(nmi=np.nan)) == "pca"


def test_cells_of_several_seeds_weigh_no_more_in_the_means() -> None:
    table = rows({"dra": {("a", 2): [0.2, 0.2, 0.2], ("b", 2): [0.6]}})
    assert benchmark.summary(table)["nmi"].tolist() == pytest.approx([0.4])
    failed = table.copy()
    failed.loc[0, "nmi"] = np.nan
    row = benchmark.summary(failed).iloc[0]
    assert (row["n_runs"], row["n_failed"]) == (4, 1)
    assert row["nmi"] == pytest.approx(0.4)


def test_summary_has_its_columns_in_order_and_keeps_other_measures_out() -> None:
    table = BY_HAND.assign(
        leiden_nmi=0.1, leiden_ari=0.2, silhouette=0.3, seconds=4.0, peak_memory=5.0
    )
    found = benchmark.summary(table)
    assert list(found) == [
        *("model", "n_runs", "n_failed", "nmi", "ari", "leiden_nmi", "leiden_ari"),
        *("silhouette", "seconds", "sd", "rank", "n_first", "n_ranked", "baseline"),
        *("n_pairs", "difference", "low", "high", "ahead", "worst"),
    ]
    assert found.loc[0, ["leiden_nmi", "leiden_ari", "silhouette", "seconds"]].tolist() == (
        pytest.approx([0.1, 0.2, 0.3, 4.0])
    )
    assert str(found["n_pairs"].dtype) == "Int64"


def test_a_table_of_one_model_has_every_column() -> None:
    alone = benchmark.summary(rows({"pca": {("a", 2): [0.5]}}))
    assert list(alone)[-6:] == ["n_pairs", "difference", "low", "high", "ahead", "worst"]
    assert alone[list(alone)[-6:]].isna().all(axis=None)


def test_no_pair_leaves_the_differences_empty() -> None:
    table = rows({"pca": {("a", 2): [0.5]}, "dra": {("b", 2): [0.6]}})
    dra = benchmark.summary(table, "pca").set_index("model").loc["dra"]
    assert dra["n_pairs"] == 0
    assert dra[["difference", "low", "high", "ahead", "worst"]].isna().all()


def test_check_table_names_the_first_repeated_row() -> None:
    check_table(BY_HAND, "ari")
    repeated = pd.concat([BY_HAND, BY_HAND.iloc[[6, 2]]])
    with pytest.raises(ValueError, match="several rows for scvi on 'a', k=2, seed 1"):
        check_table(repeated, "nmi")
    with pytest.raises(ValueError, match=r"the columns model, dataset, seed are missing"):
        check_table(BY_HAND[["n_latent", "nmi"]], "nmi")


def test_baselines_are_the_models_that_dra_is_compared_with() -> None:
    assert (
        benchmark.summary(rows({n: {("a", 2): [0.5]} for n in ("dra", "ldvae")}))[
            "baseline"
        ].tolist()
        == ["ldvae"] * 2
    )
    for name in set(BUILT_IN) - {"dra", "scanvi"}:
        table = rows({"dra": {("a", 2): [0.9]}, name: {("a", 2): [0.5]}})
        assert strongest_baseline(table) == name


def test_summary_of_all_measures_is_that_of_each() -> None:
    """With the strongest baseline of each; measures that the table lacks are left out."""
    table = BY_HAND.assign(purity=1 - BY_HAND["nmi"], silhouette=np.nan)
    found = benchmark.summary(table, metric=None)
    assert list(dict.fromkeys(found["metric"])) == ["nmi", "ari", "purity"]
    for name, rows_of in found.groupby("metric"):
        alone = benchmark.summary(table, metric=str(name))
        pd.testing.assert_frame_equal(
            rows_of.drop(columns="metric").reset_index(drop=True), alone, check_dtype=False
        )
    named = benchmark.summary(table, "scvi", metric=["purity", "nmi"])
    assert named["metric"].tolist() == ["purity"] * 3 + ["nmi"] * 3
    assert set(named["baseline"]) == {"scvi"}


def test_summary_of_a_table_whose_runs_all_failed_is_of_kmeans() -> None:
    table = BY_HAND.assign(nmi=np.nan, ari=np.nan)
    assert set(benchmark.summary(table, metric=None)["metric"]) == {"nmi"}


def test_summary_takes_whole_numbers_beside_measures_that_are_missing() -> None:
    table = BY_HAND.assign(
        integration_total=np.nan, leiden1_n_clusters=pd.Series([3, None] * 7 + [4], dtype="Int64")
    )
    found = benchmark.summary(table).set_index("model")
    assert found["integration_total"].isna().all()
    assert found.loc["pca", "leiden1_n_clusters"] == 3


def test_summary_has_the_ranks() -> None:
    table = BY_HAND.assign(purity=1 - BY_HAND["nmi"])
    found = benchmark.summary(table).set_index("model")
    expected = benchmark.ranks(table).set_index("model")
    for name in ("rank", "n_first", "n_ranked"):
        assert found[name].tolist() == expected[name].tolist()
