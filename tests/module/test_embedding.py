"""What may be done to codes after training: nothing unless asked; parts in order; old names."""

from __future__ import annotations

import torch

from dra_scvi._module.axes import expression_axes, tempered
from dra_scvi._module.embedding import Embedding, with_present_names


def training_cells() -> tuple[torch.Tensor, ...]:
    means = torch.randn(300, 4) * torch.tensor([3.0, 2.0, 1.0, 0.5])
    samples = means + 0.1 * torch.randn(300, 4)
    return samples, samples @ torch.randn(4, 9), means, torch.arange(300) % 2


def fitted(
    n_neighbors: int = 30, expression_axes: bool = True
) -> tuple[Embedding, tuple[torch.Tensor, ...]]:
    embedding, cells = Embedding(4, n_neighbors, expression_axes), training_cells()
    assert embedding.fit(*cells)
    return embedding, cells


def test_codes_are_averaged_then_put_on_the_axes() -> None:
    embedding, (samples, expression, means, batches) = fitted()
    averages = embedding.neighborhood(means)
    assert not torch.equal(averages, means)
    axes = tempered(expression_axes(samples, expression, averages, batches), averages, batches)
    torch.testing.assert_close(embedding.axes, axes.to(means))
    torch.testing.assert_close(embedding(means), averages @ embedding.axes)


def test_a_drawn_code_is_only_put_on_the_axes() -> None:
    embedding, (samples, *_) = fitted()
    torch.testing.assert_close(embedding(samples, average=False), samples @ embedding.axes)


def test_without_neighbours_codes_are_only_put_on_the_axes() -> None:
    embedding, (_, _, means, _) = fitted(n_neighbors=0)
    torch.testing.assert_close(embedding(means), means @ embedding.axes)


def test_without_axes_codes_are_only_averaged() -> None:
    embedding, (_, _, means, _) = fitted(expression_axes=False)
    torch.testing.assert_close(embedding(means), embedding.neighborhood(means))
    assert not torch.equal(embedding(means), means)


def test_without_either_codes_stay_and_what_was_learned_before_is_forgotten() -> None:
    embedding, (_, _, means, _) = fitted(n_neighbors=0, expression_axes=False)
    assert torch.equal(embedding(means), means)
    former, cells = fitted()
    embedding.load_state_dict(former.state_dict())
    assert torch.equal(embedding(means), former(means))
    assert embedding.fit(*cells)
    assert torch.equal(embedding(means), means)


def test_what_is_not_finite_leaves_the_map_as_it_was() -> None:
    for number in range(3):
        embedding = Embedding(4, 30, expression_axes=True)
        before = {name: value.clone() for name, value in embedding.state_dict().items()}
        cells = list(training_cells())
        cells[number][7, 1] = torch.nan
        assert not embedding.fit(*cells)
        for name, value in embedding.state_dict().items():
            assert torch.equal(value, before[name]), (number, name)


def test_names_of_earlier_versions_are_renamed_and_others_left() -> None:
    state = {"m.code_axes": 1, "m.neighborhood.radius": 2, "m.prior.logits": 3, "code_axes": 4}
    with_present_names(state, "m.")
    renamed = {"m.embedding.axes": 1, "m.embedding.neighborhood.radius": 2}
    assert state == {**renamed, "m.prior.logits": 3, "code_axes": 4}
    with_present_names(state)
    assert state == {**renamed, "m.prior.logits": 3, "embedding.axes": 4}
