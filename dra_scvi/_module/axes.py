"""Axes of codes: their directions and lengths, from the expression that codes stand for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


def expression_axes(samples: Tensor, expression: Tensor, means: Tensor, groups: Tensor) -> Tensor:
    r"""Axes of codes on which Euclidean distance is that of the expression they predict.

    The scale of a latent dimension is free: a decoder undoes any stretch of its input, and
    training leaves each direction with a length of its own, different from seed to seed. With A
    the linear response of expression to codes, by least squares, codes are as far apart in
    expression as :math:`\lVert (z - z') A \rVert`: the pullback of its metric, averaged over
    cells. The axes M keep that, :math:`M M^T = A A^T`, and are the principal components of the
    codes by it, in order.

    Parameters
    ----------
    samples
        Codes drawn from the posterior of each cell, shape ``(n_cells, n_latent)``. Drawn, since
        decoders ignore dimensions that carry noise alone, while means there hardly differ.
    expression
        What the decoder makes of them, shape ``(n_cells, n_genes)``.
    means
        Posterior means, shape ``(n_cells, n_latent)``, whose principal components are taken.
    groups
        Batch of each cell, shape ``(n_cells,)``: differences between batches do not count.

    Returns
    -------
    Matrix M, shape ``(n_latent, n_latent)``, to multiply codes with from the right; each column
    has its largest entry positive.

    References
    ----------
    Arvanitidis, Hansen & Hauberg, Latent space oddity, ICLR 2018, equation 4.

    Examples
    --------
    >>> codes = torch.randn(100, 2, dtype=torch.float64)
    >>> response = torch.tensor([[3.0, 0.0, 0.0], [0.0, 0.0, 0.1]], dtype=torch.float64)
    >>> axes = expression_axes(codes, codes @ response, codes, torch.zeros(100))
    >>> torch.allclose(axes @ axes.T, torch.diag(torch.tensor([9.0, 0.01]).double()))
    True
    """
    samples, means = (_within(rows.double().cpu(), groups.cpu()) for rows in (samples, means))
    # differences from the mean alone count in the product, so that expression stays as it is
    inverse = torch.linalg.pinv(samples).to(expression.dtype)
    response = (inverse @ expression.cpu()).double()
    left, singular, _ = torch.linalg.svd(response, full_matrices=False)
    # fewer genes than dimensions leave dimensions that predict nothing
    axes = torch.nn.functional.pad(left * singular, (0, len(response) - len(singular)))
    codes = means @ axes
    _, rotation = torch.linalg.eigh(codes.T @ codes)
    axes = axes @ rotation.flip(-1)
    largest = axes.gather(0, axes.abs().argmax(0, keepdim=True))
    return axes * torch.where(largest < 0, -1.0, 1.0)


def tempered(axes: Tensor, means: Tensor, groups: Tensor) -> Tensor:
    r"""Axes whose lengths are halfway, on a log scale, between their own and equal ones.

    .. math:: m_j \sqrt{\sigma_1 / \sigma_j}

    for axes :math:`m_j` along which codes have standard deviations :math:`\sigma_j`, the first
    the largest. What changes most genes, often the depth or an unnamed batch, need not be what
    tells cells apart, and what hardly changes any need not matter.

    Parameters
    ----------
    axes
        Principal axes, shape ``(n_latent, n_latent)``, in columns.
    means
        Codes, shape ``(n_cells, n_latent)``.
    groups
        Batch of each cell, shape ``(n_cells,)``: differences between batches do not count.

    Returns
    -------
    Shape ``(n_latent, n_latent)``. An axis on which codes are equal stays as it is.

    Examples
    --------
    >>> codes = torch.tensor([[9.0, 0.0], [0.0, 1.0], [-9.0, 0.0], [0.0, -1.0]])
    >>> tempered(torch.eye(2), codes, torch.zeros(4))
    tensor([[1., 0.],
            [0., 3.]])
    """
    codes = _within(means.double().cpu(), groups.cpu()) @ axes.double().cpu()
    lengths = codes.std(0)
    share = lengths / lengths.max()
    tiny = torch.finfo(axes.dtype).eps
    return axes * torch.where(share > tiny, share, 1.0).rsqrt().to(axes)


def changes_along(decode: Callable[[Tensor], Tensor], codes: Tensor, steps: Tensor) -> Tensor:
    r"""Mean change of what codes stand for, over a step that has a code in its middle.

    .. math:: \frac{1}{n} \sum_i f(z_i + s_j / 2) - f(z_i - s_j / 2)

    Parameters
    ----------
    decode
        From codes, shape ``(n_cells, n_latent)``, to expression, shape ``(n_cells, n_genes)``.
    codes
        Codes, shape ``(n_cells, n_latent)``.
    steps
        Steps, shape ``(n_steps, n_latent)``.

    Returns
    -------
    Shape ``(n_steps, n_genes)``.

    Examples
    --------
    >>> response = torch.tensor([[3.0, 0.0], [0.0, -1.0]])
    >>> changes = changes_along(lambda codes: codes @ response, torch.randn(9, 2), torch.eye(2))
    >>> torch.allclose(changes, response, atol=1e-5)
    True
    """
    changes = [(decode(codes + step / 2) - decode(codes - step / 2)).mean(0) for step in steps]
    return torch.stack(changes)


def _within(rows: Tensor, groups: Tensor) -> Tensor:
    """Differences from the mean of the group."""
    _, group = groups.unique(return_inverse=True)
    members = torch.nn.functional.one_hot(group).to(rows)
    return rows - members @ (members.T @ rows / members.sum(0)[:, None])
