"""How right, and how sure, types of a batch held out are: DRA, scANVI and neighbours on PCA.

    DRA_SCVI_DATA=data python tests/benchmarks/transfer.py            # about an hour on one core
    DRA_SCVI_DATA=data python tests/benchmarks/transfer.py --skip scANVI          # a third of that
    DRA_SCVI_DATA=data python tests/benchmarks/transfer.py --sets kang_ifnb_2800x14053 --seeds 0 1
    python tests/benchmarks/transfer.py --summary                     # from the table alone

One batch is the query, the others are the reference: the batch whose number is the seed. When all
sets have that, once more with a type removed from the reference, one of those with 20 cells in
both, by the seed as well: all its cells should be unknown, which is the harder the more it is like
another. At most 800 cells of a set, 1,000 genes, chosen on all cells, and 10 dimensions, all else
as each model has it by default; the scVI that "scANVI, short" begins with has as many epochs as
DRA. Rows that are in the table are kept, by set, seed, removed type and contender.
"""

from __future__ import annotations

import argparse
import itertools
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import anndata
import numpy as np
import pandas as pd
import scanpy as sc
import scvi
from _arguments import QUIET, WITH_BATCHES, begun
from scvi.model import SCANVI, SCVI
from sklearn.metrics import f1_score
from sklearn.neighbors import KNeighborsClassifier

from dra_scvi import metrics, tl
from dra_scvi._labels.classifier import Classifier
from dra_scvi.benchmark._cells import prepare
from dra_scvi.benchmark._models import _dra_epochs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from anndata import AnnData

TABLE = Path(__file__).parent / "results" / "transfer.csv"
N_LATENT, N_NEIGHBORS, N_COMPONENTS = 10, 15, 20
THRESHOLD = 0.5
LEAST_CELLS = 20
UNKNOWN = "unknown"


class Answer(NamedTuple):
    """Probabilities of the types of a reference, and which cells are called unknown."""

    shares: np.ndarray
    types: list[str]
    is_unknown: np.ndarray


# -- cells -------------------------------------------------------------------------------------


def halves(name: str, folder: Path, seed: int, max_cells: int) -> tuple[AnnData, AnnData, str]:
    """Return reference, query, and the name of the batch that the query is."""
    adata = anndata.read_h5ad(folder / f"{name}.h5ad")
    counts = prepare(adata, "cell_type", "batch", None, 1000, max_cells, name).counts
    counts.obs["cell_type"] = adata.obs.loc[counts.obs_names, "cell_type"].astype(str)
    batches = sorted(counts.obs["batch"].astype(str).unique())
    batch = batches[seed % len(batches)]
    is_query = (counts.obs["batch"].astype(str) == batch).to_numpy()
    return counts[~is_query].copy(), counts[is_query].copy(), batch


def removable(reference: AnnData, query: AnnData, seed: int) -> str | None:
    """Name a type that both have enough cells of, the commonest first, if two others stay."""
    sizes = query.obs["cell_type"].value_counts()
    there = reference.obs["cell_type"].value_counts()
    enough = [name for name in sizes.index if min(sizes[name], there.get(name, 0)) >= LEAST_CELLS]
    return enough[seed % len(enough)] if enough and len(there) > 2 else None


# -- contenders --------------------------------------------------------------------------------


def dra(reference: AnnData, query: AnnData, seed: int, epochs: int | None) -> dict[str, Answer]:
    """Train DRA, and transfer as it does by default and with types of equal weight."""
    reference, query = reference.copy(), query.copy()
    model = tl.dra(
        reference,
        batch_key="batch",
        n_latent=N_LATENT,
        seed=seed,
        max_epochs=epochs,
        accelerator="cpu",
        train_kwargs={"enable_progress_bar": False},
    )
    found = {}
    for title, balanced in (("DRA", False), ("DRA, balanced", True)):
        tl.transfer_labels(
            model, query, "cell_type", key_added="t", balanced=balanced, accelerator="cpu"
        )
        types = query.uns["t"]["types"].index.tolist()
        is_unknown = (query.obs["t"] == UNKNOWN).to_numpy()
        found[title] = Answer(query.obsm["t_probabilities"], types, is_unknown)
    return found


def short_scanvi(
    reference: AnnData, query: AnnData, seed: int, epochs: int | None
) -> dict[str, Answer]:
    """Train scVI for as many epochs as DRA, all else as it comes."""
    n_batches = reference.obs["batch"].nunique()
    of_scvi = epochs or _dra_epochs(reference.n_obs, N_LATENT, n_batches)
    return {"scANVI, short": scanvi(reference, query, seed, epochs, of_scvi)["scANVI"]}


def scanvi(
    reference: AnnData,
    query: AnnData,
    seed: int,
    epochs: int | None,
    of_scvi: int | None = None,
) -> dict[str, Answer]:
    """Train scVI, scANVI from it, and scANVI on the query, as scvi-tools' tutorial does."""
    reference, query = reference.copy(), query.copy()
    scvi.settings.seed = seed
    SCVI.setup_anndata(reference, batch_key="batch")
    model = SCVI(reference, n_latent=N_LATENT)
    model.train(of_scvi or epochs, **QUIET)
    known = SCANVI.from_scvi_model(model, UNKNOWN, labels_key="cell_type")
    known.train(epochs or 20, n_samples_per_label=100, **QUIET)
    query.obs["cell_type"] = UNKNOWN
    mapped = SCANVI.load_query_data(query, known, accelerator="cpu")
    mapped.train(epochs or 100, plan_kwargs={"weight_decay": 0.0}, **QUIET)
    shares = mapped.predict(soft=True)
    is_unknown = (shares.max(axis=1) < THRESHOLD).to_numpy()
    return {"scANVI": Answer(shares.to_numpy(), list(shares.columns), is_unknown)}


