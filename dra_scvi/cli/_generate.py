"""The generate command: cells that a trained model makes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import click

from dra_scvi.cli._cells import read_saved, write_cells
from dra_scvi.cli._command import Common, command
from dra_scvi.cli._options import COUNT, PathName, output_option, path_argument
from dra_scvi.cli._result import Result

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData


@command("generate")
@path_argument("model_dir", "MODEL")
# messages about data speak of n_cells, and mean something else
@click.option("--n-cells", "how_many", type=COUNT, required=True, help="Number of cells.")
@click.option(
    "--reference",
    "reference_path",
    type=PathName(),
    metavar="REF.h5ad",
    help="Cells of the training, for covariates; where MODEL has some.",
)
@output_option("Where the cells are written.")
@click.option(
    "--batch",
    multiple=True,
    metavar="NAME",
    help="Batch that the cells are of; may be repeated. Default: all, as in training.",
)
def generate(
    common: Common,
    model_dir: Path,
    how_many: int,
    reference_path: Path | None,
    output: Path,
    batch: tuple[str, ...],
) -> Result:
    """Make cells like those that the model saved in MODEL was trained on.

    Writes counts, with the code of each cell, the total that was drawn for it, its batch, and the
    component of the mixture that it came from. The same seed gives the same cells.

    Example: dra-scvi generate model --n-cells 5000 --output made.h5ad
    """
    inputs = {"MODEL": model_dir, "--reference": reference_path}
    common.rehearse(inputs, ("--output", output, "file"))
    saved = read_saved(model_dir)
    if saved.class_name != "DRA":
        raise ValueError(f"{model_dir} is a {saved.class_name}, which makes no cells; DRA does.")
    from dra_scvi import DRA
    from dra_scvi._data.query import query_for
    from dra_scvi._inputs.read import read_input

    cells: AnnData | Literal[False] = False
    setup = saved.registry["setup_args"]
    if reference_path is not None:
        cells = query_for(read_input(reference_path), saved.genes, setup)
    model = DRA.load(str(model_dir), adata=cells, accelerator=common.accelerator)
    common.say(f"making {how_many} cells")
    generated = model.generate(how_many, list(batch) or None, common.seed)
    write_cells(generated, output, None, common)
    key = setup["batch_key"]
    of_batch = {} if key is None else generated.obs[key].astype(str).value_counts(sort=False)
    figures = {
        "settings": {"n_cells": how_many, "batch": list(batch) or None, "seed": common.seed},
        "generated": {
            "n_cells": generated.n_obs,
            "n_genes": generated.n_vars,
            "median_depth": float(generated.obs["depth"].median()),
            "batches": {name: int(n) for name, n in sorted(dict(of_batch).items())},
        },
    }
    return Result(figures)
