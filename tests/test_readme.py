"""Commands and examples of README, pages and tutorials run; links and numbers are right."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import matplotlib
import nbformat
import numpy as np
import pytest
from click.testing import CliRunner

from dra_scvi import datasets
from dra_scvi._model import base as _model
from dra_scvi.cli import program
from tests.benchmarks import figure

matplotlib.use("Agg")

ROOT = Path(__file__).parents[1]
FOLDERS = (ROOT / ".github", ROOT / ".docs", ROOT / ".docs" / "api")
FILES = [ROOT / "README.md", *(path for folder in FOLDERS for path in folder.glob("*.md"))]
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text() for path in sorted(FILES)}
README = PAGES["README.md"]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
TOOLS = {"eval", "mypy", "pip", "pre-commit", "python", "ruff"}
WORDS_OF_LOOPS = {"for", "do", "done"}
# run here, on small data; what is left out trains for minutes
RUN = {"train", "embed", "map", "evaluate", "info"}
HEADINGS = re.compile(r"^#+ (.+)$", re.MULTILINE)
LINKS = re.compile(r"\]\((?!https?:)([^)#\s]*)#?([^)\s]*)\)")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def texts() -> list[str]:
    notebooks = [nbformat.read(path, as_version=4) for path in ROOT.glob("tutorials/*.ipynb")]
    cells = [cell for notebook in notebooks for cell in notebook.cells]
    return [*PAGES.values(), *(c.source for c in cells if c.cell_type == "markdown")]


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
            while command and re.match(r"\w+=", command[0]):  # a variable for this command
                command = command[1:]
            if command and command[0] not in WORDS_OF_LOOPS:
                found.append(command)
    return found


def shell(text: str) -> list[list[str]]:
    return [command for block in blocks(text, "bash") for command in commands(block)]


def to_run(text: str) -> list[list[str]]:
    ours = [command for command in shell(text) if command[0] == "dra-scvi"]
    return [command for command in ours if command[1] in RUN and "published" not in command]


def to_execute(text: str) -> list[str]:
    # sweeps are forty trainings; tests/test_sweeps.py has such searches
    return [block for block in blocks(text, "python") if "from ray" not in block]


SHELL = [command for text in texts() for command in shell(text)]
OURS = [command for command in SHELL if command[0] == "dra-scvi"]


@pytest.mark.parametrize("command", OURS, ids=" ".join)
def test_command_is_one_of_the_program(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dra.yaml").write_text("n-latent: 20\n")
    made = program.commands[command[1]]
    made.make_context(command[1], command[2:])


def test_other_commands_are_those_of_known_tools() -> None:
    assert len(OURS) > 8
    others = [command for command in SHELL if command[0] != "dra-scvi"]
    assert {command[0] for command in others} <= TOOLS
    for name, text in PAGES.items():
        for extras in re.findall(r"\.\[([\w,]+)\]", text):
            assert set(extras.split(",")) <= set(EXTRAS), f"{name}: {extras}"
        for path in re.findall(r"(?:tests|tutorials|dra_scvi|\.docs)/[\w/]+\.\w+", text):
            assert (ROOT / path).is_file() or "/build/" in path, f"{name}: {path}"


def anchors(text: str) -> set[str]:
    """Slugs of a page's headings, as GitHub and MyST make them."""
    return {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in HEADINGS.findall(text)}


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    page = ROOT / name
    for path, anchor in LINKS.findall(PAGES[name]):
        target = (page.parent / path) if path else page
        assert target.exists(), path
        if anchor:
            assert anchor in anchors(target.read_text()), f"{path}#{anchor}"


