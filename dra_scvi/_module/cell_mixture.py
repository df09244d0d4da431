"""The codes and depths that training cells have, as a mixture from which new ones are drawn."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import nn

from dra_scvi._threads import own_threads

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

# of one size whatever the data, so that any state can be loaded
N_COMPONENTS = 40
# a Gaussian of full covariance that is fitted to fewer describes these cells, not their kind
CELLS_PER_COMPONENT = 60
# added to variances, as a share of those of all cells
RIDGE = 1e-2
TINY = 1e-6
LEAST_DRAWS = 2
# whoever asks for a mixture that another thread is fitting waits for it
_FITTING = threading.Lock()


class Drawn(NamedTuple):
    """Codes ``(n_cells, n_latent)``, logarithms of depths, and components, ``(n_cells,)``."""

    codes: Tensor
    log_depths: Tensor
    components: Tensor


class Population(nn.Module):
    r"""A mixture of Gaussians over codes and depths together, fitted after training.

    .. math:: p((z, \ln \ell) - o_b \mid b) = \sum_k \pi_{k|b} \, N(\mu_k, \Sigma_k)

    with covariances of their own, so that depth goes with the code. Batches share the Gaussians;
    each has its own shares of them, and an offset: what sets its cells apart within Gaussians,
    where training has not mixed batches to the end. The prior that a model is trained with has to
    hold codes in place while they are learned, and is a rougher picture of where they came to lie.

    Parameters
    ----------
    n_latent
        Dimensions of a code.
    n_batch
        Number of batches.

    References
    ----------
    Ghosh, P. et al. (2020). From variational to deterministic autoencoders. ICLR: ex-post density
    estimation.

    Examples
    --------
    >>> import torch
    >>> population = Population(n_latent=2, n_batch=1)
    >>> codes, batches = torch.randn(500, 2), torch.zeros(500, dtype=torch.long)
    >>> population.fit(codes, codes[:, 0], batches, batches)
    >>> drawn = population.sample(batches)
    >>> bool(torch.corrcoef(torch.stack([drawn.codes[:, 0], drawn.log_depths]))[0, 1] > 0.95)
    True
    """

    def __init__(self, n_latent: int, n_batch: int) -> None:
        super().__init__()
        n_batch, n_features = max(n_batch, 1), n_latent + 1
        self.shares: Tensor
        self.offsets: Tensor
        self.loc: Tensor
        self.scale_tril: Tensor
        # batches come last, where scArches makes room for those of a query
        self.register_buffer("shares", torch.zeros(N_COMPONENTS, n_batch))
        self.register_buffer("offsets", torch.zeros(n_features, n_batch))
        self.register_buffer("loc", torch.zeros(N_COMPONENTS, n_features))
        self.register_buffer("scale_tril", torch.zeros(N_COMPONENTS, n_features, n_features))
        self._cells: tuple[Tensor, Tensor, Tensor, Tensor] | None = None

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name, value in self.named_buffers():  # models saved by earlier versions have none
            state_dict.setdefault(prefix + name, value)
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._cells = None

    def _save_to_state_dict(self, *args: Any) -> None:
        self.fit_to_kept()
        super()._save_to_state_dict(*args)

    def keep(
        self, codes: Tensor, log_depths: Tensor, batches: Tensor, all_batches: Tensor
    ) -> None:
        """Keep cells to :meth:`fit` to once the mixture is asked for, or its state.

        That takes seconds, and most of those who train a model neither generate nor save.
        """
        self._cells = codes, log_depths, batches, all_batches

    def fit_to_kept(self) -> None:
        """Fit to what was kept, if anything was since the last time."""
        with _FITTING:
            if self._cells is not None:
                self.fit(*self._cells)
                self._cells = None

    @property
    def sizes(self) -> Tensor:
        """Share of each batch among the cells that this was fitted to, all 0 before."""
        self.fit_to_kept()
        return self.shares.sum(0).cpu()

    def fit(self, codes: Tensor, log_depths: Tensor, batches: Tensor, all_batches: Tensor) -> None:
        """Learn from draws of the posterior of cells; those not finite are passed over.

        There are codes, log depths and batches of draws, maybe several of a cell, and batches of
        every cell, which tell how large batches are. Less than two draws teach nothing.
        """
        finite = torch.isfinite(codes).all(1) & torch.isfinite(log_depths)
        z, depth = codes[finite].double().numpy(), log_depths[finite].double().numpy()
        batch = batches[finite].numpy()
        self.shares.zero_()
        if len(z) < LEAST_DRAWS:
            return
        n_batch = self.shares.shape[1]
        of_batch = np.eye(n_batch)[batch]
        offsets = np.zeros(self.offsets.shape)
        # depths of batches may be far apart, which would take Gaussians of their own
        predictors = np.column_stack([of_batch, z])
        offsets[-1] = np.linalg.lstsq(predictors, depth, rcond=None)[0][:n_batch]
        for is_first in (True, False):
            features = np.column_stack([z, depth]) - offsets[:, batch].T
            centre, spread = features.mean(0), np.maximum(features.std(0), TINY)
            scaled = (features - centre) / spread
            weights, means, covariances = _gaussians(scaled, len(all_batches))
            if not is_first or len(np.unique(batch)) == 1:
                break
            residuals = of_batch.T @ (scaled - weights @ means)
            offsets += (residuals / np.maximum(of_batch.sum(0), 1)[:, None] * spread).T
        members = of_batch.T @ weights
        members /= np.maximum(members.sum(1, keepdims=True), TINY)
        sizes = torch.bincount(all_batches, minlength=n_batch).numpy() / len(all_batches)
        for buffer, values in (
            (self.shares, (members * sizes[:, None]).T),
            (self.loc, means * spread + centre),
            (self.scale_tril, np.linalg.cholesky(covariances) * spread[:, None]),
        ):
            buffer[: len(means)] = torch.from_numpy(values).to(buffer)
        self.offsets.copy_(torch.from_numpy(offsets))

    @torch.no_grad()
    def sample(self, batches: Tensor) -> Drawn:
        """Draw a cell of each batch that is named, all of which this was fitted to."""
        self.fit_to_kept()
        shares, batches = self.shares.cpu().double(), batches.cpu()
        components = torch.empty_like(batches)
        for batch in batches.unique():
            chosen = batches == batch
            n = int(chosen.sum())
            components[chosen] = torch.multinomial(shares[:, batch], n, replacement=True)
        loc, scale_tril = self.loc.cpu(), self.scale_tril.cpu()
        features = loc[components]
        noise = torch.randn_like(features)
        for k in components.unique():
            chosen = components == k
            features[chosen] += noise[chosen] @ scale_tril[k].T
        features = features + self.offsets.cpu()[:, batches].T
        return Drawn(features[:, :-1], features[:, -1], components)


def _gaussians(
    features: NDArray[Any], n_cells: int
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Fit a mixture; return how far each row belongs to each Gaussian, means and covariances."""
    import warnings

    from sklearn.mixture import GaussianMixture

    n_components = min(N_COMPONENTS, max(1, n_cells // CELLS_PER_COMPONENT))
    n_components = min(n_components, len(np.unique(features, axis=0)))
    mixture = GaussianMixture(n_components, reg_covar=RIDGE, random_state=0)
    with own_threads(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a fit that is near its end is good enough
        mixture.fit(features)
        return mixture.predict_proba(features), mixture.means_, mixture.covariances_
