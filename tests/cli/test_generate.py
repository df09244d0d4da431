"""Tests of the generate command: cells of a saved model, equal bytes, exit codes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import anndata
import numpy as np
import pytest
from click.testing import CliRunner

from dra_scvi import DRA, PublishedDRA
from dra_scvi.cli import program
from tests.helpers import QUIET, cells, fit

if TYPE_CHECKING:
    from pathlib import Path

    from click.testing import Result

CPU = ("--accelerator", "cpu")


def invoke(*args: object) -> Result:
    return CliRunner().invoke(program, [str(arg) for arg in args])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generate") / "model"
    fit(cells(), batch_key="batch").save(str(folder))
    return folder


def test_cells_are_those_of_the_model(model: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.h5ad"
    result = invoke(
        *("generate", model, "--n-cells", 50, "--output", output),
        *("--batch", "batch_1", "--seed", 3, "--json", tmp_path / "out.json", *CPU),
    )
    assert result.exit_code == 0, result.stderr
    written = anndata.read_h5ad(output)
    expected = DRA.load(str(model), adata=False, accelerator="cpu").generate(50, "batch_1", 3)
    np.testing.assert_array_equal(written.X.toarray(), expected.X.toarray())
    np.testing.assert_array_equal(written.obsm["codes"], expected.obsm["codes"])
    assert written.obs["component"].tolist() == expected.obs["component"].tolist()
    assert written.uns["generated"]["seed"] == 3
    figures = json.loads((tmp_path / "out.json").read_text())
    assert figures["command"] == "generate"
    assert figures["settings"] == {"n_cells": 50, "batch": ["batch_1"], "seed": 3}
    assert figures["generated"]["batches"] == {"batch_1": 50}
    assert figures["generated"]["n_genes"] == written.n_vars


def test_one_seed_gives_equal_bytes(model: Path, tmp_path: Path) -> None:
    written = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        path = tmp_path / f"{name}.h5ad"
        args = ("generate", model, "--n-cells", 20, "--output", path, "--seed", seed, *CPU)
        assert invoke(*args).exit_code == 0
        written.append(path.read_bytes())
    assert written[0] == written[1] != written[2]


def test_batches_are_all_or_those_named(model: Path, tmp_path: Path) -> None:
    found = []
    for more in ((), ("--batch", "batch_0", "--batch", "batch_1")):
        output = tmp_path / f"{len(found)}.h5ad"
        args = ("generate", model, "--n-cells", 60, "--output", output, *more, *CPU)
        assert invoke(*args).exit_code == 0
        found.append(set(anndata.read_h5ad(output).obs["batch"]))
    assert found == [{"batch_0", "batch_1"}] * 2


def test_what_cannot_be_made_is_refused_before_any_file(model: Path, tmp_path: Path) -> None:
    output, published = tmp_path / "out.h5ad", tmp_path / "published"
    adata = cells()
    PublishedDRA.setup_anndata(adata)
    other = PublishedDRA(adata)
    other.train(max_epochs=1, batch_size=16, **QUIET)
    other.save(str(published))
    cases: tuple[tuple[tuple[object, ...], int, str], ...] = (
        ((model, "--n-cells", 0), 2, "--n-cells"),
        ((model,), 2, "--n-cells"),
        ((tmp_path / "none", "--n-cells", 5), 66, "none"),
        ((model, "--n-cells", 5, "--batch", "x"), 65, "--batch x: there is no batch 'x'"),
        ((published, "--n-cells", 5), 65, "PublishedDRA, which makes no cells"),
    )
    for args, code, words in cases:
        result = invoke("generate", *args, "--output", output, *CPU)
        assert (result.exit_code, words in result.stderr) == (code, True), result.stderr
        assert not output.exists()


def test_output_that_exists_is_kept_unless_forced(model: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.h5ad"
    output.write_text("mine")
    args = ("generate", model, "--n-cells", 5, "--output", output, *CPU)
    assert invoke(*args).exit_code == 73
    assert output.read_text() == "mine"
    assert invoke(*args, "--force").exit_code == 0
    assert anndata.read_h5ad(output).n_obs == 5
