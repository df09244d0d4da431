"""Curves of training: every recorded term, in words, and what a good training looks like."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dra_scvi import pl
from dra_scvi.pl import _training
from tests.helpers import cells, fit, legend_texts

if TYPE_CHECKING:
    from pathlib import Path

PNG = b"\x89PNG"


def curve(name: str, values: list[float]) -> pd.DataFrame:
    index = pd.RangeIndex(len(values), name="epoch")
    return pd.DataFrame({name: values}, index=index)


@pytest.fixture
def history() -> dict[str, pd.DataFrame]:
    values = {
        "train_loss": [9.1, 7.1, 6.1],
        "elbo_train": [9.0, 7.0, 6.0],
        "elbo_validation": [9.5, 8.0, 7.0],
        "reconstruction_loss_train": [8.0, 6.5, 5.5],
        "kl_weight": [0.0, 0.5, 1.0],
        "kl_local_train": [1.0, 0.5, 0.5],
        "kl_global_train": [0.0, 0.0, 0.0],
        "latent_divergence_train": [0.3, 0.2, 0.1],
        "data_divergence_train": [0.5, 0.4, 0.3],
    }
    return {name: curve(name, points) for name, points in values.items()}


def labels(axes: Axes) -> list[str]:
    return [line.get_label() for line in axes.get_lines()]


def test_training_panels(history: dict[str, pd.DataFrame]) -> None:
    figure = pl.training(history, show=False)
    assert isinstance(figure, Figure)
    loss, divergence, kl = figure.axes
    assert labels(loss) == [
        "all errors (negative ELBO)",
        "all errors (negative ELBO), held-out cells",
        "error of the counts (reconstruction)",
    ]
    assert labels(divergence) == [
        "embedding against prior (codes)",
        "decoded against real cells (data)",
    ]
    assert labels(kl) == ["information in the embedding (KL)"]
    assert [axes.get_title() for axes in figure.axes] == [
        "How well counts are explained (loss)",
        "What discriminators tell apart (divergence)",
        "What the embedding holds (Kullback-Leibler)",
    ]
    assert legend_texts(loss) == [labels(loss)[0], labels(loss)[2], "held-out cells"]
    assert legend_texts(divergence) == labels(divergence)
    assert loss.get_xlabel() == "epoch"
    [guide] = [text.get_text() for text in loss.texts]
    assert guide.splitlines() == [_training.PANELS[0][3], _training.HELD_OUT]
    assert divergence.texts[0].get_text().startswith("A rise is no failure")
    assert loss.get_ylabel() == "nats per cell"
    plain = pl.training(history, show=False, guide=False)
    assert [len(axes.texts) for axes in plain.axes] == [0] * 3
    assert plain.get_figheight() < figure.get_figheight()


def test_training_first_epochs_do_not_set_the_scale() -> None:
    falling = [1_000.0, *np.linspace(700, 600, 99)]
    history = {"elbo_train": curve("elbo_train", falling)}
    axes = pl.training(history, show=False)
    assert 700 < axes.get_ylim()[1] < 720
    assert axes.get_ylim()[0] < 600
    steady = {"elbo_train": curve("elbo_train", list(np.linspace(700, 600, 100)))}
    assert pl.training(steady, show=False).get_ylim()[1] > 700


def test_training_orders_lines_by_term(history: dict[str, pd.DataFrame]) -> None:
    backwards = dict(reversed(history.items()))
    assert labels(pl.training(backwards, show=False).axes[0]) == [
        "all errors (negative ELBO)",
        "all errors (negative ELBO), held-out cells",
        "error of the counts (reconstruction)",
    ]


def test_training_without_held_out_cells_says_how_to_come_by_them(
    history: dict[str, pd.DataFrame],
) -> None:
    del history["elbo_validation"]
    [guide] = pl.training(history, show=False).axes[0].texts
    assert guide.get_text().splitlines()[1] == _training.NOT_HELD_OUT


def test_training_draws_the_held_out_cells_that_a_model_records() -> None:
    model = fit(cells(), check_val_every_n_epoch=1)
    loss, divergence, _ = pl.training(model, show=False).axes
    held_out = [line for line in loss.get_lines() if line.get_label().endswith("held-out cells")]
    assert [len(line.get_xdata()) for line in held_out] == [2, 2]
    assert _training.HELD_OUT in loss.texts[0].get_text()
    assert len(divergence.get_lines()) == 2


def test_training_guides_lie_below_the_labels(history: dict[str, pd.DataFrame]) -> None:
    figure = pl.training(history, show=False)
    figure.draw_without_rendering()
    for axes in figure.axes:
        [guide] = axes.texts
        box = guide.get_window_extent()
        assert box.y1 < axes.xaxis.label.get_window_extent().y0
        assert box.y0 >= 0
        assert box.width < axes.bbox.width * 1.2


def test_training_values(history: dict[str, pd.DataFrame]) -> None:
    history["elbo_validation"] = history["elbo_validation"].iloc[[0, 2]].astype(object)
    train, validation, other = pl.training(history, show=False).axes[0].get_lines()
    np.testing.assert_array_equal(train.get_xydata(), [[0, 9], [1, 7], [2, 6]])
    np.testing.assert_array_equal(validation.get_xydata(), [[0, 9.5], [2, 7]])
    assert train.get_color() == validation.get_color() != other.get_color()
    assert (train.get_linestyle(), validation.get_linestyle()) == ("-", "--")


def test_training_model_and_single_panel() -> None:
    model = SimpleNamespace(history={"elbo_train": curve("elbo_train", [3.0])})
    axes = pl.training(model, show=False)
    assert isinstance(axes, Axes)
    (line,) = axes.get_lines()
    assert line.get_marker() == "o"


def test_training_keys(history: dict[str, pd.DataFrame]) -> None:
    axes = pl.training(history, keys=["kl_weight", "elbo_train"], show=False)
    assert labels(axes) == ["weight of the information (KL)", "all errors (negative ELBO)"]
    axes = pl.training(history, keys="kl_weight", show=False)
    assert labels(axes) == ["weight of the information (KL)"]


def test_training_given_axes(history: dict[str, pd.DataFrame]) -> None:
    axes = Figure().subplots()
    assert pl.training(history, ax=axes) is axes
    assert len(axes.get_lines()) == 6


def test_training_given_axes_in_a_subfigure(
    history: dict[str, pd.DataFrame], tmp_path: Path
) -> None:
    axes = Figure().subfigures(1, 2)[0].subplots()
    assert pl.training(history, ax=axes, save=tmp_path / "a.png") is axes
    assert (tmp_path / "a.png").read_bytes().startswith(PNG)


def test_training_unknown_key(history: dict[str, pd.DataFrame]) -> None:
    with pytest.raises(KeyError) as caught:
        pl.training(history, keys=["elbo_trian"], show=False)
    assert "keys='elbo_trian'" in caught.value.args[0]
    assert "did you mean 'elbo_train'?" in caught.value.args[0]


@pytest.mark.parametrize("other", [None, object()])
def test_training_of_what_is_no_model(other: object) -> None:
    with pytest.raises(TypeError, match="a trained model, or its history, is wanted"):
        pl.training(other, show=False)


@pytest.mark.parametrize("empty", [{}, SimpleNamespace(history=None)])
def test_training_untrained(empty: object) -> None:
    with pytest.raises(ValueError, match=r"call model.train\(\) first"):
        pl.training(empty, show=False)


def test_training_nothing_to_draw(history: dict[str, pd.DataFrame]) -> None:
    with pytest.raises(ValueError, match="the history has: kl_weight"):
        pl.training({"kl_weight": history["kl_weight"]}, show=False)


def test_training_show(history: dict[str, pd.DataFrame], shown: list[int]) -> None:
    assert pl.training(history, show=True) is None
    assert shown == [1]


def test_training_show_follows_scanpy(
    history: dict[str, pd.DataFrame],
    shown: list[int],
    autoshow: bool,
    tmp_path: Path,
) -> None:
    assert (pl.training(history) is None) is autoshow
    assert shown == [1] * autoshow
    assert pl.training(history, save=tmp_path / "a.png") is not None
    assert shown == [1] * autoshow


@pytest.mark.parametrize(
    ("name", "start"), [("a.png", PNG), ("a.pdf", b"%PDF"), ("a.SVG", b"<?xml"), ("a", PNG)]
)
def test_training_save(
    history: dict[str, pd.DataFrame], tmp_path: Path, name: str, start: bytes
) -> None:
    pl.training(history, save=str(tmp_path / name))
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_bytes().startswith(start)


def test_training_failed_save_leaves_the_old_file(
    history: dict[str, pd.DataFrame], tmp_path: Path
) -> None:
    (tmp_path / "a.docx").write_text("old")
    with pytest.raises(ValueError, match="docx"):
        pl.training(history, save=tmp_path / "a.docx")
    assert [path.name for path in tmp_path.iterdir()] == ["a.docx"]
    assert (tmp_path / "a.docx").read_text() == "old"


def test_training_epochs_are_whole_numbers(history: dict[str, pd.DataFrame]) -> None:
    first = {name: table[:1] for name, table in history.items()}
    for axes in pl.training(first, show=False).axes:
        low, high = axes.get_xlim()
        assert [tick for tick in axes.get_xticks() if low <= tick <= high] == [0]


def test_training_names_of_many_curves_lie_beside_them(history: dict[str, pd.DataFrame]) -> None:
    axes = Figure().subplots()
    pl.training(history, ax=axes)
    axes.figure.draw_without_rendering()
    assert axes.get_legend().get_window_extent().x0 >= axes.get_window_extent().x1
