"""Labelled count matrices: data shipped with scanpy, downloads, folders in the DR-A layout, fakes.

Every function returns an :class:`anndata.AnnData` whose ``X`` holds raw counts, as integers in a
float32 CSR matrix, and whose ``obs["cell_type"]`` is categorical.
"""

from __future__ import annotations

from dra_scvi._inputs.mtx_labels import read_mtx_labels
from dra_scvi.datasets._kang import kang
from dra_scvi.datasets._pbmc68k import pbmc68k
from dra_scvi.datasets._synthetic import synthetic
from dra_scvi.datasets._zeisel import zeisel

__all__ = ["kang", "pbmc68k", "read_mtx_labels", "synthetic", "zeisel"]
