"""Faults of a run over several files: what does not fit together is said before the work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anndata
import h5py
import numpy as np
import pytest
from scipy import sparse

from tests.helpers import cells, invoke

if TYPE_CHECKING:
    from pathlib import Path

    from click.testing import Result

FAST = ("--max-epochs", 1, "--accelerator", "cpu", "--n-hidden", 8)


def part(seed: int) -> anndata.AnnData:
    adata = cells(seed=seed)
    adata.layers["counts"] = sparse.csr_matrix(adata.X)
    return adata


@pytest.fixture
def two() -> dict[str, anndata.AnnData]:
    return {"one": part(1), "two": part(2)}


def train(folder: Path, parts: dict[str, anndata.AnnData], *options: Any) -> Result:
    paths = [folder / f"{name}.h5ad" for name in parts]
    for path, adata in zip(paths, parts.values(), strict=True):
        adata.write_h5ad(path)
    return invoke("train", *paths, "--output", folder / "out.h5ad", *FAST, *options)


def embedding(path: Path) -> bytes:
    with h5py.File(path) as file:
        return bytes(file["obsm/X_dra"][:].tobytes())


@pytest.mark.parametrize("reading", ["--in-memory", "--out-of-core"])
def test_genes_of_one_file_alone(
    tmp_path: Path, two: dict[str, anndata.AnnData], reading: str
) -> None:
    """Genes that one file lacks fall away, which is said; cells become those of anndata.concat."""
    two["one"] = two["one"][:, 2:].copy()
    two["two"] = two["two"][:, ::-1].copy()
    two["two"].layers["counts"] = two["two"].layers["counts"].astype(np.int32)
    del two["two"].obs["batch"]
    whole = anndata.concat(two, join="inner", label="file", index_unique="-")
    options = ("--layer", "counts", "--batch-key", "file", reading)
    result = train(tmp_path, two, *options)
    assert result.exit_code == 0, result.output
    assert f"2 of 12 in {tmp_path / 'two.h5ad'}; 10 are left" in result.stderr
    found = anndata.read_h5ad(tmp_path / "out.h5ad")
    assert list(found.obs_names) == list(whole.obs_names)
    assert list(found.var_names) == list(whole.var_names) == list(two["one"].var_names)
    assert list(found.obs["file"]) == ["one"] * 60 + ["two"] * 60
    assert "batch" not in found.obs
    for matrix, expected in ((found.X, whole.X), (found.layers["counts"], whole.layers["counts"])):
        np.testing.assert_array_equal(matrix.toarray(), expected.toarray())
    whole.write_h5ad(tmp_path / "whole.h5ad")
    alone = ("train", tmp_path / "whole.h5ad", "--output", tmp_path / "alone.h5ad")
    assert invoke(*alone, *FAST, *options).exit_code == 0
    assert embedding(tmp_path / "out.h5ad") == embedding(tmp_path / "alone.h5ad")
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"one.h5ad", "two.h5ad", "out.h5ad", "whole.h5ad", "alone.h5ad"}


def test_files_without_a_gene_in_common(tmp_path: Path, two: dict[str, anndata.AnnData]) -> None:
    """Files with genes of two kinds are refused, with a name of each kind."""
    two["two"].var_names = [f"ENSG{n}" for n in range(12)]
    result = train(tmp_path, two)
    assert result.exit_code == 65
    assert "the files have 0 genes in common" in result.stderr
    assert "'gene_0'" in result.stderr
    assert "'ENSG0'" in result.stderr


def test_a_gene_twice_in_one_of_the_files(tmp_path: Path, two: dict[str, anndata.AnnData]) -> None:
    """A gene that one file has twice is refused, with the name of the file."""
    two["two"].var_names = [*two["two"].var_names[:-1], "gene_0"]
    result = train(tmp_path, two)
    assert result.exit_code == 65
    assert f"gene names of {tmp_path / 'two.h5ad'} are not unique" in result.stderr


@pytest.mark.parametrize("reading", ["--in-memory", "--out-of-core"])
def test_a_layer_that_one_file_lacks(
    tmp_path: Path, two: dict[str, anndata.AnnData], reading: str
) -> None:
    """A layer that one of the files lacks is refused, with the name of the file."""
    two["two"].layers["count"] = two["two"].layers.pop("counts")
    result = train(tmp_path, two, "--layer", "counts", reading)
    assert result.exit_code == 65
    said = f"--layer counts is not a layer of {tmp_path / 'two.h5ad'}; did you mean 'count'?"
    assert said in result.stderr


@pytest.mark.parametrize("option", ["--batch-key", "--label-key", "--categorical-covariate-keys"])
def test_a_column_that_one_file_lacks(
    tmp_path: Path, two: dict[str, anndata.AnnData], option: str
) -> None:
    """A column that one of the files lacks is refused, with the name of the file."""
    two["one"].obs = two["one"].obs.rename(columns={"batch": "donor"})
    result = train(tmp_path, two, option, "donor")
    assert result.exit_code == 65
    said = f"{option} donor is not a column of obs in {tmp_path / 'two.h5ad'}"
    assert said in result.stderr


def test_a_column_of_the_name_for_the_file(
    tmp_path: Path, two: dict[str, anndata.AnnData]
) -> None:
    """A column named as that which tells the files apart is refused; --file-key names another."""
    two["two"].obs["file"] = "mine"
    result = train(tmp_path, two)
    assert result.exit_code == 65
    assert f"--file-key file: {tmp_path / 'two.h5ad'} has a column of this name" in result.stderr
    result = train(tmp_path, two, "--file-key", "source", "--batch-key", "source")
    assert result.exit_code == 0, result.output
    found = anndata.read_h5ad(tmp_path / "out.h5ad", backed="r")
    assert list(found.obs["source"].cat.categories) == ["one", "two"]


def test_one_file_twice(tmp_path: Path, two: dict[str, anndata.AnnData]) -> None:
    """A file given twice is refused, also under another name."""
    two["one"].write_h5ad(tmp_path / "one.h5ad")
    (tmp_path / "link.h5ad").symlink_to(tmp_path / "one.h5ad")
    paths = (tmp_path / "one.h5ad", tmp_path / "link.h5ad")
    result = invoke("train", *paths, "--output", tmp_path / "out.h5ad")
    assert result.exit_code == 65
    assert "is given twice" in result.stderr


def test_a_name_for_the_file_where_there_is_one(
    tmp_path: Path, two: dict[str, anndata.AnnData]
) -> None:
    """--file-key with one INPUT is refused: there would be one value."""
    result = train(tmp_path, {"one": two["one"]}, "--file-key", "source")
    assert result.exit_code == 2
    assert "--file-key needs several INPUTs" in result.stderr


def test_an_output_over_one_of_the_files(tmp_path: Path, two: dict[str, anndata.AnnData]) -> None:
    """An output that is one of several inputs is refused, by the input's name."""
    two["one"].write_h5ad(tmp_path / "one.h5ad")
    two["two"].write_h5ad(tmp_path / "two.h5ad")
    paths = (tmp_path / "one.h5ad", tmp_path / "two.h5ad")
    result = invoke("train", *paths, "--output", paths[1], "--force")
    assert result.exit_code == 73
    assert f"the same as INPUT {paths[1]}, which is never written to" in result.stderr


