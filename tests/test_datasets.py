"""Tests of dra_scvi.datasets on files written here, on the file of scanpy, and on shared data."""

from __future__ import annotations

import bz2
import gzip
import logging
import os
import struct
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import anndata
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import io, sparse

from dra_scvi import datasets
from dra_scvi.datasets import _kang, _pbmc68k, _zeisel
from dra_scvi.datasets._source import Source

if TYPE_CHECKING:
    from collections.abc import Callable

    from anndata import AnnData
    from numpy.typing import NDArray

CELLS = ["c1", "c2", "c3", "c4"]
LEVEL1 = ["glia", "glia", "neuron", "neuron"]
GROUP = ["2", "1", "1", "1"]
GENES = ["Tshz1", "NaN", "Fnbp1l", "Gad1_loc2", "NA"]
COUNTS = np.array([[0, 3, 9, 0], [0, 0, 0, 1], [5, 0, 0, 7], [2, 2, 2, 2], [1, 0, 400, 0]])
KNOWN = _zeisel._SOURCE.known
SMALL = {"n_cells": 4, "n_genes": 5, "level1class": (2, 2), "group": (1, 3)}


def assert_counts(adata: AnnData) -> None:
    assert isinstance(adata.X, sparse.csr_matrix)
    assert adata.X.dtype == np.float32
    assert (adata.X.data > 0).all()
    np.testing.assert_array_equal(adata.X.data, np.rint(adata.X.data))
    assert adata.X.has_sorted_indices
    assert adata.obs["cell_type"].dtype == "category"
    assert not adata.obs["cell_type"].isna().any()
    assert adata.obs_names.is_unique
    assert adata.var_names.is_unique


@pytest.fixture(scope="module")
def pbmc() -> AnnData:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # anndata 0.13 asks pandas 3 for an option that it no longer needs
        warnings.filterwarnings("ignore", "The 'future.infer_string' option")
        return datasets.pbmc68k()


@pytest.fixture(scope="module")
def shipped() -> AnnData:
    import scanpy as sc

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return sc.datasets.pbmc68k_reduced()


def test_pbmc68k_has_the_known_counts(pbmc: AnnData) -> None:
    assert_counts(pbmc)
    assert pbmc.shape == (700, 765)
    assert pbmc.X.max() == 259
    assert pbmc.X.nnz == 174_400
    assert np.median(pbmc.X.toarray().sum(axis=1)) == 653


def test_pbmc68k_has_the_known_labels(pbmc: AnnData, shipped: AnnData) -> None:
    assert pbmc.obs["cell_type"].nunique() == 10
    assert pbmc.obs["cell_type"].value_counts().min() == 8
    assert pbmc.obs["bulk_labels"].tolist() == shipped.obs["bulk_labels"].tolist()
    assert pbmc.obs["cell_type"].tolist() == shipped.obs["bulk_labels"].tolist()
    assert pbmc.obs["n_counts"].tolist() == shipped.obs["n_counts"].tolist()
    assert pbmc.var_names.tolist() == shipped.raw.var_names.tolist()
    assert pbmc.obs_names.tolist() == shipped.obs_names.tolist()


def test_pbmc68k_counts_give_back_the_stored_values(pbmc: AnnData, shipped: AnnData) -> None:
    depth = shipped.obs["n_counts"].to_numpy(dtype=float)[:, None]
    normalised = np.log1p(pbmc.X.toarray().astype(float) * 1e4 / depth)
    error = np.abs(normalised - shipped.raw.X.toarray())
    assert error.max() <= 5.1e-4


def test_pbmc68k_every_cell_has_a_gene_seen_once(pbmc: AnnData) -> None:
    assert all(row.data.min() == 1 for row in pbmc.X)


