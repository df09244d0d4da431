"""Help of the commands: every option in a section, with the default that holds."""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING

import click
import pytest
from click.testing import CliRunner
from scvi.train import TrainingPlan

from dra_scvi import DRA
from dra_scvi._module.priors import effective_prior
from dra_scvi.cli import program
from dra_scvi.cli._benchmark import N_LATENT, SEEDS
from dra_scvi.cli._help import SECTIONS

if TYPE_CHECKING:
    from click.testing import Result

COMMANDS = sorted(program.commands)
LIKELIHOOD = ("gene_likelihood", "dispersion")
WITH_OUTPUT = ["train", "embed", "map", "benchmark", "demo"]


def invoke(*args: str) -> Result:
    return CliRunner().invoke(program, args, terminal_width=100)


def options(command: str) -> list[click.Option]:
    return [p for p in program.commands[command].params if isinstance(p, click.Option)]


def shown(command: str) -> dict[str, list[str]]:
    """Options of a command's help by the section that they are in."""
    text = invoke(command, "--help").stdout
    parts = re.split(r"^(\w+):\n", text, flags=re.MULTILINE)[1:]
    lines = zip(parts[::2], parts[1::2], strict=True)
    return {title: re.findall(r"^  (?:-\w, )?(--[\w-]+)", part, re.M) for title, part in lines}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_in_a_section_once(command: str) -> None:
    found = shown(command)
    names = [name for section in found.values() for name in section]
    assert sorted(names) == sorted([max(o.opts, key=len) for o in options(command)] + ["--help"])
    assert "Other" not in found, "put these into SECTIONS of cli/_help.py"
    assert list(found) == [title for title in SECTIONS if title in found]


def test_sections_are_those_of_an_analysis() -> None:
    found = shown("train")
    assert list(found) == ["Data", "Model", "Training", "Output", "Program"]
    assert found["Data"][:3] == ["--layer", "--batch-key", "--label-key"]
    assert "--prior" in found["Model"]
    assert "--learning-rate" in found["Training"]
    assert found["Output"][:2] == ["--output", "--model-dir"]


def test_options_in_no_section_are_shown_last() -> None:
    made = type(program.commands["info"])("new", params=[click.Option(["--new"], help="New.")])
    with click.Context(made) as context:
        text = made.get_help(context)
    assert text.index("Program:") < text.index("Other:") < text.index("--new")


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_short_help(command: str) -> None:
    words = [command] if command else []
    short, long = invoke(*words, "-h"), invoke(*words, "--help")
    assert (short.exit_code, short.stdout) == (0, long.stdout)
    assert "Usage: " in short.stdout


@pytest.mark.parametrize("command", WITH_OUTPUT)
def test_short_output_is_output(command: str) -> None:
    [output] = [option for option in options(command) if option.name == "output"]
    assert output.opts == ["-o", "--output"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_default_is_shown(command: str) -> None:
    text = " ".join(invoke(command, "--help").stdout.split())
    with click.Context(program.commands[command]) as context:
        for option in options(command):
            default = option.get_default(context)
            if isinstance(default, str | int | float) and not isinstance(default, bool):
                assert f"[default: {default}" in text, option.name


def default_of(function: object, name: str) -> str:
    value = inspect.signature(function).parameters[name].default
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def test_defaults_that_the_model_chooses_are_shown_as_they_are() -> None:
    told = {option.name: option.show_default for option in options("train")}
    for name in ("n_hidden", "n_hidden_discriminator", "dropout_rate", "divergence", *LIKELIHOOD):
        assert told[name] == default_of(DRA, name), name
    assert told["learning_rate"] == default_of(TrainingPlan, "lr")
    assert told["batch_size"] == default_of(DRA.train, "batch_size")
    assert told["prior"] == effective_prior({"prior": None})
    compared = {option.name: option.show_default for option in options("benchmark")}
    assert (compared["n_latent"], compared["seeds"]) == (N_LATENT, str(SEEDS))
