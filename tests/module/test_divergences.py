"""Tests of the divergences against closed forms, quadrature and plain NumPy."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import norm

from dra_scvi._module.divergences import (
    DIVERGENCES,
    bhattacharyya,
    jensen_shannon,
    released_distance,
    released_generator_loss,
    scale_gradient,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    Divergence = Callable[[Tensor, Tensor], Tensor]

both = pytest.mark.parametrize("divergence", DIVERGENCES.values(), ids=DIVERGENCES.keys())
gaussians = pytest.mark.parametrize(
    ("p", "q"),
    [
        pytest.param(norm(0, 1), norm(0, 1), id="equal"),
        pytest.param(norm(-1, 1), norm(1.5, 1), id="shifted"),
        pytest.param(norm(0, 1), norm(0, 1.3), id="wider"),
        pytest.param(norm(0.5, 0.8), norm(-0.7, 1.1), id="shifted and wider"),
    ],
)
outputs = st.lists(st.floats(-20, 20), min_size=1, max_size=12).map(
    lambda values: torch.tensor(values, dtype=torch.float64)
)


@st.composite
def discrete_pairs(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    """Draw the count of each symbol in a sample of p and of q, and any function of symbols."""
    n_symbols = draw(st.integers(1, 6))
    counts = st.lists(st.integers(1, 9), min_size=n_symbols, max_size=n_symbols)
    h = st.lists(st.floats(-8, 8), min_size=n_symbols, max_size=n_symbols)
    return (
        torch.tensor(draw(counts)),
        torch.tensor(draw(counts)),
        torch.tensor(draw(h), dtype=torch.float64),
    )


def on_samples(divergence: Divergence, p: Tensor, q: Tensor, h: Tensor) -> float:
    """Value on samples that hold every symbol as often as its count."""
    return divergence(h.repeat_interleave(p), h.repeat_interleave(q)).item()


def true_divergence(name: str, p: Tensor, q: Tensor) -> float:
    p, q = p / p.sum(dtype=torch.float64), q / q.sum(dtype=torch.float64)
    if name == "bhattacharyya":
        return -math.log((p * q).sqrt().sum())
    m = (p + q) / 2
    return 0.5 * ((p * (p / m).log()).sum() + (q * (q / m).log()).sum()).item()


def best_h(name: str, p: Tensor, q: Tensor) -> Tensor:
    ratio = (p / p.sum(dtype=torch.float64)).log() - (q / q.sum(dtype=torch.float64)).log()
    return ratio / 2 if name == "bhattacharyya" else ratio


# -- the two divergences -------------------------------------------------------------------------


def test_divergences_are_offered_by_name() -> None:
    assert list(DIVERGENCES.items()) == [
        ("bhattacharyya", bhattacharyya),
        ("jensen-shannon", jensen_shannon),
    ]


@pytest.mark.parametrize("name", DIVERGENCES)
@given(pair=discrete_pairs())
@settings(max_examples=60, deadline=None)
def test_bound_never_exceeds_the_true_divergence(
    name: str, pair: tuple[Tensor, Tensor, Tensor]
) -> None:
    p, q, h = pair
    assert on_samples(DIVERGENCES[name], p, q, h) <= true_divergence(name, p, q) + 1e-12


@pytest.mark.parametrize("name", DIVERGENCES)
@given(pair=discrete_pairs())
@settings(max_examples=60, deadline=None)
def test_bound_is_attained_at_the_optimal_discriminator(
    name: str, pair: tuple[Tensor, Tensor, Tensor]
) -> None:
    p, q, _ = pair
    found = on_samples(DIVERGENCES[name], p, q, best_h(name, p, q))
    assert found == pytest.approx(true_divergence(name, p, q), abs=1e-12)


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("step", [-0.3, 0.3])
def test_bound_is_loose_beside_the_optimal_discriminator(name: str, step: float) -> None:
    p, q = torch.tensor([1, 4, 5]), torch.tensor([6, 2, 2])
    h = best_h(name, p, q) + step * torch.tensor([1.0, 0.0, 0.0])
    gap = true_divergence(name, p, q) - on_samples(DIVERGENCES[name], p, q, h)
    assert 1e-4 < gap < 0.1


@gaussians
def test_bhattacharyya_equals_the_closed_form_of_two_gaussians(p: norm, q: norm) -> None:
    nodes = np.linspace(-40, 40, 8001)
    log_weight = math.log(nodes[1] - nodes[0]) + math.log(len(nodes))
    h = 0.5 * (p.logpdf(nodes) - q.logpdf(nodes))
    # a mean of e^{-h} over nodes becomes an integral when each node brings its own weight
    found = bhattacharyya(
        torch.as_tensor(h - log_weight - p.logpdf(nodes)),
        torch.as_tensor(h + log_weight + q.logpdf(nodes)),
    )
    variance = p.var() + q.var()
    expected = 0.25 * (p.mean() - q.mean()) ** 2 / variance + 0.5 * math.log(
        variance / (2 * p.std() * q.std())
    )
    assert found.item() == pytest.approx(expected, abs=1e-12)


@gaussians
def test_bhattacharyya_of_large_samples_nears_the_closed_form(p: norm, q: norm) -> None:
    rng = np.random.default_rng(0)
    real, fake = p.rvs(200_000, random_state=rng), q.rvs(200_000, random_state=rng)
    found = bhattacharyya(
        *(torch.as_tensor(0.5 * (p.logpdf(x) - q.logpdf(x))) for x in (real, fake))
    )
    affinity, _ = quad(lambda x: math.sqrt(p.pdf(x) * q.pdf(x)), -30, 30, epsabs=1e-12)
    assert found.item() == pytest.approx(-math.log(affinity), abs=0.01)


@gaussians
def test_jensen_shannon_equals_numerical_integration_for_two_gaussians(p: norm, q: norm) -> None:
    levels = (np.arange(200_000) + 0.5) / 200_000
    found = jensen_shannon(
        *(torch.as_tensor(p.logpdf(x) - q.logpdf(x)) for x in (p.ppf(levels), q.ppf(levels)))
    )

    def integrand(x: float) -> float:
        log_mean = np.logaddexp(p.logpdf(x), q.logpdf(x)) - math.log(2)
        real, fake = p.pdf(x), q.pdf(x)
        return 0.5 * (real * (p.logpdf(x) - log_mean) + fake * (q.logpdf(x) - log_mean))

    expected, _ = quad(integrand, -30, 30, epsabs=1e-12, points=[-1, 0, 1], limit=200)
    assert found.item() == pytest.approx(expected, abs=1e-5)


@both
@pytest.mark.parametrize(("n_real", "n_fake"), [(1, 1), (5, 5), (3, 8)])
def test_uninformative_discriminator_scores_zero(
    divergence: Divergence, n_real: int, n_fake: int
) -> None:
    h_real, h_fake = (torch.zeros(n, dtype=torch.float64) for n in (n_real, n_fake))
    assert divergence(h_real, h_fake).item() == pytest.approx(0, abs=1e-15)


@both
@given(h_real=outputs, h_fake=outputs)
@settings(max_examples=40, deadline=None)
def test_exchanging_real_and_fake_flips_the_discriminator(
    divergence: Divergence, h_real: Tensor, h_fake: Tensor
) -> None:
    swapped = divergence(-h_fake, -h_real).item()
    assert divergence(h_real, h_fake).item() == pytest.approx(swapped, abs=1e-12)


@given(h_real=outputs, h_fake=outputs)
@settings(max_examples=40, deadline=None)
def test_values_equal_plain_numpy(h_real: Tensor, h_fake: Tensor) -> None:
    real, fake = h_real.numpy(), h_fake.numpy()
    expected = -math.log(0.5 * (np.exp(-real).mean() + np.exp(fake).mean()))
    assert bhattacharyya(h_real, h_fake).item() == pytest.approx(expected, abs=1e-11)
    expected = math.log(2) - 0.5 * (np.log1p(np.exp(-real)).mean() + np.log1p(np.exp(fake)).mean())
    assert jensen_shannon(h_real, h_fake).item() == pytest.approx(expected, abs=1e-11)


@both
@pytest.mark.parametrize("size", [1e2, 1e4])
@pytest.mark.parametrize("sign", [1, -1], ids=["right", "wrong"])
def test_extreme_scores_stay_finite_in_float32(
    divergence: Divergence, size: float, sign: int
) -> None:
    h_real = torch.tensor([size, 0.0, size / 2]).mul(sign).requires_grad_()
    h_fake = torch.tensor([-size, 0.0, -size / 3]).mul(sign).requires_grad_()
    value = divergence(h_real, h_fake)
    value.backward()
    for tensor in (value, h_real.grad, h_fake.grad):
        assert torch.isfinite(tensor).all()
    assert (value > 0) == (sign > 0)


@both
@given(h_real=outputs, h_fake=outputs)
@settings(max_examples=15, deadline=None)
def test_gradients_equal_finite_differences(
    divergence: Divergence, h_real: Tensor, h_fake: Tensor
) -> None:
    assert torch.autograd.gradcheck(
        divergence, (h_real.clone().requires_grad_(), h_fake.clone().requires_grad_())
    )


@given(h_real=outputs, h_fake=outputs)
@settings(max_examples=40, deadline=None)
def test_bhattacharyya_gradients_are_weights_summing_to_one(
    h_real: Tensor, h_fake: Tensor
) -> None:
    h_real, h_fake = h_real.clone().requires_grad_(), h_fake.clone().requires_grad_()
    real, fake = torch.autograd.grad(bhattacharyya(h_real, h_fake), (h_real, h_fake))
    w_real = np.exp(-h_real.detach().numpy()) / len(h_real)
    w_fake = np.exp(h_fake.detach().numpy()) / len(h_fake)
    total = w_real.sum() + w_fake.sum()
    np.testing.assert_allclose(real, w_real / total, rtol=1e-10)
    np.testing.assert_allclose(fake, -w_fake / total, rtol=1e-10)
    assert (real.sum() - fake.sum()).item() == pytest.approx(1, abs=1e-12)


@given(h_real=outputs, h_fake=outputs)
@settings(max_examples=40, deadline=None)
def test_jensen_shannon_gradients_are_probabilities_of_error(
    h_real: Tensor, h_fake: Tensor
) -> None:
    h_real, h_fake = h_real.clone().requires_grad_(), h_fake.clone().requires_grad_()
    real, fake = torch.autograd.grad(jensen_shannon(h_real, h_fake), (h_real, h_fake))
    p_real, p_fake = (1 / (1 + np.exp(-h.detach().numpy())) for h in (h_real, h_fake))
    np.testing.assert_allclose(real, 0.5 * (1 - p_real) / len(h_real), atol=1e-14)
    np.testing.assert_allclose(fake, -0.5 * p_fake / len(h_fake), atol=1e-14)


def test_jensen_shannon_is_at_most_ln_2() -> None:
    perfect = jensen_shannon(torch.full((4,), 1e3), torch.full((4,), -1e3))
    assert perfect.item() == pytest.approx(math.log(2))


# -- the losses of the released program ----------------------------------------------------------


@st.composite
def released_outputs(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Draw paired outputs whose signed sums are not close to 0."""
    n_cells = draw(st.integers(1, 10))
    floats = st.floats(-5, 5).filter(lambda value: abs(value) > 1e-3)
    pair = [
        torch.tensor(
            draw(st.lists(floats, min_size=n_cells, max_size=n_cells)), dtype=torch.float64
        )
        for _ in range(2)
    ]
    assume(all(abs(values.sum()) > 0.05 for values in pair))
    return pair[0], pair[1]


