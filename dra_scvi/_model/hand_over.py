"""What scvi-tools' own classes are told of a model whose weights they take over."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["Refused", "as_scvi"]

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


class Refused(Mapping[str, Any]):
    """Arguments that no class of scvi-tools can take: whoever reads them is told why.

    Parameters
    ----------
    reason
        One sentence.
    """

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

    Parameters
    ----------
    arguments
        As scvi-tools keeps them: ``"non_kwargs"``, and ``"kwargs"`` by the name of the parameter.
    widths
        Width of each hidden layer.

    Examples
    --------
    >>> given = {"non_kwargs": {"n_hidden": 8, "n_layers": None, "prior": None}, "kwargs": {}}
    >>> as_scvi(given, [8, 8])
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
