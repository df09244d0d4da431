"""Speed of DRA against scVI: both in one process, alternating, as ratios with their spread.

    python tests/benchmarks/speed.py                            # all parts, about an hour
    python tests/benchmarks/speed.py step inference --genes 2000 --threads 1 2

Parts: `step` (a training step), `epoch` (what a cell costs in a whole run, loader and validation
included), `inference` (codes of a cell), `quality` (time until DRA's NMI reaches scVI's final one,
as a share of scVI's time; on the sets in the folder `DRA_SCVI_DATA`, else on the demo's cells),
`memory` (peak resident memory of a training process), `scale` (a training cell from 10⁴ cells up),
`threads` (training and codes with the numbers of threads that DRA chooses, against `--threads`).

Absolute times mean nothing on a shared machine; ratios of CPU time of one thread are the sturdy
figure. For `memory` and `threads` every run has a process of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata
import numpy as np
import scipy.sparse as sp
import scvi
import torch
from lightning.pytorch.callbacks import Callback
from scvi.model import SCVI

from dra_scvi import DRA, datasets, metrics
from dra_scvi._threads import own_threads
from dra_scvi.benchmark import _runs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

N_CELLS, BATCH_SIZE, EPOCHS = 6_400, 128, 10
PARTS = ("step", "epoch", "inference", "quality", "memory", "scale", "threads")
# cells, genes, epochs
THREAD_SIZES = ((3_005, 200, 20), (2_700, 1_000, 10), (20_000, 2_000, 2))
THREAD_NUMBERS = {"as chosen": 0, "--threads 1": 1, "--threads 2": 2}
MODELS: dict[str, tuple[type[SCVI], dict[str, Any], dict[str, Any]]] = {
    "scVI": (SCVI, {}, {}),
    "DRA": (DRA, {}, {}),
    "DRA, no discriminators": (DRA, {}, {"latent_weight": 0.0, "data_weight": 0.0}),
}


def counts(n_genes: int, n_cells: int = N_CELLS) -> anndata.AnnData:
    """Gamma-Poisson counts of twenty programmes, about 22 % of them above zero."""
    rng = np.random.default_rng(0)
    programmes = rng.gamma(0.5, 1.0, (20, n_genes))
    n_distinct = min(n_cells, N_CELLS)
    usage = rng.dirichlet(np.full(20, 0.3), n_distinct)
    share = usage @ programmes
    share /= share.sum(1, keepdims=True)
    depth = rng.lognormal(np.log(0.3 * n_genes), 0.4, n_distinct)
    noise = rng.gamma(2.0, 0.5, share.shape)
    x = sp.csr_matrix(rng.poisson(share * depth[:, None] * noise).astype(np.float32))
    copies = -(-n_cells // n_distinct)
    return anndata.AnnData(sp.vstack([x] * copies, format="csr")[:n_cells] if copies > 1 else x)


def timed(run: Callable[[], object]) -> np.ndarray:
    """CPU and wall seconds."""
    cpu, wall = time.process_time(), time.perf_counter()
    run()
    return np.array([time.process_time() - cpu, time.perf_counter() - wall])


def fit(adata: anndata.AnnData, name: str, epochs: int | None, **options: Any) -> SCVI:
    """Train a model of `MODELS`."""
    cls, model_kwargs, plan_kwargs = MODELS[name]
    model = cls(adata, **model_kwargs)
    model.train(
        epochs,
        accelerator="cpu",
        batch_size=BATCH_SIZE,
        enable_progress_bar=False,
        plan_kwargs=plan_kwargs,
        **options,
    )
    return model


def measure(adata: anndata.AnnData, name: str, parts: list[str]) -> dict[str, np.ndarray]:
    """Milliseconds of a training step, of a cell in a whole run, and of a cell embedded."""
    results = {}
    if "step" in parts or "inference" in parts:
        model: list[SCVI] = []
        train = timed(lambda: model.append(fit(adata, name, EPOCHS, train_size=1.0)))
        results["step"] = 1e3 * train * BATCH_SIZE / (EPOCHS * adata.n_obs)
        results["inference"] = 1e3 * timed(model[0].get_latent_representation) / adata.n_obs
    if "epoch" in parts:
        whole = timed(lambda: fit(adata, name, EPOCHS, check_val_every_n_epoch=1))
        results["epoch"] = 1e3 * whole / (EPOCHS * adata.n_obs)
    return results


def alternate(parts: list[str], genes: list[int], threads: list[int], repeats: int) -> None:
    """Print ratios to scVI of the parts that one process can measure: median and range."""
    print("| genes | threads | model | what | CPU ms | wall ms | CPU / scVI | range |")
    print("|---|---|---|---|---|---|---|---|")
    for n_genes in genes:
        adata = counts(n_genes)
        for cls in (SCVI, DRA):
            cls.setup_anndata(adata)
        for n_threads in threads:
            torch.set_num_threads(n_threads)
            for name in MODELS:
                measure(adata, name, parts)  # warm-up
            runs = [{name: measure(adata, name, parts) for name in MODELS} for _ in range(repeats)]
            for what in parts:
                for name in MODELS:
                    times = np.array([run[name][what] for run in runs])
                    ratios = times[:, 0] / np.array([run["scVI"][what][0] for run in runs])
                    cpu, wall = np.median(times, 0)
                    print(
                        f"| {n_genes} | {n_threads} | {name} | {what} | {cpu:.3g} | {wall:.3g} | "
                        f"{np.median(ratios):.2f} | {ratios.min():.2f}-{ratios.max():.2f} |",
                        flush=True,
                    )


class Watch(Callback):
    """Note CPU time and NMI after chosen epochs; what the scoring takes is not counted."""

    def __init__(self, score: Callable[[SCVI], float], every: int) -> None:
        self.score, self.every = score, every
        self.trace: list[tuple[float, float]] = []
        self._start = time.process_time()
        self._scoring = 0.0

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Score the model as it is now."""
        if (trainer.current_epoch + 1) % self.every:
            return
        now = time.process_time()
        random_state, model = torch.get_rng_state(), trainer._model
        model.module.eval()
        model.is_trained_ = True
        self.trace.append((now - self._start - self._scoring, self.score(model)))
        model.is_trained_ = False
        model.module.train()
        torch.set_rng_state(random_state)
        self._scoring += time.process_time() - now


