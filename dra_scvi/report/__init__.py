"""One page about an embedding: input, training, clusters, markers, scores, what to do next."""

from __future__ import annotations

from dra_scvi.report._write import write

__all__ = ["write"]
