"""Arguments of models, training and getters: refused where they are given, in one sentence."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pandas as pd
from scvi.dataloaders import AnnDataLoader
from scvi.model import SCVI

from dra_scvi._argument_kinds import check_adata, check_kinds, parameters_along
from dra_scvi._data.columns import closest, unknown_key, validate_keys
from dra_scvi._data.unchanged import comparing_once
from dra_scvi._threads import within_own_threads

if TYPE_CHECKING:
    from collections.abc import Callable
    from inspect import Parameter

    from anndata import AnnData
    from numpy.typing import NDArray

    Method = TypeVar("Method", bound=Callable[..., Any])


# lowest value of arguments that are whole numbers
WHOLE_NUMBERS = {"n_latent": 1, "n_components": 1, "n_neighbors": 0}
WIDTHS = ("n_hidden", "n_hidden_discriminator")
# words that scvi-tools looks up late, or takes any other in place of
CHOICES = {
    "gene_likelihood": ("zinb", "nb", "poisson", "normal"),
    "latent_distribution": ("normal", "ln"),
}
# lowest and highest value, and whether they are allowed themselves
SHARES = {
    "dropout_rate": (True, False),
    "prior_anchor": (True, True),
    "train_size": (False, True),
    "validation_size": (True, False),
    "threshold": (True, True),
    "far_quantile": (False, True),
}
# Lightning's words, old ones too; in the others the networks would meet counts of another kind
PRECISIONS = ("32-true", "64-true", "16-mixed", "bf16-mixed")
OLD_PRECISIONS = ("16", "32", "64", "bf16")
RATES = ("lr", "discriminator_lr")
WARM_UPS = ("n_epochs_kl_warmup", "n_steps_kl_warmup")
DRAWS = ("n_samples", "n_samples_overall", "mc_samples", "n_mc_samples", "n_mc_samples_per_pass")
CELLS = ("indices", "idx1", "idx2")
# what scvi-tools gives to a module itself
FROM_DATA = (
    *("n_input", "n_batch", "n_labels", "n_continuous_cov", "n_cats_per_cov"),
    *("use_size_factor_key", "library_log_means", "library_log_vars"),
)
# what others call them
OTHER_NAMES = {"learning_rate": "lr", "epochs": "max_epochs", "n_epochs": "max_epochs"}


def check_model(arguments: Mapping[str, Any]) -> None:
    """Check sizes and words among the arguments that a model is made with.

    >>> check_model({"n_latent": 10, "n_hidden": [128, 64], "n_layers": None})
    >>> check_model({"n_latent": 0})
    Traceback (most recent call last):
    ...
    ValueError: n_latent=0: a whole number of at least 1 is needed.
    """
    for name, least in WHOLE_NUMBERS.items():
        if name in arguments:
            _check_whole(name, arguments[name], least)
    if arguments.get("n_layers") is not None:
        _check_whole("n_layers", arguments["n_layers"], 1)
    for name in WIDTHS:
        if arguments.get(name) is not None:
            _check_widths(name, arguments[name])
    for name, choices in CHOICES.items():
        if arguments.get(name, choices[0]) not in choices:
            words = ", ".join(map(repr, choices))
            raise ValueError(f"{name} must be one of {words}, not {arguments[name]!r}.")
    check_shares(arguments)


def check_training(arguments: Mapping[str, Any], least_batch_size: int = 1) -> None:
    """Check the numbers that a model is trained with; `None` stands for a default.

    >>> check_training({"max_epochs": 1.5})
    Traceback (most recent call last):
    ...
    ValueError: max_epochs=1.5: a whole number of at least 1 is needed.
    """
    epochs = arguments.get("max_epochs")
    in_steps = epochs == -1 and "max_steps" in arguments  # Lightning's word for no end
    if epochs is not None and not in_steps:
        _check_whole("max_epochs", epochs, 1)
    check_batch_size(arguments.get("batch_size"), least_batch_size)
    precision = arguments.get("precision")
    if precision is not None and str(precision) not in PRECISIONS + OLD_PRECISIONS:
        *most, last = map(repr, PRECISIONS)
        raise ValueError(f"precision={precision!r}: {', '.join(most)} or {last} is needed.")
    plan = arguments.get("plan_kwargs") or {}
    if not isinstance(plan, Mapping):
        raise TypeError(f"plan_kwargs={plan!r}: a dictionary is needed, such as {{'lr': 1e-3}}.")
    for name in RATES:
        _check_rate(name, plan.get(name, 0.0))
    for name in WARM_UPS:
        if plan.get(name) not in (None, "auto"):
            _check_rate(name, plan[name])
    given = {k: v for k, v in arguments.items() if v is not None}
    check_shares(given)
    if (total := given.get("train_size", 0) + given.get("validation_size", 0)) > 1:
        raise ValueError(
            f"train_size={given['train_size']} and validation_size={given['validation_size']} "
            f"make {total:g}; together they can be 1 at most."
        )


def check_known(
    where: str,
    given: Mapping[str, Any],
    known: Mapping[str, Parameter],
    elsewhere: Mapping[str, Mapping[str, Parameter]] | None = None,
) -> None:
    """Check names of arguments before they are passed on, and their kinds.

    Of an unknown one is said which may be meant, and where one belongs that is known `elsewhere`.

    >>> def plan(lr=0.001, weight_decay=0.0): ...
    >>> check_known("plan_kwargs", {"wieght_decay": 1}, inspect.signature(plan).parameters)
    Traceback (most recent call last):
    ...
    TypeError: plan_kwargs: there is no argument 'wieght_decay'; did you mean 'weight_decay'?
    """
    for name in given:
        if name in known:
            continue
        wanted = OTHER_NAMES.get(name, name)
        place = next((key for key, names in (elsewhere or {}).items() if wanted in names), None)
        match = wanted if wanted in known else closest(wanted, known)
        hint = f"; did you mean {match!r}?" if match else "."
        if place is not None:
            hint = f"; give {place}={{{wanted!r}: ...}}."
        raise TypeError(f"{where}: there is no argument {name!r}{hint}")
    check_kinds(known, given)


def check_model_names(model_cls: Any, given: Mapping[str, Any], where: str) -> None:
    """Check the names of what a model is made with, or passes on to its module."""
    known = parameters_along(model_cls)
    if any(p.kind == p.VAR_KEYWORD for p in inspect.signature(model_cls).parameters.values()):
        known = parameters_along(model_cls._module_cls) | known
    left_out = ("adata", "registry", *FROM_DATA)
    check_known(where, given, {k: v for k, v in known.items() if k not in left_out})


def check_training_names(model_cls: Any, given: Mapping[str, Any], where: str = "train") -> None:
    """Check the names of what training is told, and passes on to trainer, plan and splitter."""
    plan = parameters_along(model_cls._training_plan_cls)
    loss = list(inspect.signature(model_cls._module_cls.loss).parameters.values())
    plan |= {p.name: p for p in loss[4:] if p.name != "kl_weight"}
    del plan["module"]
    splitter = parameters_along(model_cls._data_splitter_cls) | parameters_along(AnnDataLoader)
    del splitter["adata_manager"]
    passed_on = {"plan_kwargs": plan, "datasplitter_kwargs": splitter}
    trainer = parameters_along(model_cls._train_runner_cls._trainer_cls)
    own = dict(inspect.signature(model_cls.train).parameters)
    for name in ("self", "trainer_kwargs"):
        own.pop(name, None)
    runner = {"ckpt_path": inspect.Parameter("ckpt_path", inspect.Parameter.KEYWORD_ONLY)}
    check_known(where, given, trainer | own | runner, passed_on)
    for argument, known in passed_on.items():
        if isinstance(given.get(argument), Mapping):
            check_known(argument, given[argument], known)


def check_batch_size(batch_size: Any, least: int = 1) -> None:
    """Check a number of cells; `None` stands for a default."""
    if batch_size is not None:
        _check_whole("batch_size", batch_size, least)


def check_columns(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments that name a layer or columns, once each names as many as it may.

    ``layer`` and what ends in ``_key`` is one name, what ends in ``_keys`` a list of them.

    >>> check_columns({"layer": None, "categorical_covariate_keys": ("donor", "site")})
    {'layer': None, 'categorical_covariate_keys': ['donor', 'site']}
    >>> check_columns({"categorical_covariate_keys": "donor"})
    Traceback (most recent call last):
    ...
    TypeError: categorical_covariate_keys='donor': a list of columns is needed, as in ['donor'].
    """
    return {name: _names(name, value) for name, value in arguments.items()}


