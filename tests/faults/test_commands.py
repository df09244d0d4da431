"""Commands: their words, their streams and exit codes, tables that several processes add to."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import dra_scvi
from dra_scvi import DRA, benchmark, metrics, pl
from dra_scvi.benchmark._table import Table
from dra_scvi.cli import exit_code
from tests.helpers import cells, fit, invoke
from tests.served import RUN, served

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


QUICK = ("--max-epochs", 1, "--batch-size", 32, "--accelerator", "cpu")


def shell(line: str, command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a line of bash, in which ``"$@"`` is a command."""
    return subprocess.run(
        ["bash", "-c", line, "bash", *command],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cells with a layer and an embedding."""
    adata = cells()
    adata.layers["counts"] = adata.X.copy()
    adata.obsm["X_dra"] = np.random.default_rng(0).normal(size=(adata.n_obs, 3))
    path = tmp_path_factory.mktemp("input") / "cells.h5ad"
    adata.write_h5ad(path)
    return path


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "model"
    fit(cells()).save(str(folder))
    return folder


# -- scores of integration ---------------------------------------------------------------------


def test_integration_on_the_command_line(source: Path) -> None:
    """`evaluate --batch-key` writes JSON, with null for pcr, and shows its scores without."""
    pytest.importorskip("scib_metrics")
    args = ("evaluate", source, "--label-key", "cell_type", "--batch-key", "batch")
    result = invoke(*args, "--json", "-")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)["integration"]
    adata = anndata.read_h5ad(source)
    expected = metrics.integration(adata.obsm["X_dra"], adata.obs["cell_type"], adata.obs["batch"])
    assert found["pcr"] is None
    for name, value in expected.items():
        if np.isfinite(value):
            assert found[name] == pytest.approx(value, abs=1e-6), name
    shown = invoke(*args).stdout
    assert f"{found['total']:.3f}" in shown
    assert "bio conservation" in shown


def test_figures_that_are_not_known_are_null(source: Path, tmp_path: Path) -> None:
    """A figure that is not finite is null in JSON, rather than the end of the command."""
    from dra_scvi.cli._result import _without_nan

    figures = {"a": [float("nan"), 1], "b": {"c": np.float32("inf")}, "d": "x", "e": None}
    assert _without_nan(figures) == {"a": [None, 1], "b": {"c": None}, "d": "x", "e": None}


# -- traces ------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["train", "embed", "evaluate", "benchmark", "info", "demo"])
def test_debug_shows_the_trace(command: str, source: Path, tmp_path: Path) -> None:
    """With --debug every command shows where an error comes from, and without none does."""
    none = tmp_path / "none.h5ad"
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    args: dict[str, tuple[object, ...]] = {
        "train": (none, "--output", tmp_path / "a.h5ad"),
        "embed": (source, "--model", none, "--output", tmp_path / "a.h5ad"),
        "evaluate": (none, "--label-key", "cell_type"),
        "benchmark": (none, "--label-key", "cell_type", "--output", tmp_path / "a.csv"),
        "info": (none,),
        "demo": ("--output", tmp_path / "full"),
    }
    quiet, loud = invoke(command, *args[command]), invoke(command, *args[command], "--debug")
    assert quiet.exit_code == loud.exit_code > 1
    assert "Traceback" not in quiet.stderr
    assert "Traceback (most recent call last)" in loud.stderr
    assert loud.stderr.splitlines()[-1] == quiet.stderr.splitlines()[-1]


def test_debug_shows_the_trace_of_what_fails_while_results_are_written(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error after the work, as of a full disk, has a trace as well."""
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        args = ["evaluate", source, "--label-key", "cell_type", "--json", "-", "--debug"]
        result = subprocess.run(
            served(*args),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=600,
            check=False,
        )
    finally:
        os.close(full)
    assert result.returncode == 1, result.stderr
    assert "Traceback (most recent call last)" in result.stderr
    assert "No space left on device" in result.stderr.splitlines()[-1]


# -- words -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "options", "words"),
    [
        ("train", ("--layer", "count"), "--layer count is not a key of layers"),
        ("train", ("--batch-key", "batches"), "--batch-key batches is not a column of obs"),
        ("train", ("--label-key", "cell typ"), "--label-key 'cell typ' is not a column of obs"),
        ("evaluate", ("--use-rep", "X_dr"), "--use-rep X_dr is not a key of obsm"),
        ("benchmark", ("--batch-key", "batches"), "--batch-key batches is not a column of obs"),
        ("benchmark", ("--n-latent", "50"), "--n-latent 50: PCA and factor analysis"),
    ],
)
def test_messages_name_options(
    command: str, options: tuple[str, ...], words: str, source: Path, tmp_path: Path
) -> None:
    """On the command line a message names the option that was given, not an argument."""
    output = {"train": "a.h5ad", "benchmark": "a.csv"}
    args: list[object] = [command, source, *options]
    if command in output:
        args += ["--output", tmp_path / output[command]]
    if command != "train" and "--label-key" not in options:
        args += ["--label-key", "cell_type"]
    last = invoke(*args).stderr.splitlines()[-1]
    assert words in last
    for word in ("layer=", "batch_key", "label_key", "use_rep", "n_latent", "adata."):
        assert word not in last


