"""Inputs: read as what they are, or refused in a sentence; nothing outside of them is touched."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata
import h5py
import numpy as np
import pytest
import torch
from anndata import AnnData
from scipy import io, sparse

from dra_scvi import DRA, InvalidCountsError, datasets, metrics, tl
from dra_scvi._data.minibatches import Minibatches
from dra_scvi._data.rows import StoredRows
from dra_scvi._data.validation import validate_counts
from dra_scvi._inputs.out_of_core import open_stored
from dra_scvi._inputs.read import read_input
from tests.helpers import cells, fit, invoke
from tests.served import served

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from click.testing import Result

QUICK = ("--max-epochs", 1, "--accelerator", "cpu", "--n-hidden", 8, "--n-latent", 2)


def train(path: Path, *options: object) -> Result:
    return invoke("train", path, "--output", path.parent / "out.h5ad", *QUICK, *options)


def refused(done: Result, *words: str) -> None:
    """Check that it ended as for bad data, with one line that has these words."""
    assert done.exit_code == 65, (done.exit_code, done.stderr, done.exception)
    assert done.stderr.strip().splitlines()[-1].startswith("dra-scvi: error: ")
    for word in words:
        assert word in done.stderr, (word, done.stderr)


def accepted(done: Result, *words: str) -> None:
    assert done.exit_code == 0, done.stderr
    for word in words:
        assert word in done.stderr, (word, done.stderr)


@contextmanager
def at_once() -> Iterator[None]:
    """Fail, and do not wait for ever, where something hangs."""

    def stop(*_: object) -> None:
        raise TimeoutError("it hangs")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(60)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# folders with a .mtx


def folder(
    path: Path, labels: str, shape: tuple[int, int] = (120, 60), genes: int | None = None
) -> Path:
    counts = np.random.default_rng(0).poisson(1.0, shape)
    io.mmwrite(path / "counts.mtx", sparse.coo_matrix(counts))
    (path / "labels.txt").write_bytes(labels.encode())
    if genes is not None:
        (path / "genes.txt").write_text("".join(f"G{i}\n" for i in range(genes)))
    return path


TYPES = ["T cell", "B cell"]


def test_labels_of_half_of_the_cells_do_not_turn_the_matrix(tmp_path: Path) -> None:
    """120 cells of 60 genes with 60 labels are refused, and not read as 60 cells."""
    refused(train(folder(tmp_path, "T\nB\n" * 30)), "60 labels", "120 rows", "genes.txt")
    folder(tmp_path, "T\nB\n" * 30, genes=60)
    refused(train(tmp_path), "60 labels", "120 rows")


def test_a_matrix_of_genes_by_cells_is_turned_where_their_names_say_so(tmp_path: Path) -> None:
    """With a name for each of its 120 rows a matrix is read as 120 genes of 60 cells."""
    adata = read_input(folder(tmp_path, "T\nB\n" * 30, genes=120))
    assert adata.shape == (60, 120)
    assert adata.var_names[119] == "G119"


@pytest.mark.parametrize("start", [0, 1])
@pytest.mark.parametrize("form", ["{}\t{}\n", '"{}" "{}"\n', "{},{}\r\n"])
def test_numbers_before_labels_are_no_part_of_them(tmp_path: Path, form: str, start: int) -> None:
    """`0<TAB>T cell` is the label T cell, and not another one for every cell."""
    text = "".join(form.format(i + start, TYPES[i % 2]) for i in range(120))
    assert read_input(folder(tmp_path, text)).obs["cell_type"].tolist() == TYPES * 60


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cell_type\n" + "T\nB\n" * 60, ("121 lines", "'cell_type', a header?")),
        ("AAAC\tT cell\n" * 120, ("several columns", "cut -f 2")),
        ("0\tT\tx\n" * 120, ("several columns",)),
        ("T cell\n" * 60, ("60 labels", "120 rows")),
        ("T\n" * 60 + "\n" + "B\n" * 59, ("1 of these are empty", "'unknown'")),
        ("T\n" * 119, ("119 lines",)),
    ],
    ids=["header", "two columns", "three columns", "words", "gap", "too few"],
)
def test_labels_that_do_not_fit_are_refused_with_a_remedy(
    tmp_path: Path, text: str, words: tuple[str, ...]
) -> None:
    """A header, several columns, missing labels: each is named, and none is made a label."""
    refused(train(folder(tmp_path, text)), "labels", *words)


def test_labels_of_two_words_are_not_two_labels(tmp_path: Path) -> None:
    """60 lines `T cell` beside 120 rows are 60 labels, not 120."""
    refused(train(folder(tmp_path, "T cell\n" * 60, shape=(120, 50))), "60 lines (120 words)")


def test_labels_of_windows_and_of_r_are_read(tmp_path: Path) -> None:
    """CRLF, a byte order mark, quotes and empty lines at the end change no label."""
    text = "\ufeff" + '"T cell"\r\n"B cell"\r\n' * 60 + "\r\n\r\n"
    assert read_input(folder(tmp_path, text)).obs["cell_type"].tolist() == TYPES * 60


def test_names_of_cells_in_place_of_types_are_remarked_on(tmp_path: Path) -> None:
    """As many labels as cells are read with a warning that names of cells may be meant."""
    with pytest.warns(UserWarning, match="names of cells rather than"):
        read_input(folder(tmp_path, "".join(f"AAAC-{i}\n" for i in range(120))))


def test_genes_in_two_columns_are_refused(tmp_path: Path) -> None:
    """A line of genes.txt with identifier and symbol is no name."""
    folder(tmp_path, "T\nB\n" * 60)
    (tmp_path / "genes.txt").write_text("ENSG1\tA\n" * 60)
    refused(train(tmp_path), "genes.txt", "several columns")


@pytest.mark.parametrize(
    ("head", "word"),
    [
        ("coordinate integer general\n2 2 1000000000000", "truncated"),
        ("coordinate integer general\n2 1000000000000 1", "memory"),
        ("array integer general\n2 1000000000000", "truncated"),
        ("coordinate pattern general\n2 2 1", "pattern"),
    ],
)
def test_a_matrix_that_claims_more_than_it_has(tmp_path: Path, head: str, word: str) -> None:
    """A .mtx that speaks of terabytes is refused before any memory is asked for."""
    folder(tmp_path, "T\nB\n")
    (tmp_path / "counts.mtx").write_text(f"%%MatrixMarket matrix {head}\n1 1 1\n")
    refused(train(tmp_path), "counts.mtx", word)


def test_text_that_is_not_utf8_is_told(tmp_path: Path) -> None:
    """Labels in another encoding are refused as such, and not called corrupt."""
    folder(tmp_path, "T\nB\n" * 60)
    (tmp_path / "labels.txt").write_bytes("Müller\n".encode("latin-1") * 120)
    refused(train(tmp_path), "labels.txt is not text in UTF-8")


# 10x files


def write_10x(
    path: Path, types: dict[str, int], names: list[str] | None = None
) -> sparse.csr_matrix:
    """Write 40 cells in the layout of Cell Ranger 3."""
    kinds = [name for name, number in types.items() for _ in range(number)]
    counts = sparse.csr_matrix(np.random.default_rng(0).poisson(1.0, (40, len(kinds))))
    names = names or [f"F{i}" for i in range(len(kinds))]
    with h5py.File(path, "w") as file:
        write_sparse(file.create_group("matrix"), counts)
        group = file["matrix"].create_group("features")
        group["id"] = np.array([f"ENSG{i}" for i in range(len(kinds))], dtype="S")
        group["name"] = np.array([name.encode() for name in names])
        group["feature_type"] = np.array(kinds, dtype="S")
        group["genome"] = np.array(["GRCh38"] * len(kinds), dtype="S")
        group["_all_tag_keys"] = np.array(["genome"], dtype="S")


def write_sparse(group: Any, counts: sparse.csr_matrix) -> None:
    group["barcodes"] = np.array([f"AAAC-{i}" for i in range(counts.shape[0])], dtype="S")
    group["data"] = counts.data.astype(np.int32)
    group["indices"], group["indptr"] = counts.indices, counts.indptr
    group["shape"] = np.array(counts.shape[::-1], dtype=np.int32)


def write_old_10x(path: Path, genomes: tuple[str, ...]) -> None:
    """Write 40 cells in the layout of Cell Ranger 2."""
    counts = sparse.csr_matrix(np.random.default_rng(0).poisson(1.0, (40, 6)))
    with h5py.File(path, "w") as file:
        for genome in genomes:
            group = file.create_group(genome)
            write_sparse(group, counts)
            group["genes"] = np.array([f"ENSG{i}" for i in range(6)], dtype="S")
            group["gene_names"] = np.array([f"G{i // 2}" for i in range(6)], dtype="S")


@pytest.mark.parametrize("other", ["Antibody Capture", "Peaks"])
def test_features_that_are_no_genes_do_not_vanish_without_a_word(
    tmp_path: Path, other: str
) -> None:
    """Of a mixed 10x file the command says what it leaves out, and the output says so too."""
    write_10x(tmp_path / "cells.h5", {"Gene Expression": 6, other: 3})
    accepted(train(tmp_path / "cells.h5"), f"3 {other} left out")
    output = anndata.read_h5ad(tmp_path / "out.h5ad")
    assert output.shape == (40, 6)
    assert output.uns["dra_left_out"] == f"3 {other}"


def test_a_10x_file_without_genes_is_refused(tmp_path: Path) -> None:
    """Antibodies alone are told, in place of a matrix without genes."""
    write_10x(tmp_path / "cells.h5", {"Antibody Capture": 5})
    refused(train(tmp_path / "cells.h5"), "no Gene Expression", "5 Antibody Capture")


def test_antibodies_of_an_h5ad_are_remarked_on(tmp_path: Path) -> None:
    """What scanpy read with gex_only=False is trained on, and the command says so."""
    adata = cells()
    adata.var["feature_types"] = ["Gene Expression"] * 10 + ["Antibody Capture"] * 2
    adata.write_h5ad(tmp_path / "cells.h5ad")
    accepted(train(tmp_path / "cells.h5ad"), "2 Antibody Capture", "taken for genes")


def test_10x_files_are_read_as_scanpy_does(tmp_path: Path) -> None:
    """Counts, names and columns of both layouts of 10x files are those of scanpy."""
    scanpy = pytest.importorskip("scanpy")
    write_10x(tmp_path / "new.h5", {"Gene Expression": 6, "Custom": 2}, list("ABAACDEF"))
    write_old_10x(tmp_path / "old.h5", ("hg19",))
    for name in ("new.h5", "old.h5"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = scanpy.read_10x_h5(tmp_path / name)
            expected.var_names_make_unique()
            found = read_input(tmp_path / name)
        assert found.obs.equals(expected.obs)
        assert found.var.equals(expected.var)
        assert found.X.dtype == expected.X.dtype
        assert (found.X != expected.X).nnz == 0


def test_gene_names_beyond_ascii_are_read(tmp_path: Path) -> None:
    """A 10x file with the gene α-syn is read, and not called corrupt."""
    write_10x(tmp_path / "cells.h5", {"Gene Expression": 2}, ["α-syn", "B"])
    assert read_input(tmp_path / "cells.h5").var_names.tolist() == ["α-syn", "B"]


def test_a_10x_file_of_two_genomes_is_refused_with_a_remedy_that_exists(tmp_path: Path) -> None:
    """Matrices of two genomes: both are named, with the call that takes one."""
    write_old_10x(tmp_path / "cells.h5", ("hg19", "mm10"))
    done = train(tmp_path / "cells.h5")
    refused(done, "hg19, mm10", 'genome="hg19"', "write_h5ad")
    assert "corrupt" not in done.stderr


@pytest.mark.parametrize("damage", ["shape", "indices", "barcodes", "name"])
def test_a_10x_file_whose_parts_do_not_fit_is_refused(tmp_path: Path, damage: str) -> None:
    """Indices beyond the shape, or names of another number, are told and not followed."""
    write_10x(tmp_path / "cells.h5", {"Gene Expression": 6})
    with h5py.File(tmp_path / "cells.h5", "r+") as file:
        group = file["matrix/features"] if damage == "name" else file["matrix"]
        values = group[damage][()]
        del group[damage]
        group[damage] = values + 1 if damage == "indices" else values[:-1]
    refused(train(tmp_path / "cells.h5"), "cells.h5 is damaged")


# what is named in place of something else


@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
@pytest.mark.filterwarnings("ignore:Writing zarr v2")
def test_an_anndata_is_told_from_a_model(tmp_path: Path, suffix: str) -> None:
    """`info` and `embed --model` say of cells that a folder of a model is wanted."""
    path = tmp_path / f"embedded.{suffix}"
    cells().write_h5ad(path) if suffix == "h5ad" else cells().write_zarr(path)
    for done in (
        invoke("info", path),
        invoke("embed", path, "--model", path, "--output", "o.h5ad"),
    ):
        refused(done, "is an AnnData", "the folder of a saved model")


def test_a_file_of_a_model_is_told_from_its_folder(tmp_path: Path) -> None:
    """`info model/model.pt` names the folder to give."""
    (tmp_path / "model.pt").write_bytes(b"x")
    refused(invoke("info", tmp_path / "model.pt"), f"name its folder, {tmp_path}")
    refused(invoke("info", Path(__file__)), "is a file")


def test_a_model_is_told_from_cells(tmp_path: Path) -> None:
    """`train` and `evaluate` of a folder with a model ask for cells."""
    (tmp_path / "model.pt").write_bytes(b"x")
    for done in (train(tmp_path), invoke("evaluate", tmp_path, "--label-key", "cell_type")):
        refused(done, "is a saved model and holds no cells")


def test_other_hdf5_files_are_told_by_name(tmp_path: Path) -> None:
    """MuData, 10x and AnnData under another's suffix are named, and not called corrupt."""
    write_10x(tmp_path / "a.h5ad", {"Gene Expression": 2})
    cells().write_h5ad(tmp_path / "b.h5")
    with h5py.File(tmp_path / "c.h5ad", "w") as file:
        file.create_group("mod")
    for name, word in (("a.h5ad", "10x"), ("b.h5", "is an AnnData"), ("c.h5ad", "MuData")):
        done = train(tmp_path / name)
        refused(done, word)
        assert "corrupt" not in done.stderr