@given(pair=released_outputs())
@settings(max_examples=60, deadline=None)
def test_released_losses_equal_plain_numpy(pair: tuple[Tensor, Tensor]) -> None:
    real, fake = (values.numpy() for values in pair)
    coefficient = np.sqrt(np.abs((real / real.sum()) * (fake / fake.sum()))).sum()
    assert released_distance(*pair).item() == pytest.approx(
        -math.log(coefficient + 1e-10), abs=1e-12
    )
    coefficient = np.sqrt(np.abs(fake / fake.sum())).sum()
    assert released_generator_loss(pair[1]).item() == pytest.approx(
        -math.log(coefficient + 1e-10), abs=1e-12
    )


@given(pair=released_outputs())
@settings(max_examples=15, deadline=None)
def test_released_gradients_equal_finite_differences(pair: tuple[Tensor, Tensor]) -> None:
    real, fake = (values.clone().requires_grad_() for values in pair)
    options = {"eps": 1e-7, "atol": 1e-4, "rtol": 1e-3}
    assert torch.autograd.gradcheck(released_distance, (real, fake), **options)
    assert torch.autograd.gradcheck(released_generator_loss, (fake,), **options)


@pytest.mark.parametrize("n_cells", [1, 2, 128])
@pytest.mark.parametrize("constant", [3.0, -0.01])
def test_released_losses_of_constant_outputs(n_cells: int, constant: float) -> None:
    flat = torch.full((n_cells,), constant, dtype=torch.float64)
    assert released_generator_loss(flat).item() == pytest.approx(
        -0.5 * math.log(n_cells), abs=1e-9
    )
    assert released_distance(flat, 2 * flat).item() == pytest.approx(0, abs=1e-9)


