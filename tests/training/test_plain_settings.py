"""Settings as plain data: what is told apart, and what is the same."""

from __future__ import annotations

import functools
import json
import math
from typing import Any

import numpy as np
import pytest

from dra_scvi._training.plain_settings import as_plain, not_comparable

RATE = 0.1


class Thing:
    def __init__(self, value: float) -> None:
        self.value = value

    def get(self) -> float:
        return self.value

    @classmethod
    def make(cls) -> Thing:
        return cls(1)


def with_default(x: float = 1) -> float:
    return x


def with_other_default(x: float = 2) -> float:
    return x


def closing_over(value: Any) -> Any:
    return lambda: value


def recursive(n: int) -> int:
    return n and recursive(n - 1)


def reads_a_global(x: float) -> float:
    return x * RATE


def reads_a_module(x: float) -> float:
    return math.sqrt(x)


def reads_a_global_deep_inside(x: float) -> Any:
    return lambda: lambda: x * RATE


def unfilled() -> Any:
    def inner() -> Any:
        return later

    plain = as_plain(inner)
    later = 1
    return plain, later


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        (True, True),
        (np.float64(0.5), 0.5),
        (np.bool_(True), True),
        ((1, [2.5, "a"]), [1, [2.5, "a"]]),
        (np.array([[1, 2]]), [[1, 2]]),
        ({1: np.int64(3)}, {"1": 3}),
        (math, "math"),
        (Thing, f"{__name__}.Thing"),
        (print, "builtins.print"),
        (object(), {"of which no more can be compared": "builtins.object"}),
        (
            functools.partial(print, 1, sep=(2,)),
            {"partial": "builtins.print", "args": [1], "keywords": {"sep": [2]}},
        ),
    ],
)
def test_plain(value: Any, expected: Any) -> None:
    found = as_plain(value)
    assert found == expected
    assert type(found) is type(expected)


DIFFERENT: list[tuple[Any, Any]] = [
    (lambda x: x + 1, lambda x: x + 2),
    (lambda x: x + 1, lambda x: x - 1),
    (lambda x: x.real, lambda x: x.imag),
    (lambda a, b: a, lambda b, a: a),
    (lambda: lambda: 1, lambda: lambda: 2),
    (lambda x=1: x, lambda x=2: x),
    (lambda *, x=1: x, lambda *, x=2: x),
    (closing_over(1), closing_over(2)),
    (closing_over(closing_over(1)), closing_over(closing_over(2))),
    (functools.partial(print, 1), functools.partial(print, 2)),
    (functools.partial(print, sep="a"), functools.partial(print, sep="b")),
    (functools.partial(print), functools.partial(repr)),
    (with_default, with_other_default),
]


@pytest.mark.parametrize(("one", "other"), DIFFERENT, ids=range(len(DIFFERENT)))
def test_told_apart(one: Any, other: Any) -> None:
    assert as_plain(one) == as_plain(one)
    assert as_plain(one) != as_plain(other)
    # the name alone is no difference between functions of one name
    if "lambda" in str(one):
        plain = as_plain(one) | {"function": ""}, as_plain(other) | {"function": ""}
        assert plain[0] != plain[1]
    json.dumps([as_plain(one), as_plain(other)])


def test_a_function_in_full() -> None:
    found = as_plain(with_default)
    assert found.keys() == {"function", "code", "defaults"}
    assert found["function"] == f"{__name__}.with_default"
    assert found["defaults"] == [1]
    assert as_plain(closing_over(3))["closure"] == {"value": 3}
    assert as_plain(lambda *, x=5: x)["keyword defaults"] == {"x": 5}
    assert as_plain(reads_a_global)["globals"] == {"RATE": 0.1}
    assert as_plain(reads_a_global_deep_inside)["globals"] == {"RATE": 0.1}
    assert as_plain(reads_a_module)["globals"] == {"math": "math"}


def test_a_function_that_calls_itself() -> None:
    assert as_plain(recursive)["globals"] == {"recursive": "itself"}
    twice = [with_default, with_default]
    assert as_plain(twice)[1] == as_plain(with_default)
    # what a table, a list, a partial function and a method hold is looked at just so
    for make in (
        lambda f: {"f": f},
        lambda f: [f],
        lambda f: functools.partial(print, f),
        lambda f: functools.partial(print, sep=f),
    ):
        inner: list[Any] = []
        inner.append(make(inner))
        assert "itself" in json.dumps(as_plain(inner))


def test_a_closure_that_is_filled_later() -> None:
    plain, later = unfilled()
    assert plain["closure"] == {"later": None}
    assert later == 1


def test_a_method_and_what_it_is_of() -> None:
    found = as_plain(Thing(1).get)
    assert found["method"]["function"] == f"{__name__}.Thing.get"
    assert list(not_comparable(found)) == [f"{__name__}.Thing"]
    assert as_plain(Thing.make)["of"] == f"{__name__}.Thing"


def test_what_cannot_be_compared_is_found_wherever_it_is() -> None:
    thing = f"{__name__}.Thing"
    inner = {"b": functools.partial(print, Thing(2))}
    held = {"a": [Thing(1), inner], "c": closing_over(Thing(3))}
    assert list(not_comparable(as_plain(held))) == [thing] * 3
    assert list(not_comparable(as_plain({"a": [1, "b", None]}))) == []
