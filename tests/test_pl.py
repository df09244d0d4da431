"""Plots show what they are given, on the axes they are given, and leave no trace."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING

import matplotlib

matplotlib.use("Agg")

import numpy as np
import pandas as pd
import pytest
import scanpy
from anndata import AnnData
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from dra_scvi import pl
from dra_scvi.pl import _embedding, _figures, _training

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import ArrayLike, NDArray

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


@pytest.fixture
def adata() -> AnnData:
    rng = np.random.default_rng(0)
    obs = pd.DataFrame(
        {
            "kind": pd.Categorical(list("abab") + [None, "a"], categories=["a", "b", "unused"]),
            "depth": [5.0, 1.0, np.nan, 3.0, 2.0, 4.0],
            "flag": [True, False] * 3,
        },
        index=[f"cell-{i}" for i in range(6)],
    )
    obsm = {"X_umap": rng.normal(size=(6, 2)), "X_dra": rng.normal(size=(6, 5))}
    return AnnData(np.ones((6, 2), dtype=np.float32), obs=obs, obsm=obsm)


@pytest.fixture(autouse=True)
def no_trace() -> Iterator[None]:
    """Fail a test that leaves a figure open or changes a setting of matplotlib."""
    settings = dict(matplotlib.rcParams)
    yield
    assert pyplot.get_fignums() == []
    assert dict(matplotlib.rcParams) == settings


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count figures at each call of ``pyplot.show``, then close them."""
    calls: list[int] = []

    def show() -> None:
        calls.append(len(pyplot.get_fignums()))
        pyplot.close("all")

    monkeypatch.setattr(pyplot, "show", show)
    return calls


@pytest.fixture(params=[True, False])
def autoshow(request: pytest.FixtureRequest) -> Iterator[bool]:
    before = scanpy.settings.autoshow
    scanpy.settings.autoshow = request.param
    yield request.param
    scanpy.settings.autoshow = before


def labels(axes: Axes) -> list[str]:
    return [line.get_label() for line in axes.get_lines()]


def legend_texts(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_training_panels(history: dict[str, pd.DataFrame]) -> None:
    figure = pl.training(history, show=False)
    assert isinstance(figure, Figure)
    loss, divergence, kl = figure.axes
    assert labels(loss) == ["negative ELBO", "negative ELBO, held out", "reconstruction"]
    assert labels(divergence) == ["codes and prior", "means and data"]
    assert labels(kl) == ["KL of codes"]
    assert [axes.get_title() for axes in figure.axes] == [
        "Loss",
        "Divergence",
        "Kullback-Leibler",
    ]
    assert legend_texts(loss) == labels(loss)
    assert loss.get_xlabel() == "epoch"
    assert [text.get_text() for text in loss.texts] == [_training.PANELS[0][3]]
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
        "negative ELBO",
        "negative ELBO, held out",
        "reconstruction",
    ]


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
    assert labels(axes) == ["weight of KL", "negative ELBO"]
    assert labels(pl.training(history, keys="kl_weight", show=False)) == ["weight of KL"]


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


def test_embedding_grid(adata: AnnData) -> None:
    before = adata.copy()
    figure = pl.embedding(adata, ["X_umap", "X_dra"], ["kind", "depth"], show=False)
    panels = figure.axes
    assert len(panels) == 4
    assert [axes.get_title() for axes in panels] == ["umap", "dra", "", ""]
    assert [len(axes.child_axes) for axes in panels] == [0, 0, 0, 1]
    assert panels[3].child_axes[0].get_ylabel() == "depth"
    assert [axes.get_legend() is None for axes in panels] == [True, False, True, True]
    assert all(len(axes.get_xticks()) == len(axes.get_yticks()) == 0 for axes in panels)
    assert adata.uns == before.uns
    pd.testing.assert_frame_equal(adata.obs, before.obs)


def test_embedding_points_without_colour(adata: AnnData) -> None:
    axes = pl.embedding(adata, "umap", show=False)
    (points,) = axes.collections
    np.testing.assert_array_equal(points.get_offsets(), adata.obsm["X_umap"])


def test_embedding_first_two_dimensions(adata: AnnData) -> None:
    (points,) = pl.embedding(adata, "X_dra", show=False).collections
    np.testing.assert_array_equal(points.get_offsets(), adata.obsm["X_dra"][:, :2])


