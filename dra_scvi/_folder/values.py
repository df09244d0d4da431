"""Arrays, tables and containers of saved models, each made from parts that were checked first."""

from __future__ import annotations

import math
from collections import OrderedDict, defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from dra_scvi._folder.pickles import Built, Name, RefusedPickleError

if TYPE_CHECKING:
    from collections.abc import Callable

NUMBERS = frozenset(
    ["b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16"]
)
UNITS = frozenset(["Y", "M", "W", "D", "h", "m", "s", "ms", "us", "ns"])
MAX_NDIM = 32
LAST_CHARACTER = 0x10FFFF
VALID_FLAGS = {"allows_duplicate_labels": True}


def demand(condition: bool, what: str) -> None:
    """Refuse the pickle unless a condition holds; `what` is not as in a saved model."""
    if not condition:
        raise RefusedPickleError(f"{what} is not as in a saved model")


def check_shape(shape: Any, what: str) -> tuple[int, ...]:
    """Return a shape, all of whose lengths are plain and not negative."""
    demand(type(shape) is tuple and len(shape) <= MAX_NDIM, what)
    demand(all(type(length) is int and length >= 0 for length in shape), what)
    return shape


def _args(built: Built, *kinds: type | tuple[type, ...]) -> tuple[Any, ...]:
    """Return the arguments of a call that takes those of these kinds, and nothing afterwards."""
    _only_args(built, *kinds)
    demand(built.state is None, built.name)
    return built.args


def _only_args(built: Built, *kinds: type | tuple[type, ...]) -> None:
    is_known = len(built.args) == len(kinds) and all(map(isinstance, built.args, kinds))
    demand(is_known and not built.items, built.name)


# -- containers --------------------------------------------------------------------------------


def _ordered(built: Built) -> OrderedDict[Any, Any]:
    """Return the ordered dictionary of a state of weights, with the versions of its modules."""
    demand(built.args == (), built.name)
    made = OrderedDict(built.items)
    if built.state is not None:
        demand(type(built.state) is dict and built.state.keys() == {"_metadata"}, built.name)
        versions = built.state["_metadata"]
        demand(isinstance(versions, dict), built.name)
        for entry in versions.values():
            demand(type(entry) is dict and all(type(n) is int for n in entry.values()), built.name)
        made._metadata = versions  # type: ignore[attr-defined]
    return made


def _defaulting(built: Built) -> defaultdict[Any, Any]:
    demand(built.args in ((Name("builtins.dict"),), ()), built.name)
    demand(built.state is None, built.name)
    return defaultdict(dict, built.items)


def _dictionary(built: Built) -> dict[Any, Any]:
    demand(built.args == () and built.state is None, built.name)
    return dict(built.items)


def _set_of(kind: Callable[[list[Any]], Any]) -> Callable[[Built], Any]:
    def build(built: Built) -> Any:
        (values,) = _args(built, list)
        demand(all(isinstance(v, str | int | float | None) for v in values), built.name)
        return kind(values)

    return build


def _slice(built: Built) -> slice:
    return slice(*_args(built, *[(int, type(None))] * 3))


def _bytes(built: Built) -> bytes:
    if built.args == ():
        _args(built)
        return b""
    if len(built.args) == 1:  # a bytearray, or bytes of an older protocol
        (data,) = _args(built, bytes)
        return data
    text, encoding = _args(built, str, str)
    demand(encoding == "latin1", built.name)
    return text.encode("latin1")


# -- numpy -------------------------------------------------------------------------------------


def _dtype(built: Built) -> np.dtype[Any]:
    """Return a type of numbers, text, times or objects, of what is said of it the order alone."""
    _only_args(built, str, (bool, int), (bool, int))
    code, order = built.args[0], "|"
    state = built.state
    if state is not None:
        demand(type(state) is tuple and len(state) >= 5 and state[2:5] == (None,) * 3, built.name)
        order = state[1]
        demand(order in ("<", ">", "|", "="), built.name)
    if code in NUMBERS or code in ("O8", "O4", "O"):
        return np.dtype(order + code)
    kind, length = code[:1], code[1:]
    if kind in ("M", "m") and length == "8":
        return np.dtype(f"{order}{code}[{_unit(state, built.name)}]")
    demand(kind in ("U", "S") and length.isdecimal() and len(length) < 8, built.name)
    return np.dtype(order + code)


def _unit(state: Any, name: str) -> str:
    try:
        unit, number, *rest = state[8][1]
    except (LookupError, TypeError, ValueError):
        demand(False, name)
    unit = unit.decode("latin1") if isinstance(unit, bytes) else unit
    demand(unit in UNITS and type(number) is int and 0 < number < 10**6, name)
    demand(rest == [1, 1], name)
    return f"{number}{unit}"


def _array(built: Built) -> np.ndarray[Any, Any]:
    """Return an array of what its bytes are, or of the strings and numbers of a list."""
    _only_args(built, Name, tuple, bytes)
    demand(built.args == (Name("numpy.ndarray"), (0,), b"b"), built.name)
    state = built.state
    demand(type(state) is tuple and len(state) == 5 and state[0] == 1, built.name)
    _, shape, dtype, is_fortran, data = state
    demand(type(is_fortran) in (bool, int), built.name)
    return _filled(shape, dtype, data, "F" if is_fortran else "C", built.name)