def test_messages_keep_names_of_files(source: Path, tmp_path: Path) -> None:
    """What looks like an argument in the name of a file stays as it is."""
    path = tmp_path / "layer=1_batch_key.h5ad"
    result = invoke("train", path, "--output", tmp_path / "out.h5ad")
    assert result.exit_code == 66
    assert f"{path} does not exist" in result.stderr


def edited(source: Path, folder: Path, change: Callable[[Any], Any]) -> Path:
    adata = anndata.read_h5ad(source)
    adata = change(adata) or adata
    adata.write_h5ad(folder / "in.h5ad")
    return folder / "in.h5ad"


def test_batches_that_are_a_measurement(source: Path, tmp_path: Path) -> None:
    """A --batch-key of hundreds of numbers is trained on, with a word."""

    def change(adata: Any) -> Any:
        many = anndata.concat([adata] * 3, index_unique="-")
        many.obs["depth"] = np.arange(many.n_obs, dtype=float)
        return many

    path = edited(source, tmp_path, change)
    args = ("--output", tmp_path / "out.h5ad", "--batch-key", "depth")
    result = invoke("train", path, *args, *QUICK)
    assert result.exit_code == 0, result.stderr
    assert "warning: --batch-key depth has 180 different numbers in 180 cells" in result.stderr


@pytest.mark.parametrize("name", ["batch", "sample", "Donor"])
def test_batches_that_are_not_used(name: str, source: Path, tmp_path: Path) -> None:
    """A column of batches that nobody asked to integrate is mentioned, until it is used."""
    path = edited(
        source, tmp_path, lambda a: setattr(a, "obs", a.obs.rename(columns={"batch": name}))
    )
    args = ("train", path, "--output", tmp_path / "out.h5ad", *QUICK, "--force")
    assert (
        f"obs['{name}'] has 2 values and is not used; --batch-key {name}" in invoke(*args).stderr
    )
    assert "is not used" not in invoke(*args, "--batch-key", name).stderr


def test_more_genes_than_there_are(source: Path, tmp_path: Path) -> None:
    """--n-genes above the number of genes takes them all, with a word."""
    args = ("--output", tmp_path / "out.h5ad", "--n-genes", 500)
    result = invoke("train", source, *args, *QUICK)
    assert "--n-genes 500: INPUT has 12 genes, and all are taken" in result.stderr


def test_all_of_many_genes(source: Path, tmp_path: Path) -> None:
    """More than 5,000 genes, all of them trained on: a word on the option that takes fewer."""

    def change(adata: Any) -> Any:
        others = sparse.csr_matrix((adata.n_obs, 5_001 - adata.n_vars), dtype=np.float32)
        return anndata.AnnData(sparse.hstack([adata.X, others], format="csr"), obs=adata.obs)

    args = ("--output", tmp_path / "out.h5ad")
    result = invoke("train", edited(source, tmp_path, change), *args, *QUICK)
    assert result.exit_code == 0, result.stderr
    assert "with all 5001 genes this takes long; --n-genes 2000 takes" in result.stderr
    assert "takes long" not in invoke("train", source, *args, *QUICK, "--force").stderr