@pytest.mark.parametrize(
    ("n_cells", "least", "greatest"),
    [(1, 20.0, 20.0), (700, 8.0, 12.0), (2400, 2.0, 4.0), (100_000, 0.5, 0.5)],
)
def test_embedding_point_size_follows_the_number_of_cells(
    n_cells: int, least: float, greatest: float
) -> None:
    xy = np.random.default_rng(0).normal(size=(n_cells, 2))
    (points,) = pl.embedding(AnnData(obsm={"X_umap": xy}), show=False).collections
    [size] = points.get_sizes()
    assert least <= size <= greatest
    [edge] = points.get_linewidths()
    assert edge < np.sqrt(size) / 8


def test_embedding_long_names_do_not_narrow_the_panel(adata: AnnData) -> None:
    widths = []
    for name in ("a", "a" * 60):
        adata.obs["kind"] = pd.Categorical([name] * adata.n_obs)
        axes = pl.embedding(adata, color="kind", show=False)
        axes.figure.draw_without_rendering()
        widths.append(axes.get_window_extent().width / axes.figure.dpi)
    assert widths == pytest.approx([3.4, 3.4], abs=0.4)


def test_embedding_categories(adata: AnnData) -> None:
    axes = pl.embedding(adata, color="kind", show=False)
    assert axes.get_legend().get_title().get_text() == "kind"
    assert legend_texts(axes) == ["a", "b", "missing"]
    (points,) = axes.collections
    np.testing.assert_array_equal(points.get_offsets()[0], adata.obsm["X_umap"][4])
    colours = [tuple(colour) for colour in points.get_facecolors()]
    assert colours[0] == to_rgba(_embedding.MISSING_COLOUR, 0.8)
    assert colours[1:] == [to_rgba(_figures.COLOURS[i], 0.8) for i in (0, 1, 0, 1, 0)]


def test_embedding_numbered(adata: AnnData) -> None:
    axes = pl.embedding(adata, color="kind", show=False, legend="numbered")
    assert legend_texts(axes) == ["1  a", "2  b", "missing"]
    first, second = axes.texts
    assert (first.get_text(), second.get_text()) == ("1", "2")
    cells = adata.obsm["X_umap"][adata.obs["kind"].to_numpy() == "b"]
    assert any(np.allclose(second.get_position(), cell) for cell in cells)


@pytest.mark.parametrize(
    ("basis", "expected"), [("X_umap", "UMAP 1 and 2"), ("X_dra", "dra 1 and 2")]
)
def test_embedding_axes_are_named(basis: str, expected: str, adata: AnnData) -> None:
    assert pl.embedding(adata, basis, show=False).get_xlabel() == expected


def test_embedding_stored_colours(adata: AnnData) -> None:
    adata.uns["kind_colors"] = np.array(["#ff0000", "#00ff00", "#0000ff"])
    (points,) = pl.embedding(adata, color="kind", show=False).collections
    assert tuple(points.get_facecolors()[1]) == to_rgba("#ff0000", 0.8)
    adata.uns["kind_colors"] = ["#ff0000"]
    (points,) = pl.embedding(adata, color="kind", show=False).collections
    assert tuple(points.get_facecolors()[1]) == to_rgba(_figures.COLOURS[0], 0.8)


def test_embedding_booleans_are_categories(adata: AnnData) -> None:
    assert legend_texts(pl.embedding(adata, color="flag", show=False)) == ["False", "True"]


@pytest.mark.parametrize("number", [7, 8, 25, 40, 120])
def test_embedding_as_many_colours_as_categories(number: int) -> None:
    names = [f"type-{i:03d}" for i in range(number)]
    obs = pd.DataFrame({"kind": names}, index=names)
    obsm = {"X_umap": np.random.default_rng(0).normal(size=(number, 2))}
    adata = AnnData(np.ones((number, 1)), obs=obs, obsm=obsm)
    axes = pl.embedding(adata, color="kind", show=False)
    assert legend_texts(axes) == names
    distinct = np.unique(axes.collections[0].get_facecolors(), axis=0)
    assert len(distinct) == min(number, 102)


# Machado, Oliveira & Fernandes, IEEE TVCG 15 (2009) 1291, severity 1, on linear RGB
SIGHTS = {
    "normal": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}


def lab(colours: Sequence[str], sight: ArrayLike) -> NDArray[np.float64]:
    """Return what is seen of sRGB colours as CIELAB, whose distances are those of sight."""
    rgb = np.array([to_rgba(colour)[:3] for colour in colours])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.asarray(sight).T, 0, 1)
    to_xyz = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750]]
    to_xyz += [[0.0193339, 0.1191920, 0.9503041]]
    xyz = seen @ np.transpose(to_xyz) / [0.95047, 1.0, 1.08883]
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116).T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)


