"""What each part of DRA does: the default beside variants of it, each with one thing changed.

    DRA_SCVI_DATA=data python tests/benchmarks/ablation.py              # some hours on one core
    DRA_SCVI_DATA=data python tests/benchmarks/ablation.py --variants default "no matching"
    python tests/benchmarks/ablation.py --summary                       # from the table alone

Runs are those of `dra-scvi benchmark`: 10 dimensions, 1,000 genes, all cells. Variants of one
seed are made on all sets before the next seed begins; rows that are in the table are kept, by the
name of the variant. Variants in `BATCHES` are scored with `batch_key`, by scib-metrics.
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
import torch
from _arguments import parsed

import dra_scvi
from dra_scvi._model.dra import CALIBRATION_CELLS
from dra_scvi._module.neighborhood import Neighborhood, evenly_spaced
from dra_scvi.benchmark._models import BUILT_IN, Task

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

Embed = Callable[["AnnData", int, int], "NDArray[Any]"]

TABLE = Path(__file__).parent / "results" / "ablation.csv"
SETS = (
    "zeisel_ewce_3005x200",
    "kang_ifnb_2800x14053",
    "zeisel_descend_1464x1000",
    "worm_neuron_4186x13488",
)
SETS_WITH_BATCHES = ("sc_mixology_5batches", "kang_ifnb_2800x14053")


def variant(
    model: Mapping[str, Any] | None = None, batch_key: str | None = None, **train: Any
) -> Embed:
    """Return DRA with some arguments of its model, its training, and its plan (the others)."""
    plan = {name: train.pop(name) for name in list(train) if name != "batch_size"}

    def embed(counts: AnnData, n_latent: int, seed: int) -> NDArray[Any]:
        dra_scvi.tl.dra(
            counts,
            batch_key=batch_key,
            n_latent=n_latent,
            seed=seed,
            accelerator="cpu",
            model_kwargs=dict(model or {}),
            train_kwargs={"enable_progress_bar": False, "plan_kwargs": plan, **train},
        )
        return counts.obsm["X_dra"]

    return embed


def scvi_with_neighbors(counts: AnnData, n_latent: int, seed: int) -> NDArray[Any]:
    """Return codes of scVI, moved as those of DRA are: what of the lead is due to that step."""
    task = Task(n_latent, seed, batch_key=None, max_epochs=None, accelerator="cpu")
    codes = torch.from_numpy(BUILT_IN["scvi"]["embed"](counts, task).points)
    some = codes[evenly_spaced(len(codes), CALIBRATION_CELLS)]
    neighborhood = Neighborhood(n_latent, n_neighbors=30)
    neighborhood.fit(some, torch.zeros(len(some)))
    return neighborhood(codes).numpy()


VARIANTS: dict[str, Embed] = {
    "default": variant(),
    "no matching": variant(latent_weight=0, data_weight=0),
    "codes matched only": variant(data_weight=0),
    "data matched only": variant(latent_weight=0),
    "normal prior": variant({"prior": "normal"}),
    "normal prior, no matching": variant({"prior": "normal"}, latent_weight=0, data_weight=0),
    "no neighbours": variant({"n_neighbors": 0}),
    "jensen-shannon": variant({"divergence": "jensen-shannon"}),
    "latent_weight 10": variant(latent_weight=10),
    "latent_weight 100": variant(latent_weight=100),
    "data_weight 10": variant(data_weight=10),
    "KL weight 0.1": variant(max_kl_weight=0.1),
    "KL weight 0": variant(max_kl_weight=0.0),
    "KL weight 0, latent_weight 10": variant(max_kl_weight=0.0, latent_weight=10),
    "KL weight 1 from the start": variant(n_epochs_kl_warmup=1),
    "no dropout": variant({"dropout_rate": 0.0}),
    "dropout 0.2": variant({"dropout_rate": 0.2}),
    "256 hidden units": variant({"n_hidden": 256}),
    "two hidden layers": variant({"n_layers": 2}),
    "batch size 256": variant(batch_size=256),
    "lr 3e-3": variant(lr=3e-3),
    "lr 3e-4": variant(lr=3e-4),
    "scVI with neighbours": scvi_with_neighbors,
}
_integrated = partial(variant, batch_key="batch")
BATCHES: dict[str, Embed] = {
    "default": _integrated(),
    "no matching": _integrated(latent_weight=0, data_weight=0),
    "latent_weight 1": _integrated(latent_weight=1),
    "latent_weight 30": _integrated(latent_weight=30),
    "data_weight 0": _integrated(data_weight=0),
    "normal prior": _integrated({"prior": "normal"}),
    "no neighbours": _integrated({"n_neighbors": 0}),
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
    scores = ["nmi", "leiden_nmi", "ari", "integration_total"]
    table["batch_key"] = table["batch_key"].fillna("")
    key = ["batch_key", "dataset", "seed"]
    default = table[table["model"] == "default"].set_index(key)[scores]
    rows = table.set_index([*key, "model"])[scores].sub(default)
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
