"""The map command: new cells, and their types, on a trained model whose cells have theirs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from dra_scvi.cli._cells import SavedModel, read_or_open, read_saved, write_cells
from dra_scvi.cli._command import Common, command
from dra_scvi.cli._options import (
    COUNT,
    KEY_ADDED,
    PathName,
    checked_key,
    finite,
    out_of_core_option,
    output_option,
    path_argument,
)
from dra_scvi.cli._result import Result

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData

    from dra_scvi import DRA


@command("map")
@path_argument("model_dir", "MODEL")
@path_argument("input_path", "QUERY")
@click.option(
    "--reference",
    "reference_path",
    type=PathName(),
    metavar="REF.h5ad",
    show_default="those saved with MODEL",
    help="Cells whose types are known.",
)
@click.option("--label-key", required=True, help="Column of obs with their types.")
@output_option("Where QUERY is written with its embedding and types.")
@click.option(
    "--key-added",
    callback=checked_key,
    show_default="LABEL-KEY_transferred",
    help="Column of obs for the types.",
)
@click.option("--n-neighbors", type=COUNT, default=15, help="How many cells vote.")
@click.option(
    "--threshold",
    type=click.FloatRange(0, 1),
    default=0.5,
    callback=finite,
    help="Probability below which a cell is unknown.",
)
@click.option(
    "--far-quantile",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.99,
    callback=finite,
    help="Share of cells of a type within the distance beyond which a cell is unknown.",
)
@click.option("--any-distance", is_flag=True, help="Call no cell unknown for its distance.")
@click.option("--balanced", is_flag=True, help="Let types weigh the same, the rare ones too.")
@click.option("--unknown", default="unknown", help="What cells of no type are called.")
@click.option(
    "--max-epochs",
    type=click.IntRange(min=0),
    show_default="as many as suit the data",
    help="Epochs of training on new batches, where the encoder is told of batches; 0 for none.",
)
@out_of_core_option()
def map_query(
    common: Common,
    model_dir: Path,
    input_path: Path,
    reference_path: Path | None,
    label_key: str,
    output: Path,
    key_added: str | None,
    out_of_core: bool | None,
    any_distance: bool,
    **options: Any,
) -> Result:
    """Embed the cells of QUERY with the model saved in MODEL, and give them types.

    The types are those that cells of a reference have around them, with probabilities that are
    calibrated on reference cells held out; cells that no type is probable for, or that lie far
    from all, are unknown. Genes are found by their names. Batches may be new.

    Example: dra-scvi map model more.h5ad --reference cells.h5ad --label-key cell_type -o out.h5ad
    """
    inputs = {"MODEL": model_dir, "QUERY": input_path, "--reference": reference_path}
    common.rehearse(inputs, ("--output", output, "file"))
    saved = read_saved(model_dir)
    if saved.class_name != "DRA":
        raise ValueError(f"{model_dir} is a {saved.class_name}, which maps no cells; DRA does.")
    model = _reference(model_dir, reference_path, saved, label_key, options["unknown"], common)
    from dra_scvi import tl
    from dra_scvi._outputs.h5ad_content import check_writable

    layer = saved.registry["setup_args"]["layer"]
    adata, source = read_or_open(input_path, layer, out_of_core, common)
    check_writable(adata)
    common.say(f"mapping {adata.n_obs} cells")
    if any_distance:
        options["far_quantile"] = None
    given: dict[str, Any] = {
        "key_added": key_added,
        "seed": common.seed,
        "accelerator": common.accelerator,
    }
    train = {"enable_progress_bar": common.shows_bar}
    tl.transfer_labels(model, adata, label_key, **options, **given, train_kwargs=train)
    write_cells(adata, output, source, common, with_obs=True)
    key = f"{label_key}_transferred" if key_added is None else key_added
    figures = _figures(adata, key, model.adata.n_obs)
    figures["settings"] |= {"seed": common.seed, "max_epochs": options["max_epochs"]}
    return Result(figures, f"{key} of {input_path.name}", _rows(figures))


def _reference(
    model_dir: Path,
    path: Path | None,
    saved: SavedModel,
    label_key: str,
    unknown: str,
    common: Common,
) -> DRA:
    """Load the model with cells whose types are known."""
    from dra_scvi import DRA
    from dra_scvi._data.query import query_for
    from dra_scvi._folder.manifest import DATA
    from dra_scvi._inputs.read import read_input
    from dra_scvi._labels.types import known_types

    if path is None:
        if not (model_dir / DATA).exists():
            raise click.UsageError(
                f"no cells were saved with {model_dir}: name the file that has them with "
                "--reference."
            )
        return DRA.load(str(model_dir), accelerator=common.accelerator)
    cells = read_input(path)
    known_types(cells, label_key, unknown)  # so that a wrong name is told before the work
    cells = query_for(cells, saved.genes, saved.registry["setup_args"])
    return DRA.load(str(model_dir), adata=cells, accelerator=common.accelerator)


def _figures(adata: AnnData, key: str, n_reference: int) -> dict[str, Any]:
    """Count what was called, type by type, and why cells are unknown."""
    report = dict(adata.uns[key])
    called, types = adata.obs[key], report.pop("types")
    del report["reliability"]
    held_out = {name: report.pop(name) for name in ("held_out", "accuracy", "ece", "temperature")}
    probability, far = adata.obs[f"{key}_probability"], adata.obs[f"{key}_distance"] > 1
    report["far_quantile"] = report["far_quantile"] or None
    is_unknown = called == report["unknown"]
    improbable = probability < report["threshold"]
    return {
        "input": {"n_cells": adata.n_obs, "n_genes": adata.n_vars},
        "reference": {"n_cells": n_reference, "n_with_type": int(types["n_reference"].sum())},
        "settings": {"key_added": key, "embedding": KEY_ADDED, **report},
        "held_out": {"by": held_out.pop("held_out"), **held_out},
        "types": {
            str(name): {
                "n_cells": int((called == name).sum()),
                "mean_probability": float(probability[called == name].mean()),
                "n_reference": int(row["n_reference"]),
                "recognised": float(row["recognised"]),
            }
            for name, row in types.iterrows()
        },
        "unknown": {
            "n_cells": int(is_unknown.sum()),
            "n_improbable": int((is_unknown & improbable).sum()),
            "n_far": int((is_unknown & far).sum()) if report["far_quantile"] else 0,
        },
    }


def _rows(figures: dict[str, Any]) -> list[dict[str, Any]]:
    """Show types by their number of cells, and what is unknown last."""
    names = sorted(figures["types"], key=lambda name: -figures["types"][name]["n_cells"])
    shown = [(name, figures["types"][name]) for name in names]
    shown.append((figures["settings"]["unknown"], figures["unknown"]))
    columns = {
        "cells": "n_cells",
        "mean probability": "mean_probability",
        "in the reference": "n_reference",
        "recognised": "recognised",
    }
    return [
        {"type": name} | {title: found.get(key) for title, key in columns.items()}
        for name, found in shown
    ]
