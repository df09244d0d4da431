"""The priors that codes are matched to: each can be sampled and held against a posterior."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.functional import logsigmoid, softplus

from dra_scvi._kernels.mixture import log_mixture_density
from dra_scvi._threads import own_threads

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor
    from torch.distributions import Normal


_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


class Prior(nn.Module, ABC):
    """A distribution over codes of `n_latent` dimensions."""

    def __init__(self, n_latent: int) -> None:
        super().__init__()
        self.n_latent = n_latent
        self._origin: Tensor
        self.register_buffer("_origin", torch.zeros(n_latent), persistent=False)

    @abstractmethod
    def sample(self, n_samples: int) -> Tensor:
        """Draw codes, shape ``(n_samples, n_latent)``, without a gradient."""

    @abstractmethod
    def log_prob(self, z: Tensor) -> Tensor:
        """Log density of codes ``(..., n_latent)``, shape ``(...,)``, in nats."""

    def kl(self, qz: Normal, z: Tensor) -> Tensor:
        """KL(q(z|x) ‖ p(z)) per cell in nats, estimated at the sampled codes `z`."""
        return _log_normal(z, qz.loc, qz.scale) - self.log_prob(z)


class NormalPrior(Prior):
    """The standard normal of scVI, with its Kullback-Leibler divergence in closed form."""

    def sample(self, n_samples: int) -> Tensor:
        """Draw codes, shape ``(n_samples, n_latent)``."""
        return torch.randn(
            n_samples, self.n_latent, dtype=self._origin.dtype, device=self._origin.device
        )

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density of codes ``(..., n_latent)``, shape ``(...,)``, in nats."""
        return -0.5 * z.square().sum(-1) - self.n_latent * _HALF_LOG_2PI

    def kl(self, qz: Normal, z: Tensor) -> Tensor:
        """KL(q(z|x) ‖ N(0, I)) per cell in nats, in closed form."""
        squares = qz.loc.square() + qz.scale.square()
        return (0.5 * (squares - 1) - qz.scale.log()).sum(-1)


