"""Pickles of other people, read as a description: nothing that they name is imported or called.

A pickle is a program. Here it is not run: its opcodes are interpreted over a stack of our own,
where a name is a string and the call of a name is a note of it, and what it describes is then put
together by a table of builders that check whatever they are given. Of the opcodes only those are
known that plain containers, numbers and strings need.
"""

from __future__ import annotations

import pickletools
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

MAX_DEPTH = 60
MAX_SIZE = 50_000_000
MAX_INTEGER_BITS = 128

SCALARS = (type(None), bool, int, float, str)


class RefusedPickleError(ValueError):
    """A pickle asks for more than values; `names` is what it would import, if that is why."""

    def __init__(self, message: str, names: tuple[str, ...] = ()) -> None:
        self.names = names
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class Name:
    """What a pickle would import: a string, and never anything else."""

    text: str


@dataclass(slots=True, eq=False)
class Built:
    """What a pickle would call, with all that it would hand over.

    `items` are keys and values that are set afterwards, `state` what the object's own method would
    take afterwards; `None` for nothing.
    """

    name: str
    args: tuple[Any, ...]
    items: list[tuple[Any, Any]] = field(default_factory=list)
    state: Any = None


@dataclass(slots=True, eq=False)
class Storage:
    """The name of bytes that are kept beside the pickle."""

    args: tuple[Any, ...]


# -- opcodes -----------------------------------------------------------------------------------


def describe(pickle: bytes) -> tuple[Any, set[str]]:
    """Return what a pickle of protocol 2 to 5 describes, and the names that it would import.

    A :class:`RefusedPickleError` where it has an opcode that values do not need, or changes what
    it has made in other ways; a ValueError, LookupError or TypeError where it is damaged.
    """
    machine = _Machine()
    position: int | None = None
    for opcode, argument, position in pickletools.genops(pickle):  # noqa: B007
        step = _STEPS.get(opcode.name)
        if step is None:
            _refuse(f"the opcode {opcode.name}")
        step(machine, argument)
    if position != len(pickle) - 1 or machine.marked:
        raise ValueError("bytes follow the end of the pickle, or are missing from it")
    (value,) = machine.stack
    return value, machine.names