@given(
    counts=arrays(np.int64, (5, 7), elements=st.integers(0, 60)),
    depth=arrays(np.int64, (5,), elements=st.integers(1_500, 6_000)),
)
def test_counts_survive_log_normalisation_and_rounding(counts: NDArray, depth: NDArray) -> None:
    logs = np.round(np.log1p(counts * 1e4 / depth[:, None]), 3).astype(np.float32)
    found = _pbmc68k._invert_log_normalisation(sparse.csr_matrix(logs), depth.astype(float))
    np.testing.assert_array_equal(found.toarray(), counts)


def test_pbmc68k_refuses_a_changed_file(monkeypatch: pytest.MonkeyPatch, shipped: AnnData) -> None:
    import scanpy as sc

    changed = shipped.copy()
    changed.obs["n_counts"] = changed.obs["n_counts"] * 1.1
    monkeypatch.setattr(sc.datasets, "pbmc68k_reduced", lambda: changed)
    with pytest.raises(ValueError, match="distance from an integer"):
        datasets.pbmc68k()


def zeisel_text(counts: NDArray = COUNTS, drop: str | None = None) -> str:
    """Write the authors' layout: annotation rows, a blank one, then genes."""
    annotation = {
        "tissue": ["ca1hippocampus"] * 4,
        "group #": GROUP,
        "total mRNA mol": ["21580", "21748", "31642", "32916"],
        "well": ["11", "95", "33", "42"],
        "sex": ["1", "-1", "0", "1"],
        "age": ["21", "20", "20", "21"],
        "diameter": ["0", "9.56", "11.1", "11.7"],
        "cell_id": CELLS,
        "level1class": LEVEL1,
        "level2class": ["(none)", "Oligo1", "Int10", "Int10"],
    }
    rows = [["", name, *values] for name, values in annotation.items() if name != drop]
    rows.append([""] * 6)
    rows += [[gene, "3", *map(str, row)] for gene, row in zip(GENES, counts, strict=True)]
    return "".join("\t".join(row) + "\n" for row in rows)


def write_plain(folder: Path, text: str) -> Path:
    path = folder / "cortex.txt"
    path.write_text(text)
    return path


def write_gzip(folder: Path, text: str) -> Path:
    path = folder / "cortex.txt.gz"
    path.write_bytes(gzip.compress(text.encode()))
    return path


def write_gzip_without_suffix(folder: Path, text: str) -> Path:
    return write_gzip(folder, text).rename(folder / "cortex")


@pytest.fixture
def small_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_zeisel, "_SOURCE", _zeisel._SOURCE._replace(known=SMALL))


@pytest.mark.parametrize("write", [write_plain, write_gzip, write_gzip_without_suffix])
@pytest.mark.parametrize("chunk", [2, 1_000])
def test_zeisel_parses_what_was_written(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    write: Callable[[Path, str], Path],
    chunk: int,
) -> None:
    monkeypatch.setattr(_zeisel, "_CHUNK", chunk)
    adata = _zeisel._parse(write(tmp_path, zeisel_text()))
    np.testing.assert_array_equal(adata.X.toarray(), COUNTS.T)
    assert adata.obs_names.tolist() == CELLS
    assert adata.var_names.tolist() == GENES
    assert adata.obs["level1class"].tolist() == LEVEL1
    assert adata.obs["group"].tolist() == GROUP
    assert adata.obs["level2class"].tolist()[0] == "(none)"
    assert adata.obs["total_mRNA_mol"].tolist() == [21580, 21748, 31642, 32916]
    assert adata.obs["diameter"].tolist() == [0, 9.56, 11.1, 11.7]


@pytest.mark.usefixtures("small_facts")
@pytest.mark.parametrize(("labels", "expected"), [("level1class", LEVEL1), ("group", GROUP)])
def test_zeisel_labels_choose_the_cell_type(
    tmp_path: Path, labels: str, expected: list[str]
) -> None:
    adata = datasets.zeisel(write_plain(tmp_path, zeisel_text()), labels=labels, n_genes=None)
    assert_counts(adata)
    assert adata.obs["cell_type"].tolist() == expected
    assert adata.obs["level1class"].tolist() == LEVEL1
    assert adata.obs["group"].tolist() == GROUP


