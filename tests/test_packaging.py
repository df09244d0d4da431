"""What is built from the repository installs, is typed, and is described alike everywhere."""

from __future__ import annotations

import ast
import email
import importlib.util
import json
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from packaging.requirements import Requirement

from dra_scvi.cli import train

if TYPE_CHECKING:
    from types import ModuleType

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "dra_scvi"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
REQUIREMENTS = [Requirement(text) for text in PROJECT["dependencies"]]
OPTIONAL = {"annbatch", "ray", "scib-metrics", "zarr"}
# what conda calls differently
CONDA_NAMES = {"igraph": "python-igraph", "matplotlib": "matplotlib-base", "torch": "pytorch"}


def run(*command: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env={"PATH": "", **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a wheel and an sdist; nothing is downloaded for it."""
    pytest.importorskip("hatchling", reason="building takes hatchling")
    folder = tmp_path_factory.mktemp("dist")
    result = run("-m", "hatchling", "build", "-d", folder, cwd=ROOT)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder in which the wheel, and nothing else, is installed."""
    pytest.importorskip("pip", reason="installing takes pip")
    folder = tmp_path_factory.mktemp("site")
    [wheel] = built.glob("*.whl")
    options = ("--quiet", "--no-deps", "--no-index", "--no-compile", "--target", folder)
    result = run("-m", "pip", "install", *options, wheel, cwd=folder)
    assert result.returncode == 0, result.stderr
    return folder


def test_wheel_holds_every_module_and_nothing_else(built: Path) -> None:
    [wheel] = built.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py")}
    expected = {f"dra_scvi/{name}" for name in (*modules, "py.typed", "report/page.html")}
    assert {name for name in names if ".dist-info/" not in name} == expected
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_sdist_holds_what_it_takes_to_test(built: Path) -> None:
    [sdist] = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    tests = {f"tests/{path.name}" for path in (ROOT / "tests").glob("*.py")}
    tutorials = {f"tutorials/{path.name}" for path in (ROOT / "tutorials").glob("*.ipynb")}
    files = {"README.md", "CHANGELOG.md", "LICENSE", "pyproject.toml", "dra_scvi/py.typed"}
    pages = {f".docs/{path.name}" for path in (ROOT / ".docs").glob("*.*") if path.is_file()}
    assert tests | tutorials | files | pages <= names


def test_metadata_is_that_of_the_project(built: Path) -> None:
    [wheel] = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        [name] = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
        metadata = email.message_from_bytes(archive.read(name))
    assert (metadata["Name"], metadata["Version"]) == ("dra_scvi", PROJECT["version"])
    assert metadata["Metadata-Version"] == "2.4"  # of 2.5, twine says that it is not valid
    assert metadata["License-Expression"] == "BSD-3-Clause"
    assert metadata["Description-Content-Type"] == "text/markdown"
    urls = dict(line.split(", ") for line in metadata.get_all("Project-URL"))
    assert urls == PROJECT["urls"]
    text, repository = metadata.get_payload(), urls["Repository"]
    raw = repository.replace("github.com", "raw.githubusercontent.com")
    assert f"]({raw}/HEAD/.docs/lead.svg)" in text  # a page of an index has no files beside it
    assert f"]({repository}/blob/HEAD/.docs/faq.md#leiden-finds-too-many-clusters)" in text
    links = re.findall(r"\]\(([^)]*)\)", text)
    assert all(link.startswith("https://") for link in links)
    assert len(links) == len(re.findall(r"\]\(", (ROOT / "README.md").read_text()))


def test_installed_wheel_is_imported_and_runs(installed: Path) -> None:
    code = "import dra_scvi; print(dra_scvi.__file__, dra_scvi.__version__)"
    result = run("-c", code, cwd=installed, PYTHONPATH=str(installed))
    file = installed / "dra_scvi" / "__init__.py"
    assert result.stdout.split() == [str(file), PROJECT["version"]], result.stderr
    result = run("-m", "dra_scvi", "--version", cwd=installed, PYTHONPATH=str(installed))
    assert result.stdout == f"{PROJECT['version']}\n", result.stderr


CLIENT = """
import dra_scvi
from dra_scvi import DRA, metrics, tl

adata = dra_scvi.datasets.pbmc68k()
DRA.setup_anndata(adata, batch_key="donor")
model: DRA = tl.dra(adata, n_latent=5, max_epochs=2)
score: float = metrics.clustering(adata.obsm["X_dra"], adata.obs["cell_type"])["nmi"]
table = dra_scvi.benchmark.compare(adata, "cell_type", models=["pca", "dra"], n_latent=10)
dra_scvi.pl.training(model, save="training.png")
"""
MISTAKES = """
tl.dra(adata, n_latent="ten")  # arg-type
tl.dra(adata, prest="published")  # call-arg
dra_scvi.DAR  # attr-defined
number: int = dra_scvi.presets.published(10)  # assignment
"""
# what the client's types do not depend on would take a minute to read
MYPY = """
[mypy]
strict = true
warn_unused_ignores = false
ignore_missing_imports = true
[mypy-anndata.*,IPython.*,lightning.*,matplotlib.*,numpy.*,pandas.*,scanpy.*,scipy.*,scvi.*,torch.*]
follow_imports = skip
"""


@pytest.mark.slow
def test_types_serve_a_client(installed: Path, tmp_path: Path) -> None:
    pytest.importorskip("mypy", reason="checking types takes mypy")
    (tmp_path / "mypy.ini").write_text(MYPY)
    (tmp_path / "client.py").write_text(CLIENT)
    (tmp_path / "wrong.py").write_text(CLIENT + MISTAKES)
    checked = run(
        "-m", "mypy", "client.py", "wrong.py", cwd=tmp_path, MYPYPATH="", PYTHONPATH=str(installed)
    )
    found = re.findall(r"^(\w+)\.py:\d+: error: .*\[([\w-]+)\]$", checked.stdout, re.MULTILINE)
    expected = re.findall(r"# ([\w-]+)$", MISTAKES, re.MULTILINE)
    assert found == [("wrong", code) for code in expected], checked.stdout + checked.stderr


def test_what_is_imported_is_declared() -> None:
    homes = packages_distributions()
    declared = {requirement.name.lower() for requirement in REQUIREMENTS} | OPTIONAL
    for path in PACKAGE.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                modules = [node.module or ""]
            else:
                continue
            for module in modules:
                name = module.partition(".")[0]
                if name in sys.stdlib_module_names or name == "dra_scvi":
                    continue
                owners = {owner.lower() for owner in homes.get(name, [name.replace("_", "-")])}
                assert owners & declared, f"{path.name} imports {name}"


# -- descriptions for elsewhere ----------------------------------------------------------------


def described(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / ".packaging" / name).read_text())


def test_listing_agrees_with_the_project() -> None:
    listing = described("meta.yaml")
    required = (
        "name description project_home documentation_home install license tags category contact"
    )
    assert set(required.split()) <= set(listing)
    assert "version" not in listing  # it is read off the package index
    for key in ("name", "license"):
        assert listing[key] == PROJECT[key], key
    assert listing["install"] == {"pypi": PROJECT["name"]}
    readme = (ROOT / "README.md").read_text()
    assert f"```bash\n{listing['test_command']}" in readme
    assert all(publication in readme for publication in listing["publications"])


VERSIONS = {
    ".github/CITATION.cff": r"^version: (\S+)$",
    ".packaging/nf-core/drascvi/train/environment.yml": r"dra_scvi=(\S+)$",
    ".packaging/nf-core/drascvi/train/main.nf": r"dra_scvi:([\d.]+)\"$",
    ".packaging/snakemake/drascvi/train/environment.yaml": r"dra_scvi =(\S+)$",
}


@pytest.mark.parametrize("name", VERSIONS)
def test_versions_elsewhere_are_that_of_the_project(name: str) -> None:
    found = re.findall(VERSIONS[name], (ROOT / name).read_text(), re.MULTILINE)
    assert found == [PROJECT["version"]]


@pytest.mark.parametrize(
    "name", ["nf-core/drascvi/train/main.nf", "snakemake/drascvi/train/wrapper.py"]
)
def test_wrappers_use_options_of_the_program(name: str) -> None:
    known = {option for param in train.params for option in param.opts}
    text = (ROOT / ".packaging" / name).read_text()
    used = set(re.findall(r"(?<=[\s\"])--[a-z-]+", text)) - {"--version"}
    assert {"--output", "--model-dir", "--json", "--report", "--threads"} <= used <= known


def test_citations_name_the_same_papers() -> None:
    zenodo = json.loads((ROOT / ".zenodo.json").read_text())
    citation = yaml.safe_load((ROOT / ".github" / "CITATION.cff").read_text())
    papers = [citation["preferred-citation"], *citation["references"]]
    page = (ROOT / ".docs" / "citing.md").read_text()
    dois = re.findall(r"doi += \{(.*)\}", page)
    assert [paper["doi"] for paper in papers] == dois
    assert [entry["identifier"] for entry in zenodo["related_identifiers"]] == dois
    assert zenodo["license"] == citation["license"] == PROJECT["license"]


def test_groups_hold_what_the_extras_of_their_names_hold() -> None:
    for name, requirements in PYPROJECT["dependency-groups"].items():
        assert requirements == [f"{PROJECT['name']}[{name}]"]
        assert name in PROJECT["optional-dependencies"]


def test_workflows_test_every_python_that_is_declared() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yaml").read_text())
    tested = workflow["jobs"]["test"]["strategy"]["matrix"]["python"]
    declared = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    assert set(declared) <= set(tested)
    assert PROJECT["requires-python"] == f">={tested[0]}"


# -- the account -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def accounts() -> ModuleType:
    if not (ROOT / ".git").exists():
        pytest.skip("not in a checkout")
    return load(ROOT / ".packaging" / "account.py")


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_address_has_the_account_of_the_project(accounts: ModuleType) -> None:
    account = accounts.account()
    assert f"/{account}/" in PROJECT["urls"]["Repository"]
    for path, text in accounts.texts().items():
        assert set(accounts.ADDRESS.findall(text)) <= {account}, path
    assert described("meta.yaml")["contact"] == [account]
    assert described("recipe.yaml")["extra"]["recipe-maintainers"] == [account]
    module = described("nf-core/drascvi/train/meta.yml")
    assert module["authors"] == module["maintainers"] == [f"@{account}"]


def test_an_account_is_put_everywhere_by_one_command(
    accounts: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies = {tmp_path / path.name: text for path, text in accounts.texts().items()}
    chosen = {path: text for path, text in copies.items() if accounts.ADDRESS.search(text)}
    for path, text in chosen.items():
        path.write_text(text.replace(accounts.account(), accounts.PLACEHOLDER))
    name = accounts.PLACEHOLDER  # a program that puts in the account leaves this test as it is
    (tmp_path / "other.md").write_text(f"{name}S and {name}")
    for command in (["git", "init", "-q"], ["git", "add", "."]):
        subprocess.run(command, cwd=tmp_path, check=True)
    monkeypatch.setattr(accounts, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["account.py", "some-lab"])
    accounts.main()
    assert accounts.account() == "some-lab"
    assert accounts.places(name) == []
    assert (tmp_path / "other.md").read_text() == f"{name}S and some-lab"
    for wrong in ("-lab", "a lab", "lab/x", "x" * 40):
        monkeypatch.setattr(sys, "argv", ["account.py", wrong])
        with pytest.raises(SystemExit, match="account.py NAME"):
            accounts.main()


def test_recipe_agrees_with_the_project() -> None:
    recipe = described("recipe.yaml")
    context = recipe["context"]
    assert (context["name"], context["version"]) == (PROJECT["name"], PROJECT["version"])
    assert PROJECT["requires-python"] == f">={context['python_min']}"
    assert recipe["about"]["license"] == PROJECT["license"]
    assert recipe["about"]["summary"] == PROJECT["description"]
    [script] = PROJECT["scripts"].items()
    assert recipe["build"]["python"]["entry_points"] == [" = ".join(script)]
    wanted = {
        CONDA_NAMES.get(requirement.name, requirement.name): requirement.specifier
        for requirement in REQUIREMENTS
    }
    found = [Requirement(text) for text in recipe["requirements"]["run"][1:]]
    assert {requirement.name: requirement.specifier for requirement in found} == wanted
