"""Commands that are stopped or fail: exit codes, one line, whole outputs, and the way on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from dra_scvi import TrainingInterruptedError
from tests.helpers import STRICT, cells, embed, fit, invoke, tree, with_value
from tests.served import served

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = STRICT


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "cells.h5ad"
    cells().write_h5ad(path)
    return path


def train_command(source: Path, folder: Path, *options: object) -> list[str]:
    args = ["train", source, "--output", folder / "out.h5ad", "--json", folder / "out.json"]
    args += ["--label-key", "cell_type", "--batch-size", 32, "--max-epochs", 4, "--quiet"]
    return [str(arg) for arg in (*args, "--accelerator", "cpu", "--threads", 1, *options)]


STOPS = """
import json, os, signal, sys
from dra_scvi import tl
from dra_scvi._training import interrupts as _checkpoint
from dra_scvi import cli

commands, codes = json.loads(sys.argv[1]), {}

class Stopping(_checkpoint.InterruptCheckpoint):
    signum = None

    def __init__(self, path):
        super().__init__(path, every_seconds=0.0 if Stopping.kill else 60.0)

    def on_train_batch_start(self, trainer, *_):
        if trainer.current_epoch == 2 and Stopping.signal:
            os.kill(os.getpid(), Stopping.signal)
            Stopping.signal = None

tl.InterruptCheckpoint = Stopping
signals = {"whole": None, "int": signal.SIGINT, "term": signal.SIGTERM, "kill": signal.SIGKILL}
for name, signum in signals.items():
    Stopping.signal, Stopping.kill = signum, name == "kill"
    sys.argv = ["dra-scvi", *commands[name]]
    try:
        cli.main()
    except SystemExit as end:
        print(json.dumps([name, end.code or 0]), flush=True)
