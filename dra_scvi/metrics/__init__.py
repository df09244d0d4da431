"""Scores of an embedding against known labels and batches, as pure functions.

The arithmetic is that of scikit-learn (partitions, silhouette, neighbours), scanpy (Leiden) and
scib-metrics (integration); this file owns the input checks and the choice of settings. Each takes
arrays, or an AnnData and, as scanpy does, the names of what is in it.
"""

from __future__ import annotations

from dra_scvi.metrics._calibration import calibration
from dra_scvi.metrics._clustering import cluster, clustering, leiden_matched
from dra_scvi.metrics._integration import integration
from dra_scvi.metrics._neighbors import purity
from dra_scvi.metrics._realism import realism

__all__ = [
    "calibration",
    "cluster",
    "clustering",
    "integration",
    "leiden_matched",
    "purity",
    "realism",
]
