"""What scvi-tools' networks lack: discriminators, and hidden layers of unequal width."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.functional import one_hot

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scvi.nn import DecoderSCVI, FCLayers
    from torch import Tensor


class Discriminator(nn.Module):
    """Scores how much a row looks like the real sample rather than the fake one.

    A multilayer perceptron with layer normalisation, which works on a batch of any size, and one
    output. With several batches it sees the batch of every row, so that a match holds within
    each. Scores are bounded: where the samples can be told apart for certain they would grow
    without limit, and as divergences take their exponentials, one misjudged row would then
    outweigh all others.

    Parameters
    ----------
    n_input
        Number of columns.
    n_hidden
        Width of each hidden layer.
    n_batch
        Number of batches; 0 or 1 for none.
    bound
        Largest magnitude of a score; also the largest Bhattacharyya distance it can estimate.

    Examples
    --------
    >>> import torch
    >>> Discriminator(10, [32])(torch.zeros(5, 10)).shape
    torch.Size([5])
    """

    def __init__(
        self, n_input: int, n_hidden: Sequence[int], n_batch: int = 0, bound: float = 2.0
    ) -> None:
        super().__init__()
        self.bound = bound
        self.n_batch = n_batch if n_batch > 1 else 0
        widths = [n_input + self.n_batch, *n_hidden]
        layers: list[nn.Module] = []
        for n_in, n_out in zip(widths[:-1], widths[1:], strict=True):
            layers += [nn.Linear(n_in, n_out), nn.LayerNorm(n_out), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], 1))

    def forward(self, rows: Tensor, batch_index: Tensor | None = None) -> Tensor:
        """Score `rows`, shape ``(n_cells, n_input)``; the scores have shape ``(n_cells,)``.

        `batch_index`, shape ``(n_cells, 1)``, is needed with more than one batch.
        """
        if self.n_batch:
            if batch_index is None:
                raise ValueError("This discriminator sees batches: pass `batch_index`.")
            batch = one_hot(batch_index.long().squeeze(-1), self.n_batch).to(rows)
            rows = torch.cat([rows, batch], dim=-1)
        scores = self.bound * torch.tanh(self.layers(rows).squeeze(-1) / self.bound)
        # divergences take exponentials of scores, for which half precision has no room
        return scores.float() if scores.dtype.itemsize < 4 else scores


def set_widths(layers: FCLayers, widths: Sequence[int]) -> None:
    """Give each hidden layer a width of its own, in place.

    Parameters
    ----------
    layers
        Hidden layers of one width, as scvi-tools builds them.
    widths
        One width per layer.

    Examples
    --------
    >>> import torch
    >>> from scvi.nn import FCLayers
    >>> layers = FCLayers(4, 8, n_layers=2, n_hidden=8)
    >>> set_widths(layers, [16, 6])
    >>> layers(torch.zeros(3, 4)).shape
    torch.Size([3, 6])
    """
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
