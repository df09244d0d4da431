"""How real generated cells are: DRA, scVI, a copula and real cells, beside cells held out.

    DRA_SCVI_DATA=data python tests/benchmarks/realism.py             # an hour or two on one core
    DRA_SCVI_DATA=data python tests/benchmarks/realism.py --sets zeisel_ewce_3005x200 --more
    python tests/benchmarks/realism.py --summary                      # from the table alone

Models are trained on one half of the cells, generated cells are scored beside the other half by
`dra_scvi.metrics.realism`, with components of the first. 1,000 genes, 10 dimensions. Rows that
are in the table are kept, by set, seed and contender; `--models` keeps the trained models too.
Settings were chosen on the sets of `CHOSEN_ON`; the others were run once, at the end.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata
import numpy as np
import pandas as pd
import scvi
import torch
from _arguments import QUIET, WITH_BATCHES, begun
from scipy import sparse, stats
from scvi.model import SCVI
from sklearn.cluster import KMeans
from sklearn.covariance import ledoit_wolf
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

from dra_scvi import DRA, metrics
from dra_scvi._model.dra import DISPERSION_STEPS
from dra_scvi._model.epochs import default_max_epochs
from dra_scvi._model.generating import MOST_DRAWS
from dra_scvi._module.cell_mixture import Population
from dra_scvi._module.dispersion import fit_dispersions
from dra_scvi.benchmark._cells import prepare
from dra_scvi.metrics._realism import _log_scaled

if TYPE_CHECKING:
    from collections.abc import Callable

    from anndata import AnnData

TABLE = Path(__file__).parent / "results" / "realism.csv"
CHOSEN_ON = (
    "pbmc_three_chemistries_1200x1767",
    "sc_mixology_5batches",
    "zeisel_descend_1464x1000",
    "zeisel_ewce_3005x200",
    "pbmc4k_4271x2000",
    "worm_neuron_4186x13488",
)
UNTOUCHED = (
    "paul15_2730x3451",
    "kang_ifnb_2800x14053",
    "citeseq_pbmc_3762x2000",
    "human_kidney_young_5685x2000",
    "pbmc_facs_3774x16791",
    "baron_pancreas_7162x1000",
)
PLANS: dict[str, dict[str, float]] = {
    "dra": {},
    "dra_0": {"latent_weight": 0.0, "data_weight": 0.0},
    "dra_z": {"data_weight": 0.0},
    "dra_x": {"latent_weight": 0.0},
}
NAMES = {
    "scvi": "scVI",
    "scvi_short": "short scVI",
    "dra": "DRA",
    "dra_0": "DRA, no matching",
    "dra_z": "DRA, codes matched",
    "dra_x": "DRA, data matched",
}
MODELS, MORE = ("dra", "scvi"), ("dra_0", "dra_z", "dra_x", "scvi_short")
HIGHER_IS_BETTER = ("precision", "coverage")
GOAL = ("scVI, prior", "DRA, posterior")
CLUSTERS = 5


def halves(name: str, folder: Path, seed: int, max_cells: int) -> tuple[AnnData, AnnData]:
    """Return the cells to train on and those held out."""
    adata = anndata.read_h5ad(folder / f"{name}.h5ad")
    key = "batch" if name in WITH_BATCHES else None
    counts = prepare(adata, "cell_type", key, None, 1000, max_cells, name).counts
    order = np.random.default_rng(seed).permutation(counts.n_obs)
    middle = len(order) // 2
    return counts[np.sort(order[:middle])].copy(), counts[np.sort(order[middle:])].copy()


def trained(kind: str, train: AnnData, name: str, seed: int, kept: Path | None) -> Any:
    """Train a model with its own defaults, or take the one that was kept."""
    model_cls = SCVI if kind.startswith("scvi") else DRA
    folder = None if kept is None else kept / f"{name}-{seed}-{kind}"
    key = "batch" if name in WITH_BATCHES else None
    model_cls.setup_anndata(train, batch_key=key)
    if folder is not None and folder.exists():
        model = model_cls.load(str(folder), adata=train, accelerator="cpu")
        if model_cls is DRA and not model.module.population.sizes.any():
            model._learn_population(train)
        return model
    scvi.settings.seed = seed
    model = model_cls(train)
    if model_cls is DRA:
        model.train(plan_kwargs=PLANS[kind], **QUIET)
    else:
        n_batch = train.obs["batch"].nunique() if key else 1
        short = default_max_epochs(train.n_obs, 128, 10, n_batch)
        model.train(None if kind == "scvi" else short, **QUIET)
    if folder is not None:
        model.save(str(folder))
    return model


# -- contenders --------------------------------------------------------------------------------


@torch.inference_mode()
def posterior(model: Any, n_draws: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Draw codes of the training cells; with their log depths and batches."""
    parts = []
    for tensors in model._make_data_loader(model.adata, batch_size=512):
        for _ in range(n_draws):
            outputs = model.module.inference(**model.module._get_inference_input(tensors))
            drawn = (
                outputs["qz"].sample(),
                outputs["library"].view(-1),
                tensors["batch"].view(-1),
            )
            parts.append(drawn)
    codes, depths, batches = (torch.cat(part) for part in zip(*parts, strict=True))
    return codes, depths, batches.long()


