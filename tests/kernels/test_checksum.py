"""The checksum of arrays: every byte counts, and where it lies."""

from __future__ import annotations

import numpy as np
import pytest

from dra_scvi._kernels.checksum import _pieces, checksum


def in_whole_numbers(content: bytes) -> int:
    """Sum up the same in whole numbers of Python, each cut to 64 bits."""
    total = len(content)
    padded = content + bytes(8 - len(content) % 8)
    for place, word in enumerate(np.frombuffer(padded, np.uint64).tolist()):
        x = (word + place * 0x9E3779B97F4A7C15) % 2**64
        x = (x ^ x >> 32) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ x >> 29) * 0x94D049BB133111EB % 2**64
        total += x ^ x >> 32
    return total % 2**64


@pytest.mark.parametrize("n_bytes", [0, 1, 8, 13, 5000])
def test_the_sum_is_that_of_whole_numbers(n_bytes: int) -> None:
    array = np.random.default_rng(1).integers(0, 256, n_bytes).astype(np.uint8)
    assert checksum(array) == in_whole_numbers(array.tobytes())


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
    monkeypatch.setattr("dra_scvi._kernels.checksum._COPIED_BYTES", 500)
    assert [piece.nbytes for piece in _pieces(strided)] == [480] * 50  # six rows each
    in_parts = checksum(strided)
    strided[150] *= 2
    assert checksum(strided) != in_parts
    strided[150] /= 2
    assert checksum(strided) == in_parts
    monkeypatch.setattr("dra_scvi._kernels.checksum._COPIED_BYTES", 50)
    assert [piece.nbytes for piece in _pieces(strided)] == [80] * 300  # one at least


@pytest.mark.parametrize("n_threads", [2, 3])
def test_threads_share_the_words(n_threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    array = np.arange(101.0)
    alone = checksum(array)
    monkeypatch.setattr("dra_scvi._kernels.parts._MIN_ENTRIES_PER_THREAD", 1)
    assert checksum(array, n_threads) == alone == in_whole_numbers(array.tobytes())


def test_what_lies_in_one_piece_is_not_copied() -> None:
    array = np.arange(12.0).reshape(3, 4)
    for whole in (array, array.T):
        assert all(np.shares_memory(piece, array) for piece in _pieces(whole))
