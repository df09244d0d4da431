"""Arrays, tables and containers of saved models: read as Python does, or refused."""

from __future__ import annotations

import pickle
import re
from collections import OrderedDict, defaultdict
from typing import Any

import numpy as np
import pandas as pd
import pytest

from dra_scvi._folder.archive import read_pickle
from dra_scvi._folder.pickles import Built, Name, RefusedPickleError
from dra_scvi._folder.values import BUILDERS, MAX_NDIM, check_shape

DATES = np.array(["2020-01-01", "NaT"], dtype="datetime64[D]")
METADATA: Any = OrderedDict({"": {"version": 1}})
WEIGHTS: Any = OrderedDict({"w": 1})
WEIGHTS._metadata = METADATA

CODES = ["b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16"]
UNITS = ["Y", "M", "W", "D", "h", "m", "s", "ms", "us", "ns"]
VALUES: list[Any] = [
    OrderedDict(a=[1]),
    WEIGHTS,
    defaultdict(dict, a={"b": 1}),
    {1, "a"},
    frozenset([None, 0.5]),
    slice(1, None, 3),
    b"",
    b"bytes\xff",
    bytearray(b"bytes"),
    np.dtype("<f4"),
    np.dtype(">i2"),
    np.dtype("O"),
    np.dtype("U3"),
    np.dtype("datetime64[25s]"),
    np.arange(6.0).reshape(2, 3),
    np.asfortranarray(np.arange(6).reshape(2, 3)),
    np.arange(3, dtype=">u2"),
    np.array(7, dtype=np.int8),
    np.empty((0, 2), dtype=np.float16),
    np.array([True, False]),
    np.array(["a", "日本", ""]),
    np.array(["é"], dtype=">U2"),
    np.array(["", ""], dtype="U0"),
    np.array([b"a", b"bc"]),
    np.array([1 + 2j]),
    DATES,
    DATES.astype("datetime64[ns]"),
    np.array([3, 4], dtype="timedelta64[ms]"),
    np.array([["a", None], [1.5, True]], dtype=object),
    np.array([["a", "b", "c"], ["d", "e", "f"]], dtype=object, order="F"),
    *(
        np.array([1], dtype=code)
        for code in [
            "b1",
            "i1",
            "i2",
            "i4",
            "i8",
            "u1",
            "u2",
            "u4",
            "u8",
            "f2",
            "f4",
            "f8",
            "c8",
            "c16",
        ]
    ),
    *(
        np.array([1], dtype=f"m8[{unit}]")
        for unit in ["Y", "M", "W", "D", "h", "m", "s", "ms", "us", "ns"]
    ),
    np.float32(0.5),
    np.bool_(True),
    np.str_("text"),
    np.datetime64("2020-01-01"),
    pd.Index([1, 2], name="n"),
    pd.Index([0.5, 1.5]),
    pd.Index(["a", "b"], dtype=object),
    pd.RangeIndex(2, 8, 3, name="r"),
    pd.DataFrame({"a": [1, 2], "b": [0.5, 1.5], "c": [3, 4]}, index=pd.Index([5, 6], name="e")),
    pd.DataFrame({"a": [1.0]}),
    pd.DataFrame(index=pd.RangeIndex(3)),
]


def assert_same(one: Any, other: Any) -> None:
    if isinstance(other, bytearray):
        other = bytes(other)
    assert type(one) is type(other)
    if isinstance(other, np.ndarray):
        assert one.dtype == other.dtype
        assert one.flags.f_contiguous == other.flags.f_contiguous
        np.testing.assert_array_equal(one, other)
        one[...] = one  # it is nobody else's
    elif isinstance(other, pd.DataFrame):
        pd.testing.assert_frame_equal(one, other)
    elif isinstance(other, pd.Index):
        pd.testing.assert_index_equal(one, other)
    else:
        assert one == other
        assert getattr(one, "_metadata", None) == getattr(other, "_metadata", None)
        assert getattr(one, "dtype", None) == getattr(other, "dtype", None)


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("value", VALUES, ids=range(len(VALUES)))
def test_values_are_what_python_reads(value: Any, protocol: int) -> None:
    assert_same(read_pickle(pickle.dumps(value, protocol)), value)


