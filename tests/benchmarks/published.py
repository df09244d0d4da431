"""The published settings over seeds, beside what the released program gave on the same inputs.

    DRA_SCVI_DATA=data python tests/benchmarks/published.py              # 10 seeds, some hours
    DRA_SCVI_DATA=data python tests/benchmarks/published.py --seeds 2 --n-latent 10
    python tests/benchmarks/published.py --summary                       # from the table alone

Every run is what ``dra-scvi train --preset published`` does: a split seeded with 0, 200 epochs,
one sample of the codes of the test fifth, k-means with as many clusters as types among them. Genes
are those of highest variance of the counts. One row per run is appended to the table; runs that
are in it are not made again. `results/SOURCES.md` says where the inputs come from.
"""

from __future__ import annotations

import argparse
import logging
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import anndata
import pandas as pd
import scanpy as sc
from _arguments import parsed

import dra_scvi
from dra_scvi import TrainingDivergedError
from dra_scvi._data.variable_genes import most_variable

TABLE = Path(__file__).parent / "results" / "published.csv"
RUN = ["input", "n_latent", "batch_norm", "seed"]


class Input(NamedTuple):
    """Counts, and the number of genes of highest variance that are kept."""

    file: str
    n_genes: int


INPUTS = {
    "zeisel_ewce": Input("zeisel_ewce_3005x200.h5ad", 200),
    "zeisel_descend": Input("zeisel_descend_1464x1000.h5ad", 720),
    "pbmc4k": Input("pbmc4k_4271x2000.h5ad", 720),
}
# One run of the released TensorFlow 1 program each, seed 0, with `--nobn` (False) and with
# `--bn False`, which reads as on (True).
RELEASED = {
    ("zeisel_ewce", 2, False): 0.534,
    ("zeisel_ewce", 10, False): 0.598,
    ("zeisel_ewce", 20, False): 0.370,
    ("zeisel_ewce", 10, True): 0.364,
    ("zeisel_descend", 2, False): 0.604,
    ("zeisel_descend", 10, False): 0.897,
    ("zeisel_descend", 20, False): 0.820,
    ("zeisel_descend", 10, True): 0.616,
    ("pbmc4k", 10, False): 0.740,
    ("pbmc4k", 10, True): 0.672,
}


def cells(folder: Path, name: str) -> anndata.AnnData:
    """Read an input: cells with counts, genes of highest variance in the order of the file."""
    file, n_genes = INPUTS[name]
    adata = anndata.read_h5ad(folder / file)
    adata = adata[:, most_variable(adata.X, n_genes)].copy()
    sc.pp.filter_cells(adata, min_counts=1)
    return adata


def score(adata: anndata.AnnData, n_latent: int, batch_norm: bool, seed: int) -> dict[str, float]:
    """Train the published program; cluster one sample of the codes of the test cells."""
    dra_scvi.tl.dra(
        adata,
        n_latent=n_latent,
        seed=seed,
        preset="published",
        accelerator="cpu",
        model_kwargs={"batch_norm": batch_norm},
        train_kwargs={"enable_progress_bar": False},
    )
    test = adata[adata.obs["dra_split"] == "test"]
    return dra_scvi.metrics.clustering(test.obsm["X_dra"], test.obs["cell_type"], seed=0)


def outcome(adata: anndata.AnnData, n_latent: int, batch_norm: bool, seed: int) -> dict[str, Any]:
    """Scores of one run, or why it has none, and what it took."""
    start = time.process_time()
    try:
        scores = score(adata, n_latent, batch_norm, seed)
        row = {"status": "ok", "nmi": scores["nmi"], "ari": scores["ari"]}
    except TrainingDivergedError as error:  # a run that diverges is a result as well
        row = {"status": str(error), "nmi": None, "ari": None}
    row["cpu_seconds"] = round(time.process_time() - start, 1)
    return row | {package: version(package) for package in ("dra_scvi", "scvi-tools", "torch")}


def run(folder: Path, names: list[str], dimensions: list[int], seeds: range) -> None:
    """Make the runs that the table lacks, seed by seed, and append a row for each."""
    known = pd.read_csv(TABLE) if TABLE.exists() else pd.DataFrame(columns=RUN)
    done = set(known[RUN].itertuples(index=False, name=None))
    for seed in seeds:
        for name, n_latent, batch_norm in RELEASED:
            setting = (name, n_latent, batch_norm, seed)
            if name not in names or n_latent not in dimensions or setting in done:
                continue
            row = dict(zip(RUN, setting, strict=True))
            row |= outcome(cells(folder, name), n_latent, batch_norm, seed)
            header = not TABLE.exists()
            pd.DataFrame([row]).to_csv(TABLE, mode="a", header=header, index=False)
            print(*row.values(), flush=True)


def summary() -> pd.DataFrame:
    """Compare the spread over seeds with the released program's one run."""
    table = pd.read_csv(TABLE)
    nmi = table.groupby(RUN[:-1])["nmi"]
    rows = nmi.agg(runs="size", scored="count", mean="mean", sd="std", least="min", most="max")
    rows["released"] = pd.Series(RELEASED)
    rows["inside"] = rows["released"].between(rows["least"], rows["most"])
    return rows.round(3)


def main() -> None:
    """Run and summarise."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--inputs", nargs="+", choices=INPUTS, default=list(INPUTS))
    parser.add_argument("--n-latent", nargs="+", type=int, default=[2, 10, 20])
    arguments = parsed(parser)
    if not arguments.summary:
        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
        run(arguments.data, arguments.inputs, arguments.n_latent, range(arguments.seeds))
    print(summary().to_string())


if __name__ == "__main__":
    main()
