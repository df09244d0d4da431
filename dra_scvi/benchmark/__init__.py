"""DR-A beside other models on the same cells, genes and seeds: runs in rows, ranks, a summary."""

from __future__ import annotations

from dra_scvi.benchmark._compare import compare
from dra_scvi.benchmark._ranks import ranks
from dra_scvi.benchmark._statistics import summary

__all__ = ["compare", "ranks", "summary"]
