"""Quality of the counts, in one pass over them wherever they lie."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dra_scvi._data.matrices import blocks

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pandas as pd
    from numpy.typing import NDArray

MOST_BATCHES = 30


class Quality(NamedTuple):
    """What one pass over the counts tells."""

    depth: NDArray[np.float64]  # counts in each cell
    n_found: NDArray[np.int64]  # genes in each cell that have any
    of_mitochondria: NDArray[np.float64] | None  # counts in each cell, where such genes are named
    n_silent: int  # genes without a count
    n_genes: int


def measure(counts: Any, genes: pd.Index) -> Quality:
    """Go through counts once, block by block."""
    n_cells, n_genes = counts.shape
    is_mitochondrial = genes.astype(str).str.lower().str.startswith(("mt-", "mt."))
    depth, of_mitochondria = np.zeros(n_cells), np.zeros(n_cells)
    n_found, n_with = np.zeros(n_cells, dtype=np.int64), np.zeros(n_genes, dtype=np.int64)
    for row, column, block in blocks(counts):
        rows, columns = (
            slice(start, start + length)
            for start, length in zip((row, column), block.shape, strict=True)
        )
        present = block != 0
        depth[rows] += _sums(block, 1)
        n_found[rows] += _sums(present, 1).astype(np.int64)
        n_with[columns] += _sums(present, 0).astype(np.int64)
        of_mitochondria[rows] += _sums(block[:, is_mitochondrial[columns]], 1)
    return Quality(
        depth,
        n_found,
        of_mitochondria if is_mitochondrial.any() else None,
        int((n_with == 0).sum()),
        n_genes,
    )


def _sums(block: Any, axis: int) -> NDArray[np.float64]:
    return np.asarray(block.sum(axis=axis, dtype=np.float64)).ravel()


def quality_rows(quality: Quality, n_trained: int) -> list[tuple[str, str]]:
    """Describe counts of all genes, `n_trained` of which the model saw, a line each."""
    n_cells = len(quality.depth)
    share = 1 - quality.n_found.sum() / max(1, n_cells * quality.n_genes)
    genes = f"{quality.n_genes:,}"
    if n_trained < quality.n_genes:
        genes += f", of which the model saw {n_trained:,}"
    rows = [
        ("Cells", f"{n_cells:,}"),
        ("Genes", genes),
        ("Genes without a count", f"{quality.n_silent:,}"),
        ("Counts per cell", _spread(quality.depth)),
        ("Genes found per cell", _spread(quality.n_found)),
        ("Share of zeros", f"{share:.1%}"),
    ]
    if quality.of_mitochondria is not None:
        part = 100 * quality.of_mitochondria / np.maximum(quality.depth, 1)
        rows.append(("Mitochondrial counts, % per cell", _spread(part, ".1f")))
    return rows


def batch_rows(quality: Quality, batches: pd.Series) -> list[tuple[str, str, str, str]]:
    """Describe each batch: its name, cells, and medians of counts and genes per cell."""
    names = batches.astype(str).to_numpy()
    found, sizes = np.unique(names, return_counts=True)
    rows = [
        (
            str(name),
            f"{size:,}",
            f"{np.median(quality.depth[names == name]):,.0f}",
            f"{np.median(quality.n_found[names == name]):,.0f}",
        )
        for name, size in list(zip(found, sizes, strict=True))[:MOST_BATCHES]
    ]
    if len(found) > MOST_BATCHES:
        rest = f"{len(found) - MOST_BATCHES} more"
        rows.append((rest, f"{sizes[MOST_BATCHES:].sum():,}", "", ""))
    return rows


def _spread(values: Iterable[Any], form: str = ",.0f") -> str:
    low, middle, high = np.percentile(np.asarray(values), [5, 50, 95])
    return f"{middle:{form}} (median; 90 % of cells between {low:{form}} and {high:{form}})"
