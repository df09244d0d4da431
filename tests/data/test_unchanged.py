"""How often registered counts are compared: in every call, and in each call of a getter once."""

from __future__ import annotations

from typing import Any

import pytest

from dra_scvi._data import unchanged
from dra_scvi._exceptions import InvalidCountsError
from tests.helpers import cells, fit


def test_compared_in_every_getter_once(monkeypatch: pytest.MonkeyPatch) -> None:
    adata = cells()
    model = fit(adata)
    compared, digest = [], unchanged._digest

    def counted(matrix: Any) -> Any:
        compared.append(matrix)
        return digest(matrix)

    monkeypatch.setattr(unchanged, "_digest", counted)
    for number in (1, 2):
        model.get_aggregated_posterior()
        assert len(compared) == number


def test_a_block_that_ended_is_no_excuse() -> None:
    adata = cells()
    snapshot = unchanged.Snapshot(adata, None)
    with unchanged.comparing_once():
        snapshot.check(adata)
        with unchanged.comparing_once():
            snapshot.check(adata)
    adata.X.data[3] += 1
    with pytest.raises(InvalidCountsError), unchanged.comparing_once():
        snapshot.check(adata)
    with pytest.raises(InvalidCountsError):
        snapshot.check(adata)
