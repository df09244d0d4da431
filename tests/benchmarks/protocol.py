"""All models by all measures, on the half for choosing and on the other: tables of stored rows.

    python tests/benchmarks/protocol.py              # prints the tables of `results/protocol.csv`
    python tests/benchmarks/protocol.py rows.csv     # of other rows

The rows are those of `dra-scvi benchmark SET --label-key cell_type --n-latent 10 --n-genes 1000`,
with `--batch-key batch` for the sets of `WITH_BATCHES`, one table a set, put together. Models
have unequal numbers of seeds, which are averaged first.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
from _arguments import WITH_BATCHES
from figure import FIRST_HALF, RESULTS, Lead, lead, set_means, signed

from dra_scvi import benchmark

MODELS = {
    "pca": "PCA",
    "fa": "factor analysis",
    "harmony": "Harmony",
    "scvi-short": "short scVI",
    "scvi": "scVI",
    "dra": "**DRA**",
}
MEASURES = {
    "nmi": "k-means",
    "leiden_nmi": "Leiden, matched",
    "leiden1_nmi": "Leiden at resolution 1",
    "leiden1_n_clusters": "clusters there",
    "purity": "purity",
    "silhouette": "silhouette",
    "ari": "ARI, k-means",
    "integration_total": "total, with batches",
    "integration_bio_conservation": "bio",
    "integration_batch_correction": "batch",
}
AGAINST = ("scvi", "scvi-short", "pca", "fa")


def number(value: float, decimals: int = 3) -> str:
    """Write a score as the tables do, `.731`."""
    return "" if pd.isna(value) else f"{value:.{decimals}f}".removeprefix("0")


def told(found: Lead) -> str:
    """Write a difference, with its interval where there is one: of several sets or seeds."""
    return signed(found.difference) if pd.isna(found.low) else str(found)


def means(table: pd.DataFrame) -> list[str]:
    """Write a line for each model: means over sets, and the mean rank over measures."""
    ranked = benchmark.ranks(table[table["model"] != "harmony"]).set_index("model")
    lines = [f"| | {' | '.join(MEASURES.values())} | rank |", "|---" * (len(MEASURES) + 2) + "|"]
    for model, title in MODELS.items():
        runs = table[table["model"] == model]
        if runs.empty:
            continue
        scores = runs.groupby("dataset")[list(MEASURES)].mean().mean()
        texts = [number(scores[name], 1 if "clusters" in name else 3) for name in MEASURES]
        rank = f"{ranked['rank'].get(model):.2f}" if model in ranked.index else ""
        lines.append(f"| {' | '.join([title, *texts, rank])} |")
    return lines


def differences(table: pd.DataFrame) -> list[str]:
    """Write DRA minus each of the others, with 95 % intervals over sets."""
    names = [name for name in MEASURES if table[name].notna().any()]
    lines = [f"| DRA minus | {' | '.join(MEASURES[name] for name in names)} |"]
    lines.append("|---" * (len(names) + 1) + "|")
    for baseline in AGAINST:
        leads = [lead(table[table[name].notna()], name, baseline) for name in names]
        texts = [
            f"{found.difference:+.1f}" if "clusters" in name else told(found)
            for name, found in zip(names, leads, strict=True)
        ]
        lines.append(f"| {' | '.join([MODELS[baseline], *texts])} |")
    return lines


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="?", type=Path, default=RESULTS / "protocol.csv")
    rows = pd.read_csv(parser.parse_args().rows)
    seeds = rows[rows["status"] == "ok"].groupby(["model", "dataset"])["seed"].nunique()
    for model in MODELS:
        print(f"{model}: {seeds[model].min()} to {seeds[model].max()} seeds a set")
    table = set_means(rows)
    chosen, several = table["dataset"].isin(FIRST_HALF), table["dataset"].isin(WITH_BATCHES)
    parts = {
        "all sets": table,
        "on which choices were made": table[chosen],
        "looked at once, at the end": table[~chosen],
        "several batches": table[several],
    }
    for title, part in parts.items():
        if part.empty:
            continue
        print(f"\n{title}: {part['dataset'].nunique()} sets\n")
        print("\n".join([*means(part), "", *differences(part)]))


if __name__ == "__main__":
    main()
