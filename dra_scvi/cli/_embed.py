"""The embed command: cells on a trained model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from dra_scvi.cli._cells import SavedModel, read_or_open_all, read_saved, write_cells
from dra_scvi.cli._command import Common, command
from dra_scvi.cli._options import (
    KEY_ADDED,
    PathName,
    check_file_key,
    checked_key,
    file_key_option,
    name_inputs,
    out_of_core_option,
    output_option,
    paths_argument,
)
from dra_scvi.cli._result import Result

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData
    from numpy.typing import NDArray


@command("embed")
@paths_argument()
@click.option(
    "--model", "model_dir", type=PathName(), required=True, metavar="DIR", help="A saved model."
)
@output_option()
@click.option(
    "--key-added", default=KEY_ADDED, callback=checked_key, help="Key of obsm for the embedding."
)
@file_key_option()
@out_of_core_option()
def embed(
    common: Common,
    input_paths: tuple[Path, ...],
    model_dir: Path,
    output: Path,
    key_added: str,
    file_key: str | None,
    out_of_core: bool | None,
) -> Result:
    """Embed the cells of INPUT with a model that was trained before.

    Genes are found by their names, whatever their order; all genes of the model must be there.
    The counts are taken from the layer, and the batches from the column, of the training. A model
    that is damaged, or in which foreign code may be hidden, is refused. Several INPUTs become one.

    Example: dra-scvi embed more.h5ad --model model --output out.h5ad
    """
    column = check_file_key(file_key, input_paths)
    inputs = name_inputs(input_paths) | {"--model": model_dir}
    common.rehearse(inputs, ("--output", output, "file"))
    saved = read_saved(model_dir)
    from dra_scvi._data.query import query_for
    from dra_scvi._outputs.h5ad_content import check_writable

    setup = saved.registry["setup_args"]
    adata, source = read_or_open_all(
        input_paths,
        setup["layer"],
        out_of_core,
        common,
        output=output,
        file_key=column,
        columns={name: setup.get(name) for name in ("batch_key", "labels_key")},
    )
    check_writable(adata)
    query = query_for(adata, saved.genes, setup)
    common.say(f"embedding {adata.n_obs} cells")
    adata.obsm[key_added] = _encode(query, model_dir, saved, common)
    write_cells(adata, output, source, common)
    figures = {
        "input": {"n_cells": adata.n_obs, "n_genes": adata.n_vars},
        "settings": {"model_class": saved.class_name, "key_added": key_added, "seed": common.seed},
        "embedding": {"n_latent": adata.obsm[key_added].shape[1]},
    }
    return Result(figures)


def _encode(query: AnnData, folder: Path, saved: SavedModel, common: Common) -> NDArray[Any]:
    """Return posterior means or, from the released program's model, a sample as in training."""
    import dra_scvi
    from dra_scvi._training.runner import seeded

    model_cls = getattr(dra_scvi, saved.class_name)
    with seeded(common.seed):
        model = model_cls.load(str(folder), adata=query, accelerator=common.accelerator)
        return model.get_latent_representation(give_mean=saved.class_name == "DRA")
