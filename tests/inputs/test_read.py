"""Reading by kind: what is read, and what is said of what is not."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse
from scipy.io import mmwrite

from dra_scvi._exceptions import InputError, InvalidCountsError
from dra_scvi._inputs import read
from dra_scvi._inputs.read import check_anndata, check_kind, read_input
from dra_scvi._inputs.zarr_store import is_zarr


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


class Fault(Exception):
    """What a library may raise."""


def test_a_reader_of_ones_own_and_its_errors(adata: AnnData, tmp_path: Path) -> None:
    path = tmp_path / "a.h5ad"
    path.touch()
    path.write_text("content")
    read_paths: list[Path] = []

    def read(given: Path) -> AnnData:
        read_paths.append(given)
        return adata

    assert read_input(str(path), read) is adata
    assert read_paths == [path]

    def fail_with(error: BaseException) -> Any:
        def fail(_: Path) -> AnnData:
            raise error

        return fail

    for error in (ImportError("a"), PermissionError("b"), InputError("c")):
        with pytest.raises(type(error)) as caught:
            read_input(path, fail_with(error))
        assert caught.value is error
    words = (
        rf"^{path} could not be read as an .h5ad file: .*own words.* Accepted: an .h5ad file, a z"
    )
    with pytest.raises(InputError, match=words) as told:
        read_input(path, fail_with(Fault("own words")))
    assert isinstance(told.value.__cause__, Fault)
    words = f"^{path} could not be read as an .h5ad file: it holds neither cells nor genes.$"
    with pytest.raises(InputError, match=words):
        read_input(path, lambda _: AnnData())
    assert read_input(path, lambda _: adata[:0].copy()).shape == (0, 4)


def damaged(shape: tuple[int, int]) -> sparse.csr_matrix:
    matrix = sparse.csr_matrix(np.ones(shape, np.float32))
    matrix.indices[-1] = 99
    return matrix


@pytest.mark.parametrize("place", ["X", "layers", "obsm", "varm", "obsp", "varp", "raw"])
def test_every_matrix_is_looked_at(adata: AnnData, tmp_path: Path, place: str) -> None:
    path = tmp_path / "a.h5ad"
    path.write_text("content")
    sizes = {"varm": (4, 4), "varp": (4, 4), "obsp": (6, 6)}
    matrix = damaged(sizes.get(place, (6, 4)))
    if place == "X":
        adata.X = matrix
    elif place == "raw":
        adata.raw = AnnData(matrix)
    else:
        getattr(adata, place)["k"] = matrix
    name = {"layers": "layer 'k'", "X": "X", "raw": "raw"}.get(place, f"{place} 'k'")
    with pytest.raises(InvalidCountsError, match=f"^{name} of {path} is a damaged sparse matrix"):
        read_input(path, lambda _: adata)


def test_unsigned_indices_are_read(adata: AnnData, tmp_path: Path) -> None:
    (tmp_path / "a.h5ad").write_text("content")
    adata.X.indptr = adata.X.indptr.astype(np.uint64)
    assert read_input(tmp_path / "a.h5ad", lambda _: adata).X.indptr.dtype == np.int64


def test_what_a_path_is(tmp_path: Path) -> None:
    check_kind(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="pipe is a pipe or a device; write its content to a fi"):
        check_kind(tmp_path / "pipe")
    (tmp_path / "a").touch()
    with pytest.raises(InputError, match=rf"a is empty \(0 bytes\); expected {ACCEPTED}.$"):
        check_kind(tmp_path / "a")
    (tmp_path / "a").write_text("x")
    check_kind(tmp_path / "a")
    with pytest.raises(FileNotFoundError, match=f"^{tmp_path / 'b'} does not exist$"):
        check_kind(tmp_path / "b")
    with pytest.raises(FileNotFoundError, match=f"; did you mean {tmp_path / 'pipe'}[?]$"):
        check_kind(tmp_path / "pip")


ACCEPTED = (
    "an .h5ad file, a zarr store of an AnnData, a 10x .h5 file, "
    "or a folder with one .mtx and labels.txt"
)


@pytest.mark.parametrize(
    ("name", "files", "kind"),
    [
        ("a.zarr", [], "a zarr store of an AnnData"),
        ("a.ZARR", [], "a zarr store of an AnnData"),
        ("a", [".zgroup"], "a zarr store of an AnnData"),
        ("a", ["zarr.json", "labels.txt", "x.mtx"], "a zarr store of an AnnData"),
        ("a", ["labels.txt", "x.mtx"], "a folder with one .mtx and labels.txt"),
        ("a.h5ad", None, "an .h5ad file"),
        ("a.H5AD", None, "an .h5ad file"),
        ("a.h5", None, "a 10x .h5 file"),
        ("a.h5ad", [], None),
        ("a.zarr", None, None),
        ("a", ["labels.txt"], None),
        ("a", ["x.mtx"], None),
        ("a", ["model.pt"], "model"),
    ],
)
def test_kinds(tmp_path: Path, name: str, files: list[str] | None, kind: str | None) -> None:
    path = tmp_path / name
    if files is None:
        path.write_text("content")
    else:
        path.mkdir()
        for file in files:
            (path / file).touch()
    assert is_zarr(path) == bool({".zgroup", "zarr.json"} & set(files or ()))
    if kind in (None, "model"):
        words = (
            "is a saved model and .*'dra-scvi embed CELLS.h5ad --model a' em"
            if kind
            else (f"^{path} is not a known kind of input; accepted: {ACCEPTED}.$")
        )
        with pytest.raises(InputError, match=words):
            read_input(path)
    else:
        with pytest.raises(InputError, match=f"{path} could not be read as {kind}"):
            read_input(path, lambda _: AnnData())


@pytest.mark.parametrize(
    ("parts", "hint"),
    [
        (("var",), "it has no obs, which every AnnData has"),
        (("obs",), "it has no var, which every AnnData has"),
        (("mod", "obs"), "it is a MuData; write one of its modalities as an .h5ad"),
        (("matrix",), "it looks like a 10x file or a loom; name a 10x file .h5"),
        (("mod", "matrix"), "it is a MuData; write one of its modalities as an .h5ad"),
    ],
)
def test_what_is_no_anndata(parts: tuple[str, ...], hint: str) -> None:
    words = f"^a.h5ad could not be read as an .h5ad file: {hint}. Accepted: {ACCEPTED}.$"
    with pytest.raises(InputError, match=words):
        check_anndata(parts, Path("a.h5ad"))
    check_anndata(("obs", "var", "mod"), Path("a.h5ad"))


CHECKS = {"a.h5ad": ["check_hdf5", "check_room"], "a.zarr": ["check_store", "check_chunks"]}


@pytest.mark.parametrize("name", CHECKS)
def test_what_is_looked_at_before_a_library_reads(
    adata: AnnData, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    getattr(adata, "write_h5ad" if name == "a.h5ad" else "write_zarr")(tmp_path / name)
    for check in {*CHECKS[name], "check_room"}:

        def refuse(path: Path, *_: Any, check: str = check) -> None:
            raise InputError(f"{check} of {path.name}")

        with monkeypatch.context() as patch:
            patch.setattr(read, check, refuse)
            with pytest.raises(InputError, match=f"^{check} of {name}$"):
                read_input(tmp_path / name)


def test_a_10x_file_is_looked_at_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_10x(tmp_path / "a.h5", np.ones((2, 2)), ["a", "b"])
    checked: list[Path] = []
    monkeypatch.setattr(read, "check_hdf5", checked.append)
    read_input(tmp_path / "a.h5")
    assert checked == [tmp_path / "a.h5"]


def test_an_h5ad_of_another_program_is_named(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5ad", "w") as file:
        file.create_group("mod")
    with pytest.raises(InputError, match="it is a MuData"):
        read_input(tmp_path / "a.h5ad")


@pytest.mark.parametrize("name", ["a.h5ad", "a.zarr"])
def test_features_that_are_no_genes_are_remarked_on(
    adata: AnnData, tmp_path: Path, name: str
) -> None:
    path, write = tmp_path / name, "write_h5ad" if name == "a.h5ad" else "write_zarr"
    adata.var["feature_types"] = ["Gene Expression"] * 4
    getattr(adata, write)(path)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*holds features")
        read_input(path)
    adata.var["feature_types"] = ["Gene Expression", "Peaks", "Peaks", "Antibody Capture"]
    getattr(adata, write)(path)
    words = (
        rf"^{path} holds features that are not Gene Expression \(2 Peaks, 1 Antibody Capture\), w"
    )
    with pytest.warns(UserWarning, match=words):
        read_input(path)


def test_a_folder_whose_matrix_is_none(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("a\n")
    (tmp_path / "x.mtx").mkdir()
    with pytest.raises(InputError, match="mtx"):
        read_input(tmp_path)
