"""Tests of the mean of the codes around a code: against references, and what it spares."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from sklearn.kernel_ridge import KernelRidge
from sklearn.neighbors import NearestNeighbors

from dra_scvi import DRA
from dra_scvi._module.neighborhood import (
    CHUNK,
    END_OF_REACH,
    FULL_REACH,
    N_CENTRES,
    OWN_WEIGHT,
    RIDGE,
    Neighborhood,
    local_means,
    local_sum,
    radii,
)
from tests.helpers import QUIET

if TYPE_CHECKING:
    from anndata import AnnData
    from torch import Tensor


def clusters(n_cells: int = 600, n_latent: int = 10, noise: float = 1.0) -> tuple[Tensor, Tensor]:
    """Codes around three states, and the states; cells take turns."""
    rng = np.random.default_rng(0)
    states = 3.0 * rng.normal(size=(3, n_latent))[np.arange(n_cells) % 3]
    codes = states + noise * rng.normal(size=states.shape)
    return torch.as_tensor(codes), torch.as_tensor(states)


def squared_error(codes: Tensor, truth: Tensor) -> float:
    return float((codes - truth).square().mean())


# -- the mean around a code --------------------------------------------------------------------


def test_the_sum_is_that_of_an_explicit_loop() -> None:
    codes, _ = clusters(90)
    members = codes[:60]
    distances, indices = NearestNeighbors(n_neighbors=8).fit(members).kneighbors(codes)
    radius = NearestNeighbors(n_neighbors=8).fit(members).kneighbors(members)[0][:, -1]
    sums, weights = local_sum(codes, members, n_neighbors=7)
    for cell in range(len(codes)):
        weight = 1 - (distances[cell, :7] / distances[cell, 7]) ** 2
        outside = distances[cell, :7] / radius[indices[cell, :7]]
        gate = np.interp(outside, [1.0, END_OF_REACH], [1.0, 0.0])
        weight = weight / weight.sum() * gate
        np.testing.assert_allclose(weights[cell].item(), weight.sum(), rtol=1e-6, atol=1e-9)
        expected = weight @ members.numpy()[indices[cell, :7]]
        np.testing.assert_allclose(sums[cell].numpy(), expected, rtol=1e-6, atol=1e-6)


def test_radii_are_distances_to_the_nth_other_code() -> None:
    codes, _ = clusters(50)
    expected = NearestNeighbors(n_neighbors=6).fit(codes).kneighbors(codes)[0][:, -1]
    np.testing.assert_allclose(radii(codes, n_neighbors=5), expected, rtol=1e-6)


@pytest.mark.parametrize(("n_neighbors", "each"), [(30, 10), (20, 6), (3, 3), (3000, 20)])
def test_neighbours_are_divided_among_batches(n_neighbors: int, each: int) -> None:
    """Of three batches a third each: at least three cells, at most a tenth of the batch."""
    codes, _ = clusters(600)
    groups = torch.arange(600) % 3
    total, weight = OWN_WEIGHT * codes, OWN_WEIGHT
    for group in range(3):
        sums, weights = local_sum(codes, codes[groups == group], each)
        total, weight = total + sums, weight + weights
    torch.testing.assert_close(local_means(codes, groups, n_neighbors), total / weight)


def test_batches_of_fewer_than_ten_cells_have_no_vote() -> None:
    codes, _ = clusters(209)
    groups = (torch.arange(209) >= 200).double()
    sums, weights = local_sum(codes, codes[:200], 10)
    expected = (OWN_WEIGHT * codes + sums) / (OWN_WEIGHT + weights)
    torch.testing.assert_close(local_means(codes, groups, n_neighbors=20), expected)


def test_noise_is_taken_out() -> None:
    codes, states = clusters()
    means = local_means(codes, torch.zeros(600), n_neighbors=30)
    assert squared_error(means, states) < 0.5 * squared_error(codes, states)


def test_every_batch_has_one_vote_whatever_its_size() -> None:
    """Two batches of one state, one nine times as large: its codes meet in the middle."""
    rng = np.random.default_rng(0)
    groups = torch.as_tensor((np.arange(1000) % 10 == 0).astype(float))
    shift = torch.zeros(10, dtype=torch.double)
    shift[0] = 1.0
    codes = torch.as_tensor(rng.normal(size=(1000, 10))) + groups[:, None] * shift
    told, untold = (local_means(codes, g, n_neighbors=30) for g in (groups, 0 * groups))

    def apart(codes: Tensor) -> Tensor:
        return codes[groups == 1, 0].mean() - codes[groups == 0, 0].mean()

    assert apart(told) < 0.75 * apart(codes)
    assert told[:, 0].mean() > untold[:, 0].mean() + 0.1  # not where the large batch lies


def test_a_state_that_one_batch_lacks_is_not_drawn_to_another_state() -> None:
    codes, states = clusters(600, noise=0.5)
    state = torch.arange(600) % 3
    groups = (torch.arange(600) % 2).double()
    kept = ~((state == 2) & (groups == 1))  # batch 1 has the states 0 and 1 only
    means = local_means(codes[kept], groups[kept], n_neighbors=30)
    lacking = state[kept] == 2
    assert (torch.cdist(means[lacking], states[:3]).argmin(1) == 2).all()
    error = squared_error(means[lacking], states[kept][lacking])
    assert error < 0.6 * squared_error(codes[kept][lacking], states[kept][lacking])


def test_few_cells_of_a_state_stay_together() -> None:
    """Five cells far from three hundred others, a tenth of the neighbourhood at most."""
    rng = np.random.default_rng(0)
    common, rare = rng.normal(size=(300, 5)), 20.0 + rng.normal(size=(5, 5))
    codes = torch.as_tensor(np.vstack([common, rare]))
    means = local_means(codes, torch.zeros(305), n_neighbors=30)
    assert (means[300:].mean(0) - codes[300:].mean(0)).abs().max() < 1.0


@pytest.mark.parametrize("n_cells", [1, 2, 9, 10, 11])
def test_few_cells_of_a_batch_are_left_alone_or_averaged(n_cells: int) -> None:
    codes, _ = clusters(n_cells)
    means = local_means(codes, torch.zeros(n_cells), n_neighbors=30)
    assert means.isfinite().all()
    if n_cells < 10:
        torch.testing.assert_close(means, codes)


def test_one_cell_in_a_batch_of_its_own_changes_little() -> None:
    codes, _ = clusters(300)
    groups = torch.zeros(300)
    groups[0] = 1
    means = local_means(codes, groups, n_neighbors=30)
    assert means.isfinite().all()


def test_equal_codes_stay_equal() -> None:
    codes = torch.ones(100, 4)
    torch.testing.assert_close(local_means(codes, torch.zeros(100), n_neighbors=30), codes)


# -- the map ---------------------------------------------------------------------------------


def test_the_map_is_kernel_ridge_regression() -> None:
    """With as many centres as cells: K (K'K + c I)^-1 K' y, here by an eigendecomposition."""
    codes, _ = clusters(200)
    neighborhood = Neighborhood(10, n_neighbors=15).double()
    neighborhood.fit(codes, torch.zeros(200))
    shift = (local_means(codes, torch.zeros(200), 15) - codes).numpy()
    gamma = 0.5 / float(radii(codes, 15).median()) ** 2
    kernel = KernelRidge(kernel="rbf", gamma=gamma)._get_kernel(codes.numpy())
    values, vectors = np.linalg.eigh(kernel)
    ridge = RIDGE * (kernel**2).sum(0).mean()
    expected = (
        codes.numpy() + vectors @ np.diag(values**2 / (values**2 + ridge)) @ vectors.T @ shift
    )
    np.testing.assert_allclose(neighborhood(codes), expected, rtol=1e-5, atol=1e-5)


def test_a_map_of_many_codes_is_that_of_each() -> None:
    """More codes than are mapped at once, the last of them a rest, in their order."""
    codes, _ = clusters(300)
    neighborhood = Neighborhood(10, n_neighbors=15)
    neighborhood.fit(codes, torch.zeros(300))
    many = torch.randn(2 * CHUNK + 7, 10)
    found = neighborhood(many)
    assert found.shape == many.shape
    for rows in ([0, 1, 2], [CHUNK - 1, CHUNK, CHUNK + 1], [2 * CHUNK - 1, 2 * CHUNK, -1]):
        torch.testing.assert_close(found[rows], neighborhood(many[rows]), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, many, atol=1e-3)


def test_cells_that_it_has_not_seen_are_moved_alike() -> None:
    codes, states = clusters(4000)
    neighborhood = Neighborhood(10, n_neighbors=30)
    neighborhood.fit(codes[:2000], torch.zeros(2000))
    moved = neighborhood(codes[2000:].float())
    assert squared_error(moved, states[2000:]) < 0.6 * squared_error(codes[2000:], states[2000:])


def test_codes_like_none_of_the_training_cells_stay_where_they_are() -> None:
    codes, _ = clusters()
    neighborhood = Neighborhood(10, n_neighbors=30)
    neighborhood.fit(codes, torch.zeros(600))
    far = codes.float() + 100.0
    torch.testing.assert_close(neighborhood(far), far)


def test_it_is_continuous() -> None:
    codes, _ = clusters()
    neighborhood = Neighborhood(10, n_neighbors=30)
    neighborhood.fit(codes, torch.zeros(600))
    moved, nearby = neighborhood(codes.float()), neighborhood(codes.float() + 1e-4)
    assert (moved - nearby).abs().max() < 1e-2


@pytest.mark.parametrize(
    ("n_cells", "n_neighbors"), [(600, 0), (9, 30), (1, 30)], ids=["none", "few", "one"]
)
def test_without_neighbours_it_is_the_identity(n_cells: int, n_neighbors: int) -> None:
    codes, _ = clusters(n_cells)
    neighborhood = Neighborhood(10, n_neighbors)
    neighborhood.fit(codes, torch.zeros(n_cells))
    assert torch.equal(neighborhood(codes.float()), codes.float())


def test_fitting_again_forgets_what_was_before() -> None:
    codes, _ = clusters(1000)
    again, once = (Neighborhood(10, n_neighbors=30) for _ in range(2))
    again.fit(codes + 5.0, torch.zeros(1000))
    again.fit(codes[:300], torch.zeros(300))
    once.fit(codes[:300], torch.zeros(300))
    assert torch.equal(again(codes.float()), once(codes.float()))


def test_equal_codes_teach_nothing() -> None:
    neighborhood = Neighborhood(4, n_neighbors=30)
    neighborhood.fit(torch.ones(100, 4), torch.zeros(100))
    assert torch.equal(neighborhood(torch.ones(5, 4)), torch.ones(5, 4))


def test_a_negative_number_of_neighbours_is_refused() -> None:
    with pytest.raises(ValueError, match="n_neighbors must not be negative, not -1"):
        Neighborhood(4, n_neighbors=-1)


# -- in a model ------------------------------------------------------------------------------


def test_codes_are_moved_then_put_on_the_axes(adata: AnnData) -> None:
    DRA.setup_anndata(adata, batch_key="batch")
    model = DRA(adata, n_latent=4, n_neighbors=30, expression_axes=True)
    model.train(2, **QUIET)
    means, _ = model.get_latent_representation(return_dist=True)
    module = model.module
    expected = module.embedding.neighborhood(torch.from_numpy(means)) @ module.embedding.axes
    np.testing.assert_allclose(model.get_latent_representation(), expected, rtol=1e-5, atol=1e-6)
    assert not np.allclose(expected, means @ module.embedding.axes.numpy(), rtol=1e-3)


def test_each_code_is_its_own_whoever_else_is_embedded(adata: AnnData) -> None:
    DRA.setup_anndata(adata)
    model = DRA(adata, n_latent=4, n_neighbors=30)
    model.train(2, **QUIET)
    codes = model.get_latent_representation()
    few = model.get_latent_representation(indices=[5, 0, 7])
    np.testing.assert_allclose(few, codes[[5, 0, 7]], rtol=1e-4, atol=1e-5)


def test_a_code_that_is_drawn_is_not_moved(adata: AnnData) -> None:
    DRA.setup_anndata(adata)
    model = DRA(adata, n_latent=4, n_neighbors=30)
    model.train(2, **QUIET)
    torch.manual_seed(0)
    drawn = model.get_latent_representation(give_mean=False)
    model.module.embedding.neighborhood.weights.zero_()
    torch.manual_seed(0)
    np.testing.assert_array_equal(model.get_latent_representation(give_mean=False), drawn)


def test_codes_are_the_means_of_the_posterior_unless_asked_otherwise(adata: AnnData) -> None:
    DRA.setup_anndata(adata, batch_key="batch")
    model = DRA(adata, n_latent=4)
    model.train(2, **QUIET)
    means, _ = model.get_latent_representation(return_dist=True)
    np.testing.assert_array_equal(model.get_latent_representation(), means)


def test_what_was_learned_is_saved(adata: AnnData, tmp_path: object) -> None:
    DRA.setup_anndata(adata)
    model = DRA(adata, n_latent=4, n_neighbors=30)
    model.train(2, **QUIET)
    model.save(f"{tmp_path}/model")
    loaded = DRA.load(f"{tmp_path}/model", adata)
    assert torch.equal(
        loaded.module.embedding.neighborhood.weights, model.module.embedding.neighborhood.weights
    )
    assert model.module.embedding.neighborhood.weights.abs().max() > 0


def test_a_state_of_an_earlier_version_has_none(adata: AnnData) -> None:
    DRA.setup_anndata(adata)
    module = DRA(adata, n_latent=4).module
    state = module.state_dict()
    earlier = {key: value for key, value in state.items() if not key.startswith("neighborhood.")}
    module.load_state_dict(earlier)
    assert not module.embedding.neighborhood.weights.any()


def test_the_weight_of_the_code_itself_and_the_centres_are_as_documented() -> None:
    assert OWN_WEIGHT == 0.1
    assert (FULL_REACH, END_OF_REACH) == (1.0, 1.4)
    assert N_CENTRES == 512
