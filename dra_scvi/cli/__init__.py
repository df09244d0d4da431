"""The command line: its exit codes, and the commands that work on what was trained."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from dra_scvi.cli._benchmark import benchmark
from dra_scvi.cli._cells import bare, effective_prior, read_or_open, write_cells
from dra_scvi.cli._errors import PROGRAM, Program, exit_code
from dra_scvi.cli._paths import FolderName, to_write
from dra_scvi.cli._result import Result
from dra_scvi.cli._scores import check_labels, clustering, clustering_rows, integration_rows
from dra_scvi.cli._session import (
    KEY_ADDED,
    PATH,
    Common,
    command,
    input_argument,
    out_of_core_option,
    output_option,
)
from dra_scvi.cli._train import train

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anndata import AnnData
    from numpy.typing import NDArray

__all__ = ["exit_code", "main", "program"]

GENES_SHOWN = 5


@click.group(cls=Program, name=PROGRAM, invoke_without_command=True)
@click.version_option(package_name="dra_scvi", message="%(version)s")
@click.pass_context
def program(ctx: click.Context) -> None:
    """Embed single cells with DR-A.

    INPUT is an .h5ad file, a zarr store of an AnnData, a 10x .h5 file, or a folder with one .mtx
    and labels.txt, and holds raw counts. Start with "dra-scvi demo".

    Every command takes its options from a YAML file as well (--config). For completion in bash:
    eval "$(_DRA_SCVI_COMPLETE=bash_source dra-scvi)"; zsh and fish have the same.

    Exit codes: 0 done; 1 refused by the system (no permission, disk full, out of memory) or a
    bug; 2 wrong usage; 65 bad data; 66 missing input; 70 training diverged; 73 output exists, or
    something else is in its place; 130 and 143 interrupted.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help(), err=True)
        ctx.exit(2)


def _key(ctx: click.Context, param: click.Parameter, value: str) -> str:
    from dra_scvi._outputs.h5ad_content import check_key

    try:
        check_key(value, "key_added")
    except ValueError as error:
        raise click.BadParameter(str(error), ctx, param) from error
    return value


@command("embed")
@input_argument()
@click.option(
    "--model", "model_dir", type=PATH, required=True, metavar="DIR", help="A saved model."
)
@output_option()
@click.option(
    "--key-added",
    default=KEY_ADDED,
    show_default=True,
    callback=_key,
    help="Key of obsm for the embedding.",
)
@out_of_core_option()
def embed(
    common: Common,
    input_path: Path,
    model_dir: Path,
    output: Path,
    key_added: str,
    out_of_core: bool | None,
) -> Result:
    """Embed the cells of INPUT with a model that was trained before.

    Genes are found by their names, whatever their order; all genes of the model must be there.
    The counts are taken from the layer, and the batches from the column, of the training. A model
    that is damaged, or in which foreign code may be hidden, is refused.

    Example: dra-scvi embed more.h5ad --model model --output out.h5ad
    """
    common.rehearse({"INPUT": input_path, "--model": model_dir}, *to_write("--output", output))
    saved = _read_model(model_dir)
    from dra_scvi._outputs.h5ad_content import check_writable

    layer = saved.registry["setup_args"]["layer"]
    adata, is_stored = read_or_open(input_path, layer, out_of_core, common)
    check_writable(adata)
    query = _query(adata, saved)
    common.say(f"embedding {adata.n_obs} cells")
    adata.obsm[key_added] = _encode(query, model_dir, saved, common)
    write_cells(adata, output, input_path if is_stored else None, common)
    figures = {
        "input": {"n_cells": adata.n_obs, "n_genes": adata.n_vars},
        "settings": {"model_class": saved.class_name, "key_added": key_added, "seed": common.seed},
        "embedding": {"n_latent": adata.obsm[key_added].shape[1]},
    }
    return Result(figures)


class SavedModel(NamedTuple):
    """What is known of a saved model without any data."""

    class_name: str
    registry: Mapping[str, Any]
    settings: Mapping[str, Any]
    genes: list[str]


