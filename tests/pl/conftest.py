"""What tests of plots share: no trace of a figure, and what was shown."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib

matplotlib.use("Agg")

import pytest
import scanpy
from matplotlib import pyplot

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def no_trace() -> Iterator[None]:
    """Fail a test that leaves a figure open or changes a setting of matplotlib."""
    settings = dict(matplotlib.rcParams)
    yield
    assert pyplot.get_fignums() == []
    assert dict(matplotlib.rcParams) == settings


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count figures at each call of ``pyplot.show``, then close them."""
    calls: list[int] = []

    def show() -> None:
        calls.append(len(pyplot.get_fignums()))
        pyplot.close("all")

    monkeypatch.setattr(pyplot, "show", show)
    return calls


@pytest.fixture(params=[True, False])
def autoshow(request: pytest.FixtureRequest) -> Iterator[bool]:
    before = scanpy.settings.autoshow
    scanpy.settings.autoshow = request.param
    yield request.param
    scanpy.settings.autoshow = before
