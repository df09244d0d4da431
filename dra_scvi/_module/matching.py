"""Dual matching: the discriminator, divergences that it estimates, gradient of the game."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.functional import logsigmoid, one_hot

from dra_scvi._kernels.likelihood import log_counts, log_expression

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

# Profiles of all genes tell a discriminator more than codes do, at a hundred times the cost: it
# looks at a part of each minibatch, whose cells come in random order.
DATA_SHARE = 0.25
MIN_DATA_CELLS = 32


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


def bhattacharyya(h_real: Tensor, h_fake: Tensor, weight: Tensor | None = None) -> Tensor:
    r"""Variational lower bound of the Bhattacharyya distance.

    With :math:`BC(p, q) = \int \sqrt{pq}`, for every function :math:`h`,

    .. math:: -\ln BC(p, q) \ge -\ln \tfrac12 \left( E_p[e^{-h}] + E_q[e^{h}] \right),

    by the inequality of arithmetic and geometric means, with equality at
    :math:`h = \tfrac12 \ln (p/q)`. The discriminator maximises the bound, the autoencoder
    minimises it.

    Parameters
    ----------
    h_real
        Discriminator output on samples of `p`, shape ``(n_cells,)``.
    h_fake
        Discriminator output on samples of `q`, shape ``(n_cells,)``.
    weight
        How much each sample of `q` counts, of mean 1, shape ``(n_cells,)``; `None` for all alike.

    Returns
    -------
    The bound in nats, a scalar. It is 0 for an uninformative discriminator (``h = 0``).

    References
    ----------
    The Bhattacharyya distance is the objective of Lin, Mukherjee & Kannan, BMC Bioinformatics 21
    (2020) 64; the bound is the exponential loss, surrogate of the Hellinger affinity (Nguyen,
    Wainwright & Jordan, Annals of Statistics 37 (2009) 876).

    Examples
    --------
    >>> import torch
    >>> bhattacharyya(torch.zeros(4), torch.zeros(4)).item()
    0.0
    """
    if weight is not None:
        h_fake = h_fake + weight.log()
    terms = -h_real - math.log(len(h_real)), h_fake - math.log(len(h_fake))
    return math.log(2.0) - torch.logsumexp(torch.cat(terms), 0)


def jensen_shannon(h_real: Tensor, h_fake: Tensor, weight: Tensor | None = None) -> Tensor:
    r"""Variational lower bound of the Jensen-Shannon divergence.

    .. math:: JS(p, q) \ge \ln 2 + \tfrac12 E_p[\ln \sigma(h)] + \tfrac12 E_q[\ln \sigma(-h)],

    with equality at :math:`h = \ln (p/q)`.

    Parameters
    ----------
    h_real
        Discriminator output on samples of `p`, shape ``(n_cells,)``.
    h_fake
        Discriminator output on samples of `q`, shape ``(n_cells,)``.
    weight
        How much each sample of `q` counts, of mean 1, shape ``(n_cells,)``; `None` for all alike.

    Returns
    -------
    The bound in nats, a scalar of at most ``ln 2``.

    References
    ----------
    Goodfellow et al., Generative adversarial networks, NeurIPS 2014, equations 1 and 4.

    Examples
    --------
    >>> import torch
    >>> jensen_shannon(torch.zeros(4), torch.zeros(4)).item()
    0.0
    """
    fake = logsigmoid(-h_fake)
    fake = fake if weight is None else weight * fake
    return math.log(2.0) + 0.5 * (logsigmoid(h_real).mean() + fake.mean())


DIVERGENCES: dict[str, Callable[[Tensor, Tensor, Tensor | None], Tensor]] = {
    "bhattacharyya": bhattacharyya,
    "jensen-shannon": jensen_shannon,
}


def expression_to_match(x: Tensor, px: Any, gene_likelihood: str) -> tuple[Tensor, Tensor]:
    """Return data and means of some cells, as log1p of counts scaled to their mean depth."""
    some = slice(max(MIN_DATA_CELLS, round(DATA_SHARE * len(x))))
    x = x[some]
    if gene_likelihood == "normal":
        return x, px.mean[some]
    depth = x.sum(-1, keepdim=True).clamp_min(1.0)
    scale = depth.mean() / depth
    if gene_likelihood == "poisson":
        return log_counts(x, scale), torch.log1p(px.mean[some] * scale)
    zi_logits = px.zi_logits[some] if gene_likelihood == "zinb" else None
    return log_counts(x, scale), log_expression(px.mu[some], zi_logits, scale)


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.scale * grad, None


def scale_gradient(value: Tensor, scale: float) -> Tensor:
    """Return `value` itself, with the gradient that flows back through it times `scale`.

    A negative scale is the gradient reversal that lets one backward pass serve two players:
    what lies behind `value` descends where what lies after it ascends.

    References
    ----------
    Ganin & Lempitsky, Unsupervised domain adaptation by backpropagation, ICML 2015.

    Examples
    --------
    >>> import torch
    >>> x = torch.ones(2, requires_grad=True)
    >>> scale_gradient(x, -3.0).sum().backward()
    >>> x.grad
    tensor([-3., -3.])
    """
    return _ScaleGradient.apply(value, scale)
