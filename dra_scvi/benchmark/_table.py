"""The table of a comparison: its columns, and the file that grows row by row."""

from __future__ import annotations

import contextlib
import csv
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from dra_scvi._outputs.drafts import destination
from dra_scvi._outputs.files import atomic_path, check_parent

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence


OK = "ok"
INTEGRATION = (
    "isolated_labels",
    "nmi",
    "ari",
    "silhouette_label",
    "clisi",
    "bras",
    "ilisi",
    "kbet",
    "graph_connectivity",
    "pcr",
    "bio_conservation",
    "batch_correction",
    "total",
)

# What each column holds; "Int64" has room for missing numbers.
COLUMNS: dict[str, str] = {
    "dataset": "text",
    "n_cells": "Int64",
    "n_genes": "Int64",
    "n_types": "Int64",
    "gene_selection": "text",
    "label_key": "text",
    "batch_key": "text",
    "quick": "bool",
    "model": "text",
    "n_latent": "Int64",
    "seed": "Int64",
    "max_epochs": "Int64",
    "saw_labels": "bool",
    "status": "text",
    "nmi": "float64",
    "ari": "float64",
    "n_clusters": "Int64",
    "leiden_nmi": "float64",
    "leiden_ari": "float64",
    "leiden_n_clusters": "Int64",
    "leiden1_nmi": "float64",
    "leiden1_n_clusters": "Int64",
    "purity": "float64",
    "silhouette": "float64",
    **{f"integration_{name}": "float64" for name in INTEGRATION},
    "epochs": "Int64",
    "seconds": "float64",
    "cpu_seconds": "float64",
    "peak_memory_mb": "float64",
    "dra_scvi": "text",
    "scvi_tools": "text",
    "torch": "text",
    "settings": "text",
    "fingerprint": "text",
}

# What every finished run has been given; tables of earlier versions lack some.
ALWAYS_SCORED = ("nmi", "leiden_nmi", "leiden1_nmi", "purity")

# What tells one run from another.
IDENTITY = (
    "dataset",
    "fingerprint",
    "quick",
    "model",
    "n_latent",
    "seed",
    "max_epochs",
    "settings",
)

Row = dict[str, Any]


class Table:
    """Finished rows, and the CSV file they are kept in, or none: then in memory only.

    A file that is no table of a comparison is replaced where that is asked for, else refused.

    >>> table = Table(None)
    >>> row = {"dataset": "pbmc", "model": "pca", "n_latent": 2, "seed": 0, "status": "ok"}
    >>> table.add(row)
    >>> table.find(row)["status"], table.find({**row, "seed": 1})
    ('ok', None)
    """

    def __init__(self, path: str | Path | None, overwrite: bool = False) -> None:
        self.path = None if path is None else Path(path)
        self._rows: list[Row] = []
        self._extras: list[str] = []
        if self.path is None:
            return
        check_parent(self.path)
        if self.path.exists() and not _is_table(self.path):
            if not overwrite or not self.path.is_file():
                raise FileExistsError(
                    f"{self.path} exists and is not a table of a comparison; pass "
                    "overwrite=True to replace it, or choose another name"
                )
        else:
            self._reload()

    def find(self, row: Mapping[str, Any]) -> Row | None:
        """Return the finished row of the same run; failed ones are not finished."""
        wanted = _identity(row)
        finished = (kept for kept in self._rows if kept["status"] == OK)
        return next((kept for kept in finished if _identity(kept) == wanted), None)

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a row, in place of an earlier one of the same run, and write the file.

        Rows that other processes write meanwhile are kept: one process writes at a time, and
        reads before what the others have written.
        """
        with self._turn():
            self._reload()
            added = _identity(row)
            self._rows = [kept for kept in self._rows if _identity(kept) != added]
            self._rows.append({name: row.get(name) for name in COLUMNS})
            self._write()

    def _write(self) -> None:
        if self.path is not None:
            with atomic_path(self.path) as temporary:
                frame(self._rows, self._extras).to_csv(temporary, index=False, lineterminator="\n")

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        """Wait until no other process writes to the file, and keep the others waiting."""
        if self.path is None:
            yield
            return
        from filelock import FileLock

        path = destination(self.path)  # a link and what it points to share one lock
        lock = path.with_name(f".{path.name}.lock")
        with FileLock(lock):
            try:
                yield
            finally:
                # while it is held: those who wait for a lock that is gone begin again
                with contextlib.suppress(OSError):
                    lock.unlink()

    def _reload(self) -> None:
        if self.path is not None and self.path.exists() and _is_table(self.path):
            self._rows, self._extras = _read(self.path)


def frame(rows: Iterable[Mapping[str, Any]], extras: Sequence[str] = ()) -> pd.DataFrame:
    """Make a table with the type of each column; `extras` are further columns to keep, as text."""
    rows = list(rows)
    kinds = {**COLUMNS, **dict.fromkeys(extras, "text")}
    columns = {}
    for name, kind in kinds.items():
        values = [row.get(name) for row in rows]
        if kind == "bool":
            values = [bool(value) for value in values]
        columns[name] = pd.Series(values, dtype="object" if kind == "text" else kind)
    return pd.DataFrame(columns)


def _identity(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row.get(name) for name in IDENTITY)


def _is_table(path: Path) -> bool:
    """Whether a file begins with the columns without which rows cannot be told apart."""
    if not path.is_file():
        return False
    try:
        with path.open(encoding="utf-8", newline="") as file:
            header = next(csv.reader(file), [])
    except (UnicodeDecodeError, csv.Error):
        return False
    return {*IDENTITY, "status"} <= set(header)


def _read(path: Path) -> tuple[list[Row], list[str]]:
    """Read rows, and the names of the columns that a user has added."""
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        extras = [name for name in reader.fieldnames or () if name not in COLUMNS]
        try:
            rows = [{name: _value(name, text) for name, text in row.items()} for row in reader]
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path} is damaged in line {reader.line_num}: {error}; delete that line."
            ) from error
    return rows, extras


def _value(name: str | None, text: str) -> Any:
    """Read a field; pandas would take a data set named NA for a missing value."""
    if name is None:
        raise ValueError("it has more fields than the header")
    kind = COLUMNS.get(name, "text")
    if kind == "bool":
        return text == "True"
    if text == "":
        return None
    if kind == "text":
        return text
    return float(text) if kind == "float64" else int(float(text))
