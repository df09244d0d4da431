"""Readers on hundreds of damaged files: one line that says what is wrong, and never a crash."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np
import pytest
from scipy import io, sparse

from dra_scvi import datasets
from dra_scvi._data.validation import validate_counts
from dra_scvi._exceptions import InvalidCountsError
from dra_scvi._inputs import hdf5_probe as _hdf5_probe
from dra_scvi._inputs.read import read_input

if TYPE_CHECKING:
    from anndata import AnnData

N_FILES = 80
SECONDS = 300


def cells() -> AnnData:
    adata = datasets.synthetic(n_cells=30, n_genes=8, n_types=2, n_batches=2)
    adata.layers["counts"] = adata.X.toarray()
    adata.uns["settings"] = {"k": 2, "names": ["a", "b"]}
    adata.obsm["X_pca"] = np.ones((30, 2))
    return adata


def write_h5ad(folder: Path) -> Path:
    cells().write_h5ad(folder / "cells.h5ad")
    return folder / "cells.h5ad"


def write_zarr(folder: Path) -> Path:
    pytest.importorskip("zarr")
    cells().write_zarr(folder / "cells.zarr")
    return folder / "cells.zarr"


def write_10x(folder: Path) -> Path:
    adata = cells()
    stored = sparse.csr_matrix(adata.X)
    with h5py.File(folder / "cells.h5", "w") as file:
        group = file.create_group("matrix")
        group["barcodes"] = adata.obs_names.to_numpy().astype("S")
        group["data"] = stored.data.astype(np.int32)
        group["indices"], group["indptr"] = stored.indices, stored.indptr
        group["shape"] = np.array(adata.shape[::-1], dtype=np.int32)
        features = group.create_group("features")
        for name in ("id", "name", "feature_type", "genome"):
            features[name] = adata.var_names.to_numpy().astype("S")
    return folder / "cells.h5"


def write_folder(folder: Path) -> Path:
    adata = cells()
    io.mmwrite(folder / "sub_set-720.mtx", adata.X.astype(int))
    (folder / "labels.txt").write_text("\n".join(adata.obs["cell_type"]) + "\n")
    (folder / "genes.txt").write_text("\n".join(adata.var_names) + "\n")
    return folder


WRITERS = {"h5ad": write_h5ad, "zarr": write_zarr, "10x": write_10x, "mtx": write_folder}


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Flip, cut, drop, repeat, insert or overwrite bytes somewhere."""
    new = bytearray(content)
    start = rng.randrange(len(new))
    end = min(len(new), start + rng.randrange(1, 64))
    kind = rng.randrange(8)
    if kind in (0, 1):
        for _ in range(1 if kind == 0 else rng.randrange(2, 60)):
            new[rng.randrange(len(new))] ^= 1 << rng.randrange(8)
    elif kind == 2:
        del new[start:]
    elif kind == 3:
        del new[start:end]
    elif kind == 4:
        new[start:start] = new[start:end]
    elif kind == 5:
        new[start:start] = rng.randbytes(rng.randrange(1, 40))
    else:
        new[start:end] = (b"\x00" if kind == 6 else b"\xff") * (end - start)
    return bytes(new)


def outcome(path: Path) -> str:
    """Read an input; return what is wrong with how that went."""
    try:
        validate_counts(read_input(path), to_train=False)
    except (ValueError, FileNotFoundError) as error:
        return "several lines" if "\n" in str(error) else ""
    except MemoryError:  # a damaged length can ask for more than there is
        return ""
    except BaseException as error:  # noqa: BLE001 - any other is a finding
        return f"{type(error).__name__}: {error}"
    return ""


def read_all(kind: str, path: Path) -> None:
    """Damage one file after the other, and print what is wrong with reading it."""
    _hdf5_probe.SECONDS = 2
    files = sorted(file for file in [path, *path.rglob("*")] if file.is_file())
    files = [file for file in files if file.stat().st_size]
    for number in range(N_FILES):
        rng = random.Random(f"{kind} {number}")
        file = rng.choice(files)
        content = file.read_bytes()
        file.write_bytes(damaged(content, rng))
        sys.stdout.write(outcome(path) + "\n")
        sys.stdout.flush()
        file.write_bytes(content)


@pytest.mark.parametrize("kind", WRITERS)
def test_a_damaged_file_is_told_in_one_line(kind: str, tmp_path: Path) -> None:
    path = WRITERS[kind](tmp_path)
    assert outcome(path) == ""
    # in a process of its own, as it may crash or hang
    command = [sys.executable, "-W", "ignore", __file__, kind, str(path)]
    with (tmp_path.parent / f"{kind}.txt").open("w+") as output:
        subprocess.run(command, stdout=output, timeout=SECONDS, check=False)
        output.seek(0)
        found = output.read().splitlines()
    assert len(found) == N_FILES, f"file {len(found)} crashes or hangs"
    assert [(number, text) for number, text in enumerate(found) if text] == []


@pytest.mark.parametrize("kind", ["csr", "csc"])
@pytest.mark.parametrize("damage", ["column", "negative", "order", "end", "start", "length"])
def test_indices_that_point_outside_of_a_matrix(kind: str, damage: str, tmp_path: Path) -> None:
    adata = cells()
    matrix = adata.X.asformat(kind)
    if damage in ("column", "negative"):
        matrix.indices[3] = max(matrix.shape) if damage == "column" else -1
    elif damage == "length":
        matrix.indptr = matrix.indptr[:-1]
    else:
        place, value = {"order": (2, 100), "end": (-1, 9999), "start": (0, 5)}[damage]
        matrix.indptr[place] = value
    adata.layers["counts"] = cells().X.asformat(kind)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    with h5py.File(tmp_path / "cells.h5ad", "r+") as file:
        group = file["layers/counts"]
        for part in ("indices", "indptr"):
            del group[part]
            group[part] = getattr(matrix, part)
    if damage != "length":
        adata.layers["counts"] = matrix
        with pytest.raises(InvalidCountsError, match="damaged sparse matrix"):
            validate_counts(adata, layer="counts")
    with pytest.raises(ValueError, match=r"damaged sparse matrix|could not be read"):
        read_input(tmp_path / "cells.h5ad")


if __name__ == "__main__":
    read_all(sys.argv[1], Path(sys.argv[2]))
