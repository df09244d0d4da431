"""Settings as plain data that can be kept and compared: functions by all that they are made of."""

from __future__ import annotations

import functools
import hashlib
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator


UNKNOWN = "of which no more can be compared"


def as_plain(value: Any) -> Any:
    """Turn a setting into numbers, text, lists and dictionaries.

    Functions become their name and code, with the values of defaults, closures and globals that
    they read; partial functions what they call, and with which arguments. Of other objects the
    type is kept, which :func:`not_comparable` finds.

    >>> as_plain(functools.partial(dict, lr=np.float64(0.1)))
    {'partial': 'builtins.dict', 'args': [], 'keywords': {'lr': 0.1}}
    """
    return _plain(value, ())


def not_comparable(value: Any) -> Iterator[str]:
    """Yield the types of what :func:`as_plain` could tell no more of."""
    if isinstance(value, dict):
        if UNKNOWN in value:
            yield value[UNKNOWN]
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            yield from not_comparable(part)


def _plain(value: Any, within: tuple[Any, ...]) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if any(value is outer for outer in within):  # a function that calls itself
        return "itself"
    within = (*within, value)
    if isinstance(value, dict):
        return {str(name): _plain(part, within) for name, part in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(part, within) for part in value]
    if isinstance(value, functools.partial):
        return {
            "partial": _plain(value.func, within),
            "args": _plain(value.args, within),
            "keywords": _plain(value.keywords, within),
        }
    if isinstance(value, MethodType):
        return {"method": _plain(value.__func__, within), "of": _plain(value.__self__, within)}
    if isinstance(value, FunctionType):
        return _function(value, within)
    if isinstance(value, ModuleType):
        return value.__name__
    if hasattr(value, "__qualname__"):  # a class, or a function that was not written in Python
        return _name(value)
    return {UNKNOWN: _name(type(value))}


def _name(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}"


def _function(function: FunctionType, within: tuple[Any, ...]) -> dict[str, Any]:
    codes = list(_codes(function.__code__))
    found = hashlib.sha256()
    for code in codes:
        plain = [c for c in code.co_consts if not isinstance(c, CodeType)]
        found.update(code.co_code + repr((plain, code.co_names, code.co_varnames)).encode())
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    names = {name for code in codes for name in code.co_names} & set(function.__globals__)
    values = {
        "defaults": function.__defaults__,
        "keyword defaults": function.__kwdefaults__,
        "closure": {name: _content(cell) for name, cell in cells},
        "globals": {name: function.__globals__[name] for name in sorted(names)},
    }
    held = {name: _plain(value, within) for name, value in values.items() if value}
    return {"function": _name(function), "code": found.hexdigest(), **held}


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # it is filled only after the function was made
        return None