@torch.inference_mode()
def decoded(model: Any, codes: torch.Tensor, depths: torch.Tensor, batches: torch.Tensor) -> Any:
    """Draw counts as scVI does: the depth is what the decoder multiplies by."""
    parts = []
    for some in torch.arange(len(codes)).split(512):
        library, batch = depths[some][:, None], batches[some][:, None]
        px = model.module.generative(codes[some], library, batch)["px"]
        parts.append(sparse.csr_matrix(px.sample().numpy()))
    return sparse.vstack(parts, format="csr")


def from_prior(model: Any, n_cells: int) -> Any:
    """Codes from the prior that the model was trained with, depths of training cells."""
    _, depths, batches = posterior(model)
    chosen = torch.randint(len(depths), (n_cells,))
    prior = getattr(model.module, "prior", None)
    shape = (n_cells, model.module.n_latent)
    codes = torch.randn(shape) if prior is None else prior.sample(n_cells)
    return decoded(model, codes, depths[chosen], batches[chosen])


def from_posterior(model: Any, n_cells: int) -> Any:
    """Codes of training cells: what no distribution of codes can better."""
    codes, depths, batches = posterior(model)
    chosen = torch.randperm(len(codes))[:n_cells]
    if not hasattr(model.module, "decode"):
        return decoded(model, codes[chosen], depths[chosen], batches[chosen])
    with torch.inference_mode():
        _, px = model.module.decode(
            codes[chosen], depths[chosen], batch_index=batches[chosen][:, None]
        )
        return sparse.csr_matrix(px.sample().numpy())


def from_mixture(model: Any, n_cells: int) -> Any:
    """Draw from scVI with the mixture of codes and depths that DRA generates from."""
    draws = posterior(model, MOST_DRAWS)
    batches = posterior(model)[2]
    population = Population(model.module.n_latent, int(batches.max()) + 1)
    population.fit(*draws, batches)
    chosen = batches[torch.randint(len(batches), (n_cells,))]
    drawn = population.sample(chosen)
    return decoded(model, drawn.codes, drawn.log_depths, chosen)


def from_mixture_with_dispersions(model: Any, n_cells: int) -> Any:
    """Draw so after scVI's dispersions were fitted as DRA's are; the model keeps them."""
    loader = model._make_data_loader(model.adata, model.train_indices, batch_size=128)
    fit_dispersions(model.module, loader, DISPERSION_STEPS)
    return from_mixture(model, n_cells)


def from_copula(train: AnnData, n_cells: int, seed: int) -> Any:
    """Draw from Gaussian copulas of all genes, one for each k-means cluster, shrunk."""
    rng = np.random.default_rng(seed)
    counts = train.X.toarray()
    logs = _log_scaled(train.X, float(np.median(counts.sum(1))))
    points = PCA(20, random_state=seed).fit_transform(logs)
    labels = KMeans(CLUSTERS, n_init=3, random_state=seed).fit_predict(points)
    wanted = labels[rng.integers(len(labels), size=n_cells)]
    made = np.empty((n_cells, counts.shape[1]), np.float32)
    for cluster in np.unique(wanted):
        own, chosen = counts[labels == cluster], wanted == cluster
        # equal counts are ranked by chance
        ranks = (own + rng.random(own.shape) * 0.5).argsort(0).argsort(0)
        scores = stats.norm.ppf((ranks + 0.5) / len(own))
        covariance, _ = ledoit_wolf(scores)
        root = np.linalg.cholesky(covariance + 1e-6 * np.eye(len(covariance)))
        uniform = stats.norm.cdf(rng.normal(size=(chosen.sum(), len(root))) @ root.T)
        position = np.minimum((uniform * len(own)).astype(int), len(own) - 1)
        made[chosen] = np.take_along_axis(np.sort(own, axis=0), position, axis=0)
    return sparse.csr_matrix(made)


def contenders(kind: str, model: Any, n_cells: int) -> dict[str, Callable[[], Any]]:
    """Ways to draw from a trained model, by the name of the row."""
    name = NAMES[kind]
    ways: dict[str, Callable[[], Any]] = {f"{name}, prior": lambda: from_prior(model, n_cells)}
    if kind.startswith("scvi"):
        ways[f"{name}, mixture"] = lambda: from_mixture(model, n_cells)
    else:
        ways[f"{name}.generate"] = lambda: model.generate(n_cells).X
    if kind in ("dra", "scvi"):
        ways[f"{name}, posterior"] = lambda: from_posterior(model, n_cells)
    if kind == "scvi":  # the last, as it changes the model
        ways[f"{name}, mixture, dispersions"] = lambda: from_mixture_with_dispersions(
            model, n_cells
        )
    return ways


