"""A seed for all generators, for the time of a block."""

from __future__ import annotations

import contextlib
import os
import random
from typing import TYPE_CHECKING

import numpy as np
import torch

from dra_scvi._training.runner import TURNS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["seeded"]

# what scvi-tools and Lightning set in the environment along with a seed
SEED_VARIABLES = ("PL_GLOBAL_SEED", "PL_SEED_WORKERS", "XLA_FLAGS")


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed all generators, and scvi-tools' split, for the time of a block.

    Everything that scvi-tools' seed is wired to is put back: generators, environment, cuDNN. They
    are the whole process': blocks in several threads take turns.
    """
    from scvi import settings

    cudnn = torch.backends.cudnn
    with TURNS, torch.random.fork_rng(enabled=True):
        before = settings.seed, cudnn.deterministic, cudnn.benchmark
        python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
        environment = {name: os.environ.get(name) for name in SEED_VARIABLES}
        try:
            settings.seed = int(seed)
            yield
        finally:
            settings.seed, cudnn.deterministic, cudnn.benchmark = before
            random.setstate(python_state)
            np.random.set_state(numpy_state)  # noqa: NPY002
            _restore(environment)


def _restore(environment: Mapping[str, str | None]) -> None:
    for name, value in environment.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
