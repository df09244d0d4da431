"""One pass over a float32 minibatch for the ZINB or NB log-likelihood and all of its derivatives.

The equations are those of :mod:`dra_scvi._kernels.likelihood`. Logarithms and exponentials are
series on reduced arguments, written so that the compiler turns the loops into vector
instructions; gamma functions are needed at the non-zeros alone. They come from a table for small
integer counts, and go through Stirling's series in double precision for all others, after a shift
of the argument by six: Γ(θ) = Γ(θ + 6) / P(θ), P(θ) = θ (θ + 1) ... (θ + 5).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from dra_scvi._kernels.parts import check_array, share_out
from dra_scvi._kernels.series import (
    EPS,
    SHIFT,
    digamma_rest,
    exp_negative,
    fast_log,
    fast_log1p,
    jit,
    log_double,
    shift_product,
    stirling,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

# counts below this one, most of them, find their gamma functions in a table
N_TABULATED = 9


@jit
def _gene_terms(theta: Any, terms: Any, log_gamma: Any, digamma: Any) -> None:
    """Tabulate the gamma functions per gene.

    `terms`: ln z, both rests at z = θ + 6, and P. In row k of the others, for a count of k:
    lnΓ(k + θ) - lnΓ(θ) - lnΓ(k + 1) and ψ(k + θ) - ψ(θ), as sums over i < k.
    """
    for g in range(theta.shape[0]):
        t = np.float64(theta[g])
        product, slope = shift_product(t)
        z = t + SHIFT
        terms[0, g] = log_double(z)
        terms[1, g] = stirling(z)
        terms[2, g] = digamma_rest(z) - slope / product
        terms[3, g] = product
        log_gamma[0, g] = digamma[0, g] = 0.0
    for k in range(1, log_gamma.shape[0]):
        for g in range(theta.shape[0]):
            below = np.float64(theta[g]) + (k - 1)
            log_gamma[k, g] = log_gamma[k - 1, g] + log_double(below / k)
            digamma[k, g] = digamma[k - 1, g] + 1.0 / below


@jit
def _entries(
    x: Any, mu: Any, theta: Any, zi: Any, zero_inflated: Any, d_mu: Any, d_theta: Any, d_zi: Any
) -> Any:
    """One cell: all entries as if zero, and all derivatives but those of gamma functions."""
    total = np.float32(0.0)
    one, zero, eps = np.float32(1.0), np.float32(0.0), np.float32(EPS)
    for g in range(x.shape[0]):
        count, th, m = x[g], theta[g], mu[g]
        guarded = th + eps
        per_mean, per_mass = one / (m + eps), one / (guarded + m)
        share = th * per_mass
        log_ratio = -fast_log1p(m / guarded)
        log_zero = th * log_ratio
        unsound = zero * log_zero  # NaN where anything was not finite
        weight = one
        if zero_inflated:
            logit = zi[g]
            positive = count > eps
            odds = log_zero - logit
            e_odds, e_logit = exp_negative(-abs(odds)), exp_negative(-abs(logit))
            r_odds, r_logit = one / (one + e_odds), one / (one + e_logit)
            from_nb = r_odds if odds >= zero else e_odds * r_odds
            not_inflated = r_logit if logit <= zero else e_logit * r_logit
            weight = one if positive else from_nb
            peak = odds if positive else max(odds, zero)
            log_zero = (
                peak
                - max(-logit, zero)
                + fast_log(r_logit if positive else (one + e_odds) * r_logit)
                + zero * logit
            )
            d_zi[g] = not_inflated - weight
        total += log_zero + unsound
        d_mu[g] = share * (count * per_mean - weight)
        d_theta[g] = weight * (log_ratio + th / guarded - share) - count * per_mass
    return total


@jit
def _non_zeros(
    x: Any, mu: Any, theta: Any, terms: Any, log_gamma: Any, digamma: Any, genes: Any, d_theta: Any
) -> Any:
    """One cell: what the entries above zero add, gamma functions included.

    In double precision: where a gene is hardly overdispersed, large terms cancel.
    """
    n = 0
    for g in range(x.shape[0]):
        genes[n] = g
        n += x[g] > np.float32(EPS)
    log_z_one, stirling_one = math.log(7.0), stirling(7.0)
    total = 0.0
    for i in range(n):
        g = genes[i]
        count, m, th = np.float64(x[g]), np.float64(mu[g]), np.float64(theta[g])
        total += count * log_double((m + EPS) / (th + m + EPS))
        if count < log_gamma.shape[0] and count == np.int64(count):
            total += log_gamma[np.int64(count), g]
            d_theta[g] += digamma[np.int64(count), g]
            continue
        z = th + SHIFT
        product, slope = shift_product(th + count)
        log_growth = log_double((z + count) / z)
        total += (
            (z + count - 0.5) * log_growth
            + count * terms[0, g]
            + stirling(z + count)
            - terms[1, g]
            - log_double(product / terms[3, g])
        )
        d_theta[g] += np.float32(
            log_growth + digamma_rest(z + count) - slope / product - terms[2, g]
        )
        factorial_product, _ = shift_product(1.0 + count)
        total -= (
            (6.5 + count) * log_double((7.0 + count) / 7.0)
            + count * log_z_one
            + stirling(7.0 + count)
            - stirling_one
            - log_double(factorial_product / 720.0)
        )
    return total


@jit
def _cells(
    x: Any,
    mu: Any,
    theta: Any,
    zi: Any,
    zero_inflated: Any,
    terms: Any,
    log_gamma: Any,
    digamma: Any,
    log_prob: Any,
    d_mu: Any,
    d_theta: Any,
    d_zi: Any,
) -> None:
    genes = np.empty(x.shape[1], dtype=np.int64)
    for b in range(x.shape[0]):
        row = b if zero_inflated else 0
        total = _entries(
            x[b], mu[b], theta, zi[row], zero_inflated, d_mu[b], d_theta[b], d_zi[row]
        )
        total += _non_zeros(x[b], mu[b], theta, terms, log_gamma, digamma, genes, d_theta[b])
        log_prob[b] = total


def log_prob_and_derivatives(
    x: NDArray[np.float32],
    mu: NDArray[np.float32],
    theta: NDArray[np.float32],
    zi_logits: NDArray[np.float32] | None,
    n_threads: int,
) -> tuple[NDArray[np.float32], ...]:
    """Log-likelihood of each cell, and the derivative of every entry.

    Counts, means and logits of zero inflation (`None` for a plain NB) have the shape
    ``(n_cells, n_genes)``, inverse dispersions `theta` ``(n_genes,)``. Return the sum over genes,
    ``(n_cells,)``, and the derivatives of the entries with respect to `mu`, `theta` and
    `zi_logits`, ``(n_cells, n_genes)`` each; the last is empty for an NB.
    """
    check_array("x", x, x.shape, n_dimensions=2)
    n_cells, n_genes = x.shape
    check_array("mu", mu, x.shape)
    check_array("theta", theta, (n_genes,))
    if zi_logits is not None:
        check_array("zi_logits", zi_logits, x.shape)
    zero_inflated = zi_logits is not None
    zi = zi_logits if zi_logits is not None else np.empty((1, 0), np.float32)
    log_prob = np.empty(n_cells, np.float32)
    d_mu, d_theta = np.empty_like(mu), np.empty_like(mu)
    d_zi = np.empty_like(zi)
    terms, log_gamma = np.empty((4, n_genes)), np.empty((N_TABULATED, n_genes))
    digamma = np.empty((N_TABULATED, n_genes), np.float32)
    _gene_terms(theta, terms, log_gamma, digamma)

    def run(cells: slice) -> None:
        inflated = cells if zero_inflated else slice(None)
        _cells(
            x[cells], mu[cells], theta, zi[inflated], zero_inflated, terms, log_gamma, digamma,
            log_prob[cells], d_mu[cells], d_theta[cells], d_zi[inflated],
        )  # fmt: skip

    share_out(run, x.shape, n_threads)
    return log_prob, d_mu, d_theta, d_zi


@jit
def _expression(mu: Any, zi: Any, scale: Any, value: Any, d_mu: Any, d_zi: Any) -> None:
    one, zero = np.float32(1.0), np.float32(0.0)
    for b in range(mu.shape[0]):
        for g in range(mu.shape[1]):
            logit = zi[b, g]
            e_logit = exp_negative(-abs(logit))
            r_logit = one / (one + e_logit)
            not_inflated = r_logit if logit <= zero else e_logit * r_logit
            inflated = e_logit * r_logit if logit <= zero else r_logit
            slope = not_inflated * scale[b]
            mean = slope * mu[b, g]
            value[b, g] = fast_log1p(mean) + zero * mean + zero * logit
            rest = one / (one + mean)
            d_mu[b, g] = slope * rest
            d_zi[b, g] = -mean * inflated * rest


def log_expression_and_derivatives(
    mu: NDArray[np.float32],
    zi_logits: NDArray[np.float32],
    scale: NDArray[np.float32],
    n_threads: int,
) -> tuple[NDArray[np.float32], ...]:
    """``ln(1 + scale · σ(-ℓ) μ)`` and its derivatives with respect to μ and ℓ.

    Means μ and logits ℓ have the shape ``(n_cells, n_genes)``, the factor of each cell
    ``(n_cells,)``.
    """
    check_array("mu", mu, mu.shape, n_dimensions=2)
    check_array("zi_logits", zi_logits, mu.shape)
    check_array("scale", scale, mu.shape[:1])
    value, d_mu, d_zi = (np.empty_like(mu) for _ in range(3))

    def run(cells: slice) -> None:
        _expression(
            mu[cells], zi_logits[cells], scale[cells], value[cells], d_mu[cells], d_zi[cells]
        )

    share_out(run, mu.shape, n_threads)
    return value, d_mu, d_zi


@jit
def _log1p_all(x: Any, scale: Any, out: Any) -> None:
    for b in range(x.shape[0]):
        for g in range(x.shape[1]):
            y = x[b, g] * scale[b]
            out[b, g] = fast_log1p(y) + np.float32(0.0) * y


def log1p_counts(
    x: NDArray[np.float32], scale: NDArray[np.float32], n_threads: int
) -> NDArray[np.float32]:
    """``ln(1 + scale · x)`` of counts, shape ``(n_cells, n_genes)``, with one factor per cell."""
    check_array("x", x, x.shape, n_dimensions=2)
    check_array("scale", scale, x.shape[:1])
    out = np.empty_like(x)

    def run(cells: slice) -> None:
        _log1p_all(x[cells], scale[cells], out[cells])

    share_out(run, x.shape, n_threads)
    return out
