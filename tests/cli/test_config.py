"""Options from a YAML file, and the completion of options in a shell."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from dra_scvi.cli import program

if TYPE_CHECKING:
    import click

REQUIRED = ("cells.h5ad", "--output", "out.h5ad")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "config.yaml"


def params(command: str, *args: object) -> dict[str, Any]:
    """Return what a command would be called with."""
    made: click.Command = program.commands[command]
    return made.make_context(command, [str(arg) for arg in args]).params


def test_file_says_what_the_command_line_leaves_open(config: Path) -> None:
    config.write_text(
        """
        output: out.h5ad        # required on the command line otherwise
        n-latent: 20
        max_epochs: 7
        learning-rate: 1e-3
        n-hidden: [256, 128]
        n-hidden-discriminator: 64
        batch-norm: false
        prior: normal
        batch-key:              # nothing: as if it were left out
        layer: null
        json: "-"
        force: true
        seed: 3
        """
    )
    found = params("train", "cells.h5ad", "--config", config, "--seed", 4, "--label-key", "type")
    expected = {
        "input_paths": (Path("cells.h5ad"),),
        "output": Path("out.h5ad"),
        "n_latent": 20,
        "max_epochs": 7,
        "learning_rate": 1e-3,
        "n_hidden": [256, 128],
        "n_hidden_discriminator": [64],
        "batch_norm": False,
        "prior": "normal",
        "batch_key": None,
        "layer": None,
        "json": Path("-"),
        "force": True,
        "quiet": False,
        "seed": 4,
        "label_key": "type",
    }
    assert {name: found[name] for name in expected} == expected
    assert "config" not in found


def test_order_does_not_matter_and_names_stay_as_written(config: Path) -> None:
    config.write_text("layer: 1.10\nlabel-key: 'yes'\nquiet: yes\n")
    for args in (("--config", config, *REQUIRED), (*REQUIRED, "--config", config)):
        found = params("train", *args)
        assert (found["layer"], found["label_key"], found["quiet"]) == ("1.10", "yes", True)


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "{}"])
def test_empty_file_changes_nothing(text: str, config: Path) -> None:
    config.write_text(text)
    assert params("train", *REQUIRED, "--config", config) == params("train", *REQUIRED)


@pytest.mark.parametrize(
    ("command", "args", "text", "name", "value"),
    [
        ("embed", ["a.h5ad"], "{model: m, output: o.h5ad}", "model_dir", Path("m")),
        ("evaluate", ["a.h5ad"], "{label-key: k, use-rep: X_pca}", "use_rep", "X_pca"),
        (
            "benchmark",
            ["a.h5ad"],
            "{label-key: k, output: t.csv, models: [pca, dra], n-latent: 5}",
            "models",
            ["pca", "dra"],
        ),
        ("info", ["model"], "json: info.json", "json", Path("info.json")),
        ("demo", [], "output: here", "output", Path("here")),
    ],
    ids=["embed", "evaluate", "benchmark", "info", "demo"],
)
def test_every_command_takes_a_file(
    command: str, args: list[str], text: str, name: str, value: object, config: Path
) -> None:
    config.write_text(text)
    assert params(command, *args, "--config", config)[name] == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("n-latnt: 3", "n-latnt: no such option; did you mean 'n-latent'?"),
        ("input-path: a.h5ad", "input-path: no such option."),
        ("config: b.yaml", "config: no such option."),
        ("no-batch-norm: true", "no-batch-norm: no such option; did you mean 'batch-norm'?"),
        ("n-latent: ten", "n-latent: 'ten' is not a valid integer"),
        ("n-latent: 2.5", "n-latent: '2.5' is not a valid integer"),
        ("n-latent: 0", "n-latent: 0 is not in the range x>=1."),
        ("n-latent: [2, 3]", "n-latent: one value is wanted."),
        ("n-hidden: {a: 1}", "n-hidden: one value, or a list of values, is wanted."),
        ("n-hidden: [12, x]", "n-hidden: '12,x' is not a list of widths"),
        ("label-key: yes", "label-key: 'yes' means true or false in YAML"),
        ("force: maybe", "force: 'maybe' is not a valid boolean"),
        ("prior: gamma", "prior: 'gamma' is not one of 'normal', 'uniform', 'mixture'."),
        ("output: out.csv", "output: 'out.csv' does not end in .h5ad; name a file: out.h5ad"),
        ("seed: 1\nn-latent: 2\nseed: 2", "seed: given twice."),
        ("n-latent: 2\nn_latent: 3", "n_latent: given twice."),
        ("- n-latent", "not a mapping of options to values"),
        ("n-latent", "not a mapping of options to values"),
        ("n-latent: [", "not YAML: "),
        ("n-latent: 2\nseed: 1\n--- {}", "not YAML: "),
    ],
)
def test_mistakes_are_one_line_that_names_file_and_key(
    text: str, message: str, config: Path
) -> None:
    config.write_text(text)
    result = CliRunner().invoke(program, ["train", "absent.h5ad", "--config", str(config)])
    assert result.exit_code == 2
    assert result.stdout == ""
    [line] = result.stderr.splitlines()
    assert line.startswith(f"dra-scvi: error: {config}: {message}")
    assert line.endswith("See dra-scvi train --help.")


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00"], ids=["absent", "binary"])
def test_unreadable_files_are_wrong_usage(content: bytes | None, config: Path) -> None:
    if content is not None:
        config.write_bytes(content)
    result = CliRunner().invoke(program, ["info", "model", "--config", str(config)])
    assert result.exit_code == 2
    [line] = result.stderr.splitlines()
    assert line.startswith(f"dra-scvi: error: {config}: ")


def completions(shell: str, *words: str) -> str:
    environment = {"COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1)}
    instruction = f"{shell}_complete" if words else f"{shell}_source"
    result = subprocess.run(
        [sys.executable, "-c", "from dra_scvi.cli import main; main()"],
        capture_output=True,
        text=True,
        env={**os.environ, **environment, "_DRA_SCVI_COMPLETE": instruction},
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_are_printed(shell: str) -> None:
    assert f"_DRA_SCVI_COMPLETE={shell}_complete" in completions(shell)


def test_commands_options_and_values_are_completed(config: Path) -> None:
    assert completions("bash", "dra-scvi", "tr") == "plain,train\n"
    shown = completions("bash", "dra-scvi", "train", "--config", str(config), "--n-h")
    assert shown == "plain,--n-hidden\nplain,--n-hidden-discriminator\n"
    assert completions("bash", "dra-scvi", "train", "--prior", "mi") == "plain,mixture\n"
