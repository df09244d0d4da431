"""What train adds to an embedding: clusters and UMAP, under names that are free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dra_scvi.cli._command import Common, warn
from dra_scvi.cli._options import KEY_ADDED

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData

    from dra_scvi.cli._train_request import TrainRequest

UMAP = "X_umap"
FEWEST_CELLS = 10


def check_free(adata: AnnData, request: TrainRequest, source: Path | None, common: Common) -> None:
    """Refuse too few cells, and names that INPUT, or its file, has unless they may be replaced."""
    from dra_scvi._inputs.out_of_core import stored_keys

    if (request.adds_leiden or request.adds_umap) and adata.n_obs < FEWEST_CELLS:
        raise ValueError(
            f"INPUT has {adata.n_obs} cells; clusters and UMAP take at least {FEWEST_CELLS}"
        )
    taken = []
    if request.adds_leiden and request.LEIDEN in adata.obs:
        taken.append(f"obs[{request.LEIDEN!r}]")
    if request.adds_umap and UMAP in (stored_keys(source, "obsm") if source else adata.obsm):
        taken.append(f"obsm[{UMAP!r}]")
    if taken and not common.force:
        raise FileExistsError(
            f"INPUT has {' and '.join(taken)}; pass --force to replace it in "
            f"{request.output.name}, or give it another name"
        )


def add_clusters(adata: AnnData, request: TrainRequest, common: Common) -> dict[str, Any]:
    """Add clusters and UMAP where they were asked for, and return figures of the clusters."""
    from dra_scvi import tl

    if not request.adds_leiden and not request.adds_umap:
        return {}
    things = ["clusters"] * request.adds_leiden + ["the UMAP"] * request.adds_umap
    common.say(f"finding {' and '.join(things)}")
    suggestion = tl.cluster(
        adata,
        KEY_ADDED,
        request.resolution,
        leiden=request.adds_leiden,
        umap=request.adds_umap,
        key_added=request.LEIDEN,
        seed=common.seed,
    )
    if not request.adds_leiden:
        return {}
    resolution = request.resolution if suggestion is None else suggestion.resolution
    n_clusters = adata.obs[request.LEIDEN].nunique()
    found = f"{n_clusters} cluster{'s' * (n_clusters != 1)} at resolution {resolution:g}"
    if suggestion is None:
        common.say(found)
    elif suggestion.is_stable:
        common.say(f"{found}, the finest that other draws of the cells confirm")
    else:
        warn(f"no resolution gives clusters that other draws of the cells confirm: {found}.")
    return {
        "clusters": {
            "resolution": resolution,
            "is_suggested": suggestion is not None,
            "is_stable": None if suggestion is None else suggestion.is_stable,
            "n_clusters": n_clusters,
        }
    }
