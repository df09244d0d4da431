"""What each part of DRA does: the default beside variants of it, each with one thing changed.

    DRA_SCVI_DATA=data python tests/benchmarks/ablation.py              # an hour and more a seed
    DRA_SCVI_DATA=data python tests/benchmarks/ablation.py --variants default "no matching"
    python tests/benchmarks/ablation.py --summary                       # from the table alone

Runs are those of `dra-scvi benchmark`: 10 dimensions, 1,000 genes, all cells. Variants of one
seed are made on all sets before the next seed begins; rows that are in the table are kept, by the
name of the variant. Variants in `BATCHES` are scored with `batch_key`, by scib-metrics.
The sets are those of the half on which choices are made.
`results/SOURCES.md` says where the sets come from.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata
import pandas as pd
from _arguments import WITH_BATCHES, parsed
from figure import FIRST_HALF

import dra_scvi
from dra_scvi._model.epochs import default_max_epochs

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

Embed = Callable[["AnnData", int, int], "NDArray[Any]"]

TABLE = Path(__file__).parent / "results" / "ablation.csv"
SETS = [name for name in FIRST_HALF if name not in WITH_BATCHES]
SETS_WITH_BATCHES = [name for name in FIRST_HALF if name in WITH_BATCHES]
# one batch is trained for half as long, which scores alike by these measures (.docs/results.md)
SHORT = {"lr": 2e-3, "discriminator_lr": 2e-4, "lr_decay_start": 0.5}
SCORES = [
    "nmi",
    "leiden_nmi",
    "leiden1_nmi",
    "purity",
    "silhouette",
    "integration_total",
    "integration_bio_conservation",
    "integration_batch_correction",
]


def variant(
    model: Mapping[str, Any] | None = None, batch_key: str | None = None, **train: Any
) -> Embed:
    """Return DRA with some arguments of its model, and of its plan (the others)."""
    plan = {**({} if batch_key else SHORT), **train}

    def embed(counts: AnnData, n_latent: int, seed: int) -> NDArray[Any]:
        epochs = None if batch_key else default_max_epochs(counts.n_obs) // 2
        dra_scvi.tl.dra(
            counts,
            batch_key=batch_key,
            n_latent=n_latent,
            seed=seed,
            max_epochs=epochs,
            accelerator="cpu",
            model_kwargs=dict(model or {}),
            train_kwargs={"enable_progress_bar": False, "plan_kwargs": plan},
        )
        return counts.obsm["X_dra"]

    return embed


VARIANTS: dict[str, Embed] = {
    "default": variant(),
    "no matching": variant(latent_weight=0, data_weight=0),
    "codes matched only": variant(data_weight=0),
    "data matched only": variant(latent_weight=0),
    "latent_weight 10": variant(latent_weight=10),
    "data_weight 10": variant(data_weight=10),
    "normal prior": variant({"prior": "normal"}),
    "normal prior, no matching": variant({"prior": "normal"}, latent_weight=0, data_weight=0),
    "jensen-shannon": variant({"divergence": "jensen-shannon"}),
}
_integrated = partial(variant, batch_key="batch")
BATCHES: dict[str, Embed] = {
    "default": _integrated(),
    "no matching": _integrated(latent_weight=0, data_weight=0),
    "codes matched only": _integrated(data_weight=0),
    "data matched only": _integrated(latent_weight=0),
    "latent_weight 1": _integrated(latent_weight=1),
    "normal prior": _integrated({"prior": "normal"}),
    "jensen-shannon": _integrated({"divergence": "jensen-shannon"}),
}


def run(folder: Path, names: list[str], seeds: int, batch_key: str | None) -> None:
    """Make the runs that the table lacks."""
    known = BATCHES if batch_key else VARIANTS
    models = {name: known[name] for name in names if name in known}
    for seed in range(seeds if models else 0):
        for name in SETS_WITH_BATCHES if batch_key else SETS:
            dra_scvi.benchmark.compare(
                anndata.read_h5ad(folder / f"{name}.h5ad"),
                "cell_type",
                batch_key,
                models=models,
                n_latent=10,
                seeds=[seed],
                n_genes=1_000,
                name=name,
                output=TABLE,
                progress=False,
                on_row=_report,
            )


def _report(row: Mapping[str, Any], is_kept: bool) -> None:
    if not is_kept:
        print(row["dataset"], row["model"], row["seed"], row["status"], row["nmi"], flush=True)


def summary() -> pd.DataFrame:
    """Differences from the default of the same set and seed, their mean over sets and seeds."""
    table = pd.read_csv(TABLE)
    table["batch_key"] = table["batch_key"].fillna("")
    key = ["batch_key", "dataset", "seed"]
    default = table[table["model"] == "default"].set_index(key)[SCORES]
    rows = table.set_index([*key, "model"])[SCORES].sub(default)
    by_variant = rows.groupby(["batch_key", "model"], sort=False)
    found = by_variant.mean()
    found["runs"] = by_variant.size()
    return found.round(3)


def main() -> None:
    """Run and summarise."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    everything = list(dict.fromkeys([*VARIANTS, *BATCHES]))
    parser.add_argument("--variants", nargs="+", choices=everything, default=everything)
    parser.add_argument("--only", choices=["one-batch", "batches"])
    arguments = parsed(parser)
    if not arguments.summary:
        warnings.simplefilter("ignore")  # of gene selection, the same for every variant
        if arguments.only != "batches":
            run(arguments.data, arguments.variants, arguments.seeds, None)
        if arguments.only != "one-batch":
            run(arguments.data, arguments.variants, arguments.seeds, "batch")
    print(summary().to_string())


if __name__ == "__main__":
    main()
