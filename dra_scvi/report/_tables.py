"""Tables of the page: clusters, scores, settings, and how the resolution was chosen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from dra_scvi._data.columns import validate_keys

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

    from dra_scvi._model.base import BaseDRA
    from dra_scvi.report._markers import Marker

MOST_ROWS = 200
MISSING = "missing"
METHODS = {"kmeans": "k-means, told the number of labels", "leiden": "Leiden at resolution 1"}


class ClusterRow(NamedTuple):
    """A cluster: how many cells, which labels and batches most are of, which genes mark it."""

    name: str
    n_cells: str
    share: str
    label: str
    batch: str
    markers: Sequence[Marker]


class Resolution(NamedTuple):
    """The resolution of the clusters and, where it was suggested, what else was tried."""

    value: str
    is_stable: bool | None = None
    tried: Sequence[tuple[str, str, str, bool]] = ()


def columns_of(adata: AnnData, key: str | None) -> pd.Series | None:
    """Return a column as categories that are text, cells without a value being one as well."""
    if key is None or key not in adata.obs:
        return None
    validate_keys(adata, obs_keys={"column": key})
    column = adata.obs[key].astype("category").cat.remove_unused_categories()
    names = dict.fromkeys(map(str, column.cat.categories))  # 1 and "1" are one
    texts = column.astype(object).map(str, na_action="ignore")
    column = texts.astype(pd.CategoricalDtype(list(names), column.cat.ordered))
    if not column.isna().any():
        return column
    if MISSING not in column.cat.categories:
        column = column.cat.add_categories(MISSING)
    return column.fillna(MISSING)


def cluster_rows(
    clusters: pd.Series,
    batches: pd.Series | None,
    labels: pd.Series | None,
    markers: Mapping[str, Sequence[Marker]],
) -> list[ClusterRow]:
    """Describe each cluster, in their order."""
    sizes = clusters.value_counts()
    return [
        ClusterRow(
            str(name),
            f"{sizes[name]:,}",
            f"{sizes[name] / len(clusters):.1%}",
            _most(labels, clusters == name),
            _most(batches, clusters == name),
            markers.get(str(name), ()),
        )
        for name in clusters.cat.categories[:MOST_ROWS]
    ]


def _most(column: pd.Series | None, cells: pd.Series) -> str:
    """Name what most of some cells are of, and their share."""
    if column is None:
        return ""
    shares = column[cells.to_numpy()].value_counts(normalize=True)
    return f"{shares.index[0]} ({shares.iloc[0]:.0%})"


def score_rows(
    scores: Mapping[str, Mapping[str, Any]], labels: pd.Series, clusters: pd.Series | None
) -> list[tuple[str, str, str, str, str]]:
    """Show how clusters agree with labels: those of each method, and those of the page."""
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    rows = {title: scores[method] for method, title in METHODS.items() if method in scores}
    if clusters is not None:
        rows["The clusters of this page"] = {
            "nmi": normalized_mutual_info_score(labels, clusters),
            "ari": adjusted_rand_score(labels, clusters),
            "n_clusters": len(clusters.cat.categories),
        }
    return [
        (
            title,
            f"{found['nmi']:.3f}",
            f"{found['ari']:.3f}",
            f"{found['silhouette']:.3f}" if "silhouette" in found else "-",
            str(found["n_clusters"]),
        )
        for title, found in rows.items()
    ]


def settings_of(model: BaseDRA, adata: AnnData, use_rep: str) -> list[tuple[str, str]]:
    """List what held in training, given or not, as far as it is known."""
    origin = adata.uns.get("dra", {})
    if origin.get("params", {}).get("key_added") == use_rep:
        held = {"trained with dra_scvi": origin["version"], **origin["settings"]}
        held["genes"] = f"{origin['genes']['n']}, names with SHA-256 {origin['genes']['sha256']}"
    else:
        names = model.registry["setup_args"]
        held = {"model": type(model).__name__, **names, **model.init_arguments}
    return [(name, str(value)) for name, value in held.items() if value not in ("", None)]


def resolution_of(adata: AnnData, key: str) -> Resolution | None:
    """Return what is known of how clusters were made."""
    origin = adata.uns.get(key, {})
    value = origin.get("params", {}).get("resolution") if isinstance(origin, Mapping) else None
    if value is None:
        return None
    suggestion = origin.get("suggestion")
    if suggestion is None:
        return Resolution(f"{value:g}")
    names = ("resolution", "n_clusters", "stability", "is_chosen")
    tried = [
        (f"{resolution:g}", str(number), f"{stability:.2f}", bool(is_chosen))
        for resolution, number, stability, is_chosen in zip(
            *(suggestion[name] for name in names), strict=True
        )
    ]
    return Resolution(f"{value:g}", bool(suggestion["is_stable"]), tried)
