"""Independent runs spread over processes with Ray."""

from __future__ import annotations

import importlib.util
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["check_ray", "spread"]


def check_ray(n_processes: int) -> None:
    """Check that several processes can be had.

    Parameters
    ----------
    n_processes
        How many are wanted.

    Raises
    ------
    ValueError
        When it is no positive number.
    ImportError
        When it is more than one, and Ray is not installed.

    Examples
    --------
    >>> check_ray(1)
    """
    if n_processes < 1:
        raise ValueError(f"parallel takes whole numbers from 1, not {n_processes}.")
    if n_processes > 1 and importlib.util.find_spec("ray") is None:
        raise ImportError('several runs at a time need Ray: pip install "dra_scvi[tune]".')


def spread(
    function: Callable[..., Any], jobs: Sequence[tuple[Any, ...]], n_processes: int
) -> Iterator[tuple[int, Any]]:
    """Call a function for each of some jobs, so many at a time, in processes of their own.

    Processes have one thread each, and an equal part of the GPUs that there are. A cluster of Ray
    that is connected to is used; otherwise one is started on this machine, and stopped at the end.

    Parameters
    ----------
    function
        What to call; errors that it raises come out here.
    jobs
        Its arguments.
    n_processes
        Calls at a time.

    Yields
    ------
    Place of a job among the jobs, and what came of it, as they finish.
    """
    import ray
    import torch

    is_ours = not ray.is_initialized()
    if is_ours:
        ray.init(
            num_cpus=n_processes,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    try:
        gpus = torch.cuda.device_count() / n_processes
        task = ray.remote(num_cpus=1, num_gpus=gpus)(_call)
        shared = ray.put(function)
        places = {task.remote(shared, job): place for place, job in enumerate(jobs)}
        while places:
            (done,), _ = ray.wait(list(places))
            yield places.pop(done), ray.get(done)
    finally:
        if is_ours:
            ray.shutdown()


def _call(function: Callable[..., Any], job: tuple[Any, ...]) -> Any:
    return function(*job)
