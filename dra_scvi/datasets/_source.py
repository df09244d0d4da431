"""Files that others publish: kept once downloaded, read, and held against what is known."""

from __future__ import annotations

import lzma
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dra_scvi._inputs.mtx_labels import check_counts

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping

    from anndata import AnnData

# what reading such a file raises that was cut off, or is another
CORRUPT = (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    NotImplementedError,
    EOFError,
    OSError,
    lzma.LZMAError,
    zlib.error,
    struct.error,
)


class Source(NamedTuple):
    """A file at an address, with what is known of its cells.

    `known` may have ``n_cells``, ``n_genes``, ``n_values``, ``total``, and for columns of obs the
    sizes of their values, sorted.
    """

    name: str
    url: str
    known: Mapping[str, Any]

    def read(
        self, path: str | os.PathLike[str] | None, parse: Callable[[Path], AnnData]
    ) -> AnnData:
        """Read a local copy, or a download, which is forgotten where it is not what is known."""
        file = self.download() if path is None else Path(path).expanduser()
        if not file.is_file():
            raise FileNotFoundError(
                f"No file at {file}; download {self.url} and pass it as path=."
            )
        try:
            adata = self._parse(file, parse)
            self.verify(adata)
        except ValueError:
            if path is None:
                file.unlink(missing_ok=True)
            raise
        return adata

    def download(self) -> Path:
        """Return the file in the user's cache, where it is downloaded to once."""
        import pooch

        folder, file = pooch.os_cache("dra_scvi"), self.url.rpartition("/")[2]
        try:
            return Path(pooch.retrieve(self.url, known_hash=None, fname=file, path=folder))
        except OSError as error:
            raise ConnectionError(
                f"Could not download the {self.name} data ({type(error).__name__}); download "
                f"{self.url} elsewhere and pass it as path=."
            ) from error

    def verify(self, adata: AnnData) -> None:
        """Raise unless cells hold counts, and are those that are known."""
        check_counts(adata.X, where=f"The {self.name} file")
        found = {name: _fact(adata, name) for name in self.known}
        if found != self.known:
            known, others = (
                ", ".join(f"{name}={value}" for name, value in facts.items())
                for facts in (self.known, found)
            )
            raise ValueError(
                f"The {self.name} file is not the published one: expected {known}, found {others};"
                f" get it from {self.url}."
            )

    def _parse(self, file: Path, parse: Callable[[Path], AnnData]) -> AnnData:
        try:
            return parse(file)
        except CORRUPT as error:
            raise ValueError(
                f"{file} cannot be read as {self.url.rpartition('/')[2]} "
                f"({type(error).__name__}: {error}); get it from {self.url}."
            ) from error


def _fact(adata: AnnData, name: str) -> Any:
    if name in adata.obs:
        return tuple(sorted(adata.obs[name].value_counts()))
    facts = {"n_cells": adata.n_obs, "n_genes": adata.n_vars, "n_values": adata.X.nnz}
    return facts[name] if name in facts else int(adata.X.sum(dtype=np.float64))
