"""Tests of the released program's losses against plain NumPy."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dra_scvi._published.plan import released_distance, released_generator_loss

if TYPE_CHECKING:
    from torch import Tensor


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
