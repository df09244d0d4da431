"""Covariates, likelihood and early stopping on the command line: what is refused, and when."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

import anndata
import numpy as np
import pytest

from dra_scvi import DRA, tl
from tests.helpers import cells, invoke

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData
    from click.testing import Result

GIVEN = ("--categorical-covariate-keys", "donor", "--continuous-covariate-keys", "age")
QUICK = ("--batch-size", 32, "--accelerator", "cpu", "--threads", 1)


def data() -> AnnData:
    adata = cells()
    adata.obs["donor"] = np.where(np.arange(adata.n_obs) % 3, "a", "b")
    adata.obs["age"] = np.linspace(20, 80, adata.n_obs)
    return adata


def written(folder: Path, without: str | None = None, **columns: Any) -> Path:
    """Write cells whose columns are others, or lack one."""
    adata = data()
    adata.obs = adata.obs.assign(**columns).drop(columns=without or [])
    adata.write_h5ad(folder / "in.h5ad")
    return folder / "in.h5ad"


def train(source: Path, *options: object) -> Result:
    output = ("--output", source.with_name("out.h5ad"))
    return invoke("train", source, *output, "--max-epochs", 1, *QUICK, *options)


# ages, and what is said of them
NO_NUMBERS: dict[str, tuple[Any, str]] = {
    "text": ("old", "values that are no numbers (first: 'old')"),
    "infinite": ([np.inf, *[1.0] * 59], "obs['age'] holds 1 value that is inf"),
    "gap": ([np.nan, *[1.0] * 59], "1 of 60 cells without a value"),
}


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a model with covariates, beside the cells that it was trained on."""
    folder = tmp_path_factory.mktemp("model")
    result = train(written(folder), *GIVEN, "--model-dir", folder / "model")
    assert result.exit_code == 0, result.stderr
    return folder / "model"


# -- training ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["categorical", "continuous"])
def test_a_covariate_that_is_not_there(name: str, tmp_path: Path) -> None:
    """A covariate that is no column is refused before any work, with the nearest that is."""
    option = f"--{name}-covariate-keys"
    result = train(written(tmp_path), option, "age,donors" if name == "categorical" else "ages")
    nearest, typed = ("donor", "donors") if name == "categorical" else ("age", "ages")
    assert result.exit_code == 65
    [line] = result.stderr.splitlines()
    assert f"{option} {typed} is not a column of obs; did you mean '{nearest}'?" in line
    assert [path.name for path in tmp_path.iterdir()] == ["in.h5ad"]


@pytest.mark.parametrize("fault", NO_NUMBERS)
def test_a_continuous_covariate_that_is_no_number(fault: str, tmp_path: Path) -> None:
    """Values of a continuous covariate that are no finite numbers are refused before any work."""
    ages, words = NO_NUMBERS[fault]
    result = train(written(tmp_path, age=ages), *GIVEN)
    assert result.exit_code == 65
    [line] = result.stderr.splitlines()
    assert "--continuous-covariate-keys age: " in line
    assert words in line


def test_a_categorical_covariate_with_gaps(tmp_path: Path) -> None:
    """A cell without a value in a categorical covariate is refused before any work."""
    result = train(written(tmp_path, donor=[None, *["a"] * 59]), *GIVEN)
    assert result.exit_code == 65
    [line] = result.stderr.splitlines()
    assert "--categorical-covariate-keys donor: 1 of 60 cells without a value" in line


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--categorical-covariate-keys", "donor,donor"), "'donor,donor' is not a list of column"),
        (("--categorical-covariate-keys", "donor,"), "'donor,' is not a list of columns"),
        (("--categorical-covariate-keys", "batch"), "--categorical-covariate-keys batch: the col"),
        (("--continuous-covariate-keys", "donor"), "--categorical-covariate-keys donor: the col"),
        (("--continuous-covariate-keys", "leiden"), "--continuous-covariate-keys leiden: --leide"),
        (("--continuous-covariate-keys", "batch_"), None),
    ],
    ids=["twice", "empty", "as-batch", "as-both", "as-clusters", "another"],
)
def test_a_column_named_twice(options: tuple[str, ...], words: str | None, tmp_path: Path) -> None:
    """A column that is named as two of batch, covariates and clusters is wrong usage."""
    more = ("--batch-key", "batch", "--leiden", "--resolution", 1)
    if options[0].startswith("--continuous"):
        more += ("--categorical-covariate-keys", "donor")
    result = train(tmp_path / "none.h5ad", *more, *options)
    assert result.exit_code == (2 if words else 66), result.stderr
    assert (words or "does not exist") in result.stderr


