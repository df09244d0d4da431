"""Composition of batches: running shares, weights that make them alike, what is not pulled in."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dra_scvi._module.composition import MAX_WEIGHT, MOMENTUM, Composition
from dra_scvi._module.matching import DIVERGENCES
from dra_scvi._module.priors import MixturePrior


def cells(shares: list[list[float]], n_each: int = 400) -> tuple[torch.Tensor, torch.Tensor]:
    """Cells of known components, as many of each as its share in each batch says."""
    components, batches = [], []
    for batch, row in enumerate(shares):
        for component, share in enumerate(row):
            n = round(share * n_each)
            components += [component] * n
            batches += [batch] * n
    order = torch.randperm(len(batches))
    one_hot = torch.eye(len(shares[0]))[torch.tensor(components)]
    return one_hot[order], torch.tensor(batches)[order]


def learned(shares: list[list[float]], n_steps: int = 300) -> Composition:
    composition = Composition(len(shares), len(shares[0]))
    for _ in range(n_steps):
        composition.update(*cells(shares))
    return composition


def test_shares_are_running_means() -> None:
    responsibilities, batch = cells([[0.75, 0.25], [0.5, 0.5]])
    composition = Composition(2, 2)
    composition.update(responsibilities, batch)
    expected = 0.5 + MOMENTUM * (np.array([[0.75, 0.25], [0.5, 0.5]]) - 0.5)
    np.testing.assert_allclose(composition.shares, expected, rtol=1e-6)


def test_a_batch_without_cells_keeps_its_shares() -> None:
    composition = learned([[0.75, 0.25], [0.5, 0.5]])
    before = composition.shares.clone()
    composition.update(torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
    assert torch.equal(composition.shares[1], before[1])
    assert not torch.equal(composition.shares[0], before[0])


def test_weighted_batches_have_one_composition() -> None:
    shares = [[0.6, 0.4], [0.3, 0.7]]
    composition, (responsibilities, batch) = learned(shares), cells(shares)
    weight = composition.weights(responsibilities, batch)
    for member in (0, 1):
        mine = batch == member
        assert weight[mine].mean().item() == pytest.approx(1.0, abs=1e-5)
        weighted = (weight[mine, None] * responsibilities[mine]).mean(0)
        np.testing.assert_allclose(weighted, [0.45, 0.55], atol=1e-5)


def test_weights_of_any_minibatch_have_mean_1_in_each_batch() -> None:
    composition = Composition(2, 2)
    composition.shares.copy_(torch.tensor([[0.9, 0.1], [0.2, 0.8]]))
    cells_of = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    weight = composition.weights(cells_of, torch.tensor([0, 0, 0, 1]))
    assert weight[:3].mean().item() == pytest.approx(1)
    assert weight[3].item() == pytest.approx(1)
    assert (weight[2] / weight[0]).item() == pytest.approx((0.45 / 0.1) / (0.55 / 0.9))


def test_one_cell_counts_as_one() -> None:
    composition = Composition(2, 2)
    composition.update(torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
    expected = torch.tensor([[0.525, 0.475], [0.5, 0.5]])
    torch.testing.assert_close(composition.shares, expected)
    assert MAX_WEIGHT == 5


def test_what_a_batch_lacks_has_a_bounded_weight() -> None:
    shares = [[0.5, 0.5], [1.0, 0.0]]
    composition = learned(shares)
    alone, batch = torch.eye(2), torch.tensor([1, 1])
    weight = composition.weights(alone, batch)
    assert (weight[1] / weight[0]).item() == pytest.approx(MAX_WEIGHT / 0.75, rel=1e-3)


def test_equal_components_weigh_alike() -> None:
    prior, composition = MixturePrior(3, n_components=4), Composition(2, 4)
    z, batch = torch.randn(50, 3), torch.arange(50) % 2
    composition.update(prior.responsibilities(z), batch)
    torch.testing.assert_close(
        composition.weights(prior.responsibilities(z), batch), torch.ones(50)
    )


@pytest.mark.parametrize("name", DIVERGENCES)
def test_a_weight_is_a_number_of_copies(name: str) -> None:
    h_real, h_fake = torch.randn(6, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    copies = torch.tensor([1, 2, 3])
    weight = copies / copies.double().mean()
    expected = DIVERGENCES[name](h_real, h_fake.repeat_interleave(copies))
    torch.testing.assert_close(DIVERGENCES[name](h_real, h_fake, weight), expected)


def test_responsibilities_are_those_of_torch_distributions() -> None:
    from torch.distributions import Independent, Normal

    prior = MixturePrior(2, n_components=3)
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.normal_()
    z = torch.randn(5, 2)
    each = Independent(Normal(prior.loc, prior.scale), 1).log_prob(z[:, None])
    expected = (prior.logits.log_softmax(-1) + each).softmax(-1)
    torch.testing.assert_close(prior.responsibilities(z), expected.detach())
