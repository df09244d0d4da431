"""What embeddings do to continua and to rare types: order, branches, neighbours, clusters.

    DRA_SCVI_DATA=data python tests/benchmarks/continua.py            # half an hour on one core
    DRA_SCVI_DATA=data python tests/benchmarks/continua.py --sets paul15_2730x3451 --models scvi
    python tests/benchmarks/continua.py --summary                     # from the table alone

Continua are `paul15` (blood progenitors, the authors' clusters in the order of red blood cells)
and cells made along a line that forks. Diffusion pseudotime is computed on a graph of 15
neighbours, from ten cells at the beginning, and averaged. Scores, each in [0, 1]:

order: of two cells of different clusters (or tenths of the way), how often the earlier one comes
first, every pair of clusters weighing the same; neighbours: the same of consecutive ones;
joined: PAGA's connectivity of consecutive ones, the lowest, which is 0 where a line is torn;
whole: share of the cells in the largest component of the graph.

Rare types are those with at most 2 % of the cells, and types of pancreas cells that are thinned to
5, 10, 20 and 40 cells among 2,000. Scores: own: share of the nearest neighbours of a cell that are
of its type (15, or as many as there can be); cluster: the best F1 of a Leiden cluster as a call of
the type, at resolution 1, and at any of five. Rows that are in the table are kept.
"""

from __future__ import annotations

import argparse
import time
from itertools import combinations, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import anndata
import numpy as np
import pandas as pd
import scanpy as sc
from _arguments import begun
from anndata import AnnData
from scipy import sparse
from scipy.sparse.csgraph import connected_components
from sklearn.metrics import f1_score
from sklearn.neighbors import NearestNeighbors

from dra_scvi import tl
from dra_scvi.benchmark._cells import prepare
from dra_scvi.benchmark._models import Task, resolve
from dra_scvi.metrics._clustering import cluster_graph, neighbor_graph

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

TABLE = Path(__file__).parent / "results" / "continua.csv"
MADE_UP, THINNED = "made_up", "baron_pancreas_7162x1000"
SETS = (
    "paul15_2730x3451",
    THINNED,
    MADE_UP,
    "citeseq_pbmc_3762x2000",
    "kang_ifnb_2800x14053",
)
MODELS = ("pca", "pca, 30", "fa", "scvi-short", "dra")
SETTINGS: dict[str, dict[str, Any]] = {
    "dra, 20": {"n_latent": 20},
    "dra, normal prior": {"model_kwargs": {"prior": "normal"}},
}
WITH_SETTINGS = ("paul15_2730x3451", THINNED)
RED = ("7MEP", "6Ery", "5Ery", "4Ery", "3Ery", "2Ery", "1Ery")  # in the order of Paul et al.
APART = ("19Lymph",)  # no part of the continuum
RARE, FEWEST = 0.02, 5
THINNED_TO, THINNED_CELLS = (5, 10, 20, 40), 2_000
RESOLUTIONS = (0.25, 0.5, 1.0, 2.0, 4.0)
N_NEIGHBORS, N_ROOTS = 15, 10


class Line(NamedTuple):
    """A line through the cells: what is where on it, and the rows that it begins with."""

    name: str
    position: NDArray[np.int64]  # -1 off the line
    roots: NDArray[np.int64]


class Cells(NamedTuple):
    """Counts; lines through them, and those cells that are part of the continuum; rare types."""

    counts: AnnData
    lines: list[Line]
    is_part: NDArray[np.bool_]
    types: NDArray[np.str_]
    rare: list[str]


# -- cells -------------------------------------------------------------------------------------


def cells_of(name: str, folder: Path, seed: int) -> Cells:
    if name == MADE_UP:
        return forked(seed)
    adata = anndata.read_h5ad(folder / f"{name}.h5ad")
    rng = np.random.default_rng(seed)
    if name == THINNED:
        adata, rare = thinned(adata, rng)
    counts = prepare(adata, "cell_type", None, None, 1000, None, name).counts
    types = adata.obs.loc[counts.obs_names, "cell_type"].to_numpy(str)
    if name != THINNED:
        sizes = pd.Series(types).value_counts()
        rare = list(sizes.index[(sizes <= RARE * len(types)) & (sizes >= FEWEST)])
    lines = []
    if name.startswith("paul15"):
        position = np.full(len(types), -1)
        for i, cluster in enumerate(RED):
            position[types == cluster] = i
        roots = rng.choice(np.flatnonzero(position == 0), N_ROOTS, replace=False)
        lines.append(Line("red", position, roots))
    return Cells(counts, lines, ~np.isin(types, APART), types, rare)


