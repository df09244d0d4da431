"""Options: the types of their values, and those that several commands have."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

SEED_LIMIT = 2**32 - 1
KEY_ADDED = "X_dra"
FILE_KEY = "file"
# by which a file is known that was named where a folder is wanted
FILE_SUFFIXES = (".h5ad", ".h5", ".html", ".csv", ".json", ".pt")
COUNT = click.IntRange(min=1)


class PathName(click.Path):
    """A name of something to read; ``~`` is the home folder, also where no shell replaced it."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Path:
        """Refuse what is no name."""
        text = os.fspath(value)
        if not text.strip():
            self.fail("an empty name.", param, ctx)
        if any(ord(character) < ord(" ") for character in text):
            self.fail(f"{text!r} has a line break or another control character in it.", param, ctx)
        return Path(os.path.expanduser(text))


class OutputName(PathName):
    """A name of something to be written."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Path:
        """Refuse the home of nobody as well."""
        path = super().convert(value, param, ctx)
        if os.fspath(path).startswith("~"):
            self.fail(f"{os.fspath(path)!r} begins with a user who is not there.", param, ctx)
        return path


class FolderName(OutputName):
    """A name of a folder to be written."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Path:
        """Refuse names of files as well."""
        path = super().convert(value, param, ctx)
        if path.suffix.lower() in FILE_SUFFIXES:
            folder = path.with_suffix("")
            self.fail(f"{str(path)!r} names a file; name a folder: {folder}", param, ctx)
        return path


class FileName(OutputName):
    """A name of a file to be written, which ends in one of some suffixes, in any case."""

    def __init__(self, *suffixes: str) -> None:
        super().__init__()
        self.suffixes = suffixes

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Path:
        """Refuse names of folders, and of files of another kind, as well."""
        if os.fspath(value).endswith(("/", os.sep)):
            self.fail(f"{os.fspath(value)!r} names a folder; name a file in it.", param, ctx)
        path = super().convert(value, param, ctx)
        if self.suffixes and path.suffix.lower() not in self.suffixes:
            wanted = self.suffixes[0]
            advice = f"; name a file: {path.with_suffix(wanted)}" if path.name else "."
            self.fail(f"{str(path)!r} does not end in {wanted}{advice}", param, ctx)
        return path


class CommaSeparated(click.ParamType):
    """Several values in one word, separated by commas; in YAML a list does as well."""

    metavar = "NAME[,NAME...]"

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        """Show how several values are written."""
        return self.metavar


class Numbers(CommaSeparated):
    """Whole numbers from 1, separated by commas."""

    metavar = "N[,N...]"

    def __init__(self, name: str, example: str, may_repeat: bool = True) -> None:
        self.name, self.example, self.may_repeat = name, example, may_repeat

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> list[int]:
        """Split at commas."""
        if isinstance(value, list):
            return value
        try:
            numbers = [int(number) for number in str(value).split(",")]
        except ValueError:
            numbers = []
        is_repeated = not self.may_repeat and len(set(numbers)) < len(numbers)
        if not numbers or min(numbers) < 1 or is_repeated:
            self.fail(
                f"{value!r} is not a list of {self.name} such as {self.example}.", param, ctx
            )
        return numbers


class Columns(CommaSeparated):
    """Names of columns, separated by commas, each once."""

    name = "columns"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> list[str]:
        """Split at commas."""
        if isinstance(value, list):
            return value
        names = [name.strip() for name in value.split(",")]
        if "" in names or len(set(names)) < len(names):
            self.fail(f"{value!r} is not a list of columns such as donor,site.", param, ctx)
        return names


def finite(ctx: click.Context, param: click.Parameter, value: float | None) -> float | None:
    """Refuse NaN, which is in every range, and infinity."""
    if value is not None and not math.isfinite(value):
        raise click.BadParameter(f"{value} is no finite number.", ctx, param)
    return value


def checked_key(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Refuse a name that nothing in a file can have."""
    from dra_scvi._outputs.h5ad_content import check_key

    try:
        if value is not None:
            check_key(value, str(param.name))
    except ValueError as error:
        raise click.BadParameter(str(error), ctx, param) from error
    return value


def common_options() -> list[click.Option]:
    """Make those that every command takes, beside ``--config``."""
    return [
        click.Option(
            ["--seed"],
            type=click.IntRange(0, SEED_LIMIT),
            default=0,
            help="Seed of everything random.",
        ),
        click.Option(
            ["--threads"],
            type=COUNT,
            show_default="as many as are of use",
            help="Most CPU threads to use.",
        ),
        click.Option(
            ["--accelerator"],
            default="auto",
            help="auto, cpu, gpu, or another that Lightning knows.",
        ),
        click.Option(["--force"], is_flag=True, help="Replace outputs that exist."),
        click.Option(
            ["--json"],
            type=FileName(),
            metavar="PATH|-",
            help="Write the figures as JSON; - writes them, and nothing else, to stdout.",
        ),
        click.Option(["--quiet"], is_flag=True, help="No progress on stderr."),
        click.Option(["--debug"], is_flag=True, help="Show traces and all libraries' messages."),
    ]


def path_argument(name: str, metavar: str) -> Callable[[Any], Any]:
    return click.argument(name, metavar=metavar, type=PathName())


def paths_argument() -> Callable[[Any], Any]:
    return click.argument(
        "input_paths", metavar="INPUT...", nargs=-1, required=True, type=PathName()
    )


def file_key_option() -> Callable[[Any], Any]:
    return click.option(
        "--file-key",
        callback=checked_key,
        metavar="NAME",
        show_default=FILE_KEY,
        help="Column of obs that names the file of each cell, of several INPUTs.",
    )


def check_file_key(file_key: str | None, paths: Sequence[Path]) -> str:
    """Return the name of the column, which one INPUT alone does not get."""
    if file_key is not None and len(paths) == 1:
        raise click.UsageError("--file-key needs several INPUTs.")
    return FILE_KEY if file_key is None else file_key


def name_inputs(paths: Sequence[Path]) -> dict[str, Path]:
    """Call each INPUT what messages shall call it."""
    return {"INPUT": paths[0]} if len(paths) == 1 else {f"INPUT {path}": path for path in paths}


def output_option(
    text: str = "Where INPUT is written with its embedding.",
) -> Callable[[Any], Any]:
    return click.option(
        "-o", "--output", type=FileName(".h5ad"), required=True, metavar="OUT.h5ad", help=text
    )


layer_option = click.option("--layer", show_default="X", help="Layer that holds the counts.")
batch_key_option = click.option("--batch-key", help="Column of obs with batches to integrate.")


def out_of_core_option() -> Callable[[Any], Any]:
    return click.option(
        "--out-of-core/--in-memory",
        default=None,
        help="Leave the counts in their file; default: where they would fill half of the memory.",
    )
