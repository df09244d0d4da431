"""Messages of the command line: in its own words, with the exit code that belongs to them."""

from __future__ import annotations

import os
import re
import signal
import sys
from typing import TYPE_CHECKING, Any

import anndata
import numpy as np
import pytest
from click.testing import CliRunner
from lightning.pytorch.callbacks import LambdaCallback
from scipy import sparse

from dra_scvi import benchmark, tl
from dra_scvi.cli import program
from tests.helpers import cells, fit

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from anndata import AnnData
    from click.testing import Result

QUICK = ("--max-epochs", 1, "--accelerator", "cpu", "--n-hidden", 8, "--n-latent", 2)
CPU: dict[str, Any] = {"accelerator": "cpu"}
PYTHON = re.compile(
    r"adata|anndata\.|sc\.pp|scanpy|\w\(\)|\b[a-z]+_?[a-z]*=(?!=)|\.copy|\bNone\b(?! of)|\bTrue\b"
    r"|Error\b|n_latent|batch_size|_key\b|resume\b(?<!--resume)|[a-z]\.[a-z]+_[a-z]+"
)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Return what runs a command in a folder of its own, as if it had been typed."""
    monkeypatch.chdir(tmp_path)

    def start(*args: object) -> Result:
        words = [str(arg) for arg in args]
        monkeypatch.setattr(sys, "argv", ["dra-scvi", *words])
        return CliRunner().invoke(program, words)

    return start


def fractions(adata: AnnData) -> None:
    adata.X = adata.X * 0.5


def elsewhere(adata: AnnData) -> None:
    adata.layers["counts"], adata.layers["half"] = adata.X.copy(), adata.X * 0.5


def before(adata: AnnData) -> None:
    adata.raw = adata.copy()
    fractions(adata)


def nothing(adata: AnnData) -> None:
    adata.X = None


def gaps(adata: AnnData) -> None:
    adata.obs["batch"] = ["a", None] * 30


def silent(adata: AnnData) -> None:
    adata.X = adata.X.toarray()
    adata.X[:3] = 0
    adata.obs_names = ["a", "a", *adata.obs_names[2:]]


def alike(adata: AnnData) -> None:
    adata.var_names = ["a", "a", *adata.var_names[2:]]


def large(adata: AnnData) -> None:
    adata.X = adata.X.toarray()
    adata.X[0, 0] = 2**25


def antibodies(adata: AnnData) -> None:
    adata.var["feature_types"] = ["Gene Expression"] * 10 + ["Antibody Capture"] * 2


def embedded(adata: AnnData) -> None:
    adata.obsm["X_dra"] = sparse.csr_matrix(np.ones((60, 2)))
    adata.obsm["gone"] = np.full((60, 2), np.nan)


def renamed(adata: AnnData) -> None:
    adata.var_names = [f"z{i}" for i in range(12)]


PUBLISHED = ("--preset", "published", "--max-epochs", 1, "--n-latent", 2, "--accelerator", "cpu")
MESSAGES = [
    ("train", fractions, QUICK, "with --layer"),
    ("train", elsewhere, (*QUICK, "--layer", "half"), "X, which is read without --layer"),
    ("train", before, QUICK, "raw, which has to become X first"),
    ("train", nothing, QUICK, "with --layer"),
    ("train", gaps, (*QUICK, "--batch-key", "batch"), "--batch-key batch: 30 of 60"),
    ("train", gaps, (*QUICK, "--label-key", "batch"), "--label-key batch: 30 of 60"),
    ("train", silent, QUICK, "leave them out of INPUT"),
    ("train", silent, PUBLISHED, "leave them out of INPUT"),
    ("train", None, (*PUBLISHED, "--batch-size", 128), "Lower --batch-size."),
    ("train", alike, QUICK, "Give every gene a name"),
    ("train", large, QUICK, "rounds them"),
    ("train", antibodies, QUICK, "2 Antibody Capture"),
    ("train", None, (*QUICK, "--layer", "count"), "--layer count is not a key of layers"),
    ("train", None, (*QUICK, "--learning-rate", 1e9), "(--learning-rate)"),
    ("embed", fractions, (), "put counts into X, which the model reads"),
    ("embed", before, (), "put counts into X, which the model reads"),
    ("embed", nothing, (), "the model reads it"),
    ("embed", alike, (), "gene names of the input are not unique"),
    ("embed", renamed, (), "no name matches"),
    ("evaluate", embedded, (), "not a sparse one"),
    ("evaluate", embedded, ("--use-rep", "gone"), "NaN or infinite values in 60"),
    ("evaluate", None, (), "--use-rep X_dra is not a key of obsm"),
    ("benchmark", fractions, (), "with --layer"),
    ("benchmark", None, ("--models", "pca", "--n-latent", 70), "--n-latent 70"),
]


@pytest.mark.parametrize(("command", "change", "options", "words"), MESSAGES)
def test_messages_speak_of_options_and_not_of_python(
    tmp_path: Path,
    run: Callable[..., Result],
    command: str,
    change: Callable[[AnnData], None] | None,
    options: tuple[object, ...],
    words: str,
) -> None:
    """What can be done about an error is said in options, and in no line of Python."""
    adata = cells()
    if change is not None:
        change(adata)
    adata.write_h5ad("cells.h5ad")
    if command == "embed":
        fit(cells()).save("model")
    usual = {
        "train": ("--output", "out.h5ad"),
        "embed": ("--output", "out.h5ad", "--model", "model"),
        "evaluate": ("--label-key", "cell_type"),
        "benchmark": ("--label-key", "cell_type", "--output", "table.csv"),
    }
    done = run(command, "cells.h5ad", *usual[command], *options)
    assert words in done.stderr, done.stderr
    assert not PYTHON.search(done.stderr.replace("cells.h5ad", "")), done.stderr


def test_a_new_batch_of_cells_to_embed(run: Callable[..., Result]) -> None:
    """`embed` of a batch that the model does not know names it, and no argument of Python."""
    fit(cells(), batch_key="batch").save("model")
    adata = cells()
    adata.obs["batch"] = "new"
    adata.write_h5ad("cells.h5ad")
    done = run("embed", "cells.h5ad", "--model", "model", "--output", "out.h5ad")
    assert done.exit_code == 65, done.stderr
    assert "'new'" in done.stderr
    assert "obs['batch']" in done.stderr
    assert not PYTHON.search(done.stderr.replace("cells.h5ad", "")), done.stderr


@pytest.mark.parametrize("value", ["nan", "inf"])
@pytest.mark.parametrize("option", ["--learning-rate", "--dropout-rate", "--beta1", "--leak"])
def test_numbers_are_finite(run: Callable[..., Result], option: str, value: str) -> None:
    """An option of nan or inf is a wrong use of the command, and nothing is read."""
    done = run(
        "train", "none.h5ad", "--output", "out.h5ad", "--preset", "published", option, value
    )
    assert done.exit_code == 2, done.stderr
    assert option in done.stderr


@pytest.mark.parametrize("name", ["tpu", "mps"])
def test_an_accelerator_that_is_not_there_is_named(
    tmp_path: Path, run: Callable[..., Result], name: str
) -> None:
    """An accelerator that this machine lacks is refused by its name, also from a file."""
    (tmp_path / "options.yaml").write_text(f"accelerator: {name}\n")
    for options in (("--accelerator", name), ("--config", "options.yaml")):
        done = run("train", "none.h5ad", "--output", "out.h5ad", *options)
        assert done.exit_code == 2, done.stderr
        assert f"--accelerator {name}: there is none here; choose one of auto, cpu" in done.stderr


@pytest.mark.parametrize("form", ["two words", "one word", "file"])
def test_a_column_with_the_name_of_an_option_is_shown_as_it_is(
    tmp_path: Path, run: Callable[..., Result], form: str
) -> None:
    """A column `n_latent` is no `--n-latent`, however it was named."""
    adata = cells()
    adata.obs["n_latent"] = ["a", None] * 30
    adata.write_h5ad("cells.h5ad")
    (tmp_path / "options.yaml").write_text("batch-key: n_latent\n")
    options: dict[str, tuple[Any, ...]] = {
        "two words": ("--batch-key", "n_latent"),
        "one word": ("--batch-key=n_latent",),
        "file": ("--config", "options.yaml"),
    }
    done = run("train", "cells.h5ad", "--output", "out.h5ad", *options[form])
    assert "--batch-key n_latent: 30 of 60 cells without a value in obs['n_latent']" in done.stderr


def test_a_part_of_the_genes_is_not_called_other_names(run: Callable[..., Result]) -> None:
    """Cells with a third of the model's genes are not said to have names such as ''."""
    fit(cells()).save("model")
    cells()[:, :4].copy().write_h5ad("cells.h5ad")
    done = run("embed", "cells.h5ad", "--model", "model", "--output", "out.h5ad")
    assert done.exit_code == 65
    assert "only 4 match, and the data hold no other genes" in done.stderr
    assert "''" not in done.stderr


