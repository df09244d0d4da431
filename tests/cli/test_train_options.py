"""What train is told of covariates, likelihood and early stopping: in model, outputs and page."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING, Any

import anndata
import numpy as np
import pytest

from dra_scvi import DRA, tl
from dra_scvi._training.interrupts import InterruptCheckpoint
from tests.helpers import cells, invoke

if TYPE_CHECKING:
    from pathlib import Path

    from click.testing import Result

QUICK = ("--accelerator", "cpu", "--threads", 1)
# with so high a rate, and so few cells, it does not go on getting better for long
EARLY = ("--early-stopping", "--max-epochs", 400, "--learning-rate", 0.1, "--batch-size", 54)
EARLY += ("--n-hidden", 8, "--n-latent", 2)


def written(folder: Path) -> Path:
    adata = cells()
    adata.obs["donor"] = np.where(np.arange(adata.n_obs) % 3, "a", "b")
    adata.obs["site"] = np.where(np.arange(adata.n_obs) < 20, "x", "y")
    adata.obs["age"] = np.linspace(20, 80, adata.n_obs)
    adata.write_h5ad(folder / "in.h5ad")
    return folder / "in.h5ad"


def train(source: Path, *options: object) -> Result:
    outputs = {"output": "out.h5ad", "json": "out.json"}
    named = [part for k, name in outputs.items() for part in (f"--{k}", source.with_name(name))]
    return invoke("train", source, *named, *QUICK, *options)


@pytest.fixture(scope="module")
def with_covariates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with what one command wrote whose options stand in a file."""
    folder = tmp_path_factory.mktemp("covariates")
    (folder / "dra.yaml").write_text(
        "categorical-covariate-keys: [donor, site]\ncontinuous-covariate-keys: age\n"
        "gene-likelihood: nb\ndispersion: gene-cell\nmax-epochs: 2\nbatch-size: 32\n"
    )
    options = ("--model-dir", folder / "model", "--report", folder / "page.html")
    config = ("--config", folder / "dra.yaml", "--resolution", 0.5)
    result = train(written(folder), *config, *options)
    assert result.exit_code == 0, result.stderr
    return folder


def test_options_reach_the_model(with_covariates: Path) -> None:
    adata = anndata.read_h5ad(with_covariates / "in.h5ad")
    model = DRA.load(str(with_covariates / "model"), adata=adata)
    setup = model.registry["setup_args"]
    assert setup["categorical_covariate_keys"] == ["donor", "site"]
    assert setup["continuous_covariate_keys"] == ["age"]
    assert model.module.gene_likelihood == "nb"
    assert model.module.dispersion == "gene-cell"
    np.testing.assert_allclose(
        anndata.read_h5ad(with_covariates / "out.h5ad").obsm["X_dra"],
        model.get_latent_representation(),
        rtol=1e-5,
    )


def test_covariates_matter(with_covariates: Path, tmp_path: Path) -> None:
    config = ("--config", with_covariates / "dra.yaml", "--continuous-covariate-keys", "other")
    source = written(tmp_path)
    adata = anndata.read_h5ad(source)
    adata.obs["other"] = adata.obs["age"].to_numpy()[::-1]
    adata.write_h5ad(source)
    assert train(source, *config).exit_code == 0
    one, other = (anndata.read_h5ad(f / "out.h5ad") for f in (with_covariates, tmp_path))
    assert not np.allclose(one.obsm["X_dra"], other.obsm["X_dra"])


def test_outputs_tell_of_covariates(with_covariates: Path) -> None:
    figures = json.loads((with_covariates / "out.json").read_text())
    assert figures["input"]["categorical_covariate_keys"] == ["donor", "site"]
    assert figures["input"]["continuous_covariate_keys"] == ["age"]
    assert figures["settings"]["gene_likelihood"] == "nb"
    assert figures["settings"]["dispersion"] == "gene-cell"
    assert figures["settings"]["early_stopping"] is False
    assert (figures["training"]["epochs"], figures["training"]["stopped_early"]) == (2, False)
    adata = anndata.read_h5ad(with_covariates / "out.h5ad")
    page = (with_covariates / "page.html").read_text()
    for told in (adata.uns["dra"]["params"], adata.uns["dra"]["settings"]):
        assert told["categorical_covariate_keys"] == '["donor", "site"]'
        assert told["continuous_covariate_keys"] == '["age"]'
    assert adata.uns["dra"]["settings"]["gene_likelihood"] == "nb"
    for name in ("categorical_covariate_keys", "gene_likelihood", "dispersion"):
        assert name in page
    assert not [name for name in adata.obsm if "scvi" in name]


