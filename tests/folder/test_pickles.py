"""Pickles read as a description: every opcode that is known, and whatever else is refused."""

from __future__ import annotations

import collections
import pickle
import struct
from typing import TYPE_CHECKING, Any

import pytest

from dra_scvi._folder import pickles
from dra_scvi._folder.pickles import (
    Built,
    Name,
    RefusedPickleError,
    Storage,
    assemble,
    describe,
)

if TYPE_CHECKING:
    from collections.abc import Callable


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def refused(content: bytes, what: str) -> None:
    with pytest.raises(RefusedPickleError, match=f"^it asks for {what}$") as caught:
        describe(content)
    assert caught.value.names == ()


VALUES: list[Any] = [
    None,
    True,
    False,
    0,
    255,
    65_535,
    -1,
    2**31,
    -(2**40),
    2**128 - 1,
    0.5,
    float("inf"),
    "",
    "é" * 300,
    b"",
    b"a" * 300,
    bytearray(b"abc"),
    [],
    [1],
    [1, [2, "three"]],
    (),
    (1,),
    (1, 2),
    (1, 2, 3),
    (1, 2, 3, (4,)),
    {},
    {"a": 1},
    {1: "a", None: [2], 0.5: {}},
    {1, 2},
    set(),
    frozenset(),
    frozenset(["a"]),
]


@pytest.mark.parametrize("protocol", [4, 5])
@pytest.mark.parametrize("value", VALUES, ids=range(len(VALUES)))
def test_plain_values_are_what_python_reads(value: Any, protocol: int) -> None:
    if protocol == 4 and isinstance(value, bytearray):
        return  # the call of a name
    found, names = describe(pickle.dumps([value, value], protocol))
    assert found == [value, value]
    kind = bytes if type(value) is bytearray else type(value)
    assert [type(part) for part in found] == [kind] * 2
    assert names == set()
    if isinstance(value, list | dict | tuple):
        again = assemble(found, {}, no_storage)
        assert again == found
        assert type(again[0]) is type(value)
        if value:
            assert again[0] is again[1]


def no_storage(storage: Storage) -> Any:
    raise AssertionError(storage)


def test_long_text_and_bytes() -> None:
    length = struct.pack("<Q", 2)
    assert describe(b"\x8d" + length + b"ab.") == ("ab", set())
    assert describe(b"\x8e" + length + b"ab.") == (b"ab", set())
    assert describe(b"\x96" + length + b"ab.") == (b"ab", set())


def test_a_call_and_what_is_done_to_it() -> None:
    ordered = collections.OrderedDict(a=1, b=2)
    for protocol in (2, 4, 5):
        found, names = describe(pickle.dumps(ordered, protocol))
        assert (found.name, found.args) == ("collections.OrderedDict", ())
        assert found.items == [("a", 1), ("b", 2)]
        assert found.state is None
        assert names == {"collections.OrderedDict"}
    made, _ = describe(b"cm\nf\nK\x01\x85R}" + text("a") + b"K\x02sb.")
    assert (made.name, made.args, made.items, made.state) == ("m.f", (1,), [], {"a": 2})


@pytest.mark.parametrize("call", [b"R", b"\x81"])
def test_both_ways_to_call(call: bytes) -> None:
    found, names = describe(b"cm\nf\n)" + call + b".")
    assert (type(found), found.name, found.args, names) == (Built, "m.f", (), {"m.f"})
    refused(b"K\x01)" + call + b".", "the call of what it has made")
    refused(b"cm\nf\n]" + call + b".", "a call without a tuple of arguments")


def test_names_of_python_2_are_those_of_today() -> None:
    for content, name in (
        (b"c__builtin__\neval\n.", "builtins.eval"),
        (b"c__builtin__\nxrange\n.", "builtins.range"),
        (b"ccPickle\nloads\n.", "pickle.loads"),
        (b"cos\nsystem of names\n.", "os.system of names"),
        (text("a.b") + text("c.d") + b"\x93.", "a.b.c.d"),
    ):
        assert describe(content) == (Name(name), {name})
    refused(b"K\x01" + text("a") + b"\x93.", "a name that is no string")
    refused(text("a") + b"K\x01\x93.", "a name that is no string")


def test_storages_are_their_arguments() -> None:
    found, _ = describe(text("a") + b"\x85Q.")
    assert isinstance(found, Storage)
    assert found.args == ("a",)
    refused(text("a") + b"Q.", "something beside the pickle that is no storage")


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"\x82\x01.", "the opcode EXT1"),
        (b"I1\n.", "the opcode INT"),
        (b"K\x010.", "the opcode POP"),
        (b"]K\x01b.", "another state of what it has made"),
        (b"cm\nf\n)RK\x01bK\x02b.", "another state of what it has made"),
        (b"]K\x01K\x02s.", "items of what is no dictionary"),
        (b"](K\x01K\x02u.", "items of what is no dictionary"),
        (b"}K\x01a.", "more of what is no list"),
        (b")K\x01a.", "more of what is no list"),
        (b"](K\x01\x90.", "more of what is no set"),
        (b"}]K\x01s.", "keys that are no strings or numbers"),
        (b"}(K\x01K\x02)K\x03u.", "keys that are no strings or numbers"),
        (b"\x8f(]\x90.", "keys that are no strings or numbers"),
        (b"(]\x91.", "keys that are no strings or numbers"),
        (pickle.dumps(2**128), "a number of more digits than a saved model has"),
        (pickle.dumps(-(2**128)), "a number of more digits than a saved model has"),
    ],
)
def test_what_values_do_not_need(content: bytes, what: str) -> None:
    refused(content, what)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"K\x01",
        b"K\x01.K\x02",
        b"K\x01..",
        b"K\x01K\x02.",
        b".",
        b"(K\x01.",
        b"K\x01\x86.",
        b"\x86.",
        b"t.",
        b"h\x00.",
        b"a.",
        b"}(K\x01u.",
        b"cm\nf\n)R(K\x01u.",
        b"X\x03\x00\x00\x00\xed\xa0\x80.",
    ],
)
def test_damaged_pickles(content: bytes) -> None:
    with pytest.raises((ValueError, LookupError, TypeError)) as caught:
        describe(content)
    assert not isinstance(caught.value, RefusedPickleError)