@pytest.fixture
def _short(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Make the files that the pages speak of; train for two epochs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(_model, "default_max_epochs", lambda *_: 2)
    cells = datasets.synthetic(n_cells=120, n_genes=60, n_types=3, n_batches=2)
    cells.var_names = ["CD3E", *cells.var_names[1:]]
    cells.layers["counts"] = cells.X.copy()
    cells.obs["donor"] = cells.obs["sample"] = cells.obs["batch"]
    cells.obs["site"], cells.obs["age"] = ["here", "there"] * 60, np.arange(120.0)
    for name in ("cells.h5ad", "more.h5ad", "one.h5ad", "two.h5ad"):
        cells.write_h5ad(name)
    cells.write_zarr("three.zarr")
    cells.obsm["X_dra"] = np.random.default_rng(0).normal(size=(cells.n_obs, 10))
    cells.write_h5ad("embedded.h5ad")


@pytest.mark.usefixtures("_short")
@pytest.mark.parametrize("name", [name for name, text in PAGES.items() if to_run(text)])
def test_pipeline_runs_as_it_stands(name: str) -> None:
    Path("embedded.h5ad").unlink()  # the first command writes it
    for yaml in blocks(PAGES[name], "yaml"):
        Path("dra.yaml").write_text(yaml)
    ran = to_run(PAGES[name])
    for command in ran:
        result = CliRunner().invoke(program, command[1:])
        assert result.exit_code == 0, f"{shlex.join(command)}: {result.stderr}"
    outputs = [word for command in ran for word in command if word.endswith((".h5ad", ".json"))]
    assert all(Path(output).is_file() for output in outputs)


@pytest.mark.usefixtures("_short")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [name for name, text in PAGES.items() if to_execute(text)])
def test_python_runs_as_it_stands(name: str) -> None:
    scope: dict[str, object] = {}
    for block in to_execute(PAGES[name]):
        exec(compile(block, name, "exec"), scope)
    adata = scope["adata"]
    assert adata.obsm["X_dra"].shape == (adata.n_obs, 10)
    code = re.sub(r"#.*", "", "".join(to_execute(PAGES[name])))
    written = re.findall(r"save(?:=|\()\"([\w.]+)\"", code)
    assert all(Path(path).exists() for path in written)


def test_readme_is_one_page() -> None:
    assert len(README.splitlines()) <= 120
    assert len(README.encode()) <= 6144


def test_readme_begins_with_two_commands() -> None:
    first, second, *_ = blocks(README, "bash")
    assert commands(first) == [["pip", "install", "."], ["dra-scvi", "demo"]]
    assert commands(second) == [["pip", "install", ".[test]"], ["python", "-m", "pytest"]]


def test_continuous_integration_runs_the_test_command() -> None:
    script = ROOT / ".ci" / "run"
    if not script.exists():
        pytest.skip("an sdist has no .ci")
    lines = [line for line in script.read_text().splitlines() if not line.startswith("#")]
    assert 'pip install ".[test]" && python -m pytest' in [
        line.replace(" --quiet", "").strip() for line in lines
    ]


def test_numbers_of_the_readme_are_those_of_the_stored_rows() -> None:
    for claim, number in figure.claims().items():
        if "Leiden, nothing" not in claim:
            assert number in README, claim
    for line in figure.table():
        assert line in README


def test_figure_shows_the_stored_rows() -> None:
    shown = {metric: figure.leads(metric) for metric in figure.METRICS}
    [drawn] = re.findall(r"<dc:description>(.*?)<", figure.FIGURE.read_text(), re.DOTALL)
    assert drawn == figure.described(shown)


def test_citation_has_the_papers_of_the_text() -> None:
    [bibtex] = blocks(PAGES[".docs/citing.md"], "bibtex")
    assert bibtex.count("{") == bibtex.count("}")
    entries = re.findall(r"@article\{(\w+),(.*?)\n\}", bibtex, re.DOTALL)
    assert [name for name, _ in entries] == ["lin2020dra", "gayoso2022scvi"]
    for _, body in entries:
        fields = dict(re.findall(r"^  (\w+) += \{(.*)\},?$", body, re.MULTILINE))
        assert set(fields) == {"author", "title", "journal", "volume", "pages", "year", "doi"}
        assert re.fullmatch(r"10\.\d{4,}/\S+", fields["doi"])
        if "Lin, Eugene" in body:
            assert fields["doi"] in README
