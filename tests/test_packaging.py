"""What is built from the repository installs, is typed, and is described alike everywhere."""

from __future__ import annotations

import ast
import email
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "dra_scvi"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REQUIREMENTS = [Requirement(text) for text in PROJECT["dependencies"]]
OPTIONAL = {"ray", "scib-metrics", "zarr"}
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
    expected = {f"dra_scvi/{name}" for name in (*modules, "py.typed")}
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
    assert metadata["License-Expression"] == "BSD-3-Clause"
    assert metadata["Description-Content-Type"] == "text/markdown"


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
        "name description project_home documentation_home install license tags version category"
        " contact"
    )
    assert set(required.split()) <= set(listing)
    for key in ("name", "version", "license"):
        assert listing[key] == PROJECT[key], key
    assert listing["install"] == {"pypi": PROJECT["name"]}
    readme = (ROOT / "README.md").read_text()
    assert f"```bash\n{listing['test_command']}" in readme
    assert all(publication in readme for publication in listing["publications"])


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
