"""The settings of the published program, as data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Preset:
    """Arguments of a model class and of its `train`.

    Parameters
    ----------
    model
        Arguments of the constructor.
    train
        Arguments of `train`.
    """

    model: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)


_DEEP = {"n_hidden": [512] * 4, "n_hidden_discriminator": [32] * 4}
_SHALLOW = {"n_hidden": [512], "n_hidden_discriminator": [512]}
_NETWORKS = {2: _DEEP, 10: _SHALLOW, 20: _SHALLOW}
_LEARNING_RATES = {2: 8e-4, 10: 7e-4, 20: 7e-4}


def published(n_latent: int = 10) -> Preset:
    """Return settings of the published runs, for :class:`~dra_scvi.PublishedDRA`.

    Those of the released program's instructions for the Zeisel data; they give none for 20
    dimensions, for which an independent port took those for 10.

    Parameters
    ----------
    n_latent
        Dimensions of the latent space: 2, 10 or 20.

    Returns
    -------
    Arguments of the constructor and of `train`.

    Raises
    ------
    ValueError
        For any other number of dimensions.

    References
    ----------
    Lin, Mukherjee & Kannan, BMC Bioinformatics 21 (2020) 64, Table 2, and the instructions of the
    released program, https://github.com/eugenelin1/DRA.

    Examples
    --------
    >>> published(10).model["n_hidden"], published(10).train["plan_kwargs"]["lr"]
    ([512], 0.0007)
    """
    if n_latent not in _NETWORKS:
        raise ValueError(
            f"There are published settings for 2, 10 and 20 latent dimensions, not for {n_latent}."
        )
    networks = {name: list(widths) for name, widths in _NETWORKS[n_latent].items()}
    return Preset(
        model={"n_latent": n_latent, **networks, "dropout_rate": 0.1, "leak": 0.2},
        train={
            "max_epochs": 200,
            "batch_size": 128,
            "plan_kwargs": {"lr": _LEARNING_RATES[n_latent], "beta1": 0.9},
        },
    )
