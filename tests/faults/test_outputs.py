"""Outputs: rehearsed before the work, never over what appeared meanwhile, never lost."""

from __future__ import annotations

import ctypes
import json
import os
import stat
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import anndata
import numpy as np
import pandas as pd
import pytest

from dra_scvi import metrics, tl
from dra_scvi._outputs.drafts import name_draft
from dra_scvi._outputs.files import atomic_folder, atomic_path, write_h5ad
from dra_scvi._outputs.h5ad_content import check_writable
from dra_scvi.report import _write as report
from tests.helpers import cells, invoke
from tests.served import RUN, served

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from click.testing import Result

QUICK = ("--max-epochs", 1, "--batch-size", 32, "--accelerator", "cpu")
CAP_DAC_OVERRIDE, PR_CAPBSET_DROP = 1, 24


def obey_permissions() -> None:
    """Take from root, in a child process, the right to write everywhere."""
    if os.geteuid() == 0:
        ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, 0, 0, 0)


def spawn(*args: object, code: str = RUN, cwd: Path | None = None) -> tuple[int, str, str]:
    """Run the program in a process that permissions hold for."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, args)],
        capture_output=True,
        text=True,
        cwd=cwd,
        preexec_fn=obey_permissions,
        timeout=600,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def assert_refused_before_training(result: Result, code: int, *words: str) -> None:
    assert result.exit_code == code, result.stderr
    assert "training" not in result.stderr
    assert result.stderr.count("\n") == 1
    for word in words:
        assert word in result.stderr


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("input") / "cells.h5ad"
    cells().write_h5ad(path)
    return path


@pytest.fixture(scope="module")
def trained(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with an embedded file and a model."""
    folder = tmp_path_factory.mktemp("trained")
    args = ("--output", folder / "out.h5ad", "--model-dir", folder / "model")
    result = invoke("train", source, *args, *QUICK)
    assert result.exit_code == 0, result.stderr
    return folder


def meanwhile(monkeypatch: pytest.MonkeyPatch, act: Callable[[], Any]) -> None:
    """Let something happen between training and writing."""
    dra = tl._dra

    def train(*args: Any, **kwargs: Any) -> Any:
        model = dra(*args, **kwargs)
        act()
        return model

    monkeypatch.setattr(tl, "_dra", train)


# -- the rehearsal -----------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["--output", "--model-dir", "--json", "--metrics-log"])
def test_folder_without_permission(option: str, source: Path, tmp_path: Path) -> None:
    """Every output in a folder that may not be written to is refused before training."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    given = {"--output": tmp_path / "out.h5ad", "--label-key": "cell_type"}
    given |= {option: closed / ("model" if option == "--model-dir" else "x.h5ad")}
    args = [part for pair in given.items() for part in pair]
    code, out, err = spawn("train", source, *args, *QUICK)
    assert (code, out) == (1, "")
    assert err.startswith(f"dra-scvi: error: {closed}: the output folder may not be written to")
    assert err.count("\n") == 1
    assert list(closed.iterdir()) == []


@pytest.mark.parametrize("force", [(), ("--force",)])
@pytest.mark.parametrize("option", ["--output", "--json", "--metrics-log"])
def test_folder_in_place_of_a_file(
    option: str, force: tuple[str, ...], source: Path, tmp_path: Path
) -> None:
    """A folder that bears the name of an output is refused before training, and stays."""
    (tmp_path / "x.h5ad").mkdir()
    args = ("--label-key", "cell_type", option, tmp_path / "x.h5ad")
    rest = () if option == "--output" else ("--output", tmp_path / "out.h5ad")
    result = invoke("train", source, *args, *rest, *QUICK, *force)
    assert_refused_before_training(result, 73, str(tmp_path / "x.h5ad"))
    assert [path.name for path in tmp_path.iterdir()] == ["x.h5ad"]


def test_file_in_place_of_a_model_folder(source: Path, tmp_path: Path) -> None:
    """A file that bears the name of the model's folder is refused before training, and stays."""
    (tmp_path / "model").write_text("precious")
    args = ("--output", tmp_path / "out.h5ad", "--model-dir", tmp_path / "model", "--force")
    result = invoke("train", source, *args, *QUICK)
    assert_refused_before_training(result, 73, "there is a file of this name")
    assert (tmp_path / "model").read_text() == "precious"