class _Machine:
    """The stack, the memo and the names of one pickle."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.names: set[str] = set()

    def mark(self) -> None:
        self.marked.append(self.stack)
        self.stack = []

    def since_mark(self) -> list[Any]:
        found, self.stack = self.stack, self.marked.pop()
        return found

    def gather(self, kind: Callable[[list[Any]], Any]) -> None:
        value = kind(self.since_mark())
        self.stack.append(value)

    def take(self, number: int) -> tuple[Any, ...]:
        if len(self.stack) < number:
            raise ValueError("the stack is empty")
        found = tuple(self.stack[-number:])
        del self.stack[-number:]
        return found

    def name(self, module: Any, name: Any) -> None:
        if not (isinstance(module, str) and isinstance(name, str)):
            _refuse("a name that is no string")
        text = f"{IMPORT_MAPPING.get(module, module)}.{name}"
        if (module, name) in NAME_MAPPING:
            text = ".".join(NAME_MAPPING[module, name])
        self.names.add(text)
        self.stack.append(Name(text))

    def call(self) -> None:
        called, args = self.take(2)
        if not isinstance(called, Name):
            _refuse("the call of what it has made")
        if not isinstance(args, tuple):
            _refuse("a call without a tuple of arguments")
        self.stack.append(Built(called.text, args))

    def build(self) -> None:
        made, state = self.take(2)
        if not isinstance(made, Built) or made.state is not None:
            _refuse("another state of what it has made")
        made.state = state
        self.stack.append(made)

    def set_items(self, pairs: list[Any] | tuple[Any, ...]) -> None:
        made, keys, values = self.stack[-1], pairs[::2], pairs[1::2]
        if isinstance(made, Built):
            made.items.extend(zip(keys, values, strict=True))
            return
        if type(made) is not dict:
            _refuse("items of what is no dictionary")
        for key, value in zip(keys, values, strict=True):
            _check_key(key)
            made[key] = value

    def append(self, values: list[Any] | tuple[Any, ...]) -> None:
        if type(self.stack[-1]) is not list:
            _refuse("more of what is no list")
        self.stack[-1].extend(values)

    def add(self, values: list[Any]) -> None:
        if type(self.stack[-1]) is not set:
            _refuse("more of what is no set")
        self.stack[-1].update(map(_check_key, values))

    def remember(self, place: int | None) -> None:
        self.memo[len(self.memo) if place is None else place] = self.stack[-1]


def _refuse(what: str) -> NoReturn:
    raise RefusedPickleError(f"it asks for {what}")


def _check_key(key: Any) -> Any:
    """Check what is hashed: of nested tuples a few hundred bytes can take for ever."""
    if not isinstance(key, SCALARS):
        _refuse("keys that are no strings or numbers")
    return key


def _frozenset(values: list[Any]) -> frozenset[Any]:
    return frozenset(map(_check_key, values))


def _check_text(text: str) -> str:
    text.encode()  # which halves of characters do not survive
    return text


def _store(machine: _Machine) -> None:
    (args,) = machine.take(1)
    if not isinstance(args, tuple):
        _refuse("something beside the pickle that is no storage")
    machine.stack.append(Storage(args))


def _check_integer(value: int) -> int:
    if value.bit_length() > MAX_INTEGER_BITS:
        _refuse("a number of more digits than a saved model has")
    return value


def _push(value: Callable[[Any], Any]) -> Callable[[_Machine, Any], None]:
    return lambda machine, argument: machine.stack.append(value(argument))


def _wrap(number: int) -> Callable[[_Machine, Any], None]:
    return lambda machine, _: machine.stack.append(machine.take(number))


_same = _push(lambda argument: argument)

_STEPS: dict[str, Callable[[_Machine, Any], Any]] = {
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), lambda _, __: None),
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "BINFLOAT"), _same),
    **dict.fromkeys(("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"), _same),
    **dict.fromkeys(("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"), _push(_check_text)),
    "LONG1": _push(_check_integer),
    "BYTEARRAY8": _push(bytes),
    "NONE": _push(lambda _: None),
    "NEWTRUE": _push(lambda _: True),
    "NEWFALSE": _push(lambda _: False),
    "EMPTY_LIST": _push(lambda _: []),
    "EMPTY_DICT": _push(lambda _: {}),
    "EMPTY_SET": _push(lambda _: set()),
    "EMPTY_TUPLE": _push(lambda _: ()),
    "TUPLE1": _wrap(1),
    "TUPLE2": _wrap(2),
    "TUPLE3": _wrap(3),
    "MARK": lambda machine, _: machine.mark(),
    "TUPLE": lambda machine, _: machine.gather(tuple),
    "FROZENSET": lambda machine, _: machine.gather(_frozenset),
    "APPEND": lambda machine, _: machine.append(machine.take(1)),
    "APPENDS": lambda machine, _: machine.append(machine.since_mark()),
    "ADDITEMS": lambda machine, _: machine.add(machine.since_mark()),
    "SETITEM": lambda machine, _: machine.set_items(machine.take(2)),
    "SETITEMS": lambda machine, _: machine.set_items(machine.since_mark()),
    **dict.fromkeys(
        ("BINPUT", "LONG_BINPUT", "MEMOIZE"), lambda machine, place: machine.remember(place)
    ),
    **dict.fromkeys(
        ("BINGET", "LONG_BINGET"), lambda machine, place: machine.stack.append(machine.memo[place])
    ),
    "GLOBAL": lambda machine, argument: machine.name(*argument.split(" ", 1)),
    "STACK_GLOBAL": lambda machine, _: machine.name(*machine.take(2)),
    **dict.fromkeys(("REDUCE", "NEWOBJ"), lambda machine, _: machine.call()),
    "BUILD": lambda machine, _: machine.build(),
    "BINPERSID": lambda machine, _: _store(machine),
}


# -- values ------------------------------------------------------------------------------------


def assemble(
    description: Any,
    build: Mapping[str, Callable[[Built], Any]],
    open_storage: Callable[[Storage], Any],
) -> Any:
    """Return what is described: containers, numbers, strings, and what the builders make.

    `build` has for each name that may be called what makes its value, from a note all of whose
    parts are values, or names where they were directly among its arguments; `open_storage` makes
    the value of bytes beside the pickle. Refused are other names, and values that contain
    themselves, or are deeper or, repetitions counted, larger than any saved model.
    """
    return _Assembly(build, open_storage).value(description, 0)[0]


class _Assembly:
    """Values by the identity of what describes them, with their sizes, repetitions counted."""

    def __init__(
        self, build: Mapping[str, Callable[[Built], Any]], open_storage: Callable[[Storage], Any]
    ) -> None:
        self.build, self.open_storage = build, open_storage
        self.made: dict[int, tuple[Any, int]] = {}
        self.begun: set[int] = set()

    def value(self, described: Any, depth: int) -> tuple[Any, int]:
        """Return a value and its size."""
        if isinstance(described, (*SCALARS, bytes)):
            return described, 1
        key = id(described)
        if key not in self.made:
            if depth > MAX_DEPTH or key in self.begun:
                _refuse("values inside values without an end")
            self.begun.add(key)
            self.made[key] = self._make(described, depth + 1)
            self.begun.remove(key)
            if self.made[key][1] > MAX_SIZE:
                _refuse("more values than a saved model has")
        return self.made[key]

    def _make(self, described: Any, depth: int) -> tuple[Any, int]:
        if isinstance(described, Built):
            return self._make_built(described, depth)
        if isinstance(described, Storage):
            args, size = self._all(described.args, depth, named=True)
            return self.open_storage(Storage(tuple(args))), size
        if isinstance(described, dict):
            values, size = self._all(described.values(), depth)
            return dict(zip(described, values, strict=True)), size
        if isinstance(described, list | tuple):
            values, size = self._all(described, depth)
            return type(described)(values), size
        if isinstance(described, set | frozenset):
            return described, len(described) + 1
        _refuse(f"{described.text} as a value")

    def _make_built(self, described: Built, depth: int) -> tuple[Any, int]:
        if described.name not in self.build:
            _refuse(f"the call of {described.name}")
        args, size = self._all(described.args, depth, named=True)
        keys = [_check_key(key) for key, _ in described.items]
        values, size_of_items = self._all([value for _, value in described.items], depth)
        state, size_of_state = self.value(described.state, depth)
        items = list(zip(keys, values, strict=True))
        made = self.build[described.name](Built(described.name, tuple(args), items, state))
        return made, size + size_of_items + size_of_state

    def _all(self, described: Any, depth: int, named: bool = False) -> tuple[list[Any], int]:
        values, size = [], 1
        for part in described:
            if named and isinstance(part, Name):
                values.append(part)
                continue
            value, size_of_part = self.value(part, depth)
            values.append(value)
            size += size_of_part
        return values, size
