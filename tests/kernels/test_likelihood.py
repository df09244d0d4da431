"""Tests of the sparse count likelihood against scvi-tools' densities, SciPy's and autograd."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.special import expit
from scipy.stats import nbinom
from scvi.distributions import NegativeBinomial, ZeroInflatedNegativeBinomial
from torch import Tensor

from dra_scvi._kernels import likelihood as _likelihood
from dra_scvi._kernels.likelihood import count_log_prob, log_counts, log_expression


class Problem(NamedTuple):
    """Counts, parameters, and the gradient that arrives at every cell."""

    x: Tensor
    mu: Tensor
    theta: Tensor
    zi_logits: Tensor | None
    upstream: Tensor

    @property
    def parameters(self) -> list[Tensor]:
        """What gets a gradient."""
        return [p for p in (self.mu, self.theta, self.zi_logits) if p is not None]


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Draw counts and parameters over the whole range that a network may reach."""
    shape = draw(st.tuples(st.integers(1, 4), st.integers(1, 5)))

    def array(low: float, high: float, shape: tuple[int, ...] = shape) -> Tensor:
        return torch.as_tensor(draw(hnp.arrays(np.float64, shape, elements=st.floats(low, high))))

    counts = draw(
        st.sampled_from(
            [
                st.just(0),
                st.integers(1, 20),
                st.integers(0, 3),
                st.sampled_from([0, 1, 1_000, 100_000]),
            ]
        )
    )
    x = torch.as_tensor(draw(hnp.arrays(np.float64, shape, elements=counts)))
    theta_shape = shape if draw(st.booleans()) else shape[1:]
    return Problem(
        x,
        mu=10 ** array(-8, 6),
        theta=10 ** array(-4, 6, theta_shape),
        zi_logits=array(-50, 50) if draw(st.booleans()) else None,
        upstream=(4 * array(-3, 3, shape[:1])).round(),
    )


def example(
    gene_wise: bool = True, inflated: bool = True, dtype: torch.dtype = torch.float64
) -> Problem:
    """Return zeros and counts of 30 cells and 8 genes, at usual parameters."""
    rng = np.random.default_rng(0)
    mu = rng.gamma(1.0, 2.0, (30, 8)) + 0.1
    theta = rng.gamma(2.0, 1.0, 8 if gene_wise else (30, 8)) + 0.1
    arrays = (
        rng.poisson(mu),
        mu,
        theta,
        rng.normal(size=(30, 8)) if inflated else None,
        rng.normal(size=30),
    )
    return Problem(*(None if a is None else torch.as_tensor(a).to(dtype) for a in arrays))


