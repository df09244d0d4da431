"""Speed of DRA against scVI: both in one process, alternating, as ratios with their spread.

    python tests/benchmarks/speed.py --genes 720 2000 5000 --threads 1 2

Absolute times mean nothing on a shared machine; CPU time of one thread is the sturdy figure.
"""

from __future__ import annotations

import argparse
import logging
import time
import warnings
from typing import TYPE_CHECKING

import anndata
import numpy as np
import scipy.sparse as sp
import torch
from scvi.model import SCVI

from dra_scvi import DRA

if TYPE_CHECKING:
    from collections.abc import Callable

N_CELLS, BATCH_SIZE, EPOCHS = 6_400, 128, 3
MODELS = {
    "scVI": (SCVI, {}, {}),
    "DRA": (DRA, {}, {}),
    "DRA, normal prior": (DRA, {"prior": "normal"}, {}),
    "DRA, no discriminators": (
        DRA,
        {"prior": "normal"},
        {"latent_weight": 0.0, "data_weight": 0.0},
    ),
}


def counts(n_genes: int) -> anndata.AnnData:
    """Gamma-Poisson counts of twenty programmes, about 22 % of them above zero."""
    rng = np.random.default_rng(0)
    programmes = rng.gamma(0.5, 1.0, (20, n_genes))
    usage = rng.dirichlet(np.full(20, 0.3), N_CELLS)
    share = usage @ programmes
    share /= share.sum(1, keepdims=True)
    depth = rng.lognormal(np.log(0.3 * n_genes), 0.4, N_CELLS)
    noise = rng.gamma(2.0, 0.5, share.shape)
    x = rng.poisson(share * depth[:, None] * noise).astype(np.float32)
    return anndata.AnnData(sp.csr_matrix(x))


def timed(run: Callable[[], object]) -> tuple[float, float]:
    """CPU and wall seconds."""
    cpu, wall = time.process_time(), time.perf_counter()
    run()
    return time.process_time() - cpu, time.perf_counter() - wall


def measure(adata: anndata.AnnData, name: str) -> dict[str, tuple[float, float]]:
    """Milliseconds of a training step, and of embedding a thousand cells."""
    cls, model_kwargs, plan_kwargs = MODELS[name]
    model = cls(adata, **model_kwargs)
    train = timed(
        lambda: model.train(
            EPOCHS,
            accelerator="cpu",
            train_size=1.0,
            batch_size=BATCH_SIZE,
            enable_progress_bar=False,
            plan_kwargs=plan_kwargs,
        )
    )
    n_steps = EPOCHS * N_CELLS / BATCH_SIZE
    embed = timed(model.get_latent_representation)
    return {
        "step": tuple(1e3 * t / n_steps for t in train),
        "inference": tuple(1e6 * t / N_CELLS for t in embed),
    }


def main() -> None:
    """Print a table of ratios to scVI: median, and range over the repeats."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--genes", type=int, nargs="+", default=[720, 2000, 5000])
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    print("| genes | threads | model | what | CPU ms | wall ms | CPU / scVI | range |")
    print("|---|---|---|---|---|---|---|---|")
    for n_genes in arguments.genes:
        adata = counts(n_genes)
        for cls in (SCVI, DRA):
            cls.setup_anndata(adata)
        for n_threads in arguments.threads:
            torch.set_num_threads(n_threads)
            for name in MODELS:
                measure(adata, name)  # warm-up
            repeats = [
                {name: measure(adata, name) for name in MODELS} for _ in range(arguments.repeats)
            ]
            for what in ("step", "inference"):
                for name in MODELS:
                    times = np.array([r[name][what] for r in repeats])
                    ratios = times[:, 0] / np.array([r["scVI"][what][0] for r in repeats])
                    cpu, wall = np.median(times, 0)
                    print(
                        f"| {n_genes} | {n_threads} | {name} | {what} | {cpu:.1f} | {wall:.1f} | "
                        f"{np.median(ratios):.2f} | {ratios.min():.2f}-{ratios.max():.2f} |",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
