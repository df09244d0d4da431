"""Tests of the command line: exit codes, streams, outputs whole or not at all, equal bytes."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import anndata
import numpy as np
import pandas as pd
import pytest
import scvi
import torch

import dra_scvi
from dra_scvi import _threads, datasets, metrics, tl
from dra_scvi import demo as demo_job
from dra_scvi._exceptions import TrainingDivergedError
from dra_scvi.benchmark import _compare
from dra_scvi.cli import exit_code
from tests.helpers import invoke
from tests.served import served

if TYPE_CHECKING:
    from collections.abc import Callable

    from click.testing import Result

SETTINGS = ("--accelerator", "cpu", "--threads", "1")
EPOCHS = 3
N_CELLS, N_GENES, N_TYPES = 120, 30, 3
BATCH_SIZE = 53  # of 108 training cells 2 are left over, about which scvi-tools warns


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def told(stderr: str) -> list[str]:
    """Return the lines on stderr but the remark on batches that are not used."""
    return [line for line in stderr.splitlines() if "is not used; --batch-key" not in line]


def train_args(folder: Path, source: Path, **changes: Any) -> list[object]:
    options = {
        "output": folder / "out.h5ad",
        "label-key": "cell_type",
        "max-epochs": EPOCHS,
        "batch-size": BATCH_SIZE,
        "json": folder / "out.json",
        **changes,
    }
    named = [
        part
        for name, value in options.items()
        if value is not None
        for part in (f"--{name}", value)
    ]
    return ["train", source, *named, *SETTINGS]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def error_line(result: Result) -> str:
    """Return the only line on stderr."""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("dra-scvi: error: ")
    assert result.stdout == ""
    return lines[0]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cells with a layer, an embedding and bookkeeping of a model of somebody else."""
    adata = datasets.synthetic(N_CELLS, N_GENES, n_types=N_TYPES, n_batches=2)
    adata.layers["counts"] = adata.X.copy()
    adata.obsm["X_other"] = np.arange(2 * N_CELLS, dtype=np.float32).reshape(N_CELLS, 2)
    adata.obs["_scvi_batch"] = np.arange(N_CELLS)
    adata.uns["note"] = "kept"
    path = tmp_path_factory.mktemp("input") / "cells.h5ad"
    adata.write_h5ad(path)
    return path


