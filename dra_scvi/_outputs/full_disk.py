"""HDF5 files on disks that may be full: what fails is raised once, and never inside of HDF5."""

from __future__ import annotations

import contextlib
import io
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import h5py


class PatientFile(io.FileIO):
    """A file that remembers the first error and goes on as if there had been none.

    HDF5 tries again whatever a full disk has refused, whenever it closes something, and crashes
    the process in the end.
    """

    failure: OSError | None = None

    def write(self, data: Any) -> int:
        """Write all of it, or nothing more once something could not be written."""
        rest = memoryview(data).cast("B")
        size = len(rest)
        while rest and self.failure is None:
            try:
                rest = rest[super().write(rest) or 0 :]
            except OSError as error:
                self.failure = error
        return size

    def truncate(self, size: int | None = None) -> int:
        """Set the size, or pretend to."""
        try:
            return super().truncate(size)
        except OSError as error:
            self.failure = self.failure or error
            return size or 0


@contextlib.contextmanager
def open_hdf5(path: Path, mode: str = "w") -> Iterator[h5py.File]:
    """Open a file to write to, and raise what the system has refused once it is closed."""
    import h5py

    with PatientFile(path, "w+" if mode == "w" else "r+") as raw:
        try:
            with h5py.File(raw, mode) as file:
                yield file
        except Exception as error:
            if raw.failure is None:
                raise
            raise raw.failure from error
        if raw.failure is not None:
            raise raw.failure
