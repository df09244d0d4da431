"""The compiled density of a mixture, against torch.distributions in double precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from dra_scvi._kernels.mixture import log_mixture_density
from dra_scvi._module.priors import MixturePrior

Parts = tuple[Tensor, Tensor, Tensor, Tensor]


def parts(n_cells: int = 50, n_components: int = 20, n_latent: int = 10, seed: int = 0) -> Parts:
    """Draw codes, and log weights, places and scales of a mixture, of differing magnitudes."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw)

    loc, scale = 3 * normal(n_components, n_latent), (normal(n_components, n_latent) - 1).exp()
    near = torch.randint(n_components, (n_cells,), generator=draw)
    z = loc[near] + 2 * scale[near] * normal(n_cells, n_latent)
    return z, normal(n_components).log_softmax(-1), loc, scale


def compiled(z: Tensor, log_weights: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    normaliser = (scale.log() + 0.5 * np.log(2 * np.pi)).sum(-1)
    return log_mixture_density(z, log_weights.log_softmax(-1) - normaliser, loc, scale)


def oracle(z: Tensor, log_weights: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    components = Independent(Normal(loc, scale), 1)
    return MixtureSameFamily(Categorical(logits=log_weights), components).log_prob(z)


@pytest.mark.parametrize("sizes", [(50, 20, 10), (1, 1, 1), (7, 3, 2), (33, 9, 17)])
def test_density_and_its_derivatives(sizes: tuple[int, int, int]) -> None:
    single = [part.requires_grad_() for part in parts(*sizes)]
    double = [part.detach().double().requires_grad_() for part in single]
    weights = torch.linspace(-1, 2, sizes[0])
    found, expected = compiled(*single), oracle(*double)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    for one, other in zip(
        torch.autograd.grad((found * weights).sum(), single),
        torch.autograd.grad((expected * weights.double()).sum(), double),
        strict=True,
    ):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-4 * other.abs().max())


def test_far_from_all_components() -> None:
    z, *mixture = parts(2, 3, 2)
    z = z + torch.tensor([[1e3, 0.0], [-1e5, 1e5]])
    double = [part.double() for part in (z, *mixture)]
    torch.testing.assert_close(compiled(z, *mixture).double(), oracle(*double), rtol=1e-5, atol=0)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("part", range(3))
def test_what_is_not_finite_comes_through(value: float, part: int) -> None:
    given = list(parts(4, 3, 2))
    given[part] = given[part].clone()
    given[part].view(-1)[-1] = value
    assert not torch.isfinite(log_mixture_density(*given)[-1])


def test_arrays_that_do_not_fit_are_refused() -> None:
    z, constants, loc, scale = parts(4, 3, 2)
    for wrong in (
        (z[:, :1], constants, loc, scale),
        (z, constants[:2], loc, scale),
        (z, constants, loc[:2], scale),
        (z, constants, loc, scale[:, :1]),
    ):
        with pytest.raises(ValueError, match="has the shape"):
            log_mixture_density(*wrong)
    with pytest.raises(TypeError, match="z holds float64"):
        log_mixture_density(z.double(), constants, loc, scale)


def test_it_cannot_be_differentiated_twice() -> None:
    given = [part.requires_grad_() for part in parts(4, 3, 2)]
    (slope,) = torch.autograd.grad(compiled(*given).square().sum(), given[0], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


def test_the_prior_takes_it_in_single_precision_alone() -> None:
    torch.manual_seed(0)
    prior = MixturePrior(4, n_components=5)
    prior.start(torch.randn(200, 4))
    z = 2 * torch.randn(6, 4)
    single, double = prior.log_mixture(z), prior.double().log_mixture(z.double())
    assert "LogMixture" in type(single.grad_fn).__name__
    assert "LogMixture" not in type(double.grad_fn).__name__
    torch.testing.assert_close(single.double(), double, rtol=1e-5, atol=1e-5)
