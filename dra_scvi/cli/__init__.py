"""The command line: the program, its exit codes, and its commands, each in a file of its own."""

from __future__ import annotations

import click

from dra_scvi.cli._benchmark import benchmark
from dra_scvi.cli._demo import demo
from dra_scvi.cli._embed import embed
from dra_scvi.cli._errors import PROGRAM, Program, exit_code
from dra_scvi.cli._evaluate import evaluate
from dra_scvi.cli._generate import generate
from dra_scvi.cli._help import HELP_NAMES
from dra_scvi.cli._info import info
from dra_scvi.cli._map import map_query
from dra_scvi.cli._train import train

__all__ = ["exit_code", "main", "program"]


@click.group(cls=Program, name=PROGRAM, invoke_without_command=True, context_settings=HELP_NAMES)
@click.version_option(package_name="dra_scvi", message="%(version)s")
@click.pass_context
def program(ctx: click.Context) -> None:
    """Embed single cells with DR-A.

    INPUT is an .h5ad file, a zarr store of an AnnData, a 10x .h5 file, or a folder with one .mtx
    and labels.txt, and holds raw counts. Start with "dra-scvi demo".

    Every command takes its options from a YAML file as well (--config). For completion in bash:
    eval "$(_DRA_SCVI_COMPLETE=bash_source dra-scvi)"; zsh and fish have the same.

    Exit codes: 0 done; 1 refused by the system (no permission, disk full, out of memory) or a
    bug; 2 wrong usage; 65 bad data; 66 missing input; 70 training diverged; 73 output exists, or
    something else is in its place; 130 and 143 interrupted.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help(), err=True)
        ctx.exit(2)


for _subcommand in (train, embed, map_query, generate, evaluate, benchmark, info, demo):
    program.add_command(_subcommand)


def main() -> None:
    """Run the command line."""
    program(prog_name=PROGRAM)