def _array_of_buffer(built: Built) -> np.ndarray[Any, Any]:
    data, dtype, shape, order = _args(built, bytes, np.dtype, tuple, str)
    demand(order in ("C", "F"), built.name)
    return _filled(shape, dtype, data, order, built.name)


def _filled(shape: Any, dtype: Any, data: Any, order: Any, name: str) -> np.ndarray[Any, Any]:
    demand(isinstance(dtype, np.dtype), name)
    size = math.prod(check_shape(shape, name))
    if dtype.kind != "O":
        return _of_bytes(data, dtype, size, name).reshape(shape, order=order)
    demand(type(data) is list and len(data) == size, "an array of objects")
    plain = (str, bool, int, float, np.generic, type(None))
    demand(all(isinstance(value, plain) for value in data), "an array of objects")
    values = np.empty(size, dtype=object)
    for i, value in enumerate(data):  # an assignment of all would look into sequences
        values[i] = value
    return np.asarray(values.reshape(shape), order=order)  # listed row by row in either order


def _of_bytes(data: Any, dtype: np.dtype[Any], size: int, name: str) -> np.ndarray[Any, Any]:
    demand(dtype.kind in "biufcUSMm" and type(data) is bytes, name)
    demand(len(data) == size * dtype.itemsize, name)
    if dtype.itemsize == 0:
        return np.zeros(size, dtype)
    values = np.frombuffer(data, dtype).copy()
    if dtype.kind == "b":
        demand(not (values.view(np.uint8) > 1).any(), name)
    if dtype.kind == "U":
        codes = values.view(np.dtype(np.uint32).newbyteorder(dtype.byteorder))
        is_half = (codes >= 0xD800) & (codes < 0xE000)
        demand(not (is_half | (codes > LAST_CHARACTER)).any(), name)
    return values


def _scalar(built: Built) -> np.generic:
    dtype, data = _args(built, np.dtype, bytes)
    return _of_bytes(data, dtype, 1, built.name)[0]


# -- pandas ------------------------------------------------------------------------------------


def _index(built: Built) -> pd.Index:
    kind, parts = _args(built, Name, dict)
    name = parts.get("name")
    demand(isinstance(name, str | int | None), built.name)
    if kind.text.endswith("RangeIndex"):
        bounds = [parts.get(key) for key in ("start", "stop", "step")]
        demand(all(type(bound) is int for bound in bounds) and bounds[2] != 0, built.name)
        return pd.RangeIndex(*bounds, name=name)
    data = parts.get("data")
    if type(data) is list:  # of strings, as they come out of pandas' own arrays
        return pd.Index(data, name=name)
    demand(isinstance(data, np.ndarray) and data.ndim == 1, built.name)
    return pd.Index(data, dtype=data.dtype, name=name)


def _block(built: Built) -> tuple[np.ndarray[Any, Any], list[int]]:
    """Return values of a table, and the columns in which they are."""
    values, place, n_dim = _args(built, np.ndarray, (slice, np.ndarray), int)
    demand(n_dim == 2 and values.ndim == 2, built.name)
    n_columns = len(values)
    if isinstance(place, slice):
        demand(all(type(b) is int for b in (place.start, place.stop, place.step)), built.name)
        columns = range(place.start, place.stop, place.step) if place.step else range(0)
        demand(len(columns) == n_columns, built.name)
        return values, list(columns)
    demand(place.ndim == 1 and place.dtype.kind == "i" and len(place) == n_columns, built.name)
    return values, place.tolist()


def _manager(built: Built) -> pd.DataFrame:
    """Return the table of its blocks, each of whose columns is in one of them."""
    blocks, axes = _args(built, tuple, list)
    demand(len(axes) == 2 and all(isinstance(axis, pd.Index) for axis in axes), built.name)
    columns, rows = axes
    found: dict[int, np.ndarray[Any, Any]] = {}
    for block in blocks:
        demand(type(block) is tuple and len(block) == 2, built.name)
        values, places = block
        demand(isinstance(values, np.ndarray) and type(places) is list, built.name)
        demand(values.shape == (len(places), len(rows)), built.name)
        found.update(zip(places, values, strict=True))
    demand(sorted(found) == list(range(len(columns))), built.name)
    table = pd.DataFrame({place: found[place] for place in range(len(columns))}, index=rows)
    return table.set_axis(columns, axis=1)


def _frame(built: Built) -> pd.DataFrame:
    _only_args(built)
    state = built.state
    demand(type(state) is dict and isinstance(state.get("_mgr"), pd.DataFrame), built.name)
    rest = {key: value for key, value in state.items() if key != "_mgr"}
    known = {"_typ": "dataframe", "_metadata": [], "attrs": {}, "_flags": VALID_FLAGS}
    demand(all(key in known and known[key] == value for key, value in rest.items()), built.name)
    return state["_mgr"]


