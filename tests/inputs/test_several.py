"""Files joined: what they are called, whether they fit in memory, blocks of mixed kinds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anndata
import numpy as np
import pytest
from scipy import sparse

from dra_scvi._inputs import out_of_core
from dra_scvi._inputs.out_of_core import open_stored, stay_in_files
from dra_scvi._inputs.several import tell_lost_genes, write_joined
from tests.helpers import N_CELLS, cells, fit, invoke

if TYPE_CHECKING:
    from pathlib import Path


def test_files_stay_where_they_are_if_all_together_are_too_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [tmp_path / "one.h5ad", tmp_path / "two.h5ad"]
    for path in paths:
        anndata.AnnData(np.ones((50, 100), np.float32)).write_h5ad(path)  # 20 kB
    monkeypatch.setattr(out_of_core, "available_memory", lambda: 60_000)
    assert not stay_in_files(paths[:1])
    assert stay_in_files(paths)
    assert not stay_in_files(paths, wanted=False)
    (tmp_path / "cells.h5").write_bytes(b"other")
    assert not stay_in_files([*paths, tmp_path / "cells.h5"])
    with pytest.raises(ValueError, match=r"cells\.h5 has to be an \.h5ad or a zarr store"):
        stay_in_files([*paths, tmp_path / "cells.h5"], wanted=True)


@pytest.mark.parametrize("rows", [7, 8_192])
def test_blocks_that_span_files_of_unlike_kinds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    parts = {"one": cells(seed=1), "two": cells(seed=2)[:, ::-1].copy(), "three": cells(seed=3)}
    parts["one"].X = parts["one"].X.astype(np.int32)
    parts["two"].X = parts["two"].X.toarray() + 0.5
    for name, part in parts.items():
        part.write_h5ad(tmp_path / f"{name}.h5ad")
    whole = anndata.concat(parts, join="inner", label="file", index_unique="-")
    monkeypatch.setattr(out_of_core, "ROWS_PER_BLOCK", rows)
    stored = {name: open_stored(tmp_path / f"{name}.h5ad") for name in parts}
    write_joined(stored, "file", tmp_path / "joined.h5ad")
    found = anndata.read_h5ad(tmp_path / "joined.h5ad")
    assert sparse.issparse(found.X)
    assert found.X.dtype == whole.X.dtype
    np.testing.assert_array_equal(found.X.toarray(), sparse.csr_matrix(whole.X).toarray())
    assert found.obs.equals(whole.obs)


def test_nothing_is_said_where_no_gene_falls_away(tmp_path: Path) -> None:
    parts = {tmp_path / "one.h5ad": cells(seed=1), tmp_path / "two.h5ad": cells(seed=2)}
    assert tell_lost_genes(parts, cells().n_vars) == ""


@pytest.mark.parametrize("reading", ["--in-memory", "--out-of-core"])
def test_embedding_cells_of_several_files(tmp_path: Path, reading: str) -> None:
    model = fit(cells())
    model.save(str(tmp_path / "model"))
    paths = [tmp_path / "one.h5ad", tmp_path / "two.h5ad"]
    for seed, path in enumerate(paths):
        cells(seed=seed).write_h5ad(path)
    output = tmp_path / "out.h5ad"
    options = ("--model", tmp_path / "model", "--output", output, "--accelerator", "cpu")
    result = invoke("embed", *paths, *options, reading)
    assert result.exit_code == 0, result.output
    found = anndata.read_h5ad(output)
    for number in range(2):
        codes = model.get_latent_representation(cells(seed=number))
        rows = found.obs["file"] == paths[number].stem
        assert rows.sum() == N_CELLS
        np.testing.assert_allclose(found.obsm["X_dra"][rows], codes, atol=1e-5)
