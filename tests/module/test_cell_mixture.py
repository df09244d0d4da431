"""Tests of the mixture of codes and depths against populations whose answer is known."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from dra_scvi._module.cell_mixture import N_COMPONENTS, Population

if TYPE_CHECKING:
    from collections.abc import Callable


def two_types(n_cells: int = 4_000) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes of two types, depths that rise with the code and fall by 1 in batch 1, batches.

    Batch 0 has both types, one cell in four of the second; batch 1 the first one alone.
    """
    generator = torch.Generator().manual_seed(0)
    batches = torch.arange(n_cells) % 2
    second = (batches == 0) & (torch.arange(n_cells) % 8 == 0)
    noise = torch.randn(n_cells, 3, generator=generator)
    codes = noise @ torch.tensor([[1.0, 0.9, 0.0], [0.0, 0.4, 0.0], [0.0, 0.0, 0.2]])
    codes[second] += torch.tensor([8.0, 0.0, 4.0])
    depths = 6 + 0.5 * codes[:, 1] - 1.0 * batches
    depths += 0.1 * torch.randn(n_cells, generator=generator)
    return codes, depths, batches


@pytest.fixture(scope="module")
def fitted() -> Population:
    codes, depths, batches = two_types()
    population = Population(3, 2)
    population.fit(codes, depths, batches, batches)
    return population


def drawn_of(population: Population, batch: int, n: int = 4_000) -> tuple[np.ndarray, np.ndarray]:
    torch.manual_seed(1)
    drawn = population.sample(torch.full((n,), batch))
    return drawn.codes.numpy(), drawn.log_depths.numpy()


def test_draws_have_the_moments_of_the_cells(fitted: Population) -> None:
    codes, depths, batches = two_types()
    for batch in (0, 1):
        z, depth = drawn_of(fitted, batch)
        own = torch.cat([codes, depths[:, None]], 1)[batches == batch].numpy()
        drawn = np.column_stack([z, depth])
        np.testing.assert_allclose(drawn.mean(0), own.mean(0), atol=0.12)
        np.testing.assert_allclose(np.cov(drawn.T), np.cov(own.T), rtol=0.12, atol=0.08)


def test_a_type_that_a_batch_lacks_is_not_drawn_for_it(fitted: Population) -> None:
    of_both, of_one = (drawn_of(fitted, batch)[0][:, 2] > 2 for batch in (0, 1))
    assert of_both.mean() == pytest.approx(0.25, abs=0.03)
    assert of_one.mean() < 0.002


def test_depth_goes_with_the_code_and_the_batch(fitted: Population) -> None:
    between = fitted.offsets.diff(dim=1)[:, 0].numpy()
    np.testing.assert_allclose(between, [0, 0, 0, -1], atol=0.1)
    for batch in (0, 1):
        z, depth = drawn_of(fitted, batch)
        residual = depth - (6 + 0.5 * z[:, 1] - batch)
        assert abs(residual.mean()) < 0.05
        assert residual.std() < 0.25


def test_batches_that_were_not_mixed_keep_their_places() -> None:
    codes, depths, batches = two_types()
    codes[batches == 1, 1] += 2.0
    population = Population(3, 2)
    population.fit(codes, depths, batches, batches)
    for batch in (0, 1):
        z, _ = drawn_of(population, batch)
        np.testing.assert_allclose(z.mean(0), codes[batches == batch].mean(0), atol=0.12)
        np.testing.assert_allclose(z.std(0), codes[batches == batch].std(0), rtol=0.25)


def test_depths_of_batches_far_apart_are_an_offset(fitted: Population) -> None:
    codes, depths, batches = two_types()
    population = Population(3, 2)
    population.fit(codes, depths - 30.0 * batches, batches, batches)
    between = population.offsets.diff(dim=1)[:, 0].numpy()
    np.testing.assert_allclose(between, [0, 0, 0, -31], atol=0.1)
    torch.testing.assert_close(population.loc, fitted.loc, rtol=0, atol=0.1)


def test_batches_that_share_one_gaussian_differ_by_their_means() -> None:
    codes, batches = torch.randn(100, 2), torch.arange(100) % 2
    codes += torch.tensor([3.0, -1.0]) * batches[:, None]
    depths = torch.randn(100) - 5.0 * batches
    population = Population(2, 2)
    population.fit(codes, depths, batches, batches)
    features = torch.cat([codes, depths[:, None]], 1)
    between = features[1::2].mean(0) - features[::2].mean(0)
    torch.testing.assert_close(population.offsets.diff(dim=1)[:, 0], between)


