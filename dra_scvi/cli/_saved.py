"""What the commands say of a saved model: its settings, genes and batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


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
