"""Cells and models that commands work on: read, remarked on where they look odd, written again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import click

from dra_scvi.cli._command import Common, warn

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from anndata import AnnData

MANY_GENES, ENOUGH_GENES = 5_000, 2_000
MANY_BATCHES = 100
USUAL_BATCHES = frozenset(
    {"batch", "batches", "batch_id", "sample", "sample_id", "donor", "donor_id", "patient"}
    | {"patient_id", "orig.ident", "library", "library_id", "replicate"}
)


def read_or_open(
    path: Path, layer: str | None, out_of_core: bool | None, common: Common
) -> tuple[AnnData, Path | None]:
    """Read INPUT, or leave its counts where they are, and say which: the file is returned then."""
    from dra_scvi._inputs.out_of_core import open_stored, stays_in_file
    from dra_scvi._inputs.read import read_input

    if not stays_in_file(path, out_of_core):
        return read_input(path), None
    common.say(f"counts stay in {path}")
    return open_stored(path, layer), path


def read_or_open_all(
    paths: Sequence[Path],
    layer: str | None,
    out_of_core: bool | None,
    common: Common,
    *,
    output: Path,
    file_key: str,
    columns: Mapping[str, str | list[str] | None],
) -> tuple[AnnData, Path | None]:
    """Read every INPUT, and join them; counts that stay in files go to a draft beside `output`."""
    if len(paths) == 1:
        return read_or_open(paths[0], layer, out_of_core, common)
    from dra_scvi._inputs import several
    from dra_scvi._inputs.out_of_core import open_stored, read_obsm, stay_in_files
    from dra_scvi._inputs.read import read_input

    names = several.name_files(paths)
    are_stored = stay_in_files(paths, out_of_core)
    parts = {path: open_stored(path, layer) if are_stored else read_input(path) for path in paths}
    several.check_joinable(parts, layer, columns, file_key)
    lost = several.tell_lost_genes(parts, len(several.common_genes(parts)))
    if lost:
        warn(lost)
    named = {name: parts[path] for name, path in names.items()}
    common.say(f"joining {len(paths)} files; obs[{file_key!r}] names that of each cell")
    if not are_stored:
        del parts
        return several.join_cells(named, file_key), None
    from dra_scvi._outputs.drafts import destination, name_draft

    for name, path in names.items():
        named[name].obsm = read_obsm(path)
    draft = name_draft(destination(output))
    click.get_current_context().call_on_close(lambda: draft.unlink(missing_ok=True))
    several.write_joined(named, file_key, draft)
    return open_stored(draft, layer), draft


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


class SavedModel(NamedTuple):
    """What is known of a saved model without any data."""

    class_name: str
    registry: Mapping[str, Any]
    settings: Mapping[str, Any]
    genes: list[str]


def read_saved(folder: Path) -> SavedModel:
    """Read what a folder says of its model."""
    from dra_scvi._folder.manifest import check_model_folder

    check_model_folder(folder)
    from dra_scvi._folder.read import checked_copy, read_model

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


def remark(
    adata: AnnData,
    batch_key: str | None,
    n_genes: int | None,
    common: Common,
    covariates: Sequence[str] = (),
) -> None:
    """Say, before the work begins, what looks like an oversight in INPUT or in the options.

    Of `covariates`, those of categories.
    """
    if batch_key is None:
        _remark_on_unused_batches(adata, covariates, common)
    else:
        _warn_of_many(adata, batch_key, "--batch-key", "batch")
    for key in covariates:
        _warn_of_many(adata, key, "--categorical-covariate-keys", "category")
    if n_genes is not None and n_genes > adata.n_vars:
        common.say(f"--n-genes {n_genes}: INPUT has {adata.n_vars} genes, and all are taken")
    elif n_genes is None and adata.n_vars > MANY_GENES:
        common.say(
            f"with all {adata.n_vars} genes this takes long; --n-genes {ENOUGH_GENES} takes the "
            "most variable ones"
        )


def _remark_on_unused_batches(adata: AnnData, covariates: Sequence[str], common: Common) -> None:
    for name in adata.obs:
        if str(name).lower() in USUAL_BATCHES and name not in covariates:
            n_values = adata.obs[name].nunique()
            if 2 <= n_values <= MANY_BATCHES:
                common.say(
                    f"obs[{name!r}] has {n_values} values and is not used; --batch-key {name} "
                    "integrates them"
                )
                return


def _warn_of_many(adata: AnnData, key: str, option: str, word: str) -> None:
    import pandas as pd

    column = adata.obs[key]
    n_values = column.nunique()
    values = column.cat.categories if isinstance(column.dtype, pd.CategoricalDtype) else column
    is_number = pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)
    if (is_number and n_values > MANY_BATCHES) or 2 * n_values > adata.n_obs > MANY_BATCHES:
        kind = "different numbers" if is_number else "different values"
        warn(
            f"{option} {key} has {n_values} {kind} in {adata.n_obs} cells, each of which becomes "
            f"a {word}; is it a measurement or a name of cells rather than a {word}?"
        )
