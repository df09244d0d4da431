"""The divergences that a discriminator estimates: one pure function per equation."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import logsigmoid

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


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
    return math.log(2.0) - torch.logaddexp(_log_mean_exp(-h_real), _log_mean_exp(h_fake))


def _log_mean_exp(values: Tensor) -> Tensor:
    return torch.logsumexp(values, 0) - math.log(values.numel())


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


DIVERGENCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "bhattacharyya": bhattacharyya,
    "jensen-shannon": jensen_shannon,
}


def released_distance(real: Tensor, fake: Tensor) -> Tensor:
    r"""Loss of both discriminators in the released program, which they minimise.

    .. math:: -\ln \left( \sum_i \sqrt{\left| \frac{a_i}{\sum a} \frac{b_i}{\sum b} \right|} +
        10^{-10} \right)

    for outputs `a` on the real and `b` on the fake rows, paired by their position. Both are
    unbounded linear outputs divided by a signed sum, so that this is no divergence: it falls
    without limit as a sum nears 0.

    Parameters
    ----------
    real
        Discriminator output on real rows, shape ``(n_cells,)``.
    fake
        Discriminator output on fake rows, shape ``(n_cells,)``.

    Examples
    --------
    >>> import torch
    >>> abs(released_distance(torch.ones(4), torch.ones(4)).item()) < 1e-6
    True
    """
    coefficient = torch.sqrt(torch.abs(real / real.sum() * (fake / fake.sum()))).sum()
    return -torch.log(coefficient + 1e-10)


def released_generator_loss(fake: Tensor) -> Tensor:
    r"""Adversarial loss of the encoder in the released program, blind to the prior's samples.

    .. math:: -\ln \left( \sum_i \sqrt{\left| b_i / \sum b \right|} + 10^{-10} \right)

    Parameters
    ----------
    fake
        Discriminator output on codes, shape ``(n_cells,)``.

    Examples
    --------
    >>> import torch
    >>> round(released_generator_loss(torch.ones(128)).item(), 3)  # its optimum, -ln(128) / 2
    -2.426
    """
    return -torch.log(torch.sqrt(torch.abs(fake / fake.sum())).sum() + 1e-10)


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
