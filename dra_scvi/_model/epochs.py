"""How long a model is trained where nobody says so."""

from __future__ import annotations

import math

MAX_EPOCHS = 400
MIN_STEPS = 1_000
MIN_EPOCHS = 4
ROOMY_N_LATENT = 8
LONGER_WITH_BATCHES = 2.0


def default_max_epochs(
    n_obs: int, batch_size: int = 128, n_latent: int = 10, n_batch: int = 1
) -> int:
    """Epochs of training: an eighth of scVI's, but at least 1,000 steps.

    And at least four epochs, in the second of which a mixture prior starts. Few dimensions, into
    which cells have to be folded, take longer in proportion, and batches take time to mix. Nine
    in ten of the `n_obs` cells are trained on.

    >>> [default_max_epochs(n_obs) for n_obs in (700, 4_000, 20_000, 1_000_000)]
    [200, 50, 50, 4]
    >>> default_max_epochs(4_000, n_latent=2), default_max_epochs(4_000, n_batch=3)
    (200, 100)
    """
    steps_per_epoch = math.ceil(0.9 * n_obs / batch_size)
    enough = math.ceil(MIN_STEPS / steps_per_epoch)
    eighth_of_scvi = round(MAX_EPOCHS / 8 * min(1.0, 20_000 / n_obs))
    longer = max(1.0, ROOMY_N_LATENT / n_latent, LONGER_WITH_BATCHES if n_batch > 1 else 1.0)
    return min(MAX_EPOCHS, round(longer * max(enough, eighth_of_scvi, MIN_EPOCHS)))