def pca(reference: AnnData, query: AnnData, seed: int, epochs: int | None) -> dict[str, Answer]:
    """Project onto components of the reference; neighbours as they are, and calibrated."""
    both = []
    for cells in (reference, query):
        logs = cells.copy()
        sc.pp.normalize_total(logs, target_sum=1e4)
        sc.pp.log1p(logs)
        both.append(logs)
    sc.pp.pca(both[0], n_comps=N_COMPONENTS, random_state=seed)
    codes = both[0].obsm["X_pca"]
    asked = (both[1].X - both[0].X.mean(axis=0)) @ both[0].varm["PCs"]
    asked = np.asarray(asked, np.float32)
    types, labels = np.unique(reference.obs["cell_type"], return_inverse=True)
    plain = KNeighborsClassifier(N_NEIGHBORS, weights="distance").fit(codes, labels)
    shares = plain.predict_proba(asked)
    batches = np.unique(reference.obs["batch"].astype(str), return_inverse=True)[1]
    made = Classifier.fit(codes, labels, batches, N_NEIGHBORS, seed=seed).predict(asked)
    improbable = made.probabilities.max(axis=1) < THRESHOLD
    names = types.tolist()
    return {
        "PCA, neighbours": Answer(shares, names, shares.max(axis=1) < THRESHOLD),
        "PCA, calibrated": Answer(made.probabilities, names, improbable | (made.distance > 1)),
    }


CONTENDERS: dict[tuple[str, ...], Callable[..., dict[str, Answer]]] = {
    ("PCA, neighbours", "PCA, calibrated"): pca,
    ("DRA", "DRA, balanced"): dra,
    ("scANVI, short",): short_scanvi,
    ("scANVI",): scanvi,
}


# -- the table ---------------------------------------------------------------------------------


def scores(answer: Answer, query: AnnData, removed: str) -> dict[str, float]:
    """Score cells whose type the reference has, and count those called unknown."""
    truth = query.obs["cell_type"].to_numpy(str)
    is_known = np.isin(truth, answer.types)
    shares = answer.shares[is_known] / answer.shares[is_known].sum(axis=1, keepdims=True)
    called = np.asarray(answer.types)[shares.argmax(axis=1)]
    known, is_unknown = truth[is_known], answer.is_unknown[is_known]
    found = metrics.calibration(shares, known, types=answer.types)
    return {
        "accuracy": found["accuracy"],
        "macro_f1": f1_score(known, called, average="macro", labels=np.unique(known)),
        "ece": found["ece"],
        "unknown": float(is_unknown.mean()),
        "accuracy_called": float((called == known)[~is_unknown].mean()),
        "unknown_of_removed": float(answer.is_unknown[truth == removed].mean()),
    }


def rows_of(
    name: str, seed: int, without: bool, arguments: argparse.Namespace, done: set[tuple[str, str]]
) -> Iterator[dict[str, Any]]:
    """Yield a row for each contender that has none, with all types or without one."""
    reference, query, batch = halves(name, arguments.data, seed, arguments.max_cells)
    removed = removable(reference, query, seed) if without else ""
    if removed is None:
        return
    kept = reference[reference.obs["cell_type"] != removed].copy()
    for titles, contender in CONTENDERS.items():
        if set(titles) & set(arguments.skip) or all((removed, title) in done for title in titles):
            continue
        started = time.process_time()
        answers = contender(kept, query, seed, arguments.epochs)
        seconds = time.process_time() - started
        head = {"data": name, "seed": seed, "batch": batch, "removed": removed}
        head |= {"n_reference": kept.n_obs, "n_query": query.n_obs}
        for title, answer in answers.items():
            if (removed, title) not in done:
                found = scores(answer, query, removed)
                yield {**head, "contender": title, **found, "cpu_seconds": seconds}


def summary(table: pd.DataFrame) -> str:
    """Means over sets of means over seeds."""
    columns = ["accuracy", "macro_f1", "ece", "unknown", "accuracy_called", "unknown_of_removed"]
    parts = []
    for title, some in (
        ("all types", table[table["removed"] == ""]),
        ("one type removed", table[table["removed"] != ""]),
    ):
        if len(some):
            means = some.groupby(["data", "contender"])[columns].mean()
            parts.append(f"{title}\n{means.groupby('contender').mean().round(3).to_string()}")
            parts.append(means.round(3).to_string())
    return "\n\n".join(parts)


def main() -> None:
    """Go on with the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="+", default=list(WITH_BATCHES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--max-cells", type=int, default=800, help="most cells of a set")
    parser.add_argument("--skip", nargs="+", default=[], help="contenders to leave out")
    parser.add_argument("--epochs", type=int, help="of every training, to try the script")
    arguments = begun(parser, TABLE)
    path = arguments.table
    table = pd.read_csv(path, keep_default_na=False, na_values=["nan"]) if path.exists() else None
    table = pd.DataFrame() if table is None else table
    runs = itertools.product(arguments.seeds, (False, True), arguments.sets)
    for seed, without, name in [] if arguments.summary else runs:
        done = set()
        if len(table):
            here = table[(table["data"] == name) & (table["seed"] == seed)]
            done = set(zip(here["removed"], here["contender"], strict=True))
        for row in rows_of(name, seed, without, arguments, done):
            table = pd.concat([table, pd.DataFrame([row])], ignore_index=True)
            table.round(4).to_csv(path, index=False, na_rep="nan")
            print(name, seed, row["removed"], row["contender"], round(row["accuracy"], 3))
    print(summary(table) if len(table) else "no rows")


if __name__ == "__main__":
    main()