# -- the table ---------------------------------------------------------------------------------


def nearer_to_training(generated: Any, train: AnnData, held_out: AnnData) -> float:
    """Share of generated cells whose nearest real one was trained on; 0.5 where none is kept."""
    n = min(train.n_obs, held_out.n_obs)
    depth = float(np.median(held_out.X.sum(axis=1).A1))
    logs = [_log_scaled(side, depth) for side in (train.X[:n], held_out.X[:n], generated)]
    pca = PCA(30, random_state=0).fit(np.concatenate(logs[:2]))
    one, other, made = (pca.transform(side) for side in logs)
    distances = [
        NearestNeighbors(n_neighbors=1).fit(side).kneighbors(made)[0].ravel()
        for side in (one, other)
    ]
    return float((distances[0] < distances[1]).mean())


def rows_of(name: str, seed: int, arguments: argparse.Namespace, done: set[str]) -> Any:
    """Yield a row for each contender that has none."""
    train, held_out = halves(name, arguments.data, seed, arguments.max_cells)
    n_cells = held_out.n_obs

    def row(contender: str, generated: Any, real: Any, **more: float) -> dict[str, Any]:
        scores = metrics.realism(real, generated, train.X, seed=seed)
        head = {"data": name, "seed": seed, "contender": contender, "n_train": train.n_obs}
        return {**head, "n_scored": min(real.shape[0], generated.shape[0]), **scores, **more}

    if "real" not in done:  # two halves of the cells held out
        order = np.random.default_rng(seed).permutation(n_cells)
        one, other = held_out.X[order[::2]], held_out.X[order[1::2]]
        yield row("real", one, other)
    if "copula" not in done:
        made = from_copula(train, n_cells, seed)
        yield row("copula", made, held_out.X, nearer=nearer_to_training(made, train, held_out))
    for kind in MODELS + (MORE if arguments.more else ()):
        missing = [way for way in contenders(kind, None, n_cells) if way not in done]
        if not missing:
            continue
        started = time.perf_counter()
        model = trained(kind, train, name, seed, arguments.models)
        seconds = time.perf_counter() - started
        for way, generate in contenders(kind, model, n_cells).items():
            if way in missing:
                torch.manual_seed(seed)
                made = generate()
                nearer = nearer_to_training(made, train, held_out)
                yield row(way, made, held_out.X, nearer=nearer, train_seconds=seconds)


def summary(table: pd.DataFrame) -> str:
    """Means over sets, and how much of the gap to the posterior each contender closes."""
    scores = ["accuracy", "precision", "coverage", "mmd", "means", "variances", "zeros"]
    scores += ["correlations", "depth", "nearer"]
    parts = []
    for title, sets in (("chosen on", CHOSEN_ON), ("untouched", UNTOUCHED)):
        some = table[table["data"].isin(sets)]
        wide = some.pivot_table(index="contender", columns="data", values="accuracy")
        if not set(GOAL) <= set(wide.index):
            continue
        whole = wide.columns[wide.loc[list(GOAL)].notna().all()]
        means = some[some["data"].isin(whole)].groupby("contender")[scores].mean()
        start, bound = wide.loc[GOAL[0], whole], wide.loc[GOAL[1], whole]
        means["gap closed"] = ((start - wide[whole]) / (start - bound)).mean(axis=1)
        means["gap of means closed"] = (start.mean() - wide[whole].mean(axis=1)) / (
            start.mean() - bound.mean()
        )
        n = some.groupby("contender")["data"].nunique()
        means.insert(0, "sets", n)
        parts.append(f"{title}: {len(whole)} sets\n{means.round(3).to_string()}")
        parts.append(wide[whole].round(3).to_string())
    return "\n\n".join(parts)


def main() -> None:
    """Go on with the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="+", default=[*CHOSEN_ON, *UNTOUCHED])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--max-cells", type=int, default=4000, help="most cells of a set")
    parser.add_argument("--more", action="store_true", help="also: each part of matching alone")
    parser.add_argument("--models", type=Path, help="folder to keep trained models in")
    arguments = begun(parser, TABLE)
    path = arguments.table
    table = pd.read_csv(path) if path.exists() else pd.DataFrame()
    for seed in [] if arguments.summary else arguments.seeds:
        for name in arguments.sets:
            is_here = (table["data"] == name) & (table["seed"] == seed) if len(table) else []
            done = set(table.loc[is_here, "contender"]) if len(table) else set()
            for row in rows_of(name, seed, arguments, done):
                table = pd.concat([table, pd.DataFrame([row])], ignore_index=True)
                table.round(4).to_csv(path, index=False)
                print(name, seed, row["contender"], round(row["accuracy"], 3), flush=True)
    print(summary(table))


if __name__ == "__main__":
    main()
