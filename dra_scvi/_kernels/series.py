"""Logarithms, exponentials and gamma functions as series that compile to vector instructions."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

if TYPE_CHECKING:
    from collections.abc import Callable


# NaN and infinity must come through: they are what the training plan looks for
_FASTMATH = {"reassoc", "contract", "nsz", "arcp"}
EPS = 1e-8
SHIFT = 6
_LN2 = math.log(2.0)
# ln 2 as a sum whose first part has few bits, so that its product with a small integer is exact
_LN2_HIGH = np.float32(0.693359375)
_LN2_LOW = np.float32(_LN2 - 0.693359375)


def _digest() -> str:
    """Tell this version of the file from others."""
    try:
        return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]
    except OSError:  # it is not on disk, and nothing is kept there
        return ""


_VERSION = _digest()


def jit(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile on first use, and keep the result on disk where a folder for that can be written.

    What is kept is found by the name of a function, and is made anew when the file changes that
    the function is in. The functions of this file become part of those of others: their names
    tell by which version.
    """
    function.__qualname__ = f"{function.__qualname__}_{_VERSION}"
    options: dict[str, Any] = {"nogil": True, "fastmath": _FASTMATH, "error_model": "numpy"}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # no writable place for the cache
        return numba.njit(**options)(function)


def _bitcast(source: types.Type, target: types.Type, target_ir: ir.Type) -> Callable[..., Any]:
    """Reinterpret the bits of a number as one of another type."""

    @intrinsic
    def cast(typing_context: Any, value: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.bitcast(args[0], target_ir)

        return target(source), generate

    return cast


_float_bits = _bitcast(types.float32, types.int32, ir.IntType(32))
_bits_float = _bitcast(types.int32, types.float32, ir.FloatType())
_double_bits = _bitcast(types.float64, types.int64, ir.IntType(64))
_bits_double = _bitcast(types.int64, types.float64, ir.DoubleType())


@jit
def exp_negative(x: Any) -> Any:
    """Return e^x for float32 x ≤ 0."""
    x = max(x, np.float32(-87.0))
    n = np.int32(x * np.float32(1 / _LN2) - np.float32(0.5))
    n_float = np.float32(n)  # numba multiplies integers in double precision
    r = x - n_float * _LN2_HIGH - n_float * _LN2_LOW
    series = np.float32(1 / 5040)
    series = series * r + np.float32(1 / 720)
    series = series * r + np.float32(1 / 120)
    series = series * r + np.float32(1 / 24)
    series = series * r + np.float32(1 / 6)
    series = series * r + np.float32(1 / 2)
    series = series * r + np.float32(1.0)
    series = series * r + np.float32(1.0)
    return series * _bits_float(np.int32(np.int32(n + np.int32(127)) << np.int32(23)))


@jit
def _split(x: Any) -> Any:
    """Return n and m of a positive float32 2^n m, with m from sqrt(1/2) up to sqrt(2)."""
    # an offset moves the cut of the mantissa from 1 to sqrt(1/2)
    bits = np.int32(_float_bits(x) - np.int32(0x3F3504F3))
    m = _bits_float(np.int32(np.int32(bits & np.int32(0x007FFFFF)) + np.int32(0x3F3504F3)))
    return np.float32(np.int32(bits >> np.int32(23))), m


@jit
def _two_artanh(n: Any, s: Any) -> Any:
    """Return n ln 2 + 2 artanh(s)."""
    s2 = s * s
    series = np.float32(2 / 9)
    series = series * s2 + np.float32(2 / 7)
    series = series * s2 + np.float32(2 / 5)
    series = series * s2 + np.float32(2 / 3)
    series = series * s2 + np.float32(2.0)
    return n * _LN2_HIGH + (series * s + n * _LN2_LOW)


@jit
def fast_log(x: Any) -> Any:
    """Natural logarithm of a positive float32: ln m = 2 artanh((m - 1) / (m + 1))."""
    n, m = _split(x)
    return _two_artanh(n, (m - np.float32(1.0)) / (m + np.float32(1.0)))


@jit
def fast_log1p(x: Any) -> Any:
    """Return ln(1 + x) of a float32 x ≥ 0, from x itself where 1 + x is near 1."""
    n, m = _split(np.float32(1.0) + x)
    above, added = (
        (x, x + np.float32(2.0)) if n == 0 else (m - np.float32(1.0), m + np.float32(1.0))
    )
    is_finite = (_float_bits(x) & np.int32(0x7FFFFFFF)) < np.int32(0x7F800000)
    return _two_artanh(n, above / added) if is_finite else x


@jit
def log_double(x: Any) -> Any:
    """Natural logarithm of a positive float64."""
    offset = np.int64(0x3FE6A09E667F3BCD)
    bits = _double_bits(x) - offset
    n = bits >> np.int64(52)
    m = _bits_double((bits & np.int64(0x000FFFFFFFFFFFFF)) + offset)
    s = (m - 1.0) / (m + 1.0)
    s2 = s * s
    series = 2 / 17
    series = series * s2 + 2 / 15
    series = series * s2 + 2 / 13
    series = series * s2 + 2 / 11
    series = series * s2 + 2 / 9
    series = series * s2 + 2 / 7
    series = series * s2 + 2 / 5
    series = series * s2 + 2 / 3
    series = series * s2 + 2.0
    return n * _LN2 + series * s


@jit
def stirling(z: Any) -> Any:
    """Return ln Γ(z) - (z - 1/2) ln z + z - ln(2π)/2, for z ≥ 6."""
    w = 1.0 / (z * z)
    return (1 / 12 + w * (-1 / 360 + w * (1 / 1260 - w / 1680))) / z


@jit
def digamma_rest(z: Any) -> Any:
    """Return ψ(z) - ln z, for z ≥ 6."""
    w = 1.0 / (z * z)
    return -0.5 / z - w * (1 / 12 + w * (-1 / 120 + w * (1 / 252 - w / 240)))


@jit
def shift_product(theta: Any) -> Any:
    """Return P(θ) and its derivative."""
    product, slope = theta, 1.0
    for i in range(1, SHIFT):
        factor = theta + i
        slope = slope * factor + product
        product = product * factor
    return product, slope
