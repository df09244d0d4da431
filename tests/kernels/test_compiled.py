"""The compiled passes alone: exact over the range of single precision, and within their arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from scipy.special import digamma, expit, gammaln
from scipy.stats import nbinom

from dra_scvi._kernels import compiled, parts

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

GENERATOR = np.random.default_rng(0)
N_CELLS, N_GENES = 12, 7


def single(array: Any) -> NDArray[np.float32]:
    return np.ascontiguousarray(array, np.float32)


X = single(GENERATOR.poisson(1.5, (N_CELLS, N_GENES)))
MU = single(10 ** GENERATOR.uniform(-3, 3, (N_CELLS, N_GENES)))
THETA = single(10 ** GENERATOR.uniform(-2, 2, N_GENES))
ZI = single(GENERATOR.uniform(-9, 9, (N_CELLS, N_GENES)))
ZI[0, :3] = [0.0, -60.0, 60.0]
SCALE = single(10 ** GENERATOR.uniform(-2, 2, N_CELLS))
PASSES: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "zinb": (compiled.log_prob_and_derivatives, (X, MU, THETA, ZI)),
    "nb": (compiled.log_prob_and_derivatives, (X, MU, THETA, None)),
    "expression": (compiled.log_expression_and_derivatives, (MU, ZI, SCALE)),
    "counts": (lambda *arrays: (compiled.log1p_counts(*arrays),), (X, SCALE)),
}
passes = pytest.mark.parametrize("name", PASSES)


def doubled(*arrays: NDArray[np.float32]) -> list[NDArray[np.float64]]:
    return [array.astype(np.float64) for array in arrays]


def test_log1p_over_all_magnitudes() -> None:
    x = single(np.append(10.0 ** np.arange(-30, 30, 0.37), 0.0))[None]
    for scale in (1.0, 0.3):
        found = compiled.log1p_counts(x, single([scale]), 1)
        exact = np.log1p(x.astype(np.float64) * np.float32(scale))
        np.testing.assert_allclose(found, exact, rtol=5e-7)


def test_expression_and_its_derivatives() -> None:
    mu, zi, scale = doubled(MU, ZI, SCALE)
    slope = expit(-zi) * scale[:, None]
    mean = slope * mu
    expected = np.log1p(mean), slope / (1 + mean), -mean * expit(zi) / (1 + mean)
    found = compiled.log_expression_and_derivatives(MU, ZI, SCALE, 1)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=3e-6, atol=1e-30)


@pytest.mark.parametrize(
    "factor", [1, 7, 300, 0.37], ids=["tabulated", "mixed", "large", "fractions"]
)
def test_likelihood_and_its_derivatives(factor: float) -> None:
    counts = single(X * factor)
    x, mu, theta, zi = doubled(counts, MU, THETA, ZI)
    log_nb = gammaln(x + theta) - gammaln(theta) - gammaln(x + 1)
    log_nb += theta * np.log(theta / (theta + mu)) + x * np.log(mu / (theta + mu))
    if factor >= 1:
        np.testing.assert_allclose(log_nb, nbinom.logpmf(x, theta, theta / (theta + mu)))
    d_mu = x / mu - (x + theta) / (theta + mu)
    d_theta = digamma(x + theta) - digamma(theta)
    d_theta += np.log(theta / (theta + mu)) + 1 - (x + theta) / (theta + mu)
    plain = compiled.log_prob_and_derivatives(counts, MU, THETA, None, 1)
    for one, other in zip(plain[:3], (log_nb.sum(1), d_mu, d_theta), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-5)
    assert plain[3].size == 0

    log_prob = np.where(x > 0, np.log(expit(-zi)) + log_nb, 0)
    at_zero = np.logaddexp(np.log(expit(zi)), np.log(expit(-zi)) + log_nb)
    log_prob = np.where(x > 0, log_prob, at_zero)
    from_nb = np.where(x > 0, 1, np.exp(np.log(expit(-zi)) + log_nb - log_prob))
    expected = log_prob.sum(1), from_nb * d_mu, from_nb * d_theta, expit(-zi) - from_nb
    inflated = compiled.log_prob_and_derivatives(counts, MU, THETA, ZI, 1)
    for one, other in zip(inflated, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-5)


def test_counts_around_the_end_of_the_table() -> None:
    """The sums of the table and the series agree, to the precision of the result."""
    x = single(np.arange(1, 2 * compiled.N_TABULATED))[:, None]
    theta = single([0.3])
    found = compiled.log_prob_and_derivatives(x, single(np.full_like(x, 2)), theta, None, 1)
    exact = nbinom.logpmf(x, theta.astype(float), theta / (theta + 2.0))
    np.testing.assert_allclose(found[0], exact[:, 0], rtol=1e-6)
    slope = digamma(x.astype(float) + theta) - digamma(theta.astype(float))
    slope += np.log(theta / (theta + 2.0)) + 1 - (x + theta) / (theta + 2.0)
    np.testing.assert_allclose(found[2], slope, rtol=2e-6, atol=2e-6)


@passes
def test_threads_share_the_cells(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run, arrays = PASSES[name]
    alone = run(*arrays, 1)
    monkeypatch.setattr(parts, "_MIN_ENTRIES_PER_THREAD", 1)
    shared: list[int] = []
    monkeypatch.setattr(
        parts, "_workers", lambda n, make=parts._workers: shared.append(n) or make(n)
    )
    for one, other in zip(run(*arrays, 3), alone, strict=True):
        np.testing.assert_array_equal(one, other)
    assert shared == [2, 2]


@passes
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_comes_through(name: str, value: float) -> None:
    """In the cell where it lies, or wherever a gene of all cells is used, and in no other."""
    run, arrays = PASSES[name]
    expected = run(*arrays, 1)[0]
    for place, array in enumerate(arrays):
        if array is None or (array is X and name != "counts"):
            continue
        spoiled = array.copy()
        spoiled.flat[-1] = value
        found = run(*arrays[:place], spoiled, *arrays[place + 1 :], 1)[0]
        rows = slice(None) if array is THETA else slice(-1, None)
        assert not np.isfinite(found[rows]).reshape(len(found[rows]), -1).all(1).any()
        if array is not THETA:
            np.testing.assert_array_equal(found[:-1], expected[:-1])


@passes
def test_arrays_that_do_not_fit_are_refused(name: str) -> None:
    run, arrays = PASSES[name]
    names = {id(X): "x", id(MU): "mu", id(THETA): "theta", id(ZI): "zi_logits", id(SCALE): "scale"}
    for place, array in enumerate(arrays):
        if array is None:
            continue
        before, after = arrays[:place], arrays[place + 1 :]
        words = f"^{names[id(array)]} ha"
        for wrong in (array[None], array[..., :-1]) if place else (array[None], array[0]):
            with pytest.raises(ValueError, match=words):
                run(*before, wrong, *after, 1)
        with pytest.raises(TypeError, match=f"{words[:-1]}olds float64, not float32"):
            run(*before, array.astype(np.float64), *after, 1)
