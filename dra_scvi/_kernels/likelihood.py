r"""Exact ZINB and NB log-likelihoods of sparse counts, zeros and non-zeros apart.

Write :math:`a = \theta [\ln\theta - \ln(\theta + \mu)]`, the log-probability of a zero under
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
from torch.autograd.function import once_differentiable
from torch.nn.functional import softplus

from dra_scvi._kernels.compiled import (
    log1p_counts,
    log_expression_and_derivatives,
    log_prob_and_derivatives,
)
from dra_scvi._kernels.parts import as_array
from dra_scvi._threads import kernel_threads

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
    # half precision has no room for these logarithms
    mu, theta = _at_least_float32(mu), _at_least_float32(theta)
    zi_logits = None if zi_logits is None else _at_least_float32(zi_logits)
    x = x.to(mu.dtype)
    if _kernel_serves(x, mu, theta, zi_logits):
        return _KernelLogProb.apply(x, mu, theta, zi_logits)
    return _CountLogProb.apply(x, mu, theta, zi_logits)


def _kernel_serves(x: Tensor, mu: Tensor, theta: Tensor, zi_logits: Tensor | None) -> bool:
    """Whether the one-pass kernel can be used: single precision on a CPU, one θ per gene."""
    tensors = [x, mu, theta] if zi_logits is None else [x, mu, theta, zi_logits]
    return theta.ndim == 1 and all(
        t.dtype == torch.float32 and t.device.type == "cpu" for t in tensors
    )


class _KernelLogProb(torch.autograd.Function):
    """The compiled pass, which brings the derivatives of every entry along."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, mu: Tensor, theta: Tensor, zi_logits: Tensor | None
    ) -> Tensor:
        zi = None if zi_logits is None else as_array(zi_logits)
        results = log_prob_and_derivatives(
            as_array(x), as_array(mu), as_array(theta), zi, kernel_threads()
        )
        log_prob, *derivatives = (torch.from_numpy(array) for array in results)
        ctx.zero_inflated = zi_logits is not None
        ctx.save_for_backward(*derivatives)
        return log_prob

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        d_mu, d_theta, d_zi = ctx.saved_tensors
        rows = grad[:, None]
        return None, rows * d_mu, grad @ d_theta, rows * d_zi if ctx.zero_inflated else None


class _CountLogProb(torch.autograd.Function):
    """The same in torch, for any device and precision."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, mu: Tensor, theta: Tensor, zi_logits: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(x, mu, theta, zi_logits)
        ctx.entries = entries = _gamma_entries(x)
        log_theta_mu = torch.log(theta + mu + _EPS)
        log_zero = theta * (torch.log(theta + _EPS) - log_theta_mu)
        count, count_theta = x[entries], theta.expand_as(mu)[entries]
        correction = (
            count * (torch.log(mu[entries] + _EPS) - log_theta_mu[entries])
            + torch.lgamma(count + count_theta)
            - torch.lgamma(theta).expand_as(mu)[entries]
            - torch.lgamma(count + 1)
        )
        if zi_logits is not None:
            log_odds = log_zero - zi_logits
            log_zero = softplus(log_odds) - softplus(-zi_logits)
            correction -= softplus(-log_odds[entries]) * (count > _EPS)
        if correction.ndim == 2:
            return (log_zero + correction).sum(-1)
        return log_zero.sum(-1).index_add(0, entries[0], correction)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, mu, theta, zi_logits = ctx.saved_tensors
        entries = ctx.entries
        grad = grad[:, None]
        total = theta + mu + _EPS
        log_ratio = torch.log(theta + _EPS) - torch.log(total)

        d_log_zero = torch.ones_like(mu)  # derivative with respect to ln NB(0)
        d_zi = None
        if zi_logits is not None:
            from_nb = torch.sigmoid(theta * log_ratio - zi_logits)
            d_log_zero = torch.where(x > _EPS, d_log_zero, from_nb)
            d_zi = grad * (torch.sigmoid(-zi_logits) - d_log_zero)

        count, share = x[entries], x[entries] / total[entries]
        d_mu = -d_log_zero * theta / total
        d_mu[entries] += count / (mu[entries] + _EPS) - share
        d_theta = d_log_zero * (log_ratio + theta / (theta + _EPS) - theta / total)
        d_theta[entries] += (
            torch.digamma(count + theta.expand_as(mu)[entries])
            - torch.digamma(theta).expand_as(mu)[entries]
            - share
        )
        return None, grad * d_mu, (grad * d_theta).sum_to_size(theta.shape), d_zi


def _gamma_entries(x: Tensor) -> tuple[Any, ...]:
    """Index the entries that need gamma functions: the non-zeros on a CPU, all on other devices.

    To count the non-zeros, the host would have to wait for the device; at zeros the terms cancel.
    """
    if x.device.type == "cpu":
        return (x > _EPS).nonzero(as_tuple=True)
    return slice(None), slice(None)


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype.itemsize < 4 else tensor


def log_counts(x: Tensor, scale: Tensor | None = None) -> Tensor:
    """``ln(1 + scale · x)`` of counts, one factor a cell, ``(n_cells, 1)``; without a gradient."""
    if x.dtype != torch.float32 or x.device.type != "cpu":
        return torch.log1p(x if scale is None else x * scale)
    factors = torch.ones(len(x)) if scale is None else scale.float().view(-1)
    return torch.from_numpy(log1p_counts(as_array(x), as_array(factors), kernel_threads()))


def log_expression(mu: Tensor, zi_logits: Tensor | None, scale: Tensor) -> Tensor:
    """``ln(1 + scale · E[x])`` of a (zero-inflated) negative binomial, ``E[x] = σ(-ℓ) μ``.

    No gradient flows into the factor of each cell, ``(n_cells, 1)``.

    >>> log_expression(torch.ones(1, 2), None, torch.ones(1, 1)).exp()
    tensor([[2., 2.]])
    """
    mu = _at_least_float32(mu)
    if zi_logits is None:
        return torch.log1p(mu * scale)
    zi_logits = _at_least_float32(zi_logits)
    if mu.dtype == zi_logits.dtype == torch.float32 and mu.device.type == "cpu":
        return _KernelLogExpression.apply(mu, zi_logits, scale)
    return torch.log1p(torch.sigmoid(-zi_logits) * mu * scale)


class _KernelLogExpression(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mu: Tensor, zi_logits: Tensor, scale: Tensor) -> Tensor:
        factors = as_array(scale.float().view(-1))
        results = log_expression_and_derivatives(
            as_array(mu), as_array(zi_logits), factors, kernel_threads()
        )
        value, *derivatives = (torch.from_numpy(array) for array in results)
        ctx.save_for_backward(*derivatives)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        d_mu, d_zi = ctx.saved_tensors
        return grad * d_mu, grad * d_zi, None
