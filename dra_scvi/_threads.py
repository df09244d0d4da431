"""How many threads compute: as many as help, and none that spin while they wait for others.

PyTorch's pool (OpenMP) waits in a loop. A training step has hundreds of passes too small to share,
at the end of each of which a thread that has nothing to do burns a core, the very one that the
other needs: two threads take several times as long as one, and on a busy machine twenty times.
The compiled passes over a minibatch of counts are large, and the threads that share them sleep
when they wait. So they get all cores, PyTorch and other pools of OpenMP and BLAS one thread each.
numba's pool, where it is OpenMP's too, sets the number for PyTorch when it starts; it is set anew
at every entrance therefore.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import threading
import warnings
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from threadpoolctl import ThreadpoolController

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Function = TypeVar("Function", bound=Callable[..., Any])

ENVIRONMENT = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


class Threads(NamedTuple):
    """Numbers of threads: of PyTorch and its like, and of the compiled passes."""

    pools: int
    kernels: int


class _Inside:
    """Blocks that are under way in this process, in whichever threads; the last one cleans up.

    PyTorch's number for new threads, and those of BLAS, hold for the whole process.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.n_blocks = 0
        self.chosen: Threads | None = None
        self._undo = contextlib.ExitStack()

    def enter(self, threads: Threads) -> None:
        """Set the numbers, or keep those of a block that is under way."""
        import torch

        with self.lock:
            if not self.n_blocks:
                before = torch.get_num_threads()
                self._undo.callback(torch.set_num_threads, before)
                self._undo.enter_context(_pools().limit(limits=threads.pools, user_api="blas"))
                self.chosen = threads
            self.n_blocks += 1
            torch.set_num_threads((self.chosen or threads).pools)

    def leave(self) -> None:
        """Give the numbers back, if this was the last block."""
        with self.lock:
            self.n_blocks -= 1
            if not self.n_blocks:
                self.chosen = None
                self._undo.close()


_inside = _Inside()


def _pools() -> ThreadpoolController:
    """Return the pools of the libraries that are loaded, looked for anew when more were imported.

    To look for them, all that is mapped into memory is read, which takes as long as a step.
    """
    return _pools_among(len(sys.modules))


@functools.lru_cache(maxsize=1)
def _pools_among(n_modules: int) -> ThreadpoolController:
    return ThreadpoolController()


def choose_threads() -> Threads:
    """Choose what is fastest, or take the numbers that the user has set.

    Which is what ``OMP_NUM_THREADS`` or ``MKL_NUM_THREADS`` says, or ``torch.set_num_threads``
    where that is none of the numbers that PyTorch or numba set by themselves.
    """
    import numba
    import torch

    asked, from_environment = torch.get_num_threads(), _environment()
    by_itself = _cores() if from_environment is None else (from_environment,)
    of_numba = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]
    if asked not in (*by_itself, of_numba):
        return Threads(asked, asked)
    if from_environment is not None:
        return Threads(from_environment, from_environment)
    return Threads(1, n_cores())


def n_cores() -> int:
    """Return the number of cores of this process, within its share of the machine."""
    return _cores()[0]


@functools.cache
def _cores() -> tuple[int, ...]:
    """Cores for this process, within its share of the machine; then all, and without siblings."""
    import joblib

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of machines whose cores cannot be told apart
        physical = joblib.cpu_count(only_physical_cores=True)
    return joblib.cpu_count(), os.cpu_count() or 1, physical


def _environment() -> int | None:
    for name in ENVIRONMENT:
        first = os.environ.get(name, "").split(",")[0].strip()
        if first.isdecimal() and int(first):
            return int(first)
    return None


def kernel_threads() -> int:
    """Return the number of threads that share a compiled pass; PyTorch's outside any block."""
    import torch

    chosen = _inside.chosen
    return torch.get_num_threads() if chosen is None else chosen.kernels


@contextlib.contextmanager
def own_threads(limit: int | None = None) -> Iterator[None]:
    """Choose the numbers of threads for a block, at most `limit`, and give them back after it.

    Blocks may lie in one another, and in several threads at a time: the first one chooses.

    >>> import torch
    >>> before = torch.get_num_threads()
    >>> with own_threads(limit=2):
    ...     torch.get_num_threads(), kernel_threads()
    (1, 2)
    >>> torch.get_num_threads() == before
    True
    """
    import numba

    threads = Threads(1, limit) if limit else _inside.chosen or choose_threads()
    of_numba = numba.get_num_threads()
    # OpenMP keeps a number for each thread that asks, numba too
    with _pools().limit(limits=threads.pools, user_api="openmp"):
        _inside.enter(threads)
        if limit:
            numba.set_num_threads(min(limit, of_numba))
        try:
            yield
        finally:
            numba.set_num_threads(of_numba)
            _inside.leave()


def within_own_threads(function: Function) -> Function:
    """Make a function choose its numbers of threads."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        with own_threads():
            return function(*args, **kwargs)

    return run  # type: ignore[return-value]
