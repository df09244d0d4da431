"""What test files share: small cells, small models, what they are compared by."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from click.testing import CliRunner
from filelock import FileLock

from dra_scvi import DRA, datasets, tl
from dra_scvi.cli import program

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import torch
    from anndata import AnnData
    from click.testing import Result
    from matplotlib.axes import Axes

QUIET = {"accelerator": "cpu", "enable_progress_bar": False}
SMALL = {"n_hidden": 16, "n_latent": 4, "n_hidden_discriminator": [16]}
N_CELLS, N_GENES = 60, 12
# every warning is an error, but those of others
STRICT = [
    pytest.mark.filterwarnings("error"),
    # Lightning's remarks on trainings as small as these, and what it uses of torch
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*log_every_n_steps"),
    pytest.mark.filterwarnings("ignore:.*in eval mode at the start of training"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:Sparse (invariant checks|CSR tensor support)"),
    # anndata's use of pandas
    pytest.mark.filterwarnings("ignore:The '[a-z._]+' option is deprecated:DeprecationWarning"),
    # scvi-tools' remarks, where dra_scvi has an answer
    pytest.mark.filterwarnings("ignore:Category . in .* has fewer than 3 cells"),
    pytest.mark.filterwarnings("ignore:Last batch will have a small size"),
    pytest.mark.filterwarnings("ignore:`var_names` for the loaded `model` does not match"),
]


def cells(**changes: Any) -> AnnData:
    sizes = {"n_cells": N_CELLS, "n_genes": N_GENES, "n_types": 2, "n_batches": 2}
    return datasets.synthetic(**{**sizes, **changes})


def with_value(value: float, row: int = 7, column: int = 3, dtype: Any = np.float32) -> AnnData:
    adata = cells()
    matrix = adata.X.toarray().astype(dtype)
    matrix[row, column] = value
    adata.X = matrix
    return adata


def fit(adata: AnnData, batch_key: str | None = None, **changes: Any) -> DRA:
    DRA.setup_anndata(adata, batch_key=batch_key, **changes.pop("setup", {}))
    model = DRA(adata, **{**SMALL, **changes.pop("model", {})})
    model.train(**{"max_epochs": 2, "batch_size": 32, **changes}, **QUIET)
    return model


def embed(adata: AnnData, seed: int = 0, **changes: Any) -> np.ndarray:
    """Embed with fixed random state."""
    train = {"batch_size": 32, "enable_progress_bar": False, **changes.pop("train_kwargs", {})}
    options = {"max_epochs": 3, "accelerator": "cpu", "model_kwargs": {"n_hidden": 16}}
    tl.dra(adata, seed=seed, train_kwargs=train, **{**options, **changes})
    return adata.obsm["X_dra"]


def invoke(*args: object) -> Result:
    """Run a command in this process."""
    return CliRunner().invoke(program, [str(arg) for arg in args])


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Return a folder that takes long to fill: one for all processes of a run of the tests."""
    shared = "PYTEST_XDIST_WORKER" in os.environ
    folder = (factory.getbasetemp().parent if shared else factory.getbasetemp()) / name
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            draft = factory.mktemp(name)
            make(draft)
            draft.rename(folder)
    return folder


def legend_texts(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


def assert_trained(model: DRA) -> None:
    """Every number that training leaves behind is finite."""
    assert np.isfinite(model.get_latent_representation()).all()
    for name, values in model.history.items():
        assert np.isfinite(values.to_numpy(float)).all(), name


def tree(folder: Path) -> dict[str, str]:
    """Content of every file under a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def weights(model: DRA) -> list[torch.Tensor]:
    return [value.clone() for value in model.module.state_dict().values()]


def equal(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(bool((a == b).all()) for a, b in zip(one, other, strict=True))
