"""Tests of the divergences against closed forms, and of the discriminator that estimates them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import norm
from torch import nn

from dra_scvi._module.matching import (
    DIVERGENCES,
    Discriminator,
    bhattacharyya,
    jensen_shannon,
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


def rows(n_cells: int, n_columns: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n_cells, n_columns, generator=generator)


# -- the discriminator ---------------------------------------------------------------------------


@pytest.mark.parametrize("n_hidden", [[], [8], [16, 4, 8]])
@pytest.mark.parametrize("n_cells", [1, 5])
def test_discriminator_gives_one_score_per_row(n_hidden: list[int], n_cells: int) -> None:
    discriminator = Discriminator(6, n_hidden)
    scores = discriminator(rows(n_cells, 6))
    assert scores.shape == (n_cells,)
    assert torch.isfinite(scores).all()
    widths = [p.shape[0] for n, p in discriminator.named_parameters() if p.ndim == 2]
    assert widths == [*n_hidden, 1]


@pytest.mark.parametrize("n_batch", [0, 3])
def test_score_of_a_row_does_not_depend_on_the_others(n_batch: int) -> None:
    discriminator = Discriminator(6, [8, 8], n_batch).double()
    x, batch_index = rows(5, 6).double(), torch.tensor([[0], [2], [1], [0], [2]])
    alone = [discriminator(x[i : i + 1], batch_index[i : i + 1]) for i in range(5)]
    torch.testing.assert_close(torch.cat(alone), discriminator(x, batch_index))


def test_score_is_linear_at_the_end_up_to_its_bound() -> None:
    discriminator = Discriminator(2, [], bound=5.0)
    nn.init.constant_(discriminator.layers[-1].weight, 3.0)
    nn.init.constant_(discriminator.layers[-1].bias, -1.0)
    found = discriminator(torch.tensor([[1.0, 2.0], [-100.0, 0.0]]))
    torch.testing.assert_close(found, 5 * torch.tensor([8.0 / 5, -301.0 / 5]).tanh())


@pytest.mark.parametrize("n_batch", [0, 1])
def test_a_single_batch_is_ignored(n_batch: int) -> None:
    discriminator = Discriminator(6, [8], n_batch)
    x = rows(4, 6)
    expected = discriminator(x)
    for batch in (0, 7):
        assert torch.equal(discriminator(x, torch.full((4, 1), batch)), expected)
    assert discriminator.layers[0].in_features == 6


def test_several_batches_change_the_score() -> None:
    discriminator = Discriminator(6, [8], n_batch=3)
    x = rows(4, 6)
    scores = [discriminator(x, torch.full((4, 1), batch)) for batch in range(3)]
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert not torch.allclose(scores[i], scores[j])


def test_batches_may_be_given_as_floats() -> None:
    discriminator = Discriminator(6, [8], n_batch=3)
    batch_index = torch.tensor([[0], [2], [1]])
    assert torch.equal(
        discriminator(rows(3, 6), batch_index.float()), discriminator(rows(3, 6), batch_index)
    )


def test_several_batches_without_their_index_are_refused() -> None:
    with pytest.raises(ValueError, match="batch_index"):
        Discriminator(6, [8], n_batch=2)(rows(4, 6))


def test_discriminator_shares_no_parameter_name_with_what_scvi_tools_looks_for() -> None:
    names = [name for name, _ in Discriminator(6, [8, 8], n_batch=2).named_parameters()]
    assert len(names) > 0
    for word in ("encoder", "decoder", "fc_layers", "classifier"):
        assert not [name for name in names if word in name]


@pytest.mark.parametrize("n_batch", [0, 2])
def test_every_parameter_of_the_discriminator_gets_a_gradient(n_batch: int) -> None:
    discriminator = Discriminator(6, [8, 4], n_batch)
    discriminator(rows(5, 6), torch.tensor([[0], [1], [1], [0], [1]])).square().sum().backward()
    for name, parameter in discriminator.named_parameters():
        assert parameter.grad.abs().sum() > 0, name


def test_training_mode_makes_no_difference_to_the_discriminator() -> None:
    discriminator, x = Discriminator(6, [8]), rows(5, 6)
    assert torch.equal(discriminator.train()(x), discriminator.eval()(x))


def test_discriminator_scores_stay_within_their_bound() -> None:
    discriminator = Discriminator(3, [8], bound=1.5)
    with torch.no_grad():
        discriminator.layers[-1].weight.mul_(1e4)
    scores = discriminator(torch.randn(64, 3))
    assert float(scores.abs().max()) <= 1.5
    assert float(scores.max()) > 1.4
    assert float(scores.min()) < -1.4
