"""Overridden methods that show the parameters of scvi-tools' own: in signature and docstring."""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    Method = TypeVar("Method", bound=Callable[..., Any])


PLACE = "{parameters}"


def with_parameters_of(
    theirs: Callable[..., Any], leave_out: Collection[str] = ()
) -> Callable[[Method], Method]:
    """Show what a method passes on: parameters of `theirs` for ``*args`` and ``**kwargs``.

    In the docstring, their texts, but for some to `leave_out`, take the place of ``{parameters}``.

    >>> def theirs(a, b):
    ...     '''Do it.
    ...
    ...     Parameters
    ...     ----------
    ...     a
    ...         First.
    ...     b
    ...         Second.
    ...     '''
    >>> @with_parameters_of(theirs, leave_out=["a"])
    ... def ours(a, *args, well=True, **kwargs):
    ...     '''Do it better.
    ...
    ...     Parameters
    ...     ----------
    ...     {parameters}
    ...     '''
    >>> print(ours.__doc__.splitlines()[-2:])
    ['b', '    Second.']
    >>> inspect.signature(ours)
    <Signature (a, b, *, well=True)>
    """

    def decorate(ours: Method) -> Method:
        texts = _parameters(inspect.getdoc(theirs) or "")
        kept = [text for name, text in texts.items() if name not in leave_out]
        ours.__doc__ = inspect.cleandoc(ours.__doc__ or "").replace(PLACE, "\n".join(kept))
        ours.__signature__ = _signature(ours, theirs)  # type: ignore[attr-defined]
        return ours

    return decorate


def _signature(ours: Callable[..., Any], theirs: Callable[..., Any]) -> inspect.Signature:
    """Signature of `ours`, with parameters of `theirs` for ``*args`` and ``**kwargs``."""
    signature = inspect.signature(ours)
    named = signature.parameters
    kinds = {parameter.kind for parameter in named.values()}
    if inspect.Parameter.VAR_POSITIONAL not in kinds:
        return signature
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    merged = [parameter for parameter in named.values() if parameter.kind not in variadic]
    merged += [p for n, p in inspect.signature(theirs).parameters.items() if n not in named]
    # sorting is stable: by kind alone, each method's own order is kept
    return signature.replace(parameters=sorted(merged, key=lambda p: p.kind))


def _parameters(docstring: str) -> dict[str, str]:
    """Texts by name of the parameter, each with its name as the first line."""
    next_title = r"^\S[^\n]*\n-+$"
    pattern = rf"^Parameters\n-+\n(.*?)(?={next_title}|\Z)"
    section = re.search(pattern, docstring, re.DOTALL | re.M)
    if section is None:
        return {}
    texts = re.split(r"^(?=\S)", section[1], flags=re.M)
    return {text.split()[0].lstrip("*"): text.rstrip() for text in texts if text.strip()}