WRONG_KINDS: dict[str, tuple[Callable[[Any], Any], type[Exception], str]] = {
    "no such embedding": (
        lambda a: metrics.clustering(a, "cell_type", use_rep="x"),
        KeyError,
        r"use_rep='x' is not a key of adata\.obsm; did you mean 'X'\? Available: 'X'",
    ),
    "no embedding yet": (
        lambda a: metrics.purity(a, "cell_type"),
        KeyError,
        r"use_rep='X_dra' is not a key of adata\.obsm",
    ),
    "no such column": (
        lambda a: metrics.clustering(a, "celltype", use_rep="X"),
        KeyError,
        r"labels='celltype' is not a column of adata\.obs; did you mean 'cell_type'",
    ),
    "a key of an array": (
        lambda a: metrics.cluster(a.obsm["X"], n_clusters=2, use_rep="X"),
        TypeError,
        "use_rep='X' names a key of adata.obsm: pass adata in place of the embedding",
    ),
    "two keys": (
        lambda a: metrics.leiden_matched(a, 2, use_rep=["X"]),
        TypeError,
        r"use_rep takes the name of a key of adata\.obsm, not \['X'\]",
    ),
    "an AnnData of labels": (
        lambda a: metrics.clustering(a.obsm["X"], a),
        TypeError,
        "not an AnnData; pass a column of its obs",
    ),
    "names": (
        lambda a: metrics.clustering(a.obsm["X"], "cell_type"),
        TypeError,
        r"labels must hold one value per cell, not the name 'cell_type'; pass adata\.obs",
    ),
    "a name": (lambda a: metrics.cluster("X_dra"), TypeError, "not the name 'X_dra'"),
    "ragged": (lambda a: metrics.cluster([[1], [1, 2]]), TypeError, "embedding must be a matrix"),
    "texts": (lambda a: metrics.cluster([["a", "b"]]), TypeError, "embedding must be a matrix"),
    "sparse": (lambda a: metrics.cluster(a.X), TypeError, "not a sparse one"),
    "a count": (
        lambda a: metrics.cluster(a.obsm["X"], n_clusters=2.5),
        TypeError,
        "n_clusters must be a whole number, not 2.5",
    ),
    "too many": (
        lambda a: metrics.cluster(a.obsm["X"], n_clusters=99),
        ValueError,
        "n_clusters=99 is more than the 60 cells",
    ),
    "resolution": (
        lambda a: metrics.cluster(a.obsm["X"], "leiden", resolution=-1.0),
        ValueError,
        "resolution must be above 0",
    ),
    "a seed": (
        lambda a: metrics.clustering(a.obsm["X"], a.obs["cell_type"], seed="0"),
        TypeError,
        "seed must be a whole number, not '0'",
    ),
    "a method": (
        lambda a: metrics.cluster(a.obsm["X"], ["kmeans"]),
        ValueError,
        "Unknown clustering method",
    ),
    "batches": (
        lambda a: metrics.integration(a.obsm["X"], a.obs["cell_type"], "batch"),
        TypeError,
        "batches must hold one value per cell, not the name 'batch'",
    ),
    "two columns": (
        lambda a: metrics.clustering(a.obsm["X"], a.obs[["cell_type", "batch"]]),
        ValueError,
        "not an array of shape",
    ),
    "a path": (lambda a: benchmark.compare("a.h5ad", "x"), TypeError, "read it first"),
    "a column": (
        lambda a: benchmark.compare(a, a.obs["cell_type"]),
        TypeError,
        "label_key takes one name, not Series",
    ),
    "two names": (
        lambda a: benchmark.compare(a, "cell_type", ["batch"]),
        TypeError,
        "batch_key takes one name, not list",
    ),
    "text of k": (
        lambda a: benchmark.compare(a, "cell_type", n_latent="2"),
        TypeError,
        "n_latent takes a whole number or a list of them, not '2'",
    ),
    "no table": (lambda a: benchmark.summary("t.csv"), TypeError, "read it first"),
    "pl: no table": (lambda a: pl.benchmark([1, 2]), TypeError, "table must be the DataFrame"),
    "pl: no AnnData": (lambda a: pl.embedding(a.obsm["X"]), TypeError, "must be an AnnData"),
    "pl: number": (lambda a: pl.embedding(a, "X", color=3), TypeError, "color takes a name"),
    "pl: no model": (lambda a: pl.training("model"), TypeError, "a trained model"),
}


