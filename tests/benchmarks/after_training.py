"""What each step after training does to the scores: one training, four embeddings of it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import anndata
import torch

from dra_scvi import DRA, benchmark, tl

if TYPE_CHECKING:
    from collections.abc import Callable

    from anndata import AnnData
    from numpy.typing import NDArray

QUIET = {"enable_progress_bar": False}


def embeddings() -> dict[str, Callable[[AnnData, int, int], NDArray]]:
    """Functions for :func:`dra_scvi.benchmark.compare`, which share the model of a seed."""
    trained: dict[int, tuple[DRA, torch.Tensor]] = {}

    def train(counts: AnnData, n_latent: int, seed: int) -> tuple[DRA, torch.Tensor]:
        if seed not in trained:
            batch_key = next(iter(counts.obs.columns), None)
            model = tl.dra(
                counts,
                batch_key=batch_key,
                n_latent=n_latent,
                seed=seed,
                accelerator="cpu",
                model_kwargs={"n_neighbors": 30, "expression_axes": True},
                train_kwargs=QUIET,
            )
            means, _ = model.get_latent_representation(return_dist=True)
            trained[seed] = model, torch.from_numpy(means)
        return trained[seed]

    def none(*task: object) -> NDArray:
        return train(*task)[1].numpy()

    def axes(*task: object) -> NDArray:
        model, means = train(*task)
        return model.module.embedding(means, average=False).numpy()

    def mean(*task: object) -> NDArray:
        model, means = train(*task)
        return model.module.embedding.neighborhood(means).numpy()

    def both(*task: object) -> NDArray:
        model, means = train(*task)
        return model.module.embedding(means).numpy()

    return {"none": none, "axes": axes, "mean": mean, "both": both}


def main() -> None:
    """Add rows to a table, set by set."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("inputs", nargs="+", type=Path, help=".h5ad files with obs['cell_type']")
    parser.add_argument("--batched", nargs="*", default=[], help="those with obs['batch']")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    for path in given.inputs:
        benchmark.compare(
            anndata.read_h5ad(path),
            "cell_type",
            batch_key="batch" if path.stem in given.batched else None,
            models=embeddings(),
            n_latent=10,
            n_genes=1000,
            seeds=given.seeds,
            name=path.stem,
            output=given.output,
            accelerator="cpu",
            progress=False,
        )


if __name__ == "__main__":
    main()
