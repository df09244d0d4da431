"""What a cell costs, in time and memory, from ten thousand to a million that stay on disk.

    python tests/benchmarks/scale.py                          # 10⁴, 10⁵ and 10⁶ cells
    python tests/benchmarks/scale.py 10000 100000 --epochs 2

For every number of cells an .h5ad of gamma-Poisson counts is written in pieces (cells sorted by
type, which is the hard order for whoever reads neighbours together), and `dra_scvi.tl.dra` trains
on the backed AnnData in a process of its own, whose peak resident memory is that of everything:
libraries, checking of the counts, training, embedding. One row per run is appended to the table;
sizes that are in it, with the same epochs, are not run again, and a file that is there whole is
not written again. Seconds are CPU seconds of one thread; wall seconds depend on what else runs.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
from anndata.io import sparse_dataset, write_elem
from scipy import sparse

N_GENES, N_TYPES, DEPTH = 2_000, 20, 250
CELLS_PER_PIECE = 10_000
CELLS_SCORED = 20_000
TABLE = Path(__file__).parent / "results" / "scale.csv"


def counts(types: np.ndarray, profiles: np.ndarray, rng: np.random.Generator) -> sparse.csr_matrix:
    """Draw the counts of cells of given types, about 7 % of them above zero."""
    depth = rng.lognormal(np.log(DEPTH), 0.4, (len(types), 1)).astype(np.float32)
    noise = rng.standard_gamma(2.0, (len(types), N_GENES), dtype=np.float32) / 2
    return sparse.csr_matrix(rng.poisson(profiles[types] * depth * noise).astype(np.float32))


def simulate(path: Path, n_cells: int) -> None:
    """Write `n_cells` to an .h5ad, piece by piece."""
    rng = np.random.default_rng(0)
    profiles = rng.gamma(0.3, 1.0, N_GENES) * np.exp(rng.normal(0, 0.7, (N_TYPES, N_GENES)))
    profiles = (profiles / profiles.sum(1, keepdims=True)).astype(np.float32)
    types = np.arange(n_cells) * N_TYPES // n_cells
    partial = path.with_suffix(".partial")
    with h5py.File(partial, "w") as file:
        for start in range(0, n_cells, CELLS_PER_PIECE):
            piece = counts(types[start : start + CELLS_PER_PIECE], profiles, rng)
            if start:
                sparse_dataset(file["X"]).append(piece)
            else:
                write_elem(file, "X", piece, dataset_kwargs={"indptr_dtype": np.int64})
        names = pd.Index(np.char.add("cell_", np.arange(n_cells).astype(str)))
        obs = pd.DataFrame({"cell_type": pd.Categorical(types.astype(str))}, index=names)
        write_elem(file, "obs", obs)
        write_elem(file, "var", pd.DataFrame(index=[f"gene_{i}" for i in range(N_GENES)]))
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
    partial.replace(path)


def measure(path: Path, epochs: int | None) -> dict[str, Any]:
    """Train on a file and embed its cells; to be called in a process of its own."""
    import torch

    import dra_scvi

    torch.set_num_threads(1)
    adata = anndata.read_h5ad(path, backed="r")
    wall, cpu = time.perf_counter(), time.process_time()
    model = dra_scvi.tl.dra(
        adata, max_epochs=epochs, accelerator="cpu", train_kwargs={"enable_progress_bar": False}
    )
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    begin = time.process_time()
    model.get_latent_representation()
    embedding = time.process_time() - begin
    begin = time.process_time()
    dra_scvi.DRA.setup_anndata(adata)
    checking = time.process_time() - begin
    chosen = np.sort(np.random.default_rng(0).permutation(adata.n_obs)[:CELLS_SCORED])
    labels = adata.obs["cell_type"].iloc[chosen]
    trained = model.trainer.max_epochs
    return {
        "cells": adata.n_obs,
        "genes": adata.n_vars,
        "epochs": trained,
        "file_mb": round(path.stat().st_size / 1e6),
        "cpu_s": round(cpu, 1),
        "wall_s": round(wall, 1),
        "us_per_cell_and_epoch": round(1e6 * (cpu - embedding - checking) / trained / adata.n_obs),
        "embed_us_per_cell": round(1e6 * embedding / adata.n_obs),
        "check_us_per_cell": round(1e6 * checking / adata.n_obs),
        "peak_mb": round(peak),
        "nmi": round(dra_scvi.metrics.clustering(adata.obsm["X_dra"][chosen], labels)["nmi"], 3),
        "dra_scvi": version("dra_scvi"),
        "scvi_tools": version("scvi-tools"),
    }


def rows_of(table: Path) -> list[dict[str, str]]:
    """Read what has been measured."""
    if not table.exists():
        return []
    with table.open(newline="") as file:
        return list(csv.DictReader(file))


def append(row: dict[str, Any], table: Path) -> None:
    """Add a row, under a header if it is the first."""
    is_new = not table.exists()
    with table.open("a", newline="") as file:
        writer = csv.DictWriter(file, row, lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerow(row)


def main() -> None:
    """Write, train on, and tabulate what has not been measured yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cells", nargs="*", type=int, default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--epochs", type=int, help="default: what DRA takes for so many cells")
    parser.add_argument("--folder", type=Path, help="where files are kept; default: nowhere")
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, arguments.epochs)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        for n_cells in arguments.cells:
            epochs = arguments.epochs or default_epochs(n_cells)
            done = [(row["cells"], row["epochs"]) for row in rows_of(arguments.table)]
            if (str(n_cells), str(epochs)) in done:
                continue
            path = folder / f"{n_cells}.h5ad"
            if not path.exists():
                simulate(path, n_cells)
            command = [sys.executable, __file__, "--measure", str(path), "--epochs", str(epochs)]
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
            result = subprocess.run(
                command, env=environment, stdout=subprocess.PIPE, text=True, check=True
            )
            row = json.loads(result.stdout.splitlines()[-1])
            append(row, arguments.table)
            print(row, flush=True)


def default_epochs(n_cells: int) -> int:
    """Return the epochs that DRA takes."""
    from dra_scvi._model.epochs import default_max_epochs

    return default_max_epochs(n_cells)


if __name__ == "__main__":
    main()
