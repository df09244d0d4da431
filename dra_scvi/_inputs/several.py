"""Cells of several files as one: the genes and columns in common, and where each cell is from."""

from __future__ import annotations

from functools import reduce
from typing import TYPE_CHECKING, Any

import anndata
import numpy as np
from anndata.abc import CSCDataset, CSRDataset
from scipy import sparse

from dra_scvi._data.columns import counted, named_layers, unknown_key
from dra_scvi._data.stored_rows import is_stored, read_rows
from dra_scvi._exceptions import GeneMismatchError, InputError
from dra_scvi._inputs.out_of_core import write_stored
from dra_scvi._outputs.files import write_h5ad
from dra_scvi._outputs.full_disk import open_hdf5

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import pandas as pd
    from anndata import AnnData
    from numpy.typing import NDArray

LEAST_GENES = 2


def name_files(paths: Sequence[Path]) -> dict[str, Path]:
    """Name files by their stems or, where two are alike, by their paths; refuse one given twice.

    >>> from pathlib import Path
    >>> list(name_files([Path("one.h5ad"), Path("two.zarr")]))
    ['one', 'two']
    >>> list(name_files([Path("a/cells.h5ad"), Path("b/cells.h5ad")]))
    ['a/cells.h5ad', 'b/cells.h5ad']
    """
    places = [path.resolve() for path in paths]
    for path, place in zip(paths, places, strict=True):
        if places.count(place) > 1:
            raise InputError(f"{path} is given twice; its cells would count twice.")
    stems = {path.stem: path for path in paths}
    return stems if len(stems) == len(paths) else {str(path): path for path in paths}


def check_joinable(
    parts: Mapping[Path, AnnData],
    layer: str | None,
    columns: Mapping[str, str | list[str] | None],
    file_key: str,
) -> None:
    """Check that every file has the layer and the columns, and none yet what tells them apart.

    `columns` are those that are named by an argument.
    """
    for path, adata in parts.items():
        if file_key in adata.obs:
            raise InputError(
                f"file_key={file_key!r}: {path} has a column of this name in obs; choose another "
                "name for the column that tells the files apart."
            )
        if layer is None and adata.X is None:
            raise InputError(f"{path} has no X; take the counts of a layer that every file has.")
        if layer is not None and layer not in named_layers(adata):
            place = f"a layer of {path}"
            raise InputError(unknown_key("layer", layer, place, named_layers(adata)))
        for argument, named in columns.items():
            for key in [named] if isinstance(named, str) else named or ():
                if key != file_key and key not in adata.obs:
                    place = f"a column of obs in {path}"
                    raise InputError(unknown_key(argument, key, place, adata.obs.columns))


def common_genes(parts: Mapping[Path, AnnData]) -> pd.Index:
    """Genes that every file has, in the order of the first."""
    for path, adata in parts.items():
        if not adata.var_names.is_unique:
            first = adata.var_names[adata.var_names.duplicated()][0]
            raise InputError(f"gene names of {path} are not unique (first: {str(first)!r}).")
    (first_path, first_part), *others = parts.items()
    genes = first_part.var_names
    for _, part in others:
        genes = genes[genes.isin(part.var_names)]
    if len(genes) < LEAST_GENES:
        other_path, other = min(others, key=lambda item: item[1].var_names.isin(genes).sum())
        number = counted(len(genes), "gene", "genes")
        raise GeneMismatchError(
            f"the files have {number} in common, and {LEAST_GENES} are the least: {first_path} "
            f"has names such as {str(first_part.var_names[0])!r}, {other_path} such as "
            f"{str(other.var_names[0])!r}. Give all of them names of one kind."
        )
    return genes


