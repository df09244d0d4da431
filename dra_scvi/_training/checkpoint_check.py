"""What a checkpoint has to consist of: each part checked before it is used."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch.optim import Optimizer


def check_content(content: Any) -> None:
    """Check the parts of a checkpoint: their kinds, and that they can be of a training.

    >>> check_content({"epoch": -5})
    Traceback (most recent call last):
    ...
    ValueError: its identity is missing
    """
    _demand(isinstance(content, dict), "content", "no table of parts")
    for name, check in PARTS.items():
        _demand(name in content, name, "missing")
        check(content[name], name)
    try:
        done = content["loops"]["fit_loop"]["epoch_progress"]["current"]["completed"]
    except (KeyError, TypeError):
        done = None
    _demand(done == content["epoch"], "epoch", "another one than in its loops")


def check_form(found: Mapping[str, Any], own: Mapping[str, Any], name: str) -> None:
    """Check that tables have the names, tensors the shapes, and numbers the kinds of a training.

    `own` is the same part of the training that goes on, whose states, which may come and go, are
    not looked at; `name` is what the part is called in messages.
    """
    missing = [key for key in own if key not in found]
    _demand(not missing, f"{name}: {', '.join(map(str, missing[:1]))}", "missing")
    for key, mine in own.items():
        value, place = found[key], f"{name}: {key}"
        if isinstance(mine, torch.Tensor):
            kind = f"no {mine.dtype} of the shape {tuple(mine.shape)}"
            fits = isinstance(value, torch.Tensor) and value.dtype == mine.dtype
            _demand(fits and value.shape == mine.shape, place, kind)
        elif isinstance(mine, dict):
            _demand(isinstance(value, dict), place, "no table")
            if not str(key).endswith("state_dict"):
                check_form(value, mine, place)
        else:
            _demand(isinstance(value, bool) == isinstance(mine, bool), place, "of another kind")


def check_optimizers(number: int, optimizers: Sequence[Optimizer]) -> None:
    """Check that optimizers found a state each, of means that are as large as what they are of.

    PyTorch takes them as they come, and its compiled steps do not look.
    """
    _demand(number == len(optimizers), "number of optimizers", f"{number}, not {len(optimizers)}")
    for optimizer in optimizers:
        for parameter, state in optimizer.state.items():
            means = [v for name, v in state.items() if "exp_avg" in name]
            fit = all(getattr(mean, "shape", None) == parameter.shape for mean in means)
            _demand(fit, "optimizer_states", "of parameters of other shapes")


def set_random_state(
    state: Mapping[str, Any], numpy: Any = np.random, python: Any = random
) -> None:
    """Set the generators of NumPy and Python to a state that was kept in plain types."""
    name, keys, *rest = state["numpy"]
    numpy.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    version, internal, gauss = state["python"]
    python.setstate((version, tuple(internal), gauss))


def _demand(condition: bool, name: str, problem: str) -> None:
    if not condition:
        raise ValueError(f"its {name} is {problem}")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _whole(value: Any, name: str) -> None:
    _demand(_is_whole(value), name, "no whole number of at least 0")


def _of(kind: type, what: str) -> Callable[[Any, str], None]:
    return lambda value, name: _demand(isinstance(value, kind), name, what)


_text, _flag, _list = (
    _of(str, "no text"),
    _of(bool, "neither true nor false"),
    _of(list, "no list"),
)


def _table(value: Any, name: str) -> None:
    _demand(isinstance(value, dict) and all(isinstance(k, str) for k in value), name, "no table")


def _each(check: Callable[[Any, str], None]) -> Callable[[Any, str], None]:
    def check_all(value: Any, name: str) -> None:
        (_list if isinstance(value, list) else _table)(value, name)
        for key, part in enumerate(value) if isinstance(value, list) else value.items():
            check(part, f"{name}[{key!r}]")

    return check_all


def _weights(value: Any, name: str) -> None:
    _table(value, name)
    _demand(len(value) > 0, name, "empty")
    _each(_of(torch.Tensor, "no tensor"))(value, name)


def _progress(value: Any, name: str) -> None:
    """Numbers of epochs and steps lie in tables of tables; what loaders keep is theirs."""
    if isinstance(value, dict):
        for key, part in value.items():
            if not str(key).endswith("state_dict"):
                _progress(part, f"{name}[{key!r}]")
    elif not isinstance(value, bool):
        _whole(value, name)


def _loops(value: Any, name: str) -> None:
    _table(value, name)
    _demand(isinstance(value.get("fit_loop"), dict), f"{name}['fit_loop']", "no table")
    _progress(value["fit_loop"], f"{name}['fit_loop']")


def _optimizer(value: Any, name: str) -> None:
    _table(value, name)
    _demand(isinstance(value.get("state"), dict), f"{name}['state']", "no table")
    _list(value.get("param_groups"), f"{name}['param_groups']")
    for group in value["param_groups"]:
        _table(group, f"{name}['param_groups']")
        _list(group.get("params"), f"{name}['params']")
    known = {number for group in value["param_groups"] for number in group["params"]}
    _demand(known.issuperset(value["state"]), f"{name}['state']", "of unknown parameters")


def _curve(value: Any, name: str) -> None:
    is_curve = isinstance(value, tuple) and len(value) == 3 and isinstance(value[0], str)
    is_curve = is_curve and all(isinstance(part, list) for part in value[1:])
    is_curve = is_curve and len(value[1]) == len(value[2]) and all(map(_is_whole, value[1]))
    is_curve = is_curve and all(isinstance(number, int | float) for number in value[2])
    _demand(is_curve, name, "no unit with places and as many numbers")


def _random_state(value: Any, name: str) -> None:
    """Try the state on generators that nobody uses."""
    _table(value, name)
    try:
        torch.Generator().set_state(value["torch"])
        set_random_state(value, np.random.RandomState(0), random.Random(0))
        on_devices = value["cuda"]
        is_sound = all(isinstance(s, torch.Tensor) and s.dtype == torch.uint8 for s in on_devices)
    except (IndexError, KeyError, OverflowError, RuntimeError, TypeError, ValueError):
        is_sound = False
    _demand(is_sound, name, "no state of random generators")


def _identity(value: Any, name: str) -> None:
    _table(value, name)
    for part in ("settings", "versions", "split"):
        _table(value.get(part), f"{name}[{part!r}]")
        _demand(len(value[part]) > 0, f"{name}[{part!r}]", "empty")
    _each(_text)(value["versions"], f"{name}['versions']")


PARTS: dict[str, Callable[[Any, str], None]] = {
    "identity": _identity,
    "epoch": _whole,
    "global_step": _whole,
    "pytorch-lightning_version": _text,
    "state_dict": _weights,
    "loops": _loops,
    "callbacks": _each(_table),
    "optimizer_states": _each(_optimizer),
    "lr_schedulers": _each(_table),
    "is_complete": _flag,
    "history": _each(_curve),
    "random_state": _random_state,
    "random_states_of_others": _each(_random_state),
}
