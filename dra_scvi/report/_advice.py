"""What to do next, as this embedding suggests it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Mapping

ENOUGH_EPOCHS = 20
STILL_FALLING = 0.05  # share of the whole fall that is left to the last tenth of the epochs
ONE_BATCH, OF_MANY = 0.9, 0.6
CLUSTERS_SHOWN = 6


class Step(NamedTuple):
    """Something to do: why, and how."""

    text: str
    code: str = ""


def next_steps(
    history: Mapping[str, pd.DataFrame],
    clusters: pd.Series | None,
    batches: pd.Series | None,
    use_rep: str,
) -> list[Step]:
    """List what to do, what this embedding gives reason for first."""
    steps = []
    if _still_falls(history):
        steps.append(Step("The loss was still falling at the end: train for more epochs."))
    if clusters is None:
        steps.append(
            Step(
                "Find clusters, and write this page again.",
                f'dra_scvi.tl.cluster(adata, "{use_rep}")',
            )
        )
        return steps
    alone = [] if batches is None else _of_one_batch(clusters, batches)
    if alone:
        shown = ", ".join(alone[:CLUSTERS_SHOWN]) + ", ..." * (len(alone) > CLUSTERS_SHOWN)
        steps.append(
            Step(
                f"Nearly all cells of cluster{'s' * (len(alone) > 1)} {shown} are of one batch: "
                "either a type that only this batch has, or a difference of batches that is left. "
                "Their markers tell."
            )
        )
    names, key = list(clusters.cat.categories), clusters.name
    if len(names) > 1:
        steps.append(
            Step(
                "Name the clusters by their markers. Clusters with the same markers are one type: "
                "give them one name.",
                f'names = {{{names[0]!r}: "...", {names[1]!r}: "..."}}\n'
                f'adata.obs["named"] = adata.obs[{key!r}].map(names)',
            )
        )
    return [
        *steps,
        Step(
            "Too coarse or too fine? Cluster again at a resolution of your own.",
            f'dra_scvi.tl.cluster(adata, "{use_rep}", resolution=0.5, umap=False)',
        ),
        Step(
            "Compare groups by the model, which tells how sure a difference is.",
            f"model.differential_expression(groupby={key!r})",
        ),
        Step(
            "Embed cells that come later without training again.",
            "dra-scvi embed more.h5ad --model MODEL --output more_embedded.h5ad",
        ),
    ]


def _still_falls(history: Mapping[str, pd.DataFrame]) -> bool:
    """Whether the loss fell in the last tenth of the epochs nearly as before."""
    if "reconstruction_loss_train" not in history:
        return False
    curve = history["reconstruction_loss_train"].iloc[:, 0].to_numpy(dtype=float)
    tenth = len(curve) // 10
    if len(curve) < ENOUGH_EPOCHS:
        return False
    before, last = curve[-2 * tenth : -tenth].mean(), curve[-tenth:].mean()
    return bool(before - last > STILL_FALLING * (curve[0] - last))


def _of_one_batch(clusters: pd.Series, batches: pd.Series) -> list[str]:
    """Clusters that one batch makes up, which does not make up the cells as a whole."""
    shares = pd.crosstab(clusters.to_numpy(), batches.astype(str).to_numpy(), normalize="index")
    whole = batches.astype(str).value_counts(normalize=True)
    return [
        str(name)
        for name, row in shares.iterrows()
        if row.max() > ONE_BATCH and whole[row.idxmax()] < OF_MANY
    ]
