"""Arguments of the wrong kind, told from each other before they reach a library."""

from __future__ import annotations

import contextlib
import inspect
import os
import reprlib
from collections.abc import Mapping
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from inspect import Parameter

SEED_LIMIT = 2**32 - 1  # NumPy's, and Lightning's
# what an argument is annotated with, what may be given, and how that is called
FLAG = (bool, int, np.bool_), "True or False"
NUMBER = (Real,), "a number"
DICTIONARY = (Mapping,), "a dictionary"
PATH = (str, os.PathLike), "a path"
KINDS = {
    "bool": FLAG,
    "int": ((Real,), "a whole number"),
    "float": NUMBER,
    "str | Path": PATH,
    "str | os.PathLike[str]": PATH,
    "dict": DICTIONARY,
    "Mapping[str, Any]": DICTIONARY,
}


def check_kinds(
    of: Callable[..., Any] | Mapping[str, Parameter], given: Mapping[str, Any]
) -> None:
    """Check the flags, numbers and dictionaries among arguments, by how they are annotated.

    Texts would count as true, whatever they say. `None` stands for a default.

    >>> def save(overwrite: bool = False): ...
    >>> check_kinds(save, {"overwrite": "no"})
    Traceback (most recent call last):
    ...
    TypeError: overwrite must be True or False, not 'no'
    """
    parameters = of if isinstance(of, Mapping) else inspect.signature(of).parameters
    for name, parameter in parameters.items():
        value, annotation = given.get(name), parameter.annotation
        word = annotation.__name__ if isinstance(annotation, type) else str(annotation)
        kinds, wanted = KINDS.get(word.removesuffix(" | None"), ((object,), ""))
        if value is None or isinstance(value, kinds):
            continue
        shown = isinstance(value, str | bytes | Real | list | tuple | set | dict)
        text = reprlib.repr(value) if shown else type(value).__name__
        raise TypeError(f"{name} must be {wanted}, not {text}")


