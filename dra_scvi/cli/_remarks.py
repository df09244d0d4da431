"""What a user may have overlooked in INPUT or in the options, said before the work begins."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dra_scvi.cli._session import Common, warn

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["remark"]

MANY_GENES, ENOUGH_GENES = 5_000, 2_000
MANY_BATCHES = 100
USUAL_BATCHES = frozenset(
    {"batch", "batches", "batch_id", "sample", "sample_id", "donor", "donor_id", "patient"}
    | {"patient_id", "orig.ident", "library", "library_id", "replicate"}
)


def remark(adata: AnnData, batch_key: str | None, n_genes: int | None, common: Common) -> None:
    """Say what looks like an oversight.

    Parameters
    ----------
    adata
        INPUT.
    batch_key
        Column of batches, which exists.
    n_genes
        Number of genes asked for.
    common
        Tells it.
    """
    if batch_key is None:
        _remark_on_unused_batches(adata, common)
    else:
        _warn_of_many_batches(adata, batch_key)
    if n_genes is not None and n_genes > adata.n_vars:
        common.say(f"--n-genes {n_genes}: INPUT has {adata.n_vars} genes, and all are taken")
    elif n_genes is None and adata.n_vars > MANY_GENES:
        common.say(
            f"with all {adata.n_vars} genes this takes long; --n-genes {ENOUGH_GENES} takes the "
            "most variable ones"
        )


def _remark_on_unused_batches(adata: AnnData, common: Common) -> None:
    for name in adata.obs:
        if str(name).lower() in USUAL_BATCHES:
            n_values = adata.obs[name].nunique()
            if 2 <= n_values <= MANY_BATCHES:
                common.say(
                    f"obs[{name!r}] has {n_values} values and is not used; --batch-key {name} "
                    "integrates them"
                )
                return


def _warn_of_many_batches(adata: AnnData, batch_key: str) -> None:
    import pandas as pd

    column = adata.obs[batch_key]
    n_values = column.nunique()
    values = column.cat.categories if isinstance(column.dtype, pd.CategoricalDtype) else column
    is_number = pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)
    if (is_number and n_values > MANY_BATCHES) or 2 * n_values > adata.n_obs > MANY_BATCHES:
        kind = "different numbers" if is_number else "different values"
        warn(
            f"--batch-key {batch_key} has {n_values} {kind} in {adata.n_obs} cells, each of which "
            "becomes a batch; is it a measurement or a name of cells rather than a batch?"
        )