@pytest.mark.parametrize("protocol", [2, 5])
@pytest.mark.parametrize("storage", ["python", "pyarrow"])
def test_strings_of_pandas_are_their_strings(storage: str, protocol: int) -> None:
    if storage == "pyarrow":
        pytest.importorskip("pyarrow")
    try:
        dtype = pd.StringDtype(storage, na_value=np.nan)
    except TypeError:
        pytest.skip("this pandas has one kind of missing strings")
    for strings in (["a", "日本", ""], []):
        index = pd.Index(pd.array(strings, dtype=dtype), name="n")
        found = read_pickle(pickle.dumps(index, protocol))
        assert (found.tolist(), found.name) == (strings, "n")


# -- what is refused -----------------------------------------------------------------------------

ARRAY = Name("numpy.ndarray"), (0,), b"b"
FLOAT, OBJECT = np.dtype("<f8"), np.dtype("O")
EIGHT = b"12345678"
VALID = {"_typ": "dataframe", "_metadata": [], "attrs": {}}
TABLE = pd.DataFrame({"a": [1.0]})
INDEX, NUMBERS = Name("pandas.Index"), {"data": np.arange(2)}
RANGE = Name("pandas.RangeIndex")
STRINGS = Name("pandas.arrays.StringArray"), 1, None
WORDS = np.array(["a"], dtype=object)
ENDS = np.array([0, 1, 2], dtype="<i4").tobytes()


def state(order: Any = "<", rest: tuple[Any, ...] = (None,) * 3, *more: Any) -> tuple[Any, ...]:
    return (3, order, *rest, *more)


def date(unit: Any = b"D", number: Any = 1, rest: tuple[Any, ...] = (1, 1)) -> tuple[Any, ...]:
    return state("<", (None,) * 3, -1, -1, 0, ({}, (unit, number, *rest)))


def arrow(*changes: tuple[int, Any]) -> tuple[Any, ...]:
    parts: list[Any] = ["string", 2, 0, 0, [None, ENDS, b"ab"], [], None]
    for place, value in changes:
        parts[place] = value
    return (tuple(parts),)


def ends(*numbers: int, kind: str = "<i4") -> tuple[int, Any]:
    return 4, [None, np.array(numbers, dtype=kind).tobytes(), b"ab"]


