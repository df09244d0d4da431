"""Damaged HDF5 files over which libraries crash or never come back, found before they are read.

HDF5 follows the addresses that a file gives it. Where damage turns them into a circle no signal
and no thread can stop it, so that another process, with little time, goes first.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SECONDS = 30  # of the processor's time: a slow disk does not count
PATIENCE = 600  # seconds by the clock
WALK = Path(__file__).with_name("hdf5_walk.py")


def check_hdf5(path: Path) -> None:
    """Check that a file can be walked through, and refers to nothing outside of itself."""
    if not _comes_to_an_end(path):
        raise ValueError("the HDF5 library crashes over it, or never comes to an end")
    from dra_scvi._inputs.hdf5_links import check_links

    check_links(path)


def _comes_to_an_end(path: Path) -> bool:
    """Whether a new interpreter gets through a file; a fork would take locks of threads along."""
    if "python" not in Path(sys.executable or "").name:
        return True  # a program that Python is a part of: there is none to be started
    command = [sys.executable, "-I", "-S", str(WALK), str(SECONDS), str(path), *sys.path]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    silent = subprocess.DEVNULL
    try:
        done = subprocess.run(
            command,
            env=environment,
            stdin=silent,
            stdout=silent,
            stderr=silent,
            timeout=PATIENCE,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    except OSError:
        return True
    return done.returncode >= 0  # below 0 is the signal that ended it