def test_missing_folder_is_made(source: Path, tmp_path: Path) -> None:
    """Folders that are missing are made for every output."""
    folder = tmp_path / "a" / "b"
    args = ("--output", folder / "out.h5ad", "--json", tmp_path / "c" / "out.json")
    result = invoke("train", source, *args, *QUICK)
    assert result.exit_code == 0, result.stderr
    assert (folder / "out.h5ad").exists()
    assert (tmp_path / "c" / "out.json").exists()


def test_missing_folder_is_not_left_behind(source: Path, tmp_path: Path) -> None:
    """Folders that were made for a run that is then refused are removed."""
    args = ("--output", tmp_path / "a" / "b" / "out.h5ad", "--layer", "none")
    assert invoke("train", source, *args, *QUICK).exit_code == 65
    assert list(tmp_path.iterdir()) == []


def test_file_in_place_of_the_output_folder(source: Path, tmp_path: Path) -> None:
    """An output below a file is refused with words about the output folder."""
    (tmp_path / "file").write_text("precious")
    result = invoke("train", source, "--output", tmp_path / "file" / "out.h5ad", *QUICK)
    assert_refused_before_training(result, 73, "the output folder", "is a file")


@pytest.mark.parametrize("length", [240, 249, 255, 300])
def test_long_names(length: int, source: Path, tmp_path: Path) -> None:
    """A long name is written, or refused before training where the checkpoint's is too long."""
    path = tmp_path / ("x" * (length - 5) + ".h5ad")
    result = invoke("train", source, "--output", path, *QUICK)
    if length <= 249:
        assert result.exit_code == 0, result.stderr
        assert [file.name for file in tmp_path.iterdir()] == [path.name]
    else:
        assert_refused_before_training(result, 1, "File name too long", "choose a shorter name")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("out.h5ad/", "names a folder"),
        ("a\nb.h5ad", "has a line break"),
        ("", "an empty name"),
        ("~nobody_of_this_name/out.h5ad", "a user who is not there"),
    ],
)
def test_names_that_are_none(name: str, words: str, source: Path, tmp_path: Path) -> None:
    """Names that end in a slash, hold a line break, are empty or of nobody are wrong usage."""
    given = name if name.startswith("~") or not name else f"{tmp_path}/{name}"
    result = invoke("train", source, f"--output={given}", *QUICK)
    assert_refused_before_training(result, 2, words)


