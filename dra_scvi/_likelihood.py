"""Exact ZINB and NB log-likelihoods of sparse counts, zeros and non-zeros apart, with their own backward.

Write :math:`a = \\theta [\\ln\\theta - \\ln(\\theta + \\mu)]`, the log-probability of a zero under
NB(μ, θ), and ℓ for the logit of zero inflation. Every entry of a ZINB has

    ln p(x) = Z + 1[x > 0] C,
    Z = softplus(a - ℓ) - softplus(-ℓ),
    C = -softplus(ℓ - a) + x [ln μ - ln(θ + μ)] + lnΓ(x + θ) - lnΓ(θ) - lnΓ(x + 1),

so that the gamma functions are needed at the non-zeros and once per gene only. NB is the limit
ℓ → -∞. The guards of 1e-8 inside the logarithms are scvi-tools' own, for equal gradients.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import softplus

if TYPE_CHECKING:
    from torch import Tensor

_EPS = 1e-8


def count_log_prob(
    x: Tensor, mu: Tensor, theta: Tensor, zi_logits: Tensor | None = None
) -> Tensor:
    r"""Log-probability of each cell's counts under a (zero-inflated) negative binomial.

    Parameters
    ----------
    x
        Counts, shape ``(n_cells, n_genes)``, dense.
    mu
        Means, shape ``(n_cells, n_genes)``.
    theta
        Inverse dispersions, shape ``(n_genes,)`` or ``(n_cells, n_genes)``.
    zi_logits
        Logits of zero inflation, shape ``(n_cells, n_genes)``; `None` for a plain NB.

    Returns
    -------
    Sum over genes in nats, shape ``(n_cells,)``; differentiable once in `mu`, `theta` and
    `zi_logits`.

    References
    ----------
    Lopez et al., Nature Methods 15 (2018) 1053, equation 3 of the Methods; equal to
    ``scvi.distributions.ZeroInflatedNegativeBinomial(...).log_prob(x).sum(-1)``.

    Examples
    --------
    >>> import torch
    >>> x, ones = torch.zeros(1, 2), torch.ones(1, 2)
    >>> count_log_prob(x, ones, torch.ones(2)).exp().item()  # (1/2)² for two genes
    0.25
    """
    return _CountLogProb.apply(x, mu, theta, zi_logits)


class _CountLogProb(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, mu: Tensor, theta: Tensor, zi_logits: Tensor | None
    ) -> Tensor:
        rows, genes = (x > _EPS).nonzero(as_tuple=True)
        ctx.save_for_backward(x, mu, theta, zi_logits, rows, genes)
        mu, theta, zi_logits = _at_least_float32(mu, theta, zi_logits)
        log_theta_mu = torch.log(theta + mu + _EPS)
        log_zero = theta * (torch.log(theta + _EPS) - log_theta_mu)
        theta_positive = theta.expand_as(mu)[rows, genes]
        x_positive = x[rows, genes].to(mu)
        positive = (
            x_positive * (torch.log(mu[rows, genes] + _EPS) - log_theta_mu[rows, genes])
            + torch.lgamma(x_positive + theta_positive)
            - torch.lgamma(theta).expand_as(mu)[rows, genes]
            - torch.lgamma(x_positive + 1)
        )
        if zi_logits is None:
            return log_zero.sum(-1).index_add(0, rows, positive)
        log_odds = log_zero - zi_logits
        positive -= softplus(-log_odds[rows, genes])
        return (softplus(log_odds) - softplus(-zi_logits)).sum(-1).index_add(0, rows, positive)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, mu_in, theta_in, zi_in, rows, genes = ctx.saved_tensors
        mu, theta, zi_logits = _at_least_float32(mu_in, theta_in, zi_in)
        grad = grad[:, None].to(mu)
        x_positive = x[rows, genes].to(mu)
        total = theta + mu + _EPS
        log_ratio = torch.log(theta + _EPS) - torch.log(total)

        d_log_zero = torch.ones_like(mu)  # derivative with respect to ln NB(0)
        d_zi = None
        if zi_logits is not None:
            d_log_zero = torch.sigmoid(theta * log_ratio - zi_logits)
            d_log_zero[rows, genes] = 1.0
            d_zi = (grad * (torch.sigmoid(-zi_logits) - d_log_zero)).to(zi_in.dtype)

        share = x_positive / total[rows, genes]
        d_mu = -d_log_zero * theta / total
        d_mu[rows, genes] += x_positive / (mu[rows, genes] + _EPS) - share
        d_theta = d_log_zero * (log_ratio + theta / (theta + _EPS) - theta / total)
        d_theta[rows, genes] += (
            torch.digamma(x_positive + theta.expand_as(mu)[rows, genes])
            - torch.digamma(theta).expand_as(mu)[rows, genes]
            - share
        )
        d_theta = (grad * d_theta).sum_to_size(theta.shape)
        return None, (grad * d_mu).to(mu_in.dtype), d_theta.to(theta_in.dtype), d_zi


def _at_least_float32(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """Compute in float32 at the least: half precision has no room for these logarithms."""
    return tuple(t.float() if t is not None and t.dtype.itemsize < 4 else t for t in tensors)
