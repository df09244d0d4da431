"""The cells that commands work on: read or left in their file, stripped, and written again."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from anndata import AnnData

    from dra_scvi.cli._session import Common

__all__ = ["bare", "read_or_open", "write_cells"]


def read_or_open(
    path: Path, layer: str | None, out_of_core: bool | None, common: Common
) -> tuple[AnnData, bool]:
    """Read INPUT, or leave its counts where they are, and say which."""
    from dra_scvi._inputs.out_of_core import open_stored, stays_in_file
    from dra_scvi._inputs.read import read_input

    if not stays_in_file(path, out_of_core):
        return read_input(path), False
    common.say(f"counts stay in {path}")
    return open_stored(path, layer), True


def write_cells(
    adata: AnnData, path: Path, source: Path | None, common: Common, *, with_obs: bool = False
) -> None:
    """Write INPUT with what was added to it; of `source`, where its counts are still there."""
    from dra_scvi._inputs.out_of_core import write_copy
    from dra_scvi._outputs.files import write_h5ad

    if source is None:
        write_h5ad(adata, path, common.force)
    else:
        write_copy(source, adata, path, common.force, with_obs=with_obs)
    common.say(f"wrote {path}")


def bare(adata: AnnData, layer: str | None, columns: Sequence[str]) -> AnnData:
    """Share the counts and copy some columns, so that training leaves no trace in `adata`."""
    import anndata
    import pandas as pd

    return anndata.AnnData(
        X=None if layer else adata.X,
        obs=adata.obs[list(columns)].copy(),
        var=pd.DataFrame(index=adata.var_names),
        layers={layer: adata.layers[layer]} if layer else {},
    )
