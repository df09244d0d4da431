"""Walk through an HDF5 file: a program, started with little time, that may crash or never end.

`hdf5_probe` runs it as `python hdf5_walk.py SECONDS FILE [SYS.PATH ...]` and looks at how it
ended; what it finds is of no interest.
"""

from __future__ import annotations

import contextlib
import sys
from typing import Any

SMALL = 2**20


def look(name: str, item: Any) -> None:
    """Read what the library finds by following addresses: attributes, chunks, small data."""
    import h5py

    dict(item.attrs)
    if not isinstance(item, h5py.Dataset):
        return
    if item.chunks is not None:
        item.id.get_num_chunks()
    if item.size is not None and item.size * item.dtype.itemsize <= SMALL:
        item[()]


def walk(path: str) -> None:
    """Look at everything in a file; values that lie in other files are not."""
    import h5py

    with h5py.File(path, "r") as file:
        look("/", file)
        file.visititems(look)


def limit_time(seconds: int) -> None:
    """End this process after so much of the processor's time: a slow disk does not count."""
    with contextlib.suppress(ImportError):  # on Windows the time of `_hdf5_probe` has to do
        import resource

        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    limit_time(int(sys.argv[1]))
    sys.path[:] = sys.argv[3:]
    with contextlib.suppress(Exception):  # which are left to the reader of the file
        walk(sys.argv[2])
