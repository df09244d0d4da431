"""Training in several processes: two on a CPU, as two nodes and as two devices of one.

    torchrun --nproc-per-node 2 tests/training/test_processes.py FOLDER

runs the part of each process, which leaves what it found in FOLDER, under its rank.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anndata
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy
from torch import distributed

from dra_scvi import DRA, TrainingDivergedError, TrainingInterruptedError, datasets, metrics, tl
from dra_scvi._module.matching import DIVERGENCES
from dra_scvi._training.processes import gathered_scores, trainer_settings
from tests.helpers import QUIET, once

ROOT = Path(__file__).parents[2]
N_GENES, EPOCHS = 60, 40
WORLD = int(os.environ.get("WORLD_SIZE", "2"))
RANK = int(os.environ.get("RANK", "0"))
NODES = WORLD // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
TOGETHER: dict[str, Any] = {
    "accelerator": "cpu",
    "devices": WORLD // NODES,
    "num_nodes": NODES,
    "enable_progress_bar": False,
    "batch_size": 64,
}


def cells() -> anndata.AnnData:
    return datasets.synthetic(n_cells=601, n_genes=N_GENES, n_types=4, seed=0)


def registered(adata: anndata.AnnData, **options: Any) -> DRA:
    DRA.setup_anndata(adata)
    torch.manual_seed(0)
    return DRA(adata, n_hidden=32, n_latent=5, **options)


def digest(model: DRA) -> str:
    """Tell weights, buffers and codes of a model apart from all others."""
    parts = [value.numpy().tobytes() for value in model.module.state_dict().values()]
    parts.append(model.get_latent_representation().tobytes())
    return hashlib.sha1(b"".join(parts)).hexdigest()


class Watch(Callback):
    """Note which cells a process has seen in its first epoch, and in how many minibatches."""

    def __init__(self, adata: anndata.AnnData) -> None:
        x = adata.X.toarray().astype(np.float32)
        self.place = {row.tobytes(): i for i, row in enumerate(x)}
        self.cells: list[int] = []
        self.steps = 0

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, _: int) -> None:
        self.steps += 1
        if trainer.current_epoch == 0:
            self.cells += [self.place[row.tobytes()] for row in batch["X"].numpy()]


class Poison(Callback):
    """Spoil a minibatch of one process."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, index: int) -> None:
        if (trainer.global_rank, trainer.current_epoch, index) == (1, 2, 1):
            batch["X"][0, 0] = float("nan")