def _read_model(folder: Path) -> SavedModel:
    """Read what a folder says of its model."""
    from dra_scvi._folder.read import checked_copy, read_model
    from dra_scvi._inputs.errors import check_model_folder

    check_model_folder(folder)
    file = folder / "model.pt"
    with checked_copy(folder) as copy:
        content = read_model(copy)
    try:
        attributes = content["attr_dict"]
        registry = attributes["registry_"]
        name = registry["model_name"]
        settings = attributes["init_params_"]["non_kwargs"]
        genes = [str(gene) for gene in content["var_names"]]
    except Exception as error:
        kind = type(error).__name__
        raise ValueError(
            f"{file} is not a model saved by scvi-tools, or damaged ({kind})."
        ) from error
    if name not in ("DRA", "PublishedDRA"):
        raise ValueError(f"{file} is a model of class {name}; DRA or PublishedDRA is needed.")
    return SavedModel(name, registry, settings, genes)


def _query(adata: AnnData, saved: SavedModel) -> AnnData:
    """Take the genes of a model, in its order, and the columns that it reads."""
    from dra_scvi._data.gene_names import check_genes_present
    from dra_scvi._data.keys import validate_keys
    from dra_scvi._data.stored import is_stored
    from dra_scvi._exceptions import GeneMismatchError

    if not adata.var_names.is_unique:
        first = adata.var_names[adata.var_names.duplicated()][0]
        raise ValueError(f"gene names of the input are not unique (first: {str(first)!r}).")
    check_genes_present(list(adata.var_names), saved.genes)
    setup = saved.registry["setup_args"]
    keys = {name: value for name, value in setup.items() if name.endswith(("_key", "_keys"))}
    validate_keys(adata, setup["layer"], keys)
    if list(adata.var_names) != saved.genes:
        if is_stored(adata.X if setup["layer"] is None else adata.layers[setup["layer"]]):
            raise GeneMismatchError(
                "counts that stay in their file must have the genes of the model alone, in its "
                "order; use --in-memory, or write them so."
            )
        adata = adata[:, saved.genes].copy()
    return bare(adata, setup["layer"], list(adata.obs.columns))


def _encode(query: AnnData, folder: Path, saved: SavedModel, common: Common) -> NDArray[Any]:
    """Return posterior means or, from the released program's model, a sample as in training."""
    import dra_scvi
    from dra_scvi import tl

    model_cls = getattr(dra_scvi, saved.class_name)
    with tl._seeded(common.seed):
        model = model_cls.load(str(folder), adata=query, accelerator=common.accelerator)
        return model.get_latent_representation(give_mean=saved.class_name == "DRA")


@command("evaluate")
@input_argument()
@click.option("--label-key", required=True, help="Column of obs with cell types.")
@click.option(
    "--use-rep", default=KEY_ADDED, show_default=True, help="Key of obsm with the embedding."
)
@click.option("--batch-key", help="Column of obs with batches, to score how well they mix.")
def evaluate(
    common: Common, input_path: Path, label_key: str, use_rep: str, batch_key: str | None
) -> Result:
    """Compare clusters in an embedding of INPUT with known cell types.

    Clusters are found by k-means, with as many clusters as labels, and by Leiden. Scores of
    integration, with --batch-key, need scib-metrics; "pcr", which needs the cells before
    integration, is null, and left out of the means.

    Example: dra-scvi evaluate embedded.h5ad --label-key cell_type --json -
    """
    from dra_scvi._data.keys import unknown_key, validate_keys
    from dra_scvi._inputs.read import read_input

    if batch_key is not None and importlib.util.find_spec("scib_metrics") is None:
        raise click.UsageError('--batch-key needs scib-metrics: pip install "dra_scvi[scib]".')
    common.rehearse({"INPUT": input_path})
    adata = read_input(input_path)
    if use_rep not in adata.obsm:
        raise KeyError(unknown_key("use_rep", use_rep, "a key of adata.obsm", adata.obsm.keys()))
    validate_keys(adata, obs_keys={"batch_key": batch_key})
    check_labels(adata, label_key)
    figures = _evaluate(adata, label_key, use_rep, batch_key, common.seed)
    mixing = integration_rows(figures["integration"]) if batch_key is not None else []
    title = f"{use_rep} of {input_path.name}"
    return Result(
        figures, title, clustering_rows(figures), [(f"Integration of {batch_key}", mixing)]
    )


