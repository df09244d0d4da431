"""Sweeps: runs of a comparison in parallel, and settings searched for with scvi-tools' tuner."""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
import torch

from dra_scvi import DRA, benchmark, datasets
from dra_scvi._threads import kernel_threads, own_threads
from dra_scvi.benchmark._parallel import VISIBLE, spread

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from anndata import AnnData

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason='Ray: pip install "dra_scvi[tune]"'
)
MEASURED = ["seconds", "cpu_seconds", "peak_memory_mb"]


@pytest.fixture
def cells() -> AnnData:
    return datasets.synthetic(n_cells=120, n_genes=30, n_types=3, seed=0)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
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


@pytest.fixture
def told() -> Callable[[int], dict[str, Any]]:
    """Return what a run in a process of its own finds there, in a function without a module."""

    def run(place: int) -> dict[str, Any]:
        sys.stderr.write(f"said {place}")
        logging.getLogger("lightning.fabric").error("logged")
        with own_threads():
            threads = kernel_threads()
        return {"pid": os.getpid(), "gpu": os.environ.get(VISIBLE), "threads": threads}

    return run


def test_processes_have_a_thread_each_and_say_nothing(
    told: Callable[[int], dict[str, Any]], capfd: pytest.CaptureFixture[str]
) -> None:
    found = dict(spread(told, [(0,), (1,), (2,)], 2))
    assert set(found) == {0, 1, 2}
    assert os.getpid() not in {run["pid"] for run in found.values()}
    assert {run["threads"] for run in found.values()} == {1}
    assert capfd.readouterr().err == ""


def test_runs_take_turns_at_the_gpus(
    told: Callable[[int], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv(VISIBLE, raising=False)
    found = dict(spread(told, [(0,), (1,), (2,), (3,)], 2))
    assert [found[place]["gpu"] for place in range(4)] == ["0", "1", "0", "1"]
    monkeypatch.setenv(VISIBLE, "5,GPU-7")
    found = dict(spread(told, [(0,), (1,)], 2))
    assert [found[place]["gpu"] for place in range(2)] == ["5", "GPU-7"]


def test_an_error_in_a_process_comes_out_and_finished_rows_are_kept(
    cells: AnnData, tmp_path: Path
) -> None:
    path = tmp_path / "table.csv"

    def broken(counts: AnnData, n_latent: int, seed: int) -> object:
        if seed == 1:
            while not path.exists():
                time.sleep(0.1)
            raise NameError("bug")
        return counts.X.toarray()[:, :n_latent]

    def failing(counts: AnnData, n_latent: int, seed: int) -> object:
        raise ValueError("no")

    options = {"n_latent": 2, "parallel": 2, "output": path, "progress": False}
    with pytest.raises(NameError, match="bug"):
        benchmark.compare(cells, "cell_type", models={"bad": broken}, seeds=2, **options)
    assert pd.read_csv(path)["seed"].tolist() == [0]
    table = benchmark.compare(cells, "cell_type", models={"fails": failing}, seeds=2, **options)
    assert table["status"].tolist() == ["ValueError: no"] * 2


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
