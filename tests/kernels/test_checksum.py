"""The checksum of arrays: every byte counts, and where it lies."""

from __future__ import annotations

import numpy as np
import pytest

from dra_scvi._kernels.checksum import checksum


@pytest.mark.parametrize("n_bytes", [0, 1, 7, 8, 9, 64, 1001])
def test_every_bit_counts(n_bytes: int) -> None:
    array = np.random.default_rng(0).integers(0, 256, n_bytes).astype(np.uint8)
    found = {checksum(array)}
    for place in range(n_bytes):
        for bit in range(8):
            array[place] ^= 1 << bit
            found.add(checksum(array))
            array[place] ^= 1 << bit
    assert len(found) == 1 + 8 * n_bytes


def test_the_length_counts() -> None:
    assert len({checksum(np.zeros(n, np.uint8)) for n in range(40)}) == 40


@pytest.mark.parametrize("dtype", [np.float32, np.int64, np.uint8, np.bool_])
def test_two_entries_that_change_places_or_together(dtype: type) -> None:
    array = np.zeros(4096, dtype)
    array[::3] = 1
    before, pairs = checksum(array), [(0, 1), (0, 256), (3, 1025), (3, 4094), (1, 3)]
    for one, other in pairs:
        array[[one, other]] = array[[other, one]]
        assert (checksum(array) == before) == (array[one] == array[other])
        array[[one, other]] = array[[other, one]]
    found = {before}
    for one, other in pairs:  # the same change twice must not cancel out
        array[[one, other]] = (
            ~array[[one, other]] if dtype is np.bool_ else array[[one, other]] + 2
        )
        found.add(checksum(array))
        array[:] = 0
        array[::3] = 1
    assert len(found) == 1 + len(pairs)


@pytest.mark.parametrize("order", ["C", "F", "strided", "unaligned", "read-only"])
def test_every_layout(order: str) -> None:
    whole = np.random.default_rng(0).poisson(1, (300, 41)).astype(np.float32)
    if order == "strided":
        array = np.repeat(whole, 2, axis=1)[:, ::2]
    elif order == "unaligned":
        array = np.frombuffer(bytearray(whole.nbytes + 1), np.uint8)[1:].view(np.float32)
        array = array.reshape(whole.shape)
        array[:] = whole
    else:
        array = np.array(whole, order="F" if order == "F" else "C")
    if order == "read-only":
        array.flags.writeable = False
    assert (checksum(array) == checksum(whole)) == (order != "F")
    assert checksum(array, n_threads=3) == checksum(array)
    if order != "read-only":
        before = checksum(array)
        array[299, 40] = np.nan
        assert checksum(array) != before


def test_what_is_copied_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    strided = np.arange(9000.0).reshape(300, 30)[:, ::3]
    before = checksum(strided)
    monkeypatch.setattr("dra_scvi._kernels.checksum._COPIED_BYTES", 500)
    in_parts = checksum(strided)
    strided[150] *= 2
    assert checksum(strided) != in_parts
    strided[150] /= 2
    assert checksum(strided) == in_parts
    assert isinstance(before, int)