@pytest.mark.parametrize(
    "options",
    [
        GIVEN[:2],
        GIVEN[2:],
        ("--gene-likelihood", "nb"),
        ("--dispersion", "gene-cell"),
        ("--early-stopping",),
    ],
    ids=lambda options: options[0].strip("-"),
)
def test_what_the_released_program_has_not(options: tuple[str, ...], tmp_path: Path) -> None:
    """Covariates, likelihood and early stopping are refused with --preset published."""
    result = train(tmp_path / "none.h5ad", "--preset", "published", *options)
    assert result.exit_code == 2
    assert f"{options[0]} cannot be chosen with --preset published" in result.stderr


def test_covariates_of_the_released_program_in_python() -> None:
    """`tl.dra(preset="published")` refuses covariates, which that model would pass over."""
    for name in ("categorical_covariate_keys", "continuous_covariate_keys"):
        with pytest.raises(ValueError, match=f"{name}: the released program"):
            tl.dra(data(), preset="published", **{name: ["age"]})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--dispersion", "gene-batch"), "--dispersion gene-batch needs --batch-key"),
        (("--dispersion", "gene-cell", "--gene-likelihood", "poisson"), "poisson has no dispers"),
        (("--gene-likelihood", "normal"), "'normal' is not one of 'zinb', 'nb', 'poisson'"),
    ],
    ids=lambda value: "" if isinstance(value, str) else value[1],
)
def test_dispersions_that_there_are_not(
    options: tuple[str, ...], words: str, tmp_path: Path
) -> None:
    """A dispersion that the counts or the batches do not have is wrong usage."""
    result = train(tmp_path / "none.h5ad", *options)
    assert result.exit_code == 2
    assert words in result.stderr


def test_early_stopping_of_few_cells(tmp_path: Path) -> None:
    """Where no cells are left to go by, --early-stopping is refused, and nothing is written."""
    path = tmp_path / "few.h5ad"
    data()[::7].copy().write_h5ad(path)
    result = train(path, "--early-stopping")
    assert result.exit_code == 65
    assert "--early-stopping goes by cells that are not trained on" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["few.h5ad"]


def test_covariates_that_are_batches(tmp_path: Path) -> None:
    """A column of batches that is used as a covariate is not said to be unused."""
    result = train(written(tmp_path), "--categorical-covariate-keys", "batch,donor")
    assert result.exit_code == 0, result.stderr
    assert "is not used" not in result.stderr


def test_covariates_that_are_a_measurement(tmp_path: Path) -> None:
    """A categorical covariate of hundreds of numbers is trained on, with a word."""
    many = anndata.concat([data()] * 2, index_unique="-")
    many.obs["depth"] = np.arange(many.n_obs, dtype=float)
    many.write_h5ad(tmp_path / "in.h5ad")
    options = ("--categorical-covariate-keys", "depth", "--continuous-covariate-keys", "age")
    result = train(tmp_path / "in.h5ad", *options)
    assert result.exit_code == 0, result.stderr
    warnings = [line for line in result.stderr.splitlines() if "warning" in line]
    assert len(warnings) == 1
    assert "--categorical-covariate-keys depth has 120 different numbers in 120" in warnings[0]
    assert "rather than a category?" in warnings[0]


# -- going on ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cells beside the checkpoint of a training with covariates, stopped after its last epoch."""

    def killed(_: Any) -> None:
        signal.raise_signal(signal.SIGTERM)

    source = written(tmp_path_factory.mktemp("stopped"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DRA, "_calibrate", killed)
        assert train(source, *GIVEN).exit_code == 143
    return source


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (GIVEN[:2], "--continuous-covariate-keys: ['age'] in the checkpoint, None now"),
        (GIVEN[2:], "--categorical-covariate-keys: ['donor'] in the checkpoint, None now"),
        ((*GIVEN[:1], "cell_type", *GIVEN[2:]), "['donor'] in the checkpoint, ['cell_type'] now"),
        ((*GIVEN, "--gene-likelihood", "nb"), "--gene-likelihood: 'zinb' in the checkpoint, 'nb'"),
        ((*GIVEN, "--dispersion", "gene-cell"), "dispersion: 'gene' in the checkpoint, 'gene-ce"),
        ((*GIVEN, "--early-stopping"), "--early-stopping: None in the checkpoint, ['elbo_valid"),
    ],
    ids=["no-number", "no-category", "another", "likelihood", "dispersion", "early-stopping"],
)
def test_going_on_with_others(options: tuple[str, ...], words: str, stopped: Path) -> None:
    """--resume with other covariates or settings than the checkpoint's is refused, by name."""
    result = train(stopped, "--resume", *options)
    assert result.exit_code == 65
    assert words in result.stderr
    assert "digest" not in result.stderr
    assert not stopped.with_name("out.h5ad").exists()