def gradients(problem: Problem, log_prob: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(log_prob, problem.parameters, problem.upstream)


def with_gradients(problem: Problem) -> Problem:
    leaves = [
        p if p is None else p.detach().clone().requires_grad_()
        for p in (problem.mu, problem.theta, problem.zi_logits)
    ]
    return Problem(problem.x, *leaves, problem.upstream)


def upstream_log_prob(problem: Problem) -> Tensor:
    """Sum the log-probabilities of scvi-tools' own distributions over genes."""
    if problem.zi_logits is None:
        px = NegativeBinomial(mu=problem.mu, theta=problem.theta)
    else:
        px = ZeroInflatedNegativeBinomial(
            mu=problem.mu, theta=problem.theta, zi_logits=problem.zi_logits
        )
    return px.log_prob(problem.x).sum(-1)


def tolerances(problem: Problem, tail: float = 0.0, rounding: float = 1e-13) -> tuple[Tensor, ...]:
    """Bound the rounding of the value and of each gradient by the size of their terms."""
    x, mu, theta, zi_logits, upstream = problem
    logs = torch.log(mu + 1e-8).abs() + 2 * torch.log(theta + mu).abs() + theta.log().abs()
    gammas = torch.lgamma(x + theta).abs() + torch.lgamma(theta).abs() + torch.lgamma(x + 1)
    digammas = torch.digamma(x + theta).abs() + torch.digamma(theta).abs()
    zi = 0 if zi_logits is None else zi_logits.abs()
    weight = upstream.abs()[:, None].expand_as(mu)
    value = rounding * (1 + (x + theta) * logs + gammas + zi) + tail
    d_mu = rounding * (1 + x / mu + (x + theta) / (theta + mu)) + tail
    d_theta = rounding * (2 + logs + digammas + x / (theta + mu)) + tail * (2 + logs)
    bounds = (value.sum(-1), weight * d_mu, (weight * d_theta).sum_to_size(theta.shape))
    return bounds if zi_logits is None else (*bounds, weight * (rounding + tail))


def assert_equal_to_upstream(problem: Problem, tail: float = 0.0) -> None:
    ours, theirs = with_gradients(problem), with_gradients(problem)
    found, expected = count_log_prob(*ours[:4]), upstream_log_prob(theirs)
    pairs = zip(
        (found, *gradients(ours, found)),
        (expected, *gradients(theirs, expected)),
        tolerances(problem, tail),
        strict=True,
    )
    for ours_tensor, theirs_tensor, tolerance in pairs:
        assert ours_tensor.shape == theirs_tensor.shape
        error = (ours_tensor - theirs_tensor).abs()
        assert (error <= 1e-10 * theirs_tensor.abs() + tolerance).all()


shapes = pytest.mark.parametrize("gene_wise", [True, False], ids=["gene-wise", "cell-wise"])
families = pytest.mark.parametrize("inflated", [True, False], ids=["ZINB", "NB"])


@given(problem=problems())
@settings(max_examples=100, deadline=None)
def test_value_and_gradients_equal_scvi_tools_anywhere(problem: Problem) -> None:
    # torch's softplus is linear above 20, which costs either side up to e^-20 a few times
    tail = 0.0 if problem.zi_logits is None else 4 * math.exp(-20)
    assert_equal_to_upstream(problem, tail)


@pytest.fixture(params=["non-zeros", "all entries"])
def entries(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take gamma functions where a CPU needs them, or everywhere, as on other devices."""
    if request.param == "all entries":
        everything = (slice(None), slice(None))
        monkeypatch.setattr(_likelihood, "_gamma_entries", lambda x: everything)


@shapes
@families
@pytest.mark.usefixtures("entries")
@pytest.mark.parametrize("counts", ["all zero", "all positive", "mixed", "large"])
def test_value_and_gradients_equal_scvi_tools(
    gene_wise: bool, inflated: bool, counts: str
) -> None:
    problem = example(gene_wise, inflated)
    x = {
        "all zero": torch.zeros_like(problem.x),
        "all positive": problem.x + 1,
        "mixed": problem.x,
        "large": 50_000 * problem.x,
    }[counts]
    assert_equal_to_upstream(problem._replace(x=x))


@shapes
@families
@pytest.mark.parametrize("counts", ["all zero", "all positive", "mixed"])
@pytest.mark.parametrize("contiguous", [True, False], ids=["contiguous", "strided"])
def test_float32_equals_scvi_tools_in_float64(
    gene_wise: bool, inflated: bool, counts: str, contiguous: bool
) -> None:
    single = example(gene_wise, inflated, torch.float32)
    x = {"all zero": 0 * single.x, "all positive": single.x + 1, "mixed": single.x}[counts]
    single = single._replace(x=x)
    if not contiguous:
        single = Problem(*(t if t is None or t.ndim == 1 else t.T.clone().T for t in single))
    ours = with_gradients(single)
    theirs = with_gradients(Problem(*(None if t is None else t.double() for t in single)))
    found, expected = count_log_prob(*ours[:4]), upstream_log_prob(theirs)
    pairs = zip(
        (found, *gradients(ours, found)),
        (expected, *gradients(theirs, expected)),
        tolerances(theirs, rounding=1e-6),
        strict=True,
    )
    for ours_tensor, theirs_tensor, tolerance in pairs:
        assert ours_tensor.dtype == torch.float32
        assert ((ours_tensor - theirs_tensor).abs() <= tolerance).all()


@shapes
@families
def test_density_equals_scipy(gene_wise: bool, inflated: bool) -> None:
    problem = example(gene_wise, inflated)
    x, mu, theta = (t.numpy() for t in problem[:3])
    expected = nbinom.logpmf(x, theta, theta / (theta + mu))
    if inflated:
        pi = expit(problem.zi_logits.numpy())
        expected = np.log(pi * (x == 0) + (1 - pi) * np.exp(expected))
    found = count_log_prob(*problem[:4])
    np.testing.assert_allclose(found, expected.sum(-1), rtol=1e-6)


@families
def test_probabilities_of_all_counts_sum_to_one(inflated: bool) -> None:
    x = torch.arange(400, dtype=torch.float64)[:, None]
    mu, theta, zi_logits = (torch.full_like(x, value) for value in (5.0, 1.5, -0.4))
    log_prob = count_log_prob(x, mu, theta, zi_logits if inflated else None)
    assert log_prob.exp().sum().item() == pytest.approx(1, abs=1e-6)


def test_nb_is_the_limit_of_zinb_without_inflation() -> None:
    x, mu, theta, zi_logits, _ = example()
    without = torch.full_like(zi_logits, -200.0)
    torch.testing.assert_close(count_log_prob(x, mu, theta, without), count_log_prob(x, mu, theta))


@shapes
@families
def test_gradients_equal_finite_differences(gene_wise: bool, inflated: bool) -> None:
    problem = example(gene_wise, inflated)
    x, *leaves = (t[:5, :4] if t.ndim == 2 else t[:4] for t in (problem.x, *problem.parameters))
    leaves = [leaf.clone().requires_grad_() for leaf in leaves]
    assert torch.autograd.gradcheck(lambda *parameters: count_log_prob(x, *parameters), leaves)


@pytest.mark.parametrize("gene_wise", [True, False], ids=["(1, n_genes)", "(n_cells, 1)"])
def test_theta_of_any_broadcastable_shape_gets_a_gradient_of_that_shape(gene_wise: bool) -> None:
    problem = example(gene_wise)
    theta = problem.theta[None] if gene_wise else problem.theta[:, :1]
    assert_equal_to_upstream(problem._replace(theta=theta))


def test_every_cell_is_weighted_by_its_own_upstream_gradient() -> None:
    one_cell = torch.zeros(30, dtype=torch.float64)
    one_cell[4] = -2.0
    problem = with_gradients(example(gene_wise=False)._replace(upstream=one_cell))
    for gradient in gradients(problem, count_log_prob(*problem[:4])):
        assert (gradient[4] != 0).any()
        assert (gradient[torch.arange(30) != 4] == 0).all()


@families
def test_second_call_gives_the_same_result(inflated: bool) -> None:
    results = []
    for _ in range(2):
        problem = with_gradients(example(inflated=inflated))
        log_prob = count_log_prob(*problem[:4])
        results.append((log_prob.detach(), *gradients(problem, log_prob)))
    for first, second in zip(*results, strict=True):
        assert torch.equal(first, second)


def test_inputs_are_left_as_they_were() -> None:
    problem, kept = with_gradients(example()), example()
    gradients(problem, count_log_prob(*problem[:4]))
    for after, before in zip(problem, kept, strict=True):
        assert torch.equal(after, before)


@pytest.mark.parametrize("asked", [{"mu"}, {"theta"}, {"zi_logits"}, {"mu", "zi_logits"}, set()])
def test_only_the_asked_gradients_are_given(asked: set[str]) -> None:
    names = ("mu", "theta", "zi_logits")
    problem = example()
    leaves = {n: getattr(problem, n).clone().requires_grad_(n in asked) for n in names}
    log_prob = count_log_prob(problem.x, **leaves)
    assert log_prob.requires_grad == bool(asked)
    if asked:
        log_prob.backward(problem.upstream)
    assert {n for n in names if leaves[n].grad is not None} == asked


def test_counts_get_no_gradient() -> None:
    problem = with_gradients(example())
    x = problem.x.clone().requires_grad_()
    count_log_prob(x, *problem[1:4]).sum().backward()
    assert x.grad is None


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.float32])
def test_counts_may_have_any_dtype(dtype: torch.dtype) -> None:
    problem = example()
    found = count_log_prob(problem.x.to(dtype), *problem[1:4])
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, count_log_prob(*problem[:4]), rtol=0, atol=0)


@shapes
@families
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_parameters_stay_finite(
    gene_wise: bool, inflated: bool, dtype: torch.dtype
) -> None:
    grid = torch.cartesian_prod(
        torch.tensor([0.0, 1.0, 1e5]),
        torch.tensor([1e-8, 1.0, 1e6]),
        torch.tensor([-50.0, 0.0, 50.0]),
    )
    theta = torch.tensor([1e-4, 1.0, 1e6])
    x, mu, zi_logits = (column[:, None].expand(-1, 3).to(dtype) for column in grid.T)
    problem = with_gradients(
        Problem(
            x,
            mu,
            (theta if gene_wise else theta.expand(len(grid), 3)).to(dtype),
            zi_logits if inflated else None,
            torch.ones(len(grid)),
        )
    )
    log_prob = count_log_prob(*problem[:4])
    assert torch.isfinite(log_prob).all()
    for gradient in gradients(problem, log_prob):
        assert torch.isfinite(gradient).all()


@families
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(inflated: bool, dtype: torch.dtype) -> None:
    halved = example(inflated=inflated, dtype=dtype)._replace(upstream=torch.ones(30))
    half = with_gradients(halved)
    full = with_gradients(Problem(*(None if t is None else t.float() for t in halved)))
    found, expected = count_log_prob(*half[:4]), count_log_prob(*full[:4])
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)
    for ours, theirs in zip(gradients(half, found), gradients(full, expected), strict=True):
        assert ours.dtype == dtype
        assert torch.equal(ours, theirs.to(dtype))


@pytest.mark.parametrize("scale", [None, torch.tensor([[0.5], [3.0]])], ids=["counts", "scaled"])
def test_log_counts_is_log1p(scale: Tensor | None) -> None:
    x = torch.tensor([[0.0, 1.0, 70_000.0], [2.0, 1e-3, 0.0]])
    expected = torch.log1p(x.double() * (1.0 if scale is None else scale.double()))
    for dtype in (torch.float32, torch.float64):
        found = log_counts(x.to(dtype), None if scale is None else scale.to(dtype))
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-7)
    assert log_counts(torch.full((2, 1), torch.nan)).isnan().all()


def expression(mu: Tensor, zi_logits: Tensor | None, scale: Tensor) -> Tensor:
    not_inflated = 1.0 if zi_logits is None else torch.sigmoid(-zi_logits)
    return torch.log1p(scale * not_inflated * mu)


@families
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_log_expression_and_its_gradients_are_those_of_torch(
    inflated: bool, dtype: torch.dtype
) -> None:
    ours = with_gradients(example(inflated=inflated, dtype=dtype))
    exact = with_gradients(Problem(*(None if t is None else t.detach().double() for t in ours)))
    scale = torch.linspace(0.2, 30.0, 30)[:, None].to(dtype)
    found = log_expression(ours.mu, ours.zi_logits, scale)
    expected = expression(exact.mu, exact.zi_logits, scale.double())
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(found.double(), expected, rtol=2e-6, atol=2e-6)

    weight = torch.linspace(-1.0, 2.0, 240).reshape(30, 8)
    (found * weight).sum().backward()
    (expected * weight).sum().backward()
    tolerance = 1e-2 if dtype == torch.bfloat16 else 2e-6
    for one, other in ((ours.mu, exact.mu), (ours.zi_logits, exact.zi_logits)):
        if one is not None:
            torch.testing.assert_close(
                one.grad.double(), other.grad, rtol=tolerance, atol=tolerance
            )


def test_precisions_that_differ_are_computed_in_torch() -> None:
    x, mu, theta, zi_logits, _ = example()
    exact = count_log_prob(x, mu, theta, zi_logits)
    found = count_log_prob(x, mu.float(), theta, zi_logits.float())
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5)
    scale = torch.ones(30, 1)
    found = log_expression(mu.float(), zi_logits, scale)
    exact = expression(mu, zi_logits, scale)
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5)


def test_single_precision_on_a_cpu_takes_the_compiled_passes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One θ per gene in single precision: no gamma function of PyTorch, which take longer."""
    x, mu, theta, zi_logits, _ = example(dtype=torch.float32)
    for name in ("lgamma", "log1p"):
        monkeypatch.delattr(torch, name)
    for zi in (zi_logits, None):
        assert count_log_prob(x, mu, theta, zi).isfinite().all()
    assert log_counts(x).isfinite().all()
    assert log_expression(mu, zi_logits, torch.ones(30, 1)).isfinite().all()
    with pytest.raises(AttributeError, match="lgamma"):
        count_log_prob(x.double(), mu.double(), theta.double())


@shapes
@families
def test_nothing_is_read_from_other_devices(gene_wise: bool, inflated: bool) -> None:
    """Tensors of the device "meta" have no values, and whoever looks at one is refused."""
    single = example(gene_wise, inflated, torch.float32)
    problem = with_gradients(Problem(*(None if t is None else t.to("meta") for t in single)))
    log_prob = count_log_prob(*problem[:4])
    assert (log_prob.device.type, log_prob.shape) == ("meta", (30,))
    scale = torch.ones(30, 1, device="meta")
    for found in (log_counts(problem.x, scale), log_expression(problem.mu, problem[3], scale)):
        assert (found.device.type, found.shape) == ("meta", (30, 8))
    for gradient, parameter in zip(gradients(problem, log_prob), problem.parameters, strict=True):
        assert (gradient.device.type, gradient.shape) == ("meta", parameter.shape)
