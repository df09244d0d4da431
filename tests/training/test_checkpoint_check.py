"""What a checkpoint has to consist of: each part, one change of it at a time."""

from __future__ import annotations

import copy
import random
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from dra_scvi._training.checkpoint_check import (
    PARTS,
    check_content,
    check_form,
    check_optimizers,
    set_random_state,
)

if TYPE_CHECKING:
    from collections.abc import Callable


def random_state() -> dict[str, Any]:
    name, keys, *rest = np.random.RandomState(1).get_state()
    version, internal, gauss = random.Random(1).getstate()
    return {
        "torch": torch.Generator().get_state(),
        "numpy": (name, keys.tolist(), *rest),
        "python": (version, list(internal), gauss),
        "cuda": [],
    }


CONTENT = {
    "identity": {
        "settings": {"seed": 0},
        "versions": {"torch": "2.0"},
        "split": {"cells": {"digest": "0"}},
    },
    "epoch": 2,
    "global_step": 0,
    "pytorch-lightning_version": "2.0",
    "state_dict": {"w": torch.ones(2)},
    "loops": {
        "fit_loop": {
            "state_dict": "any",
            "epoch_progress": {"current": {"completed": 2}, "is_last": True},
        }
    },
    "callbacks": {"one": {}},
    "optimizer_states": [{"state": {0: {}}, "param_groups": [{"params": [0, 1]}]}],
    "lr_schedulers": [{}],
    "is_complete": False,
    "history": {"loss": ("epoch", [0, 1], [0.5, 2])},
    "random_state": random_state(),
    "random_states_of_others": [random_state()],
}
CUDA = torch.Generator().get_state()


def put(*path: Any) -> dict[str, Any]:
    """Return the content with the last of `path` at the place that the others name."""
    *names, last, value = path
    content = inner = copy.deepcopy(CONTENT)
    for name in names:
        inner = inner[name]
    inner[last] = value
    return content


GROUPS = ("optimizer_states", 0, "param_groups")
REFUSED = [
    ([], "its content is no table of parts"),
    (put("epoch", 3), "its epoch is another one than in its loops"),
    (put("loops", "fit_loop", {}), "its epoch is another one than in its loops"),
    (put("loops", "fit_loop", "epoch_progress", True), "its epoch is another one than in its"),
    (put("epoch", -1), "its epoch is no whole number of at least 0"),
    (put("epoch", 2.0), "its epoch is no whole number of at least 0"),
    (put("global_step", False), "its global_step is no whole number of at least 0"),
    (put("pytorch-lightning_version", 2), "its pytorch-lightning_version is no text"),
    (put("is_complete", 0), "its is_complete is neither true nor false"),
    (put("state_dict", {}), "its state_dict is empty"),
    (put("state_dict", [torch.ones(2)]), "its state_dict is no table"),
    (put("state_dict", 3, torch.ones(2)), "its state_dict is no table"),
    (put("state_dict", "w", [1.0]), "its state_dict['w'] is no tensor"),
    (put("loops", []), "its loops is no table"),
    (put("loops", {}), "its loops['fit_loop'] is no table"),
    (
        put("loops", "fit_loop", "epoch_progress", "total", {"ready": -1}),
        "its loops['fit_loop']['epoch_progress']['total']['ready'] is no whole number",
    ),
    (put("callbacks", "one", 3), "its callbacks['one'] is no table"),
    (put("callbacks", 3), "its callbacks is no table"),
    (put("callbacks", {3: {}}), "its callbacks is no table"),
    (put("lr_schedulers", [{}, 3]), "its lr_schedulers[1] is no table"),
    (put("optimizer_states", [3]), "its optimizer_states[0] is no table"),
    (put("optimizer_states", 0, {}), "its optimizer_states[0]['state'] is no table"),
    (put("optimizer_states", 0, {"state": {}}), "its optimizer_states[0]['param_groups'] is no l"),
    (put(*GROUPS, [3]), "its optimizer_states[0]['param_groups'] is no table"),
    (put(*GROUPS, [{}]), "its optimizer_states[0]['params'] is no list"),
    (put(*GROUPS, []), "its optimizer_states[0]['state'] is of unknown parameters"),
    (put("random_state", []), "its random_state is no table"),
    (put("random_states_of_others", 0, {}), "its random_states_of_others[0] is no state of rando"),
    (put("random_state", "cuda", [[1]]), "its random_state is no state of random generators"),
    (put("random_state", "cuda", [CUDA, torch.ones(2)]), "its random_state is no state of random"),
    (put("random_state", "torch", "a"), "its random_state is no state of random generators"),
    (put("random_state", "python", ()), "its random_state is no state of random generators"),
    (put("random_state", "numpy", ("MT19937", [2**40], 1, 0, 0.0)), "its random_state is no stat"),
    (put("identity", []), "its identity is no table"),
    (put("identity", "settings", None), "its identity['settings'] is no table"),
    (put("identity", "split", {}), "its identity['split'] is empty"),
    (put("identity", "versions", "torch", 2), "its identity['versions']['torch'] is no text"),
    *(
        (put("history", "loss", curve), "its history['loss'] is no unit with places and as many n")
        for curve in (
            ["epoch", [0], [0.5]],
            ("epoch", [0]),
            ("epoch", [0], [0.5], []),
            (0, [0], [0.5]),
            ("epoch", (0,), [0.5]),
            ("epoch", [0], (0.5,)),
            ("epoch", [0, 1], [0.5]),
            ("epoch", [0.0], [0.5]),
            ("epoch", [-1], [0.5]),
            ("epoch", [0], ["0.5"]),
        )
    ),
]