def test_counts_that_stay_in_their_file(with_covariates: Path, tmp_path: Path) -> None:
    source = written(tmp_path)
    result = train(source, "--config", with_covariates / "dra.yaml", "--out-of-core")
    assert result.exit_code == 0, result.stderr
    model = ("--model", with_covariates / "model", "--output", tmp_path / "again.h5ad")
    assert invoke("embed", source, *model, "--out-of-core", "--accelerator", "cpu").exit_code == 0
    expected = anndata.read_h5ad(with_covariates / "out.h5ad").obsm["X_dra"]
    for name in ("out.h5ad", "again.h5ad"):
        found = anndata.read_h5ad(tmp_path / name).obsm["X_dra"]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("likelihood", "dispersion"),
    [("poisson", None), ("zinb", "gene-batch"), ("nb", "gene")],
)
def test_every_likelihood_trains_and_makes_cells(
    likelihood: str, dispersion: str | None, tmp_path: Path
) -> None:
    chosen = ("--gene-likelihood", likelihood, "--batch-key", "batch", "--max-epochs", 1)
    chosen += () if dispersion is None else ("--dispersion", dispersion)
    result = train(written(tmp_path), *chosen, "--model-dir", tmp_path / "model")
    assert result.exit_code == 0, result.stderr
    settings = json.loads((tmp_path / "out.json").read_text())["settings"]
    assert (settings["gene_likelihood"], settings["dispersion"]) == (
        likelihood,
        dispersion or "gene",
    )
    made = ("--n-cells", 5, "--output", tmp_path / "made.h5ad", "--accelerator", "cpu")
    assert invoke("generate", tmp_path / "model", *made).exit_code == 0


def test_info_names_covariates(with_covariates: Path) -> None:
    facts = json.loads(invoke("info", with_covariates / "model", "--json", "-").stdout)["model"]
    assert facts["categorical_covariate_keys"] == ["donor", "site"]
    assert facts["continuous_covariate_keys"] == ["age"]
    assert "donor, site" in invoke("info", with_covariates / "model").stdout


def test_cells_of_the_training_are_embedded_as_they_were(
    with_covariates: Path, tmp_path: Path
) -> None:
    output = tmp_path / "again.h5ad"
    model = ("--model", with_covariates / "model", "--output", output)
    result = invoke("embed", with_covariates / "in.h5ad", *model, "--accelerator", "cpu")
    assert result.exit_code == 0, result.stderr
    one, other = (anndata.read_h5ad(path) for path in (with_covariates / "out.h5ad", output))
    np.testing.assert_allclose(one.obsm["X_dra"], other.obsm["X_dra"], rtol=1e-5)


@pytest.fixture(scope="module")
def stopped_early(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with what a command wrote that stopped early."""
    folder = tmp_path_factory.mktemp("early")
    result = train(written(folder), *EARLY)
    assert result.exit_code == 0, result.stderr
    (folder / "stderr").write_text(result.stderr)
    return folder


def test_early_stopping_is_told(stopped_early: Path) -> None:
    figures = json.loads((stopped_early / "out.json").read_text())
    epochs = figures["training"]["epochs"]
    assert 45 < epochs < 400
    assert figures["training"]["stopped_early"] is True
    assert figures["settings"]["early_stopping"] is True
    assert figures["settings"]["max_epochs"] == 400
    lines = [
        line
        for line in (stopped_early / "stderr").read_text().splitlines()
        if "stopped early" in line
    ]
    assert lines == [
        f"training stopped early, after {epochs} of 400 epochs: elbo_validation had not improved "
        "for 45"
    ]


@pytest.mark.parametrize("when", ["under way", "at the end"])
def test_a_run_that_goes_on_stops_as_early(
    when: str, stopped_early: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether SIGTERM comes between two epochs, or once early stopping has ended training."""
    save = InterruptCheckpoint.on_train_epoch_end

    def kill(*_: Any) -> None:
        signal.raise_signal(signal.SIGTERM)

    def kill_once(self: InterruptCheckpoint, trainer: Any, plan: Any) -> None:
        if trainer.current_epoch == 60:
            kill()
        save(self, trainer, plan)

    source = written(tmp_path)
    with monkeypatch.context() as patch:
        if when == "under way":
            patch.setattr(InterruptCheckpoint, "on_train_epoch_end", kill_once)
        else:
            patch.setattr(DRA, "_calibrate", kill)
        assert train(source, *EARLY).exit_code == 143
    result = train(source, *EARLY, "--resume")
    assert result.exit_code == 0, result.stderr
    assert "training stopped early, after" in result.stderr
    for name in ("out.h5ad", "out.json"):
        assert (tmp_path / name).read_bytes() == (stopped_early / name).read_bytes()


def test_covariates_in_one_call() -> None:
    adata = cells()
    adata.obs["donor"] = np.where(np.arange(adata.n_obs) % 3, "a", "b")
    quiet = {"enable_progress_bar": False, "batch_size": 32}
    options = {"max_epochs": 1, "accelerator": "cpu", "train_kwargs": quiet}
    model = tl.dra(adata, categorical_covariate_keys=("donor",), **options)
    assert model.registry["setup_args"]["categorical_covariate_keys"] == ["donor"]
    params = adata.uns["dra"]["params"]
    assert params["categorical_covariate_keys"] == '["donor"]'
    assert params["continuous_covariate_keys"] == ""
    with pytest.raises(KeyError, match="continuous_covariate_keys='age' is not a column"):
        tl.dra(adata, continuous_covariate_keys=["age"], **options)


def test_early_stopping_that_was_not_needed(tmp_path: Path) -> None:
    result = train(written(tmp_path), "--early-stopping", "--max-epochs", 2, "--batch-size", 32)
    assert result.exit_code == 0, result.stderr
    training = json.loads((tmp_path / "out.json").read_text())["training"]
    assert (training["epochs"], training["stopped_early"]) == (2, False)
    assert "stopped early" not in result.stderr
    assert "elbo_validation" in training