@pytest.mark.parametrize("reading", ["--in-memory", "--out-of-core"])
def test_going_on_after_one_file_changed(
    tmp_path: Path,
    two: dict[str, anndata.AnnData],
    reading: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """--resume after one of the files changed is refused; with what they held it goes on."""

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("dra_scvi.cli._train.write_cells", fail)
        stopped = train(tmp_path, two, reading)
    assert stopped.exit_code != 0
    assert (tmp_path / ".out.h5ad.ckpt").exists()
    two["two"].X.data[5] += 1
    result = train(tmp_path, two, reading, "--resume")
    assert result.exit_code == 65, result.output
    assert "counts" in result.stderr
    two["two"].X.data[5] -= 1
    result = train(tmp_path, two, reading, "--resume")
    assert result.exit_code == 0, result.output
    assert "going on from" in result.stderr


def test_a_layer_by_column_in_a_file(tmp_path: Path, two: dict[str, anndata.AnnData]) -> None:
    """A layer stored by column, out of which cells cannot be read one by one, is refused."""
    for adata in two.values():
        adata.layers["counts"] = sparse.csc_matrix(adata.X)
    result = train(tmp_path, two, "--out-of-core")
    assert result.exit_code == 65
    assert "layers/counts is stored by column (CSC)" in result.stderr