@pytest.mark.usefixtures("small_facts")
def test_zeisel_keeps_the_most_variable_genes_in_file_order(tmp_path: Path) -> None:
    adata = datasets.zeisel(write_plain(tmp_path, zeisel_text()), n_genes=3)
    assert adata.var_names.tolist() == ["Tshz1", "Fnbp1l", "NA"]
    np.testing.assert_array_equal(adata.X.toarray(), COUNTS[[0, 2, 4]].T)
    assert adata.obs["n_counts"].tolist() == COUNTS.sum(axis=0).tolist()


@pytest.mark.usefixtures("small_facts")
@pytest.mark.parametrize("n_genes", [0, 6])
def test_zeisel_refuses_an_impossible_number_of_genes(tmp_path: Path, n_genes: int) -> None:
    with pytest.raises(ValueError, match=f"between 1 and 5, got {n_genes}"):
        datasets.zeisel(write_plain(tmp_path, zeisel_text()), n_genes=n_genes)


def test_zeisel_refuses_unknown_labels_before_any_download(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Source, "download", lambda _: pytest.fail("downloaded"))
    with pytest.raises(ValueError, match="'level2class'; choose 'level1class' or 'group'"):
        datasets.zeisel(labels="level2class")


def test_zeisel_without_the_file_says_where_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.txt; download https://.*path="):
        datasets.zeisel(tmp_path / "absent.txt")


@pytest.mark.parametrize("missing", ["cell_id", "level1class", "group #"])
def test_zeisel_names_a_missing_annotation_row(tmp_path: Path, missing: str) -> None:
    path = write_plain(tmp_path, zeisel_text(drop=missing))
    with pytest.raises(ValueError, match=f"no annotation row {missing.removesuffix(' #')}"):
        datasets.zeisel(path)


def test_zeisel_refuses_a_web_page(tmp_path: Path) -> None:
    path = write_plain(tmp_path, "<html><body>503 Service Unavailable</body></html>\n")
    with pytest.raises(ValueError, match="cannot be read as expression_mRNA_17-Aug-2014.txt"):
        datasets.zeisel(path)


def test_zeisel_refuses_an_empty_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no row with a gene symbol"):
        datasets.zeisel(write_plain(tmp_path, ""))


@pytest.mark.parametrize("cut", [2, 5])
def test_zeisel_refuses_a_row_that_was_cut_off(tmp_path: Path, cut: int) -> None:
    path = write_plain(tmp_path, zeisel_text()[:-cut])
    with pytest.raises(ValueError, match="have 4 counts"):
        datasets.zeisel(path)


def test_zeisel_refuses_a_truncated_archive(tmp_path: Path) -> None:
    path = write_gzip(tmp_path, zeisel_text())
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(ValueError, match="cannot be read"):
        datasets.zeisel(path)


def test_zeisel_refuses_text_among_the_counts(tmp_path: Path) -> None:
    path = write_plain(tmp_path, zeisel_text().replace("\t400\t", "\tmany\t"))
    with pytest.raises(ValueError, match="many"):
        datasets.zeisel(path)


def published_like() -> AnnData:
    """Return an empty matrix with the published shape and label sizes."""
    obs = pd.DataFrame(
        {
            "level1class": np.repeat([f"t{i}" for i in range(7)], KNOWN["level1class"]),
            "group": np.repeat([f"{i}" for i in range(1, 10)], KNOWN["group"]),
        }
    )
    obs.index = obs.index.astype(str)
    counts = sparse.csr_matrix((KNOWN["n_cells"], KNOWN["n_genes"]), dtype=np.float32)
    return anndata.AnnData(counts, obs=obs)


def test_published_facts_pass_verification() -> None:
    _zeisel._SOURCE.verify(published_like())


def test_published_label_sizes_follow_from_each_other() -> None:
    assert sum(KNOWN["level1class"]) == sum(KNOWN["group"]) == 3_005
    assert len(KNOWN["level1class"]) == 7
    assert len(KNOWN["group"]) == 9


