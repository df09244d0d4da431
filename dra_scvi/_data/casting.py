"""The one cast of what is registered to types that torch and the compiled kernels can read."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

__all__ = ["cast"]

READABLE = frozenset(
    map(np.dtype, ("bool", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "float32", "float64"))
)


def cast(data: Any, dtype: Any) -> Any:
    """Return registered data in a type that every reader of rows knows.

    Parameters
    ----------
    data
        A table, or an array or sparse matrix in memory; anything else is returned as it is.
    dtype
        What is taken in place of objects, half, long and foreign-endian numbers, and of columns
        that pandas would gather into objects (a float beside a boolean).

    Examples
    --------
    >>> cast(np.array([[1.5], [True]], dtype=object), np.float32).ravel().tolist()
    [1.5, 1.0]
    >>> frame = pd.DataFrame({"a": [0.5], "b": pd.array([True], dtype="boolean")})
    >>> cast(frame, np.float32).to_numpy().tolist()
    [[0.5, 1.0]]
    >>> cast(np.array([[3]], dtype=">i4"), np.float32).dtype.name
    'float32'
    """
    if isinstance(data, pd.DataFrame):
        return data.astype(dtype)
    if isinstance(data, np.ndarray) or sparse.issparse(data):
        return data if data.dtype in READABLE else data.astype(dtype)
    return data
