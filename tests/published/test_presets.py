"""Tests of the published settings against the paper's and the released program's."""

from __future__ import annotations

import copy
import dataclasses
import inspect

import pytest

import dra_scvi
from dra_scvi.presets import Preset, published

SETTINGS = {  # latent dimensions: hidden widths, discriminators' widths, learning rate
    2: ([512, 512, 512, 512], [32, 32, 32, 32], 8e-4),
    10: ([512], [512], 7e-4),
    20: ([512], [512], 7e-4),
}


@pytest.mark.parametrize("n_latent", SETTINGS)
def test_published_settings_are_those_of_the_released_program(n_latent: int) -> None:
    n_hidden, n_hidden_discriminator, lr = SETTINGS[n_latent]
    assert published(n_latent) == Preset(
        model={
            "n_latent": n_latent,
            "n_hidden": n_hidden,
            "n_hidden_discriminator": n_hidden_discriminator,
            "dropout_rate": pytest.approx(1 - 0.9),
            "leak": 0.2,
        },
        train={
            "max_epochs": 200,
            "batch_size": 128,
            "plan_kwargs": {"lr": lr, "beta1": 0.9},
        },
    )


def test_published_settings_are_for_10_dimensions_by_default() -> None:
    assert published() == published(10)


@pytest.mark.parametrize("n_latent", [0, 1, 3, -2, 50])
def test_other_dimensions_are_refused_by_number(n_latent: int) -> None:
    with pytest.raises(ValueError, match=rf"2, 10 and 20 .* not for {n_latent}\."):
        published(n_latent)


@pytest.mark.parametrize("n_latent", SETTINGS)
def test_changing_a_preset_leaves_the_next_one_alone(n_latent: int) -> None:
    changed = published(n_latent)
    expected = copy.deepcopy(changed)
    changed.model["n_hidden"].append(7)
    changed.model["n_hidden_discriminator"][0] = 7
    changed.model["n_latent"] = 7
    changed.train["plan_kwargs"]["lr"] = 7.0
    changed.train["max_epochs"] = 7
    assert published(n_latent) == expected
    assert published(n_latent) != changed


def test_preset_fields_cannot_be_replaced() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        published().model = {}


def test_empty_presets_do_not_share_their_dictionaries() -> None:
    Preset().model["n_latent"] = 3
    assert Preset() == Preset(model={}, train={})


def test_published_model_names_every_argument_of_its_preset() -> None:
    accepted = inspect.signature(dra_scvi.PublishedDRA.__init__).parameters
    assert set(published().model) <= set(accepted)