def test_verification_names_the_cells_expected_and_found() -> None:
    short = published_like()[1:].copy()
    with pytest.raises(ValueError, match=r"expected .*n_cells=3005.* found .*n_cells=3004"):
        _zeisel._SOURCE.verify(short)


def test_verification_names_the_genes_expected_and_found() -> None:
    short = published_like()[:, 2:].copy()
    with pytest.raises(ValueError, match=r"expected .*n_genes=19972.* found .*n_genes=19970"):
        _zeisel._SOURCE.verify(short)


@pytest.mark.parametrize("key", ["level1class", "group"])
def test_verification_refuses_other_label_sizes(key: str) -> None:
    adata = published_like()
    adata.obs[key] = adata.obs[key].replace(adata.obs[key].iloc[0], adata.obs[key].iloc[-1])
    with pytest.raises(ValueError, match=f"expected .*{key}="):
        _zeisel._SOURCE.verify(adata)


@pytest.mark.parametrize("value", [0.5, -1.0, np.inf])
def test_verification_refuses_values_that_are_no_counts(value: float) -> None:
    adata = published_like()
    adata.X = sparse.csr_matrix(([value], ([0], [0])), shape=adata.shape, dtype=np.float32)
    with pytest.raises(ValueError, match="must hold raw counts, but 1 of 1"):
        _zeisel._SOURCE.verify(adata)


@pytest.mark.parametrize("text", ["<html>no such object</html>", zeisel_text()])
def test_zeisel_removes_a_download_that_fails_verification(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    cached = write_plain(tmp_path, text)
    monkeypatch.setattr(Source, "download", lambda _: cached)
    with pytest.raises(ValueError, match="Aug-2014"):
        datasets.zeisel()
    assert not cached.exists()


def test_zeisel_never_removes_a_file_of_the_user(tmp_path: Path) -> None:
    mine = write_plain(tmp_path, zeisel_text())
    with pytest.raises(ValueError, match="not the published one"):
        datasets.zeisel(mine)
    assert mine.exists()


@pytest.mark.usefixtures("small_facts")
def test_zeisel_keeps_a_good_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached = write_plain(tmp_path, zeisel_text())
    monkeypatch.setattr(Source, "download", lambda _: cached)
    assert datasets.zeisel(n_genes=None).shape == (4, 5)
    assert cached.exists()


def test_zeisel_offline_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import pooch

    caplog.set_level(logging.ERROR, logger="pooch")
    monkeypatch.setattr(pooch, "os_cache", lambda _: tmp_path)
    elsewhere = _zeisel._SOURCE._replace(url="http://127.0.0.1:9/cortex.txt")
    monkeypatch.setattr(_zeisel, "_SOURCE", elsewhere)
    with pytest.raises(ConnectionError, match=r"download http://127.*pass it as path=") as caught:
        datasets.zeisel()
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


MATRIX = np.array([[0, 3, 1], [2, 0, 0]])


def write_folder(
    folder: Path, matrix: NDArray, labels: str, name: str = "sub_set-720.mtx"
) -> Path:
    io.mmwrite(folder / name, sparse.coo_matrix(matrix))
    (folder / "labels.txt").write_text(labels)
    return folder


@pytest.mark.parametrize("transpose", [False, True], ids=["cells-by-genes", "genes-by-cells"])
@pytest.mark.parametrize("name", ["sub_set-720.mtx", "counts.mtx"])
def test_folder_is_read_in_either_orientation(tmp_path: Path, transpose: bool, name: str) -> None:
    (tmp_path / "genes.txt").write_text("A\nB\nC\n")
    adata = datasets.read_mtx_labels(
        write_folder(tmp_path, MATRIX.T if transpose else MATRIX, "T cell\nB cell\n", name)
    )
    assert_counts(adata)
    np.testing.assert_array_equal(adata.X.toarray(), MATRIX)
    assert adata.obs["cell_type"].tolist() == ["T cell", "B cell"]
    assert adata.var_names.tolist() == ["A", "B", "C"]


def test_square_matrix_is_cells_by_genes(tmp_path: Path) -> None:
    square = np.array([[1, 2], [0, 4]])
    adata = datasets.read_mtx_labels(write_folder(tmp_path, square, "a\nb\n"))
    np.testing.assert_array_equal(adata.X.toarray(), square)
    assert adata.var_names.tolist() == ["gene_0", "gene_1"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1.000000000000000000e+00\n1.2000e+01\n", ["1", "12"]),
        ("1.0\n2.5\n", ["1.0", "2.5"]),
        ("01\n02\n", ["01", "02"]),
        ("a b", ["a", "b"]),
        ("\ufeffa\r\nb\r\n\r\n", ["a", "b"]),
    ],
    ids=["whole-floats", "fractions", "leading-zeros", "one-line", "windows"],
)
def test_labels_are_read_as_text(tmp_path: Path, text: str, expected: list[str]) -> None:
    adata = datasets.read_mtx_labels(write_folder(tmp_path, MATRIX, text))
    assert adata.obs["cell_type"].tolist() == expected