def _evaluate(
    adata: AnnData, label_key: str, use_rep: str, batch_key: str | None, seed: int
) -> dict[str, Any]:
    import numpy as np

    from dra_scvi import metrics

    embedding, labels = np.asarray(adata.obsm[use_rep]), adata.obs[label_key]
    scores: dict[str, Any] = dict(clustering(embedding, labels, seed))
    if batch_key is not None:
        scores["integration"] = metrics.integration(embedding, labels, adata.obs[batch_key])
    return {
        "input": {
            "n_cells": adata.n_obs,
            "n_genes": adata.n_vars,
            "label_key": label_key,
            "batch_key": batch_key,
        },
        "settings": {"use_rep": use_rep, "seed": seed},
        **scores,
    }


@command("info")
@click.argument("model_dir", metavar="DIR", type=PATH)
def info(common: Common, model_dir: Path) -> Result:
    """Say what the model saved in DIR is.

    A model that is damaged, or in which foreign code may be hidden, is refused.

    Example: dra-scvi info model
    """
    common.rehearse({"DIR": model_dir})
    saved = _read_model(model_dir)
    setup = saved.registry["setup_args"]
    facts = {
        "class": saved.class_name,
        "n_latent": saved.settings["n_latent"],
        "prior": effective_prior(saved.settings),
        "n_genes": len(saved.genes),
        "n_batch": _n_batch(saved),
        "layer": setup["layer"],
        "batch_key": setup["batch_key"],
        "scvi_version": saved.registry["scvi_version"],
        "first_genes": saved.genes[:GENES_SHOWN],
    }
    shown = {**facts, "first_genes": ", ".join(saved.genes[:GENES_SHOWN])}
    rows = [{"field": name, "value": "-" if v is None else str(v)} for name, v in shown.items()]
    return Result({"model": facts}, f"Model in {model_dir.name}", rows)


def _n_batch(saved: SavedModel) -> int:
    return int(saved.registry["field_registries"]["batch"]["summary_stats"]["n_batch"])


@command("demo")
@click.option(
    "--output",
    type=FolderName(),
    default=Path("dra-scvi-demo"),
    show_default=True,
    metavar="DIR",
    help="Folder for the results.",
)
def demo(common: Common, output: Path) -> Result:
    """Embed 700 blood cells with PCA, scVI and DR-A, and compare the three.

    The counts ship with scanpy: nothing is downloaded. DIR gets pbmc68k.h5ad, umap.png,
    training.png and metrics.json.

    Example: dra-scvi demo
    """
    from dra_scvi import demo as job
    from dra_scvi._outputs.files import atomic_folder

    common.rehearse({}, *to_write("--output", output, "results"))
    common.say("embedding 700 cells with PCA, scVI and DR-A")
    with atomic_folder(output, common.force) as temporary:
        figures = job.run(temporary, common.seed, common.accelerator, common.shows_bar)
    common.say(f"wrote {output}")
    rows = [
        {
            "embedding": job.TITLES[name],
            "k-means NMI": scores["kmeans"]["nmi"],
            "k-means ARI": scores["kmeans"]["ari"],
            "Leiden NMI": scores["leiden"]["nmi"],
            "Leiden ARI": scores["leiden"]["ari"],
        }
        for name, scores in figures["embeddings"].items()
    ]
    return Result(figures, "Agreement of clusters with cell types", rows)


for _subcommand in (train, embed, evaluate, benchmark, info, demo):
    program.add_command(_subcommand)


def main() -> None:
    """Run the command line."""
    program(prog_name=PROGRAM)
