"""Counts that stay in their file: read in stretches, trained on, embedded and written again."""

from __future__ import annotations

import gc
import json
from typing import TYPE_CHECKING, Any

import anndata
import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from dra_scvi import tl
from dra_scvi._data import stored_rows as _stored
from dra_scvi._data.stored_rows import read_rows
from dra_scvi._inputs import out_of_core as _out_of_core
from dra_scvi._inputs.out_of_core import open_stored, stays_in_file, write_copy, write_stored
from tests.helpers import invoke

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData

FORMATS = ("h5ad", "zarr")


@pytest.fixture
def counted(adata: AnnData) -> AnnData:
    """Return cells with their counts in a layer, and other things to be kept."""
    adata.layers["counts"] = sparse.csr_matrix(adata.X)
    adata.X = adata.X.toarray()
    adata.obsm["X_old"] = np.ones((adata.n_obs, 2))
    adata.uns["note"] = "kept"
    adata.raw = adata.copy()
    return adata


def saved(adata: AnnData, folder: Path, form: str) -> Path:
    path = folder / f"cells.{form}"
    if form == "zarr":
        pytest.importorskip("zarr")
        adata.write_zarr(path)
    else:
        adata.write_h5ad(path)
    return path


class Spy:
    """A matrix that notes how much of it is read at a time."""

    def __init__(self, matrix: Any) -> None:
        self.matrix, self.lengths = matrix, []

    def __getitem__(self, rows: slice) -> Any:
        self.lengths.append(rows.stop - rows.start)
        return self.matrix[rows]


@settings(max_examples=60, deadline=None)
@given(
    index=st.lists(st.integers(0, 999), min_size=1, max_size=60),
    is_sparse=st.booleans(),
    gap=st.integers(0, 300),
    stretch=st.integers(1, 500),
)
def test_rows_are_read_in_the_order_asked_for_and_little_at_a_time(
    index: list[int], is_sparse: bool, gap: int, stretch: int
) -> None:
    x = np.arange(2_000, dtype=np.float32).reshape(1_000, 2)
    spy = Spy(sparse.csr_matrix(x) if is_sparse else x)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_stored, "LONGEST_GAP", gap)
        patch.setattr(_stored, "LONGEST_STRETCH", stretch)
        rows = read_rows(spy, np.array(index))
    np.testing.assert_array_equal(rows.toarray() if is_sparse else rows, x[index])
    assert max(spy.lengths) <= stretch


