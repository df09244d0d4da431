r"""Log density of codes under a mixture of diagonal Gaussians, compiled for CPUs.

.. math::
    \ln m(z) = \ln \sum_k e^{c_k - \frac12 \sum_l d_{kl}^2}, \quad d_{kl} = (z_l - μ_{kl}) / σ_{kl}

with :math:`c_k` the logarithms of weight and normaliser. A training step asks for it twice, of few
codes: in PyTorch most of that is the cost of starting some fifty operations.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.autograd.function import once_differentiable

from dra_scvi._kernels.parts import as_array, check_array
from dra_scvi._kernels.series import exp_negative, fast_log, jit

if TYPE_CHECKING:
    from torch import Tensor


def log_mixture_density(z: Tensor, constants: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    """Log density of codes `z`, ``(n, n_latent)``, in nats, shape ``(n,)``; single precision.

    Once differentiable in everything. `constants`, ``(n_components,)``, are the log weights less
    the logarithms of the normalisers; `loc` and `scale` have the shape
    ``(n_components, n_latent)``.

    >>> zeros = torch.zeros(1, 2)
    >>> log_mixture_density(zeros, torch.zeros(1), zeros, torch.ones(1, 2))
    tensor([0.])
    """
    return _LogMixture.apply(z, constants, loc, scale)


class _LogMixture(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, constants: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
        codes, logs = as_array(z), as_array(constants)
        centres, inverse = as_array(loc.T), as_array(1 / scale.T)
        n, n_latent = z.shape
        n_components = len(constants)
        check_array("z", codes, (n, n_latent))
        check_array("constants", logs, (n_components,))
        check_array("loc", centres, (n_latent, n_components))
        check_array("scale", inverse, (n_latent, n_components))
        log_density = np.empty(n, np.float32)
        shares = np.empty((n, n_components), np.float32)
        _densities(codes, logs, centres, inverse, shares, log_density)
        ctx.arrays = codes, centres, inverse, shares
        return torch.from_numpy(log_density)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        z, loc, inverse, shares = ctx.arrays
        weighted = shares * as_array(grad)[:, None]
        d_z, d_loc, d_scale = np.empty_like(z), np.zeros_like(loc), np.zeros_like(loc)
        _derivatives(z, loc, inverse, weighted, d_z, d_loc, d_scale)
        results = d_z, weighted.sum(0), d_loc.T, d_scale.T
        return tuple(torch.from_numpy(result) for result in results)


@jit
def _densities(
    z: Any, constants: Any, loc: Any, inverse: Any, shares: Any, log_density: Any
) -> None:
    """Log densities, and the share of each component in them."""
    n_latent, n_components = loc.shape
    for i in range(z.shape[0]):
        log_joint = shares[i]
        for k in range(n_components):
            log_joint[k] = constants[k]
        for j in range(n_latent):
            for k in range(n_components):
                d = (z[i, j] - loc[j, k]) * inverse[j, k]
                log_joint[k] -= np.float32(0.5) * d * d
        peak = log_joint[0]
        unsound = np.float32(0.0)  # NaN where anything was not finite
        for k in range(n_components):
            peak = max(peak, log_joint[k])
            unsound += np.float32(0.0) * log_joint[k]
        total = np.float32(0.0)
        for k in range(n_components):
            log_joint[k] = exp_negative(log_joint[k] - peak)
            total += log_joint[k]
        for k in range(n_components):
            log_joint[k] /= total
        log_density[i] = peak + fast_log(total) + unsound


@jit
def _derivatives(
    z: Any, loc: Any, inverse: Any, weighted: Any, d_z: Any, d_loc: Any, d_scale: Any
) -> None:
    """Differentiate the sum of log densities; shares have been multiplied by the gradients."""
    n_latent, n_components = loc.shape
    for i in range(z.shape[0]):
        for j in range(n_latent):
            total = np.float32(0.0)
            for k in range(n_components):
                d = (z[i, j] - loc[j, k]) * inverse[j, k]
                slope = weighted[i, k] * inverse[j, k]
                total -= slope * d
                d_loc[j, k] += slope * d
                d_scale[j, k] += slope * d * d
            d_z[i, j] = total
