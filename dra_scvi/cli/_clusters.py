"""What train adds to an embedding: clusters and UMAP, under names that are free; the report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dra_scvi.cli._session import KEY_ADDED, Common, warn

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from anndata import AnnData

    from dra_scvi._model.dra import DRA
    from dra_scvi.cli._train_request import TrainRequest

__all__ = ["UMAP", "add_clusters", "check_free", "write_report"]

UMAP = "X_umap"
FEWEST_CELLS = 10


def check_free(adata: AnnData, request: TrainRequest, source: Path | None, common: Common) -> None:
    """Refuse too few cells, and names that INPUT has unless they may be replaced.

    Parameters
    ----------
    adata
        INPUT.
    request
        Says what is going to be added.
    source
        INPUT, where it was not read as a whole.
    common
        Says whether outputs may be replaced.
    """
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
    common.say(f"finding {' and '.join(_things(request))}")
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


def write_report(
    model: DRA,
    adata: AnnData,
    figures: Mapping[str, Any],
    request: TrainRequest,
    common: Common,
) -> None:
    """Write the page, where it was asked for."""
    from dra_scvi._outputs.files import write_text
    from dra_scvi.report._write import page

    if request.report is None:
        return
    text = page(
        model,
        adata,
        label_key=request.label_key,
        cluster_key=request.LEIDEN,
        use_rep=KEY_ADDED,
        umap_key=UMAP,
        seed=common.seed,
        title=request.input_path.name,
        scores={name: figures[name] for name in ("kmeans", "leiden") if name in figures},
        scored=figures.get("cells", "all"),
    )
    write_text(text, request.report, common.force)
    common.say(f"wrote {request.report}")


def _things(request: TrainRequest) -> list[str]:
    return ["clusters"] * request.adds_leiden + ["the UMAP"] * request.adds_umap
