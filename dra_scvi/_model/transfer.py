"""What a model takes over: a query of its reference, DRA of a trained scVI, and scVI of DRA."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from scvi import REGISTRY_KEYS
from scvi.model import SCVI
from scvi.nn import FCLayers

from dra_scvi._argument_kinds import check_call, parameters_along
from dra_scvi._compat import is_minified
from dra_scvi._docstrings import with_parameters_of
from dra_scvi._model.arguments import check_known

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence
    from typing import Self

    from anndata import AnnData
    from scvi.model.base import BaseModelClass

# arguments that scVI's networks do not have
OWN = frozenset(
    {
        "divergence",
        "n_components",
        "n_hidden_discriminator",
        "n_neighbors",
        "expression_axes",
        "prior",
        "prior_anchor",
    }
)


class TransferMixin:
    """Ways to begin with the weights of a trained model."""

    @classmethod
    @with_parameters_of(SCVI.load_query_data)
    def load_query_data(
        cls,
        adata: AnnData | None = None,
        reference_model: str | os.PathLike[str] | BaseModelClass | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Self:
        """Map a query to a reference model with scArches :cite:p:`Lotfollahi21`.

        Training then moves what belongs to the batches of the query alone: where these are new,
        reference cells keep their codes. Discriminators and the prior are frozen with the rest,
        and a query is trained on the evidence lower bound only: discriminators of the reference
        have not seen the new batches, and a query of few cell types need not fill the prior. With
        ``unfrozen=True`` everything is trained, dual matching included.

        Parameters
        ----------
        {parameters}
        registry
            Registry of a data module, in place of `adata`.
        """
        check_call(cls.load_query_data, adata, reference_model, *args, **kwargs)
        model = super().load_query_data(adata, reference_model, *args, **kwargs)  # type: ignore[misc]
        if isinstance(reference_model, SCVI):
            registry = reference_model.registry
        else:
            registry = SCVI.load_registry(str(reference_model))
        _align_covariates(model.module, _n_categories(registry))
        for name, parameter in model.module.named_parameters():
            if "_embeddings_dict." in name:  # left frozen by scvi-tools 1.4, new batches included
                parameter.requires_grad = True
        return model

    @staticmethod
    @with_parameters_of(SCVI.prepare_query_mudata)
    def prepare_query_mudata(*args: Any, **kwargs: Any) -> NoReturn:
        """Refuse: the data of this model have one modality.

        Parameters
        ----------
        {parameters}

        Raises
        ------
        TypeError
            Always.
        """
        raise TypeError(
            "DRA models one modality: pass the one that holds RNA to prepare_query_anndata, as in "
            "DRA.prepare_query_anndata(mdata['rna'], reference_model)."
        )

    @classmethod
    def from_scvi_model(
        cls, scvi_model: SCVI, adata: AnnData | None = None, **kwargs: Any
    ) -> Self:
        """Begin with the weights of a trained scVI model.

        Its architecture, likelihood, covariates and registration are taken over. Prior and
        discriminators start from scratch: train the model before it is used.

        Parameters
        ----------
        scvi_model
            Trained :class:`~scvi.model.SCVI`.
        adata
            AnnData with the genes and batches of that model; `None` for the model's own. Use
            :meth:`load_query_data` to add batches.
        **kwargs
            Arguments of :class:`~dra_scvi.DRA` that scVI has not, such as `prior`.

        Returns
        -------
        An untrained model, whose encoder and decoder are scVI's.

        Raises
        ------
        RuntimeError
            When `scvi_model` is not trained.
        TypeError
            When `scvi_model` is no scVI model, or `kwargs` has an argument that it was given.
        ValueError
            When no AnnData with counts is at hand.

        Examples
        --------
        >>> import dra_scvi
        >>> from scvi.model import SCVI
        >>> adata = dra_scvi.datasets.synthetic(n_cells=200, n_genes=50)
        >>> SCVI.setup_anndata(adata)
        >>> scvi_model = SCVI(adata, n_latent=5)
        >>> quiet = {"accelerator": "cpu", "enable_progress_bar": False}
        >>> scvi_model.train(max_epochs=1, **quiet)
        >>> model = dra_scvi.DRA.from_scvi_model(scvi_model, prior="mixture")
        >>> model.train(max_epochs=2, **quiet)
        >>> model.get_latent_representation().shape
        (200, 5)
        """
        if type(scvi_model) is not SCVI:
            raise TypeError(f"scvi_model must be an SCVI, not {type(scvi_model).__name__}.")
        scvi_model._check_if_trained(warn=False, message="Train the scVI model first.")
        adata = scvi_model.adata if adata is None else adata
        if adata is None or is_minified(adata):
            raise ValueError("The scVI model holds no counts: pass adata, with counts.")
        check_known(
            "from_scvi_model", kwargs, {k: v for k, v in parameters_along(cls).items() if k in OWN}
        )
        registry = scvi_model.registry
        cls.setup_anndata(adata, **registry["setup_args"], source_registry=registry)  # type: ignore[attr-defined]
        given = scvi_model.init_params_
        model = cls(adata, **given["non_kwargs"], **given["kwargs"].get("kwargs", {}), **kwargs)  # type: ignore[call-arg]
        model.module.load_state_dict(scvi_model.module.state_dict(), strict=False)  # type: ignore[attr-defined]
        return model


def _n_categories(registry: dict[str, Any]) -> list[int]:
    """Numbers of batches, and of categories of each covariate."""
    fields = registry["field_registries"]
    batches = fields[REGISTRY_KEYS.BATCH_KEY]["state_registry"]["categorical_mapping"]
    covariates = fields.get(REGISTRY_KEYS.CAT_COVS_KEY, {}).get("state_registry", {})
    return [len(batches), *covariates.get("n_cats_per_key", [])]


@torch.no_grad()
def _align_covariates(module: torch.nn.Module, n_old: Sequence[int]) -> None:
    """Put the columns of new categories where layers look for them, in place.

    A layer sees the categories of one covariate after those of another. scvi-tools appends the
    columns of all new ones at the end, so that with several covariates weights of a known category
    are read as those of another; and a covariate that had one category had no column. The
    reference had `n_old` categories: batches, and of each covariate.
    """
    for layers in module.modules():
        if not isinstance(layers, FCLayers) or not layers.n_cov:
            continue
        new = layers.n_cat_list
        old = [n if n > 1 else 0 for n in n_old[-len(new) :]]  # embedded batches have no columns
        for i, layer in enumerate(layers.fc_layers):
            linear = next(block for block in layer if isinstance(block, torch.nn.Linear))
            if layers.inject_into_layer(i):
                n_own = linear.in_features - layers.n_cov
                order = _column_order(old, new)
                columns = torch.cat(
                    [linear.weight[:, n_own:], torch.zeros_like(linear.bias)[:, None]], 1
                )
                linear.weight[:, n_own:] = columns[:, order]


def _column_order(old: Sequence[int], new: Sequence[int]) -> list[int]:
    """Where each covariate's columns are, when those of new categories were all appended.

    The category of a covariate that had one only is given the last position, one beyond them all.

    >>> _column_order([2, 2], [3, 4])
    [0, 1, 4, 2, 3, 5, 6]
    >>> _column_order([0, 2], [3, 2])
    [5, 2, 3, 0, 1]
    """
    known, appended, order = 0, sum(old), []
    for n_old, n_new in zip(old, new, strict=True):
        nameless = [sum(new)] if n_new and not n_old else []
        n_appended = n_new - n_old - len(nameless)
        order += [*range(known, known + n_old), *nameless, *range(appended, appended + n_appended)]
        known, appended = known + n_old, appended + n_appended
    return order


class Refused(Mapping[str, Any]):
    """Arguments that no class of scvi-tools can take: whoever reads them is told why."""

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def __repr__(self) -> str:
        return f"Refused({self.reason!r})"

    def _refuse(self) -> TypeError:
        return TypeError(f"This model cannot be handed over: {self.reason}")

    def __getitem__(self, key: str) -> Any:
        raise self._refuse()

    def __iter__(self) -> Iterator[str]:
        raise self._refuse()

    def __len__(self) -> int:
        raise self._refuse()


def as_scvi(arguments: dict[str, Any], widths: list[int]) -> dict[str, Any]:
    """Return arguments of a model as those of an scVI model with its encoder and decoder.

    scvi-tools keeps them in ``"non_kwargs"``, and ``"kwargs"`` by the name of the parameter.

    >>> given = {"non_kwargs": {"n_hidden": 8, "n_layers": None, "prior": None}, "kwargs": {}}
    >>> as_scvi(given, widths=[8, 8])
    {'non_kwargs': {'n_hidden': 8, 'n_layers': 2}, 'kwargs': {}}
    """
    if len(set(widths)) > 1:
        reason = (
            f"its hidden layers have different widths, {widths}, and those of scvi-tools have one "
            "for all. Train it with a number for n_hidden."
        )
        return {"non_kwargs": Refused(reason), "kwargs": {}}
    shared = {k: v for k, v in arguments["non_kwargs"].items() if k not in OWN}
    shared |= {"n_hidden": widths[0], "n_layers": len(widths)}
    return {"non_kwargs": shared, "kwargs": arguments["kwargs"]}