class Signal(Callback):
    """Ask one process to stop."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, index: int) -> None:
        if (trainer.global_rank, trainer.current_epoch, index) == (1, 2, 1):
            os.kill(os.getpid(), signal.SIGTERM)


def trained(folder: Path) -> dict[str, Any]:
    adata = cells()
    watch = Watch(adata)
    model = registered(adata)
    model.train(EPOCHS, callbacks=[watch], check_val_every_n_epoch=10, **TOGETHER)
    model.save(str(folder / "model"))
    codes = model.get_latent_representation()
    return {
        "digest": digest(model),
        "seen": watch.cells,
        "steps": watch.steps,
        "train_indices": sorted(model.train_indices.tolist()),
        "prior_started": model.module.prior.is_started,
        "history": {name: len(values) for name, values in model.history.items()},
        "nmi": metrics.clustering(codes, adata.obs["cell_type"])["nmi"],
    }


def stored(folder: Path) -> dict[str, Any]:
    """Train on counts in a file, without discriminators, until early stopping."""
    model = registered(anndata.read_h5ad(folder / "cells.h5ad", backed="r"), prior="normal")
    weights = {"latent_weight": 0.0, "data_weight": 0.0}
    model.train(
        30,
        early_stopping=True,
        early_stopping_patience=2,
        early_stopping_min_delta=1e4,
        plan_kwargs=weights,
        **TOGETHER,
    )
    return {"digest": digest(model), "epochs": model.trainer.current_epoch}


def diverged(_: Path) -> dict[str, Any]:
    model = registered(cells(), prior="normal")
    try:
        model.train(5, callbacks=[Poison()], **TOGETHER)
    except TrainingDivergedError as error:
        finite = all(bool(v.isfinite().all()) for v in model.module.state_dict().values())
        where = [error.epoch, error.step]
        model.is_trained_ = True
        return {"where": where, "finite": finite, "digest": digest(model)}
    return {}


def resumed(folder: Path) -> dict[str, Any]:
    """Train at a stretch, and again with an interruption."""
    settings = {k: v for k, v in TOGETHER.items() if k != "accelerator"}
    options: dict[str, Any] = {
        "max_epochs": 4,
        "accelerator": "cpu",
        "checkpoint": folder / "training.ckpt",
        "model_kwargs": {"n_hidden": 16},
    }
    whole = tl.dra(cells(), **options, train_kwargs=settings)
    signum = None
    try:
        tl.dra(cells(), **options, train_kwargs={**settings, "callbacks": [Signal()]})
    except TrainingInterruptedError as error:
        signum = int(error.signum)
    distributed.barrier()
    gone_on = tl.dra(cells(), **options, resume=True, train_kwargs=settings)
    return {"signum": signum, "whole": digest(whole), "gone on": digest(gone_on)}


def gradients(_: Path) -> dict[str, Any]:
    """Hold the mean gradient of all processes against that of one with all samples."""
    weight = torch.tensor([0.3, -0.7], dtype=torch.float64, requires_grad=True)
    generator = torch.Generator().manual_seed(0)
    real, fake = torch.randn(2, 2, 6, 2, dtype=torch.float64, generator=generator)
    trainer = SimpleNamespace(world_size=WORLD, global_rank=RANK)
    found = {}
    for name, divergence in DIVERGENCES.items():
        part = divergence(*(gathered_scores(x[RANK] @ weight, trainer) for x in (real, fake)))
        (mine,) = torch.autograd.grad(part, weight)
        distributed.all_reduce(mine)
        whole = divergence(*(x.flatten(0, 1) @ weight for x in (real, fake)))
        (expected,) = torch.autograd.grad(whole, weight)
        found[name] = {
            "value": abs(part.item() - whole.item()),
            "gradient": float((mine / WORLD - expected).abs().max()),
        }
    return found


# -- the tests: in a process that is none of these --------------------------------------------


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def environment() -> dict[str, str]:
    """Return that of a process which is none of several."""
    known = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    kept = {name: value for name, value in os.environ.items() if name not in known}
    # a worker imports tests.helpers, which pytest alone finds by itself
    paths = [str(ROOT), *filter(None, [kept.get("PYTHONPATH")])]
    changed = {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    return {**kept, **changed, "GLOO_SOCKET_IFNAME": "lo"}


def run_on_two_nodes(folder: Path) -> None:
    """Run the worker on two nodes, which are two agents of torchrun on this machine."""
    cells().write_h5ad(folder / "cells.h5ad")
    agents = [
        subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
            + [f"--node-rank={rank}", "--master-addr=127.0.0.1", f"--master-port={port}"]
            + [__file__, str(folder)],
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for port in [free_port()]
        for rank in range(2)
    ]
    outputs = [agent.communicate()[0] for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], "\n".join(outputs)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Return what the two processes found, who run once: on busy cores they wait for each other.

    A step has dozens of exchanges, at each of which both must have had their turn.
    """
    folder = once(tmp_path_factory, "together", run_on_two_nodes)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.slow
def test_replicas_are_equal_after_training(found: list[dict[str, Any]]) -> None:
    first, second = (part["trained"] for part in found)
    assert first["digest"] == second["digest"]
    assert first["prior_started"]
    assert first["train_indices"] == second["train_indices"]


@pytest.mark.slow
def test_each_process_trains_on_its_share_of_the_training_cells(
    found: list[dict[str, Any]],
) -> None:
    first, second = (part["trained"] for part in found)
    assert first["steps"] == second["steps"]
    assert len(first["seen"]) == len(second["seen"])
    assert sorted({*first["seen"], *second["seen"]}) == first["train_indices"]
    n_twice = len(set(first["seen"]) & set(second["seen"]))
    assert n_twice <= 1  # 601 cells, or those of them to train on, need not be an even number


@pytest.mark.slow
def test_the_first_process_keeps_history_and_model(found: list[dict[str, Any]]) -> None:
    history = found[0]["trained"]["history"]
    assert history["train_loss"] == EPOCHS
    assert history["elbo_validation"] == EPOCHS // 10