# errors of readers


def write_legacy(path: Path) -> None:
    """Write cells as anndata 0.6 did."""
    adata = cells()
    with h5py.File(path, "w") as file:
        file["X"] = adata.X.toarray()
        for name, index in (("obs", adata.obs_names), ("var", adata.var_names)):
            names = np.array(list(index), dtype="S10")
            file[name] = np.rec.fromarrays([names], names=["index"])


def test_a_file_of_old_anndata_is_read_in_memory_and_told_out_of_core(tmp_path: Path) -> None:
    """Tables of anndata 0.6 are read in memory; out of core the command says to do so."""
    write_legacy(tmp_path / "cells.h5ad")
    done = train(tmp_path / "cells.h5ad", "--out-of-core")
    refused(done, "before version 0.7", "--in-memory")
    assert "corrupt" not in done.stderr
    accepted(train(tmp_path / "cells.h5ad", "--in-memory"))


def test_a_file_open_for_writing_elsewhere_is_told(tmp_path: Path) -> None:
    """A locked file is open elsewhere, and not corrupt."""
    path = tmp_path / "cells.h5ad"
    cells().write_h5ad(path)
    code = f"import h5py; f = h5py.File({str(path)!r}, 'r+'); print(flush=True); input()"
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe) as writer:
        writer.stdout.readline()
        done = train(path)
        writer.communicate(b"\n")
    refused(done, "open for writing in another program")
    assert "corrupt" not in done.stderr


