"""Three uses of generated cells, each beside real cells and beside simpler ways to the same end.

    DRA_SCVI_DATA=data python tests/benchmarks/uses.py          # 20 minutes on one core
    DRA_SCVI_DATA=data python tests/benchmarks/uses.py --sets citeseq_pbmc_3762x2000 --seeds 0
    python tests/benchmarks/uses.py --summary                   # from the table alone

One half of the cells is there (the pilot); the other stands for what is not yet known.

power: how often a type with 2 % of the cells gets a Leiden cluster of its own, in studies of 200,
400 and 800 cells made of the pilot, beside studies drawn from the other half.
share: clusters and markers found in a set made of the pilot, beside those found in the other half.
fill up: how well a classifier knows types of 5, 10 and 20 cells, with more cells of them made.

1,000 genes, 10 dimensions, all else by default. Sets on which no setting was chosen. Rows that are
in the table are kept, by set, seed and use.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import anndata
import numpy as np
import pandas as pd
import scanpy as sc
import torch
from _arguments import begun
from anndata import AnnData
from realism import from_copula
from scipy import sparse
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import (
    adjusted_rand_score,
    f1_score,
    normalized_mutual_info_score,
)
from sklearn.neighbors import KNeighborsClassifier

from dra_scvi import metrics, tl
from dra_scvi.benchmark._cells import prepare

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from dra_scvi import DRA

TABLE = Path(__file__).parent / "results" / "uses.csv"
SETS = ("citeseq_pbmc_3762x2000", "human_kidney_young_5685x2000", "pbmc_facs_3774x16791")
QUIET = {"enable_progress_bar": False}
N_COMPONENTS, N_NEIGHBORS, N_MARKERS = 20, 5, 20
# power
STUDY_SIZES, SHARE, REPEATS = (200, 400, 800), 0.02, 10
LEAST_CELLS, POOL, FOUND = 25, 5_000, 0.5
# share
RESOLUTION, LEAST_OF_CLUSTER = 0.5, 20
# fill up
RARE_SIZES, MOST_MADE = (5, 10, 20), 20_000


class Half(NamedTuple):
    """Counts and known types of some cells."""

    counts: sparse.csr_matrix
    types: NDArray[np.str_]

    def take(self, rows: NDArray[np.int64]) -> Half:
        return Half(self.counts[rows], self.types[rows])


# -- cells and models --------------------------------------------------------------------------


def halves(name: str, folder: Path, seed: int, max_cells: int) -> tuple[Half, Half]:
    """Return the pilot and the other half."""
    adata = anndata.read_h5ad(folder / f"{name}.h5ad")
    counts = prepare(adata, "cell_type", None, None, 1000, max_cells, name).counts
    types = adata.obs.loc[counts.obs_names, "cell_type"].to_numpy(str)
    order = np.random.default_rng(seed).permutation(counts.n_obs)
    cells = Half(counts.X, types)
    middle = len(order) // 2
    return cells.take(np.sort(order[:middle])), cells.take(np.sort(order[middle:]))


def trained(cells: Half, seed: int) -> DRA:
    adata = AnnData(cells.counts.copy())
    return tl.dra(adata, seed=seed, accelerator="cpu", train_kwargs=QUIET)


def labelled(model: DRA, cells: Half, n_cells: int, seed: int) -> Half:
    """Make cells, and name them by the nearest codes of the cells that the model was given."""
    made = model.generate(n_cells, seed=seed)
    known = KNeighborsClassifier(N_NEIGHBORS, weights="distance")
    known.fit(model.get_latent_representation(), cells.types)
    return Half(made.X, known.predict(made.obsm["codes"]))


def shuffled(cells: Half, n_cells: int, rng: np.random.Generator) -> Half:
    """Draw each gene on its own from the cells of one type: no correlation is left within it."""
    rows = rng.integers(len(cells.types), size=n_cells)
    types, dense = cells.types[rows], cells.counts.toarray()
    made = np.empty((n_cells, dense.shape[1]), np.float32)
    for name in np.unique(types):
        own, wanted = dense[cells.types == name], types == name
        chosen = rng.integers(len(own), size=(wanted.sum(), dense.shape[1]))
        made[wanted] = np.take_along_axis(own, chosen, axis=0)
    return Half(sparse.csr_matrix(made), types)


def log_normalised(counts: sparse.csr_matrix) -> AnnData:
    logs = AnnData(counts.copy())
    sc.pp.normalize_total(logs, target_sum=1e3)
    sc.pp.log1p(logs)
    return logs


# -- power -------------------------------------------------------------------------------------


def power(pilot: Half, other: Half, model: DRA, seed: int) -> Iterator[dict[str, Any]]:
    """Share of studies in which a rare type gets a cluster of its own."""
    rng = np.random.default_rng(seed)
    name = rare_type(pilot, other, seed)
    drawn = rng.integers(len(pilot.types), size=POOL)
    pools = {
        "real": other,
        "generate": labelled(model, pilot, POOL, seed),
        "pilot, drawn again": pilot.take(drawn),
        "genes on their own": shuffled(pilot, POOL, rng),
    }
    for contender, pool in pools.items():
        own = np.flatnonzero(pool.types == name)
        rest = np.flatnonzero(pool.types != name)
        for n_cells in STUDY_SIZES:
            n_rare = round(SHARE * n_cells)
            scores = []
            for repeat in range(REPEATS if len(own) >= n_rare else 0):
                rows = [rng.choice(own, n_rare, replace=False)]
                rows += [rng.choice(rest, n_cells - n_rare, replace=False)]
                study = pool.take(np.concatenate(rows))
                scores.append(best_f1(study, name, repeat))
            found = np.asarray(scores) >= FOUND
            what = {"contender": contender, "what": f"{n_cells} cells", "type": name}
            # of a type that was never made nothing can be found
            yield {**what, "measure": "power", "value": float(found.mean()) if scores else 0.0}


def rare_type(pilot: Half, other: Half, seed: int) -> str:
    """Take one of the types with enough cells in both halves, the rarest first."""
    sizes = pd.Series(pilot.types).value_counts(ascending=True)
    there = pd.Series(other.types).value_counts()
    enough = [n for n in sizes.index if min(sizes[n], there.get(n, 0)) >= LEAST_CELLS]
    return enough[seed % len(enough)]


def best_f1(study: Half, name: str, seed: int) -> float:
    """Return the largest F1 of a Leiden cluster, at resolution 1, as a call of the type."""
    logs = log_normalised(study.counts)
    sc.pp.pca(logs, n_comps=N_COMPONENTS, random_state=0)
    clusters = metrics.cluster(logs.obsm["X_pca"], "leiden", seed=seed)
    is_own = study.types == name
    return max(f1_score(is_own, clusters == cluster) for cluster in np.unique(clusters))


# -- share -------------------------------------------------------------------------------------


def share(pilot: Half, other: Half, model: DRA, seed: int) -> Iterator[dict[str, Any]]:
    """Compare an analysis of a set that stands for the pilot with one of the other half."""
    rng, n_cells = np.random.default_rng(seed), len(pilot.types)
    own = Analysis(pilot.counts, seed)
    grouped = Half(pilot.counts, own.clusters.astype(str))
    train = AnnData(pilot.counts)
    sets: dict[str, Callable[[], Any]] = {
        "real": lambda: pilot.counts,
        "generate": lambda: model.generate(n_cells, seed=seed).X,
        "copula": lambda: from_copula(train, n_cells, seed),
        "genes on their own": lambda: shuffled(grouped, n_cells, rng).counts,
    }
    reference = Analysis(other.counts, seed)
    for contender, make in sets.items():
        analysis = own if contender == "real" else Analysis(make(), seed)
        told = analysis.clusters_of(other.counts)
        found = {
            "ari": adjusted_rand_score(reference.clusters, told),
            "nmi": normalized_mutual_info_score(other.types, told),
            "markers": analysis.shared_markers(reference, told),
            "clusters": analysis.clusters.max() + 1,
        }
        for measure, value in found.items():
            yield {"contender": contender, "measure": measure, "value": float(value)}


class Analysis:
    """What people do with a set of cells: components, clusters, marker genes."""

    def __init__(self, counts: sparse.csr_matrix, seed: int) -> None:
        self.logs = log_normalised(counts)
        self.pca = PCA(N_COMPONENTS, random_state=0)
        self.points = self.pca.fit_transform(self.logs.X.toarray())
        self.clusters = metrics.cluster(self.points, "leiden", resolution=RESOLUTION, seed=seed)

    def clusters_of(self, counts: sparse.csr_matrix) -> NDArray[np.int64]:
        """Name other cells after the clusters found here, by their neighbours."""
        points = self.pca.transform(log_normalised(counts).X.toarray())
        return KNeighborsClassifier(15).fit(self.points, self.clusters).predict(points)

    def markers(self) -> dict[int, set[str]]:
        """Return the genes that stand out most in each cluster, by a t-test."""
        logs = self.logs.copy()
        logs.obs["cluster"] = pd.Categorical(self.clusters.astype(str))
        sizes = np.bincount(self.clusters)
        groups = [str(i) for i in np.flatnonzero(sizes >= 2)]
        sc.tl.rank_genes_groups(logs, "cluster", groups=groups, method="t-test")
        names = logs.uns["rank_genes_groups"]["names"]
        return {int(group): set(names[group][:N_MARKERS]) for group in groups}

    def shared_markers(self, reference: Analysis, told: NDArray[np.int64]) -> float:
        """Average, over clusters of the reference, the share of markers found here as well."""
        mine, theirs = self.markers(), reference.markers()
        shares = []
        for cluster, genes in theirs.items():
            own = reference.clusters == cluster
            if own.sum() >= LEAST_OF_CLUSTER:
                counterpart = np.bincount(told[own]).argmax()
                shares.append(len(genes & mine.get(int(counterpart), set())) / N_MARKERS)
        return float(np.mean(shares))


# -- fill up -----------------------------------------------------------------------------------


def fill_up(pilot: Half, other: Half, seed: int) -> Iterator[dict[str, Any]]:
    """Classify after types that were thinned to a few cells are filled up."""
    rng = np.random.default_rng(seed)
    cells, rare = thinned(pilot, other, rng)
    n_wanted = int(np.median(np.unique(pilot.types, return_counts=True)[1]))
    model = trained(cells, seed)
    pool = labelled(model, cells, MOST_MADE, seed)

    def generated(name: str, n_cells: int) -> Any:
        return pool.counts[np.flatnonzero(pool.types == name)[:n_cells]]  # as many as there are

    def of_posterior(name: str, n_cells: int) -> Any:
        rows = rng.choice(np.flatnonzero(cells.types == name), n_cells)
        torch.manual_seed(seed)
        counts = [
            model.posterior_predictive_sample(indices=part, n_samples=1).todense()
            for part in np.array_split(rows, -(-n_cells // 100))
        ]
        return sparse.csr_matrix(np.concatenate(counts), dtype=np.float32)

    def copied(name: str, n_cells: int) -> Any:
        return cells.counts[rng.choice(np.flatnonzero(cells.types == name), n_cells)]

    def apart(name: str, n_cells: int) -> Any:
        return shuffled(cells.take(np.flatnonzero(cells.types == name)), n_cells, rng).counts

    ways: dict[str, Callable[[str, int], Any] | None] = {
        "nothing": None,
        "weights": None,
        "copies": copied,
        "genes on their own": apart,
        "generate": generated,
        "posterior of the few": of_posterior,
    }
    for contender, way in ways.items():
        counts, types, added = [cells.counts], [cells.types], {}
        for name, n_cells in rare.items() if way else ():
            counts.append(way(name, n_wanted - n_cells))
            added[name] = counts[-1].shape[0]
            types.append(np.full(added[name], name))
        whole = Half(sparse.vstack(counts, format="csr"), np.concatenate(types))
        told = classified(whole, other.counts, is_weighted=contender == "weights")
        f1 = f1_score(other.types, told, average="macro")
        yield {"contender": contender, "what": "all types", "measure": "f1", "value": f1}
        for name, n_cells in rare.items():
            row = {"contender": contender, "what": f"{n_cells} cells", "type": name}
            yield {**row, "measure": "f1", "value": one_f1(other.types, told, name)}
            yield {**row, "measure": "recall", "value": (told == name)[other.types == name].mean()}
            yield {**row, "measure": "added", "value": added.get(name, 0)}


def thinned(pilot: Half, other: Half, rng: np.random.Generator) -> tuple[Half, dict[str, int]]:
    """Keep a few cells of three types, drawn at random from those that can be scored."""
    sizes = pd.Series(other.types).value_counts()
    there = pd.Series(pilot.types).value_counts()
    enough = [n for n in sizes.index if min(sizes[n], there.get(n, 0)) >= LEAST_CELLS]
    chosen = rng.choice(enough, len(RARE_SIZES), replace=False)
    rare = dict(zip(map(str, chosen), RARE_SIZES, strict=True))
    rows = [np.flatnonzero(~np.isin(pilot.types, chosen))]
    for name, n_cells in rare.items():
        rows.append(rng.choice(np.flatnonzero(pilot.types == name), n_cells, replace=False))
    return pilot.take(np.sort(np.concatenate(rows))), rare


def classified(cells: Half, counts: sparse.csr_matrix, is_weighted: bool) -> NDArray[np.str_]:
    """Call types by logistic regression on all genes, as annotation programs do."""
    model = LogisticRegression(
        C=0.1, max_iter=100, class_weight="balanced" if is_weighted else None
    )
    return model.fit(log_normalised(cells.counts).X, cells.types).predict(log_normalised(counts).X)


def one_f1(types: NDArray[np.str_], told: NDArray[np.str_], name: str) -> float:
    return float(f1_score(types == name, told == name, zero_division=0.0))


# -- the table ---------------------------------------------------------------------------------


def rows_of(
    name: str, seed: int, arguments: argparse.Namespace, done: set[str]
) -> Iterator[dict[str, Any]]:
    """Yield the rows of each use that has none."""
    if len(done) == 3:
        return
    pilot, other = halves(name, arguments.data, seed, arguments.max_cells)
    model = None if {"power", "share"} <= done else trained(pilot, seed)
    for use, make in {
        "power": lambda: power(pilot, other, model, seed),
        "share": lambda: share(pilot, other, model, seed),
        "fill up": lambda: fill_up(pilot, other, seed),
    }.items():
        if use not in done:
            started = time.process_time()
            rows = list(make())
            print(name, seed, use, f"{time.process_time() - started:.0f} s", flush=True)
            head = {"data": name, "seed": seed, "n_pilot": len(pilot.types), "use": use}
            yield from ({**head, "what": "", "type": "", **row} for row in rows)


def summary(table: pd.DataFrame) -> str:
    """Means over sets and seeds; of power, the distance from that of real cells, too."""
    parts = []
    for use in table["use"].unique():
        some = table[table["use"] == use]
        wide = some.pivot_table(
            index="contender", columns=["measure", "what"], values="value", sort=False
        )
        parts.append(f"{use}\n{wide.round(3).to_string()}")
        if use == "power":
            keys = ["data", "seed", "what"]
            each = some.pivot_table(index=keys, columns="contender", values="value")
            off = each.drop(columns="real").sub(each["real"], axis=0)
            parts.append(f"too high\n{off.mean().round(3).to_string()}")
            parts.append(f"off by\n{off.abs().mean().round(3).to_string()}")
    return "\n\n".join(parts)


def main() -> None:
    """Go on with the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="+", default=list(SETS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--max-cells", type=int, default=3000, help="most cells of a set")
    arguments = begun(parser, TABLE)
    path = arguments.table
    table = pd.read_csv(path, keep_default_na=False) if path.exists() else pd.DataFrame()
    for seed in [] if arguments.summary else arguments.seeds:
        for name in arguments.sets:
            is_here = (table["data"] == name) & (table["seed"] == seed) if len(table) else []
            done = set(table.loc[is_here, "use"]) if len(table) else set()
            rows = list(rows_of(name, seed, arguments, done))
            table = pd.concat([table, pd.DataFrame(rows)], ignore_index=True)
            table.round(4).to_csv(path, index=False)
    print(summary(table))


if __name__ == "__main__":
    main()
