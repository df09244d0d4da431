"""What several test files share: small data, real data, silence."""

from __future__ import annotations

import logging
import os
import signal
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

# tests run in several processes: threads of their own would only wait for one another; numba, once
# it starts its threads, sets the number for torch as well
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")

import pytest
import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from anndata import AnnData


@pytest.fixture(autouse=True, scope="session")
def _quiet() -> None:
    """Keep the trainers' remarks out of the report."""
    for name in ("lightning.pytorch", "lightning.fabric", "scvi"):
        logging.getLogger(name).setLevel(logging.ERROR)


@pytest.fixture(autouse=True, scope="session")
def _interruptible() -> None:
    """Let Ctrl-C through, which shells make their background processes ignore."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def adata() -> AnnData:
    """Return 150 synthetic cells of three types in two batches."""
    from dra_scvi import datasets

    return datasets.synthetic(n_cells=150, n_genes=40, n_types=3, n_batches=2, seed=0)


@pytest.fixture
def real_data() -> Callable[[str], AnnData]:
    """Return a reader of the labelled count matrices under `DRA_SCVI_DATA`."""
    import anndata

    folder = os.environ.get("DRA_SCVI_DATA")
    if not folder:
        pytest.skip("real counts: set DRA_SCVI_DATA to the folder that holds them")

    def read(name: str) -> AnnData:
        path = Path(folder) / f"{name}.h5ad"
        if not path.exists():
            pytest.skip(f"{path.name} is not in DRA_SCVI_DATA")
        return anndata.read_h5ad(path)

    return read


@pytest.fixture
def in_child() -> Callable[[Callable], int]:
    """Return what runs a job in a child process."""

    def start(job: Callable) -> int:
        """Run a job in a copy of this process, which ends with it; return its id."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of forks and threads
            child = os.fork()
        if child:
            return child
        code = 1
        try:
            torch.set_num_threads(1)
            job()
            code = 0
        finally:
            os._exit(code)

    return start
