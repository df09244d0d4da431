"""dra_scvi: DR-A, the adversarial variational autoencoder with dual matching, for scvi-tools."""

from __future__ import annotations

import importlib
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dra_scvi import benchmark, datasets, metrics, pl, presets, report, tl
    from dra_scvi._exceptions import (
        GeneMismatchError,
        InvalidCountsError,
        TrainingDivergedError,
        TrainingInterruptedError,
        UntrustedModelError,
    )
    from dra_scvi._model.dra import DRA
    from dra_scvi._module.dravae import DRAVAE
    from dra_scvi._published.model import PublishedDRA
    from dra_scvi._training.plan import DualMatchingPlan

__version__ = version("dra_scvi")

__all__ = [
    "DRA",
    "DRAVAE",
    "DualMatchingPlan",
    "GeneMismatchError",
    "InvalidCountsError",
    "PublishedDRA",
    "TrainingDivergedError",
    "TrainingInterruptedError",
    "UntrustedModelError",
    "benchmark",
    "datasets",
    "metrics",
    "pl",
    "presets",
    "report",
    "tl",
]

_HOMES = {
    "DRA": "_model.dra",
    "DRAVAE": "_module.dravae",
    "DualMatchingPlan": "_training.plan",
    "GeneMismatchError": "_exceptions",
    "InvalidCountsError": "_exceptions",
    "PublishedDRA": "_published.model",
    "TrainingDivergedError": "_exceptions",
    "TrainingInterruptedError": "_exceptions",
    "UntrustedModelError": "_exceptions",
}


if not TYPE_CHECKING:  # to a type checker, a name that does not exist would be one

    def __getattr__(name: str) -> Any:
        """Import a public name on first use: the command line must not wait for torch to help."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        if name in _HOMES:
            value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
        else:
            value = importlib.import_module(f"{__name__}.{name}")
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
