"""A hundred short trainings drawn at random: what is returned as a success is finite."""

from __future__ import annotations

import contextlib
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from dra_scvi import DRA, TrainingDivergedError, datasets
from tests.helpers import QUIET

if TYPE_CHECKING:
    from anndata import AnnData


def draw_cells(rng: np.random.Generator) -> AnnData:
    """Cells in batches of many sizes, some of them deep or empty."""
    n_cells, n_genes = int(rng.integers(8, 150)), int(rng.integers(1, 60))
    adata = datasets.synthetic(
        n_cells, n_genes, n_types=2, n_batches=2, seed=int(rng.integers(99))
    )
    matrix = adata.X.toarray()
    if rng.random() < 0.3:
        matrix *= 10 ** rng.integers(1, 6)
    if rng.random() < 0.3:
        matrix[rng.integers(n_cells)] = 0
    matrix[:2] += 1  # never nothing at all
    adata.X = matrix if rng.random() < 0.5 else adata.X
    return adata


def draw_model(rng: np.random.Generator) -> dict[str, Any]:
    depth = int(rng.integers(1, 4))
    return {
        "n_hidden": [int(width) for width in rng.integers(2, 24, depth)],
        "n_latent": int(rng.integers(1, 12)),
        "n_hidden_discriminator": [int(rng.integers(2, 16))] * int(rng.integers(1, 3)),
        "dropout_rate": float(rng.choice([0.0, 0.1, 0.5])),
        "prior": str(rng.choice(["normal", "uniform", "mixture"])),
        "divergence": str(rng.choice(["bhattacharyya", "jensen-shannon"])),
        "gene_likelihood": str(rng.choice(["zinb", "nb", "poisson"])),
        "use_observed_lib_size": bool(rng.random() < 0.8),
    }


def draw_training(rng: np.random.Generator) -> dict[str, Any]:
    # from rates that are in use to rates at which no training can go well
    rates = 10 ** rng.uniform([-4, -5], [5, 3] if rng.random() < 0.4 else [-1, -2])
    plan = {
        "lr": float(rates[0]),
        "discriminator_lr": float(rates[1]),
        "latent_weight": float(rng.choice([0, 1, 100])),
        "data_weight": float(rng.choice([0, 1, 100])),
    }
    return {
        "max_epochs": int(rng.integers(1, 5)),
        "batch_size": int(rng.integers(4, 64)),
        "check_val_every_n_epoch": 1 if rng.random() < 0.3 else None,
        "plan_kwargs": plan,
    }


def results(model: DRA) -> dict[str, Any]:
    """All that a user is likely to ask of a model."""
    means, variances = model.get_latent_representation(return_dist=True)
    return {
        "means": means,
        "variances": variances,
        "expression": model.get_normalized_expression(return_numpy=True),
        **{name: value.numpy() for name, value in model.module.state_dict().items()},
        **{name: values.to_numpy(float) for name, values in model.history.items()},
    }


@pytest.mark.parametrize("ten", range(10))
def test_no_result_that_is_not_finite_is_returned_as_a_success(ten: int) -> None:
    n_good = 0
    for seed in range(10 * ten, 10 * ten + 10):
        rng = np.random.default_rng(seed)
        torch.manual_seed(seed)
        adata, options, training = draw_cells(rng), draw_model(rng), draw_training(rng)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            DRA.setup_anndata(adata, batch_key="batch")
            model = DRA(adata, **options)
            if training["plan_kwargs"]["lr"] < 0.1:
                model.train(**training, **QUIET)
            else:
                with contextlib.suppress(TrainingDivergedError):
                    model.train(**training, **QUIET)
            if not model.is_trained:
                continue
            n_good += 1
            found = results(model)
        for name, values in found.items():
            assert np.isfinite(values).all(), f"seed {seed}: {name} with {options}, {training}"
    assert n_good >= 4
