"""Matrices of Cell Ranger: 10x .h5 files of all its versions, whose gene names are any text."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from dra_scvi._exceptions import InputError
from dra_scvi._inputs.memory import check_room

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

GENES = "Gene Expression"
LEFT_OUT = "dra_left_out"
SPARSE = ("data", "indices", "indptr", "shape")
# what scanpy gives another name, or leaves out
RENAMED = ("id", "name", "gene_id", "feature_type", "_all_tag_keys")


def read_10x(path: Path) -> AnnData:
    """Read the genes of a 10x ``.h5`` of any version as scanpy does, and say what else there is.

    Names of genes are made unique. Features of other types are left out with a warning;
    ``uns["dra_left_out"]`` says then how many of which.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Variable names are not unique", UserWarning)
        with h5py.File(path, "r") as file:
            group = _find_matrix(file, path)
            check_room(path, [group])
            adata = _read_matrix(group, path)
        if "feature_types" in adata.var:
            adata = _genes_alone(adata, path)
    adata.var_names_make_unique()
    return adata


def describe_others(types: pd.Series) -> str:
    """Say how many features are of which types, other than gene expression: "2 Peaks"."""
    counts = types[types != GENES].astype(str).value_counts()
    return ", ".join(f"{number} {name}" for name, number in counts.items())


def _find_matrix(file: Any, path: Path) -> Any:
    if "matrix" in file:
        return file["matrix"]
    groups = [
        group
        for group in file.values()
        if isinstance(group, h5py.Group) and set(SPARSE) <= group.keys()
    ]
    if len(groups) > 1:
        names = [group.name.lstrip("/") for group in groups]
        raise InputError(
            f"{path} holds {len(names)} genomes ({', '.join(names)}) in matrices of their own; "
            "write one of them with scanpy and give that to dra-scvi: "
            f'scanpy.read_10x_h5("{path.name}", genome="{names[0]}").write_h5ad("cells.h5ad").'
        )
    if groups:
        return groups[0]
    if {"obs", "var"} <= file.keys():
        raise InputError(f"{path} is an AnnData and no 10x file; name it {path.stem}.h5ad.")
    raise InputError(
        f"{path} could not be read as a 10x .h5 file: it holds no matrix of Cell Ranger, whose "
        "file is named filtered_feature_bc_matrix.h5."
    )


def _read_matrix(group: Any, path: Path) -> AnnData:
    missing = [name for name in (*SPARSE, "barcodes") if name not in group]
    features = group.get("features", group)
    columns = {"name": "name", "gene_ids": "id"}
    if features is group:
        columns = {"name": "gene_names", "gene_ids": "genes"}
    elif "gene_id" in features:
        columns |= {"gene_ids": "gene_id", "probe_ids": "id"}
    missing += [name for name in columns.values() if name not in features]
    if missing:
        raise InputError(
            f"{path} could not be read as a 10x .h5 file: {group.name} lacks {missing[0]}."
        )
    var = {new: _text(features[old], path) for new, old in columns.items()}
    if features is not group:
        var |= _metadata(features, path)
    obs = {"name": _text(group["barcodes"], path)}
    if "filtered_barcodes" in group:
        obs["filtered_barcodes"] = group["filtered_barcodes"][()].astype(bool)
    matrix = _read_sparse(group, path)
    for length, table, what in ((matrix.shape[0], obs, "cells"), (matrix.shape[1], var, "genes")):
        odd = next((name for name, values in table.items() if len(values) != length), None)
        if odd is not None:
            raise InputError(
                f"{path} is damaged: {group.name} has {length} {what}, and {len(table[odd])} "
                f"values of {odd}."
            )
    return AnnData(matrix, obs=_table(obs), var=_table(var))


def _metadata(features: Any, path: Path) -> dict[str, Any]:
    found = {}
    if "feature_type" in features:
        found["feature_types"] = _text(features["feature_type"], path)
    for name, dataset in features.items():
        if name not in RENAMED and isinstance(dataset, h5py.Dataset):
            is_flag = dataset.dtype.kind == "b"
            found[name] = dataset[()] if is_flag else _text(dataset, path)
    return found


def _text(dataset: Any, path: Path) -> Any:
    """Read text of any length, in UTF-8, and numbers as text."""
    values = dataset[()]
    if values.dtype.kind not in "SO":
        return values.astype(str)
    try:
        words = [word.decode() if isinstance(word, bytes) else str(word) for word in values]
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is damaged: {dataset.name} is not text in UTF-8.") from error
    return np.array(words, dtype=str)


def _table(columns: Mapping[str, Any]) -> pd.DataFrame:
    values = {name: value for name, value in columns.items() if name != "name"}
    return pd.DataFrame(values, index=pd.Index(columns["name"]))


def _read_sparse(group: Any, path: Path) -> sparse.csr_matrix:
    """Read cells by genes, once it is known that all indices point into the matrix."""
    values, indices, starts, shape = (group[name][()] for name in SPARSE)
    is_sound = shape.shape == (2,) and shape.min() >= 0
    n_genes, n_cells = map(int, shape) if is_sound else (0, 0)
    is_sound = (
        is_sound
        and len(starts) == n_cells + 1
        and starts[0] == 0
        and starts[-1] <= min(len(indices), len(values))
        and bool((starts[1:] >= starts[:-1]).all())
        and (len(indices) == 0 or (indices.min() >= 0 and indices.max() < n_genes))
    )
    if not is_sound:
        raise InputError(
            f"{path} is damaged: the indices of {group.name} point outside of the matrix."
        )
    if values.dtype == np.int32:
        values = values.astype(np.float32)
    return sparse.csr_matrix((values, indices, starts), shape=(n_cells, n_genes))


def _genes_alone(adata: AnnData, path: Path) -> AnnData:
    is_gene = (adata.var["feature_types"] == GENES).to_numpy()
    if is_gene.all():
        return adata
    others = describe_others(adata.var["feature_types"])
    if not is_gene.any():
        raise InputError(f"{path} holds no {GENES}, but {others}: there is nothing to embed.")
    warnings.warn(
        f"{path}: {others} left out, as only {GENES} is embedded; the output lacks them. To keep "
        "them, read the file in Python, move them to obsm, and write an .h5ad.",
        UserWarning,
        stacklevel=2,
    )
    adata = adata[:, is_gene].copy()
    adata.uns[LEFT_OUT] = others
    return adata