def tell_lost_genes(parts: Mapping[Path, AnnData], n_genes: int) -> str:
    """Say how many genes of each file fall away; empty where all files have the same.

    >>> from pathlib import Path
    >>> one, two = (anndata.AnnData(np.ones((2, n))) for n in (3, 2))
    >>> tell_lost_genes({Path("one.h5ad"): one, Path("two.h5ad"): two}, 2)
    'genes that not all files have fall away: 1 of 3 in one.h5ad; 2 are left.'
    """
    lost = [
        f"{adata.n_vars - n_genes} of {adata.n_vars} in {path}"
        for path, adata in parts.items()
        if adata.n_vars > n_genes
    ]
    if not lost:
        return ""
    return f"genes that not all files have fall away: {', '.join(lost)}; {n_genes} are left."


def join_cells(parts: Mapping[str, AnnData], file_key: str) -> AnnData:
    """Join cells by name of their file: genes, layers and columns in common, matrices in memory.

    It is :func:`anndata.concat`; cells get the name of their file after their own where two are
    named alike. Matrices in a file, and raw counts, whose genes may be others, are left out.
    """
    names = reduce(lambda one, other: one.append(other), (a.obs_names for a in parts.values()))
    held = [_held(adata) for adata in parts.values()]
    joined = anndata.concat(
        held,
        join="inner",
        merge="same",
        label=file_key,
        keys=list(parts),
        index_unique=None if names.is_unique else "-",
    )
    # in any version of pandas and anndata in the order of the first file
    genes = common_genes(dict(parts))  # type: ignore[arg-type]
    return joined if joined.var_names.equals(genes) else joined[:, genes].copy()


def _held(adata: AnnData) -> AnnData:
    layers = {name: adata.layers[name] for name in named_layers(adata)}
    return anndata.AnnData(
        None if is_stored(adata.X) else adata.X,
        obs=adata.obs,
        var=adata.var,
        obsm=dict(adata.obsm),
        layers={name: matrix for name, matrix in layers.items() if not is_stored(matrix)},
    )


def write_joined(parts: Mapping[str, AnnData], file_key: str, path: Path) -> None:
    """Write cells whose matrices stay in their files to one file, block by block."""
    adatas = list(parts.values())
    layers = [n for n in named_layers(adatas[0]) if all(n in named_layers(a) for a in adatas)]
    matrices = {f"layers/{name}": [a.layers[name] for a in adatas] for name in layers}
    if all(a.X is not None for a in adatas):
        matrices["X"] = [a.X for a in adatas]
    for place, stored in matrices.items():
        if any(isinstance(matrix, CSCDataset) for matrix in stored):
            raise InputError(
                f"{place} is stored by column (CSC) in a file, out of which cells cannot be read "
                "one by one: store it as CSR, or use --in-memory."
            )
    joined = join_cells(parts, file_key)
    columns = [a.var_names.get_indexer(joined.var_names) for a in adatas]
    write_h5ad(joined, path)
    with open_hdf5(path, "r+") as file:
        for place, stored in matrices.items():
            if place in file:
                del file[place]
            write_stored(file, place, _Stacked(stored, columns))


class _Stacked:
    """Matrices in files one below the other, with the columns that all of them have."""

    def __init__(self, matrices: Sequence[Any], columns: Sequence[NDArray[np.int64]]) -> None:
        self.matrices, self.columns = matrices, columns
        self.ends = np.cumsum([matrix.shape[0] for matrix in matrices])
        self.shape = (int(self.ends[-1]), len(columns[0]))
        self.dtype = np.result_type(*(matrix.dtype for matrix in matrices))
        self.is_sparse = any(isinstance(matrix, CSRDataset) for matrix in matrices)

    def __getitem__(self, rows: slice) -> sparse.csr_matrix | NDArray[Any]:
        blocks = []
        for matrix, columns, end in zip(self.matrices, self.columns, self.ends, strict=True):
            start = end - matrix.shape[0]
            index = np.arange(max(rows.start, start), min(rows.stop, end)) - start
            if len(index):
                block = read_rows(matrix, index)
                if self.is_sparse:
                    block = sparse.csr_matrix(block)
                if not np.array_equal(columns, np.arange(block.shape[1])):
                    block = block[:, columns]
                blocks.append(block.astype(self.dtype, copy=False))
        return sparse.vstack(blocks, format="csr") if self.is_sparse else np.concatenate(blocks)