@pytest.mark.parametrize("case", WRONG_KINDS)
def test_arguments_of_the_wrong_kind(case: str) -> None:
    """An argument of another kind is refused by its name, with what is wanted in its place."""
    call, error, words = WRONG_KINDS[case]
    adata = cells()
    adata.obsm["X"] = np.random.default_rng(0).normal(size=(adata.n_obs, 2))
    with pytest.raises(error, match=words):
        call(adata)


def test_arguments_of_the_right_kind() -> None:
    """Lists, tables, one-column tables and tensors are taken for what they hold."""
    import torch

    points = np.random.default_rng(0).normal(size=(60, 2))
    labels = ["a", "b"] * 30
    wanted = metrics.clustering(points, labels)
    assert metrics.clustering(points.tolist(), pd.Series(labels)) == wanted
    assert metrics.clustering(pd.DataFrame(points), pd.DataFrame({"l": labels})) == wanted
    assert metrics.clustering(torch.tensor(points), np.array(labels)) == wanted


# -- streams and exit codes --------------------------------------------------------------------


@pytest.mark.parametrize("options", [(), ("--json", "-"), ("--help",)])
def test_reader_that_leaves(options: tuple[str, ...], model_dir: Path) -> None:
    """`info | true` ends quietly, with 0."""
    command = served("info", model_dir, *options)
    result = shell('"$@" | true; exit "${PIPESTATUS[0]}"', command)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
@pytest.mark.slow
def test_closed_streams(closed: str, source: Path, tmp_path: Path) -> None:
    """Training ends well without an output stream, or without one for errors."""
    out = tmp_path / "out.h5ad"
    args = ("train", source, "--output", out, *QUICK)
    result = shell(f'"$@" {closed}', [sys.executable, "-c", RUN, *map(str, args)])
    assert result.returncode == 0, result.stderr
    assert out.exists()


def test_reader_of_errors_that_leaves(source: Path, tmp_path: Path) -> None:
    """Training goes on when nobody reads on what it tells."""
    out = tmp_path / "out.h5ad"
    line = '"$@" 2>&1 >/dev/null | true; exit "${PIPESTATUS[0]}"'
    assert shell(line, served("train", source, "--output", out, *QUICK)).returncode == 0
    assert out.exists()


