"""Independent runs spread over processes of this machine."""

from __future__ import annotations

import contextlib
import logging
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence


VISIBLE = "CUDA_VISIBLE_DEVICES"


def spread(
    function: Callable[..., Any], jobs: Sequence[tuple[Any, ...]], n_processes: int
) -> Iterator[tuple[int, Any]]:
    """Call a function for each of some jobs, so many at a time, in processes of their own.

    Processes have one thread each, and take turns at the GPUs that there are. Yield the place of a
    job, and what came of it, as they finish; an error comes out here, and ends the other calls.
    """
    from joblib import Parallel, delayed, parallel_config

    gpus = _gpus()
    calls = (
        delayed(_call)(function, job, place, gpus[place % n_processes % len(gpus)])
        for place, job in enumerate(jobs)
    )
    with parallel_config("loky", inner_max_num_threads=1):
        pool = Parallel(n_processes, return_as="generator_unordered", max_nbytes=None)
    yield from pool(calls)


def _gpus() -> list[str | None]:
    """Name the GPUs that processes may see, or None, alone, where there is no choice."""
    import torch

    named = os.environ.get(VISIBLE, "").split(",") if os.environ.get(VISIBLE) else None
    n_gpus = torch.cuda.device_count()
    names = named or [str(index) for index in range(n_gpus)]
    return [*names[:n_gpus]] if n_gpus > 1 else [None]


def _call(
    function: Callable[..., Any], job: tuple[Any, ...], place: int, gpu: str | None
) -> tuple[int, Any]:
    import torch

    if gpu is not None and not torch.cuda.is_initialized():  # a process keeps its first
        os.environ[VISIBLE] = gpu
    logging.disable()  # what libraries say of each run, the table says of all
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
            return place, function(*job)
    finally:
        logging.disable(logging.NOTSET)
