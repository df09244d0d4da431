"""What batches are composed of, and weights under which batches of unlike composition match."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.functional import one_hot

if TYPE_CHECKING:
    from torch import Tensor

# a component that a batch all but lacks: nothing is pulled into it with more than this weight
MAX_WEIGHT = 5.0
MOMENTUM = 0.05


class Composition(nn.Module):
    r"""The share of each component of the prior in each batch, learned as training goes on.

    Were the codes of every batch matched to one prior, a type that a batch lacks would be filled
    with others of its cells. A code of batch b counts with the weight

    .. math:: w_b(z) = \sum_k r_k(z) \min(c, \bar\pi(k) / \pi_b(k))

    instead, with :math:`r_k` the responsibility of component k for it, :math:`\pi_b` the shares
    of the components in its batch, and :math:`\bar\pi` their mean over batches: a match within
    components, whatever the batches are composed of. Weights have mean 1 within each batch.

    >>> composition = Composition(n_batch=2, n_components=2)
    >>> one_each = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> composition.weights(one_each, torch.tensor([0, 1]))
    tensor([1., 1.])
    """

    def __init__(self, n_batch: int, n_components: int) -> None:
        super().__init__()
        self.shares: Tensor
        self.register_buffer("shares", torch.full((n_batch, n_components), 1 / n_components))

    @torch.no_grad()
    def update(self, responsibilities: Tensor, batch: Tensor) -> None:
        """Take a minibatch's responsibilities, ``(n_cells, n_components)``, into the means."""
        members = one_hot(batch, len(self.shares)).to(responsibilities)
        n_cells = members.sum(0)[:, None]
        means = members.T @ responsibilities / n_cells.clamp_min(1)
        self.shares += MOMENTUM * (n_cells > 0) * (means - self.shares)

    @torch.no_grad()
    def weights(self, responsibilities: Tensor, batch: Tensor) -> Tensor:
        """Weigh codes so that batches have one composition, shape ``(n_cells,)``."""
        tiny = torch.finfo(self.shares.dtype).tiny
        ratio = (self.shares.mean(0) / self.shares.clamp_min(tiny)).clamp_max(MAX_WEIGHT)
        weights = (responsibilities * ratio[batch]).sum(-1)
        members = one_hot(batch, len(self.shares)).to(weights)
        means = members.T @ weights / members.sum(0).clamp_min(1)
        return weights / means[batch]