CALLS: dict[str, tuple[list[Any], list[Any]]] = {
    # the arguments, and what is set afterwards, of calls that are taken and that are not
    "collections.OrderedDict": (
        [((),), ((), {"_metadata": {"a": {"version": 1}}})],
        [
            ((1,),),
            ((), {"_metadata": {}, "more": 1}),
            ((), []),
            ((), {"_metadata": 3}),
            ((), {"_metadata": {"a": 3}}),
            ((), {"_metadata": {"a": {"version": "1"}}}),
        ],
    ),
    "collections.defaultdict": (
        [((),), ((Name("builtins.dict"),),)],
        [((Name("builtins.list"),),), ((), {"a": 1})],
    ),
    "builtins.dict": ([((),)], [((1,),), ((), {"a": 1})]),
    "builtins.set": (
        [(([1, "a", None, 0.5],),)],
        [(([b"a"],),), (((1,),),), (([1],), 3), (([1], [2]),)],
    ),
    "builtins.slice": ([((1, None, 2),)], [((1, 2),), (("a", None, None),), ((1, 2, 3), 4)]),
    "builtins.bytes": (
        [((),), ((b"a",),), (("a", "latin1"),)],
        [((), 1), ((1,),), (("a", "utf-8"),), (("a", 1),), ((b"a",), 1)],
    ),
    "numpy.dtype": (
        [
            (("f8", False, True), state()),
            (("f8", 0, 1), state(">")),
            (("f8", False, True),),
            (("O8", False, True), state("|")),
            (("O4", False, True), state("|")),
            (("O", False, True),),
            (("U3", False, True), state()),
            (("S12", False, True), state("|")),
            (("M8", False, True), date()),
            (("m8", False, True), date("us", 999_999)),
        ],
        [
            (("f8", False),),
            (("f8", False, "a"),),
            (("V8", False, True), state("|")),
            (("f3", False, True), state()),
            (("U", False, True), state()),
            (("Ux", False, True), state()),
            (("U12345678", False, True), state()),
            (("f8", False, True), state("?")),
            (("f8", False, True), list(state())),
            (("f8", False, True), state("<", (None, ("a",), None))),
            (("f8", False, True), state("<", (None, None, {}))),
            (("f8", False, True), state("<", ((), None, None))),
            (("f8", False, True), (3, "<", None, None)),
            (("M4", False, True), date()),
            (("M8", False, True),),
            (("M8", False, True), state()),
            (("M8", False, True), date("x")),
            (("M8", False, True), date("D", 0)),
            (("M8", False, True), date("D", 1_000_000)),
            (("M8", False, True), date("D", 1.0)),
            (("M8", False, True), date("D", 1, (1, 2))),
        ],
    ),
    "numpy._core.multiarray._reconstruct": (
        [
            (ARRAY, (1, (1,), FLOAT, False, EIGHT)),
            (ARRAY, (1, (2,), OBJECT, 1, ["a", None])),
            (ARRAY, (1, (1,), OBJECT, 0, [np.float64(1)])),
        ],
        [
            ((Name("numpy.memmap"), (0,), b"b"), (1, (1,), FLOAT, False, EIGHT)),
            ((Name("numpy.ndarray"), (1,), b"b"), (1, (1,), FLOAT, False, EIGHT)),
            ((Name("numpy.ndarray"), (0,), b"c"), (1, (1,), FLOAT, False, EIGHT)),
            (ARRAY,),
            (ARRAY, [1, (1,), FLOAT, False, EIGHT]),
            (ARRAY, (1, (1,), FLOAT, False, EIGHT, 0)),
            (ARRAY, (2, (1,), FLOAT, False, EIGHT)),
            (ARRAY, (1, (1,), FLOAT, "F", EIGHT)),
            (ARRAY, (1, (1,), "f8", False, EIGHT)),
            (ARRAY, (1, (2,), FLOAT, False, EIGHT)),
            (ARRAY, (1, (-1,), FLOAT, False, EIGHT)),
            (ARRAY, (1, [1], FLOAT, False, EIGHT)),
            (ARRAY, (1, (True,), FLOAT, False, EIGHT)),
            (ARRAY, (1, (1,), FLOAT, False, "12345678")),
            (ARRAY, (1, (1,), OBJECT, False, EIGHT)),
            (ARRAY, (1, (2,), OBJECT, False, ["a"])),
            (ARRAY, (1, (1,), OBJECT, False, ("a",))),
            (ARRAY, (1, (1,), OBJECT, False, [b"a"])),
            (ARRAY, (1, (1,), OBJECT, False, [np.arange(2)])),
            (ARRAY, (1, (1,), np.dtype("V8"), False, EIGHT)),
            (ARRAY, (1, (2,), np.dtype(bool), False, b"\1\2")),
            (ARRAY, (1, (1,), np.dtype("<U1"), False, b"\0\xd8\0\0")),
            (ARRAY, (1, (1,), np.dtype("<U1"), False, b"\xff\xdf\0\0")),
            (ARRAY, (1, (1,), np.dtype("<U1"), False, b"\0\0\x11\0")),
            (ARRAY, (1, (1,), np.dtype(">U1"), False, b"\0\x11\0\0")),
        ],
    ),
    "numpy._core.numeric._frombuffer": (
        [((EIGHT, FLOAT, (1,), "C"),), ((EIGHT, FLOAT, (1,), "F"),)],
        [
            ((EIGHT, FLOAT, (1,), "A"),),
            ((EIGHT, FLOAT, [1], "C"),),
            ((EIGHT, OBJECT, (1,), "C"),),
            ((EIGHT, FLOAT, (1,), "C"), 1),
        ],
    ),
    "numpy._core.multiarray.scalar": (
        [((FLOAT, EIGHT),)],
        [((FLOAT, EIGHT * 2),), ((OBJECT, EIGHT),), ((FLOAT, EIGHT), 1), (("f8", EIGHT),)],
    ),
    "pandas.core.indexes.base._new_Index": (
        [
            ((INDEX, NUMBERS),),
            ((INDEX, {"data": ["a"], "name": 3}),),
            ((RANGE, {"start": 0, "stop": 4, "step": 2, "name": "n"}),),
        ],
        [
            ((INDEX, {}),),
            ((INDEX, {"data": np.ones((1, 1))}),),
            ((INDEX, {**NUMBERS, "name": 0.5}),),
            ((INDEX, NUMBERS), 1),
            ((INDEX, []),),
            ((RANGE, {"start": 0, "stop": 4, "step": 0}),),
            ((RANGE, {"start": 0, "stop": 4}),),
            ((RANGE, {"start": 0, "stop": 4.0, "step": 1}),),
        ],
    ),
    "pandas._libs.internals._unpickle_block": (
        [
            ((np.ones((2, 3)), slice(0, 4, 2), 2),),
            ((np.ones((2, 3)), np.array([1, 0]), 2),),
            ((np.ones((0, 3)), slice(0, 0, 1), 2),),
        ],
        [
            ((np.ones((2, 3)), slice(0, 4, 1), 2),),
            ((np.ones((2, 3)), slice(0, None, 2), 2),),
            ((np.ones((2, 3)), slice(0, 4, 0), 2),),
            ((np.ones((2, 3)), np.array([0]), 2),),
            ((np.ones((2, 3)), np.array([0.0, 1.0]), 2),),
            ((np.ones((2, 3)), np.array([[0], [1]]), 2),),
            ((np.ones((2, 3)), [0, 1], 2),),
            ((np.ones((2, 3)), slice(0, 4, 2), 1),),
            ((np.ones(2), slice(0, 4, 2), 2),),
        ],
    ),
    "pandas.core.internals.managers.BlockManager": (
        [(((((np.ones((1, 2)), [0])),), [pd.Index(["a"]), pd.RangeIndex(2)]),)],
        [
            ((((np.ones((1, 2)), [0]),), [pd.Index(["a"])]),),
            ((((np.ones((1, 2)), [0]),), [["a"], pd.RangeIndex(2)]),),
            ((((np.ones((1, 2)), [0]),), [pd.Index(["a"]), pd.RangeIndex(3)]),),
            ((((np.ones((1, 2)), [1]),), [pd.Index(["a"]), pd.RangeIndex(2)]),),
            ((((np.ones((1, 2)), [0]),), [pd.Index(["a", "b"]), pd.RangeIndex(2)]),),
            ((((np.ones((1, 2)), (0,)),), [pd.Index(["a"]), pd.RangeIndex(2)]),),
            ((((np.ones((1, 2)), [0], 1),), [pd.Index(["a"]), pd.RangeIndex(2)]),),
            ((([np.ones((1, 2)), [0]],), [pd.Index(["a"]), pd.RangeIndex(2)]),),
            (((("text", [0]),), [pd.Index(["a"]), pd.RangeIndex(2)]),),
        ],
    ),
    "pandas.DataFrame": (
        [((), {"_mgr": TABLE, **VALID}), ((), {"_mgr": TABLE})],
        [
            ((1,), {"_mgr": TABLE}),
            ((), [TABLE]),
            ((), {}),
            ((), {"_mgr": "text"}),
            ((), {"_mgr": TABLE, "attrs": {"a": 1}}),
            ((), {"_mgr": TABLE, "more": 1}),
        ],
    ),
    "pandas.StringDtype": (
        [((),), (("python", float("nan")),)],
        [((1,),), (("a", "b", "c"),), ((), 1)],
    ),
    "pandas._libs.arrays.__pyx_unpickle_NDArrayBacked": (
        [(STRINGS, ("string", WORDS)), (STRINGS, (WORDS, {}))],
        [
            ((INDEX, 1, None), (WORDS,)),
            (STRINGS, [WORDS]),
            (STRINGS, ()),
            (STRINGS, (WORDS, WORDS)),
            (STRINGS, (np.arange(2),)),
            (STRINGS, (np.array([["a"]], dtype=object),)),
            ((*STRINGS[:2], 3), (WORDS,)),
        ],
    ),
    "pandas.arrays.ArrowStringArray": (
        [((), {"_pa_array": ["a"]})],
        [((), {"_pa_array": "a"}), ((), ["a"]), ((1,), {"_pa_array": ["a"]})],
    ),
    "pyarrow.lib.type_for_alias": (
        [(("string",),), (("large_string",),)],
        [(("int64",),), (("string",), 1)],
    ),
    "pyarrow.lib._restore_array": (
        [
            (arrow(),),
            (arrow((1, 0), (4, [None, None, None])),),
            (arrow((0, "large_string"), ends(0, 1, 2, kind="<i8")),),
            (arrow((1, 1)),),
        ],
        [
            (arrow((0, "int64")),),
            (arrow((1, -1)),),
            (arrow((1, True)),),
            (arrow((2, 1)),),
            (arrow((3, 1)),),
            (arrow((4, [None, ENDS])),),
            (arrow((4, [b"", ENDS, b"ab"])),),
            (arrow((4, (None, ENDS, b"ab"))),),
            (arrow((4, [None, "text", b"ab"])),),
            (arrow((4, [None, ENDS, "ab"])),),
            (arrow((5, [1])),),
            (arrow((6, "more")),),
            (arrow((1, 3)),),
            (arrow(ends(0, 1, 3)),),
            (arrow(ends(-1, 1, 2)),),
            (arrow(ends(0, 2, 1)),),
            ((("string", 2, 0, 0),),),
            (arrow(), 1),
        ],
    ),
    "pyarrow.lib.chunked_array": (
        [(([["a"], ["b", "c"]],),), (([["a"]], "string"),)],
        [((),), ((["a"],),), ((("a",),),), (([], "string", 1),), (([["a"]],), 1)],
    ),
}
TAKEN = [(name, call) for name, (taken, _) in CALLS.items() for call in taken]
REFUSED = [(name, call) for name, (_, refused) in CALLS.items() for call in refused]