def test_exit_code_1_is_documented() -> None:
    """The help says what exit code 1 is: the system refuses, or a bug."""
    shown = " ".join(invoke("--help").stdout.split())
    assert "1 refused by the system (no permission, disk full, out of memory) or a bug" in shown


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (PermissionError(13, "Permission denied", "a.h5ad"), "a.h5ad: Permission denied; choose"),
        (OSError(28, "No space left on device", "a.h5ad"), "No space left on device; free some"),
        (MemoryError(), "not enough memory; leave the counts in their file with --out-of-core"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "not enough memory"),
        (np._core._exceptions._ArrayMemoryError((9,), np.dtype(float)), "not enough memory"),
    ],
)
def test_what_the_system_refuses(
    error: Exception, words: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Permission, room and memory are one sentence each, and exit code 1."""

    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(dra_scvi.tl, "_dra", fail)
    result = invoke("train", source, "--output", tmp_path / "out.h5ad", "--quiet")
    assert result.exit_code == exit_code(error) == 1
    assert words in result.stderr
    assert "unexpected" not in result.stderr


# -- one table, several processes --------------------------------------------------------------

ADD_ROWS = """
import sys
from dra_scvi.benchmark._table import Table

path, first = sys.argv[1], int(sys.argv[2])
table = Table(path)
for seed in range(first, first + 25):
    table.add({"dataset": "a", "model": "pca", "n_latent": 2, "seed": seed, "status": "ok"})
"""


def test_rows_of_four_processes(tmp_path: Path) -> None:
    """Four processes that add 25 rows each to one table leave 100, and nothing beside it."""
    path = tmp_path / "table.csv"
    commands = [served(path, 25 * n, code=ADD_ROWS) for n in range(4)]
    processes = [subprocess.Popen(command) for command in commands]
    assert [process.wait(timeout=600) for process in processes] == [0] * 4
    assert sorted(pd.read_csv(path)["seed"]) == list(range(100))
    assert [file.name for file in tmp_path.iterdir()] == ["table.csv"]


@pytest.mark.slow
def test_rows_of_two_commands(source: Path, tmp_path: Path) -> None:
    """Two benchmark commands at a time on one table keep the rows of both."""
    path = tmp_path / "table.csv"
    args = ["benchmark", str(source), "--label-key", "cell_type", "--output", str(path)]
    options = ["--models", "pca,fa", "--n-latent", "2,3", "--seeds", "3", "--quiet"]
    commands = [served(*args, *options, "--seed", seed) for seed in (0, 3)]
    processes = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for command in commands]
    assert [process.wait(timeout=600) for process in processes] == [0, 0]
    table = pd.read_csv(path)
    assert len(table) == 24
    assert sorted(table["seed"].unique()) == list(range(6))


def test_table_through_a_link(tmp_path: Path) -> None:
    """A table that is a link is added to where it points."""
    real, link = tmp_path / "real.csv", tmp_path / "link.csv"
    row = {"dataset": "a", "model": "pca", "n_latent": 2, "status": "ok"}
    Table(real).add({**row, "seed": 0})
    link.symlink_to(real)
    Table(link).add({**row, "seed": 1})
    assert link.is_symlink()
    assert pd.read_csv(real)["seed"].tolist() == [0, 1]


def test_options_reach_the_model(source: Path, tmp_path: Path) -> None:
    """What is asked for on the command line is what the saved model was trained with."""
    given = {
        **{"n-hidden": "16,8", "n-hidden-discriminator": "4", "dropout-rate": 0.3, "n-latent": 3},
        **{"prior": "uniform", "divergence": "jensen-shannon", "learning-rate": 0.01, "seed": 5},
        **{"model-dir": tmp_path / "model", "json": tmp_path / "out.json"},
    }
    options = [part for name, value in given.items() for part in (f"--{name}", value)]
    result = invoke("train", source, "--output", tmp_path / "out.h5ad", *options, *QUICK)
    assert result.exit_code == 0, result.stderr
    model = DRA.load(str(tmp_path / "model"), adata=cells())
    found = model.init_arguments
    wanted = {"n_hidden": [16, 8], "n_hidden_discriminator": [4], "dropout_rate": 0.3}
    wanted |= {"prior": "uniform", "divergence": "jensen-shannon", "n_latent": 3}
    for name, value in wanted.items():
        shown = list(found[name]) if isinstance(found[name], tuple) else found[name]
        assert shown == value, name
    settings = json.loads((tmp_path / "out.json").read_text())["settings"]
    assert (settings["learning_rate"], settings["seed"], settings["batch_size"]) == (0.01, 5, 32)


@pytest.mark.parametrize("name", ["seed=01", "seed=1", "model_dir", "n_latent=08"])
def test_names_that_look_like_arguments(name: str, tmp_path: Path) -> None:
    """A folder that is named like an argument is shown as it was typed, in one line."""
    place = tmp_path / name / "model"
    done = subprocess.run(
        [sys.executable, "-m", "dra_scvi", "info", str(place)], capture_output=True, text=True
    )
    assert done.returncode == 66, done.stderr
    assert done.stderr.startswith(f"dra-scvi: error: {place} does not exist")
    assert done.stderr.count("\n") == 1
    beside = subprocess.run(
        [sys.executable, "-m", "dra_scvi", "info", name],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    assert beside.stderr.startswith(f"dra-scvi: error: {name} does not exist"), beside.stderr


def test_more_processes_than_cores(source: Path, tmp_path: Path) -> None:
    """``--devices 999`` on a machine of a few cores is refused before a process is started."""
    output = tmp_path / "out.h5ad"
    run = invoke("train", source, "--output", output, "--devices", 999, *QUICK)
    assert run.exit_code not in (0, 1)
    assert "--devices 999" in run.output
    assert not list(tmp_path.glob("out*"))