def labelled() -> Iterator[tuple[str, anndata.AnnData, str]]:
    """Labelled counts of at most 1,000 genes: of highest variance after log-normalisation."""
    folder = os.environ.get("DRA_SCVI_DATA")
    if not folder:
        yield "pbmc68k", datasets.pbmc68k(), "bulk_labels"
        return
    import scanpy as sc

    for path in sorted(Path(folder).glob("*.h5ad")):
        adata = anndata.read_h5ad(path)
        if adata.n_vars > 1_000:
            logs = sc.pp.log1p(sc.pp.normalize_total(adata, copy=True), copy=True).X
            variance = logs.power(2).mean(0) - np.square(logs.mean(0))
            adata = adata[:, np.sort(np.argsort(-np.asarray(variance).ravel())[:1_000])].copy()
        yield path.stem, adata[np.asarray(adata.X.sum(1)).ravel() > 0].copy(), "cell_type"


def quality(seeds: int) -> None:
    """Print when DRA's NMI first reaches scVI's final one, as a share of scVI's CPU time."""
    print("| data | seed | scVI NMI | DRA NMI | scVI CPU s | DRA CPU s | reached at | share |")
    print("|---|---|---|---|---|---|---|---|")
    torch.set_num_threads(1)
    for name, adata, label_key in labelled():
        labels = adata.obs[label_key].astype(str)
        for cls in (SCVI, DRA):
            cls.setup_anndata(adata)

        def score(model: SCVI, labels: Any = labels) -> float:
            return metrics.clustering(model.get_latent_representation(), labels)["nmi"]

        for seed in range(seeds):
            scvi.settings.seed = seed
            start = time.process_time()
            target_model = fit(adata, "scVI", None)
            scvi_seconds = time.process_time() - start
            target = score(target_model)
            scvi.settings.seed = seed
            watch = Watch(score, every=4)
            model = fit(adata, "DRA", None, callbacks=[watch])
            final = score(model)
            reached = next((cpu for cpu, nmi in watch.trace if nmi >= target), np.inf)
            print(
                f"| {name} | {seed} | {target:.3f} | {final:.3f} | {scvi_seconds:.0f} | "
                f"{watch.trace[-1][0]:.0f} | {reached:.0f} s | {reached / scvi_seconds:.2f} |",
                flush=True,
            )


def memory(genes: list[int]) -> None:
    """Print the peak resident memory of a process that trains one epoch on 50,000 cells."""
    print("| genes | model | peak MB | / scVI |\n|---|---|---|---|")
    for n_genes in genes:
        first = None
        for name in MODELS:
            command = [sys.executable, __file__, "--train-and-report", name, str(n_genes)]
            result = subprocess.run(command, capture_output=True, text=True, check=True)
            peak = float(result.stdout.split()[-1])
            first = first or peak
            print(f"| {n_genes} | {name} | {peak:.0f} | {peak / first:.2f} |", flush=True)


