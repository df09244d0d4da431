"""The series: code that is kept on disk is that of the series as they are."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from typing import TYPE_CHECKING

from dra_scvi._kernels import series

if TYPE_CHECKING:
    from pathlib import Path

USER = """
from series import jit, log_double

@jit
def twice(x):
    return 2 * log_double(x)

if __name__ == "__main__":
    print(twice(1.0), sum(twice.stats.cache_hits.values()))
"""


def run(folder: Path) -> list[float]:
    """Compile and call in a process of its own; return the result, and how often it was kept."""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(folder / "cache")}
    command = [sys.executable, str(folder / "user.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return [float(number) for number in done.stdout.split()]


def test_functions_that_use_a_series_that_was_edited(tmp_path: Path) -> None:
    """A function of another file is compiled anew once a series is edited, and only then."""
    source = inspect.getsource(series)
    (tmp_path / "series.py").write_text(source)
    (tmp_path / "user.py").write_text(USER)
    assert run(tmp_path) == [0.0, 0.0]
    assert run(tmp_path) == [0.0, 1.0]
    edited = source.replace("return n * _LN2 + series * s", "return n * _LN2 + series * s + 1.0")
    assert edited != source
    (tmp_path / "series.py").write_text(edited)
    assert run(tmp_path) == [2.0, 0.0]
