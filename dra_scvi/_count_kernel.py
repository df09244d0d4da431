"""One pass over a float32 minibatch for the ZINB or NB log-likelihood and all of its derivatives.

The equations are those of :mod:`dra_scvi._likelihood`. Logarithms and exponentials are series on
reduced arguments, written so that the compiler turns the loops into vector instructions; gamma
functions are needed at the non-zeros alone and go through Stirling's series in double precision,
after a shift of the argument by six: Γ(θ) = Γ(θ + 6) / P(θ), P(θ) = θ (θ + 1) ... (θ + 5).
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TYPE_CHECKING, Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from scipy.sparse import csr_matrix

# NaN and infinity must come through: they are what the training plan looks for
_FASTMATH = {"reassoc", "contract", "nsz", "arcp"}
_EPS = 1e-8
_SHIFT = 6
_SQRT2 = math.sqrt(2.0)
_LN2 = math.log(2.0)
# ln 2 as a sum whose first part has few bits, so that its product with a small integer is exact
_LN2_HIGH = np.float32(0.693359375)
_LN2_LOW = np.float32(_LN2 - 0.693359375)
# less work than this takes no longer than waking a thread for it
_MIN_ENTRIES_PER_THREAD = 32_768


def _jit(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile on first use, and keep the result on disk where a folder for that can be written."""
    options: dict[str, Any] = {"nogil": True, "fastmath": _FASTMATH, "error_model": "numpy"}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # no writable place for the cache
        return numba.njit(**options)(function)


