"""Sweeps: runs of a comparison in parallel, and settings searched for with scvi-tools' tuner."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from dra_scvi import DRA, benchmark, datasets
from dra_scvi.benchmark import _parallel
from dra_scvi.benchmark._parallel import check_ray
from dra_scvi.cli import program

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason='Ray: pip install "dra_scvi[tune]"'
)
MEASURED = ["seconds", "cpu_seconds", "peak_memory_mb"]


@pytest.fixture
def cells() -> AnnData:
    return datasets.synthetic(n_cells=120, n_genes=30, n_types=3, seed=0)


@needs_ray
@pytest.mark.filterwarnings("ignore")
def test_a_table_made_in_parallel_is_that_of_one_run_after_the_other(
    cells: AnnData, tmp_path: Path
) -> None:
    options = {"n_latent": 2, "seeds": 1, "max_epochs": 1, "progress": False}
    options |= {"models": ("pca", "dra"), "accelerator": "cpu", "output": tmp_path / "table.csv"}
    kept: list[bool] = []
    spread = benchmark.compare(cells, "cell_type", parallel=2, **options)
    again = benchmark.compare(
        cells, "cell_type", parallel=2, on_row=lambda _, is_kept: kept.append(is_kept), **options
    )
    assert kept == [True] * 2
    pd.testing.assert_frame_equal(spread, again)
    serial = benchmark.compare(cells, "cell_type", **{**options, "output": None})
    pd.testing.assert_frame_equal(
        spread.drop(columns=MEASURED), serial.drop(columns=MEASURED), atol=1e-6
    )


def test_without_ray_one_is_told_how_to_get_it(
    cells: AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_parallel.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ImportError, match=r"pip install \"dra_scvi\[tune\]\""):
        benchmark.compare(cells, "cell_type", parallel=2)
    cells.write_h5ad(tmp_path / "cells.h5ad")
    command = ["benchmark", tmp_path / "cells.h5ad", "--label-key", "cell_type", "--parallel", 2]
    done = CliRunner().invoke(program, [*map(str, command), "--output", str(tmp_path / "a.csv")])
    assert done.exit_code == 2
    assert "--parallel 2" in done.stderr
    check_ray(1)
    with pytest.raises(ValueError, match="from 1"):
        check_ray(0)


@needs_ray
@pytest.mark.filterwarnings("ignore")
def test_a_search_over_weights_prior_and_dimensions(cells: AnnData, tmp_path: Path) -> None:
    """Labels play no part: the objective is the evidence lower bound of cells not trained on."""
    pytest.importorskip("hyperopt", reason='autotune: pip install "dra_scvi[tune]"')
    from ray import tune
    from scvi.autotune import run_autotune

    DRA.setup_anndata(cells)
    experiment = run_autotune(
        DRA,
        data=cells,
        metrics=["elbo_validation"],
        mode="min",
        search_space={
            "model_params": {
                "n_latent": tune.choice([2, 5]),
                "prior": tune.choice(["normal", "mixture"]),
            },
            "train_params": {
                "max_epochs": 2,
                "plan_kwargs": {"latent_weight": tune.loguniform(0.1, 10.0)},
            },
        },
        num_samples=2,
        searcher="random",
        seed=0,
        resources={"cpu": 1},
        logging_dir=str(tmp_path),
    )
    trials = list(experiment.result_grid)
    assert len(trials) == 2
    assert all(trial.error is None for trial in trials)
    assert np.isfinite([trial.metrics["elbo_validation"] for trial in trials]).all()
    weights = [trial.config["train_params"]["plan_kwargs"]["latent_weight"] for trial in trials]
    assert weights[0] != weights[1]