def _names(argument: str, value: Any) -> Any:
    if value is None:
        return None
    if argument.endswith("_keys"):
        if isinstance(value, str) or not isinstance(value, Sequence | np.ndarray | pd.Index):
            raise TypeError(
                f"{argument}={value!r}: a list of columns is needed, as in {[value]!r}."
            )
        return [_name(argument, key) for key in value]
    if isinstance(value, Sequence | np.ndarray | pd.Index) and not isinstance(value, str):
        advice = ""
        if argument == "batch_key":
            advice = (
                " Name further ones among the categorical covariates, or write what they are "
                "together into one column."
            )
        raise TypeError(f"{argument}={value!r}: one name is needed, not several.{advice}")
    return _name(argument, value)


def _name(argument: str, value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{argument}={value!r}: a name is needed, which is a string.")
    return value


def _check_whole(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ValueError(f"{name}={value!r}: a whole number of at least {least} is needed.")


def _check_rate(name: str, value: Any) -> None:
    if not isinstance(value, Real) or isinstance(value, bool) or not 0 <= float(value) < np.inf:
        raise ValueError(f"{name}={value!r}: a finite number of at least 0 is needed.")


def _check_widths(name: str, value: Any) -> None:
    is_list = isinstance(value, Sequence | np.ndarray) and not isinstance(value, str)
    if not is_list and name == "n_hidden":
        _check_whole(name, value, 1)
        return
    if not is_list or len(value) == 0:
        raise ValueError(f"{name}={value!r}: a list of widths is needed, one for each layer.")
    for width in value:
        if isinstance(width, bool) or not isinstance(width, Integral) or width < 1:
            raise ValueError(
                f"{name}={value!r}: each width has to be a whole number of 1 or more."
            )


def check_shares(arguments: Mapping[str, Any]) -> None:
    """Check those arguments that are shares; others are passed over."""
    for name, (from_zero, to_one) in SHARES.items():
        if name not in arguments:
            continue
        value = arguments[name]
        is_number = isinstance(value, Real) and not isinstance(value, bool)
        is_inside = is_number and (
            0 < value < 1 or (from_zero and value == 0) or (to_one and value == 1)
        )
        if not is_inside:
            low = "0" if from_zero else "above 0"
            high = "1" if to_one else "below 1"
            raise ValueError(f"{name}={value!r}: a number from {low} to {high} is needed.")


def as_positions(cells: Any, n_cells: int, argument: str = "indices") -> NDArray[np.int64]:
    """Return the positions of chosen cells, whatever says which they are.

    Whole numbers in any sequence, in one dimension or in one column (as `np.argwhere` gives
    them), negative ones counted from the end; a mask with one entry for each cell; a slice.

    >>> as_positions((1, -1), 5), as_positions([True, False, True], 3)
    (array([1, 4]), array([0, 2]))
    >>> as_positions([5], 5)
    Traceback (most recent call last):
    ...
    IndexError: indices holds 5, and there are 5 cells: positions go from 0 to 4.
    """
    if isinstance(cells, slice):
        return np.arange(n_cells)[cells]
    values = np.atleast_1d(np.asarray(cells))
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim > 1:
        raise ValueError(f"{argument} has the shape {values.shape}: one dimension is needed.")
    if values.dtype == object and len(values):
        values = np.array(values.tolist())
    if values.dtype.kind == "b":
        if len(values) != n_cells:
            raise IndexError(
                f"{argument} is a mask of {len(values)} entries, and there are {n_cells} cells."
            )
        return np.flatnonzero(values)
    if len(values) == 0:
        return np.empty(0, np.int64)
    if values.dtype.kind not in "iu":
        raise TypeError(
            f"{argument} holds {values.tolist()[0]!r}: positions of cells, or a mask, are needed; "
            "adata.obs_names.get_indexer(names) gives the positions of names."
        )
    for outside in (int(values.min()), int(values.max())):
        if not -n_cells <= outside < n_cells:
            raise IndexError(
                f"{argument} holds {outside}, and there are {n_cells} cells: positions go from 0 "
                f"to {n_cells - 1}."
            )
    return np.where(values < 0, values + n_cells, values).astype(np.int64)


def takes_cells(getter: Method) -> Method:
    """Let a getter be told of cells in every way that :func:`as_positions` knows.

    However often it reads registered counts, they are compared with what was registered once. It
    runs with the numbers of threads that are fastest.
    """
    signature = inspect.signature(getter)
    loader = parameters_along(AnnDataLoader)
    weights = loader | dict(inspect.signature(SCVI.get_importance_weights).parameters)
    passed_on = {"data_loader_kwargs": loader, "importance_weighting_kwargs": weights}

    @within_own_threads
    @functools.wraps(getter)
    def checked(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = signature.bind(self, *args, **kwargs)
        arguments = given.arguments
        check_kinds(signature.parameters, arguments)
        _check_getter(arguments)
        for name, known in passed_on.items():
            check_known(getter.__name__, arguments.get(name) or {}, known)
        adata = arguments.get("adata")
        adata = self.adata if adata is None else adata
        if adata is not None:
            check_adata(adata)
            _check_names(arguments, adata)
        for name in CELLS:
            cells = arguments.get(name)
            # differential expression also takes a query of columns, as a string
            is_query = isinstance(cells, str) and name != "indices"
            if adata is not None and cells is not None and not is_query:
                arguments[name] = as_positions(cells, adata.n_obs, name)
        with comparing_once():
            return getter(*given.args, **given.kwargs)

    return checked  # type: ignore[return-value]


def _check_getter(arguments: Mapping[str, Any]) -> None:
    """Check numbers, of which scvi-tools takes any."""
    check_batch_size(arguments.get("batch_size"))
    for name in DRAWS:
        if arguments.get(name) is not None:
            _check_whole(name, arguments[name], 1)
    size = arguments.get("library_size", 1.0)
    is_number = isinstance(size, Real) and not isinstance(size, bool)
    if size != "latent" and not (is_number and 0 < float(size) < np.inf):
        raise ValueError(
            f"library_size={size!r}: a finite number above 0, or 'latent', is needed."
        )


def _check_names(arguments: Mapping[str, Any], adata: AnnData) -> None:
    """Check names of genes, columns and groups, of which scvi-tools passes over unknown ones."""
    genes = arguments.get("gene_list")
    if isinstance(genes, str):
        raise TypeError(f"gene_list={genes!r}: a list of names is needed.")
    for gene in genes if genes is not None else ():
        if gene not in adata.var_names:
            raise KeyError(unknown_key("gene_list", gene, "a gene of adata", adata.var_names))
    keys = {name: arguments.get(name) for name in ("groupby", "sample_key")}
    validate_keys(adata, obs_keys={name: key for name, key in keys.items() if key is not None})
    if keys["groupby"] is None or arguments.get("idx1") is not None:  # which goes before groups
        return
    known = adata.obs[keys["groupby"]].unique()
    for name in ("group1", "group2"):
        groups: Any = arguments.get(name)
        for group in groups if pd.api.types.is_list_like(groups) else [groups]:
            if group is not None and group not in known:
                place = f"a value of adata.obs[{keys['groupby']!r}]"
                raise KeyError(unknown_key(name, group, place, known))


def refuse_mudata(adata: Any) -> None:
    """Refuse data of several modalities, and say how to take one."""
    modalities = getattr(adata, "mod", None)
    if modalities is not None:
        names = ", ".join(repr(name) for name in modalities)
        raise TypeError(
            "DRA models the counts of one AnnData, and this is a MuData: pass the modality that "
            f"holds RNA, as in DRA.setup_anndata(mdata[{next(iter(modalities), 'rna')!r}]). "
            f"Modalities: {names}."
        )