@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=20))
@settings(max_examples=40, deadline=None)
def test_released_generator_loss_of_positive_outputs_is_least_when_flat(
    values: list[float],
) -> None:
    loss = released_generator_loss(torch.tensor(values, dtype=torch.float64)).item()
    assert -0.5 * math.log(len(values)) - 1e-9 <= loss <= 1e-9


@given(
    pair=released_outputs(),
    scales=st.tuples(*[st.sampled_from([-7.0, -1e-2, 1e-2, 1.0, 1e3])] * 2),
)
@settings(max_examples=40, deadline=None)
def test_released_losses_ignore_the_scale_of_the_outputs(
    pair: tuple[Tensor, Tensor], scales: tuple[float, float]
) -> None:
    real, fake = pair
    scaled = released_distance(scales[0] * real, scales[1] * fake).item()
    assert scaled == pytest.approx(released_distance(real, fake).item(), abs=1e-10)
    scaled = released_generator_loss(scales[1] * fake).item()
    assert scaled == pytest.approx(released_generator_loss(fake).item(), abs=1e-10)


def test_released_distance_falls_without_limit_as_a_sum_nears_zero() -> None:
    steady = torch.ones(2, dtype=torch.float64)
    losses = [
        released_distance(steady, torch.tensor([1.0, gap - 1.0], dtype=torch.float64)).item()
        for gap in (1.0, 1e-2, 1e-4, 1e-8)
    ]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] == pytest.approx(-0.5 * math.log(2 / 1e-8), abs=1e-3)