@pytest.mark.parametrize("put", [b"q\x05", b"r\x05\x00\x00\x00"])
@pytest.mark.parametrize("get", [b"h\x05", b"j\x05\x00\x00\x00"])
def test_what_was_remembered_comes_back(put: bytes, get: bytes) -> None:
    found, _ = describe(b"]" + put + get + b"\x86.")
    assert found == ([], [])
    assert found[0] is found[1]
    (first, second), _ = describe(b"K\x07\x94]\x94\x86h\x00\x86.")
    assert (first, second) == ((7, []), 7)


# -- values --------------------------------------------------------------------------------------


def of(description: Any, **build: Callable[[Built], Any]) -> Any:
    return assemble(description, {f"m.{name}": make for name, make in build.items()}, no_storage)


def test_builders_get_values_and_names_among_arguments() -> None:
    inner = Built("m.inner", ())
    note = Built("m.f", (Name("m.g"), inner, [inner]), [("k", inner)], {"s": inner})
    seen: list[Built] = []

    def build(built: Built) -> str:
        seen.append(built)
        return "made"

    assert of([note, note], f=build, inner=lambda _: 7) == ["made", "made"]
    (found,) = seen
    assert found.name == "m.f"
    assert found.args == (Name("m.g"), 7, [7])
    assert found.items == [("k", 7)]
    assert found.state == {"s": 7}


def test_storages_are_opened_with_values() -> None:
    opened: list[tuple[Any, ...]] = []

    def open_storage(storage: Storage) -> str:
        opened.append(storage.args)
        return "opened"

    storage = Storage(("a", Name("m.g"), [1]))
    assert assemble([storage], {}, open_storage) == ["opened"]
    assert opened == [("a", Name("m.g"), [1])]


@pytest.mark.parametrize(
    ("description", "what"),
    [
        (Name("m.g"), "m.g as a value"),
        ([Name("m.g")], "m.g as a value"),
        ({"a": Name("m.g")}, "m.g as a value"),
        (Built("m.h", ()), "the call of m.h"),
        (Built("m.f", ([Name("m.g")],)), "m.g as a value"),
        (Built("m.f", (), [("a", Name("m.g"))]), "m.g as a value"),
        (Built("m.f", (), [], Name("m.g")), "m.g as a value"),
        (Built("m.f", (), [((), 1)]), "keys that are no strings or numbers"),
    ],
)
def test_what_no_builder_knows(description: Any, what: str) -> None:
    with pytest.raises(RefusedPickleError, match=f"^it asks for {what}$"):
        of(description, f=lambda _: 1)


def nested(levels: int) -> Any:
    value: Any = []
    for _ in range(levels):
        value = [value]
    return value


def test_no_value_is_without_an_end() -> None:
    assert of(nested(pickles.MAX_DEPTH)) == nested(pickles.MAX_DEPTH)
    own: list[Any] = []
    own.append(own)
    deep = Built("m.f", (nested(pickles.MAX_DEPTH),))
    in_state = Built("m.f", (), [], nested(pickles.MAX_DEPTH))
    in_items = Built("m.f", (), [("a", nested(pickles.MAX_DEPTH))])
    in_dict = {"a": nested(pickles.MAX_DEPTH)}
    for value in (nested(pickles.MAX_DEPTH + 1), own, deep, in_state, in_items, in_dict):
        with pytest.raises(RefusedPickleError, match="values inside values without an end"):
            of(value, f=lambda _: 1)
    with pytest.raises(RefusedPickleError, match="values inside values without an end"):
        assemble(Storage((nested(pickles.MAX_DEPTH),)), {}, lambda _: 1)


@pytest.mark.parametrize(
    ("description", "size"),
    [
        ([1, 2], 3),
        ((1,), 2),
        ({"a": 1, "b": [1]}, 4),
        (frozenset([1, 2]), 3),
        ({1, 2}, 3),
        (Built("m.f", (1, Name("m.g"), 2), [("a", 1)], "s"), 6),
        (Built("m.f", ()), 3),
    ],
)
def test_sizes_count_repetitions(
    description: Any, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for most, value in ((size, description), (2 * size + 1, [description, description])):
        monkeypatch.setattr(pickles, "MAX_SIZE", most)
        of(value, f=lambda _: 1)
        monkeypatch.setattr(pickles, "MAX_SIZE", most - 1)
        with pytest.raises(
            RefusedPickleError, match="^it asks for more values than a saved model has$"
        ):
            of(value, f=lambda _: 1)


def test_limits() -> None:
    assert (pickles.MAX_DEPTH, pickles.MAX_SIZE, pickles.MAX_INTEGER_BITS) == (60, 50_000_000, 128)
