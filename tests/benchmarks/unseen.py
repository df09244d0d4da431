"""Labelled sets that ship with packages and that no setting was chosen on, as files to benchmark.

    python tests/benchmarks/unseen.py unseen    # writes unseen/spectra.h5ad, unseen/pbmc68k.h5ad

`dra-scvi benchmark` takes these as any other.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import anndata
import numpy as np
from scipy import sparse

import dra_scvi

SPECTRA = "scspectra==0.2.1"


def spectra() -> anndata.AnnData:
    """Immune cells of breast tumours, the sample that ships with Spectra, as counts.

    It holds log2(1 + s n) of counts n, with one scale s for each cell: that of its least value,
    which is a count of one.
    """
    download = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([*download, "--dest", folder, SPECTRA], check=True)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            logged = anndata.read_h5ad(archive.extract("Spectra/data/sample_data.h5ad", folder))
    scaled = np.exp2(logged.to_df().to_numpy(dtype=float)) - 1
    least = np.where(scaled > 0, scaled, np.inf).min(axis=1, keepdims=True)
    counts = np.round(scaled / least)
    if not np.allclose(counts, scaled / least, atol=0.01):
        raise ValueError(f"The sample of {SPECTRA} does not hold log2(1 + scaled counts).")
    types = logged.obs["cell_type_annotations"].astype(str)
    return anndata.AnnData(
        sparse.csr_matrix(counts, dtype=np.float32),
        obs=types.to_frame("cell_type"),
        var=logged.var[[]],
    )


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    spectra().write_h5ad(folder / "spectra.h5ad")
    dra_scvi.datasets.pbmc68k().write_h5ad(folder / "pbmc68k.h5ad")


if __name__ == "__main__":
    main()
