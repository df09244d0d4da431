"""Codes moved to where similar training cells lie on average, which takes out noise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from torch import Tensor

# of one size whatever the data, so that any state can be loaded
N_CENTRES = 512
# a rougher map moves codes onto the chance clumps among the training cells
RIDGE = 1e-3
# at most this share of a batch is a neighbourhood, at least so many cells if there are as many
MAX_SHARE = 0.1
MIN_NEIGHBORS = 3
OWN_WEIGHT = 0.1
# how far a cell reaches, in radii of its own neighbourhood: in full, and not at all
FULL_REACH, END_OF_REACH = 1.0, 1.4
CHUNK = 4_096


class Neighborhood(nn.Module):
    r"""A map from a code to the mean of the codes around it, learned from training cells.

    A code is the state of a cell plus noise, that of its few counts. The mean of the codes around
    it (:func:`local_means`) is the better estimate of the state. It is learned as a function of
    the code, by ridge regression on Gaussian kernels around 512 of the training cells:

    .. math:: f(z) = z + \sum_c w_c \, e^{-\lVert z - z_c \rVert^2 / 2 r^2}

    with r the radius of a typical neighbourhood. Thus it does not matter which other cells are
    embedded, cells of a query go where those of the reference lie, and a code that is like none
    of the training cells stays where it is. f is the identity until :meth:`fit`.

    Parameters
    ----------
    n_latent
        Dimensions of a code.
    n_neighbors
        Cells in a neighbourhood; 0 leaves codes as they are.

    References
    ----------
    Wagner, Yan & Yanai, K-nearest neighbor smoothing for high-throughput single-cell RNA-Seq
    data, bioRxiv 217737 (2018).

    Examples
    --------
    >>> import torch
    >>> truth = torch.tensor([[0.0], [9.0]]).expand(2, 10).repeat(500, 1)
    >>> codes = truth + torch.randn(1000, 10)
    >>> neighborhood = Neighborhood(n_latent=10, n_neighbors=30)
    >>> torch.equal(neighborhood(codes), codes)
    True
    >>> neighborhood.fit(codes, torch.zeros(1000))
    >>> error = (neighborhood(codes) - truth).square().mean()
    >>> bool(error < 0.5 * (codes - truth).square().mean())
    True
    """

    def __init__(self, n_latent: int, n_neighbors: int) -> None:
        super().__init__()
        if n_neighbors < 0:
            raise ValueError(f"n_neighbors must not be negative, not {n_neighbors}.")
        self.n_neighbors = n_neighbors
        self.centres: Tensor
        self.weights: Tensor
        self.radius: Tensor
        self.register_buffer("centres", torch.zeros(N_CENTRES, n_latent))
        self.register_buffer("weights", torch.zeros(N_CENTRES, n_latent))
        self.register_buffer("radius", torch.ones(()))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name, value in self.named_buffers():  # models saved by earlier versions have none
            state_dict.setdefault(prefix + name, value)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, codes: Tensor) -> Tensor:
        """Return f of codes, shape ``(n_cells, n_latent)``."""
        if not self.weights.any():
            return codes
        parts = [
            part + _kernel(part, self.centres, self.radius) @ self.weights
            for part in codes.split(CHUNK)  # a kernel of all cells would fill the memory
        ]
        return torch.cat(parts)

    def fit(self, codes: Tensor, groups: Tensor) -> None:
        """Learn from codes of training cells, ``(n_cells, n_latent)``, and their batches."""
        codes, groups = codes.cpu().double(), groups.cpu()
        n_neighbors = min(self.n_neighbors, int(MAX_SHARE * len(codes)))
        self.weights.zero_()
        if not n_neighbors:
            return
        radius = radii(codes, n_neighbors).median()
        if not radius > 0:  # most codes are equal
            return
        shift = local_means(codes, groups, self.n_neighbors) - codes
        centres = codes[evenly_spaced(len(codes), N_CENTRES)]
        n = len(centres)
        kernel = _kernel(codes, centres, radius)
        gram = kernel.T @ kernel
        ridge = RIDGE * gram.diagonal().mean() * torch.eye(n, dtype=gram.dtype)
        self.radius.copy_(radius)
        self.centres[:n] = centres.to(self.centres)
        self.weights[:n] = torch.linalg.solve(gram + ridge, kernel.T @ shift).to(self.weights)


def local_means(codes: Tensor, groups: Tensor, n_neighbors: int) -> Tensor:
    r"""Mean of the codes around each code, every batch with one vote.

    .. math:: m(z) = \frac{\varepsilon z + \sum_b s_b(z)}{\varepsilon + \sum_b w_b(z)}

    with :math:`s_b` and :math:`w_b` the sum over the nearest cells of batch b and the sum of
    their weights (:func:`local_sum`), and :math:`\varepsilon = 0.1`. What sets batches apart at
    one place averages out, whatever their sizes.

    Parameters
    ----------
    codes
        Shape ``(n_cells, n_latent)``.
    groups
        Batch of each, shape ``(n_cells,)``.
    n_neighbors
        Cells that take part, of all batches together: at least three of each batch, at most a
        tenth of it. A batch of fewer than ten cells has no vote.

    Returns
    -------
    Shape ``(n_cells, n_latent)``.

    References
    ----------
    Polański et al., BBKNN: fast batch alignment of single cell transcriptomes, Bioinformatics 36
    (2020) 964, for neighbours of every batch.

    Examples
    --------
    >>> codes = torch.tensor([[0.0], [1.0]]).repeat(20, 1)
    >>> bool(torch.allclose(local_means(codes, torch.zeros(40), n_neighbors=3), codes))
    True
    """
    total, weight = OWN_WEIGHT * codes, torch.full_like(codes[:, :1], OWN_WEIGHT)
    names = groups.unique()
    for name in names:
        members = codes[groups == name]
        wanted = max(n_neighbors // len(names), MIN_NEIGHBORS)
        n = min(wanted, int(MAX_SHARE * len(members)))
        if n:
            sums, weights = local_sum(codes, members, n)
            total, weight = total + sums, weight + weights
    return total / weight


def local_sum(codes: Tensor, members: Tensor, n_neighbors: int) -> tuple[Tensor, Tensor]:
    r"""Weighted sum of the members of a batch nearest to each code, and of their weights.

    Weights are those of Epanechnikov, :math:`1 - (d / d_{n+1})^2` with d the distance and n the
    number of neighbours, of sum one. Each is then reduced by how far the code lies outside of the
    member's own neighbourhood, from nothing at its radius to all of it at 1.4 radii, so that a
    state that is rare, or that this batch lacks, is not drawn to another one.

    Parameters
    ----------
    codes
        Shape ``(n_cells, n_latent)``.
    members
        Codes of the batch, shape ``(n_members, n_latent)``, more than `n_neighbors`.
    n_neighbors
        Number of members that have a weight.

    Returns
    -------
    Sums, shape ``(n_cells, n_latent)``, and weights, at most 1, shape ``(n_cells, 1)``.

    Examples
    --------
    >>> members = torch.tensor([[0.0], [1.0], [2.0]])
    >>> near, far = torch.tensor([[1.0]]), torch.tensor([[9.0]])
    >>> local_sum(near, members, n_neighbors=1)
    (tensor([[1.]]), tensor([[1.]]))
    >>> local_sum(far, members, n_neighbors=1)
    (tensor([[0.]]), tensor([[0.]]))
    """
    distance, index = torch.cdist(codes, members).topk(n_neighbors + 1, largest=False)
    tiny = torch.finfo(distance.dtype).tiny
    weight = 1 - (distance / distance[:, -1:].clamp_min(tiny)).square()
    weight = weight / weight.sum(1, keepdim=True).clamp_min(tiny)
    outside = distance / radii(members, n_neighbors)[index].clamp_min(tiny)
    weight = weight * ((END_OF_REACH - outside) / (END_OF_REACH - FULL_REACH)).clamp(0, 1)
    return torch.einsum("cn,cnk->ck", weight, members[index]), weight.sum(1, keepdim=True)


def radii(codes: Tensor, n_neighbors: int) -> Tensor:
    """Distance of each code to the `n_neighbors`-th nearest other one, shape ``(n_cells,)``."""
    return torch.cdist(codes, codes).topk(n_neighbors + 1, largest=False).values[:, -1]


def evenly_spaced(n_cells: int, at_most: int) -> Tensor:
    """Choose some of `n_cells` cells, in order and as far apart as they can be.

    >>> evenly_spaced(5, at_most=2), evenly_spaced(3, at_most=9)
    (tensor([0, 2]), tensor([0, 1, 2]))
    """
    n = min(n_cells, at_most)
    return torch.arange(n) * n_cells // n


def _kernel(codes: Tensor, centres: Tensor, radius: Tensor) -> Tensor:
    return torch.exp(-0.5 * (torch.cdist(codes, centres) / radius).square())
