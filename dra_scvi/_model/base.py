"""What both model classes are: registration, training, getters, saving and transfer of cells."""

from __future__ import annotations

import contextlib
from inspect import signature
from typing import TYPE_CHECKING, Any

import torch
from scvi import REGISTRY_KEYS
from scvi.model import SCVI
from scvi.utils import setup_anndata_dsp
from torch.nn import BatchNorm1d

from dra_scvi._argument_kinds import check_call, check_kinds
from dra_scvi._compat import is_minified, minified_type, with_any_annbatch
from dra_scvi._data.columns import validate_keys
from dra_scvi._data.fields import (
    CategoriesField,
    CategoryField,
    CountsField,
    NumbersField,
    SizeFactorField,
)
from dra_scvi._data.registration import CountsManager
from dra_scvi._docstrings import with_parameters_of
from dra_scvi._model.arguments import (
    check_columns,
    check_training,
    check_training_names,
    refuse_mudata,
)
from dra_scvi._model.epochs import default_max_epochs
from dra_scvi._model.getters import GetterMixin
from dra_scvi._model.saving import PersistenceMixin
from dra_scvi._model.transfer import TransferMixin
from dra_scvi._threads import within_own_threads
from dra_scvi._training.processes import n_processes, trainer_settings
from dra_scvi._training.runner import TURNS, QuietRunner, interruptible

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anndata import AnnData