def test_released_distance_pairs_rows_by_their_position() -> None:
    real = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)
    paired, crossed = released_distance(real, real), released_distance(real, real.flip(0))
    assert paired.item() == pytest.approx(0, abs=1e-9)
    assert crossed.item() > 0.1


# -- gradient scaling ----------------------------------------------------------------------------

scales = pytest.mark.parametrize("scale", [-2.5, -1.0, 0.0, 0.3, 1.0])


@scales
def test_scale_gradient_leaves_the_value_alone(scale: float) -> None:
    value = torch.linspace(-3, 3, 6, dtype=torch.float64).reshape(2, 3)
    assert torch.equal(scale_gradient(value, scale), value)


@scales
def test_scale_gradient_multiplies_the_gradient(scale: float) -> None:
    value = torch.linspace(-3, 3, 6, dtype=torch.float64).reshape(2, 3).requires_grad_()
    upstream = torch.arange(6, dtype=torch.float64).reshape(2, 3)
    (found,) = torch.autograd.grad(scale_gradient(value, scale), value, upstream)
    torch.testing.assert_close(found, scale * upstream, rtol=0, atol=0)


@scales
def test_scale_gradient_touches_only_what_lies_behind_it(scale: float) -> None:
    generator = torch.tensor([0.4, -1.2], dtype=torch.float64, requires_grad=True)
    critic = torch.tensor([2.0, 0.7], dtype=torch.float64, requires_grad=True)
    plain = torch.autograd.grad((generator.sin() * critic).sum(), (generator, critic))
    scaled = torch.autograd.grad(
        (scale_gradient(generator.sin(), scale) * critic).sum(), (generator, critic)
    )
    torch.testing.assert_close(scaled[0], scale * plain[0])
    torch.testing.assert_close(scaled[1], plain[1], rtol=0, atol=0)


def test_scale_gradient_adds_to_other_paths() -> None:
    value = torch.ones(3, requires_grad=True)
    (value.sum() + scale_gradient(value, -3.0).sum()).backward()
    torch.testing.assert_close(value.grad, torch.full((3,), -2.0))