def train_and_report(name: str, n_genes: int) -> None:
    """Train one epoch and embed; print the peak resident memory of that in MB, counts included."""
    adata = counts(n_genes, 50_000)
    _runs._reset_peak_memory()  # what simulating took does not count
    MODELS[name][0].setup_anndata(adata)
    fit(adata, name, 1).get_latent_representation()
    print(_runs._peak_memory())


def scale(sizes: list[int]) -> None:
    """Print what a cell costs in one epoch of training on growing numbers of cells."""
    print("| cells | model | CPU ms / cell | / first |\n|---|---|---|---|")
    torch.set_num_threads(1)
    fit_small = counts(2_000)
    DRA.setup_anndata(fit_small)
    fit(fit_small, "DRA", 1)  # warm-up
    first = None
    for n_cells in sizes:
        adata = counts(2_000, n_cells)
        DRA.setup_anndata(adata)
        cpu, _ = 1e3 * timed(lambda a=adata: fit(a, "DRA", 1)) / n_cells
        first = first or cpu
        print(f"| {n_cells} | DRA | {cpu:.3f} | {cpu / first:.2f} |", flush=True)


def threads(repeats: int) -> None:
    """Print what training and codes take with the threads that DRA chooses, and with others."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "OMP_WAIT_POLICY")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    print("| cells | genes | threads | wall s | CPU s | wall / one | range | CPU / one | range |")
    print("|---|---|---|---|---|---|---|---|---|")
    for n_cells, n_genes, epochs in THREAD_SIZES:
        runs: dict[str, list[list[float]]] = {name: [] for name in THREAD_NUMBERS}
        for _ in range(repeats):
            for name, number in THREAD_NUMBERS.items():
                sizes = map(str, (number, n_cells, n_genes, epochs))
                command = [sys.executable, __file__, "--train-with-threads", *sizes]
                result = subprocess.run(
                    command, capture_output=True, text=True, check=True, env=environment
                )
                runs[name].append([float(word) for word in result.stdout.split()[-2:]])
        one = np.array(runs["--threads 1"])
        for name, times in runs.items():
            (cpu, wall), ratios = np.median(times, 0), np.array(times) / one
            middle, low, high = np.median(ratios, 0), ratios.min(0), ratios.max(0)
            print(
                f"| {n_cells:,} | {n_genes:,} | {name} | {wall:.3g} | {cpu:.3g} | "
                f"{middle[1]:.2f} | {low[1]:.2f}-{high[1]:.2f} | "
                f"{middle[0]:.2f} | {low[0]:.2f}-{high[0]:.2f} |",
                flush=True,
            )


def train_with_threads(number: int, n_cells: int, n_genes: int, epochs: int) -> None:
    """Train and embed; print CPU and wall seconds of that."""
    adata = counts(n_genes, n_cells)
    DRA.setup_anndata(adata)
    with own_threads(number) if number else contextlib.nullcontext():
        fit(adata, "DRA", 1).get_latent_representation()  # warm-up
        print(*timed(lambda: fit(adata, "DRA", epochs).get_latent_representation()))


def main() -> None:
    """Print a table for each part."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", default=PARTS, metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--genes", type=int, nargs="+", default=[720, 2000, 5000])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--cells", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--train-and-report", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--train-with-threads", nargs=4, type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"unknown part {', '.join(unknown)}: choose from {', '.join(PARTS)}")
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.fabric", "scvi"):
        logging.getLogger(name).setLevel(logging.ERROR)

    if arguments.train_and_report:
        name, n_genes = arguments.train_and_report
        train_and_report(name, int(n_genes))
        return
    if arguments.train_with_threads:
        train_with_threads(*arguments.train_with_threads)
        return
    alternating = [part for part in arguments.parts if part in ("step", "epoch", "inference")]
    if alternating:
        alternate(alternating, arguments.genes, arguments.threads, arguments.repeats)
    if "quality" in arguments.parts:
        quality(arguments.seeds)
    if "memory" in arguments.parts:
        memory(arguments.genes)
    if "scale" in arguments.parts:
        scale(arguments.cells)
    if "threads" in arguments.parts:
        threads(arguments.repeats)


if __name__ == "__main__":
    main()