def test_many_types_have_gaussians_of_their_own() -> None:
    """And a state has as many places for them as in all versions."""
    places, batches = 20.0 * torch.arange(6).repeat(200), torch.zeros(1200, dtype=torch.long)
    population = Population(1, 1)
    population.fit(places[:, None] + torch.randn(1200, 1), places, batches, batches)
    drawn = population.sample(batches).codes[:, 0]
    off = (drawn - 20 * (drawn / 20).round()).abs()
    assert (off < 5).float().mean() > 0.75
    assert population.state_dict()["shares"].shape == (40, 1)


def test_components_are_those_that_cells_came_from(fitted: Population) -> None:
    torch.manual_seed(2)
    drawn = fitted.sample(torch.zeros(3_000, dtype=torch.long))
    for k in drawn.components.unique():
        members = drawn.codes[drawn.components == k]
        if len(members) < 30:
            continue
        spread = fitted.scale_tril[k].square().sum(1).sqrt()[:-1]
        error = (members.mean(0) - fitted.loc[k, :-1] - fitted.offsets[:-1, 0]).abs() / spread
        assert (error < 5 / len(members) ** 0.5).all()


def test_shares_of_batches_are_those_of_all_cells() -> None:
    codes, depths, batches = two_types(400)
    population = Population(3, 3)
    population.fit(codes, depths, batches, torch.tensor([0] * 30 + [1] * 10))
    np.testing.assert_allclose(population.sizes.numpy(), [0.75, 0.25, 0.0], atol=1e-6)
    assert population.offsets[:, 2].abs().max() < 1e-9


@pytest.mark.parametrize("spoiled", ["code", "depth"])
def test_cells_that_are_not_finite_are_passed_over(spoiled: str) -> None:
    codes, depths, batches = two_types(400)
    expected, found = Population(3, 2), Population(3, 2)
    expected.fit(codes[1:], depths[1:], batches[1:], batches)
    (codes[0] if spoiled == "code" else depths[:1]).fill_(-torch.inf)
    found.fit(codes, depths, batches, batches)
    for one, other in zip(expected.buffers(), found.buffers(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("n_cells", [0, 1, 2, 5])
def test_next_to_no_cells_leave_finite_numbers(n_cells: int) -> None:
    population = Population(3, 1)
    codes, batches = torch.ones(n_cells, 3), torch.zeros(n_cells, dtype=torch.long)
    population.fit(codes, torch.zeros(n_cells), batches, torch.zeros(9, dtype=torch.long))
    assert all(bool(buffer.isfinite().all()) for buffer in population.buffers())
    assert bool(population.sizes.any()) == (n_cells > 1)
    if n_cells > 1:
        torch.testing.assert_close(population.sample(batches).codes, codes, atol=1e-2, rtol=0)


def test_a_second_fit_leaves_nothing_of_the_first(fitted: Population) -> None:
    codes, depths, batches = two_types(200)
    first, second = Population(3, 2), Population(3, 2)
    first.load_state_dict(fitted.state_dict())
    for population in (first, second):
        population.fit(codes, depths, batches, batches)
    assert int((second.shares.sum(1) > 0).sum()) < N_COMPONENTS
    torch.manual_seed(3)
    one = first.sample(batches)
    torch.manual_seed(3)
    assert torch.equal(one.codes, second.sample(batches).codes)


def test_states_without_a_population_load() -> None:
    Population(3, 2).load_state_dict({})


@pytest.mark.parametrize("ask", [Population.state_dict, copy.deepcopy, lambda p: p.sizes])
def test_what_is_kept_is_fitted_to_when_it_is_asked_for(
    ask: Callable[[Population], Any],
) -> None:
    codes, depths, batches = two_types(400)
    eager, late = Population(3, 2), Population(3, 2)
    eager.fit(codes, depths, batches, batches)
    late.keep(codes, depths, batches, batches)
    assert not late.shares.any()
    asked = ask(late)
    late = asked if isinstance(asked, Population) else late
    for name, expected in eager.state_dict().items():
        assert torch.equal(late.state_dict()[name], expected), name


def test_a_loaded_state_replaces_what_is_kept(fitted: Population) -> None:
    codes, depths, batches = two_types(400)
    population = Population(3, 2)
    population.keep(codes, depths, batches, batches)
    population.load_state_dict(fitted.state_dict())
    assert torch.equal(population.sizes, fitted.sizes)
    assert torch.equal(population.loc, fitted.loc)


def test_threads_that_ask_at_once_get_one_mixture() -> None:
    population = Population(n_latent=2, n_batch=1)
    batches = torch.zeros(3000, dtype=torch.long)
    population.keep(torch.randn(3000, 2), torch.randn(3000), batches, batches)
    with ThreadPoolExecutor(4) as threads:
        sizes = list(threads.map(lambda _: float(population.sizes.sum()), range(8)))
    assert sizes == pytest.approx([1.0] * 8)