class BaseDRA(PersistenceMixin, TransferMixin, GetterMixin):  # type: ignore[misc]
    """A model of scvi-tools with this package's checks, trainer, getters and saves."""

    _train_runner_cls = QuietRunner
    _init_arguments: dict[str, Any]

    if hasattr(SCVI, "setup_annbatch"):  # as of scvi-tools 1.5
        setup_annbatch = classmethod(with_any_annbatch(SCVI.setup_annbatch.__func__))

    @property
    def init_arguments(self) -> dict[str, Any]:
        """What the model was made with; `init_params_` is what scvi-tools may take over."""
        non_kwargs, kwargs = self._init_arguments["non_kwargs"], self._init_arguments["kwargs"]
        return non_kwargs | {k: v for named in kwargs.values() for k, v in named.items()}

    def _get_user_attributes(self) -> list[tuple[str, Any]]:
        """Return what is saved, and given to a query: all that the model was made with."""
        attributes = dict(super()._get_user_attributes())
        return list((attributes | {"init_params_": self._init_arguments}).items())

    @within_own_threads
    @with_parameters_of(SCVI.train, leave_out=["max_epochs"])
    def train(self, max_epochs: int | None = None, *args: Any, **kwargs: Any) -> None:
        """Train the model; `plan_kwargs` are arguments of its training plan.

        With ``devices=2``, or more, each trains on its share of the cells, in a process of its own
        (Lightning's ``strategy="ddp"``); ``num_nodes=`` is for several machines, as under torchrun
        or Slurm. `batch_size` is then that of each. All end with the same model.

        Parameters
        ----------
        max_epochs
            Passes over the data; `None` for :func:`default_max_epochs`.
        {parameters}

        Raises
        ------
        TrainingDivergedError
            When a term of the objective is not finite. The model is then as it was at the end of
            the last epoch that went well.
        """
        given = signature(super().train).bind_partial(max_epochs, *args, **kwargs)
        least = 2 if any(isinstance(m, BatchNorm1d) for m in self.module.modules()) else 1
        arguments = dict(given.arguments)
        arguments |= arguments.pop("trainer_kwargs", {})
        check_training(arguments, least)
        check_training_names(type(self), arguments)
        if not any(parameter.requires_grad for parameter in self.module.parameters()):
            raise ValueError("Every parameter of the module is frozen: none is left to train.")
        n_obs = getattr(kwargs.get("datamodule") or self.adata, "n_obs", None)
        if max_epochs is None and n_obs is not None:
            batch_size = (kwargs.get("batch_size") or 128) * n_processes(kwargs)
            max_epochs = default_max_epochs(
                n_obs, batch_size, self.module.n_latent, self.module.n_batch
            )
        with TURNS:
            with interruptible(), trainer_settings(kwargs) as settings:
                super().train(max_epochs, *args, **settings)
            self._finish_training()
            self._calibrate()

    def _finish_training(self) -> None:
        """Change what is better learned by itself, once all else is as it will be."""

    def _calibrate(self) -> None:
        """Take from the cells what getters go by, now that the module is trained."""

    @with_parameters_of(PersistenceMixin.save)
    def save(self, *args: Any, **kwargs: Any) -> None:
        """Save the model, whole or not at all.

        Parameters
        ----------
        {parameters}

        Raises
        ------
        FileExistsError
            When the folder exists and may not be overwritten.

        Notes
        -----
        Of several processes that trained together, the first one writes.
        """
        check_call(self.save, *args, **kwargs)
        trainer = getattr(self, "trainer", None)
        is_training = trainer is not None and trainer.state.status == "running"
        with self._as_if_finished() if is_training else contextlib.nullcontext():
            if self.adata is not None:
                self._validate_anndata()
            if trainer is None or trainer.is_global_zero:
                super().save(*args, **kwargs)

    @contextlib.contextmanager
    def _as_if_finished(self) -> Iterator[None]:
        """Finish training for the time of a block, and go on from before: for SaveCheckpoint."""
        before = [(p, p.detach().clone()) for p in self.module.parameters()]
        try:
            with torch.inference_mode(False), torch.enable_grad():  # which validation goes without
                self._finish_training()
            self._calibrate()
            yield
        finally:
            for parameter, value in before:
                parameter.data.copy_(value)

    @classmethod
    @setup_anndata_dsp.dedent
    def setup_anndata(
        cls,
        adata: AnnData,
        layer: str | None = None,
        batch_key: str | None = None,
        labels_key: str | None = None,
        size_factor_key: str | None = None,
        categorical_covariate_keys: list[str] | None = None,
        continuous_covariate_keys: list[str] | None = None,
        allow_noninteger: bool = False,
        **kwargs: Any,
    ) -> None:
        """%(summary)s.

        Every count is checked first: raw, non-negative, finite integers.

        Parameters
        ----------
        %(param_adata)s
        %(param_layer)s
        %(param_batch_key)s
        %(param_labels_key)s
        %(param_size_factor_key)s
        %(param_cat_cov_keys)s
        %(param_cont_cov_keys)s
        allow_noninteger
            Turn the error about values that are not integers into a warning, for counts that were
            corrected or estimated.

        Raises
        ------
        KeyError
            When a layer or a column of ``adata.obs`` does not exist.
        InvalidCountsError
            When the matrix does not hold raw counts.
        """
        check_kinds(BaseDRA.setup_anndata, locals())
        setup_method_args = cls._get_setup_method_args(**locals())  # needs nothing else in scope
        refuse_mudata(adata)
        given = setup_method_args["setup_args"]
        del given["allow_noninteger"]  # no class of scvi-tools knows it
        named = {k: v for k, v in given.items() if k == "layer" or k.endswith(("_key", "_keys"))}
        given |= check_columns(named)
        validate_keys(
            adata, layer, {k: v for k, v in given.items() if k in named and k != "layer"}
        )
        fields = [
            CountsField(layer, batch_key, allow_noninteger),
            CategoryField(REGISTRY_KEYS.BATCH_KEY, batch_key),
            CategoryField(REGISTRY_KEYS.LABELS_KEY, labels_key),
            SizeFactorField(REGISTRY_KEYS.SIZE_FACTOR_KEY, size_factor_key, required=False),
            CategoriesField(REGISTRY_KEYS.CAT_COVS_KEY, given["categorical_covariate_keys"]),
            NumbersField(REGISTRY_KEYS.CONT_COVS_KEY, given["continuous_covariate_keys"]),
        ]
        if is_minified(adata):
            fields += cls._get_fields_for_adata_minification(minified_type(adata))
        manager = CountsManager(fields=fields, setup_method_args=setup_method_args)
        manager.register_fields(adata, **kwargs)
        cls.register_manager(manager)