def test_going_on_with_other_values(stopped: Path, tmp_path: Path) -> None:
    """--resume with other values in the column of a covariate is refused, by its kind."""
    source = written(tmp_path, age=data().obs["age"] + 1)
    checkpoint = stopped.with_name(".out.h5ad.ckpt")
    (tmp_path / checkpoint.name).write_bytes(checkpoint.read_bytes())
    result = train(source, "--resume", *GIVEN)
    assert result.exit_code == 65
    assert "values of extra_continuous_covs: others than in the checkpoint" in result.stderr


# -- new cells ---------------------------------------------------------------------------------


def use(command: str, model_dir: Path, source: Path) -> Result:
    output = ("--output", source.with_name("out.h5ad"), "--accelerator", "cpu")
    if command == "embed":
        return invoke("embed", source, "--model", model_dir, *output)
    labels = ("--reference", model_dir.with_name("in.h5ad"), "--label-key", "cell_type")
    return invoke("map", model_dir, source, *labels, *output)


@pytest.mark.parametrize("command", ["embed", "map"])
@pytest.mark.parametrize("name", ["donor", "age"])
def test_new_cells_without_a_covariate(
    command: str, name: str, model_dir: Path, tmp_path: Path
) -> None:
    """New cells without a covariate of the model are refused, by the name of the column."""
    result = use(command, model_dir, written(tmp_path, without=name))
    assert result.exit_code == 65
    assert f"-covariate-keys {name} is not a column of obs." in result.stderr
    assert "The model was trained with it" in result.stderr
    assert not (tmp_path / "out.h5ad").exists()


@pytest.mark.parametrize("command", ["embed", "map"])
def test_new_cells_with_numbers_that_are_none(
    command: str, model_dir: Path, tmp_path: Path
) -> None:
    """New cells whose continuous covariate is text are refused, by the name of the column."""
    result = use(command, model_dir, written(tmp_path, age="old"))
    assert result.exit_code == 65
    assert "--continuous-covariate-keys age: obs['age'] holds values that are no" in result.stderr


def test_new_cells_of_another_category(model_dir: Path, tmp_path: Path) -> None:
    """`embed` refuses a category that the model does not know; `map` takes it, as new batches."""
    source = written(tmp_path, donor=["z"] * 20 + ["a"] * 40)
    refused, mapped = (use(command, model_dir, source) for command in ("embed", "map"))
    assert refused.exit_code == 65
    [line] = [line for line in refused.stderr.splitlines() if "error" in line]
    assert "obs['donor'] holds 1 category that the model does not know (first: 'z')" in line
    assert mapped.exit_code == 0, mapped.stderr


def test_generated_cells_without_cells_to_take_covariates_from(
    model_dir: Path, tmp_path: Path
) -> None:
    """`generate` asks for the cells whose covariates generated ones take, and takes them."""
    output = tmp_path / "made.h5ad"
    args = ("generate", model_dir, "--n-cells", 30, "--output", output, "--accelerator", "cpu")
    refused = invoke(*args)
    assert refused.exit_code == 65
    assert "covariates ('age', 'donor')" in refused.stderr
    assert "name their file with --reference" in refused.stderr
    done = invoke(*args, "--reference", model_dir.with_name("in.h5ad"))
    assert done.exit_code == 0, done.stderr
    made = anndata.read_h5ad(output)
    pairs = set(zip(data().obs["donor"], data().obs["age"], strict=True))
    assert set(zip(made.obs["donor"], made.obs["age"], strict=True)) <= pairs
    assert set(made.obs["donor"]) == {"a", "b"}
