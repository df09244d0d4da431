"""What scvi-tools' networks lack: hidden layers of unequal width."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scvi.nn import DecoderSCVI, FCLayers


def set_widths(layers: FCLayers, widths: Sequence[int]) -> None:
    """Give each of scvi-tools' hidden layers, of one width, a width of its own, in place."""
    for i, (layer, width) in enumerate(zip(layers.fc_layers, widths, strict=True)):
        n_covariates = layers.n_cov if layers.inject_into_layer(i) else 0
        for position, block in enumerate(layer):
            if isinstance(block, nn.Linear):
                n_in = block.in_features if i == 0 else widths[i - 1] + n_covariates
                layer[position] = nn.Linear(n_in, width, bias=block.bias is not None)
            elif isinstance(block, nn.BatchNorm1d):
                layer[position] = nn.BatchNorm1d(width, eps=block.eps, momentum=block.momentum)
            elif isinstance(block, nn.LayerNorm):
                layer[position] = nn.LayerNorm(
                    width, eps=block.eps, elementwise_affine=block.elementwise_affine
                )


def set_decoder_widths(decoder: DecoderSCVI, widths: Sequence[int]) -> None:
    """Give each hidden layer of a decoder a width of its own, and its heads the last of them."""
    set_widths(decoder.px_decoder, widths)
    for parent, name in (
        (decoder.px_scale_decoder, "0"),
        (decoder, "px_r_decoder"),
        (decoder, "px_dropout_decoder"),
    ):
        head = getattr(parent, name)
        setattr(parent, name, nn.Linear(widths[-1], head.out_features))
