"""Threads: as many as are fastest without a setting, and everybody's numbers given back."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import numba
import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info

from dra_scvi import DRA, _threads, metrics
from dra_scvi._kernels import likelihood as _likelihood
from tests.helpers import QUIET, cells, embed, fit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Pools = tuple[int, list[tuple[str, int]]]


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Be a machine of two cores whose user has set nothing; PyTorch has taken both."""
    for name in _threads.ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(_threads, "_cores", lambda: (2, 2, 2))
    monkeypatch.setattr(numba.config, "NUMBA_NUM_THREADS", 2)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> set[tuple[int, int]]:
    """Numbers of PyTorch's threads, and of those of the compiled pass, in all steps."""
    numbers = set()
    kernel = _likelihood.log_prob_and_derivatives

    def watch(*args: object) -> tuple[np.ndarray, ...]:
        numbers.add((torch.get_num_threads(), args[-1]))
        return kernel(*args)

    monkeypatch.setattr(_likelihood, "log_prob_and_derivatives", watch)
    return numbers


def pools() -> Pools:
    return torch.get_num_threads(), [(p["filepath"], p["num_threads"]) for p in threadpool_info()]


def test_no_threads_that_spin_where_nobody_chose(seen: set) -> None:
    """Without a setting PyTorch has one thread, and the compiled passes have all cores."""
    fit(cells())
    assert seen == {(1, 2)}


def test_nothing_is_set_for_good() -> None:
    """After training, embedding and scoring, all numbers of threads are what they were."""
    model = fit(cells())
    before = pools()
    model.train(1, **QUIET)
    codes = model.get_latent_representation()
    model.get_normalized_expression()
    metrics.cluster(codes, n_clusters=2)
    assert pools() == before


def test_numbers_are_given_back_after_an_error() -> None:
    """A training that fails gives the threads back as well."""
    model = fit(cells())
    before = pools()
    with pytest.raises(Exception, match="nonsense"):
        model.train(1, accelerator="nonsense")
    assert pools() == before


@pytest.mark.parametrize("name", _threads.ENVIRONMENT)
def test_the_environment_is_respected(
    name: str, seen: set, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OMP_NUM_THREADS says how many threads compute, whatever numba has set since."""
    monkeypatch.setenv(name, "1")
    fit(cells())  # PyTorch's number is numba's, 2
    assert seen == {(1, 1)}


def test_set_num_threads_is_respected(seen: set) -> None:
    """`torch.set_num_threads` of the user says how many threads compute, and stays."""
    torch.set_num_threads(3)
    fit(cells())
    assert seen == {(3, 3)}
    assert torch.get_num_threads() == 3


def test_two_trainings_in_two_threads() -> None:
    """The one that ends first neither changes the other's number of threads nor keeps its own."""
    numbers: dict[str, list[int]] = {"first": [], "second": []}
    second_began, first_is_in, second_is_in, first_is_out = (threading.Event() for _ in range(4))

    def note(name: str) -> None:
        numbers[name].append(torch.get_num_threads())

    def in_thread(work: Callable[[], None]) -> threading.Thread:
        thread = threading.Thread(target=work)
        thread.start()
        return thread

    def first() -> None:
        assert second_began.wait(60)
        with _threads.own_threads():
            first_is_in.set()
            assert second_is_in.wait(60)
        note("first")
        first_is_out.set()

    def second() -> None:
        note("second")
        second_began.set()
        assert first_is_in.wait(60)
        with _threads.own_threads():
            second_is_in.set()
            assert first_is_out.wait(60)
            note("second")
            in_thread(lambda: note("second")).join()
        note("second")

    for thread in [in_thread(first), in_thread(second)]:
        thread.join()
    assert numbers == {"first": [2], "second": [2, 1, 1, 2]}
    assert torch.get_num_threads() == 2


def test_pools_of_libraries_that_are_loaded_later() -> None:
    """A library that is imported later, and brings a pool of threads, has one as well."""
    script = """
import numpy, torch
from threadpoolctl import threadpool_info
from dra_scvi._threads import own_threads

def pools():
    return {pool["filepath"]: pool["num_threads"] for pool in threadpool_info()}

with own_threads():
    before = pools()
import sklearn.cluster
with own_threads():
    added = {path: number for path, number in pools().items() if path not in before}
print(len(added), set(added.values()))
"""
    free = {name: value for name, value in os.environ.items() if "_NUM_THREADS" not in name}
    result = subprocess.run(
        [sys.executable, "-c", script], env=free, capture_output=True, text=True, check=True
    )
    n_added, numbers = result.stdout.split(maxsplit=1)
    assert int(n_added)
    assert numbers.strip() == "{1}"


def test_codes_do_not_depend_on_the_number_of_threads() -> None:
    """`--threads 1`, `--threads 4` and no setting give the same bytes for one seed."""

    def codes(limit: int | None) -> np.ndarray:
        with _threads.own_threads(limit):
            return embed(cells(n_cells=300, n_genes=600), train_kwargs={"batch_size": 128})

    one, four, free = (codes(limit) for limit in (1, 4, None))
    assert np.array_equal(one, four)
    assert np.array_equal(one, free)


def test_every_getter_chooses_its_threads() -> None:
    """No getter of scvi-tools is left to PyTorch's own number of threads."""
    of_registry = {"get_anndata_manager", "get_from_registry", "get_normalized_function_name"}
    of_registry |= {"get_setup_arg", "get_state_registry", "get_var_names"}
    starts = ("get_", "differential_", "posterior_predictive", "train")
    computing = {name for name in dir(DRA) if name.startswith(starts)} - of_registry
    functions = {name: getattr(DRA, name) for name in computing}
    left = {
        name
        for name, function in functions.items()
        if callable(function) and function.__code__ is not DRA.train.__code__
    }
    assert left == set()
    assert DRA.train.__code__.co_filename == _threads.__file__