def _bitcast(source: types.Type, target: types.Type, target_ir: ir.Type) -> Callable[..., Any]:
    """Reinterpret the bits of a number as one of another type."""

    @intrinsic
    def cast(typing_context: Any, value: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.bitcast(args[0], target_ir)

        return target(source), generate

    return cast


_float_bits = _bitcast(types.float32, types.int32, ir.IntType(32))
_bits_float = _bitcast(types.int32, types.float32, ir.FloatType())
_double_bits = _bitcast(types.float64, types.int64, ir.IntType(64))
_bits_double = _bitcast(types.int64, types.float64, ir.DoubleType())


@_jit
def _exp_negative(x: Any) -> Any:
    """Return e^x for float32 x ≤ 0."""
    x = max(x, np.float32(-87.0))
    n = np.int32(x * np.float32(1 / _LN2) - np.float32(0.5))
    r = x - n * _LN2_HIGH - n * _LN2_LOW
    series = np.float32(1 / 5040)
    series = series * r + np.float32(1 / 720)
    series = series * r + np.float32(1 / 120)
    series = series * r + np.float32(1 / 24)
    series = series * r + np.float32(1 / 6)
    series = series * r + np.float32(1 / 2)
    series = series * r + np.float32(1.0)
    series = series * r + np.float32(1.0)
    return series * _bits_float((n + np.int32(127)) << np.int32(23))


@_jit
def _log(x: Any) -> Any:
    """Natural logarithm of a positive float32: ln m = 2 artanh((m - 1) / (m + 1))."""
    # an offset moves the cut of the mantissa from 1 to sqrt(1/2)
    bits = _float_bits(x) - np.int32(0x3F3504F3)
    n = bits >> np.int32(23)
    m = _bits_float((bits & np.int32(0x007FFFFF)) + np.int32(0x3F3504F3))
    s = (m - np.float32(1.0)) / (m + np.float32(1.0))
    s2 = s * s
    series = np.float32(2 / 9)
    series = series * s2 + np.float32(2 / 7)
    series = series * s2 + np.float32(2 / 5)
    series = series * s2 + np.float32(2 / 3)
    series = series * s2 + np.float32(2.0)
    return n * _LN2_HIGH + (series * s + n * _LN2_LOW)


@_jit
def _log1p(x: Any) -> Any:
    """Return ln(1 + x) of a float32 x ≥ 0, with what the rounding of 1 + x drops."""
    y = np.float32(1.0) + x
    return _log(y) + (x - (y - np.float32(1.0))) / y


@_jit
def _log_double(x: Any) -> Any:
    """Natural logarithm of a positive float64."""
    offset = np.int64(0x3FE6A09E667F3BCD)
    bits = _double_bits(x) - offset
    n = bits >> np.int64(52)
    m = _bits_double((bits & np.int64(0x000FFFFFFFFFFFFF)) + offset)
    s = (m - 1.0) / (m + 1.0)
    s2 = s * s
    series = 2 / 17
    series = series * s2 + 2 / 15
    series = series * s2 + 2 / 13
    series = series * s2 + 2 / 11
    series = series * s2 + 2 / 9
    series = series * s2 + 2 / 7
    series = series * s2 + 2 / 5
    series = series * s2 + 2 / 3
    series = series * s2 + 2.0
    return n * _LN2 + series * s


@_jit
def _stirling(z: Any) -> Any:
    """Return ln Γ(z) - (z - 1/2) ln z + z - ln(2π)/2, for z ≥ 6."""
    w = 1.0 / (z * z)
    return (1 / 12 + w * (-1 / 360 + w * (1 / 1260 - w / 1680))) / z


@_jit
def _digamma_rest(z: Any) -> Any:
    """Return ψ(z) - ln z, for z ≥ 6."""
    w = 1.0 / (z * z)
    return -0.5 / z - w * (1 / 12 + w * (-1 / 120 + w * (1 / 252 - w / 240)))


@_jit
def _shift_product(theta: Any) -> Any:
    """Return P(θ) and its derivative."""
    product, slope = theta, 1.0
    for i in range(1, _SHIFT):
        factor = theta + i
        slope = slope * factor + product
        product = product * factor
    return product, slope


@_jit
def _gene_terms(theta: Any, terms: Any) -> None:
    """Tabulate for the gamma functions, per gene: ln z, both rests at z = θ + 6, and P."""
    for g in range(theta.shape[0]):
        t = np.float64(theta[g])
        product, slope = _shift_product(t)
        z = t + _SHIFT
        terms[0, g] = _log_double(z)
        terms[1, g] = _stirling(z)
        terms[2, g] = _digamma_rest(z) - slope / product
        terms[3, g] = product


@_jit
def _entries(
    x: Any, mu: Any, theta: Any, zi: Any, zero_inflated: Any, d_mu: Any, d_theta: Any, d_zi: Any
) -> Any:
    """One cell: all entries as if zero, corrected where they are not; without gamma functions."""
    total = np.float32(0.0)
    one, zero = np.float32(1.0), np.float32(0.0)
    for g in range(x.shape[0]):
        th, m = theta[g], mu[g]
        guarded = th + np.float32(_EPS)
        share = th / (guarded + m)
        log_ratio = -_log1p(m / guarded)
        log_zero = th * log_ratio
        unsound = log_zero - log_zero  # 0, or NaN where anything was not finite
        weight = one
        if zero_inflated:
            logit = zi[g]
            positive = x[g] > np.float32(_EPS)
            odds = log_zero - logit
            e_odds, e_logit = _exp_negative(-abs(odds)), _exp_negative(-abs(logit))
            r_odds, r_logit = one / (one + e_odds), one / (one + e_logit)
            from_nb = r_odds if odds >= zero else e_odds * r_odds
            not_inflated = r_logit if logit <= zero else e_logit * r_logit
            weight = one if positive else from_nb
            peak = odds if positive else max(odds, zero)
            log_zero = (
                peak
                - max(-logit, zero)
                + _log(r_logit if positive else (one + e_odds) * r_logit)
                + (logit - logit)
            )
            d_zi[g] = not_inflated - weight
        total += log_zero + unsound
        d_mu[g] = -weight * share
        d_theta[g] = weight * (log_ratio + th / guarded - share)
    return total


@_jit
def _non_zeros(
    x: Any, mu: Any, theta: Any, terms: Any, genes: Any, d_mu: Any, d_theta: Any
) -> Any:
    """One cell: what the entries above zero add, gamma functions included."""
    n = 0
    for g in range(x.shape[0]):
        genes[n] = g
        n += x[g] > np.float32(_EPS)
    log_z_one, stirling_one = math.log(7.0), _stirling(7.0)
    total = 0.0
    for i in range(n):
        g = genes[i]
        count, m, th = np.float64(x[g]), np.float64(mu[g]), np.float64(theta[g])
        all_mass = th + m + _EPS
        log_share = _log_double((m + _EPS) / all_mass)

        z = th + _SHIFT
        product, slope = _shift_product(th + count)
        log_growth = _log_double((z + count) / z)
        log_gamma = (
            (z + count - 0.5) * log_growth
            + count * terms[0, g]
            + _stirling(z + count)
            - terms[1, g]
            - _log_double(product / terms[3, g])
        )
        digamma = log_growth + _digamma_rest(z + count) - slope / product - terms[2, g]

        factorial_product, _ = _shift_product(1.0 + count)
        log_factorial = (
            (6.5 + count) * _log_double((7.0 + count) / 7.0)
            + count * log_z_one
            + _stirling(7.0 + count)
            - stirling_one
            - _log_double(factorial_product / 720.0)
        )
        total += count * log_share + log_gamma - log_factorial
        d_mu[g] += np.float32(count / (m + _EPS) - count / all_mass)
        d_theta[g] += np.float32(digamma - count / all_mass)
    return total


@_jit
def _cells(
    x: Any,
    mu: Any,
    theta: Any,
    zi: Any,
    zero_inflated: Any,
    terms: Any,
    log_prob: Any,
    d_mu: Any,
    d_theta: Any,
    d_zi: Any,
) -> None:
    genes = np.empty(x.shape[1] + 1, dtype=np.int64)
    for b in range(x.shape[0]):
        row = b if zero_inflated else 0
        total = _entries(
            x[b], mu[b], theta, zi[row], zero_inflated, d_mu[b], d_theta[b], d_zi[row]
        )
        total += _non_zeros(x[b], mu[b], theta, terms, genes, d_mu[b], d_theta[b])
        log_prob[b] = total


def log_prob_and_derivatives(
    x: NDArray[np.float32],
    mu: NDArray[np.float32],
    theta: NDArray[np.float32],
    zi_logits: NDArray[np.float32] | None,
    n_threads: int,
) -> tuple[NDArray[np.float32], ...]:
    """Log-likelihood of each cell, and the derivative of every entry.

    Parameters
    ----------
    x
        Counts, shape ``(n_cells, n_genes)``.
    mu
        Means, of the same shape.
    theta
        Inverse dispersions, shape ``(n_genes,)``.
    zi_logits
        Logits of zero inflation, shape ``(n_cells, n_genes)``; `None` for a plain NB.
    n_threads
        Number of threads that share the cells.

    Returns
    -------
    The sum over genes, shape ``(n_cells,)``, and the derivatives of the entries with respect to
    `mu`, `theta` and `zi_logits`, shape ``(n_cells, n_genes)`` each; the last is empty for an NB.
    """
    n_cells, n_genes = x.shape
    zero_inflated = zi_logits is not None
    zi = zi_logits if zi_logits is not None else np.empty((1, 0), np.float32)
    log_prob = np.empty(n_cells, np.float32)
    d_mu, d_theta = np.empty_like(mu), np.empty_like(mu)
    d_zi = np.empty_like(zi)
    terms = np.empty((4, n_genes))
    _gene_terms(theta, terms)

    def run(cells: slice) -> None:
        inflated = cells if zero_inflated else slice(None)
        _cells(
            x[cells], mu[cells], theta, zi[inflated], zero_inflated, terms,
            log_prob[cells], d_mu[cells], d_theta[cells], d_zi[inflated],
        )  # fmt: skip

    _share(run, x.shape, n_threads)
    return log_prob, d_mu, d_theta, d_zi


@_jit
def _expression(mu: Any, zi: Any, scale: Any, value: Any, d_mu: Any, d_zi: Any) -> None:
    one, zero = np.float32(1.0), np.float32(0.0)
    for b in range(mu.shape[0]):
        for g in range(mu.shape[1]):
            logit = zi[b, g]
            e_logit = _exp_negative(-abs(logit))
            r_logit = one / (one + e_logit)
            not_inflated = r_logit if logit <= zero else e_logit * r_logit
            inflated = e_logit * r_logit if logit <= zero else r_logit
            slope = not_inflated * scale[b]
            mean = slope * mu[b, g]
            value[b, g] = _log1p(mean) + (mean - mean) + (logit - logit)
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

    Parameters
    ----------
    mu
        Means before zero inflation, shape ``(n_cells, n_genes)``.
    zi_logits
        Logits of zero inflation, of the same shape.
    scale
        Factor of each cell, shape ``(n_cells,)``.
    n_threads
        Number of threads that share the cells.
    """
    value, d_mu, d_zi = (np.empty_like(mu) for _ in range(3))

    def run(cells: slice) -> None:
        _expression(
            mu[cells], zi_logits[cells], scale[cells], value[cells], d_mu[cells], d_zi[cells]
        )

    _share(run, mu.shape, n_threads)
    return value, d_mu, d_zi


@_jit
def _gather(indptr: Any, indices: Any, data: Any, rows: Any, out: Any) -> None:
    for i in range(rows.shape[0]):
        for j in range(indptr[rows[i]], indptr[rows[i] + 1]):
            out[i, indices[j]] = np.float32(data[j])


def gather_rows(matrix: csr_matrix, rows: NDArray[np.integer]) -> NDArray[np.float32]:
    """Return rows of a CSR matrix without duplicate entries as a dense matrix."""
    out = np.zeros((len(rows), matrix.shape[1]), np.float32)
    _gather(matrix.indptr, matrix.indices, matrix.data, rows, out)
    return out


@_jit
def _project(
    indptr: Any, indices: Any, data: Any, rows: Any, log1p: Any, weight: Any, out: Any
) -> None:
    values = np.empty(weight.shape[0] + 3, np.float32)
    genes = np.empty(weight.shape[0] + 3, np.int64)
    total = np.empty(weight.shape[1], np.float32)
    for i in range(rows.shape[0]):
        start, n = indptr[rows[i]], indptr[rows[i] + 1] - indptr[rows[i]]
        for j in range(n):
            values[j] = data[start + j]
            genes[j] = indices[start + j]
        if log1p:
            for j in range(n):
                values[j] = _log1p(values[j])
        values[n : n + 3] = 0.0
        genes[n : n + 3] = 0
        total[:] = 0.0
        for j in range(0, n, 4):  # four at a time: the sum is loaded and stored less often
            a, b, c, d = values[j], values[j + 1], values[j + 2], values[j + 3]
            of_a, of_b, of_c, of_d = genes[j], genes[j + 1], genes[j + 2], genes[j + 3]
            for h in range(total.shape[0]):
                total[h] += (
                    a * weight[of_a, h]
                    + b * weight[of_b, h]
                    + c * weight[of_c, h]
                    + d * weight[of_d, h]
                )
        out[i] = total


def project_rows(
    matrix: csr_matrix,
    rows: NDArray[np.integer],
    weight: NDArray[np.float32],
    log1p: bool,
    n_threads: int,
) -> NDArray[np.float32]:
    """Rows of a CSR matrix, or their log1p, times a dense matrix.

    Parameters
    ----------
    matrix
        CSR matrix, shape ``(n_cells, n_genes)``; not negative where `log1p` is asked for.
    rows
        Rows to take.
    weight
        Dense matrix, shape ``(n_genes, n_hidden)``, row by row in memory.
    log1p
        Whether to take ``ln(1 + x)`` first.
    n_threads
        Number of threads that share the rows.
    """
    out = np.zeros((len(rows), weight.shape[1]), np.float32)

    def run(part: slice) -> None:
        _project(matrix.indptr, matrix.indices, matrix.data, rows[part], log1p, weight, out[part])

    _share(run, (len(rows), len(weight)), n_threads)
    return out


@_jit
def _log1p_all(x: Any, scale: Any, out: Any) -> None:
    for b in range(x.shape[0]):
        for g in range(x.shape[1]):
            y = x[b, g] * scale[b]
            out[b, g] = _log1p(y) + (y - y)


def log1p_counts(
    x: NDArray[np.float32], scale: NDArray[np.float32], n_threads: int
) -> NDArray[np.float32]:
    """``ln(1 + scale · x)`` of counts, shape ``(n_cells, n_genes)``, with one factor per cell."""
    out = np.empty_like(x)

    def run(cells: slice) -> None:
        _log1p_all(x[cells], scale[cells], out[cells])

    _share(run, x.shape, n_threads)
    return out


def _share(run: Callable[[slice], None], shape: tuple[int, ...], n_threads: int) -> None:
    """Run over all cells of a matrix, in several threads where it is large enough."""
    n_cells, n_genes = shape
    n_parts = max(1, min(n_threads, n_cells, n_cells * n_genes // _MIN_ENTRIES_PER_THREAD))
    if n_parts == 1:
        run(slice(0, n_cells))
        return
    edges = np.linspace(0, n_cells, n_parts + 1).astype(int)
    parts = [slice(*edge) for edge in zip(edges[:-1], edges[1:], strict=True)]
    others = [_workers(n_parts - 1).submit(run, part) for part in parts[1:]]
    run(parts[0])
    for other in others:
        other.result()


@cache
def _workers(n_threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(n_threads, thread_name_prefix="dra_scvi")