@pytest.mark.parametrize("suffix", ["h5ad", "h5", "zarr"])
@pytest.mark.filterwarnings("ignore:Writing zarr v2")
def test_a_file_that_claims_terabytes_is_refused(tmp_path: Path, suffix: str) -> None:
    """1.5 TB in a file of some kilobytes: a sentence with both numbers, and no MemoryError."""
    path, chunks = tmp_path / f"cells.{suffix}", {"shape": (612_372,) * 2, "chunks": (100, 100)}
    if suffix == "zarr":
        zarr = pytest.importorskip("zarr")
        cells().write_zarr(path)
        (path / ".zmetadata").unlink(missing_ok=True)
        zarr.open(path, mode="r+").create_array("layers/big", dtype="f4", **chunks)
    elif suffix == "h5":
        write_10x(path, {"Gene Expression": 2})
        with h5py.File(path, "r+") as file:
            del file["matrix/data"]
            file["matrix"].create_dataset("data", (375_000_000_000,), "i4", chunks=(100,))
    else:
        cells().write_h5ad(path)
        with h5py.File(path, "r+") as file:
            file.create_dataset("layers/big", dtype="f4", **chunks)
    refused(train(path, *(() if suffix == "h5" else ("--in-memory",))), "1.5e+03 GB", "of memory")