"""


class Killed(NamedTuple):
    """Exit codes of commands in another process, each stopped in another way; their folders."""

    codes: dict[str, int]
    folders: dict[str, Path]
    stderr: str


@pytest.fixture(scope="module")
def killed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Killed:
    """Train in another process: to the end, and until SIGINT, SIGTERM and SIGKILL."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("whole", "int", "term", "kill")}
    commands = {name: train_command(source, folder) for name, folder in folders.items()}
    result = subprocess.run(
        served(json.dumps(commands), code=STOPS),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    codes = dict(json.loads(line) for line in result.stdout.splitlines() if line.startswith("["))
    return Killed({**codes, "kill": result.returncode}, folders, result.stderr)


def assert_resumes(source: Path, killed: Killed, name: str) -> None:
    """Go on from the checkpoint, and end where the command that was not stopped ended."""
    folder = killed.folders[name]
    assert [path.name for path in folder.iterdir()] == [".out.h5ad.ckpt"], killed.stderr
    result = invoke(*train_command(source, folder, "--resume"))
    assert result.exit_code == 0, result.stderr
    assert tree(folder) == tree(killed.folders["whole"])


class Stop(Callback):
    """Send a signal to this process, in some epoch."""

    def __init__(self, signum: int, epoch: int) -> None:
        self.signum, self.epoch = signum, epoch

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        if trainer.current_epoch == self.epoch:
            self.epoch = -1
            os.kill(os.getpid(), self.signum)


def test_resume(source: Path, killed: Killed, tmp_path: Path) -> None:
    """A training stopped or killed: resumed to the last bit of one without a stop."""
    for preset in (None, "published"):
        options = {"max_epochs": 5, "preset": preset, "batch_key": "batch"}
        options |= {"model_kwargs": {}, "checkpoint": tmp_path / "ckpt"}
        expected = embed(cells(), **options)
        stopped = cells()
        stop = {"callbacks": [Stop(signal.SIGINT, epoch=2)]}
        with pytest.raises(TrainingInterruptedError):
            embed(stopped, train_kwargs=stop, **options)
        np.testing.assert_array_equal(embed(stopped, resume=True, **options), expected)
    assert killed.codes["kill"] == -signal.SIGKILL
    assert_resumes(source, killed, "kill")


def test_interrupt(source: Path, killed: Killed, tmp_path: Path) -> None:
    """Ctrl-C: KeyboardInterrupt, or a checkpoint where one was asked for, and exit code 130."""
    adata = cells()
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        fit(adata, callbacks=[Stop(signal.SIGINT, epoch=1)], max_epochs=4)
    assert signal.getsignal(signal.SIGINT) is handler
    with pytest.raises(TrainingInterruptedError, match="after 2 epochs"):
        embed(
            adata,
            checkpoint=tmp_path / "ckpt",
            train_kwargs={"callbacks": [Stop(signal.SIGINT, epoch=1)]},
        )
    assert (tmp_path / "ckpt").exists()
    assert killed.codes["int"] == 130
    assert_resumes(source, killed, "int")


def test_sigterm(source: Path, killed: Killed) -> None:
    """SIGTERM from a scheduler: a checkpoint and exit code 143; `--resume` goes on from it."""
    assert killed.codes["term"] == 143
    assert_resumes(source, killed, "term")


def test_cli_codes(source: Path, killed: Killed, tmp_path: Path) -> None:
    """Failing commands: one line on stderr, nothing on stdout, an exit code for each cause."""
    bad, output = tmp_path / "bad.h5ad", tmp_path / "out.h5ad"
    with_value(-1).write_h5ad(bad)
    (tmp_path / "old.h5ad").touch()
    train = ("train", "--quiet", "--output", output, "--accelerator", "cpu")
    failures: dict[int, tuple[object, ...]] = {
        2: (*train, source, "--max-epochs", 0),
        65: (*train, bad),
        66: (*train, tmp_path / "none.h5ad"),
        70: (*train, source, "--max-epochs", 9, "--learning-rate", 1e6),
        73: ("train", source, "--output", tmp_path / "old.h5ad"),
    }
    running = {
        code: subprocess.Popen(
            served(*args), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for code, args in failures.items()
    }
    for code, process in running.items():
        stdout, stderr = process.communicate(timeout=300)
        assert process.returncode == code, stderr
        assert stdout == ""
        assert stderr.startswith("dra-scvi: error: ")
        assert stderr.count("\n") == 1, stderr
    assert not output.exists()
    assert killed.stderr.count("\n") == 2  # one line each for SIGINT and SIGTERM, none for the end
    assert "Traceback" not in killed.stderr
    debug = invoke(*train, bad, "--debug")
    assert debug.exit_code == 65
    assert "Traceback" in debug.stderr


def test_cli_atomic(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that fails while it writes: outputs whole or not at all, old ones kept."""

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("disk is full")

    command = train_command(source, tmp_path, "--model-dir", tmp_path / "model")
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", fail)
        assert invoke(*command).exit_code == 1
    # the model failed, the others did not, and the checkpoint is kept for it
    kept = {"out.h5ad", "out.json", ".out.h5ad.ckpt"}
    assert set(tree(tmp_path)) == kept
    for name in kept:
        (tmp_path / name).unlink()
    with monkeypatch.context() as patch:
        patch.setattr("dra_scvi._outputs.files.open_hdf5", fail)
        assert invoke(*command).exit_code == 1
    saved = {"out.json", "model/model.pt", "model/manifest.json"}
    assert set(tree(tmp_path)) == {*saved, ".out.h5ad.ckpt"}
    (tmp_path / "out.json").unlink()
    shutil.rmtree(tmp_path / "model")
    assert invoke(*command).exit_code == 0
    before = tree(tmp_path)
    assert set(before) == {"out.h5ad", "out.json", "model/model.pt", "model/manifest.json"}
    for name in ("out.h5ad", "out.json"):
        (tmp_path / name).write_bytes(b"precious")
        changed = tree(tmp_path)
        assert invoke(*command).exit_code == 73
        assert tree(tmp_path) == changed
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", fail)
        assert invoke(*command, "--force").exit_code == 1
    assert tree(tmp_path)["model/model.pt"] == changed["model/model.pt"]
    assert invoke(*command, "--force").exit_code == 0
    after = tree(tmp_path)
    assert {name: after[name] for name in ("out.h5ad", "out.json")} == {
        name: before[name] for name in ("out.h5ad", "out.json")
    }


def test_cli_determ(source: Path, killed: Killed, tmp_path: Path) -> None:
    """The same command twice: the same bytes in every output."""
    assert killed.codes["whole"] == 0, killed.stderr
    assert invoke(*train_command(source, tmp_path)).exit_code == 0
    assert set(tree(tmp_path)) == {"out.h5ad", "out.json"}
    assert tree(tmp_path) == tree(killed.folders["whole"])
