"""Tests of the priors against quadrature, their own densities and closed forms."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from scipy.integrate import cumulative_simpson, quad, trapezoid
from scipy.special import logsumexp
from scipy.stats import kstest, multivariate_normal
from torch.distributions import Normal

from dra_scvi._module.priors import PRIORS, MixturePrior, NormalPrior, Prior, UniformPrior

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray


def random_mixture(
    n_latent: int, seed: int = 0, n_components: int = 4, anchor: float = 0.0
) -> MixturePrior:
    """Return a mixture whose components differ in weight, place and scale."""
    rng = np.random.default_rng(seed)
    prior = MixturePrior(n_latent, n_components, anchor).double()
    with torch.no_grad():
        prior.logits.copy_(torch.as_tensor(rng.normal(size=n_components)))
        prior.loc.copy_(torch.as_tensor(rng.normal(scale=3, size=(n_components, n_latent))))
        prior.raw_scale.copy_(torch.as_tensor(rng.normal(size=(n_components, n_latent))))
    return prior


MAKERS: dict[str, Callable[[int], Prior]] = {
    "normal": NormalPrior,
    "uniform": UniformPrior,
    "uniform, wide edge": lambda n_latent: UniformPrior(n_latent, edge=0.7),
    "mixture": random_mixture,
    "another mixture": lambda n_latent: random_mixture(n_latent, seed=1),
    "fresh mixture": lambda n_latent: MixturePrior(n_latent, 3),
}
every_prior = pytest.mark.parametrize("name", MAKERS)


def make(name: str, n_latent: int) -> Prior:
    return MAKERS[name](n_latent).double()


def density(prior: Prior, z: float) -> float:
    with torch.no_grad():
        return prior.log_prob(torch.tensor([z], dtype=torch.float64)).exp().item()


def moments(name: str, prior: Prior) -> tuple[NDArray, NDArray]:
    """Return the mean and covariance of codes in closed form."""
    n = prior.n_latent
    if isinstance(prior, MixturePrior):
        weights, loc, scale = (
            t.detach().numpy() for t in (prior.logits.softmax(0), prior.loc, prior.scale)
        )
        mean = weights @ loc
        second = np.einsum("c,ci,cj->ij", weights, loc, loc) + np.diag(weights @ scale**2)
        return mean, second - np.outer(mean, mean)
    if isinstance(prior, UniformPrior):
        return np.zeros(n), np.eye(n) * (1 / 3 + (math.pi * prior.edge) ** 2 / 3)
    return np.zeros(n), np.eye(n)


# -- what holds of every prior -------------------------------------------------------------------


def test_priors_are_offered_by_name() -> None:
    assert list(PRIORS.items()) == [
        ("normal", NormalPrior),
        ("uniform", UniformPrior),
        ("mixture", MixturePrior),
    ]


@every_prior
def test_density_integrates_to_one(name: str) -> None:
    prior, knots = make(name, 1), np.linspace(-12, 12, 49)
    total, _ = quad(lambda z: density(prior, z), -60, 60, points=knots, limit=500)
    assert total == pytest.approx(1, abs=1e-7)


@pytest.mark.parametrize("edge", [0.005, 0.05, 0.5, 5.0])
def test_uniform_density_integrates_to_one_for_any_edge(edge: float) -> None:
    prior = UniformPrior(1, edge).double()
    bound = 1 + 40 * edge
    total, _ = quad(lambda z: density(prior, z), -bound, bound, points=[-1, 1], limit=500)
    assert total == pytest.approx(1, abs=1e-7)


@every_prior
def test_samples_follow_the_density(name: str) -> None:
    prior = make(name, 1)
    torch.manual_seed(0)
    samples = prior.sample(5000).squeeze(-1).numpy()
    grid = np.linspace(-40, 40, 80_001)
    with torch.no_grad():
        heights = prior.log_prob(torch.as_tensor(grid)[:, None]).exp().numpy()
    cdf = cumulative_simpson(heights, x=grid, initial=0)
    assert kstest(samples, lambda z: np.interp(z, grid, cdf)).pvalue > 1e-3


@every_prior
def test_moments_of_samples_equal_the_closed_form(name: str) -> None:
    prior = make(name, 3)
    torch.manual_seed(1)
    samples = prior.sample(100_000).numpy()
    mean, covariance = moments(name, prior)
    spread = covariance.diagonal().max()
    np.testing.assert_allclose(samples.mean(0), mean, atol=0.02 * math.sqrt(spread))
    np.testing.assert_allclose(np.cov(samples.T), covariance, atol=0.03 * spread)


@every_prior
@pytest.mark.parametrize("shape", [(), (7,), (2, 7)], ids=str)
def test_log_prob_keeps_leading_dimensions(name: str, shape: tuple[int, ...]) -> None:
    prior = make(name, 3)
    z = torch.linspace(-2, 2, 3 * math.prod(shape), dtype=torch.float64).reshape(*shape, 3)
    found = prior.log_prob(z)
    assert found.shape == shape
    one_by_one = torch.stack([prior.log_prob(row) for row in z.reshape(-1, 3)])
    torch.testing.assert_close(found.reshape(-1), one_by_one)


@every_prior
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_samples_have_the_shape_and_dtype_of_the_module(name: str, dtype: torch.dtype) -> None:
    prior = make(name, 3).to(dtype)
    samples = prior.sample(11)
    assert samples.shape == (11, 3)
    assert samples.dtype == dtype
    assert prior.log_prob(samples).dtype == dtype


@every_prior
def test_samples_carry_no_gradient(name: str) -> None:
    assert not make(name, 2).sample(4).requires_grad


@every_prior
def test_samples_are_drawn_from_torch_generator(name: str) -> None:
    prior = make(name, 2)
    draws = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        draws.append(prior.sample(5))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


@every_prior
@pytest.mark.parametrize(
    ("loc", "scale"),
    [(0.0, 1.0), (1.5, 0.3), (-4.0, 0.05)],
    ids=["broad", "narrow", "narrow and far"],
)
def test_kl_equals_quadrature(name: str, loc: float, scale: float) -> None:
    prior, n_samples = make(name, 1), 40_000
    qz = Normal(*(torch.full((1, 1), value, dtype=torch.float64) for value in (loc, scale)))
    torch.manual_seed(2)
    with torch.no_grad():
        found = prior.kl(qz, qz.sample((n_samples,)))
        grid = torch.linspace(loc - 9 * scale, loc + 9 * scale, 20_001, dtype=torch.float64)
        log_q = Normal(loc, scale).log_prob(grid)
        log_ratio = log_q - prior.log_prob(grid[:, None])
        expected = torch.trapezoid(log_q.exp() * log_ratio, grid).item()
        if name == "normal":
            assert found.shape == (1,)
            assert found.item() == pytest.approx(expected, abs=1e-6)
        else:
            assert found.shape == (n_samples, 1)
            assert found.mean().item() == pytest.approx(
                expected, abs=4 * found.std().item() / math.sqrt(n_samples)
            )


# -- normal --------------------------------------------------------------------------------------


def test_normal_log_prob_equals_scipy() -> None:
    z = np.random.default_rng(0).normal(scale=3, size=(6, 3))
    expected = multivariate_normal(np.zeros(3)).logpdf(z)
    found = NormalPrior(3).double().log_prob(torch.as_tensor(z))
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_normal_kl_is_the_closed_form_and_ignores_the_sample() -> None:
    rng = np.random.default_rng(0)
    loc, scale = rng.normal(size=(6, 3)), rng.gamma(2.0, size=(6, 3))
    qz = Normal(torch.as_tensor(loc), torch.as_tensor(scale))
    prior = NormalPrior(3).double()
    found = prior.kl(qz, qz.sample())
    expected = 0.5 * (scale**2 + loc**2 - 1 - 2 * np.log(scale)).sum(-1)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert torch.equal(found, prior.kl(qz, torch.full((6, 3), 1e3, dtype=torch.float64)))


# -- uniform -------------------------------------------------------------------------------------


@pytest.mark.parametrize("edge", [0.02, 0.3])
def test_uniform_density_is_flat_inside_and_half_at_the_edge(edge: float) -> None:
    prior = UniformPrior(1, edge).double()
    height = math.tanh(1 / (2 * edge)) / 2
    assert density(prior, 0.0) == pytest.approx(height, rel=1e-9)
    assert density(prior, 1.0) == pytest.approx(0.5 * (1 / (1 + math.exp(-2 / edge)) - 0.5))
    assert density(prior, -0.6) == pytest.approx(density(prior, 0.6), rel=1e-12)


def test_uniform_density_multiplies_over_dimensions() -> None:
    z = torch.tensor([[-0.9, 0.2, 1.04]], dtype=torch.float64)
    expected = math.prod(density(UniformPrior(1).double(), value) for value in z[0].tolist())
    assert UniformPrior(3).double().log_prob(z).exp().item() == pytest.approx(expected)


def test_uniform_tails_are_finite_in_float32_and_push_inwards() -> None:
    z = torch.tensor([[-1e3], [-5.0], [5.0], [1e3]], requires_grad=True)
    log_prob = UniformPrior(1).log_prob(z)
    (gradient,) = torch.autograd.grad(log_prob.sum(), z)
    assert torch.isfinite(log_prob).all()
    torch.testing.assert_close(gradient, -20 * z.sign())


# -- mixture -------------------------------------------------------------------------------------


def clusters(seed: int = 0) -> tuple[torch.Tensor, NDArray]:
    """Return three well separated clusters of unequal size and scale, and their names."""
    rng = np.random.default_rng(seed)
    names = rng.permutation(np.repeat([0, 1, 2], [100, 300, 600]))
    loc = np.array([[-20.0, 0.0], [0.0, 20.0], [20.0, -5.0]])
    scale = np.array([[0.3, 1.0], [0.6, 0.6], [1.5, 0.2]])
    return torch.as_tensor(loc[names] + scale[names] * rng.normal(size=(1000, 2))), names


def test_mixture_log_prob_equals_scipy() -> None:
    prior = random_mixture(3)
    z = np.random.default_rng(5).normal(scale=3, size=(6, 3))
    weights, loc, scale = (
        t.detach().numpy() for t in (prior.logits.softmax(0), prior.loc, prior.scale)
    )
    terms = [
        multivariate_normal(m, np.diag(s**2)).logpdf(z) for m, s in zip(loc, scale, strict=True)
    ]
    expected = logsumexp(terms, axis=0, b=weights[:, None])
    np.testing.assert_allclose(prior.log_prob(torch.as_tensor(z)).detach(), expected, rtol=1e-9)


@pytest.mark.parametrize("n_components", [1, 5])
def test_mixture_begins_as_the_standard_normal(n_components: int) -> None:
    prior = MixturePrior(3, n_components)
    z = torch.linspace(-4, 4, 30).reshape(10, 3)
    torch.testing.assert_close(prior.log_prob(z), NormalPrior(3).log_prob(z))
    torch.testing.assert_close(prior.scale, torch.ones(n_components, 3))
    assert not prior.is_started


@pytest.mark.parametrize("n_components", [0, -2])
def test_mixture_without_components_is_refused(n_components: int) -> None:
    with pytest.raises(ValueError, match=f"at least 1, not {n_components}"):
        MixturePrior(2, n_components)


@pytest.mark.parametrize("seed", range(5))
def test_start_puts_components_on_clusters(seed: int) -> None:
    codes, names = clusters(seed)
    prior = MixturePrior(2, 3).double()
    torch.manual_seed(seed)
    prior.start(codes)
    order = prior.loc[:, 0].argsort()
    members = [codes[torch.as_tensor(names == name)] for name in range(3)]
    options = {"rtol": 1e-9, "atol": 1e-9}
    torch.testing.assert_close(
        prior.loc[order].detach(), torch.stack([m.mean(0) for m in members]), **options
    )
    torch.testing.assert_close(
        prior.scale[order].detach(),
        torch.stack([m.std(0, correction=0) for m in members]),
        **options,
    )
    torch.testing.assert_close(
        prior.logits.softmax(0)[order].detach(),
        torch.tensor([0.1, 0.3, 0.6], dtype=torch.float64),
        **options,
    )
    assert prior.is_started


def test_start_fits_clusters_better_than_the_standard_normal() -> None:
    codes, _ = clusters()
    prior = MixturePrior(2, 3).double()
    before = prior.log_prob(codes).mean()
    prior.start(codes)
    assert prior.log_prob(codes).mean() > before + 50


def test_start_keeps_scales_off_zero() -> None:
    codes = torch.tensor([[-5.0, 0.0], [5.0, 0.0]], dtype=torch.float64).repeat(20, 1)
    prior = MixturePrior(2, 2).double()
    prior.start(codes)
    torch.testing.assert_close(prior.scale.detach(), torch.full_like(prior.scale, 0.1))


@pytest.mark.parametrize("n_distinct", [1, 2])
def test_start_leaves_the_prior_alone_with_too_few_distinct_codes(n_distinct: int) -> None:
    prior = MixturePrior(2, 3).double()
    before = {name: tensor.clone() for name, tensor in prior.state_dict().items()}
    prior.start(clusters()[0][:n_distinct].repeat(50, 1))
    assert not prior.is_started
    for name, tensor in prior.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_start_works_with_as_many_distinct_codes_as_components() -> None:
    codes = torch.tensor([[-9.0, 0.0], [0.0, 4.0], [9.0, 1.0]], dtype=torch.float64)
    prior = MixturePrior(2, 3).double()
    prior.start(codes.repeat(5, 1))
    torch.testing.assert_close(prior.loc[prior.loc[:, 0].argsort()].detach(), codes)
    assert prior.is_started


@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_start_stays_finite_when_k_means_leaves_a_cluster_empty(dtype: torch.dtype) -> None:
    codes = torch.tensor([[0.0], [1e-6], [2e-6], [1e4]], dtype=dtype).repeat(5, 1)
    prior = MixturePrior(1, 4).to(dtype)
    prior.start(codes)
    for name, parameter in prior.named_parameters():
        assert torch.isfinite(parameter).all(), name


def test_start_keeps_scales_accurate_far_from_the_origin_in_float32() -> None:
    codes = (clusters()[0] + 1000).float()
    near, far = MixturePrior(2, 3).double(), MixturePrior(2, 3)
    near.start(codes.double() - 1000)
    far.start(codes)
    scales = [prior.scale[prior.loc[:, 0].argsort()].detach() for prior in (near, far)]
    torch.testing.assert_close(scales[1].double(), scales[0], rtol=1e-3, atol=0)


def test_start_uses_a_random_subset_of_many_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MixturePrior, "MAX_CODES", 40)
    codes = torch.arange(1000, dtype=torch.float64)[:, None]
    prior = MixturePrior(1, 1).double()
    torch.manual_seed(0)
    prior.start(codes)
    mean = prior.loc.item()
    assert mean * 40 == pytest.approx(round(mean * 40), abs=1e-6)
    assert 350 < mean < 650
    assert mean != pytest.approx(codes.mean().item())


def test_start_is_fixed_by_the_torch_seed() -> None:
    codes = torch.as_tensor(np.random.default_rng(0).normal(size=(300, 2)))
    starts = []
    for seed in (5, 5, 6):
        prior = MixturePrior(2, 8).double()
        torch.manual_seed(seed)
        prior.start(codes)
        starts.append(prior.loc.detach())
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])


def test_start_leaves_numpy_generator_alone() -> None:
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    MixturePrior(2, 3).double().start(clusters()[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


def test_started_mixture_survives_a_state_dict() -> None:
    codes, _ = clusters()
    prior, other = (MixturePrior(2, 3).double() for _ in range(2))
    prior.start(codes)
    other.load_state_dict(prior.state_dict())
    assert other.is_started
    assert torch.equal(other.log_prob(codes), prior.log_prob(codes))
    torch.manual_seed(0)
    samples = prior.sample(5)
    torch.manual_seed(0)
    assert torch.equal(other.sample(5), samples)


def test_fresh_mixture_stays_fresh_through_a_state_dict() -> None:
    prior = MixturePrior(2, 3).double()
    prior.start(clusters()[0])
    prior.load_state_dict(MixturePrior(2, 3).state_dict())
    assert not prior.is_started


@pytest.mark.parametrize("objective", ["log_prob", "kl"])
def test_every_parameter_of_a_started_mixture_gets_a_gradient(objective: str) -> None:
    codes, _ = clusters()
    prior = MixturePrior(2, 3).double()
    prior.start(codes)
    z = codes + 0.1
    qz = Normal(codes, torch.ones_like(codes))
    (prior.log_prob(z) if objective == "log_prob" else prior.kl(qz, z)).sum().backward()
    assert {name for name, _ in prior.named_parameters()} == {"logits", "loc", "raw_scale"}
    for name, parameter in prior.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name
    assert (prior.loc.grad != 0).all()
    assert (prior.raw_scale.grad != 0).all()


def test_weights_of_a_mixture_get_a_gradient() -> None:
    prior = random_mixture(2)
    prior.log_prob(prior.loc.detach()[:1]).sum().backward()
    assert (prior.logits.grad != 0).all()


def test_codes_get_a_gradient_through_the_mixture() -> None:
    z = torch.tensor([[0.3, -0.2]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: random_mixture(2).log_prob(z), (z,))


@pytest.mark.parametrize("n_components", [1, 3])
def test_scales_have_a_floor(n_components: int) -> None:
    prior = MixturePrior(2, n_components)
    torch.nn.init.constant_(prior.raw_scale, -1e3)
    torch.testing.assert_close(
        prior.scale.detach(), torch.full((n_components, 2), MixturePrior.MIN_SCALE)
    )


# -- the anchor ----------------------------------------------------------------------------------


@pytest.mark.parametrize("anchor", [0.25, 0.5, 0.9])
def test_an_anchored_density_is_a_lower_bound(anchor: float) -> None:
    prior = random_mixture(1, anchor=anchor)
    total, _ = quad(
        lambda z: density(prior, z), -60, 60, points=np.linspace(-12, 12, 49), limit=500
    )
    assert 0 < total < 1


@pytest.mark.parametrize("anchor", [0.0, 0.5, 1.0])
def test_an_anchored_kl_is_the_mean_of_both(anchor: float) -> None:
    prior = random_mixture(3, anchor=anchor)
    qz = Normal(torch.randn(6, 3).double(), torch.rand(6, 3).double() + 0.1)
    z = qz.sample()
    mixture, normal = random_mixture(3), NormalPrior(3).double()
    expected = anchor * normal.kl(qz, z) + (1 - anchor) * mixture.kl(qz, z)
    torch.testing.assert_close(prior.kl(qz, z), expected)


def test_anchored_samples_follow_the_normalised_density() -> None:
    prior = random_mixture(1, anchor=0.5)
    grid = np.linspace(-40, 40, 80_001)
    with torch.no_grad():
        heights = prior.log_prob(torch.as_tensor(grid)[:, None]).exp().numpy()
    cdf = cumulative_simpson(heights, x=grid, initial=0)
    torch.manual_seed(0)
    # resampling repeats proposals: many calls of one code each, as a call of many would repeat
    samples = np.array([prior.sample(1).item() for _ in range(3_000)])
    error = np.abs(np.searchsorted(np.sort(samples), grid) / len(samples) - cdf / cdf[-1]).max()
    assert error < 0.1  # eight proposals leave a bias


@pytest.mark.parametrize("anchor", [0.3, 0.8])
def test_moments_of_anchored_samples_are_those_of_the_normalised_density(anchor: float) -> None:
    """By quadrature; many proposals at once leave hardly a bias, and weights of N/m to the a."""
    prior = random_mixture(1, seed=2, anchor=anchor)
    grid = np.linspace(-15, 15, 6_001)
    with torch.no_grad():
        heights = prior.log_prob(torch.as_tensor(grid)[:, None]).exp().numpy()
    heights /= trapezoid(heights, grid)
    mean = trapezoid(heights * grid, grid)
    variance = trapezoid(heights * (grid - mean) ** 2, grid)
    torch.manual_seed(0)
    samples = prior.sample(50_000).numpy()
    assert samples.mean() == pytest.approx(mean, abs=0.05)
    assert samples.var() == pytest.approx(variance, rel=0.05)


@pytest.mark.parametrize("anchor", [-0.1, 1.1])
def test_an_anchor_is_a_weight(anchor: float) -> None:
    with pytest.raises(ValueError, match="prior_anchor must be between 0 and 1"):
        MixturePrior(2, 3, anchor)


# -- what is easily overlooked -----------------------------------------------------------------


@every_prior
@pytest.mark.parametrize("shape", [(7,), (2, 7)], ids=str)
def test_kl_sums_over_the_dimensions_of_each_code(name: str, shape: tuple[int, ...]) -> None:
    prior = make(name, 3)
    qz = Normal(torch.randn(*shape, 3).double(), torch.rand(*shape, 3).double() + 0.1)
    z = qz.sample()
    found = prior.kl(qz, z)
    assert found.shape == shape
    cells = zip(*(t.reshape(-1, 3) for t in (qz.loc, qz.scale, z)), strict=True)
    one_by_one = [
        prior.kl(Normal(loc[None], scale[None]), code[None]) for loc, scale, code in cells
    ]
    torch.testing.assert_close(found.reshape(-1), torch.cat(one_by_one))


@pytest.mark.parametrize("name", ["normal", "uniform"])
def test_samples_lie_on_the_device_of_the_module(name: str) -> None:
    assert make(name, 3).to("meta").sample(2).device.type == "meta"


@pytest.mark.parametrize("draw", [0.0, 1.0])
def test_uniform_samples_are_finite_at_the_ends_of_the_generator(
    draw: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "rand", lambda *shape, **_: torch.full(shape, draw))
    samples = UniformPrior(2).sample(3)
    assert samples.isfinite().all()
    assert samples.abs().max() < 2


def test_numbers_are_as_documented() -> None:
    prior = MixturePrior(2)
    assert (prior.n_components, prior.anchor, UniformPrior(2).edge) == (20, 0.5, 0.05)
    assert (prior.MAX_CODES, prior.N_PROPOSALS) == (20_000, 8)
    assert (prior.MIN_SCALE, prior.START_SCALE) == (0.01, 0.1)


@pytest.mark.parametrize("kind", [NormalPrior, UniformPrior])
def test_priors_without_parameters_add_nothing_to_a_saved_model(kind: type[Prior]) -> None:
    assert not kind(3).state_dict()