def thinned(adata: AnnData, rng: np.random.Generator) -> tuple[AnnData, list[str]]:
    """Keep a few cells of four types, drawn at random, of 2,000."""
    types = adata.obs["cell_type"].to_numpy(str)
    rare = list(map(str, rng.permutation(np.unique(types))[: len(THINNED_TO)]))
    rows = [
        rng.choice(np.flatnonzero(types == name), n_cells, replace=False)
        for name, n_cells in zip(rare, THINNED_TO, strict=True)
    ]
    rest = np.flatnonzero(~np.isin(types, rare))
    rows.append(rng.choice(rest, min(len(rest), THINNED_CELLS - sum(THINNED_TO)), replace=False))
    return adata[np.sort(np.concatenate(rows))].copy(), rare


def forked(seed: int, n_cells: int = 800, n_genes: int = 400) -> Cells:
    """Make cells along a line that forks at 0.4, as the tutorial on continua does."""
    rng = np.random.default_rng(seed)
    time_of, branch = rng.random(n_cells), rng.integers(2, size=n_cells)
    branch[time_of < 0.4] = -1
    log_mean = np.tile(rng.normal(scale=0.8, size=n_genes), (n_cells, 1))
    for part, begin, end in ((-1, 0.0, 1.0), (0, 0.4, 1.0), (1, 0.4, 1.0)):
        is_on = rng.random(n_genes) < 0.3
        height, when = rng.normal(scale=1.2, size=n_genes), rng.uniform(begin, end, n_genes)
        switched = height * is_on / (1 + np.exp(-(time_of[:, None] - when) / 0.08))
        log_mean += switched * ((part == -1) | (branch == part))[:, None]
    share = np.exp(log_mean)
    share /= share.sum(axis=1, keepdims=True)
    depth = n_genes * rng.lognormal(sigma=0.3, size=(n_cells, 1))
    counts = rng.poisson(rng.gamma(5.0, share * depth / 5.0))
    tenth = (10 * time_of).astype(int)
    roots = np.argsort(time_of)[:N_ROOTS]
    lines = [
        Line(f"branch {i}", np.where((branch == -1) | (branch == i), tenth, -1), roots)
        for i in (0, 1)
    ]
    adata = AnnData(sparse.csr_matrix(counts, dtype=np.float32))
    types = np.full(n_cells, "made up")
    return Cells(adata, lines, np.ones(n_cells, bool), types, [])


def embedded(model: str, counts: AnnData, seed: int) -> NDArray[np.floating]:
    if model in SETTINGS:
        quiet = {"enable_progress_bar": False}
        given = {"seed": seed, "accelerator": "cpu", "train_kwargs": quiet} | SETTINGS[model]
        tl.dra(counts, **given)
        return counts.obsm["X_dra"]
    name, _, n_latent = model.partition(", ")
    task = Task(int(n_latent or 10), seed, None, None, "cpu")
    return resolve(name)[0].embed(counts, task).points


# -- scores ------------------------------------------------------------------------------------


def line_scores(points: NDArray[np.floating], cells: Cells) -> Iterator[dict[str, Any]]:
    """Score how far the order along each line is kept, and whether it is torn."""
    graph = AnnData(obsm={"X": points[cells.is_part]})
    sc.pp.neighbors(graph, n_neighbors=N_NEIGHBORS, use_rep="X", random_state=0)
    sc.tl.diffmap(graph, n_comps=15, random_state=0)
    _, component = connected_components(graph.obsp["connectivities"], directed=False)
    whole = np.bincount(component).max() / len(component)
    row_of = np.cumsum(cells.is_part) - 1
    for line in cells.lines:
        position = line.position[cells.is_part]
        later = mean_pseudotime(graph, row_of[line.roots])
        steps = np.unique(position[position >= 0])
        auc = {
            (a, b): earlier_first(later[position == a], later[position == b])
            for a, b in combinations(steps, 2)
        }
        consecutive = list(pairwise(steps))
        found = {
            "order": np.mean(list(auc.values())),
            "neighbours": np.mean([auc[pair] for pair in consecutive]),
            "joined": lowest_connectivity(graph, position, consecutive),
            "whole": whole,
        }
        for measure, value in found.items():
            yield {"what": line.name, "measure": measure, "value": float(value)}


def mean_pseudotime(graph: AnnData, roots: NDArray[np.int64]) -> NDArray[np.float64]:
    times = []
    for root in roots:
        graph.uns["iroot"] = int(root)
        sc.tl.dpt(graph, n_dcs=15)
        times.append(graph.obs["dpt_pseudotime"].to_numpy(np.float64))
    return np.mean(times, axis=0)  # infinite in other components


