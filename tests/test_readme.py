"""Every command that the README and the tutorials show runs, or at least is one."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import nbformat
import pytest
from click.testing import CliRunner

import dra_scvi
from dra_scvi import _model, datasets
from dra_scvi.cli import program

if TYPE_CHECKING:
    import click

matplotlib.use("Agg")

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
TOOLS = {"eval", "mypy", "pip", "pre-commit", "python", "ruff"}
WORDS_OF_LOOPS = {"for", "do", "done"}
# run here, on small data; what is left out trains for minutes
RUN = {"train", "embed", "evaluate", "info"}


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def texts() -> list[str]:
    notebooks = [nbformat.read(path, as_version=4) for path in ROOT.glob("tutorials/*.ipynb")]
    cells = [cell for notebook in notebooks for cell in notebook.cells]
    return [README, *(cell.source for cell in cells if cell.cell_type == "markdown")]


def commands(script: str) -> list[list[str]]:
    """Words of every command of a script; a variable of a loop stands for its first value."""
    script = script.replace("\\\n", " ")
    for name, first in re.findall(r"for (\w+) in (\S+)", script):
        script = re.sub(rf"\$\{{{name}\}}|\${name}\b", first, script)
    found = []
    for line in script.splitlines():
        words = shlex.split(line, comments=True)
        for part in re.split(r" (?:&&|;) ", shlex.join(words).replace("'&&'", "&&")):
            command = shlex.split(part)
            if command and command[0] not in WORDS_OF_LOOPS:
                found.append(command)
    return found


SHELL = [
    command for text in texts() for block in blocks(text, "bash") for command in commands(block)
]
OURS = [command for command in SHELL if command[0] == "dra-scvi"]
IN_PLACE = [command for block in blocks(README, "bash") for command in commands(block)]


@pytest.mark.parametrize("command", OURS, ids=" ".join)
def test_command_is_one_of_the_program(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dra.yaml").write_text("n-latent: 20\n")
    made: click.Command = program.commands[command[1]]
    made.make_context(command[1], command[2:])


def test_other_commands_are_those_of_known_tools() -> None:
    assert len(OURS) > 8
    others = [command for command in SHELL if command[0] != "dra-scvi"]
    assert {command[0] for command in others} <= TOOLS
    for extras in re.findall(r"\.\[([\w,]+)\]", README):
        assert set(extras.split(",")) <= set(EXTRAS), extras
    for path in re.findall(r"(?:tests|tutorials|dra_scvi)/[\w/]+\.\w+", README):
        assert (ROOT / path).is_file(), path


@pytest.fixture
def _short(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(_model, "default_max_epochs", lambda *_: 2)


@pytest.mark.usefixtures("_short")
def test_pipeline_runs_as_it_stands(tmp_path: Path) -> None:
    cells = datasets.synthetic(n_cells=120, n_genes=30, n_types=3, n_batches=2)
    cells.layers["counts"] = cells.X.copy()
    cells.obs["donor"] = cells.obs["batch"]
    for name in ("cells.h5ad", "more.h5ad"):
        cells.write_h5ad(name)
    [yaml] = re.findall(r"With (`n-latent.*?`) in `dra\.yaml`", README)
    Path("dra.yaml").write_text("\n".join(re.findall(r"`(.*?:.*?)`", yaml)))
    ran = [c for c in IN_PLACE if c[0] == "dra-scvi" and c[1] in RUN and "published" not in c]
    assert [command[1] for command in ran] == ["train", "embed", "evaluate", "info", "train"]
    for command in ran:
        result = CliRunner().invoke(program, command[1:])
        assert result.exit_code == 0, f"{shlex.join(command)}: {result.stderr}"
    assert {"embedded.h5ad", "more_embedded.h5ad", "metrics.json", "model"} <= {
        path.name for path in tmp_path.iterdir()
    }


@pytest.mark.usefixtures("_short")
@pytest.mark.filterwarnings("ignore")
def test_python_runs_as_it_stands(tmp_path: Path) -> None:
    scope: dict[str, object] = {}
    for block in blocks(README, "python"):
        if "from ray" in block:
            continue  # forty trainings; tests/test_sweeps.py has such searches
        exec(compile(block, "README.md", "exec"), scope)
    assert (tmp_path / "umap.png").stat().st_size > 10_000
    assert (tmp_path / "model" / "manifest.json").is_file()
    assert isinstance(scope["model"], dra_scvi.DRA)


def test_citation_has_the_papers_of_the_text() -> None:
    [bibtex] = blocks(README, "bibtex")
    assert bibtex.count("{") == bibtex.count("}")
    entries = re.findall(r"@article\{(\w+),(.*?)\n\}", bibtex, re.DOTALL)
    assert [name for name, _ in entries] == ["lin2020dra", "gayoso2022scvi"]
    for _, body in entries:
        fields = dict(re.findall(r"^  (\w+) += \{(.*)\},?$", body, re.MULTILINE))
        assert set(fields) == {"author", "title", "journal", "volume", "pages", "year", "doi"}
        assert re.fullmatch(r"10\.\d{4,}/\S+", fields["doi"])
    assert "10.1186/s12859-020-3401-5" in README.split("## Citing")[0]
