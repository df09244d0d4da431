"""The benchmark for GPUs, on a CPU: where there is a GPU, there is no time to mend it."""

from __future__ import annotations

import json
import subprocess
import sys
from argparse import Namespace
from importlib.metadata import version
from typing import TYPE_CHECKING

import pytest

from tests.benchmarks import gpu, gpu_wheels

if TYPE_CHECKING:
    from pathlib import Path

HERE = "{}.{}".format(*sys.version_info)
SECTIONS = {"data", "agreement", "speed", "launches", "quality", "after training", "large"}


@pytest.mark.slow
def test_every_section_runs_and_the_cpu_agrees_with_itself(tmp_path: Path) -> None:
    file = tmp_path / "gpu.json"
    options = ["--device", "cpu", "--quick", "--minutes", "20", "--json", str(file)]
    command = [sys.executable, gpu.__file__, *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1_200, check=False)
    assert done.returncode == 0, done.stderr
    content = json.loads(file.read_text())
    rows = content["rows"]
    assert {row["section"] for row in rows} == SECTIONS  # and none is "failure"
    assert content["skipped"] == []
    differences = [row for row in rows if row["section"] == "agreement"]
    exact = [row["value"] for row in differences if row["precision"] == "float32"]
    half = [row["value"] for row in differences if row["precision"] == "bf16"]
    assert exact == [0.0] * 6
    assert all(0 < value < 0.5 for value in half)
    speeds = [row for row in rows if row["what"] == "steps a second"]
    assert len(speeds) == 12
    assert all(row["value"] > 0 for row in speeds)
    assert done.stdout.count("\n| ") == len(rows) + 1


def test_what_the_time_does_not_suffice_for_is_skipped(capsys: pytest.CaptureFixture[str]) -> None:
    report = gpu.Report(Namespace(device="cpu", minutes=0.0, json=None))
    gpu.Bench(Namespace(device="cpu", quick=True), report).run()
    assert report.rows == []
    assert report.skipped[0] == "agreement of scVI in float32"
    assert "skipped: quality (0 s left of the time)" in capsys.readouterr().out


def test_what_fails_is_a_row_and_ends_nothing() -> None:
    report = gpu.Report(Namespace(device="cpu", minutes=1e6, json=None))
    report.run("a quotient", 0.0, lambda: 1 / 0)
    (row,) = report.rows
    assert (row["section"], row["what"]) == ("failure", "a quotient")
    assert row["value"] == "ZeroDivisionError: division by zero"


def test_wheels_are_of_what_the_other_machine_lacks() -> None:
    found = gpu_wheels.missing(gpu_wheels.listed(None, HERE), HERE)
    assert {"dra-scvi", "scvi-tools", "anndata"} <= found.keys()
    there = {"torch", "numpy", "scipy", "joblib", "sympy"}
    assert not found.keys() & (there | {"statsmodels", "tensorboard"})


@pytest.mark.parametrize(("line", "expected"), [("pandas==1.0", True), ("pandas", False)])
def test_wheels_replace_what_is_there_and_does_not_suit(
    line: str, expected: bool, tmp_path: Path
) -> None:
    file = tmp_path / "freeze.txt"
    file.write_text(f"torch=={version('torch')}\n{line}\n")
    found = gpu_wheels.missing(gpu_wheels.listed(file, HERE), HERE)
    assert ("pandas" in found) is expected
    assert "torch" not in found
    assert found["scvi-tools"] == version("scvi-tools")
