"""The map command: types of new cells, equal bytes, other layouts, exit codes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import anndata
import numpy as np
import pandas as pd
import pytest

from dra_scvi import DRA, PublishedDRA, tl
from tests.helpers import QUIET, cells, fit, invoke

if TYPE_CHECKING:
    from pathlib import Path

CPU = ("--accelerator", "cpu")
KEY = "cell_type_transferred"
TYPES = ("--label-key", "cell_type")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hold a model, the cells of its training, and a query of a new batch with genes shuffled."""
    folder = tmp_path_factory.mktemp("map")
    reference = cells()
    reference.write_h5ad(folder / "reference.h5ad")
    model = fit(reference, batch_key="batch")
    model.save(str(folder / "model"))
    model.save(str(folder / "with-cells"), save_anndata=True)
    query = cells(seed=1)[:, ::-1].copy()
    del query.obs["cell_type"]
    query.obs["batch"] = "new"
    query.obs["note"] = ["a/b"] * query.n_obs
    query.write_h5ad(folder / "query.h5ad")
    return folder


def test_types_are_those_of_the_function(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.h5ad"
    options = ("--threshold", 0.6, "--n-neighbors", 7, "--balanced", "--seed", 3)
    result = invoke(
        *("map", folder / "model", folder / "query.h5ad", *TYPES, *options, *CPU),
        *("--reference", folder / "reference.h5ad", "-o", output, "--json", tmp_path / "out.json"),
    )
    assert result.exit_code == 0, result.stderr
    written, expected = (anndata.read_h5ad(p) for p in (output, folder / "query.h5ad"))
    pd.testing.assert_frame_equal(written.obs[list(expected.obs)], expected.obs)
    assert (written.X != expected.X).nnz == 0
    model = DRA.load(str(folder / "model"), adata=cells(), accelerator="cpu")
    chosen = {"threshold": 0.6, "n_neighbors": 7, "balanced": True, "seed": 3}
    tl.transfer_labels(model, expected, "cell_type", **chosen)
    pd.testing.assert_frame_equal(written.obs, expected.obs)
    for key in ("X_dra", f"{KEY}_probabilities"):
        np.testing.assert_array_equal(written.obsm[key], expected.obsm[key])
    figures = json.loads((tmp_path / "out.json").read_text())
    counts = expected.obs[KEY].value_counts()
    assert {name: row["n_cells"] for name, row in figures["types"].items()} == {
        "type_0": counts["type_0"],
        "type_1": counts["type_1"],
    }
    far = expected.obs[f"{KEY}_distance"] > 1
    assert figures["unknown"] == {
        "n_cells": counts["unknown"],
        "n_improbable": (expected.obs[f"{KEY}_probability"] < 0.6).sum(),
        "n_far": far.sum(),
    }
    assert figures["held_out"]["by"] == "batches"
    assert figures["held_out"]["ece"] == pytest.approx(expected.uns[KEY]["ece"])
    assert figures["settings"]["threshold"] == 0.6
    assert figures["settings"]["seed"] == 3
    assert figures["command"] == "map"


def test_table_tells_types_and_what_is_unknown(folder: Path, tmp_path: Path) -> None:
    args = ("map", folder / "with-cells", folder / "query.h5ad", *TYPES, *CPU)
    result = invoke(*args, "-o", tmp_path / "out.h5ad", "--threshold", 1, "--any-distance")
    assert result.exit_code == 0, result.stderr
    assert result.stderr.splitlines()[0] == "mapping 60 cells"
    rows = [line.split("│") for line in result.stdout.splitlines() if "│" in line]
    found = {row[1].strip(): [cell.strip() for cell in row[2:-1]] for row in rows}
    assert found["unknown"] == ["60", "-", "-", "-"]
    assert found["type_0"][:3] == ["0", "-", "30"]


def test_cells_saved_with_the_model_are_a_reference(folder: Path, tmp_path: Path) -> None:
    written = []
    for name, more in (("with-cells", ()), ("model", ("--reference", folder / "reference.h5ad"))):
        output = tmp_path / f"{name}.h5ad"
        args = ("map", folder / name, folder / "query.h5ad", *TYPES, *CPU, "--output", output)
        assert invoke(*args, *more).exit_code == 0
        written.append(output.read_bytes())
    assert written[0] == written[1]


def test_counts_that_stay_in_their_file(folder: Path, tmp_path: Path) -> None:
    query = anndata.read_h5ad(folder / "query.h5ad")
    query[:, ::-1].copy().write_h5ad(tmp_path / "query.h5ad")
    args = ("map", folder / "with-cells", tmp_path / "query.h5ad", *TYPES, *CPU)
    for place in ("out-of-core", "in-memory"):
        result = invoke(*args, "-o", tmp_path / f"{place}.h5ad", f"--{place}")
        assert result.exit_code == 0, result.stderr
    one, other = (
        anndata.read_h5ad(tmp_path / f"{place}.h5ad") for place in ("out-of-core", "in-memory")
    )
    pd.testing.assert_frame_equal(one.obs, other.obs)
    np.testing.assert_allclose(one.obsm["X_dra"], other.obsm["X_dra"], atol=1e-6)
    assert (one.X != other.X).nnz == 0


def test_what_cannot_be_mapped_is_refused_before_any_file(folder: Path, tmp_path: Path) -> None:
    output, published = tmp_path / "out.h5ad", tmp_path / "published"
    adata = cells()
    PublishedDRA.setup_anndata(adata)
    other = PublishedDRA(adata)
    other.train(max_epochs=1, batch_size=16, **QUIET)
    other.save(str(published))
    few = tmp_path / "few.h5ad"
    cells()[:, 2:].copy().write_h5ad(few)
    model, query = folder / "with-cells", folder / "query.h5ad"
    reference = ("--reference", folder / "reference.h5ad")
    cases: tuple[tuple[tuple[object, ...], int, str], ...] = (
        ((model, query), 2, "--label-key"),
        ((model, query, *TYPES, "--threshold", 1.5), 2, "--threshold"),
        ((model, query, *TYPES, "--far-quantile", "nan"), 2, "no finite number"),
        ((model, query, *TYPES, "--key-added", "a/b"), 2, "choose one without '/'"),
        ((folder / "model", query, *TYPES), 2, "name the file that has them with --reference"),
        ((tmp_path / "none", query, *TYPES), 66, "none"),
        ((model, tmp_path / "none.h5ad", *TYPES), 66, "none.h5ad"),
        ((model, query, *TYPES, "--reference", tmp_path / "no.h5ad"), 66, "no.h5ad"),
        ((model, query, "--label-key", "celltype", *reference), 65, "--label-key celltype is not"),
        ((model, query, "--label-key", "celltype"), 65, "--label-key celltype is not"),
        ((model, query, *TYPES, "--key-added", "note"), 65, "--key-added note: obs has 'note'"),
        ((model, few, *TYPES), 65, "2 of the model's 12 genes are missing"),
        ((published, query, *TYPES), 65, "PublishedDRA, which maps no cells"),
    )
    for args, code, words in cases:
        result = invoke("map", *args, "--output", output, *CPU)
        assert (result.exit_code, words in result.stderr) == (code, True), result.stderr
        assert not output.exists()


def test_inputs_and_outputs_that_exist_are_kept(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.h5ad"
    output.write_text("mine")
    args = ("map", folder / "with-cells", folder / "query.h5ad", *TYPES, *CPU, "--output")
    assert invoke(*args, output).exit_code == 73
    assert output.read_text() == "mine"
    before = (folder / "query.h5ad").read_bytes()
    assert invoke(*args, folder / "query.h5ad", "--force").exit_code == 73
    reference = ("--reference", folder / "reference.h5ad")
    assert invoke(*args, folder / "reference.h5ad", *reference, "--force").exit_code == 73
    assert (folder / "query.h5ad").read_bytes() == before
    assert invoke(*args, output, "--force").exit_code == 0
    assert anndata.read_h5ad(output).n_obs == 60
    again = ("map", folder / "with-cells", output, *TYPES, *CPU, "-o", tmp_path / "again.h5ad")
    assert invoke(*again).exit_code == 0  # what an earlier one has left is replaced


def test_words_of_a_warning_are_options(folder: Path, tmp_path: Path) -> None:
    args = ("map", folder / "with-cells", folder / "query.h5ad", *TYPES, *CPU)
    result = invoke(*args, "-o", tmp_path / "out.h5ad", "--far-quantile", 0.01)
    assert "--any-distance goes by probabilities alone" in result.stderr
    assert result.exit_code == 0
