"""Reading by kind, and writing whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse
from scipy.io import mmwrite

from dra_scvi._inputs.read import read_input
from dra_scvi._outputs import files as _files
from dra_scvi._outputs.files import (
    append_line,
    atomic_folder,
    atomic_path,
    check_output,
    write_h5ad,
    write_json,
    write_text,
)


@pytest.fixture
def adata() -> AnnData:
    rng = np.random.default_rng(0)
    return AnnData(
        sparse.csr_matrix(rng.poisson(1.0, (6, 4)).astype(np.float32)),
        obs=pd.DataFrame({"donor": list("aabbcc")}, index=[f"cell-{i}" for i in range(6)]),
        var=pd.DataFrame(index=[f"gene-{i}" for i in range(4)]),
        obsm={"X_dra": rng.normal(size=(6, 2))},
        layers={"counts": rng.poisson(1.0, (6, 4))},
        uns={"settings": {"k": 2}},
    )


def write_10x(path: Path, matrix: np.ndarray, genes: list[str]) -> None:
    """Write cells by genes in the layout of Cell Ranger 3."""
    stored = sparse.csr_matrix(matrix)
    n_cells, n_genes = matrix.shape
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        group["barcodes"] = np.array([f"AAAC-{i}" for i in range(n_cells)], dtype="S")
        group["data"], group["indices"], group["indptr"] = (
            stored.data.astype(np.int32),
            stored.indices,
            stored.indptr,
        )
        group["shape"] = np.array([n_genes, n_cells], dtype=np.int32)
        features = group.create_group("features")
        features["id"] = np.array([f"ENSG{i}" for i in range(n_genes)], dtype="S")
        features["name"] = np.array(genes, dtype="S")
        features["feature_type"] = np.array(["Gene Expression"] * n_genes, dtype="S")
        features["genome"] = np.array(["GRCh38"] * n_genes, dtype="S")


def test_read_an_h5ad(adata: AnnData, tmp_path: Path) -> None:
    adata.write_h5ad(tmp_path / "a.h5ad")
    read = read_input(str(tmp_path / "a.h5ad"))
    np.testing.assert_array_equal(read.X.toarray(), adata.X.toarray())
    assert list(read.obs["donor"]) == list("aabbcc")


@pytest.mark.parametrize("name", ["a.zarr", "store-without-suffix"])
def test_read_zarr(adata: AnnData, tmp_path: Path, name: str) -> None:
    pytest.importorskip("zarr")
    adata.write_zarr(tmp_path / name)
    read = read_input(tmp_path / name)
    np.testing.assert_array_equal(read.layers["counts"], adata.layers["counts"])


@pytest.mark.filterwarnings("ignore:The 'future.infer_string' option")  # anndata 0.13, pandas 3
@pytest.mark.filterwarnings("error")
def test_read_10x_with_repeated_genes(tmp_path: Path) -> None:
    matrix = np.arange(6).reshape(3, 2)
    write_10x(tmp_path / "a.h5", matrix, ["A", "A"])
    read = read_input(tmp_path / "a.h5")
    np.testing.assert_array_equal(read.X.toarray(), matrix)
    assert list(read.var_names) == ["A", "A-1"]


def test_read_folder(adata: AnnData, tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("".join(f"{donor}\n" for donor in adata.obs["donor"]))
    mmwrite(tmp_path / "sub_set-720.mtx", adata.X.astype(int))
    read = read_input(tmp_path)
    np.testing.assert_array_equal(read.X.toarray(), adata.X.toarray())
    assert list(read.obs["cell_type"]) == list(adata.obs["donor"])


def test_read_missing_names_the_closest_sibling(tmp_path: Path) -> None:
    (tmp_path / "donors.h5ad").touch()
    with pytest.raises(FileNotFoundError) as caught:
        read_input(tmp_path / "donor.h5ad")
    assert str(tmp_path / "donor.h5ad") in str(caught.value)
    assert f"did you mean {tmp_path / 'donors.h5ad'}?" in str(caught.value)


def test_read_missing_without_a_sibling(tmp_path: Path) -> None:
    for path in (tmp_path / "x.h5ad", tmp_path / "no" / "folder" / "x.h5ad"):
        with pytest.raises(FileNotFoundError, match=r"x\.h5ad does not exist$"):
            read_input(path)


@pytest.mark.parametrize("name", ["table.csv", "noext", "matrix.mtx", "a.loom"])
def test_read_unknown_kind(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("x")
    with pytest.raises(ValueError, match="not a known kind") as caught:
        read_input(tmp_path / name)
    assert name in str(caught.value)
    assert all(kind in str(caught.value) for kind in (".h5ad", "zarr", "10x", "labels.txt"))


def test_read_folder_of_unknown_kind(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("a\n")
    with pytest.raises(ValueError, match="not a known kind"):
        read_input(tmp_path)


@pytest.mark.parametrize("name", ["a.h5ad", "a.h5"])
def test_read_empty_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(ValueError, match=rf"{name} is empty \(0 bytes\)"):
        read_input(tmp_path / name)


@pytest.mark.parametrize("share", np.linspace(0.01, 0.99, 20).round(2))
def test_read_truncated_h5ad(adata: AnnData, tmp_path: Path, share: float) -> None:
    path = tmp_path / "a.h5ad"
    adata.write_h5ad(path)
    os.truncate(path, max(1, int(path.stat().st_size * share)))
    with pytest.raises(ValueError, match="corrupt, truncated") as caught:
        read_input(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize("name", ["a.h5ad", "a.h5"])
def test_read_text_under_a_false_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("gene,cell\n" * 100)
    with pytest.raises(ValueError, match="corrupt, truncated or of another kind"):
        read_input(tmp_path / name)


@pytest.mark.parametrize("name", ["a.h5ad", "a.h5"])
def test_read_other_hdf5(tmp_path: Path, name: str) -> None:
    with h5py.File(tmp_path / name, "w") as file:
        file["something"] = np.arange(3)
    with pytest.raises(ValueError, match="could not be read as") as caught:
        read_input(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_read_damaged_zarr(tmp_path: Path) -> None:
    pytest.importorskip("zarr")
    matrix = np.random.default_rng(0).poisson(1.0, (600, 40)).astype(np.float32)
    AnnData(matrix).write_zarr(tmp_path / "a.zarr")
    chunks = [path for path in (tmp_path / "a.zarr" / "X").rglob("0*") if path.is_file()]
    for chunk in chunks:
        os.truncate(chunk, chunk.stat().st_size // 2)
    with pytest.raises(ValueError, match=r"a\.zarr could not be read as a zarr store"):
        read_input(tmp_path / "a.zarr")


def test_read_empty_zarr(tmp_path: Path) -> None:
    (tmp_path / "a.zarr").mkdir()
    with pytest.raises(ValueError, match=r"a\.zarr could not be read as a zarr store"):
        read_input(tmp_path / "a.zarr")


def test_check_output_free_name(tmp_path: Path) -> None:
    check_output(tmp_path / "new.h5ad", force=False)
    assert list(tmp_path.iterdir()) == []


def test_check_output_existing(tmp_path: Path) -> None:
    path = tmp_path / "old.h5ad"
    path.write_text("kept")
    with pytest.raises(FileExistsError, match=r"old\.h5ad exists; pass --force to replace it"):
        check_output(path, force=False)
    check_output(path, force=True)
    assert path.read_text() == "kept"


@pytest.mark.parametrize("force", [False, True])
def test_check_output_no_folder(tmp_path: Path, force: bool) -> None:
    with pytest.raises(FileNotFoundError, match=r"the output folder .*none does not exist"):
        check_output(tmp_path / "none" / "a.h5ad", force=force)


def test_atomic_path_success(tmp_path: Path) -> None:
    target = tmp_path / "a.tar.gz"
    target.write_text("old")
    with atomic_path(target) as temporary:
        temporary.write_text("new")
        assert target.read_text() == "old"
        assert temporary.parent == tmp_path
        assert temporary.name.startswith(".")
        assert temporary.suffix == ".gz"
        assert str(os.getpid()) in temporary.name
    assert target.read_text() == "new"
    assert os.listdir(tmp_path) == ["a.tar.gz"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_atomic_path_failure_keeps_the_old_file(
    tmp_path: Path, error: type[BaseException]
) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")

    def write_half() -> None:
        with atomic_path(target) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        write_half()
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_atomic_path_flushed_before_it_is_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(descriptor: int) -> None:
        raise OSError("disk is full")

    (tmp_path / "a.txt").write_text("old")
    monkeypatch.setattr(_files.os, "fsync", failing)
    with pytest.raises(OSError, match="disk is full"):
        write_text("new", tmp_path / "a.txt")
    assert (tmp_path / "a.txt").read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_atomic_path_nothing_written(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "a.txt"):
        pass
    assert os.listdir(tmp_path) == []


def test_atomic_path_no_folder(tmp_path: Path) -> None:
    with (
        pytest.raises(FileNotFoundError, match="create it first"),
        atomic_path(tmp_path / "none" / "a.txt"),
    ):
        pytest.fail("the block must not run")


def test_folder_whole_or_not_at_all(tmp_path: Path) -> None:
    for content in ("one", "two"):  # made, then added to
        with atomic_folder(str(tmp_path / "model")) as temporary:
            assert temporary.parent == tmp_path
            (temporary / "a").write_text(content)
            (temporary / content).touch()
        assert (tmp_path / "model" / "a").read_text() == content
    assert sorted(os.listdir(tmp_path / "model")) == ["a", "one", "two"]

    def interrupt(folder: Path) -> None:
        (folder / "a").write_text("half")
        raise KeyboardInterrupt

    for name in ("model", "new"):
        with pytest.raises(KeyboardInterrupt), atomic_folder(tmp_path / name) as temporary:
            interrupt(temporary)
    assert (tmp_path / "model" / "a").read_text() == "two"
    assert os.listdir(tmp_path) == ["model"]
    with (
        pytest.raises(FileNotFoundError, match="create it first"),
        atomic_folder(tmp_path / "no" / "model"),
    ):
        pass


def test_write_h5ad_round_trip(adata: AnnData, tmp_path: Path) -> None:
    adata.raw = adata.copy()
    write_h5ad(adata, tmp_path / "a.h5ad")
    read = anndata.read_h5ad(tmp_path / "a.h5ad")
    np.testing.assert_array_equal(read.obsm["X_dra"], adata.obsm["X_dra"])
    np.testing.assert_array_equal(read.layers["counts"], adata.layers["counts"])
    np.testing.assert_array_equal(read.raw.X.toarray(), adata.X.toarray())
    assert read.uns["settings"]["k"] == 2
    assert os.listdir(tmp_path) == ["a.h5ad"]


def test_write_h5ad_same_content_same_bytes(adata: AnnData, tmp_path: Path) -> None:
    write_h5ad(adata, tmp_path / "a.h5ad")
    write_h5ad(adata.copy(), tmp_path / "b.h5ad")
    first = (tmp_path / "a.h5ad").read_bytes()
    assert first == (tmp_path / "b.h5ad").read_bytes()
    adata.obsm["X_dra"][0, 0] += 1
    write_h5ad(adata, tmp_path / "b.h5ad")
    assert first != (tmp_path / "b.h5ad").read_bytes()


def test_write_h5ad_object_is_not_changed(adata: AnnData, tmp_path: Path) -> None:
    before = adata.obs.dtypes.to_dict()
    write_h5ad(adata, tmp_path / "a.h5ad")
    assert adata.obs.dtypes.to_dict() == before
    assert adata.filename is None


def test_write_h5ad_view_and_backed(adata: AnnData, tmp_path: Path) -> None:
    write_h5ad(adata[1:4], tmp_path / "view.h5ad")
    backed = anndata.read_h5ad(tmp_path / "view.h5ad", backed="r")
    write_h5ad(backed, tmp_path / "copy.h5ad")
    assert Path(backed.filename) == tmp_path / "view.h5ad"
    backed.file.close()
    read = anndata.read_h5ad(tmp_path / "copy.h5ad")
    assert list(read.obs_names) == ["cell-1", "cell-2", "cell-3"]


def test_write_h5ad_failure_keeps_the_old_file(adata: AnnData, tmp_path: Path) -> None:
    write_h5ad(adata, tmp_path / "a.h5ad")
    before = (tmp_path / "a.h5ad").read_bytes()
    adata.uns["bad"] = object()
    with pytest.raises(Exception, match="object"):
        write_h5ad(adata, tmp_path / "a.h5ad")
    assert (tmp_path / "a.h5ad").read_bytes() == before
    assert os.listdir(tmp_path) == ["a.h5ad"]


def test_write_json(tmp_path: Path) -> None:
    payload = {"b": np.float32(0.5), "a": [np.int64(2), np.bool_(True)], "c": np.arange(2)}
    write_json({**payload, "p": tmp_path}, tmp_path / "a.json")
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text) == {"a": [2, True], "b": 0.5, "c": [0, 1], "p": str(tmp_path)}
    assert text.startswith('{\n  "a": [\n')
    assert text.endswith("}\n")


@pytest.mark.parametrize("value", [float("nan"), np.float32("inf"), np.array([np.nan])])
def test_write_json_has_no_nan(tmp_path: Path, value: object) -> None:
    (tmp_path / "a.json").write_text("old")
    with pytest.raises(ValueError, match="JSON"):
        write_json({"x": value}, tmp_path / "a.json")
    assert (tmp_path / "a.json").read_text() == "old"


def test_write_json_refuses_objects(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="set has no counterpart in JSON"):
        write_json({"x": {1}}, tmp_path / "a.json")
    assert os.listdir(tmp_path) == []


def test_write_json_to_standard_output(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_json({"x": 1}, "-")
    assert capsys.readouterr().out == '{\n  "x": 1\n}\n'
    assert os.listdir(tmp_path) == []


def test_write_text(tmp_path: Path) -> None:
    write_text("é\r\nb\n", tmp_path / "a.txt")
    assert (tmp_path / "a.txt").read_bytes() == "é\r\nb\n".encode()


def test_write_append(tmp_path: Path) -> None:
    append_line(tmp_path / "log", "one")
    append_line(tmp_path / "log", "two")
    assert (tmp_path / "log").read_bytes() == b"one\ntwo\n"
    with pytest.raises(ValueError, match="line ends"):
        append_line(tmp_path / "log", "three\n")
    assert (tmp_path / "log").read_bytes() == b"one\ntwo\n"
