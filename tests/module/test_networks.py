"""Tests of hidden layers of unequal width."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scvi.nn import DecoderSCVI, FCLayers
from torch import nn

from dra_scvi._module.networks import set_decoder_widths, set_widths


def rows(n_cells: int, n_columns: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n_cells, n_columns, generator=generator)


def shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


# -- widths of hidden layers ---------------------------------------------------------------------

options = pytest.mark.parametrize(
    "kwargs",
    [
        pytest.param({}, id="default"),
        pytest.param({"use_batch_norm": False}, id="no norm"),
        pytest.param({"use_batch_norm": False, "use_layer_norm": True}, id="layer norm"),
        pytest.param({"use_layer_norm": True}, id="both norms"),
        pytest.param({"n_cat_list": [3, 1, 2]}, id="covariates"),
        pytest.param({"n_cat_list": [3, 1, 2], "inject_covariates": False}, id="first layer only"),
        pytest.param({"n_cont": 2}, id="continuous covariates"),
        pytest.param({"bias": False, "dropout_rate": 0.0}, id="no bias, no dropout"),
        pytest.param({"use_activation": False}, id="no activation"),
    ],
)


def layers(n_layers: int = 3, width: int = 10, **kwargs: Any) -> FCLayers:
    return FCLayers(n_in=5, n_out=width, n_layers=n_layers, n_hidden=width, **kwargs)


def forward(module: FCLayers, n_cells: int = 4) -> torch.Tensor:
    categories = [torch.arange(n_cells)[:, None] % max(n, 1) for n in module.n_cat_list]
    n_cont = module.n_cov - sum(module.n_cat_list)
    return module(rows(n_cells, 5), *categories, cont=rows(n_cells, n_cont) if n_cont else None)


@options
@pytest.mark.parametrize("widths", [[10, 10, 10], [16, 3, 7]], ids=["equal", "unequal"])
def test_set_widths_changes_widths_only(kwargs: dict[str, Any], widths: list[int]) -> None:
    found, before = layers(**kwargs), layers(**kwargs)
    set_widths(found, widths)
    assert forward(found).shape == (4, widths[-1])
    assert [name for name, _ in found.named_modules()] == [n for n, _ in before.named_modules()]
    assert list(shapes(found)) == list(shapes(before))
    n_covariates = found.n_cov
    for i, (layer, width) in enumerate(zip(found.fc_layers, widths, strict=True)):
        injected = n_covariates if i == 0 or kwargs.get("inject_covariates", True) else 0
        assert layer[0].in_features == (5, *widths)[i] + injected
        assert layer[0].out_features == width


@options
def test_equal_widths_leave_the_structure_of_scvi_tools(kwargs: dict[str, Any]) -> None:
    found = layers(**kwargs)
    set_widths(found, [10, 10, 10])
    assert repr(found) == repr(layers(**kwargs))
    assert shapes(found) == shapes(layers(**kwargs))


def test_normalisation_follows_the_width_and_keeps_its_settings() -> None:
    found = layers(use_layer_norm=True)
    set_widths(found, [16, 3, 7])
    for layer, width in zip(found.fc_layers, [16, 3, 7], strict=True):
        linear, batch_norm, layer_norm = layer[0], layer[1], layer[2]
        assert linear.out_features == batch_norm.num_features == width
        assert (batch_norm.eps, batch_norm.momentum) == (0.001, 0.01)
        assert layer_norm.normalized_shape == (width,)
        assert not layer_norm.elementwise_affine


def test_a_single_layer_can_be_resized() -> None:
    found = layers(n_layers=1, n_cat_list=[2])
    set_widths(found, [6])
    assert forward(found).shape == (4, 6)


@pytest.mark.parametrize("widths", [[8, 8], [8, 8, 8, 8], []])
def test_one_width_per_layer_is_required(widths: list[int]) -> None:
    with pytest.raises(ValueError, match="argument 2"):
        set_widths(layers(), widths)


# -- widths of the decoder -----------------------------------------------------------------------


@pytest.mark.parametrize("dispersion", ["gene", "gene-cell"])
@pytest.mark.parametrize("n_batch", [0, 3])
def test_decoder_of_unequal_widths_decodes(dispersion: str, n_batch: int) -> None:
    decoder = DecoderSCVI(4, 9, n_cat_list=[n_batch], n_layers=2, n_hidden=12)
    set_decoder_widths(decoder, [6, 20])
    batch = torch.arange(5)[:, None] % max(n_batch, 1)
    scale, dispersions, rate, zi_logits = decoder(dispersion, rows(5, 4), rows(5, 1), batch)
    assert scale.shape == rate.shape == zi_logits.shape == (5, 9)
    torch.testing.assert_close(scale.sum(-1), torch.ones(5))
    torch.testing.assert_close(rate, rows(5, 1).exp() * scale)
    assert (dispersions is None) == (dispersion == "gene")
    for head in (decoder.px_scale_decoder[0], decoder.px_r_decoder, decoder.px_dropout_decoder):
        assert (head.in_features, head.out_features) == (20, 9)


def test_decoder_keeps_its_names_and_activation() -> None:
    found, before = (
        DecoderSCVI(4, 9, n_layers=2, n_hidden=12, scale_activation="softplus") for _ in range(2)
    )
    set_decoder_widths(found, [6, 20])
    assert list(shapes(found)) == list(shapes(before))
    assert isinstance(found.px_scale_decoder[1], nn.Softplus)


def test_equal_widths_leave_the_decoder_of_scvi_tools() -> None:
    found, before = (DecoderSCVI(4, 9, n_cat_list=[2], n_layers=2, n_hidden=12) for _ in range(2))
    set_decoder_widths(found, [12, 12])
    assert repr(found) == repr(before)
    assert shapes(found) == shapes(before)


def test_every_parameter_of_a_resized_decoder_gets_a_gradient() -> None:
    decoder = DecoderSCVI(4, 9, n_layers=2, n_hidden=12)
    set_decoder_widths(decoder, [6, 20])
    outputs = decoder("gene-cell", rows(5, 4), rows(5, 1))
    sum(output.square().sum() for output in outputs).backward()
    for name, parameter in decoder.named_parameters():
        assert parameter.grad.abs().sum() > 0, name
