"""What an ``.h5ad`` can hold: what takes another form in it, and what is refused, by its name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from dra_scvi._data.columns import named_layers

if TYPE_CHECKING:
    from anndata import AnnData

# what pandas infers of a column of Python objects, and a dtype that holds the same values
SAME_VALUES = {
    "boolean": "boolean",
    "integer": "Int64",
    "floating": "float64",
    "mixed-integer-float": "float64",
}


def check_key(key: object, place: str) -> None:
    """Check that something can be stored under a name; HDF5 takes some for paths or for nothing.

    `place` is what the message calls it, such as ``"key_added"``.
    """
    if not isinstance(key, str):
        raise TypeError(f"{place}={key!r} cannot be a name in an .h5ad: it is not a text")
    if "/" in key:
        better = "_".join(part for part in key.split("/") if part) or "X_dra"
        raise ValueError(
            f"{place}={key!r} cannot be a name in an .h5ad: choose one without '/', such as "
            f"{better!r}"
        )
    if key.strip(" .") == "" or not key.isprintable():
        raise ValueError(f"{place}={key!r} cannot be a name in an .h5ad: choose a readable one")


def writable_copy(adata: AnnData) -> AnnData:
    """Share the matrices, and copy the rest in the form in which a file can hold it."""
    import anndata

    layers = named_layers(adata)
    for key in layers:
        check_key(key, "layers")
    parts = {
        name: writable(dict(getattr(adata, name)), name)
        for name in ("obsm", "varm", "obsp", "varp", "uns")
    }
    return anndata.AnnData(
        X=adata.X,
        obs=_table(adata.obs, "obs"),
        var=_table(adata.var, "var"),
        layers={key: adata.layers[key] for key in layers},
        raw=None if adata.raw is None else _raw(adata.raw),
        **parts,
    )


def check_writable(adata: AnnData) -> None:
    """Write all but the matrices into memory, a row of what is the same in every row.

    Where something cannot be in an ``.h5ad``, the error names it, and says what to do.
    """
    import h5py
    from anndata.io import write_elem

    with h5py.File("rehearsal", "w", driver="core", backing_store=False) as file:
        for number, (place, value) in enumerate(_parts(adata)):
            try:
                write_elem(file, str(number), value)
            except Exception as error:
                raise TypeError(_refusal(place, value, error)) from error


def writable(value: Any, place: str) -> Any:
    """Return a value in a form in which a file can hold it; most are so already.

    Text of pandas becomes text of NumPy or, with gaps, categories; numbers among Python objects
    become columns of numbers, tuples lists. `place` is where it is, for messages.
    """
    if isinstance(value, Mapping):
        for key in value:
            check_key(key, place)
        return {key: writable(item, f"{place}[{key!r}]") for key, item in value.items()}
    if isinstance(value, pd.DataFrame):
        return _table(value, place)
    if isinstance(value, pd.api.extensions.ExtensionArray):
        plain = _plain_array(pd.Series(value))
        return plain.to_numpy() if plain.dtype == object else plain.array
    return list(value) if type(value) is tuple else value


def _raw(raw: Any) -> dict[str, Any]:
    var, varm = _table(raw.var, "raw.var"), writable(dict(raw.varm), "raw.varm")
    return {"X": raw.X, "var": var, "varm": varm}


def _table(table: pd.DataFrame, place: str) -> pd.DataFrame:
    """Copy a table, whose columns are shared unless they need another form."""
    copy = table.copy(deep=False)
    for position, name in enumerate(table.columns):
        if not isinstance(name, str):
            check_key(name, place)  # others are found again, also with a '/'
        column = table.iloc[:, position]
        if isinstance(column.dtype, pd.CategoricalDtype) or column.dtype.kind in "biuf":
            if column.dtype == "Float64" or column.dtype == "Float32":
                copy[name] = column.astype(column.dtype.name.lower())
            continue
        copy[name] = _plain_array(column)
    if isinstance(copy.index.dtype, pd.StringDtype):
        copy.index = pd.Index(np.asarray(copy.index, dtype=object), name=copy.index.name)
    return copy


def _plain_array(column: pd.Series) -> pd.Series:
    """Turn text into objects or categories, and objects that are numbers into those."""
    is_text = isinstance(column.dtype, pd.StringDtype)
    kind = "string" if is_text else pd.api.types.infer_dtype(column, skipna=True)
    if kind == "string" and column.isna().any():
        return column.astype(object).astype("category")
    if is_text:
        return column.astype(object)
    if column.dtype == object and kind in SAME_VALUES:
        return column.astype(SAME_VALUES[kind])
    return column


def _parts(adata: AnnData) -> Iterator[tuple[str, Any]]:
    """List what is to be written beside X and layers, shortened where one row tells all."""
    for key in named_layers(adata):
        check_key(key, "layers")
        yield f"layers[{key!r}]", _row(adata.layers[key])
    tables = {"obs": adata.obs, "var": adata.var}
    if adata.raw is not None:
        tables["raw.var"] = adata.raw.var
    for place, table in tables.items():
        yield from _columns(_table(table, place), place)
    for name in ("obsm", "varm", "obsp", "varp", "uns"):
        for key, value in writable(dict(getattr(adata, name)), name).items():
            yield f"{name}[{key!r}]", _row(value) if name != "uns" else value


def _columns(table: pd.DataFrame, place: str) -> Iterator[tuple[str, Any]]:
    yield place, table.iloc[:1, :0]
    for position, name in enumerate(table.columns):
        column = table.iloc[:, position]
        rows = column if column.dtype == object else column.iloc[:1]
        yield f"{place}[{name!r}]", rows.to_frame()


def _row(value: Any) -> Any:
    is_same = hasattr(value, "shape") and hasattr(value, "dtype") and value.dtype != object
    return value[:1] if is_same and not hasattr(value, "compute") else value


def _refusal(place: str, value: Any, error: Exception) -> str:
    kind = type(value).__name__
    if isinstance(value, pd.DataFrame) and value.shape[1] == 1:
        column = value.iloc[:, 0]
        inferred = pd.api.types.infer_dtype(column, skipna=True)
        kind = f"{column.dtype}, {inferred}" if column.dtype == object else str(column.dtype)
    lines = str(error).strip().splitlines()
    said = f": {lines[0].rstrip('.')}" if lines else ""
    return f"{place} ({kind}) cannot be written to an .h5ad{said}; remove or convert it first"