def _diverge(adata: AnnData, path: Path) -> None:
    tl.dra(adata, max_epochs=1, train_kwargs={"plan_kwargs": {"lr": 1e30}}, **CPU)


def _interrupt(adata: AnnData, path: Path) -> None:
    stop = LambdaCallback(on_train_epoch_end=lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    tl.dra(adata, max_epochs=2, checkpoint=path / "c", train_kwargs={"callbacks": [stop]}, **CPU)


def _compare(adata: AnnData, path: Path) -> None:
    (path / "table.csv").write_text("no table\n")
    benchmark.compare(adata, "cell_type", models="pca", output=path / "table.csv")


def _transfer(adata: AnnData, path: Path) -> None:
    adata[:, ::-1].copy().write_h5ad(path / "cells.h5ad")
    query = anndata.read_h5ad(path / "cells.h5ad", backed="r")
    tl.transfer_labels(fit(adata), query, "cell_type")


@pytest.mark.parametrize(
    ("work", "words"),
    [
        (_diverge, "Lower the learning rate"),
        (_interrupt, "The same call with `resume=True` goes on"),
        (_compare, "pass overwrite=True to replace it"),
        (_transfer, r"read them into memory \(adata.to_memory\(\)\)"),
    ],
)
def test_messages_of_python_name_no_option(
    tmp_path: Path, work: Callable[[AnnData, Path], None], words: str
) -> None:
    """Who calls a function is told of arguments, and of no option of a command."""
    with pytest.raises((ValueError, RuntimeError, FileExistsError), match=words) as caught:
        work(cells(), tmp_path)
    assert "--" not in str(caught.value)
