"""What may be done to codes after training: noise averaged out, axes of expression, tempered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from dra_scvi._module.axes import expression_axes, tempered
from dra_scvi._module.neighborhood import Neighborhood

if TYPE_CHECKING:
    from torch import Tensor


class Embedding(nn.Module):
    """The map from a code to the embedding that users see; the identity unless asked for more.

    A code may be moved to the mean of the codes of similar training cells, `n_neighbors` of them
    (:class:`~dra_scvi._module.neighborhood.Neighborhood`), and be put on axes of expression
    (:func:`~dra_scvi._module.axes.expression_axes`) of tempered lengths
    (:func:`~dra_scvi._module.axes.tempered`). Each gains by some measures and loses by others.

    >>> codes = torch.randn(5, 3)
    >>> torch.equal(Embedding(n_latent=3, n_neighbors=30, expression_axes=True)(codes), codes)
    True
    """

    def __init__(self, n_latent: int, n_neighbors: int, expression_axes: bool) -> None:
        super().__init__()
        self.expression_axes = expression_axes
        self.neighborhood = Neighborhood(n_latent, n_neighbors)
        self.axes: Tensor
        self.register_buffer("axes", torch.eye(n_latent))

    @torch.inference_mode()
    def forward(self, codes: Tensor, average: bool = True) -> Tensor:
        """Embed codes of the decoder's; `average` moves them to the mean of similar ones first."""
        codes = codes.to(self.axes)
        return (self.neighborhood(codes) if average else codes) @ self.axes

    def fit(self, samples: Tensor, expression: Tensor, means: Tensor, batches: Tensor) -> bool:
        """Learn the map from training cells: drawn codes, what is decoded from them, and means.

        Return whether they are finite; the map is left as it was if not. Without axes, expression,
        ``(n_cells, n_genes)``, is not used.
        """
        if not all(bool(torch.isfinite(part).all()) for part in (samples, expression, means)):
            return False
        self.neighborhood.fit(means, batches)
        axes = torch.eye(len(self.axes))
        if self.expression_axes:
            averages = self.neighborhood(means.to(self.axes)).to(means)
            axes = expression_axes(samples, expression, averages, batches)
            axes = tempered(axes, averages, batches)
        self.axes.copy_(axes)
        return True


def with_present_names(state: dict[str, Any], prefix: str = "") -> None:
    """Rename, in place, what earlier versions saved of the map beside the module's own parts."""
    for old, new in (
        ("code_axes", "embedding.axes"),
        ("neighborhood.", "embedding.neighborhood."),
    ):
        for name in [name for name in state if name.startswith(prefix + old)]:
            state[prefix + new + name.removeprefix(prefix + old)] = state.pop(name)
