"""Arguments that are passed on, given twice, or of the wrong kind: refused before any work."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import anndata
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from scvi.model import SCVI

from dra_scvi import DRA, InvalidCountsError, PublishedDRA, benchmark, metrics, pl, report, tl
from tests.helpers import QUIET, cells, fit, invoke

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from anndata import AnnData


@pytest.fixture(scope="module")
def model() -> DRA:
    return fit(cells())


def refusal(function: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    """Return the sentence with which arguments are refused."""
    with pytest.raises((TypeError, ValueError)) as error:
        function(*args, **kwargs)
    assert "__init__" not in str(error.value)
    return str(error.value)


def refusal_before_work(adata: AnnData, **arguments: Any) -> str:
    """Return the sentence with which `tl.dra` refuses arguments, and leaves the data alone."""
    text = refusal(tl.dra, adata, accelerator="cpu", **arguments)
    assert not adata.uns, "data was set up before the argument was refused"
    assert "_scvi_batch" not in adata.obs
    return text


UNKNOWN = [
    ({"plan_kwargs": {"wieght_decay": 0.1}}, "plan_kwargs: .*'wieght_decay'; .* 'weight_decay'"),
    ({"plan_kwargs": {"learning_rate": 0.1}}, "plan_kwargs: .*'learning_rate'; .* 'lr'"),
    ({"plan_kwargs": {"kl_weight": 0.1}}, "'min_kl_weight'"),
    ({"plan_kwargs": {"module": None}}, "no argument 'module'"),
    ({"datasplitter_kwargs": {"drop_lats": True}}, "datasplitter_kwargs: .* 'drop_last'"),
    ({"lr": 0.1}, "give plan_kwargs={'lr': ...}"),
    ({"early_stoping": True}, "'early_stopping'"),
    ({"epochs": 3}, "'max_epochs'"),
    ({"trainer_kwargs": {}}, "no argument 'trainer_kwargs'"),
]


@pytest.mark.parametrize(("given", "words"), UNKNOWN)
def test_unknown_names_of_training(model: DRA, given: dict[str, Any], words: str) -> None:
    """An unknown name in `train` or its `plan_kwargs` is refused, with the nearest known one."""
    trainer = model.trainer
    assert re.search(words, refusal(model.train, **given))
    assert model.trainer is trainer
    assert re.search(words, refusal_before_work(cells(), train_kwargs=given))


def test_unknown_names_of_training_on_a_query(model: DRA) -> None:
    """Training of a query, and `tl.transfer_labels`, refuse unknown names as `train` does."""
    query = DRA.load_query_data(cells(), model)
    assert "'lr'" in refusal(query.train, plan_kwargs={"learning_rate": 0.1})
    text = refusal(
        tl.transfer_labels, model, cells(), "cell_type", train_kwargs={"enable_progres_bar": False}
    )
    assert "'enable_progress_bar'" in text


def test_unknown_names_of_a_model() -> None:
    """An unknown argument of DRA, or one that comes from the data, is refused by its name."""
    adata = cells()
    DRA.setup_anndata(adata)
    for name, nearest in {"n_latnt": "'n_latent'", "encode_covariats": "'encode_cov"}.items():
        assert nearest in refusal(DRA, adata, **{name: 1})
        assert nearest in refusal_before_work(cells(), model_kwargs={name: 1})
    for name in ("n_batch", "adata"):
        assert name in refusal_before_work(cells(), model_kwargs={name: 1})
    assert "n_batch" in refusal(DRA, adata, n_batch=2)


def test_settings_that_a_model_of_scvi_has() -> None:
    """`DRA.from_scvi_model(n_latent=)` is refused: the model that is taken over has it."""
    adata = cells()
    SCVI.setup_anndata(adata)
    scvi_model = SCVI(adata, n_latent=3)
    scvi_model.train(max_epochs=1, **QUIET)
    text = refusal(DRA.from_scvi_model, scvi_model, n_latent=3)
    assert text.startswith("from_scvi_model: there is no argument 'n_latent'")


def test_unknown_names_for_loaders(model: DRA) -> None:
    """An unknown argument of a getter is refused, where it was passed on or left unused."""
    assert "'shuffle'" in refusal(model.get_latent_representation, shufle=True)
    assert "'library_sise'" in refusal(model.get_normalized_expression, library_sise=10)
    assert "'foo'" in refusal(model.get_normalized_expression, data_loader_kwargs={"foo": 1})


@pytest.mark.parametrize("given", [["lr"], "lr", 5])
def test_what_is_no_dictionary(model: DRA, given: Any) -> None:
    """A list or a text in place of a dictionary of arguments is refused before any work."""
    wanted = "a dictionary"
    for name in ("plan_kwargs", "datasplitter_kwargs"):
        assert wanted in refusal(model.train, **{name: given})
        assert wanted in refusal_before_work(cells(), train_kwargs={name: given})
    for name in ("train_kwargs", "model_kwargs"):
        assert f"{name} must be {wanted}" in refusal_before_work(cells(), **{name: given})
    assert wanted in refusal(tl.transfer_labels, model, cells(), "cell_type", train_kwargs=given)
    assert wanted in refusal(DRA, model.adata, extra_encoder_kwargs=given)


FLAGS: dict[str, Callable[[DRA, AnnData, Path], Any]] = {
    "resume": lambda m, a, f: tl.dra(a, checkpoint=f, resume="no"),  # type: ignore[arg-type]
    "early_stopping": lambda m, a, f: m.train(1, early_stopping="no", **QUIET),
    "enable_progress_bar": lambda m, a, f: m.train(1, enable_progress_bar="no"),
    "within_components": lambda m, a, f: m.train(
        1, plan_kwargs={"within_components": "no"}, **QUIET
    ),
    "drop_last": lambda m, a, f: m.train(1, datasplitter_kwargs={"drop_last": "no"}, **QUIET),
    "expression_axes": lambda m, a, f: DRA(m.adata, expression_axes="no"),  # type: ignore[arg-type]
    "encode_covariates": lambda m, a, f: DRA(m.adata, encode_covariates="no"),
    "batch_norm": lambda m, a, f: PublishedDRA(m.adata, batch_norm="no"),  # type: ignore[arg-type]
    "allow_noninteger": lambda m, a, f: DRA.setup_anndata(a, allow_noninteger="no"),  # type: ignore[arg-type]
    "overwrite": lambda m, a, f: m.save(f, overwrite="false"),
    "save_anndata": lambda m, a, f: m.save(f, save_anndata="no"),
    "trusted": lambda m, a, f: DRA.load(f, a, trusted="no"),  # type: ignore[arg-type]
    "unfrozen": lambda m, a, f: DRA.load_query_data(a, m, unfrozen="no"),
    "inplace": lambda m, a, f: DRA.prepare_query_anndata(a, m, inplace="no"),
    "give_mean": lambda m, a, f: m.get_latent_representation(give_mean="no"),  # type: ignore[arg-type]
    "return_mean": lambda m, a, f: m.get_normalized_expression(return_mean="no"),
    "all_stats": lambda m, a, f: m.differential_expression(groupby="batch", all_stats="no"),
    "umap": lambda m, a, f: tl.cluster(a, "X_dra", umap="no"),  # type: ignore[arg-type]
    "balanced": lambda m, a, f: tl.transfer_labels(m, a, "cell_type", balanced="no"),  # type: ignore[arg-type]
    "replace": lambda m, a, f: report.write(m, a, f, replace="no"),  # type: ignore[arg-type]
    "quick": lambda m, a, f: benchmark.compare(a, "cell_type", quick="no"),  # type: ignore[arg-type]
    "show": lambda m, a, f: pl.axes(m, show="no"),  # type: ignore[arg-type]
    "guide": lambda m, a, f: pl.training(m, guide="no", show=False),  # type: ignore[arg-type]
    "use_raw": lambda m, a, f: pl.embedding(a, "X_dra", use_raw="no", show=False),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("flag", FLAGS)
def test_texts_in_place_of_flags(model: DRA, tmp_path: Path, flag: str) -> None:
    """A text such as "no" or "false" in place of True or False is refused, not taken as yes."""
    adata = cells()
    adata.obsm["X_dra"] = np.zeros((60, 2))
    text = refusal(FLAGS[flag], model, adata, tmp_path / "new")
    assert text.startswith(f"{flag} must be True or False, not ")
    assert not (tmp_path / "new").exists()


TWICE = [
    {"max_epochs": 1, "train_kwargs": {"max_epochs": 2}},
    {"train_kwargs": {"accelerator": "gpu"}},
    {"n_latent": 3, "model_kwargs": {"n_latent": 2}},
    {"checkpoint": "a.ckpt", "train_kwargs": {"ckpt_path": "b.ckpt"}},
    {"checkpoint": "a.ckpt", "train_kwargs": {"plan_kwargs": {"checkpoint": "b"}}},
]


@pytest.mark.parametrize("given", TWICE)
def test_arguments_given_twice(given: dict[str, Any]) -> None:
    """An argument of `tl.dra` that is another one among those passed on is refused."""
    text = refusal_before_work(cells(), **given)
    assert "give one of the two" in text or "leave ckpt_path out" in text


def test_epochs_given_twice_of_a_query(model: DRA) -> None:
    """Epochs of `tl.transfer_labels` may stand in `train_kwargs`, but no others beside them."""
    arguments = (model, cells(), "cell_type")
    text = refusal(tl.transfer_labels, *arguments, max_epochs=1, train_kwargs={"max_epochs": 2})
    assert "max_epochs is 1, and 2 in train_kwargs" in text


def test_plan_of_a_preset() -> None:
    """`plan_kwargs` beside a preset change what they name, and leave its learning rate."""
    model = tl.dra(
        cells(),
        n_latent=2,
        preset="published",
        max_epochs=1,
        accelerator="cpu",
        train_kwargs={
            "batch_size": 16,
            "plan_kwargs": {"control": 2},
            "enable_progress_bar": False,
        },
    )
    plan = model.trainer.lightning_module
    assert (plan.lr, plan.control) == (8e-4, 2)


@pytest.mark.parametrize("name", ["n_epochs_kl_warmup", "n_steps_kl_warmup", "lr_factor"])
def test_texts_in_place_of_numbers_of_a_plan(model: DRA, name: str) -> None:
    """A text in place of a number of the training plan is refused before training begins."""
    assert name in refusal(model.train, 1, plan_kwargs={name: "x"})


@pytest.mark.parametrize("size", [-1, 0, float("nan"), float("inf"), "observed", True])
def test_library_sizes(model: DRA, size: Any) -> None:
    """A library size that is no number above 0 is refused by the getters."""
    assert "library_size" in refusal(model.get_normalized_expression, library_size=size)


@pytest.mark.parametrize("number", [0, -1, 1.5])
def test_numbers_of_draws(model: DRA, number: Any) -> None:
    """A number of samples that is none is refused by the getters."""
    assert "n_samples" in refusal(model.posterior_predictive_sample, n_samples=number)
    assert "n_samples" in refusal(model.get_normalized_expression, n_samples_overall=number)
    assert "mc_samples" in refusal(model.get_latent_representation, mc_samples=number)


def test_suffixes_in_any_case(tmp_path: Path) -> None:
    """`--report r.Html`, `-o OUT.H5AD` and CELLS.H5AD are taken: case does not matter."""
    quick = ("--max-epochs", 1, "--accelerator", "cpu", "--n-hidden", 8, "--out-of-core")
    output = tmp_path / "OUT.H5AD"
    done = invoke("train", tmp_path / "none.H5AD", "-o", output, "--report", tmp_path / "r.Html")
    assert done.exit_code == 66, done.stderr
    cells().write_h5ad(tmp_path / "CELLS.H5AD")
    done = invoke("train", tmp_path / "CELLS.H5AD", "-o", output, *quick)
    assert done.exit_code == 0, done.stderr
    assert "X_dra" in anndata.read_h5ad(output).obsm


OUTPUTS = [
    (("train", "--output", "out"), "name a file: out.h5ad"),
    (("train", "--output", "out.csv"), "name a file: out.h5ad"),
    (("train", "--output", "o.h5ad", "--model-dir", "model.pt"), "name a folder: model"),
    (("train", "--output", "o.h5ad", "--report", "page"), "name a file: page.html"),
    (("benchmark", "--label-key", "cell_type", "-o", "table"), "name a file: table.csv"),
]


@pytest.mark.parametrize(("words", "advice"), OUTPUTS)
def test_outputs_of_another_kind(words: tuple[str, ...], advice: str) -> None:
    """An output whose name is not of the kind that is written: a name that would do is said."""
    done = invoke(words[0], "none.h5ad", *words[1:])
    assert done.exit_code == 2
    assert advice in done.stderr


def test_the_demo_writes_a_folder() -> None:
    """`demo -o out.h5ad` is refused: it writes a folder, whose name is proposed."""
    done = invoke("demo", "--output", "out.h5ad")
    assert done.exit_code == 2
    assert "name a folder: out" in done.stderr


@pytest.mark.parametrize("side", ["real", "generated", "reference"])
def test_realism_of_logarithms(side: str) -> None:
    """`metrics.realism` of log-normalised values is refused, as a training on them is."""
    given = {name: cells() for name in ("real", "generated", "reference")}
    given[side].X = given[side].X.log1p()
    with pytest.raises(InvalidCountsError, match=f"^{side} holds .* not whole"):
        metrics.realism(**given)


@pytest.mark.parametrize("save", ["x.unknown", "nowhere/x.png", True])
@pytest.mark.parametrize("plot", ["training", "axes", "embedding", "benchmark"])
def test_figures_that_cannot_be_saved(
    model: DRA, plot: str, save: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A figure in a format that is not known, or for a folder that is not there, is not drawn."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Figure, "subplots", lambda *args, **kwargs: pytest.fail("it is drawn"))
    adata = cells()
    adata.obsm["X_dra"] = np.zeros((60, 2))
    table = pd.DataFrame({"model": ["pca", "dra"], "nmi": [0.6, 0.7]})
    drawn = {
        "embedding": (adata, "X_dra"),
        "benchmark": (table.assign(dataset="pbmc", n_latent=10, seed=0),),
    }
    with pytest.raises((ValueError, TypeError, FileNotFoundError)) as error:
        getattr(pl, plot)(*drawn.get(plot, (model,)), save=save)
    words = {"x.unknown": "may end in .*\\.pdf", "nowhere/x.png": "output folder nowhere does not"}
    assert re.search(words.get(str(save), "save must be a path, not True"), str(error.value))