@pytest.mark.parametrize("form", FORMATS)
def test_the_size_of_the_counts_decides(
    form: str, tmp_path: Path, adata: AnnData, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(adata, tmp_path, form)
    n_bytes = _out_of_core._size_in_memory(path)
    assert n_bytes > adata.X.data.nbytes
    for room, stays in ((2.1 * n_bytes, False), (1.9 * n_bytes, True)):
        monkeypatch.setattr(_out_of_core, "available_memory", lambda room=room: room)
        assert stays_in_file(path) is stays
        assert stays_in_file(path, True)
        assert not stays_in_file(path, False)


def test_there_is_memory() -> None:
    assert _out_of_core.available_memory() > 2**20


def test_other_kinds_of_input_are_read(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("a\n")
    assert not stays_in_file(tmp_path)
    assert not stays_in_file(tmp_path / "missing.h5ad")
    with pytest.raises(ValueError, match=r"an \.h5ad or a zarr store for --out-of-core"):
        stays_in_file(tmp_path, True)


def test_counts_stored_by_column_are_refused_with_a_remedy(tmp_path: Path, adata: AnnData) -> None:
    adata.X = sparse.csc_matrix(adata.X)
    with pytest.raises(ValueError, match="store them as CSR, or use --in-memory"):
        open_stored(saved(adata, tmp_path, "h5ad"))


@pytest.mark.parametrize("form", FORMATS)
def test_a_copy_has_all_that_the_source_had(
    form: str, tmp_path: Path, counted: AnnData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_out_of_core, "ROWS_PER_BLOCK", 64)
    path = saved(counted, tmp_path, form)
    opened = open_stored(path, "counts")
    opened.obsm["X_new"] = np.zeros((counted.n_obs, 3), dtype=np.float32)
    opened.uns["dra"] = {"seed": 1}
    write_copy(path, opened, tmp_path / "out.h5ad")
    found = anndata.read_h5ad(tmp_path / "out.h5ad")
    assert set(found.obsm) == {"X_old", "X_new"}
    assert set(found.uns) == {"note", "dra"}
    np.testing.assert_array_equal(found.X, counted.X)
    assert (found.layers["counts"] != counted.layers["counts"]).nnz == 0
    assert found.obs.equals(counted.obs)
    np.testing.assert_array_equal(found.raw.X, counted.raw.X)
    assert found.raw.var.equals(counted.raw.var)


@pytest.mark.parametrize("convert", [np.asarray, sparse.csr_matrix], ids=["dense", "csr"])
def test_matrices_are_written_in_blocks(
    convert: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_out_of_core, "ROWS_PER_BLOCK", 7)
    matrix = convert(np.random.default_rng(0).poisson(0.5, (30, 5)).astype(np.float32))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        write_stored(file, "X", matrix)
        found = anndata.io.read_elem(file["X"])
    assert type(found) is type(matrix)
    assert (found != matrix).sum() == 0


@pytest.mark.parametrize("form", FORMATS)
def test_the_command_line_leaves_counts_in_their_file(
    form: str, tmp_path: Path, counted: AnnData
) -> None:
    path = saved(counted, tmp_path, form)
    options = ["--layer", "counts", "--batch-key", "batch", "--label-key", "cell_type"]
    options += ["--max-epochs", 2, "--accelerator", "cpu", "--out-of-core"]
    outputs = [tmp_path / f"out{i}.h5ad" for i in range(3)]
    for i, output in enumerate(outputs[:2]):
        model = tmp_path / f"model{i}"
        done = invoke(
            "train", path, "--output", output, "--model-dir", model, "--json", "-", *options
        )
        assert done.exit_code == 0, done.stderr
        assert f"counts stay in {path}" in done.stderr
        assert json.loads(done.stdout)["kmeans"]["nmi"] >= 0
    assert outputs[0].read_bytes() == outputs[1].read_bytes()
    done = invoke("embed", path, "--model", model, "--output", outputs[2], "--out-of-core")
    assert done.exit_code == 0, done.stderr
    trained, embedded = (anndata.read_h5ad(output) for output in outputs[1:])
    np.testing.assert_array_equal(trained.obsm["X_dra"], embedded.obsm["X_dra"])
    assert set(trained.obs) == set(counted.obs)


def test_the_command_line_says_what_is_wrong_with_a_stored_input(
    tmp_path: Path, counted: AnnData
) -> None:
    path, output = saved(counted, tmp_path, "h5ad"), tmp_path / "out.h5ad"
    train = ["train", path, "--output", output, "--out-of-core"]
    done = invoke(*train, "--layer", "count")
    assert (done.exit_code, "did you mean 'counts'" in done.stderr) == (65, True)
    done = invoke(*train, "--preset", "published")
    assert (done.exit_code, "--out-of-core" in done.stderr) == (2, True)
    counted.layers["counts"].data[5] = -1
    counted.layers["counts"] = sparse.csr_matrix(counted.layers["counts"])
    done = gc.collect()  # the trace of an error holds its file open
    counted.write_h5ad(path)
    done = invoke(*train, "--layer", "counts")
    assert (done.exit_code, "1 negative value" in done.stderr) == (65, True)
    path.write_bytes(path.read_bytes()[:5_000])
    assert invoke(*train).exit_code == 65
    assert not output.exists()


def test_genes_in_another_order_are_refused_out_of_core(tmp_path: Path, adata: AnnData) -> None:
    path, model = saved(adata, tmp_path, "h5ad"), tmp_path / "model"
    options = ["--accelerator", "cpu", "--model-dir", model, "--max-epochs", 1]
    assert invoke("train", path, "--output", tmp_path / "out.h5ad", *options).exit_code == 0
    adata[:, ::-1].copy().write_h5ad(path)
    embed = ["embed", path, "--model", model, "--output", tmp_path / "again.h5ad"]
    done = invoke(*embed, "--out-of-core")
    assert (done.exit_code, "--in-memory" in done.stderr) == (65, True)
    assert invoke(*embed).exit_code == 0


def test_one_call_embeds_a_backed_anndata(tmp_path: Path, adata: AnnData) -> None:
    path = saved(adata, tmp_path, "h5ad")
    backed = anndata.read_h5ad(path, backed="r+")
    model = tl.dra(
        backed, max_epochs=2, accelerator="cpu", train_kwargs={"enable_progress_bar": False}
    )
    assert backed.isbacked
    assert backed.obsm["X_dra"].shape == (adata.n_obs, 10)
    np.testing.assert_allclose(
        model.get_latent_representation(adata), backed.obsm["X_dra"], atol=1e-5
    )
    backed.write()
    backed.file.close()
    assert anndata.read_h5ad(path).obsm["X_dra"].shape == (adata.n_obs, 10)
