"""How much memory there is, and how much a file would take."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dra_scvi._exceptions import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable


def available_memory() -> float:
    """Bytes that this process may still take: of the machine, and of its container."""
    limits = [np.inf]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(line for line in lines if line.startswith("MemAvailable:"))
        limits.append(1024 * float(free.split()[1]))
        group = Path("/sys/fs/cgroup")
        used = float((group / "memory.current").read_text())
        limits.append(float((group / "memory.max").read_text().replace("max", "inf")) - used)
    except (OSError, StopIteration, ValueError):
        pass  # a system without one of these files
    return max(min(limits), 0.0)


def n_bytes(element: Any) -> int:
    """Bytes that a stored array, or all in a group, takes once it is read."""
    if hasattr(element, "ndim"):
        return math.prod(element.shape or ()) * int(element.dtype.itemsize)
    return sum(n_bytes(element[key]) for key in element)


def check_room(path: Path, elements: Iterable[Any]) -> None:
    """Check that there is memory for what a file says it holds, before it is read."""
    needed, room = float(sum(map(n_bytes, elements))), available_memory()
    if needed > room:
        raise InputError(
            f"{path} says that it holds {needed / 1e9:.3g} GB, and there are {room / 1e9:.3g} GB "
            "of memory: --out-of-core leaves the counts of an .h5ad or a zarr store in their file."
        )