def test_home_folder(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tilde that no shell has replaced is the home folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(source.parent)
    result = invoke("train", source, "--output=~/out.h5ad", *QUICK)
    assert result.exit_code == 0, result.stderr
    assert (tmp_path / "out.h5ad").exists()


def same_names(folder: Path, source: Path) -> dict[str, list[object]]:
    (folder / "link.txt").symlink_to(source)
    os.link(source, folder / "hard.json")
    (folder / "here").symlink_to(folder)
    out = folder / "out.h5ad"
    return {
        "json is output": ["--output", out, "--json", out],
        "through a folder": ["--output", out, "--json", folder / "here" / "out.h5ad"],
        "in other case": ["--output", out, "--json", folder / "OUT.h5ad"],
        "log is INPUT": ["--output", out, "--metrics-log", source],
        "log is INPUT by a link": ["--output", out, "--metrics-log", folder / "link.txt"],
        "json is INPUT by inode": ["--output", out, "--json", folder / "hard.json"],
        "output is INPUT": ["--output", source],
        "model is the parent": ["--output", folder / "m" / "a.h5ad", "--model-dir", folder / "m"],
        "log is the checkpoint": ["--output", out, "--metrics-log", folder / ".out.h5ad.ckpt"],
    }


@pytest.mark.parametrize("number", range(9))
def test_one_file_under_two_names(number: int, source: Path, tmp_path: Path) -> None:
    """No output may be another one or INPUT, whatever it is called, also with --force."""
    name, options = list(same_names(tmp_path, source).items())[number]
    before = source.read_bytes()
    result = invoke("train", source, "--label-key", "cell_type", *options, *QUICK, "--force")
    assert_refused_before_training(result, 73, "choose another")
    assert source.read_bytes() == before, name


def test_output_in_a_store_that_is_read(source: Path, tmp_path: Path) -> None:
    """Nothing is written into a zarr store that is INPUT, nor over files of a model."""
    store = tmp_path / "in.zarr"
    store.mkdir()
    (store / ".zgroup").write_text("{}")
    args = ("train", store, "--output", store / "out.h5ad")
    assert_refused_before_training(invoke(*args, *QUICK), 73, "a file of INPUT")


# -- what an .h5ad can hold --------------------------------------------------------------------


def pandas_text(unique: bool, gap: bool) -> pd.Series:
    adata = cells()
    values = [f"x{i}" if unique else f"x{i % 3}" for i in range(adata.n_obs)]
    return pd.Series(
        [None if gap and i == 5 else v for i, v in enumerate(values)], adata.obs_names
    )


@pytest.mark.parametrize("unique", [False, True])
@pytest.mark.parametrize("gap", [False, True])
@pytest.mark.parametrize("dtype", ["string", pd.StringDtype(na_value=np.nan), object])
def test_text_of_pandas(unique: bool, gap: bool, dtype: Any, tmp_path: Path) -> None:
    """Text of any kind in obs, its index, obsm and uns is written as it is."""
    adata, text = cells(), pandas_text(unique, gap)
    adata.obs["text"] = text.astype(dtype)
    adata.obsm["table"] = pd.DataFrame({"text": text.astype(dtype)})
    adata.uns["text"] = pd.array(["a", "b"], dtype="string")
    adata.obs_names = adata.obs_names.astype(object if dtype is object else dtype)
    check_writable(adata)
    write_h5ad(adata, tmp_path / "a.h5ad")
    read = anndata.read_h5ad(tmp_path / "a.h5ad")
    for column in (read.obs["text"], read.obsm["table"]["text"]):
        assert [v if isinstance(v, str) else None for v in column] == text.tolist()
    assert list(read.uns["text"]) == ["a", "b"]
    assert list(read.obs_names) == list(text.index)


def test_text_of_pandas_through_the_command(tmp_path: Path) -> None:
    """INPUT with a nullable-string-array is trained on and written."""
    adata = cells()
    adata.obs["text"] = pd.array([f"x{i}" for i in range(adata.n_obs)], dtype="string")
    with anndata.settings.override(allow_write_nullable_strings=True):
        adata.write_h5ad(tmp_path / "in.h5ad")
    result = invoke("train", tmp_path / "in.h5ad", "--output", tmp_path / "out.h5ad", *QUICK)
    assert result.exit_code == 0, result.stderr
    assert list(anndata.read_h5ad(tmp_path / "out.h5ad").obs["text"])[3] == "x3"


UNWRITABLE = {
    "uns['u'] (set)": lambda a: a.uns.update(u={1}),
    "uns['u'] (dict)": lambda a: a.uns.update(u={"deep": {"deeper": object()}}),
    "uns['u'] (list)": lambda a: a.uns.update(u=[None, 1]),
    "uns['u']=1 cannot be a name": lambda a: a.uns.update(u={1: 2}),
    "uns='a/b' cannot be a name": lambda a: a.uns.update({"a/b": 1}),
    "obsm='a/b' cannot be a name": lambda a: a.obsm.update({"a/b": np.ones((a.n_obs, 2))}),
    "obsm='' cannot be a name": lambda a: a.obsm.update({"": np.ones((a.n_obs, 2))}),
    "obs['when'] (datetime64[ns])": lambda a: a.obs.insert(
        0, "when", pd.date_range("2020", periods=a.n_obs)
    ),
    "obs['mixed'] (object, mixed-integer)": lambda a: a.obs.insert(
        0, "mixed", pd.Series(["a"] * (a.n_obs - 1) + [1], a.obs_names, dtype=object)
    ),
}


@pytest.mark.parametrize("words", UNWRITABLE)
def test_what_no_file_can_hold(words: str, tmp_path: Path) -> None:
    """What cannot be written is refused by its name in a rehearsal, whichever row it is in."""
    adata = cells()
    UNWRITABLE[words](adata)
    with pytest.raises((TypeError, ValueError)) as caught:
        check_writable(adata)
    assert words in str(caught.value)
    with pytest.raises(Exception, match="."):
        write_h5ad(adata, tmp_path / "a.h5ad")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("key", ["", "a/b", "/X", ".", ".."])
def test_key_that_is_a_path(key: str, source: Path, trained: Path, tmp_path: Path) -> None:
    """A key that HDF5 would take for a path is wrong usage."""
    args = ("--model", trained / "model", "--output", tmp_path / "out.h5ad", "--key-added", key)
    result = invoke("embed", source, *args)
    assert_refused_before_training(result, 2, "--key-added", "cannot be a name")
    assert list(tmp_path.iterdir()) == []


# -- what appears while training ---------------------------------------------------------------


def test_file_that_appears_while_training(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An output that somebody else writes meanwhile stays; ours is kept under a name it prints."""
    out, figures = tmp_path / "out.h5ad", tmp_path / "out.json"
    meanwhile(monkeypatch, lambda: [path.write_text("theirs") for path in (out, figures)])
    result = invoke("train", source, "--output", out, "--json", figures, *QUICK)
    assert result.exit_code == 73
    assert [out.read_text(), figures.read_text()] == ["theirs", "theirs"]
    assert json.loads((tmp_path / "out.1.json").read_text())["command"] == "train"
    assert "X_dra" in anndata.read_h5ad(tmp_path / "out.1.h5ad").obsm
    assert "out.1." in result.stderr


def test_file_that_appears_while_training_is_replaced_if_forced(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With --force what appears meanwhile is replaced."""
    out = tmp_path / "out.h5ad"
    meanwhile(monkeypatch, lambda: out.write_text("theirs"))
    assert invoke("train", source, "--output", out, *QUICK, "--force").exit_code == 0
    assert "X_dra" in anndata.read_h5ad(out).obsm
    assert [path.name for path in tmp_path.iterdir()] == ["out.h5ad"]


def test_model_folder_that_appears_while_training(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model folder that somebody else makes meanwhile stays; ours goes beside it."""
    model = tmp_path / "model"

    def make() -> None:
        model.mkdir()
        (model / "theirs").touch()

    meanwhile(monkeypatch, make)
    out = tmp_path / "out.h5ad"
    result = invoke("train", source, "--output", out, "--model-dir", model, *QUICK)
    assert result.exit_code == 73, result.stderr
    assert [path.name for path in model.iterdir()] == ["theirs"]
    assert f"the trained model is in {tmp_path / 'model.1'}" in result.stderr
    assert invoke("info", tmp_path / "model.1").exit_code == 0
    assert out.exists()


def test_two_runs_with_one_output(source: Path, tmp_path: Path) -> None:
    """Of two processes with one output one is told that it came second, and loses nothing."""
    command = served("train", source, "--output", tmp_path / "out.h5ad", *QUICK)
    runs = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    errors = [run.communicate(timeout=600)[1] for run in runs]
    codes = sorted(run.returncode for run in runs)
    names = {path.name for path in tmp_path.iterdir()}
    assert codes == [0, 73], errors
    if "out.1.h5ad" in names:  # else the second began when the first had ended
        assert names == {"out.h5ad", "out.1.h5ad"}
        assert any("out.1.h5ad" in error for error in errors)


def test_results_that_appear_while_the_demo_runs(tmp_path: Path) -> None:
    """A folder of results that fills meanwhile is left alone; the new one goes beside it."""
    folder = tmp_path / "demo"
    with pytest.raises(FileExistsError, match=r"demo\.1"):  # noqa: PT012, SIM117
        with atomic_folder(folder, replace=False) as draft:
            (draft / "a").write_text("ours")
            folder.mkdir()
            (folder / "a").write_text("theirs")
    assert (folder / "a").read_text() == "theirs"
    assert (tmp_path / "demo.1" / "a").read_text() == "ours"


# -- what fails at the end ---------------------------------------------------------------------

CLOSE_AFTER_TRAINING = """
import os, sys
from pathlib import Path
from dra_scvi import tl
from dra_scvi import cli

train, folder = tl._dra, Path(sys.argv.pop(1))

def and_close(*args, **kwargs):
    model = train(*args, **kwargs)
    folder.chmod(0o555)
    return model

tl._dra = and_close
cli.main()
"""


def test_permission_taken_away_while_training(source: Path, tmp_path: Path) -> None:
    """Where the output fails at the end, the model is saved elsewhere, and said where."""
    folder, home = tmp_path / "results", tmp_path / "home"
    folder.mkdir()
    home.mkdir()
    args = (folder, "train", source, "--output", folder / "out.h5ad", *QUICK)
    code, _, err = spawn(*args, code=CLOSE_AFTER_TRAINING, cwd=home)
    last = err.splitlines()[-1]
    assert code == 1, err
    assert last.startswith(f"dra-scvi: error: {folder / 'out.h5ad'}: Permission denied")
    assert f"the trained model is in {home / 'out.model'}" in last
    again = ("embed", source, "--model", home / "out.model", "--output", home / "b.h5ad")
    result = invoke(*again)
    assert result.exit_code == 0, result.stderr
    assert [path.name for path in folder.iterdir()] == [".out.h5ad.ckpt"]


@pytest.fixture
def small_disk(tmp_path: Path) -> list[str]:
    """Return what runs a command with a disk of 64 kB at ``tmp_path / "disk"``."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = (
        f'mount -t tmpfs -o size=64k tmpfs "{disk}" && "$@"; code=$?; ls -A "{disk}"; exit $code'
    )
    command = ["unshare", "-Urm", "bash", "-c", f"{mount}; exit $code", "bash"]
    try:
        subprocess.run([*command, "true"], check=True, capture_output=True, timeout=60)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this system does not let its users mount a small disk")
    return command


def test_no_room_at_the_end(small_disk: list[str], tmp_path: Path) -> None:
    """A full disk is one sentence, of the output and not its draft, and the model is saved."""
    cells(n_cells=600, n_genes=100).write_h5ad(tmp_path / "in.h5ad")
    out = tmp_path / "disk" / "out.h5ad"
    arguments = ["train", tmp_path / "in.h5ad", "--output", out, *QUICK]
    command = [*small_disk, sys.executable, "-c", RUN, *map(str, arguments)]
    result = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, timeout=600, check=False
    )
    last = result.stderr.splitlines()[-1]
    assert result.returncode == 1, result.stderr
    assert "Traceback" not in result.stderr
    assert last.startswith(f"dra-scvi: error: {out}: No space left on device; free some room")
    assert f"the trained model is in {tmp_path / 'out.model'}" in last
    assert result.stdout == ""  # nothing is left on the disk
    assert invoke("info", tmp_path / "out.model").exit_code == 0


def test_scores_that_fail(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where scores cannot be computed, embedding, model and JSON are there all the same."""

    def fail(*_: Any, **__: Any) -> None:
        raise ValueError("Leiden has failed.")

    monkeypatch.setattr(metrics, "clustering", fail)
    names = {"--output": "out.h5ad", "--model-dir": "model", "--json": "out.json"}
    args = [part for option, name in names.items() for part in (option, tmp_path / name)]
    result = invoke("train", source, *args, "--label-key", "cell_type", *QUICK)
    assert result.exit_code == 65
    assert {path.name for path in tmp_path.iterdir()} == set(names.values())
    assert "kmeans" not in json.loads((tmp_path / "out.json").read_text())
    last = result.stderr.splitlines()[-1]
    assert "Leiden has failed; the embedding is in" in last
    assert f"the trained model is in {tmp_path / 'model'}" in last


# -- how a file is replaced --------------------------------------------------------------------


def test_private_output_stays_private(source: Path, tmp_path: Path) -> None:
    """An output that is replaced keeps its mode, and a new one has that of the umask."""
    out, figures = tmp_path / "out.h5ad", tmp_path / "out.json"
    out.touch(0o600)
    before = os.umask(0o027)
    try:
        args = ("--output", out, "--json", figures, "--force")
        assert invoke("train", source, *args, *QUICK).exit_code == 0
    finally:
        os.umask(before)
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert stat.S_IMODE(figures.stat().st_mode) == 0o640


def test_private_output_is_private_while_it_is_written(tmp_path: Path) -> None:
    """The draft of a private file is private from the first byte on."""
    (tmp_path / "a.txt").touch(0o600)
    with atomic_path(tmp_path / "a.txt") as draft:
        assert stat.S_IMODE(draft.stat().st_mode) == 0o600


def test_linked_output_is_written_through(source: Path, tmp_path: Path) -> None:
    """A link stays one, and what it points to is replaced, in its own folder."""
    (tmp_path / "real").mkdir()
    target, link = tmp_path / "real" / "data.h5ad", tmp_path / "out.h5ad"
    target.write_text("old")
    link.symlink_to(target)
    assert invoke("train", source, "--output", link, *QUICK, "--force").exit_code == 0
    assert link.is_symlink()
    assert "X_dra" in anndata.read_h5ad(target).obsm
    assert [path.name for path in target.parent.iterdir()] == ["data.h5ad"]


def test_drafts_of_killed_runs_are_cleared(source: Path, tmp_path: Path) -> None:
    """What a killed run has left of an output goes with the next run, other drafts stay."""
    code = (
        "import os, sys; from pathlib import Path\n"
        "from dra_scvi._outputs.drafts import name_draft\n"
        "name_draft(Path(sys.argv[1])).touch(); name_draft(Path(sys.argv[2])).touch(); "
        "os.kill(os.getpid(), 9)"
    )
    out, other = tmp_path / "out.h5ad", tmp_path / "other.h5ad"
    assert spawn(out, other, code=code)[0] == -9
    living = name_draft(out)
    living.touch()
    assert len(list(tmp_path.iterdir())) == 3
    assert invoke("train", source, "--output", out, *QUICK).exit_code == 0
    names = sorted(path.name for path in tmp_path.iterdir())
    assert len(names) == 3
    assert {living.name, "out.h5ad"} < set(names)
    assert sum(name.endswith("other.h5ad") for name in names) == 1


# -- what is read is not written over ----------------------------------------------------------


def kept(files: dict[Path, bytes], *args: object) -> None:
    """Check that a command is refused, and that what it reads is as it was."""
    result = invoke(*args, "--force")
    assert_refused_before_training(result, 73, "never written to")
    assert {path: path.read_bytes() for path in files} == files


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """Return a folder with a matrix, labels, and names of genes."""
    folder = tmp_path / "labelled"
    folder.mkdir()
    (folder / "counts.mtx").write_text("%%MatrixMarket matrix coordinate integer general\n")
    (folder / "labels.txt").write_text("T\nB\n")
    (folder / "genes.txt").write_text("G1\nG2\n")
    return folder


def test_names_of_genes_are_an_input(tmp_path: Path, labelled: Path) -> None:
    """`genes.txt` of an input folder is not replaced by the figures."""
    genes = labelled / "genes.txt"
    train = ("train", labelled, "--output", tmp_path / "out.h5ad", "--json", genes)
    kept({genes: genes.read_bytes()}, *train)


@pytest.mark.parametrize("option", ["--json", "--metrics-log"])
def test_what_an_input_folder_links_to_is_an_input(
    tmp_path: Path, labelled: Path, option: str
) -> None:
    """The file that `labels.txt` is a link to is not written to, under its own name either."""
    own = tmp_path / "types.csv"
    (labelled / "labels.txt").rename(own)
    (labelled / "labels.txt").symlink_to(own)
    train = ("train", labelled, "--output", tmp_path / "out.h5ad", "--label-key", "cell_type")
    kept({own: own.read_bytes()}, *train, option, own)


def test_what_a_model_folder_links_to_is_an_input(tmp_path: Path) -> None:
    """The file that `model.pt` is a link to is not replaced by the cells that it embeds."""
    model = tmp_path / "model"
    model.mkdir()
    weights = tmp_path / "weights.h5ad"
    weights.write_bytes(b"weights")
    (model / "model.pt").symlink_to(weights)
    cells().write_h5ad(tmp_path / "cells.h5ad")
    embed = ("embed", tmp_path / "cells.h5ad", "--model", model, "--output", weights)
    kept({weights: b"weights"}, *embed)


def test_the_file_of_options_is_an_input(tmp_path: Path) -> None:
    """`--config` names a file that no output takes the place of."""
    config = tmp_path / "options.yaml"
    config.write_text("n-latent: 3\n")
    cells().write_h5ad(tmp_path / "cells.h5ad")
    train = ("train", tmp_path / "cells.h5ad", "--output", tmp_path / "out.h5ad")
    kept({config: config.read_bytes()}, *train, "--config", config, "--json", config)


@pytest.mark.parametrize("linked", [False, True], ids=["file", "link"])
def test_a_model_folder_holds_no_input(tmp_path: Path, linked: bool) -> None:
    """`train D/adata.h5ad --model-dir D` does not make the cells a part of the model."""
    folder = tmp_path / "model"
    folder.mkdir()
    path = folder / "adata.h5ad"
    cells().write_h5ad(tmp_path / "own.h5ad" if linked else path)
    if linked:
        path.symlink_to(tmp_path / "own.h5ad")
    train = ("train", path, "--output", tmp_path / "out.h5ad", "--model-dir", folder)
    kept({path: path.read_bytes()}, *train)
    assert [file.name for file in folder.iterdir()] == ["adata.h5ad"]


# -- clusters and the UMAP ---------------------------------------------------------------------


@pytest.mark.parametrize("place", ["--in-memory", "--out-of-core"])
@pytest.mark.parametrize(
    ("option", "word"), [("--leiden", "obs['leiden']"), ("--umap", "obsm['X_umap']")]
)
def test_clusters_that_input_has(option: str, word: str, place: str, tmp_path: Path) -> None:
    """INPUT has clusters or a UMAP already: they are replaced with --force only."""
    adata = cells()
    adata.obs["leiden"] = "mine"
    adata.obsm["X_umap"] = np.zeros((adata.n_obs, 2))
    adata.write_h5ad(tmp_path / "cells.h5ad")
    output = tmp_path / "out.h5ad"
    result = invoke(
        "train", tmp_path / "cells.h5ad", "-o", output, option, place, "--quiet", *QUICK
    )
    assert_refused_before_training(result, 73, word, "--force", "out.h5ad")
    assert not output.exists()


@pytest.mark.parametrize("option", ["--label-key", "--batch-key"])
def test_labels_that_clusters_would_replace(option: str, source: Path, tmp_path: Path) -> None:
    """Labels or batches are in the column that --leiden writes: refused, with --force as well."""
    options = ("--leiden", option, "leiden", "--force")
    result = invoke("train", source, "-o", tmp_path / "out.h5ad", *options, *QUICK)
    assert_refused_before_training(result, 2, option, "--leiden writes a column of this name")


def test_clusters_of_few_cells(tmp_path: Path) -> None:
    """INPUT has too few cells for clusters: said before training; ten are enough."""
    cells(n_cells=10).write_h5ad(tmp_path / "ten.h5ad")
    cells(n_cells=9).write_h5ad(tmp_path / "nine.h5ad")
    options = ("-o", tmp_path / "out.h5ad", "--leiden", "--umap", *QUICK)
    result = invoke("train", tmp_path / "nine.h5ad", *options)
    assert_refused_before_training(result, 65, "9 cells", "at least 10")
    assert invoke("train", tmp_path / "ten.h5ad", *options).exit_code == 0


def test_clusters_that_fail(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clusters cannot be computed after training: the embedding is written all the same."""

    def fail(*_: Any, **__: Any) -> None:
        raise MemoryError("no room for a graph")

    monkeypatch.setattr(tl, "cluster", fail)
    output = tmp_path / "out.h5ad"
    result = invoke("train", source, "-o", output, "--leiden", "--umap", *QUICK)
    assert result.exit_code == 1
    assert f"the embedding is in {output}" in result.stderr
    written = anndata.read_h5ad(output)
    assert "X_dra" in written.obsm
    assert "leiden" not in written.obs


# -- the report --------------------------------------------------------------------------------

REPORTED = ("--resolution", 1, *QUICK)


def test_report_that_exists(source: Path, tmp_path: Path) -> None:
    """A report of the same name is there: refused before training, and replaced with --force."""
    page = tmp_path / "report.html"
    page.write_text("mine")
    options = ("--output", tmp_path / "out.h5ad", "--report", page, *REPORTED)
    assert_refused_before_training(invoke("train", source, *options), 73, "report.html", "--force")
    assert page.read_text() == "mine"
    assert invoke("train", source, *options, "--force").exit_code == 0
    assert page.read_text().startswith("<!DOCTYPE html>")


@pytest.mark.parametrize("name", ["report.pdf", "report"])
def test_report_that_is_no_page(name: str, source: Path, tmp_path: Path) -> None:
    """The report is to be something else than HTML: refused."""
    options = ("--output", tmp_path / "out.h5ad", "--report", tmp_path / name, *REPORTED)
    result = invoke("train", source, *options)
    assert_refused_before_training(result, 2, "--report", "does not end in .html")


def test_report_that_appears_while_training(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A report that another process writes meanwhile is left; this one's has another name."""
    page = tmp_path / "report.html"
    meanwhile(monkeypatch, lambda: page.write_text("theirs"))
    options = ("--output", tmp_path / "out.h5ad", "--report", page, *REPORTED)
    result = invoke("train", source, *options)
    assert result.exit_code == 73
    assert page.read_text() == "theirs"
    assert (tmp_path / "report.1.html").read_text().startswith("<!DOCTYPE html>")
    assert "report.1.html" in result.stderr


def test_report_that_fails(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The report cannot be made: cells, model and figures are there, and --resume tries again."""
    out, page = tmp_path / "out.h5ad", tmp_path / "report.html"
    names = ("--output", out, "--report", page, "--json", tmp_path / "out.json")
    with monkeypatch.context() as patch:
        patch.setattr(report, "page", lambda *_, **__: 1 / 0)
        result = invoke("train", source, *names, *REPORTED)
    assert result.exit_code == 1
    assert {path.name for path in tmp_path.iterdir()} == {
        *("out.h5ad", "out.json", ".out.h5ad.ckpt")
    }
    assert "for --resume" in result.stderr
    assert invoke("train", source, *names, *REPORTED, "--resume", "--force").exit_code == 0
    assert {path.name for path in tmp_path.iterdir()} == {"out.h5ad", "out.json", "report.html"}


@pytest.mark.parametrize("moment", ["cluster", "page"])
def test_interrupt_after_training(
    moment: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while clusters or the report are made: 130, and what is there already is named."""

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    place = tl if moment == "cluster" else report
    monkeypatch.setattr(place, moment, stop)
    out, folder = tmp_path / "out.h5ad", tmp_path / "model"
    options = ("--output", out, "--model-dir", folder, "--report", tmp_path / "report.html")
    result = invoke("train", source, *options, *REPORTED)
    assert result.exit_code == 130
    assert f"the trained model is in {folder}" in result.stderr
    assert "for --resume" in result.stderr
    assert out.exists() == (f"the embedding is in {out}" in result.stderr) == (moment == "page")