class UniformPrior(Prior):
    r"""The uniform distribution on :math:`[-1, 1]^k`, its edge softened.

    The released program draws :math:`U(-1, 1)`. A Gaussian posterior has an infinite divergence
    from it, so that here each coordinate is the sum of such a draw and logistic noise of scale
    :math:`\tau`; its density is :math:`\tfrac12 [\sigma((z+1)/\tau) - \sigma((z-1)/\tau)]`.

    Parameters
    ----------
    n_latent
        Dimensions of a code.
    edge
        Scale τ of the logistic noise.

    Examples
    --------
    >>> bool(UniformPrior(2).sample(100).abs().max() < 3)
    True
    """

    def __init__(self, n_latent: int, edge: float = 0.05) -> None:
        super().__init__(n_latent)
        self.edge = edge

    def sample(self, n_samples: int) -> Tensor:
        """Draw codes, shape ``(n_samples, n_latent)``."""
        shape = (n_samples, self.n_latent)
        u, v = torch.rand(2, *shape, dtype=self._origin.dtype, device=self._origin.device).clamp(
            1e-6, 1 - 1e-6
        )
        return 2 * u - 1 + self.edge * torch.logit(v)

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density of codes ``(..., n_latent)``, shape ``(...,)``, in nats."""
        # σ(a) - σ(b) = σ(a) σ(-b) (1 - e^{b-a}) keeps its accuracy in both tails
        a, b = (z + 1) / self.edge, (z - 1) / self.edge
        width = math.log(-math.expm1(-2 / self.edge)) - math.log(2.0)
        return (logsigmoid(a) + logsigmoid(-b) + width).sum(-1)


class MixturePrior(Prior):
    r"""A learned mixture of diagonal Gaussians m(z), anchored to the standard normal.

    .. math:: p(z) \propto N(z; 0, I)^a \, m(z)^{1 - a}

    A mixture alone lets clusters drift apart at no cost: distances between them, and with them
    batches or subtypes of one type, then mean little. The anchor a keeps a price on distance. The
    constant that is left out is at most 1 (Hölder), so that what is called KL and log density
    here are an upper and a lower bound, and the evidence lower bound remains one.

    All components begin as N(0, I), so that training starts as with a normal prior; `start`
    then places them among the codes.

    Parameters
    ----------
    n_latent
        Dimensions of a code.
    n_components
        Number of Gaussians.
    anchor
        Weight a of the standard normal: 0 for the mixture alone, 1 for the normal alone.

    Examples
    --------
    >>> import torch
    >>> prior = MixturePrior(2, n_components=3)
    >>> torch.allclose(prior.log_prob(torch.ones(1, 2)), NormalPrior(2).log_prob(torch.ones(1, 2)))
    True
    """

    MIN_SCALE = 1e-2
    START_SCALE = 0.1
    MAX_CODES = 20_000
    N_PROPOSALS = 8

    def __init__(self, n_latent: int, n_components: int = 20, anchor: float = 0.5) -> None:
        super().__init__(n_latent)
        if n_components < 1:
            raise ValueError(f"n_components must be at least 1, not {n_components}.")
        if not 0 <= anchor <= 1:
            raise ValueError(f"prior_anchor must be between 0 and 1, not {anchor}.")
        self.n_components = n_components
        self.anchor = anchor
        self._normal = NormalPrior(n_latent)
        self.logits = nn.Parameter(torch.zeros(n_components))
        self.loc = nn.Parameter(torch.zeros(n_components, n_latent))
        unit = _inverse_softplus(torch.tensor(1.0 - self.MIN_SCALE))
        self.raw_scale = nn.Parameter(torch.full((n_components, n_latent), float(unit)))
        self._started: Tensor
        self.register_buffer("_started", torch.tensor(False))

    @property
    def is_started(self) -> bool:
        """Whether the components have been placed among codes."""
        return bool(self._started)

    @property
    def scale(self) -> Tensor:
        """Standard deviations, shape ``(n_components, n_latent)``."""
        return softplus(self.raw_scale) + self.MIN_SCALE

    @torch.no_grad()
    def sample(self, n_samples: int) -> Tensor:
        """Draw codes, shape ``(n_samples, n_latent)``, without a gradient.

        By importance resampling: of `N_PROPOSALS` times as many draws from the mixture, with
        weights ``(N / m)^a``.
        """
        n_proposals = n_samples * (self.N_PROPOSALS if self.anchor else 1)
        component = torch.multinomial(self.logits.softmax(-1), n_proposals, replacement=True)
        loc, scale = self.loc[component], self.scale[component]
        z = loc + scale * torch.randn_like(loc)
        if not self.anchor:
            return z
        log_weight = self.anchor * (self._normal.log_prob(z) - self.log_mixture(z))
        return z[torch.multinomial(log_weight.softmax(-1), n_samples, replacement=True)]

    def log_mixture(self, z: Tensor) -> Tensor:
        """Log density of the mixture alone at codes ``(..., n_latent)``, shape ``(...,)``."""
        if z.ndim == 2 and z.device.type == "cpu" and z.dtype == self.loc.dtype == torch.float32:
            scale = self.scale
            return log_mixture_density(z, self._log_constants(scale), self.loc, scale)
        return torch.logsumexp(self._log_joint(z), -1)

    @torch.no_grad()
    def responsibilities(self, z: Tensor) -> Tensor:
        """Probability that a code is of each component, shape ``(..., n_components)``."""
        return self._log_joint(z).softmax(-1)

    def _log_joint(self, z: Tensor) -> Tensor:
        """Log density of codes and components together, shape ``(..., n_components)``."""
        scale = self.scale
        distance = (z.unsqueeze(-2) - self.loc) / scale
        return self._log_constants(scale) - 0.5 * distance.square().sum(-1)

    def _log_constants(self, scale: Tensor) -> Tensor:
        """Log weights of the components less the logarithms of their normalisers."""
        log_normaliser = scale.log().sum(-1) + self.n_latent * _HALF_LOG_2PI
        return self.logits.log_softmax(-1) - log_normaliser

    def log_prob(self, z: Tensor) -> Tensor:
        """Lower bound of the log density of codes ``(..., n_latent)``, shape ``(...,)``."""
        return self.anchor * self._normal.log_prob(z) + (1 - self.anchor) * self.log_mixture(z)

    def kl(self, qz: Normal, z: Tensor) -> Tensor:
        """Return ``a KL(q ‖ N(0, I)) + (1 - a) (ln q(z) - ln m(z))`` per cell in nats."""
        to_mixture = _log_normal(z, qz.loc, qz.scale) - self.log_mixture(z)
        return self.anchor * self._normal.kl(qz, z) + (1 - self.anchor) * to_mixture

    @torch.no_grad()
    def start(self, codes: Tensor) -> None:
        """Place the components at the k-means centres of `codes`, shape ``(n_cells, n_latent)``.

        Weights and scales are those of the clusters. Of many codes a random subset is used; with
        fewer distinct ones than components the prior is left as it is.
        """
        from sklearn.cluster import KMeans

        chosen = torch.randperm(len(codes))[: self.MAX_CODES].to(codes.device)
        codes = codes[chosen].double().cpu()
        if len(torch.unique(codes, dim=0)) < self.n_components:
            return
        seed = int(torch.randint(2**31 - 1, ()))
        with own_threads():  # scikit-learn's pool may have been loaded just now
            kmeans = KMeans(self.n_components, n_init=1, random_state=seed).fit(codes.numpy())
        labels = torch.as_tensor(kmeans.labels_, dtype=torch.long)
        members = torch.nn.functional.one_hot(labels, self.n_components).to(codes)
        sizes = members.sum(0)
        if not sizes.all():  # codes too close together for k-means to tell apart
            return
        loc = members.T @ codes / sizes[:, None]
        variance = members.T @ (codes - loc[labels]).square() / sizes[:, None]
        scale = variance.sqrt().clamp_min(self.START_SCALE)
        self.logits.copy_(sizes.log() - math.log(len(codes)))
        self.loc.copy_(loc)
        self.raw_scale.copy_(_inverse_softplus(scale - self.MIN_SCALE))
        self._started.fill_(True)


def _log_normal(z: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    """Log density of a diagonal Gaussian, summed over dimensions."""
    squares = ((z - loc) / scale).square()
    return -(0.5 * squares + scale.log() + _HALF_LOG_2PI).sum(-1)


def _inverse_softplus(value: Tensor) -> Tensor:
    return value + torch.log(-torch.expm1(-value))


def effective_prior(arguments: Mapping[str, Any]) -> str:
    """Name the prior of a model from its arguments, where `None` is the model's own choice.

    >>> effective_prior({"prior": None}), effective_prior({"prior": "uniform"})
    ('mixture', 'uniform')
    """
    return arguments["prior"] or default_prior(arguments.get("latent_distribution", "normal"))


def default_prior(latent_distribution: str) -> str:
    """Name the prior of a model that was given none.

    >>> default_prior("normal"), default_prior("ln")
    ('mixture', 'normal')
    """
    return "mixture" if latent_distribution == "normal" else "normal"


PRIORS: dict[str, type[Prior]] = {
    "normal": NormalPrior,
    "uniform": UniformPrior,
    "mixture": MixturePrior,
}