def check_call(function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """Check the kinds of the arguments of a call; of one that is none Python says so itself."""
    try:
        given = inspect.signature(function).bind_partial(*args, **kwargs).arguments
    except TypeError:
        return
    check_kinds(function, given)


def check_given_once(
    function: Callable[..., Any], given: Mapping[str, Any], more: Mapping[str, Any], where: str
) -> None:
    """Check that no argument has another value among those that are passed on.

    >>> def train(max_epochs=None, train_kwargs=None): ...
    >>> check_given_once(train, {"max_epochs": 5}, {"max_epochs": 9}, "train_kwargs")
    Traceback (most recent call last):
    ...
    ValueError: max_epochs is 5, and 9 in train_kwargs: give one of the two
    """
    for name, parameter in inspect.signature(function).parameters.items():
        if name not in more or given[name] is None or given[name] == parameter.default:
            continue
        if given[name] != more[name]:
            raise ValueError(
                f"{name} is {given[name]!r}, and {more[name]!r} in {where}: give one of the two"
            )


def parameters_along(cls: type) -> dict[str, Parameter]:
    """Return what an object can be made with, also by the classes that it is made of.

    >>> class Old:
    ...     def __init__(self, size, colour): ...
    >>> class New(Old):
    ...     def __init__(self, *, shape, **kwargs): ...
    >>> list(parameters_along(New))
    ['size', 'colour', 'shape']
    """
    found: dict[str, Parameter] = {}
    for base in cls.__mro__:
        if "__init__" not in vars(base):
            continue
        _, *parameters = inspect.signature(vars(base)["__init__"]).parameters.values()
        variadic = [p for p in parameters if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        found = {p.name: p for p in parameters if p not in variadic} | found
        if not any(p.kind == p.VAR_KEYWORD for p in variadic):
            break
    return found


def matrix(values: Any, argument: str) -> np.ndarray:
    """Return coordinates as an array of numbers, and refuse all but a dense matrix of them.

    >>> matrix("X_dra", "embedding")
    Traceback (most recent call last):
    ...
    TypeError: embedding must be a matrix of (n_cells, n_latent), not the name 'X_dra'; pass ...
    """
    wanted = f"{argument} must be a matrix of (n_cells, n_latent), not"
    if isinstance(values, str):
        raise TypeError(f"{wanted} the name {values!r}; pass adata.obsm[{values!r}]")
    if hasattr(values, "obsm"):
        raise TypeError(f"{wanted} an AnnData; pass one of its embeddings: adata.obsm['X_dra']")
    if hasattr(values, "get_latent_representation"):
        raise TypeError(f"{wanted} a model; pass model.get_latent_representation()")
    # views of anndata are arrays that have this method too
    if hasattr(values, "toarray") and not isinstance(values, np.ndarray):
        raise TypeError(f"{wanted} a sparse one; pass {argument}.toarray()")
    if hasattr(values, "detach"):
        values = values.detach().cpu().numpy()
    try:
        array = np.asarray(values)
    except (ValueError, TypeError) as error:
        raise TypeError(f"{wanted} {type(values).__name__}: its rows differ in length") from error
    if array.dtype == object:
        with contextlib.suppress(ValueError, TypeError):
            array = array.astype(np.float64)
    if isinstance(values, np.ma.MaskedArray) and np.ma.is_masked(values):
        raise TypeError(f"{wanted} one with masked values; leave those cells out")
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{wanted} {type(values).__name__} of {array.dtype}")
    return array


def one_per_cell(values: Any, n_cells: int, argument: str) -> Any:
    """Return labels or batches, once they are a sequence of one value for each cell."""
    wanted = f"{argument} must hold one value per cell, not"
    if isinstance(values, str | bytes):
        raise TypeError(f"{wanted} the name {values!r}; pass adata.obs[{values!r}]")
    if hasattr(values, "obsm"):
        raise TypeError(f"{wanted} an AnnData; pass a column of its obs")
    if not hasattr(values, "__len__") or isinstance(values, dict | set | frozenset):
        raise TypeError(f"{wanted} {type(values).__name__}")
    shape: tuple[int, ...] = tuple(getattr(values, "shape", ()))
    if len(shape) == 2 and shape[1] == 1:
        values = values.iloc[:, 0] if hasattr(values, "iloc") else np.asarray(values)[:, 0]
    elif len(shape) > 1:
        raise ValueError(f"{wanted} an array of shape {shape}")
    if len(values) != n_cells:
        raise ValueError(
            f"{argument} has {len(values)} entries but the embedding has {n_cells} cells; "
            "pass one entry per cell."
        )
    check_distinguishable(values, argument)
    return values


def check_distinguishable(values: Any, where: str) -> None:
    """Check that values can be told apart, as lists and dictionaries cannot.

    >>> check_distinguishable([["T"], ["B"]], "labels")
    Traceback (most recent call last):
    ...
    ValueError: labels must hold one value per cell; the first that is none is a list, ['T']
    """
    if getattr(values, "dtype", np.dtype(object)) != np.dtype(object):
        return
    for value in values:
        try:
            hash(value)
        except TypeError as error:
            kind = type(value).__name__
            raise ValueError(
                f"{where} must hold one value per cell; the first that is none is a {kind}, "
                f"{value!r}"
            ) from error


def check_number(value: Any, argument: str, least: float, whole: bool = True) -> None:
    """Check that an argument is a number: whole from `least` on, or a finite fraction above it.

    >>> check_number(2.5, "n_clusters", least=1)
    Traceback (most recent call last):
    ...
    TypeError: n_clusters must be a whole number, not 2.5
    """
    kinds: Any = int | np.integer if whole else int | float | np.integer | np.floating
    if isinstance(value, bool | np.bool_) or not isinstance(value, kinds):
        kind = "a whole number" if whole else "a number"
        raise TypeError(f"{argument} must be {kind}, not {value!r}")
    if whole and value < least:
        raise ValueError(f"{argument} must be at least {least:g}, not {value}")
    if not whole and not (least < value < float("inf")):
        raise ValueError(f"{argument} must be above {least:g} and finite, not {value}")


def check_seed(seed: Any, argument: str = "seed") -> None:
    """Check that an argument can seed every generator.

    >>> check_seed(2**32)
    Traceback (most recent call last):
    ...
    ValueError: seed must be at most 4294967295, not 4294967296
    """
    check_number(seed, argument, least=0)
    if seed > SEED_LIMIT:
        raise ValueError(f"{argument} must be at most {SEED_LIMIT}, not {seed}")


def check_adata(adata: Any, parts: Sequence[str] = ("obs", "var_names")) -> None:
    """Check that an argument is an AnnData, or has the parts that are needed of one."""
    if all(hasattr(adata, part) for part in parts):
        return
    hint = "; read it first: anndata.read_h5ad(...)" if isinstance(adata, str) else ""
    raise TypeError(f"adata must be an AnnData, not {type(adata).__name__}{hint}")


def check_table(table: Any) -> None:
    """Check that an argument is a table."""
    if not hasattr(table, "columns") or not hasattr(table, "iloc"):
        hint = "; read it first: pandas.read_csv(...)" if isinstance(table, str) else ""
        raise TypeError(
            f"table must be the DataFrame of benchmark.compare, not {type(table).__name__}{hint}"
        )
