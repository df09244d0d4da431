"""What the demo says of its results: the figures it found, and no more than they bear."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dra_scvi import demo

ROWS = Path(__file__).parent / "benchmarks" / "results" / "unseen.csv"
SECONDS = {"pca": 2.4, "scvi": 44.0, "dra": 28.0}


def scored(**nmi: tuple[float, float]) -> dict[str, Any]:
    return {
        name: {"kmeans": {"nmi": both[0]}, "leiden": {"nmi": both[1]}}
        for name, both in nmi.items()
    }


SCORES = scored(pca=(0.6, 0.6), scvi=(0.6, 0.6), dra=(0.6, 0.6))


def test_the_spread_of_seeds_is_that_of_the_stored_runs() -> None:
    rows = pd.read_csv(ROWS)
    rows = rows[(rows["dataset"] == "pbmc68k") & (rows["n_latent"] == demo.N_LATENT)]
    rows = rows[rows["model"].isin(demo.TITLES)]
    assert rows.groupby("model")["seed"].nunique().tolist() == [5, 5, 5]
    by_model = rows.groupby("model")[["nmi", "leiden_nmi"]]
    assert (by_model.max() - by_model.min()).max(axis=None).round(2) == demo.SEED_SPREAD


def test_scores_are_held_against_the_spread_of_seeds() -> None:
    embeddings = scored(pca=(0.665, 0.631), scvi=(0.624, 0.654), dra=(0.64, 0.618))
    sentence = demo.conclusions(embeddings, SECONDS, np.array([9.0, 8.0]))[0]
    assert "by k-means PCA is first (0.665, the last has 0.624)" in sentence
    assert "by Leiden scVI is first (0.654, the last has 0.618)" in sentence
    assert (
        "Another seed moves it by up to 0.04: 700 cells of one donor rank no models." in sentence
    )


def test_time_and_loss_are_those_found() -> None:
    loss = np.array([100.0, *np.linspace(60, 50, 9), 48, 45.0])
    found = demo.conclusions(SCORES, SECONDS, loss)
    assert found[1].startswith(
        "Time: PCA 2 s, scVI 44 s, DRA 28 s; scVI for as many epochs as DRA (12)"
    )
    assert "fell from 100 to 45, 5% of that in the last tenth" in found[3]


def test_every_file_of_the_demo_has_a_sentence() -> None:
    found = demo.conclusions(SCORES, SECONDS, np.array([9.0]))
    heads = [sentence.split(":")[0] for sentence in found]
    assert {"umap.png", "training.png", "pbmc68k.h5ad"} < set(heads)
    assert all(sentence.endswith(".") for sentence in found)