def build(name: str, args: Any, state: Any = None, **more: Any) -> Any:
    return BUILDERS[name](Built(name, args, state=state, **more))


@pytest.mark.parametrize(("name", "call"), TAKEN, ids=range(len(TAKEN)))
def test_a_call_that_is_taken(name: str, call: Any) -> None:
    build(name, *call)
    if name not in ("collections.OrderedDict", "collections.defaultdict", "builtins.dict"):
        with pytest.raises(RefusedPickleError, match="is not as in a saved model"):
            build(name, *call, items=[("a", 1)])


@pytest.mark.parametrize(("name", "call"), REFUSED, ids=range(len(REFUSED)))
def test_a_call_that_no_saved_model_makes(name: str, call: Any) -> None:
    words = rf"^({re.escape(name)}|an array of objects) is not as in a saved model$"
    with pytest.raises(RefusedPickleError, match=words):
        build(name, *call)


def test_what_is_made_of_a_call() -> None:
    weights = build("collections.OrderedDict", (), {"_metadata": METADATA}, items=[("w", 1)])
    assert_same(weights, WEIGHTS)
    assert build("collections.defaultdict", (), items=[("a", 1)]) == {"a": 1}
    assert build("collections.defaultdict", ())["missing"] == {}
    assert build("builtins.dict", (), items=[("a", 1)]) == {"a": 1}
    assert build("builtins.bytes", ("\xff", "latin1")) == b"\xff"
    kinds = {call[0][0]: build("numpy.dtype", *call) for call in CALLS["numpy.dtype"][0]}
    assert kinds["O8"] == kinds["O4"] == kinds["O"] == np.dtype("O")
    assert kinds["f8"] == np.dtype("f8")
    assert build("numpy.dtype", ("f8", 0, 1), state(">")) == np.dtype(">f8")
    assert (kinds["U3"], kinds["S12"]) == (np.dtype("U3"), np.dtype("S12"))
    assert (kinds["M8"], kinds["m8"]) == (np.dtype("M8[D]"), np.dtype("m8[999999us]"))
    values = np.ones((2, 3))
    block = "pandas._libs.internals._unpickle_block"
    assert build(block, (values, slice(0, 4, 2), 2))[1] == [0, 2]
    assert build(block, (values, np.array([1, 0]), 2))[1] == [1, 0]
    restore = "pyarrow.lib._restore_array"
    assert build(restore, arrow()) == ["a", "b"]
    assert build(restore, arrow((1, 1))) == ["a"]
    assert build(restore, arrow((1, 0), (4, [None, None, None]))) == []
    assert build(restore, arrow((0, "large_string"), ends(0, 2, 2, kind="<i8"))) == ["ab", ""]
    assert build("pyarrow.lib.chunked_array", ([["a"], ["b", "c"]],)) == ["a", "b", "c"]
    assert build("pandas.DataFrame", (), {"_mgr": TABLE}) is TABLE
    assert build("pandas.StringDtype", ()) == "string"
    empty = build("numpy._core.multiarray._reconstruct", ARRAY, (1, (2,), np.dtype("U0"), 0, b""))
    assert empty.tolist() == ["", ""]
    new_index = "pandas.core.indexes.base._new_Index"
    index = build(new_index, *CALLS[new_index][0][2])
    pd.testing.assert_index_equal(index, pd.RangeIndex(0, 4, 2, name="n"))


def test_shapes() -> None:
    assert check_shape((0, 3), "it") == (0, 3)
    assert check_shape((1,) * MAX_NDIM, "it") == (1,) * 32
    for shape in ((1,) * 33, [1], (1.0,), (True,), (-1,), None):
        with pytest.raises(RefusedPickleError, match="^it is not as in a saved model$"):
            check_shape(shape, "it")