def earlier_first(early: NDArray[np.float64], late: NDArray[np.float64]) -> float:
    """Share of the pairs in which the first is earlier; ties count half."""
    difference = np.sign(np.nan_to_num(late[None, :] - early[:, None]))
    return float((difference.mean() + 1) / 2)


def lowest_connectivity(
    graph: AnnData, position: NDArray[np.int64], consecutive: list[tuple[int, int]]
) -> float:
    graph.obs["step"] = pd.Categorical(position.astype(str))
    sc.tl.paga(graph, "step")
    connected = graph.uns["paga"]["connectivities"].toarray()
    number = {name: i for i, name in enumerate(graph.obs["step"].cat.categories)}
    return min(connected[number[str(a)], number[str(b)]] for a, b in consecutive)


def rare_scores(points: NDArray[np.floating], cells: Cells) -> Iterator[dict[str, Any]]:
    """Score whether cells of rare types lie together, and get a cluster."""
    graph = neighbor_graph(points, 0)
    clusters = {r: cluster_graph(graph, r, 0) for r in RESOLUTIONS}
    nearest = NearestNeighbors(n_neighbors=N_NEIGHBORS).fit(points)
    neighbours = nearest.kneighbors(return_distance=False)
    for name in cells.rare:
        is_own = cells.types == name
        possible = min(N_NEIGHBORS, int(is_own.sum()) - 1)
        f1 = {
            r: max(f1_score(is_own, found == c) for c in np.unique(found[is_own]))
            for r, found in clusters.items()
        }
        found = {
            "own": is_own[neighbours[is_own, :possible]].mean(),
            "cluster at 1": f1[1.0],
            "cluster at any": max(f1.values()),
        }
        for measure, value in found.items():
            row = {"what": name, "n_cells": int(is_own.sum()), "measure": measure}
            yield {**row, "value": float(value)}


# -- the table ---------------------------------------------------------------------------------


def rows_of(cells: Cells, model: str, seed: int) -> list[dict[str, Any]]:
    started = time.process_time()
    points = embedded(model, cells.counts.copy(), seed)
    seconds = time.process_time() - started
    found = list(line_scores(points, cells)) if cells.lines else []
    found += list(rare_scores(points, cells)) if cells.rare else []
    return [{**row, "cpu_seconds": seconds} for row in found]


def summary(table: pd.DataFrame) -> str:
    """Means of lines, and of rare types by their size, over seeds."""
    lines = table[table["measure"].isin(["order", "neighbours", "joined", "whole"])]
    rare = table.drop(lines.index)
    parts = []
    if len(lines):
        wide = lines.pivot_table(
            index="model", columns=["data", "measure"], values="value", sort=False
        )
        parts.append(wide.round(3).to_string())
    sizes = pd.cut(rare["n_cells"].astype(float), [0, 9, 19, 39, 100]).astype(str)
    for title, by in (("by set", rare["data"]), ("by size", sizes)):
        wide = rare.assign(by=by).pivot_table(
            index="model", columns=["measure", "by"], values="value", sort=False
        )
        parts.append(f"{title}\n{wide.round(3).to_string()}")
    each = rare.pivot_table(
        index=["data", "what", "n_cells"], columns=["measure", "model"], values="value"
    )
    return "\n\n".join([*parts, each["own"].round(2).to_string()])


def main() -> None:
    """Go on with the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="+", default=list(SETS))
    parser.add_argument("--models", nargs="+", help="those of `benchmark`, or settings of DRA")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = begun(parser, TABLE)
    path = arguments.table
    table = pd.read_csv(path) if path.exists() else pd.DataFrame()
    for seed in [] if arguments.summary else arguments.seeds:
        for name in arguments.sets:
            cells = cells_of(name, arguments.data, seed)
            given = MODELS + tuple(SETTINGS if name in WITH_SETTINGS else ())
            for model in arguments.models or given:
                head = {"data": name, "seed": seed, "model": model}
                if len(table) and (table[list(head)] == list(head.values())).all(axis=1).any():
                    continue
                rows = [{**head, **row} for row in rows_of(cells, model, seed)]
                table = pd.concat([table, pd.DataFrame(rows)], ignore_index=True)
                table.round(4).to_csv(path, index=False)
                print(*head.values(), round(rows[0]["cpu_seconds"]), flush=True)
    print(summary(table))


if __name__ == "__main__":
    main()
