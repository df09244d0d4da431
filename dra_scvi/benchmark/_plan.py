"""Which runs a comparison makes: dimensions, seeds and epochs, checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dra_scvi._argument_kinds import check_number, check_seed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dra_scvi.benchmark._cells import Cells
    from dra_scvi.benchmark._models import Contender


QUICK_CELLS = 1_000
QUICK_EPOCHS = 50
QUICK_N_LATENT = 10


@dataclass(frozen=True)
class Plan:
    """Which runs are to be made."""

    n_latent: tuple[int, ...]
    seeds: tuple[int, ...]
    max_epochs: int | None
    max_cells: int | None

    @classmethod
    def checked(
        cls,
        n_latent: int | Sequence[int],
        seeds: int | Sequence[int],
        max_epochs: int | None,
        quick: bool,
    ) -> Plan:
        """Check what was asked for, of which a quick look takes the first seed alone."""
        dims = _listed("n_latent", n_latent)
        drawn = _listed("seeds", seeds)
        if isinstance(seeds, int | np.integer):
            check_number(seeds, "seeds", least=1)
            drawn = list(range(seeds))
        _check_numbers("n_latent", dims, least=1)
        _check_numbers("seeds", drawn, least=0)
        check_seed(max(drawn), "seeds")
        if max_epochs is not None:
            _check_numbers("max_epochs", [max_epochs], least=1)
        if quick:
            return cls((QUICK_N_LATENT,), (int(drawn[0]),), QUICK_EPOCHS, QUICK_CELLS)
        return cls(tuple(map(int, dims)), tuple(map(int, drawn)), max_epochs, None)


def _listed(argument: str, values: Any) -> list[Any]:
    """Make a list of one number or several."""
    if isinstance(values, int | np.integer):
        return [values]
    if isinstance(values, str) or not hasattr(values, "__iter__"):
        raise TypeError(f"{argument} takes a whole number or a list of them, not {values!r}")
    return list(values)


def _check_numbers(argument: str, values: Sequence[Any], least: int) -> None:
    if not values or len(set(values)) < len(values):
        raise ValueError(f"{argument} must name at least one number, and none twice.")
    for value in values:
        if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < least:
            raise ValueError(f"{argument} takes whole numbers from {least}, not {value!r}.")


def check_rank(contenders: Sequence[Contender], plan: Plan, cells: Cells) -> None:
    """Refuse dimensions that linear models cannot have, before any of them runs."""
    limit = min(cells.counts.shape)
    if max(plan.n_latent) >= limit and any(c.is_linear for c in contenders):
        raise ValueError(
            f"n_latent={max(plan.n_latent)}: PCA and factor analysis of {cells.counts.n_obs} "
            f"cells and {cells.counts.n_vars} genes have fewer than {limit} dimensions."
        )