def test_gene_names_are_used_and_made_unique(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, MATRIX, "a\nb\n")
    (folder / "genes.txt").write_text("Gad1\nGad1\nMog\n")
    assert datasets.read_mtx_labels(folder).var_names.tolist() == ["Gad1", "Gad1-1", "Mog"]


def test_dense_matrix_market_file_is_read(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, MATRIX, "a\nb\n")
    io.mmwrite(folder / "sub_set-720.mtx", MATRIX)
    np.testing.assert_array_equal(datasets.read_mtx_labels(folder).X.toarray(), MATRIX)


def test_original_matrix_wins_over_others(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, MATRIX, "a\nb\n")
    io.mmwrite(folder / "a.mtx", sparse.coo_matrix(MATRIX * 2))
    np.testing.assert_array_equal(datasets.read_mtx_labels(folder).X.toarray(), MATRIX)


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"No folder at .*absent"):
        datasets.read_mtx_labels(tmp_path / "absent")


def test_missing_matrix(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("a\n")
    with pytest.raises(FileNotFoundError, match=r"No \.mtx file in"):
        datasets.read_mtx_labels(tmp_path)


def test_missing_labels(tmp_path: Path) -> None:
    write_folder(tmp_path, MATRIX, "a\nb\n").joinpath("labels.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"No labels\.txt in .*one label per line"):
        datasets.read_mtx_labels(tmp_path)


def test_several_matrices(tmp_path: Path) -> None:
    for name in ("a.mtx", "b.mtx"):
        write_folder(tmp_path, MATRIX, "a\nb\n", name)
    with pytest.raises(ValueError, match=r"2 \.mtx files \(a\.mtx, b\.mtx\)"):
        datasets.read_mtx_labels(tmp_path)


def test_number_of_labels_fits_neither_dimension(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has 4 lines \(4 words\).* is 2 x 3"):
        datasets.read_mtx_labels(write_folder(tmp_path, MATRIX, "a\nb\nc\nd\n"))


def test_number_of_genes_differs(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, MATRIX, "a\nb\n")
    (folder / "genes.txt").write_text("Gad1\n")
    with pytest.raises(ValueError, match=r"names 1 genes, but the matrix has 3"):
        datasets.read_mtx_labels(folder)


def test_normalised_matrix_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, MATRIX * 0.5, "a\nb\n")
    with pytest.raises(ValueError, match=r"2 of 3 stored values .*\(first: 1\.5\)"):
        datasets.read_mtx_labels(folder)


def test_broken_matrix_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, MATRIX, "a\nb\n")
    (folder / "sub_set-720.mtx").write_text("not a matrix\n")
    with pytest.raises(ValueError, match="is not a Matrix Market file"):
        datasets.read_mtx_labels(folder)


@given(counts=arrays(np.int64, (6, 9), elements=st.integers(0, 50)), n_genes=st.integers(1, 9))
def test_no_dropped_gene_varies_more_than_a_kept_one(counts: NDArray, n_genes: int) -> None:
    adata = anndata.AnnData(sparse.csr_matrix(counts, dtype=np.float32))
    kept = _zeisel._highly_variable_by_variance(adata, n_genes).var_names.astype(int)
    variance = counts.var(axis=0)
    dropped = np.setdiff1d(np.arange(9), kept)
    assert len(kept) == n_genes
    assert (np.diff(kept) > 0).all()
    assert variance[kept].min() >= variance[dropped].max(initial=0.0) - 1e-9


def test_ties_in_variance_go_to_the_earlier_gene() -> None:
    counts = np.array([[0.0], [1.0]]) * np.tile([1.0, 3.0], 200)
    adata = anndata.AnnData(sparse.csr_matrix(counts, dtype=np.float32))
    kept = _zeisel._highly_variable_by_variance(adata, 3).var_names.tolist()
    assert kept == ["1", "3", "5"]


@pytest.mark.parametrize("n_batches", [1, 3])
def test_synthetic_is_balanced_count_data(n_batches: int) -> None:
    adata = datasets.synthetic(n_cells=120, n_genes=30, n_types=4, n_batches=n_batches)
    assert_counts(adata)
    assert adata.shape == (120, 30)
    assert adata.obs["cell_type"].value_counts().tolist() == [30] * 4
    assert ("batch" in adata.obs) == (n_batches > 1)
    if n_batches > 1:
        assert adata.obs["batch"].value_counts().tolist() == [40] * 3
        assert (pd.crosstab(adata.obs["cell_type"], adata.obs["batch"]) > 0).all(axis=None)


def test_synthetic_depends_on_the_seed_alone() -> None:
    first, again, other = (datasets.synthetic(50, 20, n_batches=2, seed=s) for s in (3, 3, 4))
    np.testing.assert_array_equal(first.X.toarray(), again.X.toarray())
    pd.testing.assert_frame_equal(first.obs, again.obs)
    assert (first.X != other.X).nnz > 0


def test_synthetic_leaves_the_global_generator_alone() -> None:
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    datasets.synthetic(20, 10)
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002


def test_synthetic_types_differ_more_than_batches() -> None:
    adata = datasets.synthetic(n_cells=1_200, n_genes=100, n_types=3, n_batches=2)
    logs = np.log1p(adata.X.toarray())
    spread = {key: logs_between(logs, adata.obs[key]) for key in ("cell_type", "batch")}
    shuffled = np.random.default_rng(0).permutation(adata.obs["cell_type"].to_numpy())
    assert spread["cell_type"] > 2 * spread["batch"] > 4 * logs_between(logs, shuffled)


def logs_between(logs: NDArray, groups: pd.Series | NDArray) -> float:
    """Return the variance of the mean profile between groups, averaged over genes."""
    means = pd.DataFrame(logs).groupby(np.asarray(groups)).mean()
    return float(means.var(axis=0).mean())


def test_synthetic_counts_are_overdispersed() -> None:
    adata = datasets.synthetic(n_cells=2_000, n_genes=50, n_types=1)
    counts = adata.X.toarray()
    mean, variance = counts.mean(axis=0), counts.var(axis=0)
    expressed = mean > 1
    assert mean.mean() == pytest.approx(1.0, rel=0.15)
    assert (variance[expressed] > 1.15 * mean[expressed]).all()


@pytest.mark.parametrize("argument", ["n_cells", "n_genes", "n_types", "n_batches"])
def test_synthetic_refuses_empty_sizes(argument: str) -> None:
    with pytest.raises(ValueError, match=f"{argument} must be at least 1, got 0"):
        datasets.synthetic(**{argument: 0})


@pytest.mark.parametrize("argument", ["n_types", "n_batches"])
def test_synthetic_refuses_more_groups_than_cells(argument: str) -> None:
    with pytest.raises(ValueError, match=f"{argument} = 11 is more than n_cells = 10"):
        datasets.synthetic(n_cells=10, **{argument: 11})


class RFile:
    """What R saves lists, character vectors, matrices and data frames as, and no more."""

    @staticmethod
    def integers(*values: int) -> bytes:
        return struct.pack(f">{len(values)}i", *values)

    @classmethod
    def string(cls, text: str) -> bytes:
        return cls.integers(0x40009, len(text)) + text.encode()

    @classmethod
    def strings(cls, texts: list[str]) -> bytes:
        return cls.integers(16, len(texts)) + b"".join(map(cls.string, texts))

    @classmethod
    def pairs(cls, items: dict[str, bytes]) -> bytes:
        tagged = (cls.integers(0x402, 1) + cls.string(k) + v for k, v in items.items())
        return b"".join(tagged) + cls.integers(254)

    @classmethod
    def named(cls, items: dict[str, bytes], attributes: dict[str, bytes] | None = None) -> bytes:
        attributes = {"names": cls.strings(list(items)), **(attributes or {})}
        flags = 0x313 if "class" in attributes else 0x213
        return cls.integers(flags, len(items)) + b"".join(items.values()) + cls.pairs(attributes)

    @classmethod
    def matrix(cls, values: NDArray, rows: list[str], columns: list[str]) -> bytes:
        names = cls.integers(19, 2) + cls.strings(rows) + cls.strings(columns)
        attributes = {"dim": cls.integers(13, 2, *values.shape), "dimnames": names}
        data = values.astype(">f8").tobytes(order="F")
        return cls.integers(0x20E, values.size) + data + cls.pairs(attributes)

    @classmethod
    def frame(cls, columns: dict[str, list[str]], rows: list[str]) -> bytes:
        attributes = {"class": cls.strings(["data.frame"]), "row.names": cls.strings(rows)}
        return cls.named({k: cls.strings(v) for k, v in columns.items()}, attributes)

    @classmethod
    def write(cls, path: Path, **objects: bytes) -> Path:
        version = cls.integers(2, 0x30600, 0x20300)
        path.write_bytes(bz2.compress(b"RDX2\nX\n" + version + cls.pairs(objects)))
        return path


KANG_META = {
    "sample": ["STIM", "CTRL", "STIM", "STIM"],
    "cell_type": ["B", "NK", "B", "DC"],
    "sex": ["male", "female", "male", "female"],
}
KANG_SMALL = {
    "n_cells": 4,
    "n_genes": 5,
    "batch": (1, 3),
    "cell_type": (1, 1, 2),
    "n_values": 11,
    "total": 434,
}


def write_kang(folder: Path, cells: list[str] = CELLS, counts: NDArray = COUNTS) -> Path:
    expression = RFile.matrix(counts, GENES, CELLS)
    content = RFile.named({"expr": expression, "meta": RFile.frame(KANG_META, cells)})
    return RFile.write(folder / "ifnb_2800.rda", ifnb_2800=content)


@pytest.fixture
def small_kang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_kang, "_SOURCE", _kang._SOURCE._replace(known=KANG_SMALL))
    monkeypatch.delenv("DRA_SCVI_DATA", raising=False)