def test_what_only_a_newer_anndata_knows_is_told(tmp_path: Path) -> None:
    """An element of an encoding that is unknown here is not called corrupt."""
    path = tmp_path / "cells.h5ad"
    cells().write_h5ad(path)
    with h5py.File(path, "r+") as file:
        file["X"].attrs["encoding-type"] = "matrix-of-tomorrow"
    done = train(path)
    refused(done, "written by a newer version or another program", "matrix-of-tomorrow")
    assert "corrupt" not in done.stderr


def test_a_damaged_file_is_still_called_so(tmp_path: Path) -> None:
    """Half of a file is corrupt or truncated."""
    path = tmp_path / "cells.h5ad"
    cells().write_h5ad(path)
    os.truncate(path, path.stat().st_size // 2)
    refused(train(path), "corrupt, truncated")


# the probe


def write_endless(path: Path) -> None:
    """Make a group whose list of members goes on with itself."""
    with h5py.File(path, "w") as file:
        file["a"] = file["b"] = 1
    content = bytearray(path.read_bytes())
    place = content.find(b"TREE")
    content[place + 16 : place + 24] = place.to_bytes(8, "little")
    path.write_bytes(content)


def write_bottomless(path: Path) -> None:
    """Make a dataset of which every value is its own source."""
    with h5py.File(path, "w") as file:
        layout = h5py.VirtualLayout((3,), "i4")
        layout[:] = h5py.VirtualSource(".", "a", (3,))
        file.create_virtual_dataset("a", layout)


@pytest.mark.parametrize("write", [write_endless, write_bottomless])
def test_a_file_over_which_the_library_crashes_or_hangs_is_refused(
    write: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command survives files that would end it, or keep it for ever."""
    monkeypatch.setattr("dra_scvi._inputs.hdf5_probe.SECONDS", 1)
    write(tmp_path / "cells.h5ad")
    refused(train(tmp_path / "cells.h5ad"), "crashes over it, or never comes to an end")


FORKS: list[int] = []


def test_no_process_with_threads_is_forked_to_read(tmp_path: Path) -> None:
    """Reading an .h5ad makes no copy of the process, whose threads may hold locks."""
    cells().write_h5ad(tmp_path / "cells.h5ad")
    os.register_at_fork(before=lambda: FORKS.append(os.getpid()))
    FORKS.clear()
    read_input(tmp_path / "cells.h5ad")
    assert FORKS == []


# links, storage, codecs


def add_link(file: Any, place: str, secret: Path) -> None:
    if place in file:
        del file[place]
    file[place] = h5py.ExternalLink(str(secret), "/group")


@pytest.mark.parametrize("place", ["obsm", "uns", "obsm/X", "uns/a/b", "layers/counts"])
@pytest.mark.parametrize("mode", ["--out-of-core", "--in-memory"])
def test_no_other_file_is_read_or_written_through_a_link(
    place: str, mode: str, tmp_path: Path
) -> None:
    """A file that links to another is refused with the place of the link; the other stays."""
    secret, path = tmp_path / "secret.h5", tmp_path / "cells.h5ad"
    with h5py.File(secret, "w") as file:
        file.create_group("group")
    before = secret.read_bytes()
    cells().write_h5ad(path)
    with h5py.File(path, "r+") as file:
        add_link(file, place, secret)
    refused(train(path, mode), f"/{place} is a link to another file", "write it anew")
    assert secret.read_bytes() == before
    assert not (tmp_path / "out.h5ad").exists()


@pytest.mark.parametrize("mode", ["--out-of-core", "--in-memory"])
def test_no_bytes_of_another_file_come_into_the_output(mode: str, tmp_path: Path) -> None:
    """External storage of a dataset is refused, and copies nothing."""
    (tmp_path / "secret").write_bytes(b"x" * 240)
    cells().write_h5ad(tmp_path / "cells.h5ad")
    with h5py.File(tmp_path / "cells.h5ad", "r+") as file:
        storage = [(str(tmp_path / "secret"), 0, 240)]
        file["obsm"].create_dataset("X_a", (60, 1), "f4", external=storage)
    done = train(tmp_path / "cells.h5ad", mode)
    refused(done, "the values of /obsm/X_a lie in another file")


@pytest.mark.parametrize("link", ["hard", "soft"])
def test_groups_that_share_a_name_do_not_share_what_is_added(link: str, tmp_path: Path) -> None:
    """Where obsm is varm by a link, the output has the embedding in obsm alone."""
    path = tmp_path / "cells.h5ad"
    cells().write_h5ad(path)
    with h5py.File(path, "r+") as file:
        del file["obsm"]
        file["obsm"] = file["varm"] if link == "hard" else h5py.SoftLink("/varm")
    accepted(train(path, "--out-of-core"))
    output = anndata.read_h5ad(tmp_path / "out.h5ad")
    assert list(output.obsm) == ["X_dra"]
    assert list(output.varm) == []


class Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.filterwarnings("ignore:Writing zarr v2")
@pytest.mark.parametrize("where", ["compressor", "filters", "consolidated"])
@pytest.mark.parametrize("mode", ["--out-of-core", "--in-memory"])
def test_no_object_is_unpickled_from_a_zarr_store(where: str, mode: str, tmp_path: Path) -> None:
    """A codec that builds objects is refused by its declaration, whatever numcodecs would do."""
    path = tmp_path / "cells.zarr"
    cells().write_zarr(path)
    array = path / "uns" / "code"
    array.mkdir()
    declared = {
        "zarr_format": 2,
        "shape": [1],
        "chunks": [1],
        "dtype": "|O",
        "fill_value": None,
        "order": "C",
        "compressor": {"id": "pickle"} if where == "compressor" else None,
        "filters": [{"id": "pickle"}] if where != "compressor" else [{"id": "vlen-utf8"}],
    }
    if where == "consolidated":
        entries = {"metadata": {"uns/code/.zarray": declared}, "zarr_consolidated_format": 1}
        (path / ".zmetadata").write_text(json.dumps(entries))
        declared = {**declared, "filters": [{"id": "vlen-utf8"}]}
    (array / ".zarray").write_text(json.dumps(declared))
    (array / "0").write_bytes(pickle.dumps(Payload(tmp_path / "ran")))
    refused(train(path, mode), "codec 'pickle'", "uns/code")
    assert not (tmp_path / "ran").exists()


def test_an_array_of_objects_without_a_codec_of_text_is_refused(tmp_path: Path) -> None:
    """Values of type |O are text, or are not read."""
    (tmp_path / "cells.zarr").mkdir()
    declared = {"zarr_format": 2, "dtype": [["a", "|O"]], "compressor": {"id": "zlib"}}
    (tmp_path / "cells.zarr" / ".zarray").write_text(json.dumps(declared))
    refused(train(tmp_path / "cells.zarr"), "an array of objects")


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("mode", ["--out-of-core", "--in-memory"])
@pytest.mark.filterwarnings("ignore:Writing zarr v2")
def test_both_versions_of_zarr_are_read(version: int, mode: str, tmp_path: Path) -> None:
    """Stores that anndata writes declare nothing that is refused."""
    pytest.importorskip("zarr")
    adata = cells()
    adata.obs["text"] = [f"cell {i}" for i in range(adata.n_obs)]
    with anndata.settings.override(zarr_write_format=version):
        adata.write_zarr(tmp_path / "cells.zarr")
    accepted(train(tmp_path / "cells.zarr", mode))
    assert anndata.read_h5ad(tmp_path / "out.h5ad").obs["text"].iloc[7] == "cell 7"


@pytest.mark.filterwarnings("ignore:Writing zarr v2")
def test_a_zarr_store_has_no_links_out_of_it(tmp_path: Path) -> None:
    """A linked chunk or folder of a store is refused, so that its content is not copied."""
    path = tmp_path / "cells.zarr"
    cells().write_zarr(path)
    (path / "uns" / "elsewhere").symlink_to(tmp_path)
    refused(train(path), "uns/elsewhere is a link that leads out")
    (path / "uns" / "elsewhere").unlink()
    os.mkfifo(path / "uns" / "pipe")
    with at_once():
        refused(train(path), "uns/pipe is neither a file nor a folder")


@pytest.mark.parametrize("change", ["replaced", "written over", "removed"])
@pytest.mark.parametrize("form", ["h5ad", "zarr"])
@pytest.mark.filterwarnings("ignore:Writing zarr v2")
def test_codes_are_not_written_beside_cells_that_came_later(
    change: str, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """INPUT changes while it is trained on out of core: exit 65, and no output of two halves."""
    path, other = tmp_path / f"cells.{form}", tmp_path / f"other.{form}"
    for seed, place in enumerate((path, other)):
        adata = cells(seed=seed)
        adata.write_h5ad(place) if form == "h5ad" else adata.write_zarr(place)
    original = tl._dra

    def slow(*args: Any, **kwargs: Any) -> Any:
        model = original(*args, **kwargs)
        if change == "written over" and form == "h5ad":
            path.write_bytes(other.read_bytes())
        elif change == "written over":
            shutil.copytree(other, path, dirs_exist_ok=True)
        else:
            path.rename(tmp_path / "old")
        if change == "replaced":
            other.rename(path)
        return model

    monkeypatch.setattr(tl, "_dra", slow)
    refused(train(path, "--out-of-core"), "while it was worked on", "out.kept1.h5ad")
    assert not (tmp_path / "out.h5ad").exists()
    kept = anndata.read_h5ad(tmp_path / "out.kept1.h5ad")
    assert kept.obsm["X_dra"].shape == (60, 2)
    assert list(kept.obs["cell_type"]) == list(cells(seed=0).obs["cell_type"])


def test_raw_counts_are_seen_out_of_core(tmp_path: Path) -> None:
    """Counts in adata.raw of a file are there to be found, and stay in the file."""
    adata = cells()
    adata.raw = adata.copy()
    adata.X = adata.X * 0.5
    adata.write_h5ad(tmp_path / "cells.h5ad")
    opened = open_stored(tmp_path / "cells.h5ad")
    assert opened.raw.shape == (60, 12)
    assert not isinstance(opened.raw.X, np.ndarray | sparse.spmatrix)
    assert (opened.raw.X[:5] != adata.raw.X[:5]).nnz == 0


# what would hang


@pytest.mark.parametrize("options", [(), ("--out-of-core",)])
@pytest.mark.parametrize("name", ["cells.h5ad", "cells.h5"])
def test_a_pipe_as_input_is_refused_at_once(
    name: str, options: tuple[str, ...], tmp_path: Path
) -> None:
    """A FIFO is not waited for."""
    os.mkfifo(tmp_path / name)
    done = subprocess.run(
        served("train", tmp_path / name, *options, "--output", tmp_path / "out.h5ad"),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 65
    assert "is a pipe or a device" in done.stderr


def test_a_device_as_input_is_refused_at_once(tmp_path: Path) -> None:
    """A link to /dev/zero under the name of cells is not read."""
    (tmp_path / "cells.h5ad").symlink_to("/dev/zero")
    refused(train(tmp_path / "cells.h5ad"), "is a pipe or a device")
    folder(tmp_path, "T\nB\n" * 60)
    for name, word in (("genes.txt", "is not a file"), ("labels.txt", "No labels.txt")):
        (tmp_path / name).unlink(missing_ok=True)
        os.mkfifo(tmp_path / name)
        with at_once():
            refused(train(tmp_path), word)
        if name == "genes.txt":
            (tmp_path / name).unlink()


def test_a_config_that_never_ends_is_refused_at_once(tmp_path: Path) -> None:
    """Pipes, endless lists and alias bombs in --config are wrong usage."""
    config = tmp_path / "config.yaml"
    bomb = "a: &a [1]\n" + "".join(
        f"{name}: &{name} [{', '.join([f'*{last}'] * 9)}]\n"
        for last, name in zip("abcdefghij", "bcdefghijk", strict=True)
    )
    for text in (
        "n-hidden: &a [*a]",
        "n-hidden: &a [1, [2, *a]]",
        bomb.replace("k: &k", "n-hidden:"),
        "n-hidden: " + "[" * 5_000 + "]" * 5_000,
        "# " + "x" * 2**20,
    ):
        config.write_text(text)
        with at_once():
            done = invoke("train", "x.h5ad", "--output", "out.h5ad", "--config", config)
        assert (done.exit_code, str(config) in done.stderr) == (2, True)
    config.unlink()
    os.mkfifo(config)
    with at_once():
        done = invoke("train", "x.h5ad", "--output", "out.h5ad", "--config", config)
    assert (done.exit_code, "not a file" in done.stderr) == (2, True)


# matrices


def damage(group: Any, how: str, n_genes: int) -> None:
    """Damage a stored CSR matrix."""
    parts = {name: group[name][()] for name in ("data", "indices", "indptr")}
    if how == "too large":
        parts["indices"][5] = n_genes
    elif how == "negative":
        parts["indices"][5] = -1
    elif how == "descending":
        parts["indptr"][3] = parts["indptr"][-1]
    else:
        parts["data"] = parts["data"][:-1]
    for name, values in parts.items():
        del group[name]
        group[name] = values


FAULTS = ("too large", "negative", "descending", "short")


@pytest.mark.parametrize("how", FAULTS)
@pytest.mark.parametrize("place", ["X", "layers/counts", "raw/X", "obsm/X_a"])
def test_indices_that_point_out_of_a_matrix_are_refused_in_memory(
    place: str, how: str, tmp_path: Path
) -> None:
    """A damaged sparse matrix is refused wherever it lies, before compiled code follows it."""
    adata = cells()
    adata.raw = adata.copy()
    adata.layers["counts"] = adata.X.copy()
    adata.obsm["X_a"] = sparse.csr_matrix(adata.X)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    with h5py.File(tmp_path / "cells.h5ad", "r+") as file:
        damage(file[place], how, adata.n_vars)
    with pytest.raises(ValueError, match=r"damaged sparse matrix|could not be read"):
        read_input(tmp_path / "cells.h5ad")


@pytest.mark.parametrize("how", FAULTS)
@pytest.mark.parametrize("layer", [None, "counts"])
def test_indices_that_point_out_of_a_stored_matrix_are_refused(
    layer: str | None, how: str, tmp_path: Path
) -> None:
    """A damaged matrix that stays in its file is refused by the command and by what reads rows."""
    adata = cells()
    adata.layers["counts"] = adata.X.copy()
    adata.write_h5ad(tmp_path / "cells.h5ad")
    with h5py.File(tmp_path / "cells.h5ad", "r+") as file:
        damage(file["layers/counts" if layer else "X"], how, adata.n_vars)
    options = ("--layer", layer) if layer else ()
    done = train(tmp_path / "cells.h5ad", "--out-of-core", *options)
    assert done.exit_code == 65, done.stderr
    opened = open_stored(tmp_path / "cells.h5ad", layer)
    with pytest.raises(ValueError, match="are damaged"):
        StoredRows(opened.layers[layer] if layer else opened.X).take(torch.arange(60))


@pytest.mark.parametrize("how", ["too large", "negative"])
def test_a_backed_matrix_is_looked_at_before_training(how: str, tmp_path: Path) -> None:
    """`tl.dra` of a backed AnnData refuses a gene index that does not exist."""
    cells().write_h5ad(tmp_path / "cells.h5ad")
    with h5py.File(tmp_path / "cells.h5ad", "r+") as file:
        damage(file["X"], how, 12)
    backed = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    with pytest.raises(ValueError, match="damaged"):
        validate_counts(backed)


def test_stored_duplicates_count_together(tmp_path: Path) -> None:
    """Two entries of one gene in a stored row are their sum, as in the dense matrix."""
    counts = cells().X
    twice = sparse.csr_matrix(
        (np.repeat(counts.data, 2), np.repeat(counts.indices, 2), counts.indptr * 2),
        shape=counts.shape,
    )
    AnnData(twice).write_h5ad(tmp_path / "twice.h5ad")
    rows = StoredRows(open_stored(tmp_path / "twice.h5ad").X)
    index, weight = torch.arange(60), torch.randn(12, 4)
    dense = torch.from_numpy(2 * counts.toarray())
    torch.testing.assert_close(rows.take(index), dense)
    for log1p in (False, True):
        expected = (dense.log1p() if log1p else dense) @ weight
        torch.testing.assert_close(rows.project(index, weight, log1p), expected)


def test_blocks_of_a_file_come_in_another_order_in_every_pass() -> None:
    """Above 16,384 stored rows the order of blocks, not only that within them, is drawn anew."""
    n_cells = 40_000
    rows = {"X": StoredRows(np.arange(n_cells)[:, None])}
    minibatches = Minibatches(rows, np.arange(n_cells), batch_size=128, shuffle=True)
    passes = [torch.cat([batch["X"] for batch in minibatches]).ravel() for _ in range(2)]
    first, second = (set((order[:16_384] // 128).int().tolist()) for order in passes)
    assert len(first) <= 129  # what is held comes from that many blocks
    assert len(first & second) < 100
    assert all(len(set(order.int().tolist())) == n_cells for order in passes)


def test_the_raw_counts_of_a_zarr_store_are_in_the_output(tmp_path: Path) -> None:
    """Out of core, a zarr store is written as .h5ad with its raw matrix, as in memory."""
    pytest.importorskip("zarr")
    adata = datasets.synthetic(60, 12)
    adata.raw = adata.copy()
    with anndata.settings.override(zarr_write_format=3):
        adata.write_zarr(tmp_path / "cells.zarr")
    accepted(train(tmp_path / "cells.zarr", "--out-of-core"))
    output = anndata.read_h5ad(tmp_path / "out.h5ad")
    assert (output.raw.X != adata.X).nnz == 0
    assert output.raw.var.equals(adata.var)


# -- what holds no counts, and no one value of a cell ------------------------------------------


def with_indices(path: Path, **types: str) -> Path:
    """Write cells whose indices are stored as other types."""
    cells().write_h5ad(path)
    with h5py.File(path, "r+") as file:
        for name, kind in types.items():
            values = file["X"][name][:].astype(kind)
            del file["X"][name]
            file["X"][name] = values + 0.5 if name == "indices" and kind == "f4" else values
    return path


@pytest.mark.parametrize("mode", ["--in-memory", "--out-of-core"])
@pytest.mark.parametrize(
    "types", [{"indices": "f4"}, {"indices": "f8"}, {"indptr": "f8"}], ids=["3.5", "3.0", "starts"]
)
def test_indices_that_are_no_whole_numbers_are_refused(
    tmp_path: Path, types: dict[str, str], mode: str
) -> None:
    """A gene of number 3.5 is no gene, whether counts are read or left in their file."""
    done = train(with_indices(tmp_path / "cells.h5ad", **types), mode)
    refused(done, f"whose {next(iter(types))} are of type float", "whole numbers")


def test_unsigned_indices_are_read(tmp_path: Path) -> None:
    """Indices of 64 bits without a sign, which SciPy does not know, are the same genes."""
    path = with_indices(tmp_path / "cells.h5ad", indices="u8", indptr="u8")
    assert (read_input(path).X != cells().X).nnz == 0
    for mode in ("--in-memory", "--out-of-core"):
        accepted(train(path, mode, "--force"))


@pytest.mark.parametrize("mask", [False, True], ids=["nothing", "a value"])
def test_masked_arrays_are_no_counts(mask: bool) -> None:
    """A masked array is refused in words, by the model's set-up and as a query."""
    model = fit(cells())
    adata = cells()
    adata.X = np.ma.masked_array(adata.X.toarray(), mask=mask & np.eye(60, 12, dtype=bool))
    for use in (DRA.setup_anndata, model.get_latent_representation):
        with pytest.raises(InvalidCountsError, match="adata.X is a masked array"):
            use(adata)


def test_masked_values_are_no_part_of_an_embedding() -> None:
    """What is masked in an embedding is not scored as if it were not."""
    masked = np.ma.masked_array(np.ones((60, 2)), mask=np.eye(60, 2))
    with pytest.raises(TypeError, match="masked values"):
        metrics.clustering(masked, cells().obs["cell_type"])


def test_a_column_of_lists_is_no_column_of_batches() -> None:
    """Lists in a query's column, in that of a new model, or among labels: one value is needed."""
    model = fit(cells(), batch_key="batch")
    adata = cells()
    adata.obs["batch"] = [["a"]] * 60
    words = r"must hold one value per cell; the first that is none is a list, \['a'\]"
    with pytest.raises(ValueError, match=words):
        model.get_latent_representation(adata)
    with pytest.raises(ValueError, match=words):
        tl.dra(adata, batch_key="batch", max_epochs=1)
    with pytest.raises(ValueError, match=words):
        metrics.clustering(np.ones((60, 2)), adata.obs["batch"])
