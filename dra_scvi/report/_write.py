"""The page as a whole: what is gathered for it, and how it is written."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dra_scvi import metrics
from dra_scvi._argument_kinds import check_adata, check_kinds, check_seed
from dra_scvi._data.columns import validate_keys
from dra_scvi._model.base import BaseDRA
from dra_scvi._outputs.files import check_parent, write_text
from dra_scvi.metrics._input import DEFAULT_REP, points_of
from dra_scvi.report._advice import next_steps
from dra_scvi.report._figures import Figure, draw_curves, draw_umap
from dra_scvi.report._markers import MOST_CELLS, find_markers
from dra_scvi.report._quality import batch_rows, measure, quality_rows
from dra_scvi.report._tables import (
    cluster_rows,
    columns_of,
    resolution_of,
    score_rows,
    settings_of,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd
    from anndata import AnnData

    from dra_scvi.pl._scatter import Legend

TEMPLATE = "page.html"
PACKAGES = (
    *("dra_scvi", "scvi-tools", "torch", "scanpy", "anndata"),
    *("igraph", "scikit-learn", "numpy"),
)
MAPS = {
    "cluster": "Clusters of the embedding. How far apart they lie means little in a UMAP.",
    "batch": "Batches should mix within a type. Where one is alone, it is either a type that only "
    "this batch has, or a difference of batches that is left.",
    "label": "Labels that were given. Training has not seen them.",
}


def write(
    model: BaseDRA,
    adata: AnnData,
    path: str | Path,
    *,
    label_key: str | None = None,
    cluster_key: str = "leiden",
    use_rep: str = DEFAULT_REP,
    umap_key: str = "X_umap",
    seed: int = 0,
    replace: bool = False,
) -> None:
    """Write one HTML page about an embedding, which needs no other file and no network.

    It shows settings and versions, the quality of the counts, the curves of training, the UMAP by
    cluster, batch and label, marker genes of the clusters, scores where there are labels, and
    what to do next. The same model and cells give the same bytes.

    Parameters
    ----------
    model
        Trained, also one that was saved and loaded.
    adata
        Its cells, with the genes of the model or more. It is not changed.
    path
        The file.
    label_key
        Column of ``adata.obs`` with cell types, to compare the clusters with; cells without one
        are of a type of their own, "missing".
    cluster_key
        Column of ``adata.obs`` with clusters, as :func:`dra_scvi.tl.cluster` adds them.
    use_rep
        Key of ``adata.obsm`` with the embedding.
    umap_key
        Key of ``adata.obsm`` with two dimensions to draw.
    seed
        Seed of the draws of cells, and of k-means.
    replace
        Whether a file that exists may be replaced.

    Raises
    ------
    FileExistsError
        When it exists and may not be replaced.
    FileNotFoundError
        When its folder does not exist.
    KeyError
        When a column of labels, or the embedding, is not there. Clusters and UMAP may be missing:
        the page says then how they are made.
    TypeError, ValueError
        When an argument is not what it may be.

    Examples
    --------
    >>> import dra_scvi
    >>> adata = dra_scvi.datasets.pbmc68k()
    >>> model = dra_scvi.tl.dra(adata)  # doctest: +SKIP
    >>> dra_scvi.tl.cluster(adata)  # doctest: +SKIP
    >>> dra_scvi.report.write(model, adata, "report.html", label_key="cell_type")  # doctest: +SKIP
    """
    check_kinds(write, locals())
    path = Path(path).expanduser()
    check_parent(path)
    if path.exists() and not replace:
        raise FileExistsError(f"{path} exists; pass replace=True, or choose another name")
    text = page(
        model,
        adata,
        label_key=label_key,
        cluster_key=cluster_key,
        use_rep=use_rep,
        umap_key=umap_key,
        seed=seed,
    )
    write_text(text, path, replace)


def page(
    model: BaseDRA,
    adata: AnnData,
    *,
    label_key: str | None,
    cluster_key: str,
    use_rep: str,
    umap_key: str,
    seed: int,
    title: str = "",
    scores: Mapping[str, Mapping[str, Any]] | None = None,
    scored: str = "all",
) -> str:
    """Compose the page of :func:`write`, about cells that are called `title`.

    Scores are by method, as :func:`dra_scvi.metrics.clustering` returns them, of the cells that
    `scored` names; computed unless given.
    """
    if not isinstance(model, BaseDRA):
        raise TypeError(f"model must be a trained DRA, not {type(model).__name__}")
    check_adata(adata, ("obs", "obsm", "uns", "var_names"))
    check_seed(seed)
    setup = model.registry["setup_args"]
    layer, batch_key = setup["layer"], setup.get("batch_key")
    validate_keys(adata, layer, {"label_key": label_key, "batch_key": batch_key})
    points = points_of(adata, use_rep)
    clusters, batches, labels = (
        columns_of(adata, key) for key in (cluster_key, batch_key, label_key)
    )
    if labels is not None and scores is None:
        scores = {
            method: metrics.clustering(points, labels, method, seed=seed)
            for method in ("kmeans", "leiden")
        }
    counts = adata.X if layer is None else adata.layers[layer]
    quality = measure(counts, adata.var_names)
    history = getattr(model, "history", None) or {}
    markers = {} if clusters is None else find_markers(counts, adata.var_names, clusters, seed)
    return _render(
        title=title or f"{adata.n_obs:,} cells",
        quality=quality_rows(quality, model.summary_stats.n_vars),
        batches=[] if batches is None else batch_rows(quality, batches),
        curves=draw_curves(history),
        maps=_maps(adata, umap_key, {"cluster": clusters, "batch": batches, "label": labels}),
        clusters=[] if clusters is None else cluster_rows(clusters, batches, labels, markers),
        batch_key=batch_key,
        label_key=label_key,
        resolution=resolution_of(adata, cluster_key),
        n_drawn=f"{MOST_CELLS:,}" if adata.n_obs > MOST_CELLS else "",
        scores=[] if labels is None else score_rows(scores or {}, labels, clusters),
        scored=scored,
        steps=next_steps(history, clusters, batches, use_rep),
        settings=settings_of(model, adata, use_rep),
        versions=[("Python", platform.python_version()), *((p, version(p)) for p in PACKAGES)],
    )


def _render(**context: Any) -> str:
    """Fill the template; whatever comes from data is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template(TEMPLATE).render(context)
    return text.encode("utf-8", "replace").decode("utf-8")  # names may not be text in any file


def _maps(adata: AnnData, basis: str, columns: Mapping[str, pd.Series | None]) -> list[Figure]:
    if basis not in adata.obsm:
        return []
    figures = []
    for kind, column in columns.items():
        if column is not None:
            # batches should lie on each other, where a number in their middle says nothing
            legend: Legend = "right" if kind == "batch" else "numbered"
            figures.append(draw_umap(adata, basis, column, f"By {kind}", MAPS[kind], legend))
    return figures