@pytest.mark.usefixtures("small_kang")
def test_kang_reads_what_r_saved(tmp_path: Path) -> None:
    adata = datasets.kang(write_kang(tmp_path))
    assert_counts(adata)
    np.testing.assert_array_equal(adata.X.toarray(), COUNTS.T)
    assert list(adata.obs_names) == CELLS
    assert list(adata.var_names) == GENES
    assert adata.obs["batch"].tolist() == KANG_META["sample"]
    assert adata.obs["cell_type"].tolist() == KANG_META["cell_type"]
    assert list(adata.obs) == ["cell_type", "batch"]  # `sex` was made up


@pytest.mark.usefixtures("small_kang")
def test_kang_prefers_the_copy_in_the_folder_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = datasets.kang(write_kang(tmp_path))
    expected.write_h5ad(tmp_path / "kang_ifnb_2800x14053.h5ad")
    monkeypatch.setenv("DRA_SCVI_DATA", str(tmp_path))
    monkeypatch.setattr(Source, "download", lambda _: pytest.fail("downloaded"))
    adata = datasets.kang()
    np.testing.assert_array_equal(adata.X.toarray(), expected.X.toarray())
    pd.testing.assert_frame_equal(adata.obs, expected.obs)


@pytest.mark.usefixtures("small_kang")
@pytest.mark.parametrize(
    ("file", "message"),
    [
        (lambda folder: write_kang(folder, counts=COUNTS + 1), "is not the published one"),
        (lambda folder: write_kang(folder, counts=COUNTS / 2), "must hold raw counts"),
        (lambda folder: write_kang(folder, cells=CELLS[::-1]), "of different cells"),
        (lambda folder: write_plain(folder, "<html>not found</html>"), "cannot be read"),
        (lambda folder: RFile.write(folder / "x.rda", x=RFile.strings(["a"])), "cannot be read"),
    ],
    ids=["other-counts", "normalised", "other-cells", "a-web-page", "other-object"],
)
def test_kang_refuses_other_data_and_forgets_a_bad_download(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    file: Callable[[Path], Path],
    message: str,
) -> None:
    path = file(tmp_path)
    with pytest.raises(ValueError, match=message):
        datasets.kang(path)
    assert path.exists()
    monkeypatch.setattr(Source, "download", lambda _: path)
    with pytest.raises(ValueError, match=message):
        datasets.kang()
    assert not path.exists()