def _string_type(built: Built) -> str:
    demand(
        len(built.args) <= 2 and all(isinstance(a, str | float) for a in built.args), built.name
    )
    demand(not built.items and built.state is None, built.name)
    return "string"


def _strings(built: Built) -> list[str]:
    """Return what an array of strings holds, without its type."""
    _only_args(built, Name, int, type(None))
    demand(built.args[0].text in _ARRAYS_OF_STRINGS, built.name)
    parts = built.state if type(built.state) is tuple else ()
    arrays = [part for part in parts if isinstance(part, np.ndarray)]
    demand(len(arrays) == 1 and arrays[0].dtype == object and arrays[0].ndim == 1, built.name)
    return arrays[0].tolist()


def _arrow_strings(built: Built) -> list[str]:
    _only_args(built)
    state = built.state
    demand(type(state) is dict and type(state.get("_pa_array")) is list, built.name)
    return state["_pa_array"]


def _arrow_type(built: Built) -> str:
    (alias,) = _args(built, str)
    demand(alias in ("string", "large_string"), built.name)
    return alias


def _arrow_array(built: Built) -> list[str]:
    """Return the strings of an array of Arrow that has all of them."""
    (parts,) = _args(built, tuple)
    demand(len(parts) >= 5, built.name)
    kind, length, n_missing, offset, buffers, *rest = parts
    demand(kind in ("string", "large_string") and n_missing == 0 and offset == 0, built.name)
    demand(type(length) is int and length >= 0, built.name)
    demand(type(buffers) is list and len(buffers) == 3 and buffers[0] is None, built.name)
    demand(all(part in (None, []) for part in rest), built.name)
    starts, text = (part or b"" for part in buffers[1:])
    demand(type(starts) is bytes and type(text) is bytes, built.name)
    dtype = np.dtype("<i8" if kind == "large_string" else "<i4")
    if length == 0:
        return []
    demand(len(starts) >= (length + 1) * dtype.itemsize, built.name)
    ends = np.frombuffer(starts, dtype)[: length + 1]
    demand(ends[0] >= 0 and ends[-1] <= len(text), built.name)
    demand(bool((np.diff(ends) >= 0).all()), built.name)
    return [text[a:b].decode() for a, b in zip(ends[:-1], ends[1:], strict=True)]


def _chunks(built: Built) -> list[str]:
    demand(1 <= len(built.args) <= 2 and type(built.args[0]) is list, built.name)
    demand(not built.items and built.state is None, built.name)
    demand(all(type(chunk) is list for chunk in built.args[0]), built.name)
    return [text for chunk in built.args[0] for text in chunk]


_ARRAYS_OF_STRINGS = (
    "pandas.arrays.StringArray",
    "pandas.core.arrays.string_.StringArray",
    "pandas.core.arrays.string_.StringArrayNumpySemantics",
)


def _under(names: str, builder: Callable[[Built], Any]) -> dict[str, Callable[[Built], Any]]:
    return dict.fromkeys(names.split(), builder)


BUILDERS: dict[str, Callable[[Built], Any]] = {
    "collections.OrderedDict": _ordered,
    "collections.defaultdict": _defaulting,
    "builtins.dict": _dictionary,
    "builtins.set": _set_of(set),
    "builtins.frozenset": _set_of(frozenset),
    "builtins.slice": _slice,
    **_under("builtins.bytes builtins.bytearray _codecs.encode", _bytes),
    "numpy.dtype": _dtype,
    **_under("numpy._core.multiarray._reconstruct numpy.core.multiarray._reconstruct", _array),
    **_under("numpy._core.multiarray.scalar numpy.core.multiarray.scalar", _scalar),
    **_under("numpy._core.numeric._frombuffer numpy.core.numeric._frombuffer", _array_of_buffer),
    "pandas.core.indexes.base._new_Index": _index,
    "pandas._libs.internals._unpickle_block": _block,
    "pandas.core.internals.managers.BlockManager": _manager,
    **_under("pandas.DataFrame pandas.core.frame.DataFrame", _frame),
    **_under("pandas.StringDtype pandas.core.arrays.string_.StringDtype", _string_type),
    "pandas._libs.arrays.__pyx_unpickle_NDArrayBacked": _strings,
    **_under(
        "pandas.arrays.ArrowStringArray pandas.core.arrays.string_arrow.ArrowStringArray",
        _arrow_strings,
    ),
    "pyarrow.lib.type_for_alias": _arrow_type,
    "pyarrow.lib.py_buffer": _bytes,
    "pyarrow.lib._restore_array": _arrow_array,
    "pyarrow.lib.chunked_array": _chunks,
}
"""What makes the value of each name that a saved model may call."""

NAMES = frozenset(
    {
        "numpy.ndarray",
        "pandas.Index",
        "pandas.RangeIndex",
        "pandas.core.indexes.base.Index",
        "pandas.core.indexes.range.RangeIndex",
        *_ARRAYS_OF_STRINGS,
    }
)
"""Names that a saved model may hand to these."""
