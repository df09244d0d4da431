"""Plots in the manner of scanpy: training curves, embeddings, their axes, models compared."""

from __future__ import annotations

from dra_scvi.pl._axes import axes
from dra_scvi.pl._benchmark import benchmark
from dra_scvi.pl._embedding import embedding
from dra_scvi.pl._training import training

__all__ = ["axes", "benchmark", "embedding", "training"]
