"""Tests of the errors that dra_scvi raises itself."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest

from dra_scvi._exceptions import (
    GeneMismatchError,
    InvalidCountsError,
    TrainingDivergedError,
    TrainingInterruptedError,
    UntrustedModelError,
)

REPORT = {"negative": {"count": 3, "cell": "c7", "gene": "Sox2", "value": -1.5}}

errors = pytest.mark.parametrize(
    ("error", "base", "facts"),
    [
        pytest.param(
            InvalidCountsError("3 negative values", REPORT),
            ValueError,
            {"report": REPORT},
            id="InvalidCountsError",
        ),
        pytest.param(
            GeneMismatchError("2 genes are missing", ["a", "b"], ["c"]),
            ValueError,
            {"missing": ("a", "b"), "unknown": ("c",)},
            id="GeneMismatchError",
        ),
        pytest.param(
            UntrustedModelError("it would import posix.system", ["posix.system"]),
            ValueError,
            {"names": ("posix.system",)},
            id="UntrustedModelError",
        ),
        pytest.param(
            TrainingDivergedError("kl_local", 4, 17),
            RuntimeError,
            {"term": "kl_local", "epoch": 4, "step": 17},
            id="TrainingDivergedError",
        ),
        pytest.param(
            TrainingInterruptedError(15, 12, Path("runs") / "last.ckpt"),
            RuntimeError,
            {"signum": 15, "epochs": 12, "path": Path("runs") / "last.ckpt"},
            id="TrainingInterruptedError",
        ),
    ],
)


@errors
def test_error_carries_its_facts(error: Exception, base: type, facts: dict) -> None:
    assert isinstance(error, base)
    assert {name: getattr(error, name) for name in facts} == facts


@errors
@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_error_survives_pickling(error: Exception, base: type, facts: dict, protocol: int) -> None:
    found = pickle.loads(pickle.dumps(error, protocol))
    assert type(found) is type(error)
    assert isinstance(found, base)
    assert str(found) == str(error)
    assert {name: getattr(found, name) for name in facts} == facts


@errors
def test_error_can_be_copied(error: Exception, base: type, facts: dict) -> None:
    found = copy.deepcopy(error)
    assert isinstance(found, base)
    assert str(found) == str(error)
    assert {name: getattr(found, name) for name in facts} == facts


@pytest.mark.parametrize(
    ("error", "parts"),
    [
        (InvalidCountsError("row 3 is not a count"), ["row 3 is not a count"]),
        (
            TrainingDivergedError("reconstruction_loss", 41, 97),
            ["reconstruction_loss", "epoch 41", "step 97", "learning rate", "'lr'"],
        ),
        (
            TrainingInterruptedError(2, 33, Path("runs") / "last.ckpt"),
            ["33 epochs", str(Path("runs") / "last.ckpt"), "resume=True"],
        ),
    ],
    ids=["InvalidCountsError", "TrainingDivergedError", "TrainingInterruptedError"],
)
def test_message_says_what_where_and_what_to_do(error: Exception, parts: list[str]) -> None:
    for part in parts:
        assert part in str(error)


def test_invalid_counts_report_is_empty_by_default() -> None:
    assert InvalidCountsError("an empty matrix").report == {}


def test_invalid_counts_report_is_a_copy() -> None:
    report = dict(REPORT)
    error = InvalidCountsError("3 negative values", report)
    report.clear()
    assert error.report == REPORT
