"""DR-A beside other models on the same cells, genes and seeds: a row per run, and a summary."""

from __future__ import annotations

from dra_scvi.benchmark._compare import compare
from dra_scvi.benchmark._statistics import summary

__all__ = ["compare", "summary"]
