"""The cells that commands work on: read or left in their file, named, and written again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData

    from dra_scvi.cli._session import Common

__all__ = ["checked_key", "read_or_open", "write_cells"]


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


def checked_key(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Refuse a name that nothing in a file can have."""
    from dra_scvi._outputs.h5ad_content import check_key

    try:
        if value is not None:
            check_key(value, str(param.name))
    except ValueError as error:
        raise click.BadParameter(str(error), ctx, param) from error
    return value
