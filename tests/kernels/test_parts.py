"""Parts of the cells for threads: each cell in one of them, and arrays that fit."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from dra_scvi._kernels import parts
from dra_scvi._kernels.parts import check_array, share_out


@pytest.mark.parametrize(
    ("shape", "n_threads", "expected"),
    [
        ((10, 8), 4, [(0, 10)]),
        ((10, 10), 4, [(0, 3), (3, 6), (6, 10)]),
        ((10, 1_000), 1, [(0, 10)]),
        ((10, 1_000), 2, [(0, 5), (5, 10)]),
        ((2, 1_000), 4, [(0, 1), (1, 2)]),
        ((0, 1_000), 4, [(0, 0)]),
        ((10, 0), 4, [(0, 10)]),
    ],
)
def test_every_cell_is_in_one_part(
    shape: tuple[int, int],
    n_threads: int,
    expected: list[tuple[int, int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert parts._MIN_ENTRIES_PER_THREAD == 32_768
    monkeypatch.setattr(parts, "_MIN_ENTRIES_PER_THREAD", 30)
    if shape == (10, 8):
        monkeypatch.setattr(parts, "_MIN_ENTRIES_PER_THREAD", 41)
    found: dict[tuple[int, int], str] = {}

    def run(part: slice) -> None:
        found[part.start, part.stop] = threading.current_thread().name

    share_out(run, shape, n_threads)
    assert sorted(found) == expected
    assert found[expected[0]] == threading.current_thread().name
    assert all(found[part].startswith("dra_scvi_") for part in expected[1:])


def test_parts_run_at_the_same_time() -> None:
    together = threading.Barrier(3, timeout=20)
    share_out(lambda _: together.wait() and None, (3, 10**6), 3)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_part_that_fails_is_told(place: int) -> None:
    def run(part: slice) -> None:
        if part.start == place:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        share_out(run, (3, 10**6), 3)


def test_arrays_that_do_not_fit() -> None:
    array = np.ones((2, 3), np.float32)
    check_array("it", array, (2, 3))
    check_array("it", array, (2, 3), 2)
    with pytest.raises(ValueError, match="^it has 2 dimensions, not 3.$"):
        check_array("it", array, (2, 3), 3)
    with pytest.raises(ValueError, match=r"^it has the shape \(2, 3\), not \(3, 2\).$"):
        check_array("it", array, (3, 2))
    with pytest.raises(TypeError, match="^it holds float64, not float32.$"):
        check_array("it", array.astype(np.float64), (2, 3))
