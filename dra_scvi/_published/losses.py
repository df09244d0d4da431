"""Losses of the released program's discriminators and of its generator."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


def released_distance(real: Tensor, fake: Tensor) -> Tensor:
    r"""Loss of both discriminators in the released program, which they minimise.

    .. math:: -\ln \left( \sum_i \sqrt{\left| \frac{a_i}{\sum a} \frac{b_i}{\sum b} \right|} +
        10^{-10} \right)

    for outputs `a` on the real and `b` on the fake rows, paired by their position. Both are
    unbounded linear outputs divided by a signed sum, so that this is no divergence: it falls
    without limit as a sum nears 0.

    Parameters
    ----------
    real
        Discriminator output on real rows, shape ``(n_cells,)``.
    fake
        Discriminator output on fake rows, shape ``(n_cells,)``.

    Examples
    --------
    >>> import torch
    >>> abs(released_distance(torch.ones(4), torch.ones(4)).item()) < 1e-6
    True
    """
    coefficient = torch.sqrt(torch.abs(real / real.sum() * (fake / fake.sum()))).sum()
    return -torch.log(coefficient + 1e-10)


def released_generator_loss(fake: Tensor) -> Tensor:
    r"""Adversarial loss of the encoder in the released program, blind to the prior's samples.

    .. math:: -\ln \left( \sum_i \sqrt{\left| b_i / \sum b \right|} + 10^{-10} \right)

    Parameters
    ----------
    fake
        Discriminator output on codes, shape ``(n_cells,)``.

    Examples
    --------
    >>> import torch
    >>> round(released_generator_loss(torch.ones(128)).item(), 3)  # its optimum, -ln(128) / 2
    -2.426
    """
    return -torch.log(torch.sqrt(torch.abs(fake / fake.sum())).sum() + 1e-10)
