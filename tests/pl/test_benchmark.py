"""Models compared: differences, their intervals, and the scores that they are of."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dra_scvi import pl

if TYPE_CHECKING:
    from pathlib import Path

PNG = b"\x89PNG"


@pytest.fixture
def compared() -> pd.DataFrame:
    """Return two data sets, two dimensions and two seeds of three models, dra ahead by hand."""
    ahead = {("a", 2): [0.1, 0.3], ("a", 10): [0.2, 0.2], ("b", 2): [-0.1, -0.1]}
    rows = [
        {"dataset": name, "n_latent": k, "seed": seed, "model": model, "nmi": 0.5 + gain * share}
        for (name, k), gains in ahead.items()
        for seed, gain in enumerate(gains)
        for model, share in (("pca", 0.0), ("mine", 0.5), ("dra", 1.0))
    ]
    return pd.DataFrame(rows).assign(ari=0.5)


def row_labels(axes: Axes) -> list[str]:
    return [label.get_text() for label in axes.get_yticklabels()]


def test_benchmark_differences(compared: pd.DataFrame) -> None:
    axes = pl.benchmark(compared, show=False)
    assert isinstance(axes, Axes)
    rows = ["a", "PCA", "mine", "b", "PCA", "mine", "all data sets", "PCA", "mine"]
    assert row_labels(axes) == rows
    is_bold = [label.get_fontweight() == "bold" for label in axes.get_yticklabels()]
    assert is_bold == [True, False, False] * 3
    bottom, top = axes.get_ylim()
    assert bottom > top
    pca, mine = axes.containers
    np.testing.assert_allclose(pca[0].get_xdata(), [0.2, -0.1, (0.2 + 0.2 - 0.1) / 3])
    np.testing.assert_allclose(mine[0].get_xdata(), [0.1, -0.05, 0.05])
    assert [rows[int(y)] for y in pca[0].get_ydata()] == ["PCA"] * 3
    assert [rows[int(y)] for y in mine[0].get_ydata()] == ["mine"] * 3
    assert pca[0].get_color() != mine[0].get_color()
    assert pca[0].get_marker() != mine[0].get_marker()
    assert axes.get_title() == ""


def test_benchmark_says_who_saw_labels(compared: pd.DataFrame) -> None:
    told = compared.assign(model=compared["model"].replace({"pca": "scanvi"}))
    axes = pl.benchmark(told, baselines=["scanvi"], show=False)
    assert row_labels(axes)[:2] == ["a", "scANVI (half labelled)"]


def test_benchmark_scores_of_both_models_stand_in_the_row_of_their_difference(
    compared: pd.DataFrame,
) -> None:
    axes = pl.benchmark(compared, show=False)
    places = {tuple(text.get_position()): text.get_text() for text in axes.texts}
    left, right = sorted({x for x, _ in places})
    assert left > 1
    heads = [places.pop((x, 0)) for x in (left, right)]
    assert heads == ["DRA", "other"]
    scores = {y: (places[left, y], places[right, y]) for _, y in places}
    # in a, the cells of k=2 and 10 both score .7 on average
    assert scores[1] == ("0.700", "0.500")
    assert scores[2] == ("0.700", "0.600")
    assert scores[4] == ("0.400", "0.500")
    assert scores[7] == ("0.600", "0.500")
    pca = axes.containers[0][0]
    for y, difference in zip(pca.get_ydata(), pca.get_xdata(), strict=True):
        own, other = map(float, scores[y])
        assert own - other == pytest.approx(difference, abs=1e-3)


def test_benchmark_intervals(compared: pd.DataFrame) -> None:
    pca = pl.benchmark(compared, baselines="pca", show=False).containers[0]
    a, b, _ = pca[2][0].get_segments()
    # in a, the two cells give 0.1 to 0.3 and 0.2; in b the two seeds agree
    np.testing.assert_allclose(a[:, 0], [0.15, 0.25])
    np.testing.assert_allclose(b[:, 0], [-0.1, -0.1])


def test_benchmark_of_one_data_set_and_one_seed(compared: pd.DataFrame) -> None:
    one = compared[(compared["dataset"] == "a") & (compared["seed"] == 0)]
    axes = pl.benchmark(one, baselines="pca", show=False)
    assert row_labels(axes) == ["a", "PCA"]
    np.testing.assert_allclose(axes.containers[0][0].get_xdata(), [0.15])
    [segment] = axes.containers[0][2][0].get_segments()
    np.testing.assert_allclose(segment[:, 0], [0.15, 0.15])


def test_benchmark_marks_single_runs(compared: pd.DataFrame) -> None:
    one = compared[(compared["dataset"] == "b") | (compared["n_latent"] == 2)]
    one = one[(one["dataset"] == "b") | (one["seed"] == 0)]
    hollow = [
        line
        for line in pl.benchmark(one, baselines="pca", show=False).get_lines()
        if line.get_markerfacecolor() == "white"
    ]
    assert [list(line.get_xdata()) for line in hollow] == [[pytest.approx(0.1)]]


def test_benchmark_of_other_models_and_metrics(compared: pd.DataFrame) -> None:
    axes = pl.benchmark(compared, model="mine", baselines=["pca"], metric="ari", show=False)
    assert axes.get_xlabel().splitlines() == [
        "difference in ARI (k-means), 95% interval",
        "mine is ahead right of 0",
    ]
    np.testing.assert_allclose(axes.containers[0][0].get_xdata(), 0)


def test_benchmark_leaves_out_what_failed(compared: pd.DataFrame) -> None:
    compared.loc[(compared["model"] == "pca") & (compared["dataset"] == "b"), "nmi"] = np.nan
    axes = pl.benchmark(compared, show=False)
    np.testing.assert_allclose(axes.containers[0][0].get_xdata(), [0.2, np.nan, 0.2])
    np.testing.assert_allclose(axes.containers[1][0].get_xdata(), [0.1, -0.05, 0.05])
    assert sorted(text.get_text() for text in axes.texts if text.get_position()[1] == 4) == [
        "",
        "",
    ]
    axes = pl.benchmark(compared, baselines="pca", show=False)
    assert row_labels(axes) == ["a", "PCA"]


def test_benchmark_says_that_a_look_was_quick(compared: pd.DataFrame) -> None:
    axes = pl.benchmark(compared.assign(quick=True), show=False)
    assert axes.get_title() == "quick look, too short for conclusions"


def test_benchmark_refuses(compared: pd.DataFrame) -> None:
    with pytest.raises(KeyError, match="did you mean 'dra'"):
        pl.benchmark(compared, model="dar", show=False)
    with pytest.raises(KeyError, match="baselines='pcaa' is not a model"):
        pl.benchmark(compared, baselines="pcaa", show=False)
    with pytest.raises(KeyError, match="metric='nim'"):
        pl.benchmark(compared, metric="nim", show=False)
    with pytest.raises(ValueError, match="no model besides 'dra'"):
        pl.benchmark(compared[compared["model"] == "dra"], show=False)
    with pytest.raises(ValueError, match="no run of 'dra' has a finite partner"):
        pl.benchmark(compared.assign(nmi=np.nan), show=False)
    with pytest.raises(ValueError, match="several rows for pca"):
        pl.benchmark(pd.concat([compared, compared]), show=False)


def test_benchmark_given_axes_save_and_show(
    compared: pd.DataFrame, tmp_path: Path, shown: list[int]
) -> None:
    axes = Figure().subplots()
    assert pl.benchmark(compared, ax=axes) is axes
    assert pl.benchmark(compared, save=tmp_path / "a.png", show=True) is None
    assert shown == [1]
    assert (tmp_path / "a.png").read_bytes().startswith(PNG)