@pytest.mark.slow
def test_two_processes_do_as_well_as_one(found: list[dict[str, Any]]) -> None:
    adata = cells()
    model = registered(adata)
    model.train(EPOCHS, batch_size=128, **QUIET)
    alone = metrics.clustering(model.get_latent_representation(), adata.obs["cell_type"])["nmi"]
    assert found[0]["trained"]["nmi"] > alone - 0.1
    assert found[0]["trained"]["nmi"] > 0.5


@pytest.mark.slow
def test_early_stopping_stops_all_at_once(found: list[dict[str, Any]]) -> None:
    first, second = (part["stored"] for part in found)
    assert first == second
    assert first["epochs"] == 3


@pytest.mark.slow
def test_a_nan_in_one_process_stops_all_at_the_last_good_state(
    found: list[dict[str, Any]],
) -> None:
    first, second = (part["diverged"] for part in found)
    assert first == second
    assert first["where"] == [2, 1]
    assert first["finite"]


@pytest.mark.slow
def test_training_goes_on_from_an_interruption_of_one(found: list[dict[str, Any]]) -> None:
    first, second = (part["resumed"] for part in found)
    assert first == second
    assert first["signum"] == signal.SIGTERM
    assert first["whole"] == first["gone on"]


@pytest.mark.slow
def test_the_divergence_of_all_processes_has_the_gradient_of_one(
    found: list[dict[str, Any]],
) -> None:
    for part in found:
        assert set(part["gradients"]) == {"bhattacharyya", "jensen-shannon"}
        for error in part["gradients"].values():
            assert error["value"] < 1e-12
            assert error["gradient"] < 1e-12


@pytest.mark.slow
def test_the_command_line_on_two_devices(tmp_path: Path) -> None:
    path, output = tmp_path / "cells.h5ad", tmp_path / "out.h5ad"
    cells().write_h5ad(path)
    command = [sys.executable, "-m", "dra_scvi", "train", path, "--output", output]
    command += ["--model-dir", tmp_path / "model", "--max-epochs", 2, "--devices", 2]
    command += ["--accelerator", "cpu", "--json", tmp_path / "figures.json"]
    done = subprocess.run(
        list(map(str, command)), env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("training on 601 cells") == 1
    assert anndata.read_h5ad(output).obsm["X_dra"].shape == (601, 10)
    assert "train_loss" in json.loads((tmp_path / "figures.json").read_text())["training"]
    assert DRA.load(tmp_path / "model", cells(), accelerator="cpu").is_trained
    assert not list(tmp_path.glob(".*"))


def test_settings_of_one_process_are_left_alone() -> None:
    given = {"devices": 1, "early_stopping": True}
    with trainer_settings(given) as settings:
        assert settings == given


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"devices": 2}, "ddp_find_unused_parameters_true"),
        ({"devices": [0, 1]}, "ddp_find_unused_parameters_true"),
        ({"devices": "0,1"}, "ddp_find_unused_parameters_true"),
        ({"devices": 1, "num_nodes": 2}, "ddp_find_unused_parameters_true"),
        ({"strategy": "ddp_notebook"}, "ddp_notebook_find_unused_parameters_true"),
        ({"strategy": "ddp_find_unused_parameters_false"}, "ddp_find_unused_parameters_false"),
    ],
)
def test_several_devices_mean_ddp(given: dict[str, Any], expected: str) -> None:
    with trainer_settings({**given, "early_stopping": True}) as settings:
        assert settings["strategy"] == expected
        assert "early_stopping" not in settings
        assert settings["callbacks"][0].monitor == "elbo_validation"
        assert Path(settings["log_save_dir"]).is_dir()
    assert not Path(settings["log_save_dir"]).exists()


def test_a_strategy_of_ones_own_is_kept() -> None:
    strategy = DDPStrategy()
    with trainer_settings({"strategy": strategy}) as settings:
        assert settings["strategy"] is strategy


def main() -> None:
    """Run all parts in one group of processes, since starting them takes longest."""
    folder = Path(sys.argv[1])
    found = {part.__name__: part(folder) for part in (trained, stored, diverged, resumed)}
    found["gradients"] = gradients(folder)
    (folder / f"{RANK}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