@pytest.fixture(scope="module")
def trained(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with what one command wrote: out.h5ad, out.json, stdout, and a model."""
    folder = tmp_path_factory.mktemp("trained")
    result = invoke(*train_args(folder, source, **{"model-dir": folder / "model"}))
    assert result.exit_code == 0, result.stderr
    (folder / "stdout").write_text(result.stdout)
    (folder / "stderr").write_text(result.stderr)
    return folder


TRAIN_THEN_STOP_IN_SECOND_EPOCH = """
import json, os, signal, sys
from dra_scvi._training import interrupts as _checkpoint
from dra_scvi import cli

whole, stopped = map(json.loads, sys.argv[1:])
try:
    cli.program(whole)
except SystemExit as end:
    if end.code:
        raise
print("stderr of the second", file=sys.stderr)
callback = _checkpoint.InterruptCheckpoint
save = callback.on_train_epoch_end

def stop(self, trainer, plan):
    if trainer.current_epoch == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    save(self, trainer, plan)

callback.on_train_epoch_end = stop
sys.argv = ["dra-scvi", *stopped]
cli.main()
"""


class OtherProcess(NamedTuple):
    """What a process wrote that trained once, and once more until SIGTERM."""

    returncode: int
    stderr_whole: str
    stderr_stopped: str
    whole: Path
    stopped: Path


@pytest.fixture(scope="module")
def other_process(source: Path, tmp_path_factory: pytest.TempPathFactory) -> OtherProcess:
    whole, stopped = (tmp_path_factory.mktemp(name) for name in ("whole", "stopped"))
    arguments = [
        json.dumps([str(part) for part in (*train_args(folder, source), "--quiet")])
        for folder in (whole, stopped)
    ]
    result = run(served(*arguments, code=TRAIN_THEN_STOP_IN_SECOND_EPOCH))
    first, _, second = result.stderr.partition("stderr of the second\n")
    return OtherProcess(result.returncode, first, second, whole, stopped)


# -- the program -------------------------------------------------------------------------------


def test_version_is_bare_and_module_runs() -> None:
    result = run([sys.executable, "-m", "dra_scvi", "--version"])
    assert (result.returncode, result.stdout, result.stderr) == (
        0,
        f"{dra_scvi.__version__}\n",
        "",
    )


@pytest.mark.parametrize("command", ["train", "embed", "evaluate", "benchmark", "info", "demo"])
def test_help_has_example_and_common_options(command: str) -> None:
    result = invoke(command, "--help")
    assert result.exit_code == 0
    assert f"Example: dra-scvi {command}" in result.stdout
    for option in ("seed", "threads", "accelerator", "quiet", "debug", "json", "config"):
        assert f"--{option}" in result.stdout


def test_command_line_starts_without_heavy_libraries() -> None:
    heavy = "{'numpy', 'pandas', 'torch', 'scvi', 'anndata', 'matplotlib', 'rich'}"
    code = f"import sys, dra_scvi.cli; print({heavy} & set(sys.modules))"
    result = run([sys.executable, "-c", code])
    assert (result.stdout, result.stderr) == ("set()\n", "")


def test_without_command_shows_help_and_fails() -> None:
    result = invoke()
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Commands:" in result.stderr


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (dra_scvi.InvalidCountsError("x"), 65),
        (KeyError("x"), 65),
        (UnicodeDecodeError("utf-8", b"x", 0, 1, "x"), 65),
        (FileNotFoundError("x"), 66),
        (TrainingDivergedError("elbo", 1, 2), 70),
        (FileExistsError("x"), 73),
        (dra_scvi.TrainingInterruptedError(signal.SIGINT, 1, Path("x")), 130),
        (dra_scvi.TrainingInterruptedError(signal.SIGTERM, 1, Path("x")), 143),
        (PermissionError("x"), 1),
        (AttributeError("x"), 1),
    ],
)
def test_exit_codes(error: Exception, code: int) -> None:
    assert exit_code(error) == code


# -- train -------------------------------------------------------------------------------------


def test_train_adds_embedding_and_changes_nothing_else(source: Path, trained: Path) -> None:
    before, after = anndata.read_h5ad(source), anndata.read_h5ad(trained / "out.h5ad")
    assert after.obsm["X_dra"].shape == (N_CELLS, 10)
    assert after.uns["dra"]["params"]["max_epochs"] == EPOCHS
    assert set(after.uns) - set(before.uns) == {"dra"}
    assert set(after.obsm) - set(before.obsm) == {"X_dra"}
    pd.testing.assert_frame_equal(after.obs, before.obs)
    pd.testing.assert_frame_equal(after.var, before.var)
    assert (after.X != before.X).nnz == 0
    assert after.uns["note"] == "kept"


def test_train_leaves_no_temporary_and_no_checkpoint(trained: Path) -> None:
    names = {path.name for path in trained.iterdir()}
    assert names == {"out.h5ad", "out.json", "model", "stdout", "stderr"}
    assert {path.name for path in (trained / "model").iterdir()} == {"model.pt", "manifest.json"}


def test_train_figures(trained: Path) -> None:
    figures = json.loads((trained / "out.json").read_text())
    assert figures["schema_version"] == 1
    assert figures["command"] == "train"
    assert figures["version"] == dra_scvi.__version__
    assert figures["cells"] == "all"
    assert figures["input"] == {
        "n_cells": N_CELLS,
        "n_genes": N_GENES,
        "layer": None,
        "batch_key": None,
        "label_key": "cell_type",
        "categorical_covariate_keys": None,
        "continuous_covariate_keys": None,
    }
    assert figures["settings"]["max_epochs"] == EPOCHS
    assert figures["settings"]["n_latent"] == 10
    assert figures["settings"]["prior"] == "mixture"
    assert np.isfinite(figures["training"]["elbo_train"])
    adata = anndata.read_h5ad(trained / "out.h5ad")
    for method in ("kmeans", "leiden"):
        expected = metrics.clustering(adata.obsm["X_dra"], adata.obs["cell_type"], method)
        assert figures[method] == pytest.approx(expected)


def test_train_streams(trained: Path) -> None:
    figures = json.loads((trained / "out.json").read_text())
    table = (trained / "stdout").read_text()
    assert f"{figures['kmeans']['nmi']:.3f}" in table
    assert f"{figures['leiden']['ari']:.3f}" in table
    lines = (trained / "stderr").read_text().splitlines()
    assert lines.pop(0).startswith("obs['batch'] has 2 values and is not used")
    assert lines[0] == f"training on {N_CELLS} cells and {N_GENES} genes"
    assert lines[1] == f"training for {EPOCHS} epochs on cpu, learning rate 0.001, of the " + (
        "discriminators 0.0001"
    )
    assert re.fullmatch(
        rf"minibatches of {BATCH_SIZE} cells come from counts in memory \(CSR, 0\.\d MB\)",
        lines[2],
    )
    assert [line.split()[0] for line in lines[3:]] == ["wrote"] * 3 + ["next:"]
    assert "--leiden" in lines[-1]


def test_train_twice_gives_equal_bytes(trained: Path, other_process: OtherProcess) -> None:
    assert other_process.stderr_whole == ""
    folder = other_process.whole
    assert (folder / "out.json").read_bytes() == (trained / "out.json").read_bytes()
    assert digest(folder / "out.h5ad") == digest(trained / "out.h5ad")


def test_remarks_of_libraries_take_debug(source: Path, tmp_path: Path) -> None:
    args = train_args(tmp_path, source)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert invoke(*args, "--debug").exit_code == 0
        shown = " ".join(str(warning.message) for warning in caught)
        caught.clear()
        quiet = invoke(*args, "--quiet", "--force")
        assert (quiet.exit_code, quiet.stderr, caught) == (0, "", [])
    assert "cells moved from training set to validation set" in shown
    assert "log_every_n_steps" in shown


def test_train_seed_matters(source: Path, trained: Path, tmp_path: Path) -> None:
    assert invoke(*train_args(tmp_path, source, seed=1, json=None)).exit_code == 0
    one, other = (anndata.read_h5ad(folder / "out.h5ad") for folder in (trained, tmp_path))
    assert not np.allclose(one.obsm["X_dra"], other.obsm["X_dra"])


def test_train_uses_layer_and_batches(source: Path, trained: Path, tmp_path: Path) -> None:
    args = train_args(tmp_path, source, layer="counts", **{"batch-key": "batch"})
    assert invoke(*args).exit_code == 0
    figures = json.loads((tmp_path / "out.json").read_text())
    assert figures["input"]["layer"] == "counts"
    assert figures["input"]["batch_key"] == "batch"
    one, other = (anndata.read_h5ad(folder / "out.h5ad") for folder in (trained, tmp_path))
    assert not np.allclose(one.obsm["X_dra"], other.obsm["X_dra"])


def test_train_on_variable_genes_keeps_the_others(source: Path, tmp_path: Path) -> None:
    args = train_args(tmp_path, source, **{"n-genes": 12, "model-dir": tmp_path / "model"})
    result = invoke(*args)
    assert result.exit_code == 0, result.stderr
    assert "kept 12 of 30 genes" in result.stderr
    assert anndata.read_h5ad(tmp_path / "out.h5ad").n_vars == N_GENES
    info = json.loads(invoke("info", tmp_path / "model", "--json", "-").stdout)
    assert info["model"]["n_genes"] == 12
    result = invoke(
        "embed", source, "--model", tmp_path / "model", "--output", tmp_path / "b.h5ad"
    )
    assert result.exit_code == 0, result.stderr
    one, other = (anndata.read_h5ad(tmp_path / name) for name in ("out.h5ad", "b.h5ad"))
    np.testing.assert_allclose(one.obsm["X_dra"], other.obsm["X_dra"], atol=1e-5)


def test_json_to_stdout_is_alone_there(source: Path, trained: Path, tmp_path: Path) -> None:
    result = invoke(*train_args(tmp_path, source, json="-"))
    assert result.stdout == (trained / "out.json").read_text()


def test_published_scores_test_cells_and_logs(source: Path, tmp_path: Path) -> None:
    log = tmp_path / "Metrics_cells.txt"
    options = {"preset": "published", "batch-size": 32, "metrics-log": log}
    for _ in range(2):
        result = invoke(*train_args(tmp_path, source, **options), "--force")
        assert result.exit_code == 0, result.stderr
    figures = json.loads((tmp_path / "out.json").read_text())
    adata = anndata.read_h5ad(tmp_path / "out.h5ad")
    test = adata[adata.obs["dra_split"] == "test"]
    expected = metrics.clustering(test.obsm["X_dra"], test.obs["cell_type"], "kmeans", seed=0)
    assert test.n_obs == N_CELLS // 5
    assert figures["cells"] == "test"
    assert figures["kmeans"] == pytest.approx(expected)
    assert figures["settings"]["learning_rate"] == 7e-4
    assert figures["settings"]["leak"] == 0.2
    lines = log.read_text().splitlines()
    assert len(lines) == 2
    for line in lines:
        assert " cells.h5ad n_latent=10 preset=published " in line
        assert line.endswith(f" NMI={figures['kmeans']['nmi']:.4f}")


class Captured(Exception):
    """Stops a command where training would begin."""


@pytest.fixture
def capture(monkeypatch: pytest.MonkeyPatch, source: Path, tmp_path: Path) -> Callable[..., dict]:
    """Return the arguments of `tl.dra` for some options.

    The command is under test, and ends at that call: what was not passed cannot be told later.
    """

    def run(*options: object) -> dict[str, Any]:
        seen: dict[str, Any] = {}

        def stop(*_: Any, **kwargs: Any) -> None:
            seen.update(kwargs)
            raise Captured

        monkeypatch.setattr(tl, "_dra", stop)
        result = invoke("train", source, "--output", tmp_path / "out.h5ad", *options)
        assert result.exit_code == 1, result.stderr
        return seen

    return run


def test_unset_options_are_not_passed(capture: Callable[..., dict]) -> None:
    seen = capture()
    assert seen["model_kwargs"] == {}
    assert seen["train_kwargs"] == {"enable_progress_bar": False}
    assert (seen["max_epochs"], seen["preset"], seen["seed"]) == (None, None, 0)
    assert (seen["n_latent"], seen["accelerator"], seen["resume"]) == (10, "auto", False)


def test_published_options_keep_the_rest_of_the_preset(capture: Callable[..., dict]) -> None:
    seen = capture(
        *("--preset", "published", "--n-latent", 2, "--leak", 0.1, "--no-batch-norm"),
        *("--beta1", 0.5),
    )
    assert seen["preset"] == "published"
    assert seen["model_kwargs"] == {"leak": 0.1, "batch_norm": False}
    assert seen["train_kwargs"]["plan_kwargs"] == {"lr": 8e-4, "beta1": 0.5}


# -- refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--leak", "0.1"], "--leak needs --preset published"),
        (["--beta1", "0.5"], "--beta1 needs --preset published"),
        (["--no-batch-norm"], "--batch-norm needs --preset published"),
        (["--preset", "published", "--n-latent", "5"], "not 5"),
        (["--preset", "published", "--divergence", "jensen-shannon"], "--divergence"),
        (["--preset", "published", "--prior", "mixture"], "--prior mixture"),
        (["--metrics-log", "log.txt"], "--metrics-log needs --label-key"),
        (["--n-hidden", "12,x"], "'12,x' is not a list of widths"),
        (["--n-hidden", "0"], "'0' is not a list of widths"),
        (["--output", "out.csv"], "'out.csv' does not end in .h5ad"),
        (["--max-epochs", "0"], "--max-epochs"),
        (["--epochs", "3"], "No such option"),
        (["--accelerator", "abacus"], "--accelerator abacus: choose one of auto, cpu"),
    ],
)
def test_wrong_usage(options: list[str], text: str, source: Path, tmp_path: Path) -> None:
    result = invoke("train", source, "--output", tmp_path / "out.h5ad", "--quiet", *options)
    assert text in error_line(result)
    assert result.exit_code == 2
    assert list(tmp_path.iterdir()) == []


def with_value(value: float) -> Callable[[Path, Path], None]:
    def write(source: Path, path: Path) -> None:
        adata = anndata.read_h5ad(source)
        dense = adata.X.toarray()
        dense[4, 2] = value
        adata.X = dense
        adata.write_h5ad(path)

    return write


def truncated(source: Path, path: Path) -> None:
    path.write_bytes(source.read_bytes()[:2000])


def without_label(source: Path, path: Path) -> None:
    adata = anndata.read_h5ad(source)
    adata.obs["cell_type"] = adata.obs["cell_type"].where(np.arange(N_CELLS) > 2)
    adata.write_h5ad(path)


BAD_INPUTS: dict[str, tuple[Callable[[Path, Path], Any], dict[str, Any], int, str]] = {
    "empty": (lambda _, path: path.touch(), {}, 65, "is empty (0 bytes)"),
    "truncated": (truncated, {}, 65, "could not be read"),
    "missing": (lambda _, path: None, {}, 66, "does not exist"),
    "layer": (shutil.copy, {"layer": "count"}, 65, "did you mean 'counts'?"),
    "label": (shutil.copy, {"label-key": "celltype"}, 65, "did you mean 'cell_type'?"),
    "batch": (shutil.copy, {"batch-key": "batches"}, 65, "did you mean 'batch'?"),
    "no label": (without_label, {}, 65, "3 of 120 cells have no label"),
    "negative": (with_value(-1), {}, 65, "cell 'cell_4', gene 'gene_2', value -1"),
    "NaN": (with_value(np.nan), {}, 65, "1 NaN value (first: cell 'cell_4', gene 'gene_2')"),
    "fraction": (with_value(0.5), {}, 65, "1 non-integer value"),
    "output": (shutil.copy, {"make": "out.h5ad"}, 73, "pass --force"),
    "model": (shutil.copy, {"make": "model", "model-dir": "model"}, 73, "pass --force"),
    "json": (shutil.copy, {"make": "out.json", "json": "out.json"}, 73, "pass --force"),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_bad_input_writes_nothing(
    case: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare, changes, code, text = BAD_INPUTS[case]
    monkeypatch.chdir(tmp_path)
    prepare(source, Path("in.h5ad"))
    options = dict(changes)
    if "make" in options:
        Path(options.pop("make")).write_bytes(b"precious")
    before = {path.name: digest(path) for path in tmp_path.iterdir()}
    result = invoke(*train_args(Path(), Path("in.h5ad"), **{"json": None, **options}))
    assert text in error_line(result)
    assert result.exit_code == code
    assert {path.name: digest(path) for path in tmp_path.iterdir()} == before


def test_bad_input_in_a_process(tmp_path: Path) -> None:
    result = run(served("train", tmp_path / "none.h5ad", "--output", tmp_path / "out.h5ad"))
    assert result.returncode == 66
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("dra-scvi: error: ")


def test_odd_input_is_warned_of_once(source: Path, tmp_path: Path) -> None:
    adata = anndata.read_h5ad(source)
    adata.X = adata.X.toarray()
    adata.X[3] = 0
    adata.write_h5ad(tmp_path / "in.h5ad")
    result = invoke(*train_args(tmp_path, tmp_path / "in.h5ad"), "--quiet")
    assert result.exit_code == 0
    [line] = result.stderr.splitlines()
    assert line.startswith("dra-scvi: warning: X: 1 cell has no counts")


def test_diverged_training(source: Path, tmp_path: Path) -> None:
    result = invoke(*train_args(tmp_path, source, **{"learning-rate": 1e8}), "--quiet")
    assert result.exit_code == 70
    assert re.search(r" is not finite in epoch \d", error_line(result))
    assert list(tmp_path.iterdir()) == []


def test_bugs_point_at_debug(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a fault of the program, which by intent no input brings about
    def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("a\nb")

    monkeypatch.setattr(tl, "_dra", fail)
    args = train_args(tmp_path, source)
    short, long = invoke(*args, "--quiet"), invoke(*args, "--debug")
    assert short.exit_code == long.exit_code == 1
    assert error_line(short).endswith("ZeroDivisionError: a b (unexpected; --debug shows where)")
    assert "Traceback (most recent call last)" in long.stderr


# -- interrupts --------------------------------------------------------------------------------


def test_sigterm_and_resume(source: Path, trained: Path, other_process: OtherProcess) -> None:
    message, folder = other_process.stderr_stopped, other_process.stopped
    assert other_process.returncode == 143
    assert message.startswith("dra-scvi: error: Training was interrupted after 2 epochs")
    assert message.count("\n") == 1
    assert [path.name for path in folder.iterdir()] == [".out.h5ad.ckpt"]
    args = train_args(folder, source)
    resumed = invoke(*args, "--resume")
    assert resumed.exit_code == 0, resumed.stderr
    assert resumed.stderr.splitlines()[1].startswith("going on from ")
    assert {path.name for path in folder.iterdir()} == {"out.h5ad", "out.json"}
    one, other = (anndata.read_h5ad(path / "out.h5ad") for path in (trained, folder))
    np.testing.assert_array_equal(one.obsm["X_dra"], other.obsm["X_dra"])
    assert (folder / "out.json").read_bytes() == (trained / "out.json").read_bytes()


def test_resume_without_checkpoint_starts_afresh(
    source: Path, trained: Path, tmp_path: Path
) -> None:
    result = invoke(*train_args(tmp_path, source), "--resume")
    assert result.exit_code == 0
    assert "starting from the beginning" in result.stderr.splitlines()[1]
    assert digest(tmp_path / "out.h5ad") == digest(trained / "out.h5ad")


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_outside_of_training(
    signum: int, code: int, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> None:
        os.kill(os.getpid(), signum)

    monkeypatch.setattr("dra_scvi.cli._train._score_training", interrupt)
    before = signal.getsignal(signal.SIGTERM)
    result = invoke(*train_args(tmp_path, source), "--quiet")
    assert result.exit_code == code
    assert f"Interrupted by {signal.Signals(signum).name}" in error_line(result)
    # saved before it is scored, and the checkpoint is kept where not all is done
    assert {path.name for path in tmp_path.iterdir()} == {"out.h5ad", ".out.h5ad.ckpt"}
    assert signal.getsignal(signal.SIGTERM) == before


# -- threads -----------------------------------------------------------------------------------


def test_threads_are_limited_and_restored(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    clustering = metrics.clustering

    def watch(*args: Any, **kwargs: Any) -> dict[str, Any]:
        seen.append((torch.get_num_threads(), _threads.kernel_threads()))
        return clustering(*args, **kwargs)

    monkeypatch.setattr(metrics, "clustering", watch)
    before = torch.get_num_threads()
    args = ("evaluate", trained / "out.h5ad", "--label-key", "cell_type", "--threads")
    torch.set_num_threads(3)
    try:
        assert invoke(*args, 2).exit_code == 0
        assert seen == [(1, 2)] * 2
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


# -- embed -------------------------------------------------------------------------------------


def test_embed_finds_genes_by_name(source: Path, trained: Path, tmp_path: Path) -> None:
    adata = anndata.read_h5ad(source)
    order = np.random.default_rng(0).permutation(N_GENES)
    extra = adata[:, :2].copy()
    extra.var_names = ["new_0", "new_1"]
    permuted = anndata.concat([extra, adata[:, order].copy()], axis=1, merge="first")
    permuted.write_h5ad(tmp_path / "in.h5ad")
    expected = anndata.read_h5ad(trained / "out.h5ad").obsm["X_dra"]
    for name, path in {"same": source, "permuted": tmp_path / "in.h5ad"}.items():
        output = tmp_path / f"{name}.h5ad"
        args = ("--model", trained / "model", "--output", output, "--key-added", "X_new")
        result = invoke("embed", path, *args, *SETTINGS)
        assert result.exit_code == 0, result.stderr
        embedded = anndata.read_h5ad(output)
        np.testing.assert_array_equal(embedded.obsm["X_new"], expected)
        assert list(embedded.var_names) == list(anndata.read_h5ad(path).var_names)
        assert not any("_scvi" in key for key in embedded.uns)


def test_embed_published_draws_codes_by_seed(source: Path, tmp_path: Path) -> None:
    options = {"preset": "published", "batch-size": 32, "model-dir": tmp_path / "model"}
    assert invoke(*train_args(tmp_path, source, **options)).exit_code == 0
    codes = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        args = ("--model", tmp_path / "model", "--output", tmp_path / f"{name}.h5ad")
        assert invoke("embed", source, *args, "--seed", seed, *SETTINGS).exit_code == 0
        codes[name] = anndata.read_h5ad(tmp_path / f"{name}.h5ad").obsm["X_dra"]
    np.testing.assert_array_equal(codes["a"], codes["b"])
    assert not np.array_equal(codes["a"], codes["c"])


def test_embed_names_the_first_missing_gene(source: Path, trained: Path, tmp_path: Path) -> None:
    adata = anndata.read_h5ad(source)
    adata[:, [0, 1, *range(4, N_GENES)]].write_h5ad(tmp_path / "in.h5ad")
    args = ("--model", trained / "model", "--output", tmp_path / "out.h5ad")
    result = invoke("embed", tmp_path / "in.h5ad", *args)
    assert result.exit_code == 65
    assert "2 of the model's 30 genes are missing from the data (first: 'gene_2')" in error_line(
        result
    )
    assert not (tmp_path / "out.h5ad").exists()


@pytest.mark.parametrize("command", ["embed", "info"])
@pytest.mark.parametrize(
    ("content", "code", "text"),
    [
        (None, 66, "does not exist"),
        ({}, 66, "holds no model.pt"),
        ({"model.pt": b"not a model"}, 65, "not a model saved by scvi-tools"),
    ],
)
def test_bad_model(
    command: str,
    content: dict[str, bytes] | None,
    code: int,
    text: str,
    source: Path,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "model"
    if content is not None:
        folder.mkdir()
        for name, data in content.items():
            (folder / name).write_bytes(data)
    args = {
        "embed": ("embed", source, "--model", folder, "--output", tmp_path / "out.h5ad"),
        "info": ("info", folder),
    }
    result = invoke(*args[command])
    assert text in error_line(result)
    assert result.exit_code == code
    assert not (tmp_path / "out.h5ad").exists()


def test_model_of_another_class(trained: Path, tmp_path: Path) -> None:
    content = torch.load(trained / "model" / "model.pt", weights_only=False)
    content["attr_dict"]["registry_"]["model_name"] = "SCVI"
    torch.save(content, tmp_path / "model.pt")
    result = invoke("info", tmp_path)
    assert result.exit_code == 65
    assert "is a model of class SCVI" in error_line(result)


# -- evaluate, info ----------------------------------------------------------------------------


def test_evaluate_agrees_with_train(trained: Path) -> None:
    args = ("evaluate", trained / "out.h5ad", "--label-key", "cell_type", "--json", "-")
    figures = json.loads(invoke(*args, *SETTINGS).stdout)
    expected = json.loads((trained / "out.json").read_text())
    assert figures["command"] == "evaluate"
    assert figures["settings"] == {"use_rep": "X_dra", "seed": 0}
    assert figures["kmeans"] == expected["kmeans"]
    assert figures["leiden"] == expected["leiden"]
    assert "integration" not in figures


def test_evaluate_says_how_to_get_integration(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    args = ("--label-key", "cell_type", "--batch-key", "batch")
    result = invoke("evaluate", trained / "out.h5ad", *args)
    assert result.exit_code == 2
    assert 'pip install "dra_scvi[scib]"' in error_line(result)


@pytest.mark.parametrize(
    ("option", "value", "text"),
    [
        ("--use-rep", "X_dr", "did you mean 'X_dra'? Available: 'X_dra', 'X_other'"),
        ("--label-key", "cell_typ", "did you mean 'cell_type'?"),
    ],
)
def test_evaluate_names_close_matches(option: str, value: str, text: str, trained: Path) -> None:
    args = ("--label-key", "cell_type", option, value)
    result = invoke("evaluate", trained / "out.h5ad", *args)
    assert result.exit_code == 65
    assert text in error_line(result)


def test_info(trained: Path) -> None:
    facts = json.loads(invoke("info", trained / "model", "--json", "-").stdout)["model"]
    assert facts["class"] == "DRA"
    assert facts["prior"] == "mixture"
    assert (facts["n_latent"], facts["n_genes"], facts["n_batch"]) == (10, N_GENES, 1)
    assert facts["first_genes"] == ["gene_0", "gene_1", "gene_2", "gene_3", "gene_4"]
    assert "gene_0, gene_1" in invoke("info", trained / "model").stdout


# -- benchmark ---------------------------------------------------------------------------------


def benchmark_args(source: Path, output: Path, **changes: Any) -> list[object]:
    options = {
        "label-key": "cell_type",
        "models": "pca,fa",
        "n-latent": "2,3",
        "seeds": 2,
        "output": output,
        **changes,
    }
    named = [part for name, value in options.items() for part in (f"--{name}", value)]
    return ["benchmark", source, *named, *SETTINGS]


def scored(output: Path) -> pd.DataFrame:
    return pd.read_csv(output)[["dataset", "model", "n_latent", "seed", "nmi", "leiden_nmi"]]


@pytest.fixture(scope="module")
def compared(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with what one comparison wrote: table.csv, out.json, stdout and stderr."""
    folder = tmp_path_factory.mktemp("compared")
    result = invoke(*benchmark_args(source, folder / "table.csv", json=folder / "out.json"))
    assert result.exit_code == 0, result.stderr
    (folder / "stdout").write_text(result.stdout)
    (folder / "stderr").write_text(result.stderr)
    return folder


def test_benchmark_table_is_that_of_the_library(source: Path, compared: Path) -> None:
    table = pd.read_csv(compared / "table.csv")
    expected = dra_scvi.benchmark.compare(
        anndata.read_h5ad(source),
        "cell_type",
        models=("pca", "fa"),
        n_latent=(2, 3),
        seeds=2,
        progress=False,
    )
    assert set(table["dataset"]) == {"cells"}
    for name in ("model", "n_latent", "seed", "nmi", "ari", "leiden_nmi", "fingerprint"):
        assert table[name].tolist() == expected[name].tolist()


def test_benchmark_figures_and_streams(compared: Path) -> None:
    figures = json.loads((compared / "out.json").read_text())
    table = pd.read_csv(compared / "table.csv")
    assert figures["command"] == "benchmark"
    [described] = figures["input"]
    assert (described["dataset"], described["n_cells"], described["n_types"]) == ("cells", 120, 3)
    assert figures["settings"]["n_latent"] == [2, 3]
    assert figures["settings"]["seeds"] == [0, 1]
    assert [run["nmi"] for run in figures["runs"]] == table["nmi"].tolist()
    assert figures["runs"][0]["max_epochs"] is None
    summary = dra_scvi.benchmark.summary(table).set_index("model")
    shown = (compared / "stdout").read_text()
    for row in figures["summary"]:
        assert row["nmi"] == pytest.approx(summary.loc[row["model"], "nmi"])
        assert f"{row['nmi']:.3f}" in shown
        if row["difference"] is not None:
            of_measure = dra_scvi.benchmark.summary(table, metric=row["metric"])
            expected = of_measure.set_index("model").loc[row["model"]]
            assert row["low"] == pytest.approx(expected["low"])
            assert f"{row['difference']:+.3f}" in shown
    measures = ["nmi", "ari", "leiden_nmi", "leiden_ari", "leiden1_nmi", "purity", "silhouette"]
    assert [row["metric"] for row in figures["summary"]] == list(np.repeat(measures, 2))
    for name in measures:
        for model in ("pca", "fa"):
            assert f"{summary.loc[model, name]:.3f}" in shown
    ranks = dra_scvi.benchmark.ranks(table).set_index("model")
    for row in figures["summary"]:
        assert row["rank"] == pytest.approx(ranks.loc[row["model"], "rank"])
        assert row["n_first"] == ranks.loc[row["model"], "n_first"]
        assert f"{row['rank']:.3f}" in shown
    assert "mean rank" in shown
    lines = told((compared / "stderr").read_text())
    assert len(lines) == 10
    assert lines[0].startswith(f"cells: pca, k=2, seed 0: NMI {table['nmi'][0]:.3f} in ")
    assert [line.split()[0] for line in lines[8:]] == ["wrote", "wrote"]


def test_benchmark_json_to_stdout_is_alone_there(
    source: Path, compared: Path, tmp_path: Path
) -> None:
    shutil.copy(compared / "table.csv", tmp_path)
    args = benchmark_args(source, tmp_path / "table.csv", json="-")
    result = invoke(*args, "--quiet")
    assert result.stderr == ""
    assert result.stdout == (compared / "out.json").read_text()


def test_benchmark_of_several_inputs_keeps_finished_runs(
    source: Path, compared: Path, tmp_path: Path
) -> None:
    shutil.copy(compared / "table.csv", tmp_path)
    shutil.copy(source, tmp_path / "again.h5ad")
    args = benchmark_args(source, tmp_path / "table.csv")
    result = invoke(*args, tmp_path / "again.h5ad")
    assert result.exit_code == 0, result.stderr
    lines = told(result.stderr)
    assert [line.split(":")[0] for line in lines[:8]] == ["again"] * 8
    assert lines[8] == f"kept 8 runs found in {tmp_path / 'table.csv'}"
    assert "2 data sets, k = 2, 3, 2 seeds" in " ".join(result.stdout.split())
    table, before = scored(tmp_path / "table.csv"), scored(compared / "table.csv")
    pd.testing.assert_frame_equal(table[:8], before)
    assert table["nmi"][8:].tolist() == before["nmi"].tolist()


def test_benchmark_quick_look(source: Path, tmp_path: Path) -> None:
    args = ["--label-key", "cell_type", "--models", "pca", "--output", tmp_path / "t.csv"]
    result = invoke("benchmark", source, *args, "--quick", "--seed", 5, *SETTINGS)
    assert result.exit_code == 0, result.stderr
    table = pd.read_csv(tmp_path / "t.csv")
    assert table[["n_latent", "seed", "quick"]].to_numpy().tolist() == [[10, 5, True]]
    assert " ".join(result.stdout.split()).startswith("Quick look, too short for conclusions")


def test_benchmark_says_which_runs_failed(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverge(*_: Any, **__: Any) -> None:
        raise TrainingDivergedError("elbo_train", 3, 1)

    monkeypatch.setattr(tl, "_dra", diverge)
    args = benchmark_args(source, tmp_path / "table.csv", models="pca,dra", seeds=1)
    shown = invoke(*args)
    assert shown.exit_code == 0
    assert "cells: dra, k=2, seed 0 failed: TrainingDivergedError: " in shown.stderr
    assert "dra-scvi: warning: 2 of 4 runs failed; the first: Training" in shown.stderr
    assert "DRA (2 failed)" in shown.stdout
    dra = json.loads(invoke(*args, "--json", "-").stdout)["summary"][1]
    assert (dra["model"], dra["n_failed"], dra["nmi"]) == ("dra", 2, None)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--models", "pca,scvii"], "did you mean 'scvi'"),
        (["--models", "pca,pca"], "one twice"),
        (
            ["--models", "pca,harmony"],
            "model 'harmony' integrates batches: name their column with --batch-key",
        ),
        (["--n-latent", "2,x"], "'2,x' is not a list of dimensions such as 2,10,20"),
        (["--n-latent", "2,2"], "'2,2' is not a list of dimensions"),
        (["--seeds", "0"], "--seeds"),
        (["--quick", "--seeds", "3"], "--quick sets --seeds: leave one of them out"),
        (["--quick", "--max-epochs", "3"], "--quick sets --max-epochs"),
        (["--output", "table.txt"], "'table.txt' does not end in .csv"),
        (["other/cells.h5ad"], "two inputs are called 'cells'"),
    ],
)
def test_benchmark_wrong_usage(
    options: list[str], text: str, source: Path, tmp_path: Path
) -> None:
    args = ["--label-key", "cell_type", "--output", tmp_path / "table.csv", "--quiet"]
    result = invoke("benchmark", source, *args, *options)
    assert text in error_line(result)
    assert result.exit_code == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "case", ["empty", "missing", "layer", "label", "batch", "no label", "negative"]
)
def test_benchmark_checks_all_inputs_before_the_first_run(
    case: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare, changes, code, text = BAD_INPUTS[case]
    monkeypatch.chdir(tmp_path)
    prepare(source, Path("in.h5ad"))
    args = benchmark_args(source, Path("table.csv"), **changes)
    result = invoke(*args, "in.h5ad")
    if case == "no label":
        text = "in.h5ad: --label-key cell_type is missing (NaN) in 3 of 120 cells"
    assert text in error_line(result)
    assert result.exit_code == code
    assert not Path("table.csv").exists()


def test_benchmark_replaces_other_files_only_if_forced(source: Path, tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("precious")
    args = benchmark_args(source, path, models="pca", seeds=1)
    result = invoke(*args)
    assert result.exit_code == 73
    assert "is not a table of a comparison; pass --force" in error_line(result)
    assert path.read_text() == "precious"
    for _ in range(2):
        result = invoke(*args, "--force")
        assert result.exit_code == 0
        assert len(scored(path)) == 2
    assert "kept 2 runs" in result.stderr


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_benchmark_keeps_finished_runs(
    signum: int,
    code: int,
    source: Path,
    compared: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    args = benchmark_args(source, tmp_path / "table.csv")
    with monkeypatch.context() as patched:
        score, calls = _compare.score, []

        def stop(*given: Any) -> dict[str, Any]:
            calls.append(given)
            if len(calls) == 3:
                os.kill(os.getpid(), signum)
            return score(*given)

        patched.setattr(_compare, "score", stop)
        result = invoke(*args, "--json", tmp_path / "out.json")
    assert result.exit_code == code
    assert told(result.stderr)[2:] == [
        f"{tmp_path / 'table.csv'} keeps finished runs; the same command goes on from there",
        f"dra-scvi: error: Interrupted by {signal.Signals(signum).name}.",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["table.csv"]
    assert len(scored(tmp_path / "table.csv")) == 2
    result = invoke(*args, "--json", tmp_path / "out.json")
    assert result.exit_code == 0
    assert "kept 2 runs" in result.stderr
    pd.testing.assert_frame_equal(
        scored(tmp_path / "table.csv"), scored(compared / "table.csv"), check_exact=True
    )


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_benchmark_interrupted_while_a_model_trains(
    signum: int, code: int, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = scvi.train.TrainingPlan.training_step

    def stop(self: Any, *given: Any) -> Any:
        os.kill(os.getpid(), signum)
        return step(self, *given)

    monkeypatch.setattr(scvi.train.TrainingPlan, "training_step", stop)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    changes = {"models": "pca,scvi", "max-epochs": 50, "n-latent": "2"}
    try:
        result = invoke(*benchmark_args(source, tmp_path / "table.csv", **changes))
    finally:
        for number, handler in before.items():  # Lightning leaves SIGINT ignored
            signal.signal(number, handler)
    assert result.exit_code == code
    assert result.stderr.splitlines()[-1] == (
        f"dra-scvi: error: Interrupted by {signal.Signals(signum).name}."
    )
    assert scored(tmp_path / "table.csv")["model"].tolist() == ["pca"]


# -- demo --------------------------------------------------------------------------------------


@pytest.fixture
def short_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train for two epochs only."""
    run = demo_job.run
    monkeypatch.setattr(demo_job, "run", lambda *args: run(*args, max_epochs=2))


@pytest.mark.usefixtures("short_demo")
def test_demo(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    folder.mkdir()
    (folder / "notes.txt").write_text("precious")
    (folder / "metrics.json").write_text("old")
    result = invoke("demo", "--output", folder, "--force", *SETTINGS)
    assert result.exit_code == 0, result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]
    files = {"pbmc68k.h5ad", "umap.png", "training.png", "metrics.json", "notes.txt"}
    assert {path.name for path in folder.iterdir()} == files
    figures = json.loads((folder / "metrics.json").read_text())
    assert set(figures) == {"schema_version", "input", "settings", "embeddings"}
    assert figures["settings"] == {"n_latent": 10, "seed": 0, "max_epochs": 2}
    told = result.stderr.splitlines()[-6:]
    results = [
        "Scores, as NMI",
        "Time",
        "umap.png",
        "training.png",
        "pbmc68k.h5ad",
        "What follows",
    ]
    assert [line.split(":")[0] for line in told] == results
    assert f"{figures['embeddings']['dra']['kmeans']['nmi']:.3f}" in told[0]
    adata = anndata.read_h5ad(folder / "pbmc68k.h5ad")
    for name, title in (("pca", "PCA"), ("scvi", "scVI"), ("dra", "DRA")):
        scores = figures["embeddings"][name]
        [row] = [line for line in result.stdout.splitlines() if f" {title} " in line]
        for method, score in (("kmeans", "nmi"), ("kmeans", "ari"), ("leiden", "nmi")):
            assert f"{scores[method][score]:.3f}" in row
        points = adata.obsm[f"X_{name}"]
        assert points.shape == (700, 10)
        assert adata.obsm[f"X_umap_{name}"].shape == (700, 2)
        expected = metrics.clustering(points, adata.obs["cell_type"], "leiden")
        assert scores["leiden"] == pytest.approx(expected)
    for name in ("umap.png", "training.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    assert not any(key.startswith("_scvi") for key in [*adata.obs, *adata.uns])


def test_demo_leaves_nothing_when_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(folder: Path, *_: Any) -> None:
        (folder / "umap.png").touch()
        raise TrainingDivergedError("elbo_train", 3, 1)

    monkeypatch.setattr(demo_job, "run", fail)
    result = invoke("demo", "--output", tmp_path / "demo", "--quiet")
    assert result.exit_code == 70
    assert list(tmp_path.iterdir()) == []


def test_demo_does_not_touch_a_full_folder(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("precious")
    result = invoke("demo", "--output", tmp_path)
    assert result.exit_code == 73
    assert "pass --force" in error_line(result)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


# -- real data ---------------------------------------------------------------------------------


def test_train_on_real_cells(tmp_path: Path) -> None:
    folder = os.environ.get("DRA_SCVI_DATA")
    if folder is None:
        pytest.skip("DRA_SCVI_DATA is not set")
    source = Path(folder) / "zeisel_ewce_3005x200.h5ad"
    labels = [key for key in anndata.read_h5ad(source).obs if key in ("cell_type", "level1class")]
    args = train_args(tmp_path, source, **{"label-key": labels[0], "max-epochs": 2})
    result = invoke(*args)
    assert result.exit_code == 0, result.stderr
    assert anndata.read_h5ad(tmp_path / "out.h5ad").obsm["X_dra"].shape == (3005, 10)
    assert json.loads((tmp_path / "out.json").read_text())["kmeans"]["n_clusters"] == 7
