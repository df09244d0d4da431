"""dra_scvi: DR-A, the adversarial variational autoencoder with dual matching, for scvi-tools."""

from importlib.metadata import version

from dra_scvi import datasets, metrics, pl, presets, tl
from dra_scvi._exceptions import (
    InvalidCountsError,
    TrainingDivergedError,
    TrainingInterruptedError,
)
from dra_scvi._model import DRA
from dra_scvi._module import DRAVAE
from dra_scvi._published import PublishedDRA
from dra_scvi._training_plan import DualMatchingPlan

__version__ = version("dra_scvi")

__all__ = [
    "DRA",
    "DRAVAE",
    "DualMatchingPlan",
    "InvalidCountsError",
    "PublishedDRA",
    "TrainingDivergedError",
    "TrainingInterruptedError",
    "datasets",
    "metrics",
    "pl",
    "presets",
    "tl",
]