@pytest.mark.usefixtures("small_kang")
def test_kang_cut_off_in_the_download(tmp_path: Path) -> None:
    path = write_kang(tmp_path)
    whole = path.read_bytes()
    for length in (3, len(whole) // 2, len(whole) - 5):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="cannot be read"):
            datasets.kang(path)


def test_kang_without_a_network_or_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pooch

    def offline(*_: object, **__: object) -> None:
        raise OSError("unreachable")

    monkeypatch.delenv("DRA_SCVI_DATA", raising=False)
    monkeypatch.setattr(pooch, "retrieve", offline)
    with pytest.raises(ConnectionError, match=r"ifnb_2800\.rda elsewhere and pass it as path="):
        datasets.kang()
    with pytest.raises(FileNotFoundError, match=r"ifnb_2800\.rda and pass it"):
        datasets.kang(tmp_path / "nothing.rda")


def test_kang_is_the_data_that_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = os.environ.get("DRA_SCVI_DATA")
    if not folder:
        pytest.skip("DRA_SCVI_DATA is not set")
    adata = datasets.kang()
    assert_counts(adata)
    assert adata.shape == (2_800, 14_053)
    sizes = adata.obs["batch"].value_counts().to_dict()
    assert sizes == {"STIM": 1_490, "CTRL": 1_310}
    other = _kang._SOURCE._replace(known={**_kang._SOURCE.known, "total": 1})
    monkeypatch.setattr(_kang, "_SOURCE", other)
    with pytest.raises(ValueError, match="not the published one"):
        datasets.kang()
    assert Path(folder, "kang_ifnb_2800x14053.h5ad").exists()  # the user's own


def test_zeisel_label_sizes_agree_with_an_independent_copy() -> None:
    folder = os.environ.get("DRA_SCVI_DATA")
    if not folder:
        pytest.skip("DRA_SCVI_DATA is not set")
    adata = anndata.read_h5ad(Path(folder, "zeisel_ewce_3005x200.h5ad"))
    assert adata.n_obs == KNOWN["n_cells"]
    sizes = sorted(adata.obs["cell_type"].value_counts())
    assert tuple(sizes) == KNOWN["level1class"]
