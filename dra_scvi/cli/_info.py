"""The info command: what a saved model is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dra_scvi.cli._cells import read_saved
from dra_scvi.cli._command import Common, command
from dra_scvi.cli._options import path_argument
from dra_scvi.cli._result import Result
from dra_scvi.cli._train_request import TrainRequest

if TYPE_CHECKING:
    from pathlib import Path

GENES_SHOWN = 5


@command("info")
@path_argument("model_dir", "DIR")
def info(common: Common, model_dir: Path) -> Result:
    """Say what the model saved in DIR is.

    A model that is damaged, or in which foreign code may be hidden, is refused.

    Example: dra-scvi info model
    """
    common.rehearse({"DIR": model_dir})
    saved = read_saved(model_dir)
    from dra_scvi._module.priors import effective_prior

    setup, fields = saved.registry["setup_args"], saved.registry["field_registries"]
    facts = {
        "class": saved.class_name,
        "n_latent": saved.settings["n_latent"],
        "prior": effective_prior(saved.settings),
        "n_genes": len(saved.genes),
        "n_batch": fields["batch"]["summary_stats"]["n_batch"],
        "layer": setup["layer"],
        "batch_key": setup["batch_key"],
        **{name: setup.get(name) for name in TrainRequest.COVARIATES},
        "scvi_version": saved.registry["scvi_version"],
        "first_genes": saved.genes[:GENES_SHOWN],
    }
    shown = {k: ", ".join(v) if isinstance(v, list) else v for k, v in facts.items()}
    rows = [{"field": name, "value": "-" if v is None else str(v)} for name, v in shown.items()]
    return Result({"model": facts}, f"Model in {model_dir.name}", rows)