@pytest.mark.parametrize(("content", "words"), REFUSED, ids=[words for _, words in REFUSED])
def test_one_part_is_not_what_it_has_to_be(content: Any, words: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(words)}"):
        check_content(content)


@pytest.mark.parametrize("name", CONTENT)
def test_one_part_is_missing(name: str) -> None:
    content = {key: value for key, value in CONTENT.items() if key != name}
    with pytest.raises(ValueError, match=f"^its {name} is missing$"):
        check_content(content)


@pytest.mark.parametrize(
    "content",
    [
        CONTENT,
        put("state_dict", "v", torch.zeros(())),
        put("optimizer_states", []),
        put("random_state", "cuda", [CUDA, CUDA]),
        put("history", {"loss": ("epoch", [], [])}),
    ],
)
def test_what_a_training_may_hold(content: dict[str, Any]) -> None:
    check_content(content)
    assert content.keys() == PARTS.keys()


OWN = {"w": torch.ones(2), "n": 1, "is": True, "part": {"m": 0.5}, "a_state_dict": {"x": 1}}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"w": torch.ones(3)}, "its it: w is no torch.float32 of the shape (2,)"),
        ({"w": torch.ones(2, dtype=torch.int64)}, "its it: w is no torch.float32 of the shape"),
        ({"w": [1.0, 1.0]}, "its it: w is no torch.float32 of the shape (2,)"),
        ({"n": True}, "its it: n is of another kind"),
        ({"is": 1}, "its it: is is of another kind"),
        ({"part": 3}, "its it: part is no table"),
        ({"part": {}}, "its it: part: m is missing"),
        ({"part": {"m": True}}, "its it: part: m is of another kind"),
        ({"a_state_dict": 3}, "its it: a_state_dict is no table"),
    ],
)
def test_another_form(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(words)}"):
        check_form({**OWN, **change}, OWN, "it")


def test_the_first_of_what_is_missing_is_named() -> None:
    with pytest.raises(ValueError, match=r"^its it: w is missing$"):
        check_form({"is": True}, OWN, "it")


def test_what_may_differ_in_a_form() -> None:
    found = {**OWN, "n": 7, "more": 1, "a_state_dict": {}, "part": {"m": 2.0}}
    check_form(found, OWN, "it")


def test_means_as_large_as_their_parameters() -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    adam = torch.optim.Adam([parameter])
    adam.state[parameter] = {
        "step": torch.tensor(1.0),
        "exp_avg": torch.ones(2),
        "exp_avg_sq": torch.ones(2),
    }
    check_optimizers(1, [adam])
    with pytest.raises(ValueError, match="^its number of optimizers is 2, not 1$"):
        check_optimizers(2, [adam])
    for mean in (torch.ones(3), "a", None):
        adam.state[parameter]["exp_avg_sq"] = mean
        with pytest.raises(ValueError, match="^its optimizer_states is of parameters of other s"):
            check_optimizers(1, [adam])


def draws(numpy: Any, python: Any) -> list[float]:
    return [numpy.rand(), numpy.randn(), python.random(), python.gauss(0, 1)]


def test_generators_go_on_where_they_were() -> None:
    numpy, python = np.random.RandomState(1), random.Random(1)
    draws(numpy, python)
    name, keys, *rest = numpy.get_state()
    version, internal, gauss = python.getstate()
    state = {"numpy": (name, keys.tolist(), *rest), "python": (version, list(internal), gauss)}
    expected = draws(numpy, python)
    others = np.random.RandomState(2), random.Random(2)
    set_random_state(state, *others)
    assert draws(*others) == expected
    before: tuple[Callable[[], Any], ...] = np.random.get_state, random.getstate
    kept = [get() for get in before]
    try:
        set_random_state(state)
        assert draws(np.random, random) == expected
    finally:
        np.random.set_state(kept[0])  # noqa: NPY002
        random.setstate(kept[1])
