"""What a command has found, and how it is written: as JSON, and as tables for people."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

from dra_scvi.cli._errors import close_stdout

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from dra_scvi.cli._command import Common

SCHEMA_VERSION = 1


class Result(NamedTuple):
    """What a command found: all of it for JSON, and one or more tables for people."""

    figures: dict[str, Any]
    title: str = ""
    rows: Sequence[Mapping[str, Any]] = ()
    more: Sequence[tuple[str, Sequence[Mapping[str, Any]]]] = ()
    failure: Exception | None = None  # raised when the rest has been written
    at_end: Callable[[], None] | None = None  # called when all has been written


def finish(name: str, result: Result, common: Common) -> None:
    """Show what was found, and raise what has failed without keeping the rest from it."""
    try:
        _emit(name, result, common)
    except (BrokenPipeError, SystemExit) as error:  # rich ends the program for the same reason
        if isinstance(error, SystemExit) and not isinstance(error.__context__, BrokenPipeError):
            raise
        close_stdout()  # nobody reads on, as after "| head": that is no failure
    if result.at_end is not None:
        result.at_end()
    if result.failure is not None:
        raise result.failure


def _emit(name: str, result: Result, common: Common) -> None:
    """Write the figures as JSON where that was asked for, and the table to stdout."""
    from importlib.metadata import version

    from dra_scvi._outputs.files import write_json

    if common.json is not None:
        header = {"schema_version": SCHEMA_VERSION, "command": name}
        figures = {**header, "version": version("dra_scvi"), **result.figures}
        write_json(_without_nan(figures), common.json, common.force)
        if str(common.json) == "-":
            return
        common.say(f"wrote {common.json}")
    if sys.stdout is None:
        return
    for title, rows in ((result.title, result.rows), *result.more):
        if rows:
            _print_table(title, rows)
    sys.stdout.flush()


def _without_nan(figures: Any) -> Any:
    """Write what is not known as ``null``, since JSON has no NaN."""
    if isinstance(figures, dict):
        return {name: _without_nan(value) for name, value in figures.items()}
    if isinstance(figures, list | tuple):
        return [_without_nan(value) for value in figures]
    is_number = isinstance(figures, float) or hasattr(figures, "is_integer")
    return None if is_number and not math.isfinite(figures) else figures


def _print_table(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for name, value in rows[0].items():
        table.add_column(name, justify="right" if isinstance(value, int | float) else "left")
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    Console(file=sys.stdout).print(table, markup=False)


def _cell(value: Any) -> str:
    if value is None or value != value:  # NaN
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
