"""Every tutorial runs from top to bottom and shows its figures."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from dra_scvi import datasets

NOTEBOOKS = sorted((Path(__file__).parents[1] / "tutorials").glob("*.ipynb"))


def figures(notebook: nbformat.NotebookNode) -> int:
    return sum(
        "image/png" in output.get("data", {})
        for cell in notebook.cells
        for output in cell.get("outputs", [])
    )


def test_there_are_tutorials() -> None:
    assert NOTEBOOKS


@pytest.mark.tutorial
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_tutorial_runs_and_draws_what_its_stored_copy_shows(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    if any("datasets.kang(" in cell.source for cell in notebook.cells):
        try:
            datasets.kang()
        except ConnectionError as error:
            pytest.skip(str(error))
    stored = figures(notebook)
    assert stored, "the tutorial is stored without its figures: run it and save it"
    client = NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": path.parent}}
    )
    client.execute()
    assert figures(notebook) == stored


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_stored_outputs_tell_no_paths_of_a_machine_and_no_errors(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert "error" not in {output["output_type"] for output in outputs}
    texts = [
        output.get("text", "") + output.get("data", {}).get("text/plain", "") for output in outputs
    ]
    assert not re.findall(r"/(?:root|home|Users|tmp/ipykernel_)\S*", "\n".join(texts))