@pytest.mark.parametrize("sight", SIGHTS)
def test_colours_are_told_apart_by_every_sight(sight: str) -> None:
    for colours, least in ((_figures.COLOURS, 15), (_embedding.MORE_COLOURS, 12)):
        points = lab([*colours, _embedding.MISSING_COLOUR], SIGHTS[sight])
        distances = np.linalg.norm(points[:, None] - points, axis=2)
        assert distances[np.triu_indices(len(points), 1)].min() > least


def test_embedding_numbers_are_drawn_from_missing_to_high(adata: AnnData) -> None:
    axes = pl.embedding(adata, color="depth", show=False)
    (points,) = axes.collections
    order = [2, 1, 4, 3, 5, 0]
    np.testing.assert_array_equal(points.get_offsets(), adata.obsm["X_umap"][order])
    viridis = matplotlib.colormaps["viridis"]
    colours = points.get_facecolors()
    assert tuple(colours[0]) == to_rgba(_embedding.MISSING_COLOUR)
    np.testing.assert_allclose(colours[[1, -1]], [viridis(0.0), viridis(1.0)])


def test_embedding_numbers_all_missing(adata: AnnData) -> None:
    adata.obs["depth"] = np.nan
    (points,) = pl.embedding(adata, color="depth", show=False).collections
    assert {tuple(colour) for colour in points.get_facecolors()} == {
        to_rgba(_embedding.MISSING_COLOUR)
    }


def test_embedding_titles(adata: AnnData) -> None:
    figure = pl.embedding(adata, ["umap", "dra"], titles=["scVI", "DR-A"], show=False)
    assert [axes.get_title() for axes in figure.axes] == ["scVI", "DR-A"]
    with pytest.raises(ValueError, match="1 titles do not fit 2 embeddings"):
        pl.embedding(adata, ["umap", "dra"], titles=["scVI"], show=False)


def test_embedding_unknown_names(adata: AnnData) -> None:
    with pytest.raises(KeyError) as caught:
        pl.embedding(adata, "X_umpa", show=False)
    assert "did you mean 'X_umap'?" in caught.value.args[0]
    with pytest.raises(KeyError) as caught:
        pl.embedding(adata, color="kinds", show=False)
    assert "color='kinds'" in caught.value.args[0]
    assert "did you mean 'kind'?" in caught.value.args[0]


def test_embedding_one_dimension(adata: AnnData) -> None:
    adata.obsm["X_line"] = np.ones((6, 1))
    with pytest.raises(ValueError, match=r"X_line.*\(6, 1\).*2 dimensions"):
        pl.embedding(adata, "X_line", show=False)


def test_embedding_save_and_show(adata: AnnData, tmp_path: Path, shown: list[int]) -> None:
    assert pl.embedding(adata, color="kind", save=tmp_path / "a.png", show=True) is None
    assert shown == [1]
    assert (tmp_path / "a.png").read_bytes().startswith(PNG)


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


def test_benchmark_differences(compared: pd.DataFrame) -> None:
    axes = pl.benchmark(compared, show=False)
    assert isinstance(axes, Axes)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b", "all data sets"]
    bottom, top = axes.get_ylim()
    assert bottom > top
    assert axes.get_legend().get_title().get_text() == "DRA minus"
    assert legend_texts(axes) == ["PCA", "mine"]
    pca, mine = axes.containers
    np.testing.assert_allclose(pca[0].get_xdata(), [0.2, -0.1, (0.2 + 0.2 - 0.1) / 3])
    np.testing.assert_allclose(mine[0].get_xdata(), [0.1, -0.05, 0.05])
    assert pca[0].get_ydata() == pytest.approx([-0.25, 0.75, 1.75])
    assert pca[0].get_color() != mine[0].get_color()
    assert pca[0].get_marker() != mine[0].get_marker()
    assert axes.get_title() == ""


def test_benchmark_intervals(compared: pd.DataFrame) -> None:
    pca = pl.benchmark(compared, baselines="pca", show=False).containers[0]
    a, b, _ = pca[2][0].get_segments()
    # in a, the two cells give 0.1 to 0.3 and 0.2; in b the two seeds agree
    np.testing.assert_allclose(a[:, 0], [0.15, 0.25])
    np.testing.assert_allclose(b[:, 0], [-0.1, -0.1])


def test_benchmark_of_one_data_set_and_one_seed(compared: pd.DataFrame) -> None:
    one = compared[(compared["dataset"] == "a") & (compared["seed"] == 0)]
    axes = pl.benchmark(one, baselines="pca", show=False)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a"]
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
    axes = pl.benchmark(compared, baselines="pca", show=False)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a"]


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
